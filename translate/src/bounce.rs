//! Exceptions, events and callbacks delivered to the guest with the frames Xen builds
//! (`docs/traps.md` has the pictures). Each is one write to the guest kernel's stack and a change
//! of the saved registers; the entry path's return then lands in the guest's handler.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::GuestVa;
use xen_abi::arch::{rflags, vector as trap};
use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;
use zerocopy::IntoBytes;

use crate::Ctx;
use crate::debugreg;
use crate::platform::{Platform, Shutdown};
use crate::regs::{CpuRegs, selector};
use crate::trap_table::Handler;

/// Virtual NMI state.
#[derive(Debug, Default)]
pub struct NmiState {
    /// One waits to be delivered.
    pub pending: bool,
    /// The guest is inside its handler (until iret).
    pub masked: bool,
}

/// Bit of [`crate::vcpu::Entry::attention`]: an NMI waits and is not masked.
pub const ATTENTION_NMI: u8 = 1;

/// Words every frame ends with: RIP, CS, RFLAGS, RSP, SS.
const TAIL: usize = 5;
/// Words the largest frame (failsafe) has before them.
const MAX_HEAD: usize = 6;

/// RFLAGS bits a handler does not inherit (Intel SDM 3A 6.12.1.3; AC as Xen does, and IOPL, which
/// is virtual).
const CLEARED: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC | rflags::IOPL;

/// Pushes `head` (lowest address first) and the tail, and makes the registers enter `to` in the
/// guest kernel.
#[inline]
fn enter<P: Platform, const HEAD: usize>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    head: [u64; HEAD],
    to: Handler,
) {
    const { assert!(HEAD <= MAX_HEAD) };
    let info = cx.vcpu.entry.info;
    let mask = info.evtchn_upcall_mask.load(Relaxed);
    let (stack, cs) = if regs.from_guest_user() {
        cx.plat.swapgs();
        (cx.vcpu.entry.kernel_sp, regs.cs)
    } else {
        (regs.rsp, u64::from(selector::GUEST_VIEW_KERNEL_CS))
    };
    let shown_if = if mask == 0 { rflags::IF } else { 0 };
    let mut frame = [0; MAX_HEAD + TAIL];
    frame[MAX_HEAD - HEAD..MAX_HEAD].copy_from_slice(&head);
    frame[MAX_HEAD..].copy_from_slice(&[
        regs.rip,
        cs | u64::from(mask) << 32,
        regs.rflags & !(rflags::IF | rflags::IOPL) | shown_iopl(cx) | shown_if,
        regs.rsp,
        regs.ss,
    ]);
    let frame = &frame[MAX_HEAD - HEAD..];
    let sp = (stack & !15).wrapping_sub(size_of_val(frame) as u64);
    if cx.plat.copy_to_guest(GuestVa(sp), frame.as_bytes()).is_err() {
        crash(cx, regs, "the guest kernel's stack cannot take an exception frame");
    }
    if to.address == 0 {
        crash(cx, regs, "exception or event without a guest handler");
    }
    if to.masks != 0 {
        info.evtchn_upcall_mask.store(1, Relaxed);
    }
    regs.rip = to.address;
    regs.cs = selector::KERNEL_CS.into();
    regs.rflags = regs.rflags & !CLEARED | rflags::IF;
    regs.rsp = sp;
    regs.ss = selector::KERNEL_SS.into();
}

/// The IOPL in the RFLAGS of a frame: the guest's, if it has asked for that.
#[inline]
fn shown_iopl<P: Platform>(cx: &Ctx<'_, P>) -> u64 {
    let shown = cx.dom.vm_assist.load(Relaxed) & 1 << VMASST_TYPE_ARCHITECTURAL_IOPL != 0;
    if shown { u64::from(cx.vcpu.control.iopl & 3) << 12 } else { 0 }
}

/// Ends the domain as Xen's `domain_crash` does.
#[cold]
#[inline(never)]
fn crash<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs, why: &'static str) -> ! {
    cx.plat.shutdown(Shutdown::DomainCrash(why), Some(regs))
}

/// Delivers an exception, or a software interrupt (`error_code` `None`, RIP behind the
/// instruction). A vector without a handler crashes the domain, whoever raised it, as on Xen.
#[inline]
pub fn exception<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    vector: u8,
    error_code: Option<u32>,
) {
    if vector == trap::NM {
        // Xen's do_device_not_available: the handler may use the FPU.
        cx.plat.set_ts(false);
    }
    let to = cx.vcpu.traps.handler(vector);
    match error_code {
        Some(code) => enter(cx, regs, [regs.rcx, regs.r11, code.into()], to),
        None => enter(cx, regs, [regs.rcx, regs.r11], to),
    }
}

