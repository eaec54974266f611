//! INQUIRY: what a unit is, and its vital product data.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
