//! Frames as the guest finds them, word for word, and what iret makes of them.

use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::arch::{IretContext, TrapInfo};
use xen_abi::callback::CallbackType;

use super::*;
use crate::fake::{Call, Machine, catch_shutdown, kernel_regs, user_regs, va};
use crate::iret::iret;
use crate::outcome::Outcome;
use crate::platform::GuestMemory;
use zerocopy::IntoBytes;

const HANDLER: u64 = 0xffff_ffff_8100_4000;
/// Top of the kernel stack of a guest process, not aligned on purpose.
const KERNEL_SP: u64 = va(7).0 + 0xff8;

fn machine() -> Machine {
    let mut machine = Machine::new();
    let vcpu = &mut machine.vcpus[0];
    for vector in 0..=255 {
        let flags = if vector == 14 { 4 } else { 0 };
        let address = HANDLER + u64::from(vector) * 16;
        vcpu.traps.set(&TrapInfo { vector, flags, cs: 0xe033, pad: 0, address });
    }
    vcpu.entry.kernel_sp = KERNEL_SP;
    vcpu.entry.event_callback = HANDLER + 0x2000;
    vcpu.entry.failsafe_callback = HANDLER + 0x3000;
    vcpu.entry.set_syscall_callback(HANDLER + 0x5000, true);
    machine.info().evtchn_upcall_mask.store(0, Relaxed);
    machine
}

fn mask(machine: &Machine) -> u8 {
    machine.info().evtchn_upcall_mask.load(Relaxed)
}

fn words(machine: &Machine, at: u64, count: u64) -> Vec<u64> {
    (0..count).map(|word| machine.plat.peek(GuestVa(at + word * 8))).collect()
}

fn in_kernel(regs: &CpuRegs, handler: u64) {
    assert_eq!((regs.rip, regs.cs, regs.ss), (handler, 0xe031, 0xe029));
}

#[test]
fn an_exception_of_a_program() {
    let mut machine = machine();
    let mut regs = CpuRegs { rcx: 0xc, r11: 0x11, rflags: 0x10746, rip: 0x40_1234, ..user_regs() };
    exception(&mut machine.cx(), &mut regs, 13, Some(0x18));
    let sp = (KERNEL_SP & !15) - 64;
    assert_eq!(
        words(&machine, sp, 8),
        [0xc, 0x11, 0x18, 0x40_1234, 0x33, 0x10746, 0x7fff_ffff_e000, 0x2b]
    );
    in_kernel(&regs, HANDLER + 13 * 16);
    assert_eq!((regs.rsp, regs.rflags), (sp, 0x646), "TF and RF are gone, DF stays");
    assert_eq!(machine.plat.calls(), [Call::Swapgs]);
    assert_eq!(mask(&machine), 0);
}

#[test]
fn an_exception_of_the_kernel() {
    let mut machine = machine();
    machine.info().evtchn_upcall_mask.store(1, Relaxed);
    let mut regs =
        CpuRegs { rcx: 0xc, r11: 0x11, rflags: 0x43246, rsp: va(1).0 + 0xf08, ..kernel_regs() };
    exception(&mut machine.cx(), &mut regs, 6, None);
    let sp = va(1).0 + 0xf00 - 56;
    assert_eq!(
        words(&machine, sp, 7),
        [0xc, 0x11, 0xffff_ffff_8100_0002, 0x1_0000_e030, 0x40046, va(1).0 + 0xf08, 0xe029],
        "CS has RPL 0 and the mask, RFLAGS neither IF nor IOPL"
    );
    in_kernel(&regs, HANDLER + 6 * 16);
    assert_eq!((regs.rsp, regs.rflags), (sp, 0x246), "AC and IOPL are gone, IF is on");
    assert!(machine.plat.calls().is_empty(), "no SWAPGS inside the kernel");
}

#[test]
fn a_page_fault_masks_if_the_table_says_so() {
    let mut machine = machine();
    let mut regs = user_regs();
    page_fault(&mut machine.cx(), &mut regs, 0xdead_b000, 6);
    assert_eq!(machine.info().arch.cr2.load(Relaxed), 0xdead_b000);
    assert_eq!(mask(&machine), 1);
    let frame = words(&machine, regs.rsp, 8);
    assert_eq!((frame[2], frame[4], frame[5]), (6, 0x33, 0x246), "the mask shown is the old one");
    in_kernel(&regs, HANDLER + 14 * 16);
}

