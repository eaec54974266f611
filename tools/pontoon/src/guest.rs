//! A guest as a pack takes it: what it boots, its disks and its network cards.

use anyhow::{Context, Result, bail, ensure};
use pv_frontends::vbd::{self, Vdev};
use pv_frontends::vif;
use std::fmt;
use translate::builder::Kernel;

/// Bytes of a command line, as `start_info` holds it.
const MAX_CMDLINE: usize = 1023;
/// Bytes of a domain's name, as the shim takes it.
const MAX_NAME: usize = 64;

/// A guest.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its UUID, if it has one.
    pub uuid: Option<String>,
    /// Memory the guest is to have.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// So many of them are online at the start, where not all are.
    pub online: Option<u32>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// What a guest boots.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// The kernel image.
    pub kernel: Vec<u8>,
    /// Its initrd.
    pub initrd: Option<Vec<u8>>,
    /// Its command line.
    pub cmdline: String,
    /// What there is to say about how it was found, a line each.
    pub notes: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its number in the guest.
    pub number: u32,
    /// Its address.
    pub mac: Mac,
    /// Its MTU, where not the switch's.
    pub mtu: Option<u16>,
    /// The network it was on, as its old host named it.
    pub network: Option<String>,
}

/// A disk's place in the virtual machine, and what the guest sees it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the guest sees.
    pub vdev: Vdev,
    /// LUN on the first SCSI controller.
    pub lun: u8,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD-ROM drive.
    pub cdrom: bool,
}

