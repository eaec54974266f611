//! Emulation as a whole, on the fake platform.

use core::sync::atomic::Ordering::Relaxed;
use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::arch::{TrapInfo, rflags, vector};

mod cpuid;
mod io;
mod msr;
mod tsc;

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
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut regs), pf(4), "a program's access");
    let mut kernel = CpuRegs { rip: regs.rip, ..kernel_regs() };
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut kernel), pf(0));
    machine.plat.copy_to_guest(GuestVa(va(64).0 - 2), b"\x0f\xff").unwrap();
    assert_eq!(invalid_opcode(&mut machine.cx(), &mut regs), UD);
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
