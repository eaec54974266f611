//! Ports: who may use them, and what is there.

use core::sync::atomic::Ordering::Relaxed;
use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::{CODE, GP, db, machine, pf, regs_at, run};
use crate::debugreg;
use crate::emulate::{Emulation, general_protection};
use crate::fake::{kernel_regs, user_regs, va};
use crate::platform::GuestMemory;
use crate::regs::CpuRegs;

#[test]
fn ports_nobody_claims() {
    let mut machine = machine();
    let mut regs = CpuRegs { rax: 0x1122_3344_5566_7788, rdx: 0xcfc, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0xec]), Emulation::Done);
    assert_eq!(regs.rax, 0x1122_3344_5566_77ff);
    assert_eq!(run(&mut machine, &mut regs, &[0x66, 0xed]), Emulation::Done);
    assert_eq!(regs.rax, 0x1122_3344_5566_ffff);
    assert_eq!(run(&mut machine, &mut regs, &[0xed]), Emulation::Done);
    assert_eq!(regs.rax, 0xffff_ffff);
    for code in [&[0xeeu8][..], &[0xef], &[0xe6, 0x80], &[0x66, 0xe7, 0x80], &[0xfa], &[0xfb]] {
        let before = regs;
        assert_eq!(run(&mut machine, &mut regs, code), Emulation::Done);
        assert_eq!(CpuRegs { rip: 0, ..regs }, CpuRegs { rip: 0, ..before });
    }
    assert_eq!(machine.plat.calls(), []);
}

#[test]
fn the_timer_has_always_run_out() {
    let mut machine = machine();
    let mut regs = kernel_regs();
    // As Linux' quick_pit_calibrate begins.
    run(&mut machine, &mut regs, &[0xe4, 0x61]);
    assert_eq!(regs.rax & 0xff, 0x20);
    regs.rax = 0x21;
    run(&mut machine, &mut regs, &[0xe6, 0x61]);
    run(&mut machine, &mut regs, &[0xe6, 0x42]);
    run(&mut machine, &mut regs, &[0xe4, 0x42]);
    assert_eq!(regs.rax & 0xff, 0);
    run(&mut machine, &mut regs, &[0xe4, 0x61]);
    assert_eq!(regs.rax & 0xff, 0x21);
    run(&mut machine, &mut regs, &[0xe5, 0x40]);
    assert_eq!(regs.rax, 0xff00_ffff);
    regs.rax = 0x0200_0000;
    run(&mut machine, &mut regs, &[0xe7, 0x5e]);
    run(&mut machine, &mut regs, &[0xe5, 0x60]);
    assert_eq!(regs.rax, 0xffff_22ff);
}

#[test]
fn ports_need_iopl() {
    for code in [&[0xecu8][..], &[0xee], &[0x6c], &[0x6e], &[0xfa], &[0xfb]] {
        let mut machine = machine();
        machine.vcpus[0].control.iopl = 0;
        let mut regs = kernel_regs();
        assert_eq!(run(&mut machine, &mut regs, code), GP);
        if code[0] < 0x70 {
            continue;
        }
        machine.dom.vm_assist.store(1 << VMASST_TYPE_ARCHITECTURAL_IOPL, Relaxed);
        assert_eq!(run(&mut machine, &mut regs, code), Emulation::Done);
    }
}

#[test]
fn user_mode_gets_ports_under_iopl_3_and_nothing_else() {
    let mut machine = machine();
    let mut regs = user_regs();
    assert_eq!(run(&mut machine, &mut regs, &[0xec]), GP);
    machine.vcpus[0].control.iopl = 3;
    assert_eq!(run(&mut machine, &mut regs, &[0xec]), Emulation::Done);
    assert_eq!(run(&mut machine, &mut regs, &[0xfa]), Emulation::Done);
    for code in
        [&[0x6cu8][..], &[0x6e], &[0x0f, 0x06], &[0x0f, 0x32], &[0x0f, 0x20, 0xc0], &[0x0f, 0xa2]]
    {
        assert_eq!(run(&mut machine, &mut regs, code), GP);
    }
    regs.cs = 0x0f;
    assert_eq!(run(&mut machine, &mut regs, &[0xec]), GP);
    assert_eq!(machine.plat.calls(), []);
}

