//! SCSI as Hyper-V's synthetic disks speak it: commands, statuses, sense data
//! and the parameter data both sides read and write (SPC-4, SBC-3, MMC-6; the
//! Microsoft pages as Hyper-V gives them). Numbers in SCSI are big-endian.

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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

/// SCSI status (SAM-5 5.3.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct ScsiStatus(pub u8);

impl ScsiStatus {
    /// Done.
    pub const GOOD: Self = Self(0x00);
    /// Sense data tells why it was not done.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// Try again.
    pub const BUSY: Self = Self(0x08);
    /// Reserved by another initiator.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// No room for another command.
    pub const TASK_SET_FULL: Self = Self(0x28);
}

/// Sense key (SPC-4 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct SenseKey(pub u8);

#[allow(missing_docs, reason = "names are the specification's own")]
impl SenseKey {
    pub const NO_SENSE: Self = Self(0x0);
    pub const RECOVERED_ERROR: Self = Self(0x1);
    pub const NOT_READY: Self = Self(0x2);
    pub const MEDIUM_ERROR: Self = Self(0x3);
    pub const HARDWARE_ERROR: Self = Self(0x4);
    pub const ILLEGAL_REQUEST: Self = Self(0x5);
    pub const UNIT_ATTENTION: Self = Self(0x6);
    pub const DATA_PROTECT: Self = Self(0x7);
    pub const ABORTED_COMMAND: Self = Self(0xb);
}

/// Additional sense code (high byte) and qualifier (low byte), SPC-4 annex D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct AdditionalSense(pub u16);

#[allow(missing_docs, reason = "names are the specification's own")]
impl AdditionalSense {
    pub const NONE: Self = Self(0x0000);
    pub const WRITE_ERROR: Self = Self(0x0c00);
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x1100);
    pub const PARAMETER_LIST_LENGTH_ERROR: Self = Self(0x1a00);
    pub const INVALID_COMMAND_OPERATION_CODE: Self = Self(0x2000);
    pub const LBA_OUT_OF_RANGE: Self = Self(0x2100);
    pub const INVALID_FIELD_IN_CDB: Self = Self(0x2400);
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self(0x2500);
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self(0x2600);
    pub const WRITE_PROTECTED: Self = Self(0x2700);
    pub const CAPACITY_DATA_CHANGED: Self = Self(0x2a09);
    pub const INCOMPATIBLE_MEDIUM: Self = Self(0x3000);
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self = Self(0x3900);
    pub const MEDIUM_NOT_PRESENT: Self = Self(0x3a00);
    pub const REPORTED_LUNS_DATA_CHANGED: Self = Self(0x3f0e);
    pub const INTERNAL_TARGET_FAILURE: Self = Self(0x4400);
}

/// Bytes of [`Sense`].
pub const SENSE_BYTES: usize = size_of::<Sense>();

/// Sense data, fixed format (SPC-4 4.5.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Sense {
    /// [`Sense::CURRENT`]; bit 7: `information` is valid.
    pub response_code: u8,
    /// Obsolete.
    pub segment: u8,
    /// [`SenseKey`] in the low half.
    pub key: u8,
    /// Depends on the command; the block of a medium error.
    pub information: U32,
    /// Bytes that follow this one.
    pub additional_length: u8,
    /// Depends on the command.
    pub command_specific: U32,
    /// [`AdditionalSense`].
    pub additional_sense: U16,
    /// Field replaceable unit.
    pub unit: u8,
    /// Depends on the key.
    pub key_specific: [u8; 3],
}
const_assert_eq!(size_of::<Sense>(), 18);
const_assert_eq!(offset_of!(Sense, additional_sense), 12);

impl Sense {
    /// Response code: current error, fixed format.
    pub const CURRENT: u8 = 0x70;
    /// `response_code` bit: `information` is valid.
    pub const VALID: u8 = 0x80;

