//! Emulation as a whole, on the fake platform.

use core::sync::atomic::Ordering::Relaxed;
use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::arch::{TrapInfo, rflags, vector};
use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::*;
use crate::fake::{Call, Machine, kernel_regs, mfn, user_regs, va};
use crate::platform::{CpuidResult, GuestMemory};

/// Where the instruction is.
const CODE: GuestVa = va(10);
const GP: Emulation = GP0;

fn db() -> Emulation {
    Emulation::Bounce { vector: vector::DB, error_code: None }
}

fn pf(error_code: u32) -> Emulation {
    Emulation::Bounce { vector: vector::PF, error_code: Some(error_code) }
}

/// A machine whose guest may use ports and has a #GP handler.
pub(super) fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.vcpus[0].control.iopl = 1;
    let info = TrapInfo { vector: vector::GP, flags: 0, cs: 0, pad: 0, address: 0x1000 };
    machine.vcpus[0].traps.set(&info);
    machine
}

fn regs_at(code: GuestVa) -> CpuRegs {
    CpuRegs { rip: code.0, ..kernel_regs() }
}

/// Runs an instruction; RIP must move exactly if it was done.
fn run(machine: &mut Machine, regs: &mut CpuRegs, code: &[u8]) -> Emulation {
    machine.plat.copy_to_guest(CODE, code).unwrap();
    regs.rip = CODE.0;
    let before = *regs;
    let result = general_protection(&mut machine.cx(), regs, 0);
    if result == Emulation::Done {
        assert_eq!(regs.rip, CODE.0 + code.len() as u64, "{code:x?}");
    } else {
        assert_eq!(*regs, before, "{code:x?}");
    }
    result
}

pub(super) fn cpuid_leaf(machine: &Machine, leaf: u32, subleaf: u32, values: [u32; 4]) {
    let [eax, ebx, ecx, edx] = values;
    machine.plat.state().cpuid.insert((leaf, subleaf), CpuidResult { eax, ebx, ecx, edx });
}

/// A processor that has everything, of a vendor.
pub(super) fn processor(machine: &Machine, vendor: &[u8; 12]) {
    let word = |n: usize| u32::from_le_bytes(vendor[n..n + 4].try_into().unwrap());
    cpuid_leaf(machine, 0, 0, [0x20, word(0), word(8), word(4)]);
    cpuid_leaf(machine, 0x8000_0000, 0, [0x8000_0028, word(0), word(8), word(4)]);
    for leaf in (1..0x20).chain(0x8000_0001..0x8000_0028) {
        for subleaf in 0..64 {
            cpuid_leaf(machine, leaf, subleaf, [!0; 4]);
        }
    }
    cpuid_leaf(machine, 0xd, 0, [0xe7, 0x340, 0xa80, 0]);
    for (n, (size, offset)) in
        [(256, 576), (64, 960), (64, 1024), (64, 1088), (512, 1152), (1024, 1664)]
            .into_iter()
            .enumerate()
    {
        cpuid_leaf(machine, 0xd, n as u32 + 2, [size, offset, 3, 0]);
    }
}

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
fn control_registers() {
    let mut machine = machine();
    let mut regs = kernel_regs();
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xc0]);
    assert_eq!(regs.rax, 0x8005_0033);
    regs.r9 = 0x8005_003b;
    assert_eq!(run(&mut machine, &mut regs, &[0x41, 0x0f, 0x22, 0xc1]), Emulation::Done);
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xc3]);
    assert_eq!(regs.rbx, 0x8005_003b);
    run(&mut machine, &mut regs, &[0x0f, 0x06]);
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xc3]);
    assert_eq!(regs.rbx, 0x8005_0033);
    assert_eq!(machine.plat.calls(), [Call::SetTs(true), Call::SetTs(false)]);
    regs.rbx = 0x33;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x22, 0xc3]), GP);
    // CR2 is the guest's own word.
    regs.rsi = 0x1234_5678;
    run(&mut machine, &mut regs, &[0x0f, 0x22, 0xd6]);
    assert_eq!(machine.info().arch.cr2.load(Relaxed), 0x1234_5678);
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xd7]);
    assert_eq!(regs.rdi, 0x1234_5678);
    // CR3 holds a machine address.
    regs.rax = mfn(7).base().0;
    run(&mut machine, &mut regs, &[0x0f, 0x22, 0xd8]);
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xd9]);
    assert_eq!(regs.rcx, mfn(7).base().0);
    assert_eq!(machine.plat.calls(), [Call::LoadCr3(mfn(7))]);
    regs.rax = 0x7_0000_0000;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x22, 0xd8]), GP);
    for code in [[0x44u8, 0x0f, 0x20, 0xc0], [0x44, 0x0f, 0x22, 0xc0]] {
        assert_eq!(run(&mut machine, &mut regs, &code), GP, "CR8 is not the guest's");
    }
}

