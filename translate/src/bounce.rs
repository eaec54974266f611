//! Exceptions, events and callbacks delivered to the guest with the frames Xen builds
//! (`docs/traps.md` has the pictures). Each is one write to the guest kernel's stack and a change
//! of the saved registers; the entry path's return then lands in the guest's handler.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::GuestVa;
use xen_abi::arch::{rflags, vector as trap};
use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;

use crate::Ctx;
use crate::debugreg;
use crate::platform::{Platform, Shutdown};
use crate::regs::{CpuRegs, selector};
use crate::trap_table::Handler;
use crate::vcpu::Entry;

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
/// Bit of `attention`: the guest is in its NMI handler, which the next iret ends. The assembly's
/// fast iret does not know that and must leave it to [`crate::iret`].
pub const ATTENTION_IN_NMI: u8 = 2;
/// Bit of `attention`: ring 0 has put something off until the guest next comes by. It sets and clears
/// the bit.
pub const ATTENTION_PUT_OFF: u8 = 4;
/// Bit of `attention`: ring 0 looks again at what the event came from, when its handler ends. It
/// sets and clears the bit.
pub const ATTENTION_LINGER: u8 = 8;

/// RFLAGS bits a handler does not inherit (Intel SDM 3A 6.12.1.3; AC as Xen does, and IOPL, which
/// is virtual).
const CLEARED: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC | rflags::IOPL;

/// What every frame ends with, and where it goes.
struct Tail {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    /// The guest kernel's stack pointer before the frame.
    stack: u64,
}

impl Tail {
    /// Leaves user mode, if that is where the guest was.
    #[inline(always)]
    fn of<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs) -> Self {
        let mask = cx.vcpu.entry.info.evtchn_upcall_mask.load(Relaxed);
        let (stack, cs, ss) = if regs.from_guest_user() {
            cx.plat.swapgs();
            (cx.vcpu.entry.kernel_sp, selector::shown_cs(regs.cs), selector::shown_ss(regs.ss))
        } else {
            (regs.rsp, u64::from(selector::GUEST_VIEW_KERNEL_CS), regs.ss)
        };
        let shown_if = if mask == 0 { rflags::IF } else { 0 };
        Self {
            rip: regs.rip,
            cs: cs | u64::from(mask) << 32,
            rflags: regs.rflags & !(rflags::IF | rflags::IOPL) | shown_iopl(cx) | shown_if,
            rsp: regs.rsp,
            ss,
            stack: stack & !15,
        }
    }
}

/// Pushes a frame, lowest address first, and makes the registers enter `to` in the guest kernel.
#[inline(always)]
fn enter<P: Platform, const WORDS: usize>(
    cx: &Ctx<'_, P>,
    regs: &mut CpuRegs,
    stack: u64,
    frame: [u64; WORDS],
    to: Handler,
) {
    let sp = stack.wrapping_sub(WORDS as u64 * 8);
    if cx.plat.write_words(GuestVa(sp), frame).is_err() {
        crash(cx, regs, "the guest kernel's stack cannot take an exception frame");
    }
    if to.address == 0 {
        crash(cx, regs, "exception or event without a guest handler");
    }
    if to.masks != 0 {
        cx.vcpu.entry.info.evtchn_upcall_mask.store(1, Relaxed);
    }
    regs.rip = to.address;
    regs.cs = selector::KERNEL_CS.into();
    regs.rflags = regs.rflags & !CLEARED | rflags::IF;
    regs.rsp = sp;
    regs.ss = selector::KERNEL_SS.into();
}

/// Enters a handler of something without an error code.
fn enter_plain<P: Platform>(cx: &Ctx<'_, P>, regs: &mut CpuRegs, to: Handler) {
    let tail = Tail::of(cx, regs);
    let frame = [regs.rcx, regs.r11, tail.rip, tail.cs, tail.rflags, tail.rsp, tail.ss];
    enter(cx, regs, tail.stack, frame, to);
}

