//! Finding a partition: MBR with logical partitions, and GPT (UEFI 2.10, 5.3).
//!
//! [`Finder`] does no I/O: it says what to read next and takes what was read, at most a page at a
//! time. What a disk holds is not to be trusted: every chain is bounded, every extent is checked
//! against the device.

use crate::blkback::DeviceInfo;
use xen_abi::io::blkif::SECTOR_BYTES;

/// Most bytes of a read.
pub const READ_BYTES: usize = 4096;
/// Logical partitions that are looked at, as Linux does.
const MAX_LOGICAL: u16 = 124;
/// Bytes of entries that are looked at: 128 of 128 bytes are usual.
const MAX_ENTRY_BYTES: u64 = 1 << 20;
/// Offset of the first of four entries in a boot record.
const RECORD_ENTRIES: usize = 446;
/// Bytes of a GPT header that are defined.
const GPT_HEADER: usize = 92;
/// Partition type that says "look for a GPT".
const PROTECTIVE: u8 = 0xee;

/// Sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub start: u64,
    /// How many.
    pub sectors: u64,
}

/// Why there is no such partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPartition {
    /// The disk has no partition table.
    NoTable,
    /// The table, and its backup, cannot be believed.
    BadTable,
    /// It is not in the table.
    NotThere,
    /// It does not lie on the disk.
    OutOfRange,
}

/// What the finder wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read so many bytes from this sector of 512 bytes on, and [`Finder::feed`] them.
    Read {
        /// The sector: the device's sectors are read whole.
        sector: u64,
        /// Bytes, at most [`READ_BYTES`].
        bytes: usize,
    },
    /// The end.
    Done(Result<Extent, NoPartition>),
}

/// A boot record's entry.
#[derive(Clone, Copy)]
struct RecordEntry {
    kind: u8,
    start: u64,
    blocks: u64,
}

/// What of a GPT header is needed.
#[derive(Clone, Copy, Debug)]
struct GptHeader {
    entries_at: u64,
    entry_bytes: u32,
    nr_entries: u32,
    entries_crc: u32,
    usable: (u64, u64),
}

/// Where the search is.
#[derive(Clone, Copy, Debug)]
enum State {
    BootRecord,
    /// At a logical partition's record; the first of them is what the others are relative to.
    Logical {
        first: u64,
        at: u64,
        number: u16,
    },
    /// At a header: the first, or the backup.
    Header {
        backup: bool,
    },
    /// Behind `done` bytes of the entries.
    Entries {
        header: GptHeader,
        backup: bool,
        done: u64,
        crc: Crc,
        found: Option<Extent>,
    },
    Done(Result<Extent, NoPartition>),
}

/// Looks for one partition of a device.
#[derive(Clone, Debug)]
pub struct Finder {
    number: u16,
    /// Bytes of a logical block, and how many there are.
    block_bytes: u32,
    blocks: u64,
    state: State,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

impl Finder {
    /// A search for partition `number`, from 1.
    #[must_use]
    pub fn new(info: &DeviceInfo, number: u16) -> Self {
        let blocks = info.sectors / u64::from(info.logical_bytes / SECTOR_BYTES).max(1);
        let state = match (info.is_sane() && blocks > 0, number) {
            (false, _) => State::Done(Err(NoPartition::NoTable)),
            (true, 0) => State::Done(Err(NoPartition::NotThere)),
            (true, _) => State::BootRecord,
        };
        Self { number, block_bytes: info.logical_bytes, blocks, state }
    }

    const fn sectors(&self, blocks: u64) -> u64 {
        blocks.saturating_mul((self.block_bytes / SECTOR_BYTES) as u64)
    }

    /// An extent in blocks, if it lies on the device.
    fn extent(&self, start: u64, blocks: u64) -> Result<Extent, NoPartition> {
        let end = start.checked_add(blocks).filter(|end| *end <= self.blocks);
        match end {
            Some(_) if blocks > 0 && start > 0 => {
                Ok(Extent { start: self.sectors(start), sectors: self.sectors(blocks) })
            }
            _ => Err(NoPartition::OutOfRange),
        }
    }