    /// Sense data with these codes.
    #[must_use]
    pub const fn new(key: SenseKey, additional: AdditionalSense) -> Self {
        Self {
            response_code: Self::CURRENT,
            segment: 0,
            key: key.0,
            information: U32::ZERO,
            additional_length: 10,
            command_specific: U32::ZERO,
            additional_sense: U16::new(additional.0),
            unit: 0,
            key_specific: [0; 3],
        }
    }

    /// Key.
    #[must_use]
    pub const fn sense_key(&self) -> SenseKey {
        SenseKey(self.key & 0xf)
    }

    /// Additional code and qualifier.
    #[must_use]
    pub fn additional(&self) -> AdditionalSense {
        AdditionalSense(self.additional_sense.get())
    }
}

/// Peripheral qualifier and device type: first byte of INQUIRY data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct DeviceType(pub u8);

impl DeviceType {
    /// Disk.
    pub const DISK: Self = Self(0x00);
    /// CD or DVD.
    pub const CD_DVD: Self = Self(0x05);
    /// No device at this unit, and none possible.
    pub const ABSENT: Self = Self(0x7f);
}

/// Standard INQUIRY data as Hyper-V gives it (SPC-4 6.4.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct InquiryData {
    /// Device type.
    pub device_type: DeviceType,
    /// Bit 7: the medium is removable.
    pub removable: u8,
    /// 5: SPC-3.
    pub version: u8,
    /// 2: the format of this structure.
    pub response_format: u8,
    /// Bytes that follow this one.
    pub additional_length: u8,
    /// Features.
    pub flags: [u8; 2],
    /// Features; bit 1: commands are queued.
    pub flags7: u8,
    /// Vendor, filled up with spaces.
    pub vendor: [u8; 8],
    /// Product, filled up with spaces.
    pub product: [u8; 16],
    /// Revision, filled up with spaces.
    pub revision: [u8; 4],
    /// Vendor specific.
    pub vendor_specific: [u8; 20],
    /// Reserved.
    pub reserved: [u8; 2],
    /// Version descriptors.
    pub version_descriptors: [U16; 8],
    /// Reserved.
    pub reserved2: [u8; 22],
}
const_assert_eq!(size_of::<InquiryData>(), 96);
const_assert_eq!(offset_of!(InquiryData, vendor), 8);

impl InquiryData {
    /// `version`: SPC-3.
    pub const SPC3: u8 = 5;
    /// `removable`: the medium is removable.
    pub const REMOVABLE: u8 = 0x80;
    /// `flags7`: commands are queued.
    pub const COMMAND_QUEUE: u8 = 0x02;
}

/// Vital product data page (SPC-4 7.8).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct VpdPage(pub u8);

#[allow(missing_docs, reason = "names are the specification's own")]
impl VpdPage {
    pub const SUPPORTED_PAGES: Self = Self(0x00);
    pub const UNIT_SERIAL_NUMBER: Self = Self(0x80);
    pub const DEVICE_IDENTIFICATION: Self = Self(0x83);
    pub const BLOCK_LIMITS: Self = Self(0xb0);
    pub const BLOCK_DEVICE_CHARACTERISTICS: Self = Self(0xb1);
    pub const LOGICAL_BLOCK_PROVISIONING: Self = Self(0xb2);
}

/// Header of every vital product data page.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VpdHeader {
    /// Device type.
    pub device_type: DeviceType,
    /// Page.
    pub page: VpdPage,
    /// Bytes that follow.
    pub length: U16,
}
const_assert_eq!(size_of::<VpdHeader>(), 4);

/// Header of a designator in [`VpdPage::DEVICE_IDENTIFICATION`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Designator {
    /// Low half: 1 binary, 2 ASCII.
    pub code_set: u8,
    /// Low half: 1 T10 vendor, 3 NAA.
    pub kind: u8,
    /// Reserved.
    pub reserved: u8,
    /// Bytes that follow.
    pub length: u8,
}
const_assert_eq!(size_of::<Designator>(), 4);

