use core::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

use xen_abi::mm::{MmuextCmd, MmuextOp};

use super::*;
use crate::fake::{Call, FIRST_MFN, Machine, kernel_regs, mfn, va};
use crate::platform::{GuestMemory, VcpuSet};

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

/// An entry that makes one mmuext_op, written to a page of its own.
fn ext(machine: &Machine, place: u64, cmd: MmuextCmd, arg1: u64, arg2: u64) -> MulticallEntry {
    let at = va(20).add(place * 24);
    machine.plat.write_guest(at, &MmuextOp { cmd, pad: 0, arg1, arg2 }).unwrap();
    call(26, &[at.0, 1, 0, 0x7ff0])
}

/// Four vCPUs, of which 0 calls; bitmaps of vCPUs 1 and 2, 2 and 3, and 0 and 1.
fn machine_of_four() -> Machine {
    let machine = Machine::with(64, 4);
    for (place, bits) in [0b0110, 0b1100, 0b0011].into_iter().enumerate() {
        machine.plat.poke(va(30).add(place as u64 * 8), bits);
    }
    machine
}
const SETS: [GuestVa; 3] = [va(30), va(30).add(8), va(30).add(16)];
const PAGE: u64 = 0x7000;

#[test]
fn flushes_in_a_row_go_out_together() {
    use MmuextCmd as C;
    let page = Some(GuestVa(PAGE));
    let [first, second, own] = SETS.map(|set| set.0);
    let remote = |mask, page| Call::FlushTlb(VcpuSet::Mask(mask), page);
    type Case<'a> = (&'a [(C, u64, u64)], &'a [Call]);
    let cases: [Case<'_>; 6] = [
        // The same page on more vCPUs.
        (&[(C::INVLPG_MULTI, PAGE, first), (C::INVLPG_MULTI, PAGE, second)], &[remote(14, page)]),
        // Different pages become all.
        (&[(C::INVLPG_MULTI, PAGE, first), (C::INVLPG_MULTI, 0x9000, first)], &[remote(6, None)]),
        (&[(C::TLB_FLUSH_MULTI, 0, first), (C::INVLPG_MULTI, PAGE, first)], &[remote(6, None)]),
        // This vCPU's own part is not put off.
        (
            &[(C::INVLPG_MULTI, PAGE, own), (C::INVLPG_MULTI, PAGE, second)],
            &[Call::InvlpgLocal(GuestVa(PAGE)), remote(14, page)],
        ),
        (
            &[(C::INVLPG_ALL, PAGE, 0), (C::TLB_FLUSH_LOCAL, 0, 0), (C::INVLPG_MULTI, PAGE, first)],
            &[Call::InvlpgLocal(GuestVa(PAGE)), Call::FlushTlbLocal, remote(!1, page)],
        ),
        // What may let others have a page comes after the flush before it.
        (
            &[
                (C::INVLPG_MULTI, PAGE, first),
                (C::CLEAR_PAGE, mfn(40).0, 0),
                (C::INVLPG_MULTI, PAGE, second),
            ],
            &[remote(6, page), remote(12, page)],
        ),
    ];
    for (ops, expected) in cases {
        let mut machine = machine_of_four();
        machine.plat.poke(va(40), 7);
        let list: Vec<_> =
            (0..).zip(ops).map(|(at, &(cmd, a, b))| ext(&machine, at, cmd, a, b)).collect();
        assert_eq!(make(&mut machine, &list).0, ret(0));
        assert_eq!(machine.plat.calls(), expected, "{ops:?}");
        assert_eq!(results(&machine, list.len() as u64), std::vec![0; list.len()]);
    }
}

/// Whatever ends a multicall, no flush is left over; and other calls do not overtake one.
#[test]
fn no_flush_is_left_over() {
    let remote = Call::FlushTlb(VcpuSet::Mask(6), None);
    let once = core::slice::from_ref(&remote);
    let flushing = |machine: &Machine, more: &[MulticallEntry]| {
        let mut list = std::vec![ext(machine, 0, MmuextCmd::TLB_FLUSH_MULTI, 0, SETS[0].0)];
        list.extend(more);
        list
    };
    // An entry that cannot be read, a list that continues, an operation that fails.
    let mut machine = machine_of_four();
    let list = flushing(&machine, &[]);
    machine.plat.write_guest(va(64).add(0u64.wrapping_sub(64)), &list[0]).unwrap();
    let mut regs = CpuRegs { rax: 13, rdi: va(64).0 - 64, rsi: 2, ..kernel_regs() };
    assert_eq!(multicall(&mut machine.cx(), &mut regs), Err(Errno::EFAULT));
    assert_eq!(machine.plat.calls(), once);
    let flush = flushing(&machine, &[])[0];
    assert_eq!(make(&mut machine, &[flush; 65]).0, Ok(Outcome::Continue));
    assert_eq!(machine.plat.calls(), once);
    let bad = ext(&machine, 1, MmuextCmd::NEW_BASEPTR, 1, 0);
    let list = flushing(&machine, &[bad]);
    assert_eq!(make(&mut machine, &list).0, ret(0));
    assert_eq!(machine.plat.calls().last(), Some(&remote));
    // The entry is stored after the flush, and so is the M2P's.
    let store = |machine: &Machine| {
        machine.plat.poke(va(50), mfn(51).0 << 12);
        machine.plat.poke(va(50).add(8), 0);
        call(1, &[va(50).0, 1, 0, 0x7ff0])
    };
    let list = flushing(&machine, &[store(&machine), call(21, &[0, 2])]);
    assert_eq!(make(&mut machine, &list).0, ret(0));
    assert_eq!(machine.plat.calls(), once);
    // Outside a multicall nothing waits.
    let mut regs = CpuRegs { rax: 26, rdi: va(20).0, rsi: 1, r10: 0x7ff0, ..kernel_regs() };
    assert_eq!(dispatch::hypercall(&mut machine.cx(), &mut regs), Outcome::Return(0));
    assert_eq!(machine.plat.calls(), once);
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
