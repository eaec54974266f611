//! Grant tables (`xen/include/public/grant_table.h`).

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SharedView;
use crate::mm::DomId;

/// `GNTTABOP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct GnttabOp(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl GnttabOp {
    pub const MAP_GRANT_REF: Self = Self(0);
    pub const UNMAP_GRANT_REF: Self = Self(1);
    pub const SETUP_TABLE: Self = Self(2);
    pub const DUMP_TABLE: Self = Self(3);
    pub const TRANSFER: Self = Self(4);
    pub const COPY: Self = Self(5);
    pub const QUERY_SIZE: Self = Self(6);
    pub const UNMAP_AND_REPLACE: Self = Self(7);
    pub const SET_VERSION: Self = Self(8);
    pub const GET_STATUS_FRAMES: Self = Self(9);
    pub const GET_VERSION: Self = Self(10);
    pub const SWAP_GRANT_REF: Self = Self(11);
    pub const CACHE_FLUSH: Self = Self(12);
}

/// Bits of the command above the operation (`GNTTABOP_ARG_SHIFT`, `xen/common/grant_table.c`):
/// a continuation's state.
pub const GNTTABOP_ARG_SHIFT: u32 = 12;

/// `GNTST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

#[allow(missing_docs, reason = "names are the header's own")]
impl GrantStatus {
    pub const OKAY: Self = Self(0);
    pub const GENERAL_ERROR: Self = Self(-1);
    pub const BAD_DOMAIN: Self = Self(-2);
    pub const BAD_GNTREF: Self = Self(-3);
    pub const BAD_HANDLE: Self = Self(-4);
    pub const BAD_VIRT_ADDR: Self = Self(-5);
    pub const BAD_DEV_ADDR: Self = Self(-6);
    pub const NO_DEVICE_SPACE: Self = Self(-7);
    pub const PERMISSION_DENIED: Self = Self(-8);
    pub const BAD_PAGE: Self = Self(-9);
    pub const BAD_COPY_ARG: Self = Self(-10);
    pub const ADDRESS_TOO_BIG: Self = Self(-11);
    pub const EAGAIN: Self = Self(-12);
    pub const NO_SPACE: Self = Self(-13);
}

/// A grant reference (`grant_ref_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

/// `GNTTAB_NR_RESERVED_ENTRIES`.
pub const NR_RESERVED_ENTRIES: u32 = 8;
/// `GNTTAB_RESERVED_CONSOLE`.
pub const RESERVED_CONSOLE: GrantRef = GrantRef(0);
/// `GNTTAB_RESERVED_XENSTORE`.
pub const RESERVED_XENSTORE: GrantRef = GrantRef(1);

/// `GTF_*`: flags of a grant entry.
#[allow(missing_docs, reason = "names are the header's own")]
pub mod gtf {
    pub const INVALID: u16 = 0;
    pub const PERMIT_ACCESS: u16 = 1;
    pub const ACCEPT_TRANSFER: u16 = 2;
    pub const TRANSITIVE: u16 = 3;
    pub const TYPE_MASK: u16 = 3;
    pub const READONLY: u16 = 1 << 2;
    pub const READING: u16 = 1 << 3;
    pub const WRITING: u16 = 1 << 4;
    pub const PWT: u16 = 1 << 5;
    pub const PCD: u16 = 1 << 6;
    pub const PAT: u16 = 1 << 7;
    pub const SUB_PAGE: u16 = 1 << 8;
    pub const TRANSFER_COMMITTED: u16 = 1 << 2;
    pub const TRANSFER_COMPLETED: u16 = 1 << 3;
}

/// `GNTMAP_*`: flags of a mapping.
#[allow(missing_docs, reason = "names are the header's own")]
pub mod gntmap {
    pub const DEVICE_MAP: u32 = 1 << 0;
    pub const HOST_MAP: u32 = 1 << 1;
    pub const READONLY: u32 = 1 << 2;
    pub const APPLICATION_MAP: u32 = 1 << 3;
    pub const CONTAINS_PTE: u32 = 1 << 4;
}

