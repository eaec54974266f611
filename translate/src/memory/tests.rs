use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::fake::{FIRST_MFN, Machine, kernel_regs, mfn, va};
use crate::platform::GuestMemory;

/// The argument structure's place and the extents' place in the tests.
const ARG: GuestVa = va(2);
const LIST: GuestVa = va(3);

fn memop(machine: &mut Machine, cmd: u64) -> (HcResult, u64) {
    let mut regs = CpuRegs { rdi: cmd, rsi: ARG.0, ..kernel_regs() };
    let result = memory_op(&mut machine.cx(), &mut regs);
    (result, regs.rdi)
}

fn put<T: IntoBytes + Immutable>(machine: &Machine, value: &T) {
    machine.plat.write_guest(ARG, value).unwrap();
}

fn extents(nr_extents: u64, extent_order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start: LIST.0,
        nr_extents,
        extent_order,
        mem_flags: 0,
        domid: DomId::SELF,
        pad: [0; 3],
    }
}

fn list(machine: &Machine, values: &[u64]) {
    machine.plat.copy_to_guest(LIST, values.as_bytes()).unwrap();
}

fn pages(machine: &Machine) -> u64 {
    machine.dom.nr_pages.load(Relaxed)
}

const INCREASE: u64 = 0;
const DECREASE: u64 = 1;
const POPULATE: u64 = 6;

#[test]
fn frames_go_and_come_back() {
    let mut machine = Machine::new();
    put(&machine, &extents(2, 0));
    list(&machine, &[mfn(40).0, mfn(41).0]);
    assert_eq!(memop(&mut machine, DECREASE).0, ret(2));
    assert_eq!((pages(&machine), machine.plat.may_map(mfn(40))), (62, false));
    list(&machine, &[0x77, 0x78]);
    assert_eq!(memop(&mut machine, POPULATE).0, ret(2));
    let got = [machine.plat.peek(LIST), machine.plat.peek(LIST.add(8))].map(Mfn);
    assert_eq!(got.map(|mfn| machine.plat.m2p(mfn)), [Some(Pfn(0x77)), Some(Pfn(0x78))]);
    assert_eq!(pages(&machine), 64);
}

#[test]
fn an_increase_gives_frames_without_a_pfn() {
    let mut machine = Machine::new();
    put(&machine, &extents(1, 0));
    list(&machine, &[mfn(40).0]);
    assert_eq!(memop(&mut machine, DECREASE).0, ret(1));
    assert_eq!(memop(&mut machine, INCREASE).0, ret(1));
    assert_eq!(machine.plat.peek(LIST), mfn(40).0);
    assert_eq!(memop(&mut machine, INCREASE).0, ret(0), "no more than the maximum");
}

#[test]
fn the_count_says_how_far_it_got() {
    let mut machine = Machine::new();
    let short = |machine: &mut Machine, reservation: &MemoryReservation, cmd| {
        put(machine, reservation);
        memop(machine, cmd).0
    };
    list(&machine, &[mfn(40).0, 0x800, mfn(41).0]);
    assert_eq!(short(&mut machine, &extents(3, 0), DECREASE), ret(1), "0x800 is not the guest's");
    assert_eq!(short(&mut machine, &extents(1, 10), DECREASE), ret(0), "too large");
    assert_eq!(short(&mut machine, &extents(1, 1), POPULATE), ret(0), "not contiguous");
    assert_eq!(short(&mut machine, &extents(1 << 26, 0), DECREASE), ret(0), "too many");
    let foreign = MemoryReservation { domid: DomId(0), ..extents(1, 0) };
    assert_eq!(short(&mut machine, &foreign, DECREASE), ret(0));
    let unreadable = MemoryReservation { extent_start: 0x1000, ..extents(1, 0) };
    assert_eq!(short(&mut machine, &unreadable, DECREASE), ret(0));
    let low = MemoryReservation { mem_flags: 12, ..extents(1, 0) };
    assert_eq!(short(&mut machine, &low, POPULATE), ret(0));
    let mut regs = CpuRegs { rdi: DECREASE | 5 << 6, rsi: 0x1000, ..kernel_regs() };
    assert_eq!(memory_op(&mut machine.cx(), &mut regs), ret(5), "an unreadable argument");
}

