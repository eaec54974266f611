//! The block device protocol (`xen/include/public/io/blkif.h`).
//!
//! A ring is laid out by the rules of the frontend's architecture, which it names in its
//! `protocol` node: with 32 bits 64-bit numbers are aligned to 4 bytes only. The types with `32`
//! in their names are those; sector quantities are in units of [`SECTOR_BYTES`] in all of them.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::grant_table::GrantRef;

/// Unit of every sector number and count, whatever the device's sector size: so Linux has always
/// done it, and later versions of the header say it.
pub const SECTOR_BYTES: u32 = 512;
/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Segments in a page of an indirect request.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = 4096 / size_of::<BlkifSegment>();
/// `BLKIF_DISCARD_SECURE`.
pub const DISCARD_SECURE: u8 = 1;
/// `VDISK_CDROM`.
pub const VDISK_CDROM: u32 = 1;
/// `VDISK_REMOVABLE`.
pub const VDISK_REMOVABLE: u32 = 2;
/// `VDISK_READONLY`.
pub const VDISK_READONLY: u32 = 4;
/// `XEN_IO_PROTO_ABI_X86_32` (`xen/include/public/io/protocols.h`).
pub const PROTOCOL_X86_32: &str = "x86_32-abi";
/// `XEN_IO_PROTO_ABI_X86_64`: the native one.
pub const PROTOCOL_X86_64: &str = "x86_64-abi";

/// `BLKIF_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct BlkifOp(pub u8);

#[allow(missing_docs, reason = "names are the header's own")]
impl BlkifOp {
    pub const READ: Self = Self(0);
    pub const WRITE: Self = Self(1);
    pub const WRITE_BARRIER: Self = Self(2);
    pub const FLUSH_DISKCACHE: Self = Self(3);
    pub const RESERVED_1: Self = Self(4);
    pub const DISCARD: Self = Self(5);
    pub const INDIRECT: Self = Self(6);
}

/// `BLKIF_RSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct BlkifStatus(pub i16);

#[allow(missing_docs, reason = "names are the header's own")]
impl BlkifStatus {
    pub const OKAY: Self = Self(0);
    pub const ERROR: Self = Self(-1);
    pub const EOPNOTSUPP: Self = Self(-2);
}

/// `struct blkif_request_segment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifSegment {
    pub gref: GrantRef,
    pub first_sect: u8,
    pub last_sect: u8,
    pub pad: u16,
}
const_assert_eq!(size_of::<BlkifSegment>(), 8);
const_assert_eq!(SEGMENTS_PER_INDIRECT_PAGE, 512);

/// `struct blkif_request`: any entry of a 64-bit ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequest {
    pub operation: BlkifOp,
    pub nr_segments: u8,
    pub handle: u16,
    pub pad: u32,
    pub id: u64,
    pub sector_number: u64,
    pub seg: [BlkifSegment; MAX_SEGMENTS_PER_REQUEST],
}
const_assert_eq!(size_of::<BlkifRequest>(), 112);
const_assert_eq!(offset_of!(BlkifRequest, seg), 24);

/// `struct blkif_request_discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequestDiscard {
    pub operation: BlkifOp,
    pub flag: u8,
    pub handle: u16,
    pub pad: u32,
    pub id: u64,
    pub sector_number: u64,
    pub nr_sectors: u64,
}
const_assert_eq!(size_of::<BlkifRequestDiscard>(), 32);

/// `struct blkif_request_indirect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequestIndirect {
    pub operation: BlkifOp,
    pub indirect_op: BlkifOp,
    pub nr_segments: u16,
    pub pad: u32,
    pub id: u64,
    pub sector_number: u64,
    pub handle: u16,
    pub pad2: u16,
    pub indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES],
    pub pad3: u32,
}
const_assert_eq!(size_of::<BlkifRequestIndirect>(), 64);
const_assert_eq!(offset_of!(BlkifRequestIndirect, indirect_grefs), 28);

/// `struct blkif_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifResponse {
    pub id: u64,
    pub operation: BlkifOp,
    pub pad: u8,
    pub status: BlkifStatus,
    pub pad2: u32,
}
const_assert_eq!(size_of::<BlkifResponse>(), 16);
const_assert_eq!(offset_of!(BlkifResponse, status), 10);

/// `struct blkif_request` with 32 bits; 64-bit numbers are halves, the low one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequest32 {
    pub operation: BlkifOp,
    pub nr_segments: u8,
    pub handle: u16,
    pub id: [u32; 2],
    pub sector_number: [u32; 2],
    pub seg: [BlkifSegment; MAX_SEGMENTS_PER_REQUEST],
}
const_assert_eq!(size_of::<BlkifRequest32>(), 108);
const_assert_eq!(offset_of!(BlkifRequest32, seg), 20);

/// `struct blkif_request_discard` with 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequestDiscard32 {
    pub operation: BlkifOp,
    pub flag: u8,
    pub handle: u16,
    pub id: [u32; 2],
    pub sector_number: [u32; 2],
    pub nr_sectors: [u32; 2],
}
const_assert_eq!(size_of::<BlkifRequestDiscard32>(), 28);

/// `struct blkif_request_indirect` with 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifRequestIndirect32 {
    pub operation: BlkifOp,
    pub indirect_op: BlkifOp,
    pub nr_segments: u16,
    pub id: [u32; 2],
    pub sector_number: [u32; 2],
    pub handle: u16,
    pub pad2: u16,
    pub indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES],
    pub pad: [u32; 2],
}
const_assert_eq!(size_of::<BlkifRequestIndirect32>(), 64);
const_assert_eq!(offset_of!(BlkifRequestIndirect32, indirect_grefs), 24);

/// `struct blkif_response` with 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct BlkifResponse32 {
    pub id: [u32; 2],
    pub operation: BlkifOp,
    pub pad: u8,
    pub status: BlkifStatus,
}
const_assert_eq!(size_of::<BlkifResponse32>(), 12);
