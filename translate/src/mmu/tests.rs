use std::vec::Vec;

use proptest::prelude::*;
use xen_abi::mm::{MmuextCmd, MmuextOp};

use super::*;
use crate::dispatch;
use crate::fake::{Call, FIRST_MFN, FakePlatform, Machine, SHARED_INFO_MFN, kernel_regs, mfn, va};
use crate::platform::VcpuSet;

/// Frames of the page tables a test walks: L4, L3, L2, L1.
const TABLES: [u64; 4] = [8, 9, 10, 11];
/// The address they map.
const VA: u64 = 0xffff_ffff_8000_5000;

fn slot(table: u64, index: u64) -> GuestVa {
    va(table).add(index * 8)
}

/// Machine address of an entry.
fn address(table: u64, index: u64) -> u64 {
    mfn(table).base().0 + index * 8
}

fn pointing(pfn: u64) -> u64 {
    mfn(pfn).0 << 12 | 0x67
}

/// A machine with page tables for [`VA`] and the hypervisor's slots in their L4.
fn machine() -> Machine {
    let mut machine = Machine::with(64, 2);
    let [l4, l3, l2, l1] = TABLES;
    machine.plat.poke(slot(l4, VA >> 39 & 511), pointing(l3));
    machine.plat.poke(slot(l3, VA >> 30 & 511), pointing(l2));
    machine.plat.poke(slot(l2, VA >> 21 & 511), pointing(l1));
    machine.plat.poke(slot(l4, 256), 0x63);
    machine.vcpus[0].mmu.l4 = mfn(l4).0;
    machine
}

fn entry_of_va() -> GuestVa {
    slot(TABLES[3], VA >> 12 & 511)
}

/// Runs a list of mmu_update requests with a done pointer at `va(3)`.
fn mmu(machine: &mut Machine, requests: &[(u64, u64)], foreigndom: u64) -> HcResult {
    for (index, (ptr, val)) in (0..).zip(requests) {
        machine.plat.poke(va(2).add(index * 16), *ptr);
        machine.plat.poke(va(2).add(index * 16 + 8), *val);
    }
    machine.plat.poke(va(3), 77);
    let mut regs = CpuRegs {
        rdi: va(2).0,
        rsi: requests.len() as u64,
        rdx: va(3).0,
        r10: foreigndom,
        ..kernel_regs()
    };
    mmu_update(&mut machine.cx(), &mut regs)
}

fn done(machine: &Machine) -> u64 {
    machine.plat.peek(va(3))
}

fn ext(machine: &mut Machine, cmd: MmuextCmd, arg1: u64, arg2: u64) -> HcResult {
    let op = MmuextOp { cmd, pad: 0, arg1, arg2 };
    machine.plat.copy_to_guest(va(2), op.as_bytes()).unwrap();
    let mut regs = CpuRegs { rdi: va(2).0, rsi: 1, r10: 0x7ff0, ..kernel_regs() };
    mmuext_op(&mut machine.cx(), &mut regs)
}

#[test]
fn entries_are_stored_and_counted() {
    let mut machine = machine();
    let at = mfn(11).0 << 12 | 0x128;
    machine.plat.poke(va(11).add(0x130), 0x60);
    let requests = [(at, pointing(5)), ((at + 8) | 2, pointing(6) & !0x60), ((at + 16) | 3, 0)];
    assert_eq!(mmu(&mut machine, &requests, 0x7ff0), ret(0));
    assert_eq!(machine.plat.peek(va(11).add(0x128)), pointing(5));
    assert_eq!(machine.plat.peek(va(11).add(0x130)), pointing(6), "A and D are kept");
    assert_eq!(done(&machine), 3);
}

#[test]
fn the_first_bad_request_ends_the_list() {
    let mut machine = machine();
    let at = mfn(11).0 << 12;
    let bad = [
        ((at, 0xffff_f003), Errno::EPERM, "a frame behind all memory"),
        ((at, pte::ADDR | 3), Errno::EINVAL, "no frame at all"),
        ((at, 0x80_0003), Errno::EBUSY, "a frame of the hypervisor"),
        ((0x80_0000, 0), Errno::EINVAL, "a table that is not the guest's"),
        ((at | 4, 0), Errno::ENOSYS, "no such command"),
        ((0x80_0001, 5), Errno::EINVAL, "the M2P entry of a foreign frame"),
    ];
    for (request, errno, why) in bad {
        let result = mmu(&mut machine, &[(at, 0), request, (at, 0)], 0x7ff0);
        assert_eq!((result, done(&machine)), (Err(errno), 1), "{why}");
    }
}

