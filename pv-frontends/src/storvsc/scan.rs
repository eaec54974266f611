//! Finding out what a unit is: one command after the other, each of which may fail.

use hv_abi::scsi::{
    BlockLimits, BlockProvisioning, CachingPage, Capacity10, Capacity16, Designator, DeviceType,
    InquiryData, LunListHeader, MODE_WRITE_PROTECTED, ModeHeader6, ModePage, VpdHeader, VpdPage,
};
use xen_abi::io::blkif::SECTOR_BYTES;
use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::command::Cdb;
use super::unit::{Identifier, UnitInfo};
use crate::blkback::{DeviceInfo, Discard, IoError};

/// What is asked for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Inquiry,
    Ready,
    Identification,
    Limits,
    Characteristics,
    Provisioning,
    Capacity16,
    Capacity10,
    Mode,
}

/// A unit being looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    stage: Stage,
    is_cdrom: bool,
    removable: bool,
    /// `None`: it did not say.
    identifier: Option<Identifier>,
    limits: Option<BlockLimits>,
    rotates: Option<bool>,
    unmap: bool,
    blocks: u64,
    block_bytes: u32,
    physical_exponent: u8,
    write_protected: bool,
    write_cache: bool,
}

/// What comes after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another command.
    Command,
    /// Nothing more: this is what it is.
    End(Seen),
}

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A disk or a CD drive.
    Unit(UnitInfo),
    /// Nothing of use.
    Nothing,
    /// The commands failed that would have told.
    Unknown,
}

/// What the transport allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub max_transfer_bytes: u32,
    pub max_segments: u16,
    pub depth: u16,
}

/// Room for an answer: one byte says how long most may be.
const ROOM: u8 = 252;

impl Probe {
    pub(super) const fn new() -> Self {
        Self {
            stage: Stage::Inquiry,
            is_cdrom: false,
            removable: false,
            identifier: None,
            limits: None,
            rotates: None,
            unmap: false,
            blocks: 0,
            block_bytes: SECTOR_BYTES,
            physical_exponent: 0,
            write_protected: false,
            // A cache that nobody flushes loses data; one flush too many does not.
            write_cache: true,
        }
    }

    /// The command to send, and the room for its data.
    pub(super) fn command(&self) -> (Cdb, u32) {
        let room = u32::from(ROOM);
        let page = |page| (Cdb::inquiry(Some(page), u16::from(ROOM)), room);
        match self.stage {
            Stage::Inquiry => {
                let room = size_of::<InquiryData>();
                (Cdb::inquiry(None, room as u16), room as u32)
            }
            Stage::Ready => (Cdb::test_unit_ready(), 0),
            Stage::Identification => page(VpdPage::DEVICE_IDENTIFICATION),
            Stage::Limits => page(VpdPage::BLOCK_LIMITS),
            Stage::Characteristics => page(VpdPage::BLOCK_DEVICE_CHARACTERISTICS),
            Stage::Provisioning => page(VpdPage::LOGICAL_BLOCK_PROVISIONING),
            Stage::Capacity16 => {
                let room = size_of::<Capacity16>() as u32;
                (Cdb::read_capacity_16(room), room)
            }
            Stage::Capacity10 => (Cdb::read_capacity_10(), size_of::<Capacity10>() as u32),
            Stage::Mode => (Cdb::mode_sense(ModePage::CACHING, ROOM), room),
        }
    }

    /// Takes the answer.
    pub(super) fn answer(&mut self, data: Result<&[u8], IoError>, bounds: Bounds) -> Next {
        if data == Err(IoError::Removed) {
            return Next::End(Seen::Nothing);
        }
        let stage = self.stage;
        let data = data.ok();
        self.stage = match stage {
            Stage::Inquiry => match data.and_then(|data| self.inquiry(data)) {
                Some(true) => Stage::Ready,
                Some(false) => return Next::End(Seen::Nothing),
                None => return Next::End(Seen::Unknown),
            },
            // Not ready: a drive without a medium, a disk that reports its capacity nevertheless.
            Stage::Ready if self.is_cdrom => Stage::Capacity10,
            Stage::Ready => Stage::Identification,
            Stage::Identification => {
                let list = data.and_then(|d| vpd(d, VpdPage::DEVICE_IDENTIFICATION));
                self.identifier = list.map(identifier);
                Stage::Limits
            }
            Stage::Limits => {
                self.limits = data.and_then(|data| limits(vpd(data, VpdPage::BLOCK_LIMITS)?));
                Stage::Characteristics
            }
            Stage::Characteristics => {
                let page = data.and_then(|d| vpd(d, VpdPage::BLOCK_DEVICE_CHARACTERISTICS));
                self.rotates = page.and_then(rotates);
                Stage::Provisioning
            }
            Stage::Provisioning => {
                let page = data.and_then(|d| vpd(d, VpdPage::LOGICAL_BLOCK_PROVISIONING));
                let page = page.and_then(|p| BlockProvisioning::read_from_prefix(p).ok());
                self.unmap = page.is_some_and(|(p, _)| p.flags & BlockProvisioning::UNMAP != 0);
                Stage::Capacity16
            }
            Stage::Capacity16 => {
                if data.is_some_and(|data| self.capacity16(data)) {
                    Stage::Mode
                } else {
                    Stage::Capacity10
                }
            }
            Stage::Capacity10 => {
                let known = data.is_some_and(|data| self.capacity10(data));
                if !known && !self.is_cdrom {
                    return Next::End(Seen::Unknown);
                }
                if self.is_cdrom {
                    return Next::End(self.seen(bounds));
                }
                Stage::Mode
            }
            Stage::Mode => {
                if let Some(data) = data {
                    self.mode(data);
                }
                return Next::End(self.seen(bounds));
            }
        };
        Next::Command
    }