#[test]
fn cr4_and_xcr0() {
    let mut machine = machine();
    let mut regs = kernel_regs();
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xe0]);
    assert_eq!(regs.rax, 0x620);
    // XSETBV does not exist before OSXSAVE; OSXSAVE not on a processor without XSAVE.
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x01, 0xd1]), UD);
    regs.rax = !0;
    run(&mut machine, &mut regs, &[0x0f, 0x22, 0xe0]);
    assert_eq!(machine.plat.state().guest_cr4, 1 << 2 | 1 << 3);
    processor(&machine, b"GenuineIntel");
    run(&mut machine, &mut regs, &[0x0f, 0x22, 0xe0]);
    assert_eq!(machine.plat.state().guest_cr4, 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18);
    run(&mut machine, &mut regs, &[0x0f, 0x20, 0xe0]);
    assert_eq!(regs.rax, 0x5_062c);
    for (value, good) in [(7u64, true), (0xe7, true), (0xff, false), (6, false), (0x207, false)] {
        (regs.rax, regs.rdx, regs.rcx) = (value, 0, 0);
        let expected = if good { Emulation::Done } else { GP };
        assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x01, 0xd1]), expected, "{value:#x}");
    }
    regs.rcx = 1;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x01, 0xd1]), GP);
    assert_eq!(machine.plat.state().xcr0, 0xe7);
}

#[test]
fn debug_registers() {
    let mut machine = machine();
    let mut regs = CpuRegs { rax: 0x1000, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x23, 0xc8]), Emulation::Done);
    run(&mut machine, &mut regs, &[0x0f, 0x21, 0xcb]);
    assert_eq!(regs.rbx, 0x1000);
    regs.rax = 0xffff_8000_0000_0000;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x23, 0xc8]), GP);
    machine.plat.state().guest_cr4 = 1 << 3;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x23, 0xe0]), UD, "DR4 with CR4.DE");
}

#[test]
fn segment_bases() {
    let mut machine = machine();
    let mut regs =
        CpuRegs { rcx: 0xc000_0101, rax: 0x8000_0000, rdx: 0xffff_ffff, ..kernel_regs() };
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x30]), Emulation::Done);
    assert_eq!(machine.plat.state().gs_base, 0xffff_ffff_8000_0000);
    (regs.rax, regs.rdx) = (0, 0);
    run(&mut machine, &mut regs, &[0x0f, 0x32]);
    assert_eq!((regs.rdx, regs.rax), (0xffff_ffff, 0x8000_0000));
    regs.rdx = 0x1_0000;
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x30]), GP);
    regs.rcx = 0xc000_0102;
    run(&mut machine, &mut regs, &[0x0f, 0x32]);
    assert_eq!(regs.rax, 0x75);
}

pub(super) fn rdmsr(machine: &mut Machine, number: u32) -> Option<u64> {
    let mut regs = CpuRegs { rcx: number.into(), rax: 0, rdx: 0, ..kernel_regs() };
    match run(machine, &mut regs, &[0x0f, 0x32]) {
        Emulation::Done => Some(regs.rdx << 32 | regs.rax),
        other => {
            assert_eq!(other, GP);
            None
        }
    }
}