#[test]
fn strings() {
    let mut machine = machine();
    let mut regs = CpuRegs { rdi: va(20).0 + 1, rcx: 3, rdx: 0x60, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0x66, 0xf3, 0x6d]), Emulation::Done);
    assert_eq!((regs.rdi, regs.rcx), (va(20).0 + 7, 0));
    assert_eq!(machine.plat.peek(va(20)), 0x0020_ff20_ff20_ff00);
    // Without a prefix, RCX does not matter; backwards.
    regs.rflags |= 1 << 10;
    assert_eq!(run(&mut machine, &mut regs, &[0x6c]), Emulation::Done);
    assert_eq!((regs.rdi, regs.rcx), (va(20).0 + 6, 0));
    // Nothing to do.
    assert_eq!(run(&mut machine, &mut regs, &[0xf3, 0x6c]), Emulation::Done);
    assert_eq!(regs.rdi, va(20).0 + 6);
    // Out: the last byte counts.
    machine.plat.copy_to_guest(va(21), &[1, 2, 3]).unwrap();
    regs = CpuRegs { rsi: va(21).0, rcx: 3, rdx: 0x61, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0xf3, 0x6e]), Emulation::Done);
    assert_eq!(machine.vcpus[0].control.speaker, 3);
    // A segment base counts, a flat one does not.
    machine.plat.state().fs_base = va(21).0;
    regs = CpuRegs { rsi: 1, rdx: 0x61, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0x64, 0x6e]), Emulation::Done);
    assert_eq!(machine.vcpus[0].control.speaker, 2);
}

#[test]
fn strings_that_fault_keep_what_was_done() {
    let mut machine = machine();
    let end = va(64).0;
    let mut regs = CpuRegs { rdi: end - 6, rcx: 4, rdx: 0x80, ..regs_at(CODE) };
    machine.plat.copy_to_guest(CODE, &[0xf3, 0x6d]).unwrap();
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), pf(2));
    assert_eq!((regs.rip, regs.rdi, regs.rcx), (CODE.0, end - 2, 3));
    assert_eq!(machine.info().arch.cr2.load(Relaxed), end, "the page that is not there");
    let mut regs = CpuRegs { rsi: end, rdx: 0x80, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0x6f]), pf(0));
}

#[test]
fn long_strings_are_done_in_parts() {
    let mut machine = machine();
    machine.plat.copy_to_guest(CODE, &[0xf3, 0x6c]).unwrap();
    let mut regs = CpuRegs { rdi: va(20).0, rcx: 1300, rdx: 0x80, ..regs_at(CODE) };
    for left in [788, 276, 0] {
        assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), Emulation::Done);
        assert_eq!(regs.rcx, left);
        assert_eq!(regs.rip, CODE.0 + if left == 0 { 2 } else { 0 });
    }
    assert_eq!(regs.rdi, va(20).0 + 1300);
}

#[test]
fn io_breakpoints_hit() {
    let mut machine = machine();
    machine.plat.state().guest_cr4 = 1 << 3;
    debugreg::write(&mut machine.cx(), 0, 0x60).unwrap();
    // Enabled locally, I/O, 2 bytes wide.
    debugreg::write(&mut machine.cx(), 7, 1 | 2 << 16 | 1 << 18).unwrap();
    machine.plat.copy_to_guest(CODE, &[0xee]).unwrap();
    for (port, hit) in [(0x5f, false), (0x60, true), (0x61, true), (0x62, false)] {
        let mut regs = CpuRegs { rdx: port, ..regs_at(CODE) };
        let expected = if hit { db() } else { Emulation::Done };
        assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), expected, "{port:#x}");
        assert_eq!(regs.rip, CODE.0 + 1);
    }
    assert_eq!(machine.vcpus[0].debugreg.dr[6] & 0xf, 1);
}
