//! Virtual device numbers (`xen/docs/man/xen-vbd-interface.7.pandoc`).

use core::fmt::Write as _;

use arrayvec::ArrayString;

/// Longest name.
const NAME_MAX: usize = 16;

/// A device's name, as in `xvda1`.
pub type Name = ArrayString<NAME_MAX>;

/// The nominal type of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `xvd*`.
    Xen,
    /// `sd*`.
    Scsi,
    /// `hd*`.
    Ide,
}

/// A virtual disk or one of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vdev {
    /// Its type.
    pub kind: Kind,
    /// The disk, from 0.
    pub disk: u32,
    /// The partition, 0 for the whole disk.
    pub partition: u16,
}

/// Bit of the extended numbering.
const EXTENDED: u32 = 1 << 28;
const XEN_MAJOR: u32 = 202;
const SCSI_MAJOR: u32 = 8;
const IDE_MAJORS: [u32; 2] = [3, 22];

impl Vdev {
    /// A whole Xen virtual disk.
    #[must_use]
    pub const fn xvd(disk: u32) -> Self {
        Self { kind: Kind::Xen, disk, partition: 0 }
    }

    /// The number in xenstore; `None` where there is no encoding for it.
    #[must_use]
    pub const fn number(self) -> Option<u32> {
        let (disk, partition) = (self.disk, self.partition as u32);
        match self.kind {
            Kind::Xen if disk < 16 && partition < 16 => {
                Some(XEN_MAJOR << 8 | disk << 4 | partition)
            }
            Kind::Xen if disk < 1 << 20 && partition < 256 => {
                Some(EXTENDED | disk << 8 | partition)
            }
            Kind::Scsi if disk < 16 && partition < 16 => {
                Some(SCSI_MAJOR << 8 | disk << 4 | partition)
            }
            Kind::Ide if disk < 4 && partition < 64 => {
                let major = IDE_MAJORS[disk as usize / 2];
                Some(major << 8 | (disk % 2) << 6 | partition)
            }
            _ => None,
        }
    }

    /// What a number says; `None` for those that are deprecated, reserved, or not how
    /// [`Self::number`] writes it.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let vdev = |kind, disk, partition: u32| Self { kind, disk, partition: partition as u16 };
        let (major, minor) = (number >> 8, number & 0xff);
        let found = if number >> 28 == 1 {
            vdev(Kind::Xen, (number & !EXTENDED) >> 8, minor)
        } else if let Some(controller) = (0u32..).zip(IDE_MAJORS).find(|ide| ide.1 == major) {
            vdev(Kind::Ide, controller.0 * 2 + (minor >> 6), minor & 0x3f)
        } else {
            match major {
                XEN_MAJOR => vdev(Kind::Xen, minor >> 4, minor & 15),
                SCSI_MAJOR => vdev(Kind::Scsi, minor >> 4, minor & 15),
                _ => return None,
            }
        };
        (found.number() == Some(number)).then_some(found)
    }

    /// Its name: `xvda`, `sdb3`, `hdc`, `xvdaa17`.
    #[must_use]
    pub fn name(self) -> Name {
        let prefix = match self.kind {
            Kind::Xen => "xvd",
            Kind::Scsi => "sd",
            Kind::Ide => "hd",
        };
        // The letters from the last to the first: bijective base 26.
        let mut letters = ArrayString::<8>::new();
        let mut left = u64::from(self.disk) + 1;
        while left > 0 && letters.remaining_capacity() > 0 {
            left -= 1;
            letters.push(char::from(b'a' + (left % 26) as u8));
            left /= 26;
        }
        let mut name = Name::new();
        let _ = name.write_str(prefix);
        letters.chars().rev().for_each(|letter| name.push(letter));
        if self.partition > 0 {
            let _ = write!(name, "{}", self.partition);
        }
        name
    }

    /// Reads a name as above, or `d0p1`, or a number that [`Self::from_number`] knows (decimal,
    /// `0x` or octal).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let found = if let Some(rest) = text.strip_prefix("xvd") {
            Self::parse_letters(Kind::Xen, rest)
        } else if let Some(rest) = text.strip_prefix("sd") {
            Self::parse_letters(Kind::Scsi, rest)
        } else if let Some(rest) = text.strip_prefix("hd") {
            Self::parse_letters(Kind::Ide, rest)
        } else if let Some(rest) = text.strip_prefix('d') {
            let (disk, partition) = rest.split_once('p').unwrap_or((rest, "0"));
            Some(Self { kind: Kind::Xen, disk: decimal(disk)?, partition: decimal(partition)? })
        } else {
            return Self::from_number(parse_number(text)?);
        };
        found.filter(|vdev| vdev.number().is_some())
    }

    fn parse_letters(kind: Kind, text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(text.len());
        let (letters, partition) = text.split_at_checked(end)?;
        if letters.is_empty() {
            return None;
        }
        let disk = letters.bytes().try_fold(0u32, |disk, letter| {
            disk.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)
        })?;
        let partition = match partition {
            "" => 0,
            // `xvda0` would be another name for `xvda`.
            text => decimal::<u16>(text).filter(|partition| *partition > 0)?,
        };
        Some(Self { kind, disk: disk - 1, partition })
    }
}

/// Decimal digits without sign or leading zeros.
pub(super) fn decimal<T: core::str::FromStr>(text: &str) -> Option<T> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    if canonical { text.parse().ok() } else { None }
}

fn parse_number(text: &str) -> Option<u32> {
    if let Some(hex) = text.strip_prefix("0x").filter(|hex| !hex.starts_with('+')) {
        u32::from_str_radix(hex, 16).ok()
    } else if let Some(octal) = text.strip_prefix('0').filter(|octal| !octal.starts_with('+')) {
        u32::from_str_radix(octal, 8).ok()
    } else {
        decimal(text)
    }
}