#[test]
fn the_m2p_is_updated() {
    let mut machine = machine();
    assert_eq!(mmu(&mut machine, &[(mfn(5).0 << 12 | 1, 0x1234)], 0x7ff0), ret(0));
    assert_eq!(machine.plat.m2p(mfn(5)), Some(Pfn(0x1234)));
}

#[test]
fn the_hole_of_an_l4_is_kept() {
    let mut machine = machine();
    let [l4, l3, ..] = TABLES;
    for index in 256..=271 {
        let request = (address(l4, index), 0);
        assert_eq!(mmu(&mut machine, &[request], 0x7ff0), Err(Errno::EINVAL), "slot {index}");
        let request = (address(l3, index), 0);
        assert_eq!(mmu(&mut machine, &[request], 0x7ff0), ret(0), "an L3 has no hole");
    }
    for index in [0, 255, 272, 511] {
        assert_eq!(mmu(&mut machine, &[(address(l4, index), 0)], 0x7ff0), ret(0));
    }
    assert_eq!(ext(&mut machine, MmuextCmd::CLEAR_PAGE, mfn(l4).0, 0), Err(Errno::EINVAL));
    assert_eq!(ext(&mut machine, MmuextCmd::COPY_PAGE, mfn(l4).0, mfn(1).0), Err(Errno::EINVAL));
    assert_eq!(machine.plat.peek(slot(l4, 256)), 0x63);
}

#[test]
fn large_pages_must_be_the_guests_throughout() {
    let mut machine = Machine::with(2048, 1);
    let at = mfn(11).0 << 12;
    let large = |mfn: u64| mfn << 12 | 0xe7;
    // FIRST_MFN is a multiple of 512.
    assert_eq!(mmu(&mut machine, &[(at, large(FIRST_MFN))], 0x7ff0), ret(0));
    assert_eq!(mmu(&mut machine, &[(at, large(FIRST_MFN + 513))], 0x7ff0), ret(0), "a PAT bit");
    assert!(machine.plat.release_frame(mfn(600)));
    let result = mmu(&mut machine, &[(at, large(FIRST_MFN + 512))], 0x7ff0);
    assert_eq!(result, Err(Errno::EINVAL), "a frame in it is not the guest's");
}

#[test]
fn foreign_domains_are_refused_as_xen_does() {
    let mut machine = machine();
    let at = mfn(11).0 << 12;
    let cases = [
        (0x7ff0, pointing(5), ret(0)),
        (0x7ff1, 0, ret(0)),
        (0x7ff1, pointing(5), Err(Errno::EPERM)),
        (0x7ff2, 0, Err(Errno::EPERM)),
        (0, 0, Err(Errno::EPERM)),
        (1, 0, Err(Errno::ESRCH)),
        (9, 0, Err(Errno::ESRCH)),
        (2 << 16 | 0x7ff0, 0, ret(0)),
        (1 << 16 | 0x7ff0, 0, Err(Errno::EPERM)),
        (0x7ff1 << 16 | 0x7ff0, 0, Err(Errno::ESRCH)),
    ];
    for (foreigndom, val, expected) in cases {
        assert_eq!(mmu(&mut machine, &[(at, val)], foreigndom), expected, "{foreigndom:#x}");
    }
}

#[test]
fn long_lists_continue() {
    let mut machine = Machine::with(64, 1);
    let mut regs = CpuRegs { rdi: va(2).0, rsi: 1000, rdx: va(60).0, r10: 0x7ff0, ..kernel_regs() };
    // 1000 requests that store 0 into the same entry.
    for index in 0..1000 {
        machine.plat.poke(va(2).add(index * 16), mfn(50).0 << 12);
    }
    assert_eq!(mmu_update(&mut machine.cx(), &mut regs), Ok(Outcome::Continue));
    assert_eq!(regs.rdi, va(2).0 + 512 * 16);
    assert_eq!(regs.rsi, 0x8000_0000 | 488);
    assert_eq!(machine.plat.peek(va(60)), 512);
    assert_eq!(mmu_update(&mut machine.cx(), &mut regs), ret(0));
    assert_eq!(machine.plat.peek(va(60)), 1000);
}