#[test]
fn a_system_call() {
    let mut machine = machine();
    let mut regs = CpuRegs { rax: 39, rcx: 0x40_1000, r11: 0x646, rflags: 0x646, ..user_regs() };
    syscall(&mut machine.cx(), &mut regs);
    let sp = (KERNEL_SP & !15) - 56;
    assert_eq!(
        words(&machine, sp, 7),
        [0x40_1000, 0x646, 0x40_1000, 0x33, 0x646, 0x7fff_ffff_e000, 0x2b]
    );
    in_kernel(&regs, HANDLER + 0x5000);
    assert_eq!((regs.rsp, regs.rflags, regs.rax), (sp, 0x246, 39), "DF is cleared");
    assert_eq!(mask(&machine), 1);
}

#[test]
fn system_calls_without_a_handler_are_undefined() {
    let mut machine = machine();
    let mut regs = user_regs();
    syscall32(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 6 * 16);
    assert_eq!(words(&machine, regs.rsp, 3)[2], user_regs().rip - 2);
    let mut regs = user_regs();
    sysenter(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 13 * 16);
    assert_eq!(words(&machine, regs.rsp, 4)[2..], [0, user_regs().rip]);
}

#[test]
fn the_failsafe_frame() {
    let mut machine = machine();
    machine.vcpus[0].entry.failsafe_masks = 1;
    let mut regs = CpuRegs { rcx: 0xc, r11: 0x11, cs: 0x13, ss: 7, ..user_regs() };
    failsafe(&mut machine.cx(), &mut regs, [1, 2, 3, 4]);
    let sp = (KERNEL_SP & !15) - 88;
    assert_eq!(
        words(&machine, sp, 11),
        [0xc, 0x11, 1, 2, 3, 4, 0x40_1000, 0x13, 0x246, 0x7fff_ffff_e000, 7]
    );
    in_kernel(&regs, HANDLER + 0x3000);
    assert_eq!((regs.rsp, mask(&machine)), (sp, 1));
    assert_eq!(machine.plat.calls(), [Call::Swapgs], "the SWAPGS of the return is undone");
}

#[test]
fn events_wait_until_they_are_unmasked() {
    let mut machine = machine();
    let quiet = user_regs();
    let mut regs = quiet;
    exit_to_guest(&mut machine.cx(), &mut regs);
    assert_eq!(regs, quiet, "nothing is pending");
    machine.info().evtchn_upcall_pending.store(1, Relaxed);
    machine.info().evtchn_upcall_mask.store(1, Relaxed);
    exit_to_guest(&mut machine.cx(), &mut regs);
    assert_eq!(regs, quiet, "masked");
    machine.info().evtchn_upcall_mask.store(0, Relaxed);
    exit_to_guest(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 0x2000);
    assert_eq!(words(&machine, regs.rsp, 7)[2..4], [quiet.rip, 0x33]);
    assert_eq!(mask(&machine), 1);
    let entered = regs;
    exit_to_guest(&mut machine.cx(), &mut regs);
    assert_eq!(regs, entered, "once is enough");
}

#[test]
fn an_nmi_is_masked_until_iret() {
    let mut machine = machine();
    let mut regs = kernel_regs();
    machine.info().evtchn_upcall_pending.store(1, Relaxed);
    machine.info().evtchn_upcall_mask.store(1, Relaxed);
    raise_nmi(&mut machine.cx());
    assert_eq!(machine.vcpus[0].entry.attention, ATTENTION_NMI);
    exit_to_guest(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 2 * 16);
    assert_eq!(machine.vcpus[0].entry.attention, ATTENTION_IN_NMI);
    raise_nmi(&mut machine.cx());
    let inside = regs;
    exit_to_guest(&mut machine.cx(), &mut regs);
    assert_eq!(regs, inside, "not while the handler runs");
    // The handler returns by pushing RAX, R11, RCX, flags below the frame's tail.
    let frame = regs.rsp + 16;
    let context = [0, 0, 0, 0].into_iter().chain(words(&machine, frame, 5)).collect::<Vec<_>>();
    regs.rsp = frame - 32;
    machine.plat.copy_to_guest(GuestVa(regs.rsp), context.as_bytes()).unwrap();
    assert_eq!(iret(&mut machine.cx(), &mut regs), Outcome::Replaced);
    assert_eq!(regs.rip, kernel_regs().rip);
    assert_eq!(machine.vcpus[0].entry.attention, ATTENTION_NMI, "the second is due now");
    exit_to_guest(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 2 * 16);
}