#[test]
fn long_lists_continue() {
    let mut machine = Machine::with(256, 1);
    put(&machine, &extents(200, 0));
    list(&machine, &(20..220).map(|pfn| mfn(pfn).0).collect::<Vec<_>>());
    let (result, cmd) = memop(&mut machine, DECREASE);
    assert_eq!((result, cmd), (Ok(Outcome::Continue), DECREASE | 128 << 6));
    assert_eq!(memop(&mut machine, cmd).0, ret(200));
    assert_eq!(pages(&machine), 56);
}

#[test]
fn the_page_table_in_use_stays() {
    let mut machine = Machine::new();
    machine.vcpus[0].mmu.l4 = mfn(40).0;
    machine.plat.poke(va(40).add(256 * 8), 0x63);
    put(&machine, &extents(1, 0));
    list(&machine, &[mfn(40).0]);
    assert_eq!(memop(&mut machine, DECREASE).0, ret(0));
}

#[test]
fn numbers_of_pages() {
    let mut machine = Machine::new();
    machine.dom.shared_info.arch.max_pfn.store(60, Relaxed);
    put(&machine, &DomId::SELF);
    assert_eq!(memop(&mut machine, 2).0, ret(FIRST_MFN as i64 + 64));
    assert_eq!(memop(&mut machine, 3).0, ret(64));
    assert_eq!(memop(&mut machine, 4).0, ret(64));
    assert_eq!(memop(&mut machine, 14).0, ret(59));
    put(&machine, &DomId(0));
    assert_eq!(memop(&mut machine, 3).0, Err(Errno::EPERM));
    put(&machine, &DomId(7));
    assert_eq!(memop(&mut machine, 3).0, Err(Errno::ESRCH));
}

#[test]
fn the_memory_map() {
    let mut machine = Machine::new();
    put(&machine, &MemoryMap { nr_entries: 8, pad: 0, buffer: LIST.0 });
    assert_eq!(memop(&mut machine, 9).0, ret(0));
    assert_eq!(machine.plat.peek(ARG) as u32, 1);
    let words = [0, 8, 16].map(|at| machine.plat.peek(LIST.add(at)));
    assert_eq!(words, [0, 64 * 4096, 1]);
    put(&machine, &MemoryMap { nr_entries: 8, pad: 0, buffer: 0x1000 });
    assert_eq!(memop(&mut machine, 9).0, Err(Errno::EFAULT));
}

#[test]
fn the_m2p_window() {
    let mut machine = Machine::new();
    assert_eq!(memop(&mut machine, 12).0, ret(0));
    let words = [0, 8, 16].map(|at| machine.plat.peek(ARG.add(at)));
    assert_eq!(words, [0xffff_8000_0000_0000, 0xffff_8040_0000_0000, 0x7_ffff_ffff]);
}

#[test]
fn what_a_pv_guest_may_not() {
    let mut machine = Machine::new();
    let add = |domid, space| AddToPhysmap { domid, size: 0, space, idx: 0, gpfn: 0 };
    let mut case = |words: [u64; 4], cmd: u64, expected: Errno| {
        put(&machine, &words);
        assert_eq!(memop(&mut machine, cmd).0, Err(expected), "{cmd} {words:x?}");
    };
    let words = |add: AddToPhysmap| {
        let [a, b, c]: [u64; 3] = zerocopy::transmute!(add);
        [a, b, c, 0]
    };
    case(words(add(DomId::SELF, 0)), 7, Errno::EACCES);
    case(words(add(DomId::SELF, 4)), 7, Errno::ENOSYS);
    case(words(add(DomId(0), 0)), 7, Errno::EPERM);
    case([0x7ff0, 0, 0, 0], 7 | 0x10000 << 6, Errno::EDOM);
    case([0x7ff0, 0, 0, 0], 23, Errno::EACCES);
    case([0x3_7ff0, 0, 0, 0], 23, Errno::EOPNOTSUPP);
    case([0x7ff0, 0, 0, 0], 15, Errno::EACCES);
    case([0, 0, 0, 0], 24, Errno::EPERM);
    case([0, 0, 0, 0x7ff0], 24, Errno::EINVAL);
    case([1, 0, 0, 0], 24, Errno::EINVAL);
    case([0x7ff0, 0, 0, 0], 26, Errno::EOPNOTSUPP);
    case([0x1_7ff0, 0, 0, 0], 26, Errno::EINVAL);
    case([0x7ff0, 0, 0, 0], 28, Errno::EPERM);
    case([0x7ff0, 1 << 32, 0, 0], 28, Errno::EINVAL);
    case([0x7ff0_0000, 0, 0, 0], 21, Errno::EPERM);
    case([0; 4], 10, Errno::EPERM);
    case([0; 4], 8, Errno::ENOSYS);
    case([0; 4], 63, Errno::ENOSYS);
    case([0; 4], 2 | 1 << 6, Errno::EINVAL);
    case([0; 4], 9 | 1 << 6, Errno::ENOSYS);
}

