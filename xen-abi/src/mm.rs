//! Page-table hypercalls (`xen/include/public/xen.h`): requests, commands, flags, domain ids.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A domain id (`domid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The caller.
    pub const SELF: Self = Self(0x7ff0);
    /// I/O memory.
    pub const IO: Self = Self(0x7ff1);
    /// The hypervisor.
    pub const XEN: Self = Self(0x7ff2);
    /// Owner of shareable pages.
    pub const COW: Self = Self(0x7ff3);
    /// No domain.
    pub const INVALID: Self = Self(0x7ff4);
    /// The idle domain.
    pub const IDLE: Self = Self(0x7fff);
    /// First id that is no ordinary domain.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}

/// `struct mmu_update`. The low two bits of `ptr` are the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MmuUpdate {
    pub ptr: u64,
    pub val: u64,
}
const_assert_eq!(size_of::<MmuUpdate>(), 16);

/// `MMU_NORMAL_PT_UPDATE`: checked `*ptr = val`.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// `MMU_MACHPHYS_UPDATE`: writes the M2P entry of the frame `ptr` lies in.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// `MMU_PT_UPDATE_PRESERVE_AD`: as 0, accessed and dirty bits are kept.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// `MMU_PT_UPDATE_NO_TRANSLATE`: as 0 for a PV guest.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
/// Top bit of the count argument of mmu_update and mmuext_op: the call is a continuation
/// (`xen/arch/x86/include/asm/mm.h`).
pub const MMU_UPDATE_PREEMPTED: u32 = 1 << 31;

/// `MMUEXT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MmuextCmd(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl MmuextCmd {
    pub const PIN_L1_TABLE: Self = Self(0);
    pub const PIN_L2_TABLE: Self = Self(1);
    pub const PIN_L3_TABLE: Self = Self(2);
    pub const PIN_L4_TABLE: Self = Self(3);
    pub const UNPIN_TABLE: Self = Self(4);
    pub const NEW_BASEPTR: Self = Self(5);
    pub const TLB_FLUSH_LOCAL: Self = Self(6);
    pub const INVLPG_LOCAL: Self = Self(7);
    pub const TLB_FLUSH_MULTI: Self = Self(8);
    pub const INVLPG_MULTI: Self = Self(9);
    pub const TLB_FLUSH_ALL: Self = Self(10);
    pub const INVLPG_ALL: Self = Self(11);
    pub const FLUSH_CACHE: Self = Self(12);
    pub const SET_LDT: Self = Self(13);
    pub const NEW_USER_BASEPTR: Self = Self(15);
    pub const CLEAR_PAGE: Self = Self(16);
    pub const COPY_PAGE: Self = Self(17);
    pub const FLUSH_CACHE_GLOBAL: Self = Self(18);
    pub const MARK_SUPER: Self = Self(19);
    pub const UNMARK_SUPER: Self = Self(20);
}

/// `struct mmuext_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuextOp {
    /// What to do.
    pub cmd: MmuextCmd,
    /// Padding.
    pub pad: u32,
    /// `mfn` or `linear_addr`.
    pub arg1: u64,
    /// `nr_ents`, `vcpumask` or `src_mfn`.
    pub arg2: u64,
}
const_assert_eq!(size_of::<MmuextOp>(), 24);
const_assert_eq!(offset_of!(MmuextOp, arg1), 8);

/// `UVMF_NONE`: no flush.
pub const UVMF_NONE: u64 = 0;
/// `UVMF_TLB_FLUSH`: flush the whole TLB.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// `UVMF_INVLPG`: flush the one entry.
pub const UVMF_INVLPG: u64 = 2;
/// `UVMF_FLUSHTYPE_MASK`.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// `UVMF_ALL`: on all vCPUs. Without it the rest of the flags is a pointer to a vCPU bitmap
/// (`UVMF_MULTI`), null for the local vCPU (`UVMF_LOCAL`).
pub const UVMF_ALL: u64 = 4;

/// First address of the hypervisor's hole (`HYPERVISOR_VIRT_START`, `arch-x86/xen-x86_64.h`).
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First address behind the hole (`HYPERVISOR_VIRT_END`).
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// First L4 slot of the hole (`ROOT_PAGETABLE_FIRST_XEN_SLOT`, `asm/config.h`).
pub const FIRST_XEN_SLOT: usize = 256;
/// Last L4 slot of the hole (`ROOT_PAGETABLE_LAST_XEN_SLOT`).
pub const LAST_XEN_SLOT: usize = 271;

/// Page-table entry bits (Intel SDM 3A 4.5).
pub mod pte {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// User.
    pub const US: u64 = 1 << 2;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// Page size, above L1.
    pub const PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// No execute.
    pub const NX: u64 = 1 << 63;
    /// Bits of the frame's address.
    pub const ADDR: u64 = 0x000f_ffff_ffff_f000;
}