#[test]
fn what_cannot_be_delivered_crashes_the_domain() {
    let mut machine = machine();
    let mut crash = |f: &mut dyn FnMut(&mut Ctx<'_, crate::fake::FakePlatform>)| {
        let result = catch_shutdown(|| f(&mut machine.cx()));
        assert!(matches!(result, Err(Shutdown::DomainCrash(_))), "{result:?}");
    };
    crash(&mut |cx| {
        cx.vcpu.entry.kernel_sp = 0x1000;
        exception(cx, &mut user_regs(), 13, Some(0));
    });
    crash(&mut |cx| {
        cx.vcpu.entry.kernel_sp = 0xffff_8000_0000_1000;
        exception(cx, &mut user_regs(), 13, Some(0));
    });
    crash(&mut |cx| exception(cx, &mut CpuRegs { rsp: 8, ..kernel_regs() }, 13, Some(0)));
    crash(&mut |cx| {
        cx.vcpu.entry.kernel_sp = KERNEL_SP;
        cx.vcpu.traps = Default::default();
        exception(cx, &mut user_regs(), 13, Some(0));
    });
    crash(&mut |cx| {
        iret(cx, &mut CpuRegs { rsp: 0x1000, ..kernel_regs() });
    });
}

#[test]
fn device_not_available_clears_ts() {
    let mut machine = machine();
    exception(&mut machine.cx(), &mut kernel_regs(), 7, None);
    assert_eq!(machine.plat.calls(), [Call::SetTs(false)]);
}

#[test]
fn the_iopl_is_shown_only_on_request() {
    let mut machine = machine();
    machine.vcpus[0].control.iopl = 3;
    let mut regs = user_regs();
    exception(&mut machine.cx(), &mut regs, 6, None);
    assert_eq!(words(&machine, regs.rsp, 5)[4], 0x246);
    machine.dom.vm_assist.store(1 << 4, Relaxed);
    let mut regs = user_regs();
    exception(&mut machine.cx(), &mut regs, 6, None);
    assert_eq!(words(&machine, regs.rsp, 5)[4], 0x3246);
}

/// Runs iret with a context at `va(3)`.
fn return_to(machine: &mut Machine, context: &IretContext) -> CpuRegs {
    machine.plat.copy_to_guest(va(3), context.as_bytes()).unwrap();
    let mut regs = CpuRegs { rsp: va(3).0, rcx: 0xdead, r11: 0xdead, ..kernel_regs() };
    assert_eq!(iret(&mut machine.cx(), &mut regs), Outcome::Replaced);
    regs
}

/// A program on Xen's flat segments is interrupted and goes on: its kernel sees Xen's selectors.
#[test]
fn flat_selectors_come_back_as_they_were_given() {
    let mut machine = machine();
    for (cs, ss) in [(0xe033, 0xe02b), (0x33, 0x2b), (0xe023, 0xe02b), (7, 0xf)] {
        let context = IretContext { cs, ss, rflags: 0x202, ..IretContext::default() };
        let mut regs = return_to(&mut machine, &context);
        exception(&mut machine.cx(), &mut regs, 3, None);
        let frame = words(&machine, regs.rsp, 7);
        assert_eq!((frame[3], frame[6]), (cs, ss));
    }
}

#[test]
fn iret_chooses_selectors() {
    let mut machine = machine();
    // (given CS, given SS) -> (CS, SS)
    let cases = [
        ((0xe030, 0xe02b), (0xe031, 0xe029)),
        ((0x10, 0x18), (0xe031, 0xe029)),
        ((0xe031, 0), (0xe031, 0xe029)),
        ((0x33, 0x2b), (0x33, 0x2b)),
        ((0x23, 0x2b), (0x23, 0x2b)),
        ((0xe023, 0xe02b), (0xe023, 0xe06b)),
        ((0xe033, 0xe02b), (0xe063, 0xe06b)),
        ((0xe063, 0xe06b), (0xe063, 0xe06b)),
        ((0x1_0000_0033, 0x2b), (0x33, 0x2b)),
        ((7, 0xf), (7, 0xf)),
    ];
    for ((cs, ss), expected) in cases {
        let context = IretContext { cs, ss, rflags: 0x202, ..IretContext::default() };
        let regs = return_to(&mut machine, &context);
        assert_eq!((regs.cs, regs.ss), expected, "{cs:#x} {ss:#x}");
        let swapped = machine.plat.calls() == [Call::Swapgs];
        assert_eq!(swapped, cs & 3 == 3);
    }
}