pub(super) fn wrmsr(machine: &mut Machine, number: u32, value: u64) -> bool {
    let regs = kernel_regs();
    let mut regs = CpuRegs { rcx: number.into(), rax: value, rdx: value >> 32, ..regs };
    run(machine, &mut regs, &[0x0f, 0x30]) == Emulation::Done
}

#[test]
fn msr_filter() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    let m = &mut machine;
    assert_eq!(rdmsr(m, 0x277), Some(0x0000_0501_0007_0406));
    assert_eq!(rdmsr(m, 0xc000_0080), Some(0xd01));
    assert_eq!(rdmsr(m, 0x1b), Some(0xfee0_0900));
    assert_eq!(rdmsr(m, 0x1a0), Some(0x80_1801));
    assert_eq!(rdmsr(m, 0x8b), Some(0));
    assert_eq!(rdmsr(m, 0xce), Some(0));
    assert_eq!(rdmsr(m, 0x186), Some(0));
    for hidden in [0x48, 0x10a, 0xc001_0015, 0xc001_0000, 0x4000_0000, 0xdead_beef] {
        assert_eq!(rdmsr(m, hidden), None, "{hidden:#x}");
    }
    assert!(wrmsr(m, 0xc000_0080, 0xd01) && !wrmsr(m, 0xc000_0080, 0x501));
    assert!(wrmsr(m, 0x1a0, 12345) && wrmsr(m, 0x8b, 0) && !wrmsr(m, 0x8b, 1));
    assert!(!wrmsr(m, 0x277, 0x0007_0406_0007_0406) && !wrmsr(m, 0x48, 1) && !wrmsr(m, 0x49, 1));
    assert!(wrmsr(m, 0xc000_0103, 7) && !wrmsr(m, 0xc000_0103, 1 << 32));
    assert_eq!(rdmsr(m, 0xc000_0103), Some(7));
    assert_eq!(m.plat.calls(), [Call::SetTscAux(7)]);
    processor(m, b"AuthenticAMD");
    assert_eq!(rdmsr(m, 0xc001_1029), Some(2));
    assert_eq!(rdmsr(m, 0xc001_0015), Some(0));
    assert_eq!(rdmsr(m, 0xc001_0000), Some(0));
    assert_eq!(rdmsr(m, 0x1a0), None);
    assert!(wrmsr(m, 0xc001_0062, 1) && !wrmsr(m, 0xc001_0010, 1) && !wrmsr(m, 0x1a0, 1));
    // Before the guest has a handler, unknown ones read 0.
    let none = TrapInfo { vector: vector::GP, flags: 0, cs: 0, pad: 0, address: 0 };
    m.vcpus[0].traps.set(&none);
    assert_eq!(rdmsr(m, 0x48), Some(0));
    assert_eq!(rdmsr(m, 0x4000_0000), None);
}

#[test]
fn the_hypercall_msr_fills_a_page() {
    let mut machine = machine();
    assert!(wrmsr(&mut machine, 0x4000_0000, mfn(20).base().0));
    let mut page = [0; 4096];
    machine.plat.copy_from_guest(&mut page, va(20)).unwrap();
    assert_eq!(page, crate::builder::hypercall_page());
    assert!(!wrmsr(&mut machine, 0x4000_0000, mfn(20).base().0 + 1));
    assert!(!wrmsr(&mut machine, 0x4000_0000, 0));
}