/// `GNTCOPY_source_gref`.
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`.
pub const GNTCOPY_DEST_GREF: u16 = 2;
/// `GNTTAB_CACHE_CLEAN`.
pub const GNTTAB_CACHE_CLEAN: u32 = 1;
/// `GNTTAB_CACHE_INVAL`.
pub const GNTTAB_CACHE_INVAL: u32 = 2;
/// `GNTTAB_CACHE_SOURCE_GREF`.
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;

/// `struct grant_entry_v1`, shared with the guest.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GrantEntryV1 {
    pub flags: AtomicU16,
    pub domid: AtomicU16,
    pub frame: AtomicU32,
}
const_assert_eq!(size_of::<GrantEntryV1>(), 8);

/// `union grant_entry_v2`, shared with the guest: `full_page` and `sub_page` in one.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GrantEntryV2 {
    pub flags: AtomicU16,
    pub domid: AtomicU16,
    /// `sub_page.page_off`; `transitive.trans_domid`.
    pub page_off: AtomicU16,
    /// `sub_page.length`.
    pub length: AtomicU16,
    /// `transitive.gref` is the low half.
    pub frame: AtomicU64,
}
const_assert_eq!(size_of::<GrantEntryV2>(), 16);
const_assert_eq!(offset_of!(GrantEntryV2, frame), 8);

/// Version 1 entries in a page.
pub const V1_ENTRIES_PER_PAGE: usize = 512;
/// Version 2 entries in a page.
pub const V2_ENTRIES_PER_PAGE: usize = 256;
/// `grant_status_t` in a page.
pub const STATUS_PER_PAGE: usize = 2048;

/// A page of version 1 entries.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GrantPageV1 {
    /// The entries.
    pub entries: [GrantEntryV1; V1_ENTRIES_PER_PAGE],
}
const_assert_eq!(size_of::<GrantPageV1>(), 4096);

/// A page of version 2 entries.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GrantPageV2 {
    /// The entries.
    pub entries: [GrantEntryV2; V2_ENTRIES_PER_PAGE],
}
const_assert_eq!(size_of::<GrantPageV2>(), 4096);

/// A page of `grant_status_t` (version 2).
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GrantStatusPage {
    /// The status words.
    pub status: [AtomicU16; STATUS_PER_PAGE],
}
const_assert_eq!(size_of::<GrantStatusPage>(), 4096);

/// A guest's page as bytes, for copies by frame number.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BytePage {
    /// The bytes.
    pub bytes: [AtomicU8; 4096],
}
const_assert_eq!(size_of::<BytePage>(), 4096);

impl SharedView for BytePage {}
impl SharedView for GrantEntryV1 {}
impl SharedView for GrantEntryV2 {}
impl SharedView for GrantPageV1 {}
impl SharedView for GrantPageV2 {}
impl SharedView for GrantStatusPage {}

/// `struct gnttab_map_grant_ref`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabMapGrantRef {
    pub host_addr: u64,
    pub flags: u32,
    pub ref_: GrantRef,
    pub dom: DomId,
    pub status: GrantStatus,
    pub handle: u32,
    pub dev_bus_addr: u64,
}
const_assert_eq!(size_of::<GnttabMapGrantRef>(), 32);

/// `struct gnttab_unmap_grant_ref`, also `struct gnttab_unmap_and_replace` (whose second word is `new_addr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabUnmapGrantRef {
    pub host_addr: u64,
    pub dev_bus_addr: u64,
    pub handle: u32,
    pub status: GrantStatus,
    pub pad: u16,
}
const_assert_eq!(size_of::<GnttabUnmapGrantRef>(), 24);

/// `struct gnttab_setup_table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabSetupTable {
    pub dom: DomId,
    pub pad0: u16,
    pub nr_frames: u32,
    pub status: GrantStatus,
    pub pad1: [u16; 3],
    pub frame_list: u64,
}
const_assert_eq!(size_of::<GnttabSetupTable>(), 24);

/// `struct gnttab_transfer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabTransfer {
    pub mfn: u64,
    pub domid: DomId,
    pub pad0: u16,
    pub ref_: GrantRef,
    pub status: GrantStatus,
    pub pad1: [u16; 3],
}
const_assert_eq!(size_of::<GnttabTransfer>(), 24);

/// `struct gnttab_copy_ptr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabCopyPtr {
    pub u: u64,
    pub domid: DomId,
    pub offset: u16,
    pub pad: u32,
}
const_assert_eq!(size_of::<GnttabCopyPtr>(), 16);

/// `struct gnttab_copy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabCopy {
    pub source: GnttabCopyPtr,
    pub dest: GnttabCopyPtr,
    pub len: u16,
    pub flags: u16,
    pub status: GrantStatus,
    pub pad: u16,
}
const_assert_eq!(size_of::<GnttabCopy>(), 40);

/// `struct gnttab_query_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabQuerySize {
    pub dom: DomId,
    pub pad0: u16,
    pub nr_frames: u32,
    pub max_nr_frames: u32,
    pub status: GrantStatus,
    pub pad1: u16,
}
const_assert_eq!(size_of::<GnttabQuerySize>(), 16);

/// `struct gnttab_set_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabSetVersion {
    pub version: u32,
}
const_assert_eq!(size_of::<GnttabSetVersion>(), 4);

/// `struct gnttab_get_status_frames`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabGetStatusFrames {
    pub nr_frames: u32,
    pub dom: DomId,
    pub status: GrantStatus,
    pub frame_list: u64,
}
const_assert_eq!(size_of::<GnttabGetStatusFrames>(), 16);

/// `struct gnttab_get_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabGetVersion {
    pub dom: DomId,
    pub pad: u16,
    pub version: u32,
}
const_assert_eq!(size_of::<GnttabGetVersion>(), 8);

/// `struct gnttab_swap_grant_ref`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabSwapGrantRef {
    pub ref_a: GrantRef,
    pub ref_b: GrantRef,
    pub status: GrantStatus,
    pub pad: u16,
}
const_assert_eq!(size_of::<GnttabSwapGrantRef>(), 12);

/// `struct gnttab_cache_flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct GnttabCacheFlush {
    pub a: u64,
    pub offset: u16,
    pub length: u16,
    pub op: u32,
}
const_assert_eq!(size_of::<GnttabCacheFlush>(), 16);