#[test]
fn iret_sanitises_flags() {
    let mut machine = machine();
    let context = |rflags| IretContext { cs: 0x33, ss: 0x2b, rflags, ..IretContext::default() };
    let all = return_to(&mut machine, &context(u64::MAX));
    assert_eq!(all.rflags, 0x25_4fd7, "no IOPL, VM, VIF, VIP; IF and bit 1 are on");
    assert_eq!(mask(&machine), 0);
    let none = return_to(&mut machine, &context(0));
    assert_eq!(none.rflags, 0x202);
    assert_eq!(mask(&machine), 1, "IF off means masked");
}

#[test]
fn iret_in_syscall_leaves_what_sysret_does() {
    let mut machine = machine();
    let context = IretContext {
        rax: 5,
        r11: 6,
        rcx: 7,
        flags: 1 << 8,
        rip: 0x40_2000,
        cs: 0x33,
        rflags: 0x246,
        rsp: 0x7000,
        ss: 0x2b,
    };
    let regs = return_to(&mut machine, &context);
    assert_eq!((regs.rax, regs.rcx, regs.r11), (5, 0x40_2000, 0x246));
    let regs = return_to(&mut machine, &IretContext { flags: 0, ..context });
    assert_eq!((regs.rax, regs.rcx, regs.r11), (5, 7, 6));
}

#[test]
fn registered_callbacks_are_used() {
    let mut machine = machine();
    let vcpu = &mut machine.vcpus[0];
    crate::callback::register(vcpu, CallbackType::SYSENTER, HANDLER + 0x6000, true).unwrap();
    let mut regs = user_regs();
    sysenter(&mut machine.cx(), &mut regs);
    in_kernel(&regs, HANDLER + 0x6000);
    assert_eq!(mask(&machine), 1);
}

#[test]
fn debug_exceptions_gather_in_dr6() {
    let mut machine = machine();
    debug(&mut machine.cx(), &mut user_regs(), 0xffff_4ff0);
    debug(&mut machine.cx(), &mut user_regs(), 0xffff_0ff1);
    assert_eq!(machine.vcpus[0].debugreg.dr[6], 0xffff_4ff1);
}

proptest! {
    /// What an exception frame says, iret restores, for programs and kernel alike.
    #[test]
    fn a_round_trip_restores_the_registers(
        registers in any::<[u64; 4]>(),
        flags in any::<u64>(),
        kernel: bool,
        masked: bool,
        vector: u8,
        code in any::<Option<u32>>(),
    ) {
        let mut machine = machine();
        machine.info().evtchn_upcall_mask.store(masked.into(), Relaxed);
        let [rax, rcx, r11, rip] = registers;
        let base = if kernel { kernel_regs() } else { user_regs() };
        let rflags = flags & 0x25_4dd5 | 0x202;
        let before = CpuRegs { rax, rcx, r11, rip, rflags, ..base };
        let mut regs = before;
        exception(&mut machine.cx(), &mut regs, vector, code);
        // A handler: takes RCX and R11 back, drops the error code, returns.
        let frame = words(&machine, regs.rsp, 8);
        let tail = if code.is_some() { &frame[3..] } else { &frame[2..7] };
        let context = IretContext {
            rax,
            r11: frame[1],
            rcx: frame[0],
            flags: 0,
            rip: tail[0],
            cs: tail[1],
            rflags: tail[2],
            rsp: tail[3],
            ss: tail[4],
        };
        machine.plat.copy_to_guest(va(3), context.as_bytes()).unwrap();
        regs.rsp = va(3).0;
        iret(&mut machine.cx(), &mut regs);
        prop_assert_eq!(regs, before);
        prop_assert_eq!(mask(&machine), u8::from(masked));
        let swaps = machine.plat.calls().into_iter().filter(|call| *call == Call::Swapgs).count();
        prop_assert_eq!(swaps, if kernel { 0 } else { 2 });
    }

    #[test]
    fn iret_takes_anything(words in any::<[u64; 9]>()) {
        let mut machine = machine();
        machine.plat.copy_to_guest(va(3), words.as_bytes()).unwrap();
        let mut regs = CpuRegs { rsp: va(3).0, ..kernel_regs() };
        iret(&mut machine.cx(), &mut regs);
        prop_assert_eq!(regs.rflags & 0x20_3202, 0x202 | regs.rflags & 0x20_0000);
        let kernel = words[5] & 3 != 3;
        prop_assert_eq!(regs.from_guest_user(), !kernel);
        prop_assert!(!kernel || regs.cs == 0xe031 && regs.ss == 0xe029);
    }
}
