//! Parameter data of other commands: capacity, ranges to deallocate, units, mode pages.

use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
