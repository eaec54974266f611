//! Per-vCPU areas.
//!
//! ```text
//! area + 0x0000  stub page (RX): the SYSCALL entries, relative to ...
//!      + 0x1000  PerCpu (RW, 2 pages)
//!      + 0x3000  unmapped: guard
//!      + 0x7000  stack, 16 KiB, growing down from + 0xb000
//!      + 0xb000  #DF stack, 4 KiB, and the stack for faults inside a stub
//!      + 0xc000  NMI stack
//!      + 0xd000  #MC stack
//!      + 0xe000  #DB stack
//! ```
//! The area starts at a multiple of [`PERCPU_STRIDE`], so any stack pointer in it finds it.

use core::arch::asm;
use core::mem::{offset_of, size_of};

use static_assertions::const_assert;
use translate::regs::CpuRegs;
use translate::vcpu::{Entry, Vcpu};

use crate::cpu::tss::Tss;
use crate::mm::layout::{MAX_VCPUS, PERCPU_BASE, PERCPU_STRIDE};

/// Offset of [`PerCpu`] in the area; the assembly and the linker script know it as 4096.
pub const DATA_OFFSET: u64 = 0x1000;
/// Pages of [`PerCpu`].
pub const DATA_PAGES: u64 = 2;
const STACK_BOTTOM: u64 = 0x7000;
const STACK_TOP: u64 = 0xb000;
const DF_TOP: u64 = 0xc000;
const NMI_TOP: u64 = 0xd000;
const MC_TOP: u64 = 0xe000;
const DB_TOP: u64 = 0xf000;
/// Pages of stack, all kinds.
pub const STACK_PAGES: u64 = (DB_TOP - STACK_BOTTOM) >> 12;
const_assert!(DB_TOP <= PERCPU_STRIDE);
const_assert!(size_of::<PerCpu>() as u64 <= DATA_PAGES * 4096);

/// An entry with the guest's registers saved.
pub type Handler = unsafe extern "C" fn(*mut CpuRegs, *mut PerCpu);
/// A fast hypercall: its first two arguments, and the value it returns.
pub type FastHandler = unsafe extern "C" fn(u64, u64, *mut PerCpu) -> i64;

/// The stub's way into the image: its page is a copy, so it has no other addresses.
#[repr(C)]
pub struct Handlers {
    /// Handler of hypercalls.
    pub hypercall: Handler,
    /// Handlers of the commonest ones in their plain form.
    pub fast_mmu_update: FastHandler,
    /// As above.
    pub fast_mmuext_op: FastHandler,
    /// As above.
    pub fast_stack_switch: FastHandler,
    /// As above.
    pub fast_set_segment_base: FastHandler,
    /// What an event that came up meanwhile needs.
    pub exit: Handler,
    /// Handler of user-mode system calls the fast path does not take.
    pub user_syscall: Handler,
    /// The end of the ordinary way out.
    pub trap_exit: u64,
}

/// Offset of [`PerCpu::handlers`].
pub const HANDLERS: usize = offset_of!(PerCpu, handlers);

/// What a vCPU's entry code needs, and all state one processor owns.
#[repr(C)]
pub struct PerCpu {
    /// Guest RSP while SYSCALL switches stacks.
    pub user_rsp: u64,
    /// The vCPU's stack (also TSS.RSP0).
    pub stack_top: u64,
    /// Stack for faults inside a stub.
    pub emergency_top: u64,
    /// Where the stub goes on.
    pub handlers: Handlers,
    /// The guest's vCPU.
    pub vcpu: Vcpu,
    /// What only the shim knows of the vCPU.
    pub cpu: crate::cpu::Cpu,
    /// Task state: where the stacks are.
    pub tss: Tss,
}

impl PerCpu {
    /// The content of a new area.
    pub fn new(area: Area, vcpu: Vcpu, cpu: crate::cpu::Cpu, handlers: Handlers) -> Self {
        Self {
            user_rsp: 0,
            stack_top: area.stack_top(),
            emergency_top: area.ist_tops()[0],
            handlers,
            vcpu,
            cpu,
            tss: Tss::new(area),
        }
    }
}

/// Offsets for the assembly.
pub mod offset {
    use super::{Entry, PerCpu, Vcpu, offset_of};
    /// `PerCpu::vcpu.entry`.
    const ENTRY: usize = offset_of!(PerCpu, vcpu) + offset_of!(Vcpu, entry);
    /// `vcpu.entry.info`.
    pub const INFO: usize = ENTRY + offset_of!(Entry, info);
    /// `vcpu.entry.kernel_sp`.
    pub const KERNEL_SP: usize = ENTRY + offset_of!(Entry, kernel_sp);
    /// `vcpu.entry.attention`.
    pub const ATTENTION: usize = ENTRY + offset_of!(Entry, attention);
    /// `vcpu.entry.fast_syscall`.
    pub const FAST_SYSCALL: usize = ENTRY + offset_of!(Entry, fast_syscall);
}

/// Addresses inside a vCPU's area.
#[derive(Clone, Copy)]
pub struct Area(u64);

impl Area {
    /// The area of a vCPU.
    pub const fn of(cpu: u32) -> Self {
        Self(PERCPU_BASE + cpu as u64 * PERCPU_STRIDE)
    }
    /// The stub page.
    pub const fn stub(self) -> u64 {
        self.0
    }
    /// The vCPU's [`PerCpu`].
    pub const fn data(self) -> u64 {
        self.0 + DATA_OFFSET
    }
    /// First stack page.
    pub const fn stacks(self) -> u64 {
        self.0 + STACK_BOTTOM
    }
    /// Top of the ordinary stack.
    pub const fn stack_top(self) -> u64 {
        self.0 + STACK_TOP
    }
    /// Bytes of the ordinary stack that were ever used, of those it has.
    pub fn stack_used(self) -> (u64, u64) {
        let bytes = STACK_TOP - STACK_BOTTOM;
        let words = (0..bytes / 8).map(|nr| (self.stacks() + nr * 8) as *const u64);
        // SAFETY: the stacks of a vCPU there is are mapped for good. Whatever its processor writes
        // meanwhile, each read is of a whole word, and says no more than whether it is zero, as it was
        // in the beginning.
        let untouched = words.take_while(|word| unsafe { word.read_volatile() } == 0).count();
        (bytes - untouched as u64 * 8, bytes)
    }
    /// Tops of the interrupt stacks, by IST index - 1: #DF, NMI, #MC, #DB.
    pub const fn ist_tops(self) -> [u64; 4] {
        [self.0 + DF_TOP, self.0 + NMI_TOP, self.0 + MC_TOP, self.0 + DB_TOP]
    }
}

/// The calling processor's number, by the stack it is on; 0 while it is on the boot stack.
#[inline]
pub fn current_id() -> u32 {
    let stack: u64;
    // SAFETY: reading RSP has no effect.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) };
    let offset = stack.wrapping_sub(PERCPU_BASE);
    if offset < PERCPU_STRIDE * MAX_VCPUS as u64 { (offset / PERCPU_STRIDE) as u32 } else { 0 }
}

/// IST index of #DF.
pub const IST_DF: u8 = 1;
/// IST index of NMI.
pub const IST_NMI: u8 = 2;
/// IST index of #MC.
pub const IST_MC: u8 = 3;
/// IST index of #DB.
pub const IST_DB: u8 = 4;
