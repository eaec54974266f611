//! Entry to ring 0 and return to the guest.
//!
//! Interrupts are on only while guest code runs and in the idle HLT, so nothing here nests but
//! faults of guarded accesses, and exceptions that ignore IF (NMI, #MC, #DB), which have their own
//! stacks and only take notes when they hit ring 0.

mod fast;
mod irq;
mod ring0;

use core::arch::{asm, global_asm};
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicBool, Ordering};

use translate::outcome::Outcome;
use translate::regs::{CpuRegs, selector};
use translate::sched::Wait;
use translate::{Ctx, bounce, dispatch, emulate, sched, vcpu_start};
use xen_abi::arch::flat;
use xen_abi::hypercall::HypercallNr;
use xen_abi::mm::DomId;
use xen_abi::shared_info::VcpuInfo;

use crate::cpu::idt;
use crate::cpu::percpu::{self, PerCpu};
use crate::devices;
use crate::mm::layout::{MAX_VCPUS, PERCPU_BASE, PERCPU_STRIDE};
use crate::platform::Shim;

/// RFLAGS a callback starts with: IF and the reserved bit.
const KERNEL_RFLAGS: u64 = 0x202;
/// RFLAGS bits the fast return to user mode looks at: TF IF NT IOPL RF VM VIF VIP.
const IRET_RFLAGS_MASK: u32 = 0x001b_7300;

global_asm!(
    include_str!("entry.S"),
    pc_user_rsp = const offset_of!(PerCpu, user_rsp),
    pc_stack_top = const offset_of!(PerCpu, stack_top),
    pc_emergency_top = const offset_of!(PerCpu, emergency_top),
    pc_hypercall = const percpu::HANDLERS + offset_of!(percpu::Handlers, hypercall),
    pc_fast_mmu_update = const percpu::HANDLERS + offset_of!(percpu::Handlers, fast_mmu_update),
    pc_fast_mmuext_op = const percpu::HANDLERS + offset_of!(percpu::Handlers, fast_mmuext_op),
    pc_fast_stack_switch = const percpu::HANDLERS + offset_of!(percpu::Handlers, fast_stack_switch),
    pc_fast_set_segment_base = const percpu::HANDLERS + offset_of!(percpu::Handlers, fast_set_segment_base),
    pc_exit = const percpu::HANDLERS + offset_of!(percpu::Handlers, exit),
    nr_mmu_update = const HypercallNr::mmu_update.0,
    nr_mmuext_op = const HypercallNr::mmuext_op.0,
    nr_stack_switch = const HypercallNr::stack_switch.0,
    nr_set_segment_base = const HypercallNr::set_segment_base.0,
    domid_self = const DomId::SELF.0,
    plain_list = const translate::mmu::PLAIN_LIST,
    page_fault_from_guest = sym page_fault_from_guest,
    pc_user_syscall = const percpu::HANDLERS + offset_of!(percpu::Handlers, user_syscall),
    pc_trap_exit = const percpu::HANDLERS + offset_of!(percpu::Handlers, trap_exit),
    pc_info = const percpu::offset::INFO,
    pc_kernel_sp = const percpu::offset::KERNEL_SP,
    pc_attention = const percpu::offset::ATTENTION,
    pc_fast_syscall = const percpu::offset::FAST_SYSCALL,
    info_pending = const offset_of!(VcpuInfo, evtchn_upcall_pending),
    info_mask = const offset_of!(VcpuInfo, evtchn_upcall_mask),
    user_ss = const selector::USER_SS,
    user_cs = const selector::USER_CS64,
    user_ss_flat = const selector::USER_SS_FLAT,
    user_cs_flat = const selector::USER_CS64_FLAT,
    user_cs32 = const selector::USER_CS32,
    xen_user_ss = const flat::RING3_DS32,
    xen_user_cs = const flat::RING3_CS64,
    kernel_ss = const selector::KERNEL_SS,
    kernel_cs = const selector::KERNEL_CS,
    kernel_rflags = const KERNEL_RFLAGS,
    iret_rflags_mask = const IRET_RFLAGS_MASK,
    nr_iret = const HypercallNr::iret.0,
    r_cs = const offset_of!(CpuRegs, cs),
    r_rip = const offset_of!(CpuRegs, rip),
    regs_size = const size_of::<CpuRegs>(),
    percpu_base = const PERCPU_BASE,
    percpu_stride = const PERCPU_STRIDE,
    percpu_size = const PERCPU_STRIDE * MAX_VCPUS as u64,
    trap_from_guest = sym trap_from_guest,
    trap_from_ring0 = sym ring0::trap_from_ring0,
    ist_from_ring0 = sym ring0::ist_from_ring0,
    iret_failed = sym iret_failed,
);