    /// Whether it is a disk or a CD drive.
    fn inquiry(&mut self, data: &[u8]) -> Option<bool> {
        let [kind, removable, ..] = data else { return None };
        self.is_cdrom = *kind == DeviceType::CD_DVD.0;
        self.removable = removable & InquiryData::REMOVABLE != 0;
        Some(self.is_cdrom || *kind == DeviceType::DISK.0)
    }

    fn capacity16(&mut self, data: &[u8]) -> bool {
        let Ok((capacity, _)) = Capacity16::read_from_prefix(data) else { return false };
        self.physical_exponent = capacity.exponents & 0xf;
        self.capacity(capacity.last_lba.get(), capacity.block_bytes.get())
    }

    fn capacity10(&mut self, data: &[u8]) -> bool {
        let Ok((capacity, _)) = Capacity10::read_from_prefix(data) else { return false };
        // More than it can say (SBC-3): what was asked first would have told.
        let is_known = capacity.last_lba.get() != u32::MAX;
        is_known && self.capacity(u64::from(capacity.last_lba.get()), capacity.block_bytes.get())
    }

    fn capacity(&mut self, last: u64, block_bytes: u32) -> bool {
        let Some(blocks) = last.checked_add(1) else { return false };
        (self.blocks, self.block_bytes) = (blocks, block_bytes);
        true
    }

    fn mode(&mut self, data: &[u8]) {
        let Ok((header, rest)) = ModeHeader6::read_from_prefix(data) else { return };
        self.write_protected = header.device_specific & MODE_WRITE_PROTECTED != 0;
        let page = rest.get(usize::from(header.descriptor_length)..).unwrap_or_default();
        if let [code, _, flags, ..] = page
            && code & 0x3f == ModePage::CACHING.0
        {
            self.write_cache = flags & CachingPage::WRITE_CACHE != 0;
        }
    }

    fn seen(&self, bounds: Bounds) -> Seen {
        self.info(bounds).map_or(Seen::Nothing, Seen::Unit)
    }

    /// All that was found; `None` where the numbers make no sense.
    fn info(&self, bounds: Bounds) -> Option<UnitInfo> {
        let block = self.block_bytes;
        if !block.is_power_of_two() || !(SECTOR_BYTES..=4096).contains(&block) {
            return None;
        }
        let per_block = block / SECTOR_BYTES;
        let largest = self.limits.map_or(0, |limits| limits.max_transfer.get());
        let largest = if largest == 0 { u32::MAX } else { largest.saturating_mul(block) };
        let max_transfer_bytes = bounds.max_transfer_bytes.min(largest) & !(block - 1);
        let device = DeviceInfo {
            sectors: self.blocks.checked_mul(u64::from(per_block))?,
            logical_bytes: block,
            physical_bytes: block.checked_shl(u32::from(self.physical_exponent))?.max(block),
            read_only: self.write_protected || self.is_cdrom,
            cdrom: self.is_cdrom,
            removable: self.removable,
            flush: self.write_cache && !self.is_cdrom,
            discard: self.discard(),
            max_transfer_bytes,
            max_segments: bounds.max_segments,
            no_gaps: true,
            depth: bounds.depth,
        };
        device.is_sane().then_some(UnitInfo {
            device,
            identifier: self.identifier.unwrap_or(Identifier::NONE),
            is_identified: self.identifier.is_some(),
            rotates: self.rotates,
        })
    }

