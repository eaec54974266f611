//! memory_op commands and arguments (`xen/include/public/memory.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::mm::DomId;

/// `XENMEM_*`: the low six bits of the command; the rest is a continuation's first extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct XenMem(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl XenMem {
    pub const INCREASE_RESERVATION: Self = Self(0);
    pub const DECREASE_RESERVATION: Self = Self(1);
    pub const MAXIMUM_RAM_PAGE: Self = Self(2);
    pub const CURRENT_RESERVATION: Self = Self(3);
    pub const MAXIMUM_RESERVATION: Self = Self(4);
    pub const MACHPHYS_MFN_LIST: Self = Self(5);
    pub const POPULATE_PHYSMAP: Self = Self(6);
    pub const ADD_TO_PHYSMAP: Self = Self(7);
    pub const TRANSLATE_GPFN_LIST: Self = Self(8);
    pub const MEMORY_MAP: Self = Self(9);
    pub const MACHINE_MEMORY_MAP: Self = Self(10);
    pub const EXCHANGE: Self = Self(11);
    pub const MACHPHYS_MAPPING: Self = Self(12);
    pub const SET_MEMORY_MAP: Self = Self(13);
    pub const MAXIMUM_GPFN: Self = Self(14);
    pub const REMOVE_FROM_PHYSMAP: Self = Self(15);
    pub const SET_POD_TARGET: Self = Self(16);
    pub const GET_POD_TARGET: Self = Self(17);
    pub const GET_SHARING_FREED_PAGES: Self = Self(18);
    pub const GET_SHARING_SHARED_PAGES: Self = Self(19);
    pub const PAGING_OP: Self = Self(20);
    pub const ACCESS_OP: Self = Self(21);
    pub const SHARING_OP: Self = Self(22);
    pub const ADD_TO_PHYSMAP_BATCH: Self = Self(23);
    pub const CLAIM_PAGES: Self = Self(24);
    pub const MACHPHYS_COMPAT_MFN_LIST: Self = Self(25);
    pub const GET_VNUMAINFO: Self = Self(26);
    pub const RESERVED_DEVICE_MEMORY_MAP: Self = Self(27);
    pub const ACQUIRE_RESOURCE: Self = Self(28);
}

/// Bits of the command that are the operation (`MEMOP_CMD_MASK`, `xen/include/xen/hypercall.h`).
pub const MEMOP_CMD_MASK: u64 = 0x3f;
/// Shift of the first extent of a continuation (`MEMOP_EXTENT_SHIFT`).
pub const MEMOP_EXTENT_SHIFT: u32 = 6;

/// `struct xen_memory_reservation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MemoryReservation {
    pub extent_start: u64,
    pub nr_extents: u64,
    pub extent_order: u32,
    pub mem_flags: u32,
    pub domid: DomId,
    pub pad: [u16; 3],
}
const_assert_eq!(size_of::<MemoryReservation>(), 32);
const_assert_eq!(offset_of!(MemoryReservation, domid), 24);

/// `XENMEMF_address_bits` part of `mem_flags`.
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;
/// `XENMEMF_populate_on_demand`.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;

/// `struct xen_memory_exchange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MemoryExchange {
    pub in_: MemoryReservation,
    pub out: MemoryReservation,
    pub nr_exchanged: u64,
}
const_assert_eq!(size_of::<MemoryExchange>(), 72);

/// `struct xen_memory_domain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MemoryDomain {
    pub domid: DomId,
}

/// `struct xen_machphys_mfn_list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MachphysMfnList {
    pub max_extents: u32,
    pub pad0: u32,
    pub extent_start: u64,
    pub nr_extents: u32,
    pub pad1: u32,
}
const_assert_eq!(size_of::<MachphysMfnList>(), 24);
const_assert_eq!(offset_of!(MachphysMfnList, nr_extents), 16);

/// `struct xen_machphys_mapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MachphysMapping {
    pub v_start: u64,
    pub v_end: u64,
    pub max_mfn: u64,
}
const_assert_eq!(size_of::<MachphysMapping>(), 24);

/// `struct xen_add_to_physmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct AddToPhysmap {
    pub domid: DomId,
    pub size: u16,
    pub space: u32,
    pub idx: u64,
    pub gpfn: u64,
}
const_assert_eq!(size_of::<AddToPhysmap>(), 24);

/// `struct xen_remove_from_physmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct RemoveFromPhysmap {
    pub domid: DomId,
    pub pad: [u16; 3],
    pub gpfn: u64,
}
const_assert_eq!(size_of::<RemoveFromPhysmap>(), 16);

/// `struct xen_memory_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MemoryMap {
    pub nr_entries: u32,
    pub pad: u32,
    pub buffer: u64,
}
const_assert_eq!(size_of::<MemoryMap>(), 16);

/// An E820 entry, 20 bytes (`struct e820entry`; ACPI 6.4, 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(4))]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// [`E820_RAM`] or [`E820_RESERVED`], ...
    pub type_: u32,
}
const_assert_eq!(size_of::<E820Entry>(), 20);

/// Ordinary memory.
pub const E820_RAM: u32 = 1;
/// Not to be used.
pub const E820_RESERVED: u32 = 2;
