//! `pontoon.vbd=NAME:SOURCE[:FLAG..],..`: which of the host's disks the guest sees as which.
//!
//! `NAME` is a virtual device ([`Vdev::parse`]). `SOURCE` is `scsiC:L` for LUN `L` of the `C`-th
//! SCSI controller, in the order the host offers them, or `scsiC:T:L` with a target; or `ideC:D` for
//! device `D` of IDE controller `C`; `pN` behind it takes partition `N` alone. Flags: `ro` refuses writes, `cdrom` calls it a CD-ROM drive, `rw` and
//! `disk` are the defaults. `none` alone: the guest has no disks. Without the option every LUN is
//! a disk, `xvda` the first.

use core::fmt;

use arrayvec::ArrayVec;

use super::number::decimal;
use super::{Kind, Vdev};

/// Disks the option may name.
pub const MAX_ENTRIES: usize = 64;

/// A controller of the host's. IDE's come first, as they do where a machine starts from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// An IDE controller.
    Ide(u16),
    /// A SCSI controller, by order of offer.
    Scsi(u16),
}

/// A LUN of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lun {
    /// The controller.
    pub controller: Controller,
    /// The target on it; IDE's device.
    pub target: u8,
    /// The LUN on that; 0 of IDE's.
    pub lun: u8,
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { controller, target, lun } = self;
        match controller {
            Controller::Ide(number) => write!(f, "ide{number}:{target}"),
            Controller::Scsi(number) => write!(f, "scsi{number}:{target}:{lun}"),
        }
    }
}

/// Where a disk's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The LUN.
    pub lun: Lun,
    /// One of its partitions, from 1.
    pub partition: Option<u16>,
}

/// How a disk is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD-ROM drive.
    pub cdrom: bool,
}

/// A disk of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the guest sees it as.
    pub vdev: Vdev,
    /// Where it is.
    pub source: Source,
    /// How it is shown.
    pub flags: Flags,
}

/// An option that says nothing sensible; where, as the number of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOption {
    /// The name is none of a virtual device.
    Name(usize),
    /// The source is not as above.
    Source(usize),
    /// A flag is unknown.
    Flag(usize),
    /// The name, or a part of the disk or all of it, was given before.
    Twice(usize),
    /// There are more than [`MAX_ENTRIES`].
    TooMany,
}

/// Reads the option.
///
/// # Errors
/// The first entry that is wrong; the guest would not find the disks it expects.
pub fn parse(text: &str) -> Result<ArrayVec<Entry, MAX_ENTRIES>, BadOption> {
    let mut entries = ArrayVec::<Entry, MAX_ENTRIES>::new();
    if text == "none" {
        return Ok(entries);
    }
    for (index, part) in text.split(',').filter(|part| !part.is_empty()).enumerate() {
        let entry = parse_entry(part, index)?;
        if entries.iter().any(|other| clash(other, &entry)) {
            return Err(BadOption::Twice(index));
        }
        entries.try_push(entry).map_err(|_| BadOption::TooMany)?;
    }
    Ok(entries)
}

/// Whether two entries cannot be together: one device, or data both could write.
fn clash(a: &Entry, b: &Entry) -> bool {
    let overlap = match (a.source.partition, b.source.partition) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    let written = !(a.flags.read_only && b.flags.read_only);
    a.vdev == b.vdev || a.source.lun == b.source.lun && overlap && written
}

fn parse_entry(text: &str, index: usize) -> Result<Entry, BadOption> {
    let (name, rest) = text.split_once(':').ok_or(BadOption::Source(index))?;
    let vdev = Vdev::parse(name).ok_or(BadOption::Name(index))?;
    let (source, rest) = parse_source(rest).ok_or(BadOption::Source(index))?;
    let mut flags = Flags::default();
    for flag in rest {
        match flag {
            "ro" => flags.read_only = true,
            "rw" => flags.read_only = false,
            "cdrom" => flags = Flags { read_only: true, cdrom: true },
            "disk" => flags.cdrom = false,
            _ => return Err(BadOption::Flag(index)),
        }
    }
    Ok(Entry { vdev, source, flags })
}

/// The source at the head of `scsi0:0:2p1:ro`, and the words behind it.
fn parse_source(text: &str) -> Option<(Source, core::str::Split<'_, char>)> {
    let mut words = text.split(':');
    let controller = words.next()?;
    let (mut lun, mut partition) = numbers(words.next()?)?;
    if let Some(controller) = controller.strip_prefix("ide") {
        let controller = Controller::Ide(decimal(controller)?);
        return Some((Source { lun: Lun { controller, target: lun, lun: 0 }, partition }, words));
    }
    let controller = Controller::Scsi(decimal(controller.strip_prefix("scsi")?)?);
    let mut target = 0;
    // A third number makes the second the target.
    let mut ahead = words.clone();
    if partition.is_none()
        && let Some(third) = ahead.next().and_then(numbers)
    {
        target = lun;
        (lun, partition) = third;
        words = ahead;
    }
    let lun = Lun { controller, target, lun };
    Some((Source { lun, partition }, words))
}

/// `0` or `0p2`.
fn numbers(text: &str) -> Option<(u8, Option<u16>)> {
    let (lun, partition) = match text.split_once('p') {
        None => (text, None),
        Some((lun, partition)) => {
            (lun, Some(decimal(partition).filter(|partition| *partition > 0)?))
        }
    };
    Some((decimal(lun)?, partition))
}

/// What the `index`-th disk found becomes where no option says anything: `xvda`, `xvdb`, ..
/// CD-ROM drives too.
#[must_use]
pub const fn default_entry(index: u32, lun: Lun, cdrom: bool) -> Entry {
    Entry {
        vdev: Vdev { kind: Kind::Xen, disk: index, partition: 0 },
        source: Source { lun, partition: None },
        flags: Flags { read_only: cdrom, cdrom },
    }
}
