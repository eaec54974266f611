//! Random hypercalls, exceptions and returns against the fake platform: whatever a guest asks,
//! ring 0 neither panics nor loses what keeps it alive.

use std::vec;
use std::vec::Vec;

use core::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use xen_abi::{GuestVa, Mfn};
use zerocopy::IntoBytes;

use crate::bounce;
use crate::dispatch::hypercall;
use crate::evtchn::Backend;
use crate::fake::{
    FIRST_MFN, HOLE_ENTRY, Machine, SHARED_INFO_MFN, catch_shutdown, kernel_regs, mfn, user_regs,
    va,
};
use crate::outcome::Outcome;
use crate::platform::GuestMemory;
use crate::regs::CpuRegs;
use crate::xenstore::Config;

/// Frames the machine has.
const FRAMES: u64 = 24;
/// The L4 it starts with, and the L3, L2 and L1 below it.
const L4: u64 = 8;
/// The ring of xenstore.
const STORE: u64 = 20;

/// A value that has a chance to mean something: a small number, a pointer to memory, a machine
/// address or frame, a domain id, an entry; or anything.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..40u64,
        4 => (0..FRAMES, 0..512u64).prop_map(|(pfn, word)| va(pfn).0 + word * 8),
        1 => (0..FRAMES, 0..4096u64).prop_map(|(pfn, byte)| va(pfn).0 + byte),
        2 => (0..FRAMES + 2, 0..4096u64).prop_map(|(pfn, byte)| (FIRST_MFN + pfn) << 12 | byte),
        1 => FIRST_MFN - 1..FIRST_MFN + FRAMES + 1,
        1 => Just(SHARED_INFO_MFN.0),
        2 => prop_oneof![Just(0x7ff0u64), Just(0x7ff1), Just(0), Just(1)],
        1 => 0xffff_7fff_ffff_0000..0xffff_8800_0000_1000u64,
        1 => (u64::MAX - 4096)..=u64::MAX,
        1 => any::<u64>(),
        1 => any::<u32>().prop_map(u64::from),
    ]
}

/// Something that enters ring 0.
#[derive(Clone, Debug)]
enum Entry {
    Hypercall { nr: u64, args: [u64; 6], rsp: u64 },
    Exception { vector: u8, code: Option<u32>, user: bool, rsp: u64 },
    PageFault { cr2: u64, code: u32, user: bool },
    Syscall { which: u8 },
    Failsafe { selectors: [u16; 4] },
    Nmi,
    Poke { at: (u64, u64), words: Vec<u64> },
}

fn entry() -> impl Strategy<Value = Entry> {
    let nr = prop_oneof![20 => 0..56u64, 1 => any::<u64>()];
    prop_oneof![
        20 => (nr, prop::array::uniform6(value()), value())
            .prop_map(|(nr, args, rsp)| Entry::Hypercall { nr, args, rsp }),
        2 => (0..32u8, any::<Option<u32>>(), any::<bool>(), value())
            .prop_map(|(vector, code, user, rsp)| Entry::Exception { vector, code, user, rsp }),
        1 => (value(), any::<u32>(), any::<bool>())
            .prop_map(|(cr2, code, user)| Entry::PageFault { cr2, code, user }),
        1 => (0..3u8).prop_map(|which| Entry::Syscall { which }),
        1 => any::<[u16; 4]>().prop_map(|selectors| Entry::Failsafe { selectors }),
        1 => Just(Entry::Nmi),
        10 => ((0..FRAMES, 0..500u64), prop::collection::vec(value(), 1..12))
            .prop_map(|(at, words)| Entry::Poke { at, words }),
    ]
}

fn machine() -> Machine {
    let mut machine = Machine::with(FRAMES, 2);
    {
        let cx = machine.cx();
        crate::platform::Processor::load_cr3(cx.plat, mfn(L4));
        cx.vcpu.mmu.l4 = mfn(L4).0;
        cx.vcpu.entry.kernel_sp = va(6).0 + 0x1000;
        cx.vcpu.entry.event_callback = 0xffff_ffff_8100_0000;
        cx.vcpu.entry.failsafe_callback = 0xffff_ffff_8100_1000;
        cx.vcpu.entry.set_syscall_callback(0xffff_ffff_8100_2000, true);
    }
    for (table, below) in [(L4, L4 + 1), (L4 + 1, L4 + 2), (L4 + 2, L4 + 3)] {
        for index in [0, 272, 511] {
            machine.plat.poke(va(table).add(index * 8), mfn(below).0 << 12 | 0x67);
        }
    }
    hide_tables(&machine);
    let port = machine.dom.evtchn.alloc_backend(&machine.plat, Backend::Xenstore).expect("free");
    machine.dom.xenstore.start(&Config { bytes: 32 << 10, ..Config::default() }).expect("memory");
    machine.dom.xenstore.connect(&machine.plat, mfn(STORE).base(), port);
    machine
}

/// A guest keeps writable pointers to its L4s to itself, as it does those to its own code: where
/// it hands them to ring 0 as places for results it unmaps itself, and ring 0 with it.
fn hide_tables(machine: &Machine) {
    (0..FRAMES).filter(|pfn| is_l4(machine, *pfn)).for_each(|pfn| machine.plat.unmap(va(pfn)));
}