fn exchange_of(from: MemoryReservation, to: MemoryReservation) -> MemoryExchange {
    MemoryExchange { in_: from, out: to, nr_exchanged: 0 }
}

const OUT: GuestVa = va(4);

fn out(nr_extents: u64, extent_order: u32) -> MemoryReservation {
    MemoryReservation { extent_start: OUT.0, ..extents(nr_extents, extent_order) }
}

fn exchanged(machine: &Machine) -> u64 {
    machine.plat.peek(ARG.add(64))
}

#[test]
fn frames_are_exchanged_for_themselves() {
    let mut machine = Machine::new();
    list(&machine, &[mfn(40).0, mfn(50).0]);
    machine.plat.copy_to_guest(OUT, [9u64, 8].as_bytes()).unwrap();
    put(&machine, &exchange_of(extents(2, 0), out(2, 0)));
    assert_eq!(memop(&mut machine, 11).0, ret(0));
    assert_eq!(exchanged(&machine), 2);
    assert_eq!([machine.plat.peek(OUT), machine.plat.peek(OUT.add(8))], [mfn(40).0, mfn(50).0]);
    assert_eq!(machine.plat.m2p(mfn(40)), Some(Pfn(9)));
}

#[test]
fn a_large_extent_comes_apart_and_rarely_together() {
    let mut machine = Machine::new();
    list(&machine, &[mfn(40).0]);
    machine.plat.copy_to_guest(OUT, [9u64, 8, 7, 6].as_bytes()).unwrap();
    put(&machine, &exchange_of(extents(1, 2), out(4, 0)));
    assert_eq!(memop(&mut machine, 11).0, ret(0));
    assert_eq!(machine.plat.peek(OUT.add(24)), mfn(43).0);
    assert_eq!(machine.plat.m2p(mfn(43)), Some(Pfn(6)));
    list(&machine, &[mfn(40).0, mfn(42).0]);
    put(&machine, &exchange_of(extents(2, 0), out(1, 1)));
    assert_eq!(memop(&mut machine, 11).0, Err(Errno::ENOMEM));
    assert_eq!(exchanged(&machine), 0);
    list(&machine, &[mfn(40).0, mfn(41).0]);
    assert_eq!(memop(&mut machine, 11).0, ret(0), "they happen to be an extent");
}

#[test]
fn bad_exchanges() {
    let mut machine = Machine::new();
    list(&machine, &[0x800]);
    let cases = [
        (exchange_of(extents(1, 0), out(1, 0)), Errno::EINVAL),
        (exchange_of(extents(1, 0), out(2, 0)), Errno::EINVAL),
        (exchange_of(extents(1, 10), out(1, 10)), Errno::EPERM),
        (
            exchange_of(
                MemoryReservation { domid: DomId(0), ..extents(1, 0) },
                MemoryReservation { domid: DomId(0), ..out(1, 0) },
            ),
            Errno::EPERM,
        ),
        (
            MemoryExchange { nr_exchanged: 2, ..exchange_of(extents(1, 0), out(1, 0)) },
            Errno::EINVAL,
        ),
        (
            exchange_of(MemoryReservation { extent_start: 8, ..extents(1, 0) }, out(1, 0)),
            Errno::EFAULT,
        ),
    ];
    for (exchange, expected) in cases {
        put(&machine, &exchange);
        assert_eq!(memop(&mut machine, 11).0, Err(expected), "{exchange:?}");
    }
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..16u64,
        Just(LIST.0),
        Just(OUT.0),
        Just(0x7ff0u64),
        (FIRST_MFN - 2..FIRST_MFN + 66),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Nothing panics, and the count of pages is that of the frames.
    #[test]
    fn any_argument(
        cmd in prop_oneof![0..32u64, any::<u64>()],
        arg in prop::array::uniform9(word()),
        lists in prop::collection::vec(word(), 32),
    ) {
        let mut machine = Machine::new();
        put(&machine, &arg);
        list(&machine, &lists);
        let _ = memop(&mut machine, cmd);
        let owned = (0..64).filter(|pfn| machine.plat.may_map(mfn(*pfn))).count();
        prop_assert_eq!(pages(&machine), owned as u64);
    }
}