#[test]
fn time_stamps() {
    let mut machine = machine();
    machine.plat.state().now_ns = 0x12_3456_7890;
    machine.vcpus[0].control.tsc_aux = 5;
    let mut regs = kernel_regs();
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x31]), Emulation::Done);
    assert_eq!((regs.rdx, regs.rax), (0x12, 0x3456_7890));
    (regs.rax, regs.rdx) = (0, 0);
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x01, 0xf9]), Emulation::Done);
    assert_eq!((regs.rdx, regs.rax, regs.rcx), (0x12, 0x3456_7890, 5));
    assert_eq!(run(&mut machine, &mut regs, &[0x0f, 0x09]), Emulation::Done);
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
fn stepping_traps_behind_the_instruction() {
    let mut machine = machine();
    machine.plat.copy_to_guest(CODE, &[0xee]).unwrap();
    let mut regs = regs_at(CODE);
    regs.rflags |= rflags::TF | rflags::RF;
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), db());
    assert_eq!(regs.rip, CODE.0 + 1);
    assert_eq!(regs.rflags & (rflags::TF | rflags::RF), rflags::TF);
    assert_eq!(machine.vcpus[0].debugreg.dr[6], 0xffff_4ff0);
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

#[test]
fn instructions_at_page_ends() {
    let mut machine = machine();
    let end = va(64).0;
    machine.plat.copy_to_guest(GuestVa(end - 2), &[0x0f, 0x06]).unwrap();
    let mut regs = regs_at(GuestVa(end - 2));
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), Emulation::Done);
    // The rest is on a page that is not there.
    machine.plat.copy_to_guest(GuestVa(end - 2), &[0x0f, 0x20]).unwrap();
    let mut regs = regs_at(GuestVa(end - 2));
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), pf(0));
    assert_eq!(machine.info().arch.cr2.load(Relaxed), end);
    let mut regs = regs_at(GuestVa(end + 5));
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), pf(0));
    assert_eq!(machine.info().arch.cr2.load(Relaxed), end + 5);
    // Over a boundary both sides of which are there.
    machine.plat.copy_to_guest(GuestVa(va(30).0 - 1), &[0x0f, 0x06]).unwrap();
    let mut regs = regs_at(GuestVa(va(30).0 - 1));
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0), Emulation::Done);
}

#[test]
fn software_interrupts_of_the_kernel() {
    let mut machine = machine();
    let info = TrapInfo { vector: 0x80, flags: 1, cs: 0, pad: 0, address: 0x2000 };
    machine.vcpus[0].traps.set(&info);
    let ec = 0x80 << 3 | 2;
    machine.plat.copy_to_guest(CODE, &[0xcd, 0x80]).unwrap();
    let mut regs = regs_at(CODE);
    let rip = regs.rip;
    let soft = Emulation::Bounce { vector: 0x80, error_code: None };
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, ec), soft);
    assert_eq!(regs.rip, rip + 2);
    let fault = |error_code| Emulation::Bounce { vector: vector::GP, error_code: Some(error_code) };
    let mut regs = CpuRegs { rip: CODE.0, ..user_regs() };
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, ec), fault(ec));
    let mut regs = regs_at(CODE);
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, ec | 1), fault(ec | 1));
    assert_eq!(
        general_protection(&mut machine.cx(), &mut regs, 0x81 << 3 | 2),
        fault(0x81 << 3 | 2)
    );
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, 0xe030), fault(0xe030));
    // The error code names another gate than the instruction; no instruction to be read.
    machine.plat.copy_to_guest(CODE, &[0xcd, 0x40]).unwrap();
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, ec), fault(ec));
    assert_eq!(regs, regs_at(CODE));
    let mut regs = regs_at(GuestVa(0x10));
    assert_eq!(general_protection(&mut machine.cx(), &mut regs, ec), fault(ec));
}

fn forced(machine: &mut Machine, regs: &mut CpuRegs) -> Emulation {
    machine.plat.copy_to_guest(CODE, &FORCED_CPUID).unwrap();
    regs.rip = CODE.0;
    invalid_opcode(&mut machine.cx(), regs)
}

pub(super) fn guest_cpuid(machine: &mut Machine, leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut regs = CpuRegs { rax: leaf.into(), rcx: subleaf.into(), ..kernel_regs() };
    assert_eq!(forced(machine, &mut regs), Emulation::Done);
    assert_eq!(regs.rip, CODE.0 + 7);
    [regs.rax as u32, regs.rbx as u32, regs.rcx as u32, regs.rdx as u32]
}