/// Delivers a page fault. The error code's U bit is right as the processor gives it: ring 1 is a
/// supervisor level.
#[inline]
pub fn page_fault<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, cr2: u64, error_code: u32) {
    cx.vcpu.entry.info.arch.cr2.store(cr2, Relaxed);
    let to = cx.vcpu.traps.handler(trap::PF);
    enter(cx, regs, [regs.rcx, regs.r11, error_code.into()], to);
}

/// Delivers #DB; `dr6` is what the processor had there (the caller has reset it).
pub fn debug<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, dr6: u64) {
    debugreg::merge_dr6(&mut cx.vcpu.debugreg, dr6);
    exception(cx, regs, trap::DB, None);
}

/// Enters a system call handler.
#[inline]
fn enter_syscall<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, address: u64, masks: u8) {
    if address == 0 {
        // As if SYSCALL were disabled.
        regs.rip = regs.rip.wrapping_sub(2);
        return exception(cx, regs, trap::UD, None);
    }
    enter(cx, regs, [regs.rcx, regs.r11], Handler { address, masks });
    // Xen's virtual SYSCALL_MASK holds DF alone; the frame shows the caller's.
    regs.rflags &= !rflags::DF;
}

/// SYSCALL of a 64-bit program: `regs` show user mode, RIP = RCX, RFLAGS = R11, CS and SS those
/// SYSRET would load.
#[inline]
pub fn syscall<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    let entry = &cx.vcpu.entry;
    let (address, masks) = (entry.syscall_callback, entry.syscall_masks);
    enter_syscall(cx, regs, address, masks);
}

/// SYSCALL of a 32-bit program, as [`syscall`].
pub fn syscall32<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    let entry = &cx.vcpu.entry;
    let (address, masks) = (entry.syscall32_callback, entry.syscall32_masks);
    enter_syscall(cx, regs, address, masks);
}

/// SYSENTER: `regs` show user mode with RIP and RSP 0 (the processor saves neither), CS 3.
pub fn sysenter<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    let entry = &cx.vcpu.entry;
    let (address, masks) = (entry.sysenter_callback, entry.sysenter_masks);
    regs.rflags |= rflags::IF;
    if address == 0 {
        return exception(cx, regs, trap::GP, Some(0));
    }
    enter(cx, regs, [regs.rcx, regs.r11], Handler { address, masks });
}

/// The return to `regs` faulted (#GP, #NP or #SS at IRETQ) after everything was undone for it:
/// the failsafe callback says so to the guest kernel. `sel` are DS, ES, FS, GS; that they are the
/// ones in the processor tells the guest that the IRET was at fault and not they.
pub fn failsafe<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, sel: [u16; 4]) {
    let [ds, es, fs, gs] = sel.map(u64::from);
    let entry = &cx.vcpu.entry;
    let to = Handler { address: entry.failsafe_callback, masks: entry.failsafe_masks };
    enter(cx, regs, [regs.rcx, regs.r11, ds, es, fs, gs], to);
}

/// Makes an NMI pending on this vCPU.
pub fn raise_nmi<P: Platform>(cx: &mut Ctx<'_, P>) {
    cx.vcpu.nmi.pending = true;
    update_attention(cx);
}

/// Keeps the NMI's bit of `attention` equal to "pending and not masked".
pub(crate) fn update_attention<P: Platform>(cx: &mut Ctx<'_, P>) {
    let entry = &mut cx.vcpu.entry;
    if cx.vcpu.nmi.pending && !cx.vcpu.nmi.masked {
        entry.attention |= ATTENTION_NMI;
    } else {
        entry.attention &= !ATTENTION_NMI;
    }
}

/// What must happen before the guest goes on: a waiting NMI, then pending events. Called last
/// before every return to the guest.
#[inline]
pub fn exit_to_guest<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    let info = cx.vcpu.entry.info;
    if cx.vcpu.entry.attention & ATTENTION_NMI != 0 {
        deliver_nmi(cx, regs);
    }
    if info.evtchn_upcall_pending.load(Relaxed) != 0 && info.evtchn_upcall_mask.load(Relaxed) == 0 {
        let to = Handler { address: cx.vcpu.entry.event_callback, masks: 1 };
        enter(cx, regs, [regs.rcx, regs.r11], to);
    }
}

/// Delivers the waiting NMI; without a handler it is lost, as on Xen.
#[cold]
fn deliver_nmi<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    cx.vcpu.nmi.pending = false;
    let to = cx.vcpu.traps.handler(trap::NMI);
    if to.address != 0 {
        cx.vcpu.nmi.masked = true;
        enter(cx, regs, [regs.rcx, regs.r11], to);
    }
    update_attention(cx);
}

#[cfg(test)]
mod tests;