#[test]
fn an_unreadable_list_is_a_fault() {
    let mut machine = Machine::new();
    let mut regs = CpuRegs { rdi: 0x1000, rsi: 1, r10: 0x7ff0, ..kernel_regs() };
    assert_eq!(mmu_update(&mut machine.cx(), &mut regs), Err(Errno::EFAULT));
    regs.rsi = 0;
    assert_eq!(mmu_update(&mut machine.cx(), &mut regs), ret(0));
}

#[test]
fn mappings_are_stored_by_address() {
    let mut machine = machine();
    let user_l4_slot = slot(TABLES[0], 0);
    machine.plat.poke(user_l4_slot, pointing(TABLES[1]));
    let user = VA & 0x7f_ffff_f000;
    let read_only = pointing(5) & !2;
    assert_eq!(update_va_mapping(&mut machine.cx(), VA, read_only, 2), ret(0));
    assert_eq!(machine.plat.peek(entry_of_va()), read_only | 2, "the kernel keeps its write");
    assert_eq!(update_va_mapping(&mut machine.cx(), user, read_only, 0), ret(0));
    assert_eq!(machine.plat.peek(entry_of_va()), read_only, "user mappings are what they are");
    assert_eq!(machine.plat.calls(), [Call::InvlpgLocal(GuestVa(VA))]);
}

#[test]
fn addresses_without_an_l1_are_refused() {
    let mut machine = machine();
    let cases = [0, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_f000, 0x8000_0000_0000, VA + (2 << 21)];
    for va in cases {
        let result = update_va_mapping(&mut machine.cx(), va, 0, 0);
        assert_eq!(result, Err(Errno::EINVAL), "{va:#x}");
    }
    let bad = update_va_mapping(&mut machine.cx(), VA, 0x800 << 12 | 1, 1);
    assert_eq!(bad, Err(Errno::EBUSY));
    assert!(machine.plat.calls().is_empty(), "no flush without an update");
}

#[test]
fn a_table_that_maps_itself_does_not_lead_into_the_hole() {
    let mut machine = machine();
    let l4 = TABLES[0];
    machine.plat.poke(slot(l4, 300), pointing(l4));
    let through = 300u64 << 39 | 256 << 30 | 0xffff << 48;
    assert_eq!(update_va_mapping(&mut machine.cx(), through, 0, 0), Err(Errno::EINVAL));
    // Through itself three times over it is its own L1.
    let itself = 0xffff << 48 | 300u64 << 39 | 300 << 30 | 300 << 21;
    for slot in [256u64, 257, 271] {
        let through = itself | slot << 12;
        let before = machine.plat.peek(self::slot(l4, slot));
        for flags in [0, UVMF_TLB_FLUSH] {
            let plain = update_va_mapping_plain(&machine.cx(), through, 0, flags);
            assert!(!plain, "{slot}");
            let result = update_va_mapping(&mut machine.cx(), through, 0, flags);
            assert_eq!(result, Err(Errno::EINVAL), "{slot}");
        }
        assert_eq!(machine.plat.peek(self::slot(l4, slot)), before);
    }
    assert_eq!(update_va_mapping(&mut machine.cx(), itself | 299 << 12, 0, 0), ret(0));
}

#[test]
fn flushes_reach_whom_they_name() {
    let mut machine = machine();
    machine.plat.poke(va(4), 0b1111);
    machine.plat.poke(va(5), 0b01);
    let page = Some(GuestVa(VA));
    let cases = [
        (1, Call::FlushTlbLocal),
        (2, Call::InvlpgLocal(GuestVa(VA))),
        (5, Call::FlushTlb(VcpuSet::All, None)),
        (6, Call::FlushTlb(VcpuSet::All, page)),
        (va(4).0 | 1, Call::FlushTlb(VcpuSet::Mask(0b11), None)),
        (va(4).0 | 2, Call::FlushTlb(VcpuSet::Mask(0b11), page)),
        (va(5).0 | 1, Call::FlushTlbLocal),
        (va(5).0 | 2, Call::InvlpgLocal(GuestVa(VA))),
    ];
    for (flags, call) in cases {
        assert_eq!(update_va_mapping(&mut machine.cx(), VA, pointing(5), flags), ret(0));
        assert_eq!(machine.plat.calls(), [call], "{flags:#x}");
    }
    let bad = update_va_mapping(&mut machine.cx(), VA, pointing(5), 0x1000 | 1);
    assert_eq!(bad, Err(Errno::EFAULT));
}