#[test]
fn the_forced_prefix() {
    let mut machine = machine();
    let mut regs = CpuRegs { rax: 0x4000_0000, ..user_regs() };
    assert_eq!(forced(&mut machine, &mut regs), Emulation::Done);
    let name: Vec<u8> =
        [regs.rbx, regs.rcx, regs.rdx].iter().flat_map(|r| (*r as u32).to_le_bytes()).collect();
    assert_eq!(name, b"XenVMMXenVMM");
    assert_eq!(regs.rax, 0x4000_0005);
    // A plain UD2, and one at the end of what is mapped.
    machine.plat.copy_to_guest(CODE, b"\x0f\x0bxem\x0f\xa2").unwrap();
    regs.rip = CODE.0;
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut regs), UD);
    machine.plat.copy_to_guest(GuestVa(va(64).0 - 2), b"\x0f\x0b").unwrap();
    regs.rip = va(64).0 - 2;
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut regs), pf(0));
    machine.plat.copy_to_guest(GuestVa(va(64).0 - 2), b"\x0f\xff").unwrap();
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut regs), UD);
}

#[test]
fn xen_leaves() {
    let mut machine = machine();
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0001, 0), [4 << 16 | 17, 0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0002, 0), [1, 0x4000_0000, 1, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 0), [2, 0, 1_000_000, 1]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 1), [0, 0, 0x8000_0000, 1]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 2), [1_000_000, 0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0004, 0), [0; 4]);
    // The highest frame number has 13 bits.
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0005, 0), [0, 25, 0, 0]);
    for leaf in [0x4000_0006, 0x4000_0100, 0x4000_00ff] {
        assert_eq!(guest_cpuid(&mut machine, leaf, 0), [0; 4], "Hyper-V is not shown");
    }
}

#[test]
fn hidden_features() {
    for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
        let mut machine = machine();
        processor(&machine, vendor);
        let [max, ..] = guest_cpuid(&mut machine, 0, 0);
        assert_eq!(max, 0xd);
        let [_, ebx, ecx, edx] = guest_cpuid(&mut machine, 1, 0);
        // PSE, MTRR, PGE, PSE36, DS, TM; MCE, MCA.
        assert_eq!(edx & (1 << 3 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 21 | 1 << 29), 0);
        assert_eq!(edx & (1 << 7 | 1 << 14), 1 << 7 | 1 << 14);
        assert_eq!(edx >> 11 & 1, u32::from(vendor == b"GenuineIntel"), "SEP");
        // MONITOR, VMX, SMX, PDCM, PCID, x2APIC, TSC deadline.
        assert_eq!(ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24), 0);
        // XSAVE, OSXSAVE, AVX, hypervisor; APIC id 0.
        assert_eq!(ecx >> 26, 0x3f & ecx >> 26);
        assert_eq!(
            ecx & (0xd << 26 | 1 << 31 | 1 << 27),
            0x1 << 26 | 1 << 27 | 1 << 28 | 1 << 31 | (ecx & 1 << 29)
        );
        assert_eq!(ebx >> 24, 0);
        let [_, ebx, ecx, edx] = guest_cpuid(&mut machine, 7, 0);
        // SMEP, INVPCID, MPX, SMAP; PKU, UMIP, shadow stacks, LA57; IBT, IBRS, ARCH_CAPS, AMX.
        assert_eq!(ebx & (1 << 7 | 1 << 10 | 1 << 14 | 1 << 20), 0);
        assert_eq!(ebx & 1, 1, "FSGSBASE");
        assert_eq!(ecx & (1 << 2 | 1 << 3 | 1 << 7 | 1 << 16), 0);
        assert_eq!(edx & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 29), 0);
        let [_, _, ecx, edx] = guest_cpuid(&mut machine, 0x8000_0001, 0);
        assert_eq!(ecx & (1 << 2 | 1 << 22), 0, "SVM, topology");
        assert_eq!(edx & (1 << 26), 0, "1 GiB pages");
        assert_eq!(edx & (1 << 11 | 1 << 20 | 1 << 29), 1 << 11 | 1 << 20 | 1 << 29);
        assert_eq!(edx & 0x23f, if vendor == b"AuthenticAMD" { 0x275 & 0x23f } else { 0 });
        for leaf in
            [3, 5, 6, 8, 9, 0xa, 0xb, 0xc, 0xe, 0x15, 0x16, 0x8000_000a, 0x8000_001e, 0x8000_0022]
        {
            assert_eq!(guest_cpuid(&mut machine, leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), [0; 4]);
        // Physical addresses are the processor's, linear ones have four levels of tables.
        cpuid_leaf(&machine, 0x8000_0008, 0, [0x0023_392e, 0, 0, 0]);
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0008, 0)[0], 0x302e);
    }
}

