//! `--net BACKEND[,word]…`.

use crate::net::frame::Mac;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

/// Largest MTU.
pub const MTU_MAX: u16 = 9000;
/// Smallest: what IPv4 hosts have to take.
pub const MTU_MIN: u16 = 576;
/// As everybody has it.
pub const MTU_DEFAULT: u16 = 1500;
/// Most channels of an adapter.
pub const QUEUES_MAX: u32 = 64;
/// Most adapters of a machine.
pub const ADAPTERS_MAX: usize = 16;

const WORDS: &str =
    "mac=, mtu=, queues=, pps=, detached, and for user hostfwd=, for tap ifname=, for socket path=";

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of this machine that leads to one of the guest: `tcp:[ADDRESS:]PORT-:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of this machine; `None`: all.
    pub address: Option<Ipv4Addr>,
    /// Port of this machine.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0);
        let parse = || {
            let (protocol, rest) = text.split_once(':')?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            let (host, guest_port) = rest.rsplit_once("-:")?;
            let (address, host_port) = match host.rsplit_once(':') {
                None => (None, host),
                Some(("", host_port)) => (None, host_port),
                Some((address, host_port)) => (Some(address.parse().ok()?), host_port),
            };
            let (host_port, guest_port) = (port(host_port)?, port(guest_port)?);
            Some(Self { protocol, address, host_port, guest_port })
        };
        parse().with_context(|| format!("hostfwd={text}: expected tcp|udp:[ADDRESS:]PORT-:PORT"))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        write!(f, "{protocol}:{address}:{}-:{}", self.host_port, self.guest_port)
    }
}

/// Where frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendOptions {
    /// User-mode networking.
    User {
        /// Ports that lead to the guest.
        forwards: Vec<Forward>,
    },
    /// A TAP.
    Tap {
        /// Interface.
        ifname: String,
        /// What the guest leaves undone may be left undone.
        offload: bool,
    },
    /// A UNIX socket or character device with frames on it.
    Socket {
        /// Where.
        path: PathBuf,
        /// Each frame has a virtio-net header.
        offload: bool,
    },
}

/// A network adapter of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// Where its frames go.
    pub backend: BackendOptions,
    /// Its address; `None`: one is made.
    pub mac: Option<Mac>,
    /// Largest packet.
    pub mtu: u16,
    /// Most channels; `None`: as many as processors.
    pub queues: Option<u32>,
    /// Packets a second in each direction that the switch has time for; `None`: as many as can be.
    pub pps: Option<NonZeroU32>,
    /// It is plugged in later, by `net-attach`.
    pub detached: bool,
}

/// The words as they come, before it is known which go together.
#[derive(Default)]
struct Words {
    ifname: Option<String>,
    path: Option<PathBuf>,
    offload: Option<bool>,
    forwards: Vec<Forward>,
}

impl Words {
    fn backend(self, kind: &str) -> Result<BackendOptions> {
        let Self { ifname, path, offload, forwards } = self;
        match kind {
            "user" if ifname.is_some() || path.is_some() || offload.is_some() => {
                bail!("user takes neither ifname=, path= nor offload=")
            }
            "user" => return Ok(BackendOptions::User { forwards }),
            _ if !forwards.is_empty() => bail!("hostfwd= is for user only"),
            _ => {}
        }
        let offload = offload.unwrap_or(true);
        match (kind, ifname, path) {
            ("tap", Some(ifname), None) => Ok(BackendOptions::Tap { ifname, offload }),
            ("tap", ..) => bail!("tap wants ifname=NAME, and no path="),
            ("socket", None, Some(path)) => Ok(BackendOptions::Socket { path, offload }),
            ("socket", ..) => bail!("socket wants path=PATH, and no ifname="),
            _ => bail!("{kind:?}: expected user, tap or socket, and then {WORDS}"),
        }
    }
}

impl FromStr for NetOptions {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        let mut words = Words::default();
        let (mut mac, mut mtu, mut queues, mut detached) = (None, MTU_DEFAULT, None, false);
        let mut pps = None;
        for word in rest.split(',').filter(|_| text.contains(',')) {
            match word.split_once('=').unwrap_or((word, "")) {
                ("mac", value) => mac = Some(value.parse().context("mac=")?),
                ("mtu", value) => {
                    let number = value.parse().ok().filter(|n| (MTU_MIN..=MTU_MAX).contains(n));
                    mtu = number
                        .with_context(|| format!("mtu={value}: expected {MTU_MIN} to {MTU_MAX}"))?;
                }
                ("queues", value) => {
                    let number = value.parse().ok().filter(|n| (1..=QUEUES_MAX).contains(n));
                    queues =
                        Some(number.with_context(|| {
                            format!("queues={value}: expected 1 to {QUEUES_MAX}")
                        })?);
                }
                ("pps", value) => {
                    pps = Some(value.parse().with_context(|| format!("pps={value}: a number"))?);
                }
                ("detached", "") => detached = true,
                ("hostfwd", value) => words.forwards.push(value.parse()?),
                ("ifname", value) if !value.is_empty() => words.ifname = Some(value.into()),
                ("path", value) if !value.is_empty() => words.path = Some(value.into()),
                ("offload", "on") => words.offload = Some(true),
                ("offload", "off") => words.offload = Some(false),
                ("offload", value) => bail!("offload={value}: expected on or off"),
                _ => bail!("{word:?}: expected {WORDS}"),
            }
        }
        Ok(Self { backend: words.backend(kind)?, mac, mtu, queues, pps, detached })
    }
}

impl NetOptions {
    /// The address of adapter `number`: what is said, else one of Microsoft's range, always
    /// the same for the same options.
    #[must_use]
    pub fn mac(&self, number: usize) -> Mac {
        if let Some(mac) = self.mac {
            return mac;
        }
        // FNV-1a. Several machines on one network differ in what they are connected by.
        let path;
        let bytes = match &self.backend {
            BackendOptions::User { .. } => b"user",
            BackendOptions::Tap { ifname, .. } => ifname.as_bytes(),
            BackendOptions::Socket { path: at, .. } => {
                path = at.to_string_lossy();
                path.as_bytes()
            }
        };
        let start = 0xcbf2_9ce4_8422_2325 ^ number as u64;
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let [a, b, c, ..] = bytes.iter().fold(start, step).to_be_bytes();
        Mac([0x00, 0x15, 0x5d, a, b, c])
    }
}

impl fmt::Display for NetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |offload: bool| if offload { "on" } else { "off" };
        match &self.backend {
            BackendOptions::User { forwards } => {
                f.write_str("user")?;
                for forward in forwards {
                    write!(f, ",hostfwd={forward}")?;
                }
            }
            BackendOptions::Tap { ifname, offload } => {
                write!(f, "tap,ifname={ifname},offload={}", switch(*offload))?;
            }
            BackendOptions::Socket { path, offload } => {
                write!(f, "socket,path={},offload={}", path.display(), switch(*offload))?;
            }
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        write!(f, ",mtu={}", self.mtu)?;
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        if let Some(pps) = self.pps {
            write!(f, ",pps={pps}")?;
        }
        if self.detached {
            f.write_str(",detached")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetOptions> {
        text.parse()
    }

    #[test]
    fn words() {
        let o = parse("user,hostfwd=tcp:2222-:22,hostfwd=udp:127.0.0.1:53-:53,mtu=9000,queues=8")
            .unwrap();
        let BackendOptions::User { forwards } = &o.backend else { panic!() };
        assert_eq!((forwards[0].host_port, forwards[0].guest_port), (2222, 22));
        assert_eq!(forwards[1].address, Some(Ipv4Addr::LOCALHOST));
        assert_eq!((o.mtu, o.queues, o.mac, o.detached), (9000, Some(8), None, false));
        let o = parse("tap,ifname=tap0,mac=00:15:5d:01:02:03,detached").unwrap();
        assert_eq!(o.backend, BackendOptions::Tap { ifname: "tap0".into(), offload: true });
        assert_eq!((o.mac.unwrap().0[5], o.mtu, o.detached), (3, 1500, true));
        let o = parse("socket,path=/a b,offload=off").unwrap();
        assert_eq!(o.backend, BackendOptions::Socket { path: "/a b".into(), offload: false });
        assert_eq!(
            parse("user,hostfwd=tcp:127.0.0.1:1-:2").unwrap().to_string(),
            "user,hostfwd=tcp:127.0.0.1:1-:2,mtu=1500"
        );
    }

    #[test]
    fn what_is_said_is_read_again() {
        for text in [
            "user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:53,mtu=1500,queues=8,detached",
            "tap,ifname=t,offload=on,mac=00:15:5d:01:02:03,mtu=9000",
            "socket,path=/x,offload=off,mtu=576,pps=1000",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_differ_and_stay() {
        let mac = |text: &str, number| parse(text).unwrap().mac(number);
        assert_eq!(mac("tap,ifname=a", 0), mac("tap,ifname=a,mtu=9000", 0));
        assert_ne!(mac("tap,ifname=a", 0), mac("tap,ifname=b", 0));
        assert_ne!(mac("user", 0), mac("user", 1));
        assert_eq!(mac("user", 0).0[..3], [0, 0x15, 0x5d]);
        assert_eq!(mac("user,mac=00:15:5d:00:00:09", 5).0[5], 9);
    }

    #[test]
    fn refusals_are_one_line() {
        for text in [
            "",
            ",",
            "bridge",
            "user,",
            "user,x",
            "user,mtu=9001",
            "user,mtu=100",
            "user,mtu=",
            "user,queues=0",
            "user,queues=65",
            "user,pps=0",
            "user,pps=",
            "user,mac=1",
            "user,mac=01:00:00:00:00:00",
            "user,hostfwd=22",
            "user,hostfwd=tcp:0-:22",
            "user,hostfwd=sctp:1-:1",
            "user,hostfwd=tcp:x:1-:1",
            "user,hostfwd=tcp:[::1]:1-:1",
            "user,hostfwd=tcp:1-:70000",
            "user,ifname=x",
            "tap",
            "tap,ifname=",
            "tap,ifname=x,path=y",
            "tap,ifname=x,hostfwd=tcp:1-:1",
            "socket",
            "socket,path=x,ifname=y",
            "socket,path=x,offload=maybe",
            "user,detached=1",
            "user,offload=on",
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(!error.contains('\n') && !error.is_empty(), "{text}");
        }
    }
}