/// What an mmu_update may have freed a table by is counted, whichever way it goes.
#[test]
fn what_is_taken_out_is_counted() {
    let mut machine = machine();
    let [_, _, l2, l1] = TABLES;
    let at = address(l2, 7);
    for (command, value, counts) in [
        (0, pointing(l1), false),
        (0, pointing(l1) & !pte::RW, false),
        (0, pointing(12), true),
        (2, pointing(13), true),
        (2, pointing(13) & !pte::RW, false),
        (0, 0, true),
        (0, 0x60, false),
    ] {
        let entry = slot(l2, 7);
        let was = machine.plat.peek(entry);
        for plain in [false, true] {
            machine.plat.poke(entry, was);
            let before = machine.dom.tables.count();
            if plain {
                machine.plat.poke(va(2), at | command);
                machine.plat.poke(va(2).add(8), value);
                assert_eq!(mmu_update_plain(&mut machine.cx(), va(2).0, 1), ret(0));
            } else {
                assert_eq!(mmu(&mut machine, &[(at | command, value)], 0x7ff0), ret(0));
            }
            let taken = machine.dom.tables.count() - before;
            assert_eq!(taken, u64::from(counts), "{was:x} -> {command} {value:x}, {plain}");
        }
    }
}

/// Halted vCPUs are left out, unless a table may be free since their TLBs were emptied; those that are on no
/// table of the guest's always.
#[test]
fn flushes_of_halted_vcpus_are_put_off() {
    let machine = Machine::with(64, 4);
    let dom = &machine.dom;
    for vcpu in &dom.vcpus[..3] {
        vcpu.roots.begin(Mfn(7));
    }
    let flush = |targets, all| {
        let mut now = 0;
        dom.flush_tlbs(targets, |set| {
            now = set;
            all
        });
        now
    };
    assert_eq!(flush(0b1110, true), 0b110);
    dom.vcpus[2].lazy.halt();
    assert_eq!(flush(0b1110, true), 0b010);
    assert!(dom.vcpus[2].lazy.wake(), "it owes the flush");
    assert!(!dom.vcpus[2].lazy.wake(), "but once");
    assert_eq!(flush(0b1110, true), 0b110);
    dom.vcpus[2].lazy.halt();
    assert!(!dom.vcpus[2].lazy.wake(), "a flush while it was awake was done");
    dom.vcpus[2].lazy.halt();
    dom.tables.unhooked();
    assert_eq!(flush(0b1100, false), 0b100, "a table may be free");
    assert_eq!(flush(0b1100, true), 0b100, "a page was flushed, not all");
    assert_eq!(flush(0b1100, true), 0, "all was");
    assert!(dom.vcpus[2].lazy.wake());
}

#[test]
fn other_domains_mappings_are_refused() {
    let mut machine = machine();
    let mut other =
        |domid| update_va_mapping_otherdomain(&mut machine.cx(), VA, pointing(5), 0, domid);
    assert_eq!(other(0x7ff0), ret(0));
    assert_eq!(other(0), Err(Errno::EPERM));
    assert_eq!(other(0x7ff1), Err(Errno::EPERM));
    assert_eq!(other(5), Err(Errno::ESRCH));
}