    /// What is to be done next.
    #[must_use]
    pub fn step(&self) -> Step {
        let block = self.block_bytes as usize;
        let (lba, bytes) = match self.state {
            State::BootRecord => (0, block),
            State::Logical { at, .. } => (at, block),
            State::Header { backup: false } => (1, block),
            State::Header { backup: true } => (self.blocks - 1, block),
            State::Entries { header, done, .. } => {
                let left = header.bytes().saturating_sub(done).min(READ_BYTES as u64) as usize;
                let lba = header.entries_at + done / u64::from(self.block_bytes);
                (lba, left.next_multiple_of(block))
            }
            State::Done(result) => return Step::Done(result),
        };
        Step::Read { sector: self.sectors(lba), bytes }
    }

    /// Takes what was read; `None` where that failed.
    pub fn feed(&mut self, bytes: Option<&[u8]>) {
        let Step::Read { bytes: wanted, .. } = self.step() else { return };
        let bytes = bytes.and_then(|bytes| bytes.get(..wanted));
        self.state = match (self.state, bytes) {
            (State::BootRecord, Some(bytes)) => self.boot_record(bytes),
            (State::Logical { first, at, number }, Some(bytes)) => {
                self.logical(bytes, first, at, number)
            }
            (State::Header { backup }, bytes) => self.gpt_header(bytes.unwrap_or_default(), backup),
            (State::Entries { header, backup, done, crc, found }, Some(bytes)) => {
                self.gpt_entries(bytes, header, backup, (done, crc, found))
            }
            (State::Entries { backup, .. }, None) => Self::other_header(backup),
            (State::BootRecord, None) => State::Done(Err(NoPartition::NoTable)),
            (State::Logical { .. }, None) => State::Done(Err(NoPartition::BadTable)),
            (done @ State::Done(_), _) => done,
        };
    }

    fn record_entries(bytes: &[u8]) -> Option<[RecordEntry; 4]> {
        if bytes.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        let mut entries = [RecordEntry { kind: 0, start: 0, blocks: 0 }; 4];
        for (index, entry) in entries.iter_mut().enumerate() {
            let at = RECORD_ENTRIES + index * 16;
            *entry = RecordEntry {
                kind: *bytes.get(at + 4)?,
                start: u32_at(bytes, at + 8)?.into(),
                blocks: u32_at(bytes, at + 12)?.into(),
            };
        }
        Some(entries)
    }

    fn boot_record(&self, bytes: &[u8]) -> State {
        let Some(entries) = Self::record_entries(bytes) else {
            return State::Done(Err(NoPartition::NoTable));
        };
        if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
            return State::Header { backup: false };
        }
        if let Some(entry) = entries.get(usize::from(self.number) - 1) {
            return State::Done(match entry.kind {
                0 => Err(NoPartition::NotThere),
                _ => self.extent(entry.start, entry.blocks),
            });
        }
        match entries.iter().find(|entry| is_extended(entry.kind)) {
            Some(extended) => self.next_logical(extended.start, extended.start, 5),
            None => State::Done(Err(NoPartition::NotThere)),
        }
    }

    fn next_logical(&self, first: u64, at: u64, number: u16) -> State {
        if at == 0 || at >= self.blocks || number >= 5 + MAX_LOGICAL {
            return State::Done(Err(NoPartition::BadTable));
        }
        State::Logical { first, at, number }
    }

    fn logical(&self, bytes: &[u8], first: u64, at: u64, number: u16) -> State {
        let Some(entries) = Self::record_entries(bytes) else {
            return State::Done(Err(NoPartition::BadTable));
        };
        let [data, link, ..] = entries;
        let empty = data.kind == 0 || data.blocks == 0;
        if !empty && number == self.number {
            return State::Done(self.extent(at + data.start, data.blocks));
        }
        if !is_extended(link.kind) || link.blocks == 0 {
            return State::Done(Err(NoPartition::NotThere));
        }
        let next = self.next_logical(first, first + link.start, number + u16::from(!empty));
        // A record of nothing but a link has no number; one that leads nowhere new has no end.
        match next {
            State::Logical { at: next_at, .. } if next_at <= at => {
                State::Done(Err(NoPartition::BadTable))
            }
            next => next,
        }
    }

    const fn other_header(backup: bool) -> State {
        if backup {
            State::Done(Err(NoPartition::BadTable))
        } else {
            State::Header { backup: true }
        }
    }