unsafe extern "C" {
    static trap_exit: u8;
    fn enter_guest(regs: *mut CpuRegs) -> !;
    fn idle_hlt();
}

/// The entry pointers of a vCPU area.
pub fn handlers() -> percpu::Handlers {
    percpu::Handlers {
        hypercall,
        fast_mmu_update: fast::mmu_update,
        fast_mmuext_op: fast::mmuext_op,
        fast_stack_switch: fast::stack_switch,
        fast_set_segment_base: fast::set_segment_base,
        exit: exit_entry,
        user_syscall,
        trap_exit: (&raw const trap_exit) as u64,
    }
}

/// The frame a stub built and the processor's area, as references.
///
/// # Safety
/// The stub's own arguments, and no other reference to either is live.
#[inline(always)]
unsafe fn own<'a>(regs: *mut CpuRegs, pc: *mut PerCpu) -> (&'a mut CpuRegs, &'a mut PerCpu) {
    // SAFETY: the caller's promise.
    let regs = unsafe { &mut *regs };
    // SAFETY: the caller's promise.
    (regs, unsafe { &mut *pc })
}

/// Starts the guest on this processor.
///
/// # Safety
/// The processor must be set up ([`crate::cpu::init`]), `pc` its area, `regs` a guest context.
pub unsafe fn start(pc: *mut PerCpu, regs: CpuRegs) -> ! {
    // SAFETY: the caller's promise: the area is this processor's.
    let top = unsafe { (*pc).stack_top };
    let frame = (top - size_of::<CpuRegs>() as u64) as *mut CpuRegs;
    // SAFETY: the top of the vCPU's stack, which is mapped and unused.
    unsafe { frame.write(regs) };
    // SAFETY: a complete frame on the vCPU's stack.
    unsafe { enter_guest(frame) }
}

/// Runs `f` with what a translation handler needs.
#[inline(always)]
fn with_ctx<'a, R>(pc: &'a mut PerCpu, f: impl FnOnce(&mut Ctx<'_, Shim<'a>>) -> R) -> R {
    let plat = Shim { cpu: &pc.cpu };
    let mut cx = Ctx { dom: crate::guest::domain(), vcpu: &mut pc.vcpu, plat: &plat };
    f(&mut cx)
}

/// A hypercall, from the stub.
unsafe extern "C" fn hypercall(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: the stub passes the frame it just built, which nothing else refers to.
    let regs = unsafe { &mut *regs };
    crate::trace::record(regs.rax | 0x1000, regs.rip, regs.rdi);
    let outcome = {
        // SAFETY: the processor's own area; no other reference to it is live on entry from the guest.
        let pc = unsafe { &mut *pc };
        with_ctx(pc, |cx| dispatch::hypercall(cx, regs))
    };
    match outcome {
        Outcome::Return(value) => regs.rax = value as u64,
        Outcome::Continue => {
            regs.rip -= 2;
        }
        // SAFETY: as above.
        Outcome::Replaced => look_again(unsafe { &mut *pc }),
        Outcome::Block => {
            // SAFETY: as above; the reference ends with the statement.
            keep_back(unsafe { &mut *pc });
            // SAFETY: as above; `block` makes its references one at a time.
            regs.rax = unsafe { block(pc) } as u64;
        }
    }
    // SAFETY: as above.
    let pc = unsafe { &mut *pc };
    if pc.cpu.holds_now.get() {
        // Not in this hypercall: its neighbour may come with the next.
        pc.vcpu.entry.attention &= !bounce::ATTENTION_PUT_OFF;
        exit_to_guest(pc, regs);
        keep_back(pc);
        return;
    }
    exit_to_guest(pc, regs);
}

/// What the call made a backend hold waits until the guest next comes by.
fn keep_back(pc: &mut PerCpu) {
    if pc.cpu.holds_now.take() {
        pc.vcpu.entry.attention |= bounce::ATTENTION_PUT_OFF;
    }
}

/// Does what was put off until the guest next came by.
#[cold]
#[inline(never)]
fn put_off(pc: &mut PerCpu) {
    pc.vcpu.entry.attention &= !bounce::ATTENTION_PUT_OFF;
    devices::release(&pc.cpu);
}

/// [`put_off`] if something was.
#[inline(always)]
fn come_by(pc: &mut PerCpu) {
    if pc.vcpu.entry.attention & bounce::ATTENTION_PUT_OFF != 0 {
        put_off(pc);
    }
}

/// After signals of the host's: the processor stays with what they came from if the guest has an
/// event to deal with, for it comes by when it has.
fn stay(pc: &mut PerCpu) {
    pc.vcpu.entry.attention |= bounce::ATTENTION_LINGER;
    // A vCPU that is down does not come by.
    if !bounce::is_event_pending(&pc.vcpu.entry) || pc.vcpu.wait == Wait::Down {
        leave(pc);
    }
}