/// Enters a handler of something with an error code.
#[inline]
fn enter_with_code<P: Platform>(cx: &Ctx<'_, P>, regs: &mut CpuRegs, code: u32, to: Handler) {
    let tail = Tail::of(cx, regs);
    let frame =
        [regs.rcx, regs.r11, code.into(), tail.rip, tail.cs, tail.rflags, tail.rsp, tail.ss];
    enter(cx, regs, tail.stack, frame, to);
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
        crate::emulate::set_ts(cx, false);
    }
    let to = cx.vcpu.traps.handler(vector);
    match error_code {
        Some(code) => enter_with_code(cx, regs, code, to),
        None => enter_plain(cx, regs, to),
    }
}

/// Delivers a page fault. The error code's U bit is right as the processor gives it: ring 1 is a
/// supervisor level.
#[inline]
pub fn page_fault<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, cr2: u64, error_code: u32) {
    cx.vcpu.entry.info.arch.cr2.store(cr2, Relaxed);
    let to = cx.vcpu.traps.handler(trap::PF);
    enter_with_code(cx, regs, error_code, to);
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
    enter_plain(cx, regs, Handler { address, masks });
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
    enter_plain(cx, regs, Handler { address, masks });
}

/// The return to `regs` faulted (#GP, #NP or #SS at IRETQ) after everything was undone for it:
/// the failsafe callback says so to the guest kernel. `sel` are DS, ES, FS, GS; that they are the
/// ones in the processor tells the guest that the IRET was at fault and not they.
pub fn failsafe<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, sel: [u16; 4]) {
    let [ds, es, fs, gs] = sel.map(u64::from);
    let entry = &cx.vcpu.entry;
    let to = Handler { address: entry.failsafe_callback, masks: entry.failsafe_masks };
    let Tail { rip, cs, rflags, rsp, ss, stack } = Tail::of(cx, regs);
    let frame = [regs.rcx, regs.r11, ds, es, fs, gs, rip, cs, rflags, rsp, ss];
    enter(cx, regs, stack, frame, to);
}

/// Makes an NMI pending on this vCPU.
pub fn raise_nmi<P: Platform>(cx: &mut Ctx<'_, P>) {
    cx.vcpu.nmi.pending = true;
    update_attention(cx);
}

/// Makes `attention` say what the NMI state is.
pub(crate) fn update_attention<P: Platform>(cx: &mut Ctx<'_, P>) {
    let bits = match (cx.vcpu.nmi.masked, cx.vcpu.nmi.pending) {
        (true, _) => ATTENTION_IN_NMI,
        (false, true) => ATTENTION_NMI,
        (false, false) => 0,
    };
    let entry = &mut cx.vcpu.entry;
    entry.attention = entry.attention & !(ATTENTION_NMI | ATTENTION_IN_NMI) | bits;
}

/// Whether [`exit_to_guest`] has anything to do, or what was put off is due.
#[inline(always)]
#[must_use]
pub fn must_deliver(entry: &Entry) -> bool {
    entry.attention & (ATTENTION_NMI | ATTENTION_PUT_OFF) != 0 || event_waits(entry)
}

/// Whether events are pending and not masked.
#[inline(always)]
fn event_waits(entry: &Entry) -> bool {
    is_event_pending(entry) && entry.info.evtchn_upcall_mask.load(Relaxed) == 0
}

/// Whether events are pending, masked or not.
#[inline(always)]
#[must_use]
pub fn is_event_pending(entry: &Entry) -> bool {
    entry.info.evtchn_upcall_pending.load(Relaxed) != 0
}

/// What must happen before the guest goes on: a waiting NMI, then pending events. Called last
/// before every return to the guest.
pub fn exit_to_guest<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    if cx.vcpu.entry.attention & ATTENTION_NMI != 0 {
        deliver_nmi(cx, regs);
    }
    if event_waits(&cx.vcpu.entry) {
        let to = Handler { address: cx.vcpu.entry.event_callback, masks: 1 };
        enter_plain(cx, regs, to);
    }
}

/// Delivers the waiting NMI; without a handler it is lost, as on Xen.
#[cold]
fn deliver_nmi<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) {
    cx.vcpu.nmi.pending = false;
    let to = cx.vcpu.traps.handler(trap::NMI);
    if to.address != 0 {
        cx.vcpu.nmi.masked = true;
        enter_plain(cx, regs, to);
    }
    update_attention(cx);
}

#[cfg(test)]
mod tests;