    fn gpt_header(&self, bytes: &[u8], backup: bool) -> State {
        let own = if backup { self.blocks - 1 } else { 1 };
        match GptHeader::parse(bytes, own) {
            Some(header) if header.fits(self.blocks, self.block_bytes) => {
                if u32::from(self.number) > header.nr_entries {
                    return State::Done(Err(NoPartition::NotThere));
                }
                State::Entries { header, backup, done: 0, crc: Crc::new(), found: None }
            }
            _ => Self::other_header(backup),
        }
    }

    fn gpt_entries(
        &self,
        bytes: &[u8],
        header: GptHeader,
        backup: bool,
        (done, mut crc, mut found): (u64, Crc, Option<Extent>),
    ) -> State {
        let part = (header.bytes() - done).min(READ_BYTES as u64) as usize;
        let bytes = bytes.get(..part).unwrap_or_default();
        crc.update(bytes);
        let wanted = u64::from(self.number - 1) * u64::from(header.entry_bytes);
        // Entries are no larger than a read and a power of two: none is split.
        if (done..done + part as u64).contains(&wanted)
            && let Some(entry) = bytes.get((wanted - done) as usize..)
        {
            let is_used = entry.first_chunk::<16>().is_some_and(|kind| *kind != [0; 16]);
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            if let (true, Some(first), Some(last)) = (is_used, first, last) {
                let usable = header.usable.0 <= first && first <= last && last <= header.usable.1;
                match self.extent(first, last.wrapping_sub(first).wrapping_add(1)) {
                    Ok(extent) if usable => found = Some(extent),
                    _ => return State::Done(Err(NoPartition::OutOfRange)),
                }
            }
        }
        let done = done + part as u64;
        if done < header.bytes() {
            return State::Entries { header, backup, done, crc, found };
        }
        if crc.value() != header.entries_crc {
            return Self::other_header(backup);
        }
        State::Done(found.ok_or(NoPartition::NotThere))
    }
}

const fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

impl GptHeader {
    /// A header at the block it says it is at, whose checksum is right.
    fn parse(bytes: &[u8], own: u64) -> Option<Self> {
        let size = u32_at(bytes, 12)? as usize;
        if bytes.get(..8)? != b"EFI PART" || size < GPT_HEADER || u64_at(bytes, 24)? != own {
            return None;
        }
        let header = bytes.get(..size)?;
        let mut crc = Crc::new();
        crc.update(header.get(..16)?);
        crc.update(&[0; 4]);
        crc.update(header.get(20..)?);
        if crc.value() != u32_at(header, 16)? {
            return None;
        }
        Some(Self {
            usable: (u64_at(header, 40)?, u64_at(header, 48)?),
            entries_at: u64_at(header, 72)?,
            nr_entries: u32_at(header, 80)?,
            entry_bytes: u32_at(header, 84)?,
            entries_crc: u32_at(header, 88)?,
        })
    }

    const fn bytes(&self) -> u64 {
        self.nr_entries as u64 * self.entry_bytes as u64
    }

    /// Whether the entries lie on the device and are of a size that can be.
    fn fits(&self, blocks: u64, block_bytes: u32) -> bool {
        let size = self.entry_bytes;
        let taken = self.bytes().div_ceil(block_bytes.into());
        (128..=READ_BYTES as u32).contains(&size)
            && size.is_power_of_two()
            && self.nr_entries > 0
            && self.bytes() <= MAX_ENTRY_BYTES
            && self.entries_at > 1
            && self.entries_at.checked_add(taken).is_some_and(|end| end <= blocks)
    }
}

/// CRC-32 as GPT has it (reflected, polynomial 0x04c11db7): a few KiB once per disk need no table.
#[derive(Clone, Copy, Debug)]
struct Crc(u32);

impl Crc {
    const fn new() -> Self {
        Self(u32::MAX)
    }
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u32::from(*byte);
            for _ in 0..8 {
                let mask = (self.0 & 1).wrapping_neg();
                self.0 = self.0 >> 1 ^ 0xedb8_8320 & mask;
            }
        }
    }
    const fn value(self) -> u32 {
        !self.0
    }
}
