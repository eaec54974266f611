//! The native network tests' initramfs, and the networks of this machine they use.

use crate::parts::{self, run};
use crate::{guests, traffic};
use anyhow::{Context, Result};
use hvhost::net::{Backend, Frame, Stream, Tap};
use pontoon::initramfs::Extra;
use pontoon::kernel::Kernel;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const INIT: &str = include_str!("../e2e/net-init.sh");

/// Drivers; what they depend on is added.
const MODULES: [&str; 4] = ["hv_netvsc", "8021q", "hv_storvsc", "sd_mod"];
const XEN_MODULES: [&str; 3] = ["xen-netfront", "8021q", "xen-blkfront"];
/// Built into some kernels.
const PACKET_SOCKETS: &str = "af_packet";

/// What busybox has not.
const PROGRAM: &str = "/sbin/ethtool";

/// The initramfs, with Hyper-V's drivers.
pub fn initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    initramfs_with(kernel, &MODULES)
}

/// The same with Xen's.
pub fn initramfs_for_xen(kernel: &Kernel) -> Result<Vec<u8>> {
    initramfs_with(kernel, &XEN_MODULES)
}

fn initramfs_with(kernel: &Kernel, modules: &[&str]) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let packets = [PACKET_SOCKETS].into_iter().filter(|name| kernel.modules(&[name]).is_ok());
    let modules: Vec<_> = modules.iter().copied().chain(packets).collect();
    let mut extras = parts::drivers(kernel, &modules)?;
    for program in ["traffic", "pressure"] {
        let data = read(&guests::program(program)?)?;
        extras.push(Extra { name: format!("sbin/{program}"), data });
    }
    let name = PROGRAM.trim_start_matches('/').to_owned();
    extras.push(Extra { name, data: read(Path::new(PROGRAM))? });
    for library in parts::libraries_of(PROGRAM)? {
        let name = library.to_string_lossy().trim_start_matches('/').to_owned();
        extras.push(Extra { name, data: read(&library)? });
    }
    guests::with_init(&[INIT], &extras)
}

/// VLAN of the second TAP.
const VLAN: u16 = 5;

/// Two TAPs of this machine, with addresses and someone who serves [`traffic`]; gone with
/// this.
pub struct Network {
    /// Interface; the other's name has a `v` behind it.
    pub ifname: String,
    /// Third byte of its IPv4 network, and the same of IPv6's.
    pub number: u8,
    /// Where traffic is served.
    pub port: u16,
}

fn ip(words: &str) -> Result<()> {
    run(Command::new("/sbin/ip").args(words.split(' '))).map(drop)
}

impl Network {
    /// Makes one of its own for this process, for packets of up to 1500 bytes.
    pub fn new() -> Result<Self> {
        let id = std::process::id();
        let number = (id % 250) as u8;
        let ifname = format!("pontoon{}", id % 100_000);
        let me = Self { ifname, number, port: traffic::serve(0)? };
        for (dev, v4, v6) in me.interfaces() {
            ip(&format!("tuntap add dev {dev} mode tap vnet_hdr"))?;
            ip(&format!("addr add {v4}.{number}.1/24 dev {dev}"))?;
            ip(&format!("addr add {v6}:{number}::1/64 dev {dev} nodad"))?;
            ip(&format!("link set {dev} up"))?;
        }
        Ok(me)
    }

    /// The largest packets the first sends from now on.
    pub fn set_mtu(&self, mtu: &str) -> Result<()> {
        ip(&format!("link set {} mtu {mtu}", self.ifname))
    }

    fn interfaces(&self) -> [(String, &'static str, &'static str); 2] {
        [
            (self.ifname.clone(), "198.18", "fd5a:ce00"),
            (format!("{}v", self.ifname), "198.19", "fd5a:ce01"),
        ]
    }

    /// Puts both on one wire, the second as a VLAN, for whoever connects to `socket` first;
    /// how many frames had a tag.
    pub fn switch(&self, socket: &Path, offload: bool) -> Result<Arc<AtomicU64>> {
        let open = |ifname: &str| -> Result<Arc<dyn Backend>> {
            Ok(Arc::new(Tap::open(ifname, offload)?))
        };
        let [plain, tagged] = self.interfaces().map(|(ifname, ..)| open(&ifname));
        let (plain, tagged) = (plain?, tagged?);
        // One of an earlier run.
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let seen = Arc::new(AtomicU64::new(0));
        let count = seen.clone();
        thread::spawn(move || {
            let Ok((wire, _)) = listener.accept() else { return };
            let Ok(wire) = Stream::new(wire.into(), offload) else { return };
            thread::scope(|scope| {
                scope.spawn(|| to_wire(&*plain, None, &wire));
                scope.spawn(|| to_wire(&*tagged, Some(VLAN), &wire));
                let mut frame = Frame::default();
                while let Ok(true) = wire.receive(&mut frame) {
                    let to = match frame.take_vlan() {
                        None => &plain,
                        Some(VLAN) => {
                            count.fetch_add(1, Ordering::Relaxed);
                            &tagged
                        }
                        Some(_) => continue,
                    };
                    let _ = to.send(&frame);
                }
                plain.stop();
                tagged.stop();
            });
        });
        Ok(seen)
    }
}

fn to_wire(from: &dyn Backend, vlan: Option<u16>, wire: &Stream) {
    let mut frame = Frame::default();
    while let Ok(true) = from.receive(&mut frame) {
        if let Some(vlan) = vlan {
            frame.put_vlan(vlan);
        }
        if wire.send(&frame).is_err() {
            break;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (dev, ..) in self.interfaces() {
            let _ = ip(&format!("link del {dev}"));
        }
    }
}

/// Packets this machine has received with a wrong checksum: IP's, TCP's, UDP's.
pub fn checksum_errors() -> Result<u64> {
    let mut errors = 0;
    for file in ["/proc/net/snmp", "/proc/net/snmp6", "/proc/net/netstat"] {
        errors += wrong_sums(&fs::read_to_string(file).context(file)?);
    }
    Ok(errors)
}

/// Sum of what is called a checksum error, in tables of either kind.
#[must_use]
pub fn wrong_sums(text: &str) -> u64 {
    let is_sum = |name: &str| name.ends_with("InCsumErrors");
    let mut sum = 0;
    let mut names: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, value] if is_sum(name) => sum += value.parse::<u64>().unwrap_or(0),
            // A line of names, then one of values.
            [table, ..] if names.first() == Some(table) => {
                let values = names.iter().zip(&words).filter(|(name, _)| is_sum(name));
                sum += values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum::<u64>();
                names.clear();
            }
            _ => names = words,
        }
    }
    sum
}

/// Lines of a kernel log that complain about networks.
#[must_use]
pub fn complaints(log: &[String]) -> Vec<&str> {
    const NETWORK: [&str; 8] =
        ["hv_vmbus", "netvsc", "eth0", "eth1", "checksum", "NETDEV", "BUG", "Call Trace"];
    log.iter()
        .map(String::as_str)
        .filter(|line| NETWORK.iter().any(|word| line.contains(word)))
        // Linux 5.10 asks that of every machine without a framebuffer.
        .filter(|line| !line.contains("Unexpected framebuffer mmio base of zero"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_added_up() {
        let old =
            "Ip: A B\nIp: 1 2\nTcp: InSegs InCsumErrors\nTcp: 5 3\nUdp: InCsumErrors X\nUdp: 4 9\n";
        assert_eq!(wrong_sums(old), 7);
        assert_eq!(wrong_sums("Udp6InCsumErrors \t2\nIcmp6InCsumErrors 1\nIp6InReceives 8\n"), 3);
    }
}