/// An Ethernet address of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Six bytes of hexadecimal digits, with colons or dashes or nothing between them.
    ///
    /// # Errors
    /// It is not that, or not one card's.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let bad = || format!("\"{text}\" is no address of a network card");
        let parts: Vec<String> = match text.len() {
            12 if text.is_ascii() => {
                (0..6).filter_map(|i| text.get(2 * i..2 * i + 2)).map(str::to_owned).collect()
            }
            _ => text.split([':', '-']).map(str::to_owned).collect(),
        };
        ensure!(parts.len() == 6, bad());
        let mut bytes = [0; 6];
        for (byte, part) in bytes.iter_mut().zip(&parts) {
            ensure!(matches!(part.len(), 1 | 2) && !part.starts_with('+'), bad());
            *byte = u8::from_str_radix(part, 16).with_context(bad)?;
        }
        ensure!(bytes != [0; 6], bad());
        ensure!(bytes[0] & 1 == 0, "{text} is a multicast address");
        Ok(Self(bytes))
    }

    /// An address of Xen's range, the same each time for a guest's name and a card's number.
    #[must_use]
    pub fn made_for(name: &str, number: u32) -> Self {
        // FNV-1a.
        let text = format!("{name}\0{number}");
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
            (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, ..] = (hash ^ hash >> 32).to_le_bytes();
        Self([0x00, 0x16, 0x3e, a & 0x7f, b, c])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Guest {
    /// Words for the shim that make the machine's hardware the guest's devices.
    ///
    /// # Errors
    /// More than the shim takes, or something twice.
    pub fn words(&self, disks: &[Place]) -> Result<Vec<String>> {
        let mut words = Vec::new();
        ensure!(
            (1..=MAX_NAME).contains(&self.name.len())
                && self.name.chars().all(|c| c.is_ascii_graphic() && c != '"'),
            "the name \"{}\" is not of 1 to {MAX_NAME} plain characters: --name gives another",
            self.name.escape_default()
        );
        words.push(format!("pontoon.name={}", self.name));
        if let Some(uuid) = &self.uuid {
            let digits = uuid.bytes().filter(u8::is_ascii_hexdigit).count();
            let good = digits == 32 && uuid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
            ensure!(good, "\"{uuid}\" is no UUID");
            words.push(format!("pontoon.uuid={uuid}"));
        }
        if let Some(online) = self.online {
            words.push(format!("pontoon.vcpus={online}"));
        }
        let mut list = Vec::new();
        for disk in disks {
            let kind = match (disk.cdrom, disk.read_only) {
                (true, _) => ":cdrom",
                (_, true) => ":ro",
                _ => "",
            };
            list.push(format!("{}:scsi0:{}{kind}", disk.vdev.name(), disk.lun));
        }
        let vbd = list.join(",");
        if let Err(error) = vbd::parse(&vbd) {
            bail!("the guest cannot have these disks: {error:?} in {vbd}");
        }
        // The disk the machine starts from is none of the guest's.
        words.push(format!("pontoon.vbd={}", if vbd.is_empty() { "none" } else { &vbd }));
        let nic = |nic: &Nic| {
            let mtu = nic.mtu.map(|mtu| format!(":mtu{mtu}")).unwrap_or_default();
            format!("{}={}{mtu}", nic.mac, nic.number)
        };
        let list = self.nics.iter().map(nic).collect::<Vec<_>>().join(",");
        let vif = if list.is_empty() { "none" } else { &list };
        vif::parse(vif).map_err(|error| anyhow::anyhow!("the guest's network cards: {error}"))?;
        words.push(format!("pontoon.vif={vif}"));
        Ok(words)
    }
}

impl Payload {
    /// What there is to say about it, behind a plan.
    #[must_use]
    pub fn told(&self) -> String {
        let lines = self.notes.iter().cloned().chain([format!("command line: {}", self.cmdline)]);
        lines.map(|line| format!("  {line}\n")).collect()
    }

    /// Whether the shim will start it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<()> {
        Kernel::load(&self.kernel).map_err(|e| anyhow::anyhow!("{e}"))?;
        ensure!(
            self.cmdline.len() <= MAX_CMDLINE,
            "the command line has {} bytes; at most {MAX_CMDLINE} reach a kernel",
            self.cmdline.len()
        );
        ensure!(
            !self.cmdline.contains(['\n', '\r', '\0']),
            "the command line has more than one line"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let nic =
            |number, mac| Nic { number, mac: Mac::parse(mac).unwrap(), mtu: None, network: None };
        let nics =
            vec![nic(0, "00:16:3e:00:00:01"), Nic { mtu: Some(9000), ..nic(1, "00163E000002") }];
        Guest { name: "web".into(), nics, ..Guest::default() }
    }

    fn place(name: &str, lun: u8) -> Place {
        Place { vdev: Vdev::parse(name).unwrap(), lun, read_only: false, cdrom: false }
    }

    #[test]
    fn words_name_every_device() {
        let ro = Place { read_only: true, ..place("sda1", 2) };
        let dvd = Place { cdrom: true, ..place("hdc", 3) };
        let words = guest().words(&[place("xvda", 1), ro, dvd]).unwrap();
        assert_eq!(
            words,
            [
                "pontoon.name=web",
                "pontoon.vbd=xvda:scsi0:1,sda1:scsi0:2:ro,hdc:scsi0:3:cdrom",
                "pontoon.vif=00:16:3e:00:00:01=0,00:16:3e:00:00:02=1:mtu9000"
            ]
        );
        let none = Guest {
            name: "web".into(),
            uuid: Some("00112233-4455-6677-8899-aabbccddeeff".into()),
            ..Guest::default()
        };
        assert_eq!(
            none.words(&[]).unwrap()[1..],
            [
                "pontoon.uuid=00112233-4455-6677-8899-aabbccddeeff",
                "pontoon.vbd=none",
                "pontoon.vif=none"
            ]
        );
    }

    #[test]
    fn what_the_shim_would_refuse_is_refused() {
        let twice = [place("xvda", 1), place("xvda", 2)];
        assert!(guest().words(&twice).is_err());
        let mut same = guest();
        same.nics[1].mac = same.nics[0].mac;
        assert!(same.words(&[]).is_err());
        for name in ["", "a b", "ü", "a\"b", &"x".repeat(65)] {
            assert!(Guest { name: name.into(), ..guest() }.words(&[]).is_err(), "{name}");
        }
        assert!(Guest { uuid: Some("1234".into()), ..guest() }.words(&[]).is_err());
    }

    #[test]
    fn made_addresses_are_cards_of_xens_range() {
        let (a, b) = (Mac::made_for("web", 0), Mac::made_for("web", 1));
        assert!(a != b && a == Mac::made_for("web", 0));
        assert_eq!(Mac::parse(&a.to_string()).unwrap(), a);
        assert!(a.to_string().starts_with("00:16:3e:"));
    }
}