/// Carries out an entry, with all its continuations and the exit.
fn enter(machine: &mut Machine, entry: &Entry) {
    let mode = |user, rsp| match user {
        true => user_regs(),
        false => CpuRegs { rsp, ..kernel_regs() },
    };
    let mut regs = kernel_regs();
    match *entry {
        Entry::Hypercall { nr, args: [rdi, rsi, rdx, r10, r8, r9], rsp } => {
            regs = CpuRegs { rax: nr, rdi, rsi, rdx, r10, r8, r9, rsp, ..regs };
            for _ in 0..100_000 {
                let outcome = hypercall(&mut machine.cx(), &mut regs);
                if outcome != Outcome::Continue {
                    break;
                }
                bounce::exit_to_guest(&mut machine.cx(), &mut kernel_regs());
            }
            let id = machine.vcpus[0].id;
            let blocked = machine.dom.vcpus[id as usize].blocked.load(Relaxed);
            if blocked {
                machine.info().evtchn_upcall_pending.store(1, Relaxed);
                let _ = crate::sched::wake_check(&mut machine.cx());
            }
        }
        Entry::Exception { vector, code, user, rsp } => {
            regs = mode(user, rsp);
            let cx = &mut machine.cx();
            match vector {
                13 => drop(crate::emulate::general_protection(cx, &mut regs, code.unwrap_or(0))),
                6 => drop(crate::emulate::invalid_opcode(cx, &mut regs)),
                _ => {}
            }
            bounce::exception(cx, &mut regs, vector, code);
        }
        Entry::PageFault { cr2, code, user } => {
            regs = mode(user, va(5).0 + 0x800);
            bounce::page_fault(&mut machine.cx(), &mut regs, cr2, code);
        }
        Entry::Syscall { which } => {
            regs = user_regs();
            let cx = &mut machine.cx();
            match which {
                0 => bounce::syscall(cx, &mut regs),
                1 => bounce::syscall32(cx, &mut regs),
                _ => bounce::sysenter(cx, &mut regs),
            }
        }
        Entry::Failsafe { selectors } => {
            regs = user_regs();
            bounce::failsafe(&mut machine.cx(), &mut regs, selectors);
        }
        Entry::Nmi => bounce::raise_nmi(&mut machine.cx()),
        Entry::Poke { at: (pfn, word), ref words } => {
            // The guest writes its own memory, but its page tables only by hypercalls here.
            let first = va(pfn).add(word * 8);
            let _ = machine.plat.copy_to_guest(first, words.as_bytes());
            return;
        }
    }
    bounce::exit_to_guest(&mut machine.cx(), &mut regs);
    assert!(regs.rflags & 0x200 != 0, "the guest runs with interrupts on");
    assert!(regs.cs & 3 != 0, "and not in ring 0");
}

fn is_l4(machine: &Machine, pfn: u64) -> bool {
    machine.plat.frame(mfn(pfn)).is_some_and(|words| words[256].load(Relaxed) == HOLE_ENTRY)
}

/// What keeps ring 0 alive.
fn check(machine: &Machine) {
    let plat = &machine.plat;
    let l4 = Mfn(machine.vcpus[0].mmu.l4);
    let words = plat.frame(l4).expect("the L4 in use is the guest's");
    assert_eq!(words[256].load(Relaxed), HOLE_ENTRY, "the hypervisor is mapped");
    let owned = (0..FRAMES).filter(|pfn| plat.may_map(mfn(*pfn))).count();
    assert_eq!(machine.dom.nr_pages.load(Relaxed), owned as u64);
    assert!(!machine.vcpus[0].mmu.flushes.wait(), "a flush is left over");
}

/// How many sequences are tried; `PONTOON_FUZZ_CASES` says otherwise.
fn cases() -> u32 {
    std::env::var("PONTOON_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1024)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn ring_0_survives(entries in prop::collection::vec(entry(), 1..24)) {
        let mut machine = machine();
        for entry in &entries {
            if catch_shutdown(|| enter(&mut machine, entry)).is_err() {
                break;
            }
            check(&machine);
            hide_tables(&machine);
        }
    }
}

/// The hypercalls of the table with pointers to one structure each, so that every handler gets
/// past its first look at the arguments often.
#[test]
fn every_hypercall_with_every_command() {
    for nr in 0..56u64 {
        for cmd in 0..48u64 {
            let mut machine = machine();
            for pointer in [va(3).0, va(3).0 + 8, 0, GuestVa(u64::MAX).0] {
                let args = [
                    [cmd, pointer, 1, 0x7ff0, 0, 0],
                    [pointer, cmd, pointer, 0x7ff0, 0, 0],
                    [cmd, 0, pointer, pointer, 0, 0],
                    [cmd, cmd, cmd, 0x7ff0, pointer, 0],
                ];
                for args in args {
                    let entry = Entry::Hypercall { nr, args, rsp: va(4).0 };
                    if catch_shutdown(|| enter(&mut machine, &entry)).is_ok() {
                        check(&machine);
                        hide_tables(&machine);
                    }
                }
            }
        }
    }
}