#[test]
fn extended_operations() {
    use MmuextCmd as C;
    let mut machine = machine();
    machine.plat.poke(va(4), 0b10);
    let l4 = mfn(TABLES[0]).0;
    let page = Some(GuestVa(VA));
    type Case = (C, u64, u64, Result<Option<Call>, Errno>);
    let cases: Vec<Case> = [
        (C::PIN_L1_TABLE, l4, 0, Ok(None)),
        (C::PIN_L3_TABLE, 0x800, 0, Err(Errno::EINVAL)),
        (C::PIN_L4_TABLE, l4, 0, Ok(Some(Call::InstallHole(Mfn(l4))))),
        (C::UNPIN_TABLE, l4, 0, Ok(None)),
        (C::UNPIN_TABLE, u64::MAX, 0, Err(Errno::EINVAL)),
        (C::NEW_BASEPTR, l4, 0, Ok(Some(Call::LoadCr3(Mfn(l4))))),
        (C::NEW_BASEPTR, 0x800, 0, Err(Errno::EINVAL)),
        (C::NEW_BASEPTR, u64::MAX, 0, Err(Errno::EINVAL)),
        (C::NEW_USER_BASEPTR, l4, 0, Ok(None)),
        (C::NEW_USER_BASEPTR, 0, 0, Ok(None)),
        (C::NEW_USER_BASEPTR, 0x800, 0, Err(Errno::EINVAL)),
        (C::TLB_FLUSH_LOCAL, 0, 0, Ok(Some(Call::FlushTlbLocal))),
        (C::INVLPG_LOCAL, VA, 0, Ok(Some(Call::InvlpgLocal(GuestVa(VA))))),
        (C::TLB_FLUSH_MULTI, 0, va(4).0, Ok(Some(Call::FlushTlb(VcpuSet::Mask(2), None)))),
        (C::INVLPG_MULTI, VA, va(4).0, Ok(Some(Call::FlushTlb(VcpuSet::Mask(2), page)))),
        (C::INVLPG_MULTI, VA, 0x1000, Err(Errno::EINVAL)),
        (C::INVLPG_MULTI, 0xffff_8000_0000_0000, va(4).0, Ok(None)),
        (C::TLB_FLUSH_ALL, 0, 0, Ok(Some(Call::FlushTlb(VcpuSet::All, None)))),
        (C::INVLPG_ALL, VA, 0, Ok(Some(Call::FlushTlb(VcpuSet::All, page)))),
        (C::FLUSH_CACHE, 0, 0, Err(Errno::EACCES)),
        (C::FLUSH_CACHE_GLOBAL, 0, 0, Err(Errno::EINVAL)),
        (C::SET_LDT, VA, 12, Ok(Some(Call::LoadLdt(GuestVa(VA), 12)))),
        (C::SET_LDT, VA, 12, Ok(None)),
        (C::SET_LDT, VA + 8, 12, Err(Errno::EINVAL)),
        (C::SET_LDT, VA, 8193, Err(Errno::EINVAL)),
        (C::SET_LDT, 0xffff_8000_0000_0000, 1, Err(Errno::EINVAL)),
        (C::SET_LDT, 5, 0, Ok(Some(Call::LoadLdt(GuestVa(0), 0)))),
        (C::MARK_SUPER, 0, 0, Err(Errno::EOPNOTSUPP)),
        (C(14), 0, 0, Err(Errno::ENOSYS)),
        (C(21), 0, 0, Err(Errno::ENOSYS)),
    ]
    .into();
    for (cmd, arg1, arg2, expected) in cases {
        let result = ext(&mut machine, cmd, arg1, arg2);
        let calls = machine.plat.calls();
        match expected {
            Ok(call) => assert_eq!((result, calls), (ret(0), call.into_iter().collect())),
            Err(errno) => assert_eq!(result, Err(errno), "{cmd:?}"),
        }
    }
    assert_eq!(machine.vcpus[0].mmu.l4, l4);
}

#[test]
fn pages_are_cleared_and_copied() {
    let mut machine = machine();
    machine.plat.poke(va(5).add(8), 42);
    assert_eq!(ext(&mut machine, MmuextCmd::COPY_PAGE, mfn(6).0, mfn(5).0), ret(0));
    assert_eq!(ext(&mut machine, MmuextCmd::CLEAR_PAGE, mfn(5).0, 0), ret(0));
    assert_eq!((machine.plat.peek(va(5).add(8)), machine.plat.peek(va(6).add(8))), (0, 42));
    let foreign = ext(&mut machine, MmuextCmd::COPY_PAGE, mfn(6).0, 0x800);
    assert_eq!(foreign, Err(Errno::EINVAL));
}

/// Every present entry of the guest's frames, as the processor would follow them.
fn entries_stay_inside(plat: &FakePlatform, frames: u64) -> bool {
    (0..frames).all(|pfn| {
        plat.frame(mfn(pfn)).is_none_or(|words| {
            words.iter().enumerate().all(|(index, word)| {
                let entry = word.load(Relaxed);
                let hole = pfn == TABLES[0] && index == 256;
                hole || entry & pte::P == 0 || plat.may_map(frame_of(entry))
            })
        })
    })
}

fn any_entry() -> impl Strategy<Value = u64> {
    let frame = prop_oneof![
        FIRST_MFN - 2..FIRST_MFN + 66,
        Just(SHARED_INFO_MFN.0),
        0..0x2000u64,
        any::<u64>().prop_map(|x| x >> 24),
    ];
    (frame, 0..4096u64, any::<bool>()).prop_map(|(frame, flags, nx)| {
        frame << 12 & pte::ADDR | flags | if nx { pte::NX } else { 0 }
    })
}

/// A call in the plain form or, if it has none, as it is.
fn plain_or_not(machine: &mut Machine, nr: u64, args: [u64; 4]) -> i64 {
    match dispatch::plain(&mut machine.cx(), nr, args) {
        Some(value) => value,
        None => whole(machine, nr, args),
    }
}

