//! The guest's registers as ring 0 saves them on entry.

use core::mem::size_of;
use static_assertions::const_assert_eq;

/// Saved at every entry to ring 0, lowest address first; the last five words are what the
/// processor pushed. The assembly takes every offset from this definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "register names")]
pub struct CpuRegs {
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
    /// Hardware error code, or 0.
    pub error_code: u32,
    /// Vector that led here; [`Self::VECTOR_SYSCALL`] for SYSCALL.
    pub vector: u32,
    pub rip: u64,
    /// Hardware CS: RPL 0 shim, 1 guest kernel, 3 guest user.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const_assert_eq!(size_of::<CpuRegs>(), 21 * 8);

impl CpuRegs {
    /// `error_code` and `vector` of a frame that SYSCALL made (one `push -1`).
    pub const VECTOR_SYSCALL: u32 = u32::MAX;
    /// `error_code` of a frame that SYSCALL from 32-bit user code made.
    pub const SYSCALL32: u32 = u32::MAX - 1;
    /// `error_code` of a frame that SYSENTER made.
    pub const SYSENTER: u32 = u32::MAX - 2;
    /// Whether the frame interrupted the guest kernel (ring 1).
    #[must_use]
    pub const fn from_guest_kernel(&self) -> bool {
        self.cs & 3 == 1
    }
    /// Whether the frame interrupted guest user mode (ring 3).
    #[must_use]
    pub const fn from_guest_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// Hardware selectors (RING1.md: the reserved GDT page 14 begins at 0xe000).
pub mod selector {
    use xen_abi::arch::flat;

    /// Code of the shim, DPL 0.
    pub const SHIM_CS: u16 = 0xe008;
    /// Stack of the shim; SYSCALL requires it at CS + 8.
    pub const SHIM_SS: u16 = 0xe010;
    /// Xen's FLAT_RING3_CS32: 32-bit user code, DPL 3.
    pub const USER_CS32: u16 = 0xe023;
    /// Guest kernel data and stack, DPL 1 (0xe028 | RPL 1).
    pub const KERNEL_SS: u16 = 0xe029;
    /// Guest kernel 64-bit code, DPL 1 (0xe030 | RPL 1).
    pub const KERNEL_CS: u16 = 0xe031;
    /// What the guest is shown as its kernel CS: RPL 0, so that `cs & 3` says "kernel".
    pub const GUEST_VIEW_KERNEL_CS: u16 = 0xe030;
    /// TSS (16 bytes).
    pub const TSS: u16 = 0xe040;
    /// LDT (16 bytes).
    pub const LDT: u16 = 0xe050;
    /// Flat 64-bit user code of the shim's own, DPL 3: stands for Xen's FLAT_RING3_CS64 (0xe033),
    /// whose slot the guest kernel's code segment has here.
    pub const USER_CS64_FLAT: u16 = 0xe063;
    /// Flat user data, DPL 3: stands for Xen's FLAT_RING3_SS64 (0xe02b).
    pub const USER_SS_FLAT: u16 = 0xe06b;
    /// User code 64-bit SYSRET returns to: Linux's own value. Only for a guest that has given it
    /// itself, with [`USER_SS`]: another's table may have anything there.
    pub const USER_CS64: u16 = 0x33;
    /// User stack SYSRET returns to.
    pub const USER_SS: u16 = 0x2b;
    /// GDT pages the guest supplies.
    pub const GUEST_GDT_PAGES: usize = 14;
    /// First selector of the reserved page.
    pub const FIRST_RESERVED: u16 = 0xe000;

    /// What the guest is shown as the CS of user mode: Xen's selector for the one in its place.
    #[inline]
    #[must_use]
    pub const fn shown_cs(cs: u64) -> u64 {
        if cs == USER_CS64_FLAT as u64 { flat::RING3_CS64 as u64 } else { cs }
    }

    /// What the guest is shown as the SS of user mode.
    #[inline]
    #[must_use]
    pub const fn shown_ss(ss: u64) -> u64 {
        if ss == USER_SS_FLAT as u64 { flat::RING3_DS32 as u64 } else { ss }
    }

    /// The selector that serves for a CS of user mode that the guest gave.
    #[inline]
    #[must_use]
    pub const fn user_cs(cs: u16) -> u16 {
        if cs == flat::RING3_CS64 { USER_CS64_FLAT } else { cs }
    }

    /// The selector that serves for an SS of user mode that the guest gave.
    #[inline]
    #[must_use]
    pub const fn user_ss(ss: u16) -> u16 {
        if ss == flat::RING3_DS32 { USER_SS_FLAT } else { ss }
    }
}