/// The guest may be done with what the host sent: the host's next is taken, or it signals again.
#[inline(always)]
fn look_again(pc: &mut PerCpu) {
    if pc.vcpu.entry.attention & bounce::ATTENTION_LINGER != 0 {
        linger(pc);
    }
}

/// [`look_again`] if it stayed.
#[cold]
#[inline(never)]
fn linger(pc: &mut PerCpu) {
    if !devices::linger(&pc.cpu) {
        pc.vcpu.entry.attention &= !bounce::ATTENTION_LINGER;
    } else if !bounce::is_event_pending(&pc.vcpu.entry) {
        leave(pc);
    }
}

/// The host signals again.
#[cold]
#[inline(never)]
fn leave(pc: &mut PerCpu) {
    pc.vcpu.entry.attention &= !bounce::ATTENTION_LINGER;
    devices::leave(&pc.cpu);
}

/// Waits until the vCPU's wait is over; returns the hypercall's result.
///
/// # Safety
/// `pc` must be the processor's area with no live reference to it.
#[cold]
#[inline(never)]
unsafe fn block(pc: *mut PerCpu) -> i64 {
    // SAFETY: interrupts are off, so no handler has a reference.
    come_by(unsafe { &mut *pc });
    loop {
        {
            // SAFETY: interrupts are off, so no handler has a reference.
            let pc = unsafe { &mut *pc };
            take_nmi(pc);
            if let Some(value) = with_ctx(pc, sched::wake_check) {
                return value;
            }
            // The event that it stayed for may not be what the guest waits for.
            if pc.vcpu.entry.attention & bounce::ATTENTION_LINGER != 0 {
                leave(pc);
                continue;
            }
        }
        // SAFETY: as above.
        crate::time::before_halt(unsafe { &(*pc).cpu });
        let halted = crate::time::rdtsc();
        // SAFETY: as above.
        unsafe { &(*pc).cpu }.doze();
        // SAFETY: the interrupt handler may use the area now: no reference is held across this.
        unsafe { idle_hlt() };
        // SAFETY: interrupts are off again.
        let cpu = unsafe { &(*pc).cpu };
        // The interrupt's handler has done so, but not an NMI's.
        cpu.wake();
        cpu.halted_ns.set(cpu.halted_ns.get() + crate::time::since(halted));
    }
}

/// Another vCPU has put this one down.
#[cold]
#[inline(never)]
fn stay_down(pc: &mut PerCpu) {
    // SAFETY: the processor's own area; the caller's reference is not used meanwhile.
    unsafe { block(pc) };
}

/// Another vCPU wants this one to look: at its events on the way out, and at what was asked of it.
fn kicked(pc: &mut PerCpu) {
    crate::cpu::smp::stop_if_ended(pc.cpu.id);
    // One that waits obeys before it halts again.
    if pc.vcpu.wait == Wait::No {
        with_ctx(pc, vcpu_start::obey);
    }
}

/// Halts until an interrupt, which has been handled then.
pub fn halt() {
    // SAFETY: interrupts are on for the HLT alone; the caller holds no reference to the area.
    unsafe { idle_hlt() };
}

/// An NMI that hit ring 0 becomes the guest's.
#[inline(always)]
fn take_nmi(pc: &mut PerCpu) {
    if pc.cpu.nmi_seen.get() {
        pc.cpu.nmi_seen.set(false);
        with_ctx(pc, bounce::raise_nmi);
    }
}

/// The last thing before a return to the guest: notes of ring 0 become the guest's, then events.
#[inline(always)]
fn exit_to_guest(pc: &mut PerCpu, regs: &mut CpuRegs) {
    if pc.cpu.nmi_seen.get() || bounce::must_deliver(&pc.vcpu.entry) {
        deliver(pc, regs);
    }
}

/// [`exit_to_guest`] when there is something.
#[inline(never)]
fn deliver(pc: &mut PerCpu, regs: &mut CpuRegs) {
    come_by(pc);
    take_nmi(pc);
    with_ctx(pc, |cx| bounce::exit_to_guest(cx, regs));
}

/// [`exit_to_guest`] after a fast hypercall.
unsafe extern "C" fn exit_entry(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: as in `hypercall`.
    let (regs, pc) = unsafe { own(regs, pc) };
    exit_to_guest(pc, regs);
}

/// A page fault of the guest.
unsafe extern "C" fn page_fault_from_guest(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: the stub built the frame on this vCPU's stack; nothing else is live.
    let (regs, pc) = unsafe { own(regs, pc) };
    let cr2 = crate::cpu::read_cr2();
    let error = regs.error_code;
    crate::trace::record(14, regs.rip, cr2);
    with_ctx(pc, |cx| bounce::page_fault(cx, regs, cr2, error));
    exit_to_guest(pc, regs);
}