impl Designator {
    /// `code_set`: binary.
    pub const BINARY: u8 = 1;
    /// `kind`: T10 vendor identification.
    pub const T10_VENDOR: u8 = 1;
    /// `kind`: NAA.
    pub const NAA: u8 = 3;
}

/// [`VpdPage::BLOCK_LIMITS`] behind its header (SBC-3 6.5.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BlockLimits {
    /// Bit 0: WRITE SAME of zero blocks is refused.
    pub write_same_non_zero: u8,
    /// Blocks of COMPARE AND WRITE.
    pub max_compare_and_write: u8,
    /// Granularity of transfers in blocks.
    pub optimal_transfer_granularity: U16,
    /// Most blocks in one transfer.
    pub max_transfer: U32,
    /// Best number of blocks in one transfer.
    pub optimal_transfer: U32,
    /// Most blocks of PRE-FETCH.
    pub max_prefetch: U32,
    /// Most blocks of one UNMAP.
    pub max_unmap_blocks: U32,
    /// Most descriptors of one UNMAP.
    pub max_unmap_descriptors: U32,
    /// Granularity of UNMAP in blocks.
    pub unmap_granularity: U32,
    /// Bit 31: valid; first block that is aligned for UNMAP.
    pub unmap_alignment: U32,
    /// Most blocks of WRITE SAME.
    pub max_write_same: U64,
    /// Reserved here.
    pub reserved: [u8; 20],
}
const_assert_eq!(size_of::<BlockLimits>(), 60);
const_assert_eq!(offset_of!(BlockLimits, max_write_same), 32);

impl BlockLimits {
    /// `unmap_alignment` bit: the field is valid.
    pub const ALIGNMENT_VALID: u32 = 1 << 31;
}

/// [`VpdPage::BLOCK_DEVICE_CHARACTERISTICS`] behind its header (SBC-3 6.5.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BlockDeviceCharacteristics {
    /// 1: not rotating.
    pub rotation_rate: U16,
    /// Rest of the page.
    pub reserved: [u8; 58],
}
const_assert_eq!(size_of::<BlockDeviceCharacteristics>(), 60);

/// [`VpdPage::LOGICAL_BLOCK_PROVISIONING`] behind its header (SBC-3 6.5.4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BlockProvisioning {
    /// Threshold sets are of 2^n blocks.
    pub threshold_exponent: u8,
    /// UNMAP and WRITE SAME with deallocation that work.
    pub flags: u8,
    /// 2: thin.
    pub kind: u8,
    /// Reserved.
    pub reserved: u8,
}
const_assert_eq!(size_of::<BlockProvisioning>(), 4);

impl BlockProvisioning {
    /// `flags`: UNMAP.
    pub const UNMAP: u8 = 0x80;
    /// `flags`: WRITE SAME(16) with deallocation.
    pub const WRITE_SAME_16: u8 = 0x40;
    /// `flags`: WRITE SAME(10) with deallocation.
    pub const WRITE_SAME_10: u8 = 0x20;
    /// `kind`: thin.
    pub const THIN: u8 = 2;
}

/// READ CAPACITY(10) data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Capacity10 {
    /// Last block; all ones: ask READ CAPACITY(16).
    pub last_lba: U32,
    /// Bytes in a block.
    pub block_bytes: U32,
}
const_assert_eq!(size_of::<Capacity10>(), 8);

/// READ CAPACITY(16) data (SBC-3 5.16.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Capacity16 {
    /// Last block.
    pub last_lba: U64,
    /// Bytes in a block.
    pub block_bytes: U32,
    /// Protection.
    pub protection: u8,
    /// Low half: 2^n logical blocks in a physical one.
    pub exponents: u8,
    /// [`Capacity16::PROVISIONING`] and the lowest aligned block.
    pub provisioning: U16,
    /// Reserved.
    pub reserved: [u8; 16],
}
const_assert_eq!(size_of::<Capacity16>(), 32);