/// A call by its number.
fn whole(machine: &mut Machine, nr: u64, args: [u64; 4]) -> i64 {
    let [rdi, rsi, rdx, r10] = args;
    let mut regs = CpuRegs { rax: nr, rdi, rsi, rdx, r10, ..kernel_regs() };
    match dispatch::hypercall(&mut machine.cx(), &mut regs) {
        Outcome::Return(value) => value,
        other => panic!("{other:?}"),
    }
}

/// All of the guest's memory.
fn memory(machine: &Machine) -> Vec<u64> {
    (0..64 * 512).map(|at| machine.plat.peek(va(0).add(at * 8))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The plain form of a call does what the call does.
    #[test]
    fn plain_forms_agree_with_the_calls(
        requests in prop::collection::vec((any_entry(), any_entry()), 1..4),
        mappings in prop::collection::vec(
            (prop_oneof![Just(VA), Just(VA & !0xfff | 0xff8), any::<u64>()], any_entry(), 0..8u64),
            1..4),
        ops in prop::collection::vec((0..24u64, any_entry(), any_entry()), 1..4),
        slots in any::<bool>(),
    ) {
        let run = |call: fn(&mut Machine, u64, [u64; 4]) -> i64| {
            let mut machine = machine();
            let mut results = Vec::new();
            let count = requests.len() as u64;
            for (index, (ptr, val)) in (0..).zip(&requests) {
                let ptr = if slots { address(TABLES[index as usize & 3], *val % 512) } else { *ptr };
                machine.plat.poke(va(2).add(index * 16), ptr);
                machine.plat.poke(va(2).add(index * 16 + 8), *val);
            }
            results.push(call(&mut machine, 1, [va(2).0, count, 0, 0x7ff0]));
            for (va, entry, flags) in &mappings {
                results.push(call(&mut machine, 14, [*va, *entry, *flags, 0]));
            }
            for (cmd, arg1, arg2) in &ops {
                for shift in [0, 12] {
                    for (at, word) in (0..).zip([*cmd, arg1 >> shift, arg2 >> shift]) {
                        machine.plat.poke(va(3).add(at * 8), word);
                    }
                    results.push(call(&mut machine, 26, [va(3).0, 1, 0, 0x7ff0]));
                }
            }
            (results, memory(&machine), machine.plat.calls())
        };
        prop_assert_eq!(run(plain_or_not), run(whole));
    }

    /// Whatever is asked, no present entry leaves the guest's frames and the hole stays.
    #[test]
    fn updates_stay_inside(
        requests in prop::collection::vec((any_entry(), any_entry()), 1..16),
        foreigndom in prop_oneof![Just(0x7ff0u64), Just(0x7ff1), any::<u32>().prop_map(u64::from)],
    ) {
        let mut machine = machine();
        let list = |machine: &Machine| (0..64).map(|at| machine.plat.peek(va(2).add(at * 8)))
            .collect::<Vec<_>>();
        let _ = mmu(&mut machine, &requests, foreigndom);
        // The list itself is the guest's data, not page tables.
        let _ = list(&machine);
        (0..512).for_each(|at| machine.plat.poke(va(2).add(at * 8), 0));
        (0..512).for_each(|at| machine.plat.poke(va(3).add(at * 8), 0));
        prop_assert!(entries_stay_inside(&machine.plat, 64));
        prop_assert_eq!(machine.plat.peek(slot(TABLES[0], 256)), 0x63);
    }

    #[test]
    fn mappings_stay_inside(
        requests in prop::collection::vec(
            (prop_oneof![Just(VA), any::<u64>()], any_entry(), 0..8u64), 1..16),
    ) {
        let mut machine = machine();
        for (va, entry, flags) in requests {
            let _ = update_va_mapping(&mut machine.cx(), va, entry, flags);
        }
        prop_assert!(entries_stay_inside(&machine.plat, 64));
        prop_assert_eq!(machine.plat.peek(slot(TABLES[0], 256)), 0x63);
    }

    #[test]
    fn operations_never_panic(
        ops in prop::collection::vec((0..24u32, any_entry(), any_entry()), 1..16),
    ) {
        let mut machine = machine();
        for (cmd, arg1, arg2) in ops {
            for (arg1, arg2) in [(arg1, arg2), (arg1 >> 12, arg2 >> 12)] {
                let _ = ext(&mut machine, MmuextCmd(cmd), arg1, arg2);
            }
        }
        prop_assert_eq!(machine.plat.peek(slot(TABLES[0], 256)), 0x63);
    }
}
