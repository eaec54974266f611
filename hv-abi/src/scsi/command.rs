//! Commands: opcodes and command descriptor blocks.

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::inquiry::VpdPage;

/// First byte of a command descriptor block (SPC-4 annex E).
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Opcode(pub u8);

#[allow(missing_docs, reason = "names are the specification's own")]
impl Opcode {
    pub const TEST_UNIT_READY: Self = Self(0x00);
    pub const REQUEST_SENSE: Self = Self(0x03);
    pub const READ_6: Self = Self(0x08);
    pub const WRITE_6: Self = Self(0x0a);
    pub const INQUIRY: Self = Self(0x12);
    pub const MODE_SELECT_6: Self = Self(0x15);
    pub const MODE_SENSE_6: Self = Self(0x1a);
    pub const START_STOP_UNIT: Self = Self(0x1b);
    pub const PREVENT_ALLOW_MEDIUM_REMOVAL: Self = Self(0x1e);
    pub const READ_CAPACITY_10: Self = Self(0x25);
    pub const READ_10: Self = Self(0x28);
    pub const WRITE_10: Self = Self(0x2a);
    pub const VERIFY_10: Self = Self(0x2f);
    pub const SYNCHRONIZE_CACHE_10: Self = Self(0x35);
    pub const WRITE_SAME_10: Self = Self(0x41);
    pub const UNMAP: Self = Self(0x42);
    pub const READ_TOC: Self = Self(0x43);
    pub const GET_CONFIGURATION: Self = Self(0x46);
    pub const GET_EVENT_STATUS_NOTIFICATION: Self = Self(0x4a);
    pub const READ_DISC_INFORMATION: Self = Self(0x51);
    pub const READ_TRACK_INFORMATION: Self = Self(0x52);
    pub const MODE_SELECT_10: Self = Self(0x55);
    pub const MODE_SENSE_10: Self = Self(0x5a);
    pub const READ_16: Self = Self(0x88);
    pub const WRITE_16: Self = Self(0x8a);
    pub const VERIFY_16: Self = Self(0x8f);
    pub const SYNCHRONIZE_CACHE_16: Self = Self(0x91);
    pub const WRITE_SAME_16: Self = Self(0x93);
    pub const SERVICE_ACTION_IN_16: Self = Self(0x9e);
    pub const REPORT_LUNS: Self = Self(0xa0);
    pub const MAINTENANCE_IN: Self = Self(0xa3);
    pub const READ_12: Self = Self(0xa8);
    pub const WRITE_12: Self = Self(0xaa);
}

/// Service action of [`Opcode::SERVICE_ACTION_IN_16`]: READ CAPACITY(16).
pub const SERVICE_ACTION_READ_CAPACITY_16: u8 = 0x10;
/// Service action of [`Opcode::MAINTENANCE_IN`].
pub const SERVICE_ACTION_REPORT_SUPPORTED_OPCODES: u8 = 0x0c;

/// Longest command descriptor block carried.
pub const CDB_BYTES: usize = 16;

/// READ(10), WRITE(10), VERIFY(10), SYNCHRONIZE CACHE(10), WRITE SAME(10).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Cdb10 {
    /// Command.
    pub opcode: Opcode,
    /// [`BlockFlags`].
    pub flags: u8,
    /// First logical block.
    pub lba: U32,
    /// Group number.
    pub group: u8,
    /// Blocks.
    pub blocks: U16,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<Cdb10>(), 10);
const_assert_eq!(offset_of!(Cdb10, blocks), 7);

/// READ(12), WRITE(12).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Cdb12 {
    /// Command.
    pub opcode: Opcode,
    /// [`BlockFlags`].
    pub flags: u8,
    /// First logical block.
    pub lba: U32,
    /// Blocks.
    pub blocks: U32,
    /// Group number.
    pub group: u8,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<Cdb12>(), 12);

/// READ(16), WRITE(16), VERIFY(16), SYNCHRONIZE CACHE(16), WRITE SAME(16), and
/// the shape of SERVICE ACTION IN(16), whose action is in `flags`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Cdb16 {
    /// Command.
    pub opcode: Opcode,
    /// [`BlockFlags`], or the service action.
    pub flags: u8,
    /// First logical block.
    pub lba: U64,
    /// Blocks, or the allocation length in bytes.
    pub blocks: U32,
    /// Group number.
    pub group: u8,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<Cdb16>(), CDB_BYTES);
const_assert_eq!(offset_of!(Cdb16, blocks), 10);

/// INQUIRY; also REQUEST SENSE, where only the low byte of the length counts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CdbInquiry {
    /// Command.
    pub opcode: Opcode,
    /// Bit 0: a vital product data page is asked for.
    pub flags: u8,
    /// Which [`VpdPage`].
    pub page: VpdPage,
    /// Room for the answer in bytes.
    pub allocation_length: U16,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<CdbInquiry>(), 6);

/// UNMAP.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CdbUnmap {
    /// Command.
    pub opcode: Opcode,
    /// Bit 0: anchor.
    pub flags: u8,
    /// Reserved.
    pub reserved: [u8; 4],
    /// Group number.
    pub group: u8,
    /// Bytes of parameter data.
    pub length: U16,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<CdbUnmap>(), 10);

/// REPORT LUNS.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CdbReportLuns {
    /// Command.
    pub opcode: Opcode,
    /// Reserved.
    pub reserved: u8,
    /// Which logical units; 0 to 2.
    pub select: u8,
    /// Reserved.
    pub reserved2: [u8; 3],
    /// Room for the answer in bytes.
    pub allocation_length: U32,
    /// Reserved.
    pub reserved3: u8,
    /// Control.
    pub control: u8,
}
const_assert_eq!(size_of::<CdbReportLuns>(), 12);
const_assert_eq!(offset_of!(CdbReportLuns, allocation_length), 6);

bitflags! {
    /// Second byte of commands on blocks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BlockFlags: u8 {
        /// WRITE SAME(16): no data-out buffer, write zeros.
        const NO_DATA_OUT = 1 << 0;
        /// Force unit access (READ and WRITE).
        const FUA = 1 << 3;
        /// WRITE SAME: deallocate.
        const UNMAP = 1 << 3;
        /// WRITE SAME: anchor.
        const ANCHOR = 1 << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_big_endian() {
        let bytes = [0x28, 0x08, 0, 1, 2, 3, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        let (cdb, _) = Cdb10::read_from_prefix(&bytes).unwrap();
        assert_eq!((cdb.opcode, cdb.lba.get(), cdb.blocks.get()), (Opcode::READ_10, 0x1_0203, 8));
        assert!(BlockFlags::from_bits_retain(cdb.flags).contains(BlockFlags::FUA));
    }
}
