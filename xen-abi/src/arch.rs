//! Processor state of a 64-bit PV guest (`arch-x86/xen.h`, `arch-x86/xen-x86_64.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Flat selectors of the reserved GDT page (`FLAT_RING3_*`, `arch-x86/xen-x86_64.h`).
pub mod flat {
    /// `FLAT_RING3_CS32`.
    pub const RING3_CS32: u16 = 0xe023;
    /// `FLAT_RING3_DS32`, also the stack selector of both modes.
    pub const RING3_DS32: u16 = 0xe02b;
    /// `FLAT_RING3_CS64`.
    pub const RING3_CS64: u16 = 0xe033;
}

/// First GDT entry the hypervisor keeps for itself (`FIRST_RESERVED_GDT_ENTRY`,
/// `arch-x86/xen.h`): entries below are the guest's.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = 14 * 512;

/// Flags of a [`TrapInfo`] (`TI_GET_DPL`, `TI_GET_IF`).
pub mod ti {
    /// Lowest privilege (highest ring) that may raise the vector by INT n.
    pub const DPL_MASK: u8 = 3;
    /// The handler runs with events masked.
    pub const IF: u8 = 4;
}

/// `struct trap_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct TrapInfo {
    pub vector: u8,
    pub flags: u8,
    pub cs: u16,
    pub pad: u32,
    pub address: u64,
}
const_assert_eq!(size_of::<TrapInfo>(), 16);
const_assert_eq!(offset_of!(TrapInfo, address), 8);

/// `struct iret_context`: what lies at RSP when the guest calls iret.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    pub flags: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const_assert_eq!(size_of::<IretContext>(), 72);
const_assert_eq!(offset_of!(IretContext, ss), 64);

/// `VGCF_in_syscall` in [`IretContext::flags`]: SYSRET may be used, RCX and R11 are not restored.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

/// Bits of RFLAGS (Intel SDM 1, 3.4.3).
#[allow(missing_docs, reason = "flag names")]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    pub const MBS: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}

/// Exception vectors (Intel SDM 3A 6.3.1).
#[allow(missing_docs, reason = "mnemonics")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// `struct cpu_user_regs`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct CpuUserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub pad2: [u16; 3],
    pub es: u16,
    pub pad3: [u16; 3],
    pub ds: u16,
    pub pad4: [u16; 3],
    pub fs: u16,
    pub pad5: [u16; 3],
    pub gs: u16,
    pub pad6: [u16; 3],
}
const_assert_eq!(size_of::<CpuUserRegs>(), 200);
const_assert_eq!(offset_of!(CpuUserRegs, saved_upcall_mask), 140);

/// `VGCF_i387_valid`.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// `VGCF_in_kernel`.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// `VGCF_failsafe_disables_events`.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
/// `VGCF_syscall_disables_events`.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;
/// `VGCF_online`.
pub const VGCF_ONLINE: u64 = 1 << 5;

/// `struct vcpu_guest_context`: the argument of VCPUOP_initialise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuGuestContext {
    pub fpu_ctxt: [u8; 512],
    pub flags: u64,
    pub user_regs: CpuUserRegs,
    pub trap_ctxt: [TrapInfo; 256],
    pub ldt_base: u64,
    pub ldt_ents: u64,
    pub gdt_frames: [u64; 16],
    pub gdt_ents: u64,
    pub kernel_ss: u64,
    pub kernel_sp: u64,
    /// CR0-CR7; the user page table is in \[1\], see [`xen_cr3_to_pfn`].
    pub ctrlreg: [u64; 8],
    pub debugreg: [u64; 8],
    pub event_callback_eip: u64,
    pub failsafe_callback_eip: u64,
    pub syscall_callback_eip: u64,
    pub vm_assist: u64,
    pub fs_base: u64,
    pub gs_base_kernel: u64,
    pub gs_base_user: u64,
}
const_assert_eq!(size_of::<VcpuGuestContext>(), 5168);
const_assert_eq!(offset_of!(VcpuGuestContext, trap_ctxt), 720);
const_assert_eq!(offset_of!(VcpuGuestContext, gs_base_user), 5160);

/// `xen_cr3_to_pfn`: the frame in a `cr3` value of a [`VcpuGuestContext`].
#[must_use]
pub const fn xen_cr3_to_pfn(cr3: u64) -> u64 {
    cr3 >> 12
}

/// `SEGBASE_FS` (set_segment_base).
pub const SEGBASE_FS: u32 = 0;
/// `SEGBASE_GS_USER`.
pub const SEGBASE_GS_USER: u32 = 1;
/// `SEGBASE_GS_KERNEL`.
pub const SEGBASE_GS_KERNEL: u32 = 2;
/// `SEGBASE_GS_USER_SEL`: loads a selector into the user GS.
pub const SEGBASE_GS_USER_SEL: u32 = 3;
