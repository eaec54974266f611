use core::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

use super::*;
use crate::fake::{FIRST_MFN, Machine, kernel_regs, mfn, va};
use crate::platform::GuestMemory;

const LIST: GuestVa = va(2);

fn call(op: u64, args: &[u64]) -> MulticallEntry {
    let mut entry = MulticallEntry { op, result: 0x5555, ..Default::default() };
    entry.args[..args.len()].copy_from_slice(args);
    entry
}

fn make(machine: &mut Machine, calls: &[MulticallEntry]) -> (HcResult, CpuRegs) {
    machine.plat.copy_to_guest(LIST, calls.as_bytes()).unwrap();
    let mut regs = CpuRegs {
        rax: 13,
        rdi: LIST.0,
        rsi: calls.len() as u64,
        rdx: 3,
        r10: 10,
        r8: 8,
        r9: 9,
        ..kernel_regs()
    };
    let result = multicall(&mut machine.cx(), &mut regs);
    (result, regs)
}

fn results(machine: &Machine, count: u64) -> Vec<i64> {
    (0..count).map(|at| machine.plat.peek(LIST.add(at * 64 + 8)).cast_signed()).collect()
}

#[test]
fn each_call_has_its_result() {
    let mut machine = Machine::new();
    let calls = [
        call(3, &[0xe02b, 0xffff_8880_0000_1000]),
        call(11, &[]),
        call(13, &[LIST.0, 1]),
        call(25, &[9, 0]),
        call(21, &[0, 2]),
    ];
    let (result, regs) = make(&mut machine, &calls);
    assert_eq!(result, ret(0));
    assert_eq!(results(&machine, 5), [0, -38, -22, -22, 0]);
    assert_eq!(machine.vcpus[0].entry.kernel_sp, 0xffff_8880_0000_1000);
    assert_eq!(machine.dom.vm_assist.load(Relaxed), 4);
    assert_eq!((regs.rdx, regs.r10, regs.r8, regs.r9), (3, 10, 8, 9), "the caller's registers");
}

#[test]
fn an_entry_that_continues_is_its_own_continuation() {
    let mut machine = Machine::new();
    // 700 requests that store 0.
    for at in 0..700 {
        machine.plat.poke(va(10).add(at * 16), mfn(50).0 << 12);
    }
    let calls = [call(21, &[0, 2]), call(1, &[va(10).0, 700, 0, 0x7ff0]), call(21, &[1, 2])];
    let (result, mut regs) = make(&mut machine, &calls);
    assert_eq!(result, Ok(Outcome::Continue));
    assert_eq!((regs.rax, regs.rdi, regs.rsi), (13, LIST.0 + 64, 2));
    let entry: MulticallEntry = machine.plat.read_guest(LIST.add(64)).unwrap();
    assert_eq!((entry.op, &entry.args[..2]), (1, &[va(10).0 + 512 * 16, 0x8000_0000 | 188][..]));
    assert_eq!(multicall(&mut machine.cx(), &mut regs), ret(0));
    assert_eq!(results(&machine, 3)[1..], [0, 0]);
    assert_eq!(machine.dom.vm_assist.load(Relaxed), 0);
}

#[test]
fn long_lists_continue() {
    let mut machine = Machine::new();
    let calls: Vec<_> = (0..100).map(|_| call(11, &[])).collect();
    let (result, mut regs) = make(&mut machine, &calls);
    assert_eq!(result, Ok(Outcome::Continue));
    assert_eq!((regs.rdi, regs.rsi), (LIST.0 + 64 * 64, 36));
    assert_eq!(multicall(&mut machine.cx(), &mut regs), ret(0));
    assert_eq!(results(&machine, 100), [-38; 100]);
}

#[test]
fn a_block_ends_at_once_unless_it_is_last() {
    let mut machine = Machine::new();
    let blocked = |machine: &Machine| machine.dom.vcpus[0].blocked.load(Relaxed);
    let (result, _) = make(&mut machine, &[call(29, &[1, 0]), call(21, &[0, 2])]);
    assert_eq!((result, blocked(&machine)), (ret(0), false));
    assert_eq!(machine.vcpus[0].wait, Wait::No);
    assert_eq!(results(&machine, 2), [0, 0]);
    let (result, _) = make(&mut machine, &[call(21, &[0, 2]), call(29, &[1, 0])]);
    assert_eq!((result, blocked(&machine)), (Ok(Outcome::Block), true));
}

#[test]
fn unreadable_entries_end_the_call() {
    let mut machine = Machine::with(3, 1);
    let mut regs = CpuRegs { rax: 13, rdi: va(3).0 - 64, rsi: 2, ..kernel_regs() };
    machine.plat.write_guest(GuestVa(regs.rdi), &call(11, &[])).unwrap();
    assert_eq!(multicall(&mut machine.cx(), &mut regs), Err(Errno::EFAULT));
    assert_eq!(machine.plat.peek(va(3).add(8).add(0u64.wrapping_sub(64))), -38i64 as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_list_comes_to_an_end(
        calls in prop::collection::vec(
            (prop_oneof![Just(1u64), Just(12), Just(26), Just(0), 0..64u64],
             prop::array::uniform6(prop_oneof![
                 0..64u64, Just(0x7ff0u64), Just(va(10).0), Just(FIRST_MFN), any::<u64>()])),
            1..40),
    ) {
        let mut machine = Machine::new();
        let list: Vec<_> = calls.iter().map(|(op, args)| call(*op, args)).collect();
        let result = crate::fake::catch_shutdown(|| {
            let (mut result, mut regs) = make(&mut machine, &list);
            for _ in 0..10_000 {
                if result != Ok(Outcome::Continue) {
                    return true;
                }
                result = multicall(&mut machine.cx(), &mut regs);
            }
            false
        });
        prop_assert!(result.unwrap_or(true), "endless");
    }
}