impl Capacity16 {
    /// `provisioning` bit: UNMAP works.
    pub const PROVISIONING: u16 = 1 << 15;
}

/// Header of UNMAP's parameter data; [`UnmapDescriptor`]s follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UnmapHeader {
    /// Bytes that follow this field.
    pub data_length: U16,
    /// Bytes of descriptors.
    pub descriptor_length: U16,
    /// Reserved.
    pub reserved: [u8; 4],
}
const_assert_eq!(size_of::<UnmapHeader>(), 8);

/// A range to deallocate.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UnmapDescriptor {
    /// First block.
    pub lba: U64,
    /// Blocks.
    pub blocks: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}
const_assert_eq!(size_of::<UnmapDescriptor>(), 16);

/// Header of REPORT LUNS data; 8-byte LUNs follow, the number in the second byte.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LunListHeader {
    /// Bytes of LUNs that follow the header.
    pub length: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}
const_assert_eq!(size_of::<LunListHeader>(), 8);

/// Mode page code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ModePage(pub u8);

impl ModePage {
    /// Caching (SBC-3 6.4.5).
    pub const CACHING: Self = Self(0x08);
    /// CD capabilities and mechanical status (MMC).
    pub const CD_CAPABILITIES: Self = Self(0x2a);
    /// All pages.
    pub const ALL: Self = Self(0x3f);
}

/// Header of MODE SENSE(6) data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ModeHeader6 {
    /// Bytes that follow this field.
    pub length: u8,
    /// Medium type.
    pub medium: u8,
    /// [`MODE_WRITE_PROTECTED`], [`MODE_FUA`].
    pub device_specific: u8,
    /// Bytes of block descriptors.
    pub descriptor_length: u8,
}
const_assert_eq!(size_of::<ModeHeader6>(), 4);

/// Header of MODE SENSE(10) data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ModeHeader10 {
    /// Bytes that follow this field.
    pub length: U16,
    /// Medium type.
    pub medium: u8,
    /// [`MODE_WRITE_PROTECTED`], [`MODE_FUA`].
    pub device_specific: u8,
    /// Reserved.
    pub reserved: [u8; 2],
    /// Bytes of block descriptors.
    pub descriptor_length: U16,
}
const_assert_eq!(size_of::<ModeHeader10>(), 8);

/// `device_specific` bit: the disk is write-protected.
pub const MODE_WRITE_PROTECTED: u8 = 0x80;
/// `device_specific` bit: force unit access works.
pub const MODE_FUA: u8 = 0x10;

/// [`ModePage::CACHING`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CachingPage {
    /// [`ModePage::CACHING`].
    pub page: u8,
    /// Bytes that follow.
    pub length: u8,
    /// [`CachingPage::WRITE_CACHE`].
    pub flags: u8,
    /// Rest of the page.
    pub rest: [u8; 17],
}
const_assert_eq!(size_of::<CachingPage>(), 20);

impl CachingPage {
    /// `flags`: the write cache is on.
    pub const WRITE_CACHE: u8 = 0x04;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_codes_come_back() {
        let sense = Sense::new(SenseKey::ILLEGAL_REQUEST, AdditionalSense::LBA_OUT_OF_RANGE);
        let bytes = sense.as_bytes();
        assert_eq!((bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]), (0x70, 5, 10, 0x21, 0));
        assert_eq!(sense.sense_key(), SenseKey::ILLEGAL_REQUEST);
        assert_eq!(sense.additional(), AdditionalSense::LBA_OUT_OF_RANGE);
    }

    #[test]
    fn blocks_are_big_endian() {
        let bytes = [0x28, 0x08, 0, 1, 2, 3, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        let (cdb, _) = Cdb10::read_from_prefix(&bytes).unwrap();
        assert_eq!((cdb.opcode, cdb.lba.get(), cdb.blocks.get()), (Opcode::READ_10, 0x1_0203, 8));
        assert!(BlockFlags::from_bits_retain(cdb.flags).contains(BlockFlags::FUA));
    }
}