#[test]
fn xsave_leaves_agree_with_xcr0() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    assert_eq!(guest_cpuid(&mut machine, 0xd, 0), [0xe7, 0x340, 2688, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 1), [7, !0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 2), [256, 576, 2, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 3), [0; 4], "MPX");
    assert_eq!(guest_cpuid(&mut machine, 0xd, 63), [0; 4]);
    // A program sees OSXSAVE when its kernel has switched it on.
    let mut regs = CpuRegs { rax: 1, rcx: 0, ..user_regs() };
    assert_eq!(forced(&mut machine, &mut regs), Emulation::Done);
    assert_eq!(regs.rcx >> 27 & 1, 0);
    machine.plat.state().guest_cr4 = 1 << 18;
    let mut regs = CpuRegs { rax: 1, rcx: 0, ..user_regs() };
    assert_eq!(forced(&mut machine, &mut regs), Emulation::Done);
    assert_eq!(regs.rcx >> 27 & 1, 1);
    // Without leaf 0xd there is no XSAVE, and nothing that needs it.
    cpuid_leaf(&machine, 0, 0, [0xb, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let [_, _, ecx, _] = guest_cpuid(&mut machine, 1, 0);
    assert_eq!(ecx & (1 << 12 | 7 << 26 | 1 << 29), 0);
    let [_, ebx, ..] = guest_cpuid(&mut machine, 7, 0);
    assert_eq!(ebx & (1 << 5 | 1 << 16), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever the bytes and registers: no panic; RIP moves by the length or not at all.
    #[test]
    fn random_instructions(code: [u8; 15], gpr: [u64; 6], user: bool, flags in 0u64..0x1_0000, iopl in 0u8..4) {
        let mut machine = Machine::new();
        machine.vcpus[0].control.iopl = iopl;
        machine.plat.copy_to_guest(CODE, &code).unwrap();
        let base = if user { user_regs() } else { kernel_regs() };
        let [rax, rcx, rdx, rsi, rdi, rbx] = gpr;
        let mut regs = CpuRegs { rip: CODE.0, rax, rcx, rdx, rsi, rdi, rbx, rflags: flags, ..base };
        let result = general_protection(&mut machine.cx(), &mut regs, 0);
        if result == GP {
            prop_assert_eq!(regs.rip, CODE.0);
        }
        prop_assert!(regs.rip.wrapping_sub(CODE.0) <= 15);
        let mut again = CpuRegs { rip: CODE.0, ..regs };
        let _ = invalid_opcode(&mut machine.cx(), &mut again);
    }

}

#[test]
fn no_leaf_panics_on_any_answer() {
    let mut machine = machine();
    for vendor in [b"GenuineIntel", b"AuthenticAMD", b"CentaurHauls"] {
        processor(&machine, vendor);
        cpuid_leaf(&machine, 0xd, 0, [!0; 4]);
        for leaf in (0..0x40).chain(0x4000_0000..0x4000_0010).chain(0x8000_0000..0x8000_0040) {
            for subleaf in [0, 1, 2, 3, 5, 6, 31, 32, 62, 63, 64, u32::MAX] {
                let _ = guest_cpuid(&mut machine, leaf, subleaf);
            }
        }
    }
}