/// The domain's first kernel runs in the lower half of the address space, as PvGrub's and Mini-OS do.
static KERNEL_IS_LOW: AtomicBool = AtomicBool::new(false);

/// Says where the domain's first kernel runs.
pub fn set_kernel_entry(rip: u64) {
    KERNEL_IS_LOW.store(rip >> 63 == 0, Ordering::Relaxed);
}

/// Whether the domain's first kernel runs in the lower half.
pub fn is_kernel_low() -> bool {
    KERNEL_IS_LOW.load(Ordering::Relaxed)
}

/// A SYSCALL from the lower half that the fast path leaves alone: a system call of user mode, or, of
/// a kernel that lives there and has no handler for system calls and so no user mode, a hypercall.
/// The kernel that such a one starts in its place, as PvGrub does, has one before it has a process.
unsafe extern "C" fn user_syscall(regs: *mut CpuRegs, pc: *mut PerCpu) {
    if is_kernel_low() {
        // SAFETY: as in `hypercall`; the references end here.
        let (regs, pc) = unsafe { own(regs, pc) };
        if regs.error_code == CpuRegs::VECTOR_SYSCALL && pc.vcpu.entry.syscall_callback == 0 {
            regs.cs = selector::KERNEL_CS.into();
            regs.ss = selector::KERNEL_SS.into();
            // SAFETY: the frame is the one of a hypercall now.
            return unsafe { hypercall(regs, pc) };
        }
    }
    // SAFETY: as in `hypercall`.
    let (regs, pc) = unsafe { own(regs, pc) };
    with_ctx(pc, |cx| match regs.error_code {
        CpuRegs::SYSCALL32 => bounce::syscall32(cx, regs),
        CpuRegs::SYSENTER => bounce::sysenter(cx, regs),
        _ => bounce::syscall(cx, regs),
    });
    exit_to_guest(pc, regs);
}

/// The final IRETQ did not take the guest's frame.
unsafe extern "C" fn iret_failed(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: `regs` was rebuilt at the top of this vCPU's stack; nothing else is live.
    let (regs, pc) = unsafe { own(regs, pc) };
    with_ctx(pc, |cx| {
        let selectors = crate::platform::data_selectors();
        bounce::failsafe(cx, regs, selectors);
    });
    exit_to_guest(pc, regs);
}

/// An exception or interrupt while the guest ran; page faults have their own way.
unsafe extern "C" fn trap_from_guest(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: the stub built the frame on this vCPU's stack; nothing else is live.
    let (regs, pc) = unsafe { own(regs, pc) };
    let vector = regs.vector;
    crate::trace::record(vector.into(), regs.rip, regs.error_code.into());
    if vector == 13 && with_ctx(pc, |cx| emulate::read_segment_base(cx, regs)) {
        // Linux saves the user's GS base so at every switch of processes.
    } else if vector >= idt::vector::FIRST_IRQ {
        irq::handle(vector as u8, pc);
        if pc.vcpu.wait != Wait::No {
            stay_down(pc);
        }
    } else {
        exception(regs, pc);
    }
    exit_to_guest(pc, regs);
}

/// Exceptions other than page faults.
#[inline(never)]
fn exception(regs: &mut CpuRegs, pc: &mut PerCpu) {
    let vector = regs.vector as u8;
    let error = idt::has_error_code(vector).then_some(regs.error_code);
    match vector {
        1 => {
            let dr6 = take_dr6() | pc.cpu.debug_seen.take();
            with_ctx(pc, |cx| bounce::debug(cx, regs, dr6));
            return;
        }
        2 => {
            pc.cpu.nmi_seen.set(true);
            return;
        }
        18 => {
            crate::log!(Error, "machine check while the guest ran, at {:#x}", regs.rip);
        }
        // No INT n of a program's comes through a closed gate.
        32.. if !idt::is_user(vector) => return irq::stray(vector),
        _ => {}
    }
    with_ctx(pc, |cx| {
        let emulated = match vector {
            6 => emulate::invalid_opcode(cx, regs),
            13 => emulate::general_protection(cx, regs, regs.error_code),
            _ => emulate::Emulation::Bounce { vector, error_code: error },
        };
        if let emulate::Emulation::Bounce { vector, error_code } = emulated {
            bounce::exception(cx, regs, vector, error_code);
        }
    });
}

/// Reads DR6 and resets it.
fn take_dr6() -> u64 {
    let value: u64;
    // SAFETY: DR6 only reports.
    unsafe {
        asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) value, in(reg) 0xffff_0ff0_u64,
            options(nomem, nostack, preserves_flags));
    }
    value
}