    fn discard(&self) -> Option<Discard> {
        let limits = self.limits.filter(|_| self.unmap && !self.write_protected)?;
        let blocks = limits.max_unmap_blocks.get();
        if blocks == 0 || limits.max_unmap_descriptors.get() == 0 {
            return None;
        }
        let block = self.block_bytes;
        let alignment = limits.unmap_alignment.get();
        let alignment = if alignment & BlockLimits::ALIGNMENT_VALID == 0 {
            0
        } else {
            alignment & !BlockLimits::ALIGNMENT_VALID
        };
        Some(Discard {
            granularity: limits.unmap_granularity.get().max(1).checked_mul(block)?,
            alignment: alignment.checked_mul(block)?,
            secure: false,
            max_sectors: u64::from(blocks) * u64::from(block / SECTOR_BYTES),
        })
    }
}

/// A vital product data page behind its header, if it is the one asked for.
fn vpd(data: &[u8], page: VpdPage) -> Option<&[u8]> {
    let (header, rest) = VpdHeader::read_from_prefix(data).ok()?;
    let length = usize::from(header.length.get()).min(rest.len());
    if header.page == page { rest.get(..length) } else { None }
}

/// The limits; older pages are shorter, and what they lack is zero.
fn limits(page: &[u8]) -> Option<BlockLimits> {
    let mut whole = [0; size_of::<BlockLimits>()];
    for (to, from) in whole.iter_mut().zip(page) {
        *to = *from;
    }
    BlockLimits::read_from_bytes(&whole).ok()
}

/// The rotation rate that a [`hv_abi::scsi::BlockDeviceCharacteristics`] begins with.
fn rotates(page: &[u8]) -> Option<bool> {
    let (rate, _) = U16::read_from_prefix(page).ok()?;
    match rate.get() {
        0 => None,
        1 => Some(false),
        _ => Some(true),
    }
}

/// The best name there is: NAA, else the first of the unit itself.
fn identifier(mut list: &[u8]) -> Identifier {
    let mut best = Identifier::default();
    while let Ok((head, rest)) = Designator::read_from_prefix(list) {
        let Some((name, rest)) = rest.split_at_checked(usize::from(head.length)) else { break };
        list = rest;
        // Bits 5:4: of what it is the name; 0: the unit.
        if head.kind & 0x30 != 0 {
            continue;
        }
        let is_naa = head.kind & 0xf == Designator::NAA;
        if is_naa || best.bytes().is_empty() {
            best = Identifier::new(name);
        }
        if is_naa {
            break;
        }
    }
    best
}

/// Units of a REPORT LUNS answer that can be addressed here. `data` yields 8 bytes at a time.
pub(super) fn luns(mut data: impl Iterator<Item = [u8; 8]>) -> impl Iterator<Item = u8> {
    let header = data.next().unwrap_or_default();
    let header: LunListHeader = zerocopy::transmute!(header);
    let count = header.length.get() as usize / 8;
    data.take(count).filter_map(|lun| match lun {
        // Peripheral device addressing on bus 0; flat space addressing (SAM-5 4.7).
        [0 | 0x40, lun, 0, 0, 0, 0, 0, 0] => Some(lun),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn lists_of_units() {
        let list = |length: u32, units: &[[u8; 8]]| -> Vec<u8> {
            let [a, b, c, d] = length.to_be_bytes();
            let header = [a, b, c, d, 0, 0, 0, 0];
            luns([header].into_iter().chain(units.iter().copied())).collect()
        };
        let of = |first, second| [first, second, 0, 0, 0, 0, 0, 0];
        assert_eq!(list(24, &[of(0, 0), of(0x40, 9), of(0, 63)]), [0, 9, 63]);
        assert_eq!(list(8, &[of(0, 0), of(0, 1)]), [0], "no more than it says");
        assert_eq!(list(u32::MAX, &[of(0, 5)]), [5], "no more than there is");
        assert_eq!(list(32, &[of(1, 0), of(0x41, 0), of(0xc1, 1), [0, 0, 0, 1, 0, 0, 0, 0]]), []);
        assert_eq!(luns([].into_iter()).count(), 0);
    }

    #[test]
    fn names() {
        // T10 vendor, a target port's NAA, the unit's NAA.
        let list = [
            &[2, 1, 0, 3, b'a', b'b', b'c'][..],
            &[1, 0x13, 0, 2, 9, 9],
            &[1, 3, 0, 4, 0x60, 1, 2, 3],
        ];
        assert_eq!(identifier(&list.concat()).bytes(), [0x60, 1, 2, 3]);
        assert_eq!(identifier(&list[..2].concat()).bytes(), b"abc");
        assert_eq!(identifier(&[1, 3, 0, 9, 1, 2]).bytes(), []);
        assert_eq!(identifier(&[1, 3, 0]).bytes(), []);
    }
}
