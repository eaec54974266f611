//! The builder as a whole: kernels of all kinds, layouts, the memory that results.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;
use xen_abi::elfnote::NoteType;
use xen_abi::start_info::{MAGIC_X86_64, SIF_MOD_START_PFN, StartInfo};
use xen_abi::{GuestVa, MachineAddr, Mfn, Pfn};
use zerocopy::FromBytes;

use super::fixtures::{LOAD_ADDR, Memory, Seg, VIRT_BASE, elf, linux_like, linux_notes, note};
use super::kernel::heap_bytes;
use super::layout::{self, Config, Layout};
use super::populate::{Machine, Start, populate};
use super::{BuildError, Kernel};

const MACHINE: Machine =
    Machine { shared_info: MachineAddr(0xabc000), console_evtchn: 2, store_evtchn: 1, flags: 0 };

fn init_p2m() -> Vec<u8> {
    note(NoteType::INIT_P2M, &0x80_0000_0000u64.to_le_bytes())
}

fn mod_start_pfn() -> Vec<u8> {
    note(NoteType::MOD_START_PFN, &[1])
}

fn refused(file: &[u8]) -> BuildError {
    Kernel::load(file).map(|k| k.entry).unwrap_err()
}

struct Built {
    layout: Layout,
    start: Start,
    memory: Memory,
    info: StartInfo,
}

fn build(file: &[u8], config: &Config<'_>, initrd: Option<&[u8]>, stride: u64) -> Built {
    let kernel = Kernel::load(file).unwrap();
    let layout = layout::plan(&kernel, config).unwrap();
    let mut memory = Memory::new(config.nr_pages, stride);
    let start = populate(&layout, &kernel, config.cmdline, initrd, &MACHINE, &mut memory).unwrap();
    let bytes = memory.slice(layout.start_info_pfn.0 * 4096, size_of::<StartInfo>());
    let info = StartInfo::read_from_bytes(bytes).unwrap();
    Built { layout, start, memory, info }
}

/// What must hold of every domain.
fn check(b: &Built) {
    let l = &b.layout;
    // The window maps page n at base + n, and nothing behind its end.
    for pfn in 0..l.window.pages {
        let found = b.memory.walk(b.start.cr3, l.window.va.0 + pfn * 4096);
        assert_eq!(found, Some((pfn, 0x63)), "page {pfn:#x}");
    }
    let end = l.window.va.0.wrapping_add(l.window.pages * 4096);
    assert_eq!(b.memory.walk(b.start.cr3, end), None);
    assert!(l.window.pages.is_multiple_of(1024));
    assert!(l.stack_pfn.0 + 1 + 128 <= l.window.pages);
    let pt_end = l.l4_pfn.0 + l.nr_pt_frames();
    assert_eq!(pt_end.next_multiple_of(1024), l.window.pages, "what Linux does not clean");
    assert_eq!(l.stack_pfn.0, pt_end);
    // The hypervisor's slots are empty.
    for slot in 256..=271 {
        assert_eq!(b.memory.word(l.l4_pfn.0 * 4096 + slot * 8), 0);
    }
    // The p2m tells every page's frame, through the mapping the guest is told of.
    for pfn in 0..l.nr_pages {
        assert_eq!(b.memory.word(l.p2m_pfn.0 * 4096 + pfn * 8), b.memory.mfn_of(pfn));
    }
    for page in 0..l.p2m_pages {
        let found = b.memory.walk(b.start.cr3, b.info.mfn_list + page * 4096).unwrap();
        assert_eq!(found.0, l.p2m_pfn.0 + page);
    }
    assert!(b.info.magic.starts_with(MAGIC_X86_64));
    assert_eq!(b.info.nr_pages, l.nr_pages);
    assert_eq!(b.info.shared_info, 0xabc000);
    assert_eq!(b.info.pt_base, l.window.va.0 + l.l4_pfn.0 * 4096);
    assert_eq!(b.info.nr_pt_frames, l.nr_pt_frames());
    assert_eq!(b.info.console_mfn, b.memory.mfn_of(l.console_pfn.0));
    assert_eq!(b.info.console_evtchn, 2);
    assert_eq!(b.start.rsi, l.va(l.start_info_pfn));
    assert_eq!(b.start.rsp.0, l.va(l.stack_pfn).0 + 4096);
    assert_eq!(b.start.console, Mfn(b.info.console_mfn));
    assert!(b.memory.slice(l.console_pfn.0 * 4096, 4096).iter().all(|&c| c == 0));
}

#[test]
fn a_modern_kernel() {
    let file = linux_like(&[init_p2m(), mod_start_pfn()]);
    let config = Config {
        nr_pages: 0x4000,
        cmdline: b"console=hvc0",
        initrd_bytes: 5000,
        initrd_pfn: Some(Pfn(0x3000)),
        xenstore: true,
    };
    let b = build(&file, &config, None, 64);
    check(&b);
    assert_eq!(b.start.rip, GuestVa(VIRT_BASE + LOAD_ADDR + 0x10));
    // Segments where p_paddr says, zero behind the file's bytes, and no further.
    assert!(b.memory.slice(LOAD_ADDR, 0x3000).iter().all(|&c| c == b'K'));
    assert!(b.memory.slice(LOAD_ADDR + 0x3000, 0x1000).iter().all(|&c| c == 0));
    assert_eq!(b.memory.slice(LOAD_ADDR + 0x5004, 9), b"\xa5\xa5\xa5\xa5data\0");
    // The p2m at its own address, its tables behind it.
    assert_eq!(b.info.mfn_list, 0x80_0000_0000);
    assert_eq!(b.layout.p2m_pfn.0, b.layout.window.pages);
    assert_eq!(b.info.first_p2m_pfn, b.layout.p2m_pfn.0);
    assert_eq!(b.info.nr_p2m_frames, 0x4000 / 512 + 3);
    // The initrd stays where it is.
    assert_eq!((b.info.mod_start, b.info.mod_len), (0x3000, 5000));
    assert_eq!(b.info.flags, SIF_MOD_START_PFN);
    assert_eq!(b.memory.slice(0x300_0000, 2), [0xa5; 2]);
    assert!(b.info.cmd_line.starts_with(b"console=hvc0\0"));
    assert_eq!(b.info.store_mfn, b.start.store.unwrap().0);
    assert_eq!(b.info.store_evtchn, 1);
    assert_eq!(b.start.hypercall_page, None);
    assert_eq!(b.layout.end_pfn.0, b.layout.window.pages + 0x4000 / 512 + 3);
}

#[test]
fn an_old_kernel() {
    let page = VIRT_BASE + LOAD_ADDR + 0x2000;
    let file = linux_like(&[note(NoteType::HYPERCALL_PAGE, &page.to_le_bytes())]);
    let initrd = [b'i'; 5000];
    let config = Config {
        nr_pages: 0x2000,
        initrd_bytes: 5000,
        // Of no use to this kernel: it wants its initrd mapped.
        initrd_pfn: Some(Pfn(0x1800)),
        ..Config::default()
    };
    let b = build(&file, &config, Some(&initrd), 3);
    check(&b);
    assert_eq!(b.info.mfn_list, b.layout.va(b.layout.p2m_pfn).0);
    assert_eq!((b.info.first_p2m_pfn, b.info.nr_p2m_frames), (0, 0));
    let at = b.info.mod_start - VIRT_BASE;
    assert_eq!(at, LOAD_ADDR + 0x6000);
    assert_eq!(b.memory.slice(at, 5000), initrd);
    assert!(b.memory.slice(at + 5000, 3192).iter().all(|&c| c == 0));
    assert_eq!(b.info.flags, 0);
    assert_eq!((b.info.store_mfn, b.info.store_evtchn), (0, 0));
    assert_eq!(b.start.hypercall_page, Some(Pfn(LOAD_ADDR / 4096 + 2)));
    assert_eq!(b.memory.slice(LOAD_ADDR + 0x2000, 4), [0x51, 0x41, 0x53, 0xb8]);
}

#[test]
fn an_initrd_that_is_copied_but_not_mapped() {
    let file = linux_like(&[init_p2m(), mod_start_pfn()]);
    let config = Config { nr_pages: 0x2000, initrd_bytes: 4096, ..Config::default() };
    let b = build(&file, &config, Some(&[7; 4096]), 1);
    check(&b);
    assert_eq!(b.info.mod_start, b.layout.window.pages);
    assert_eq!(b.memory.slice(b.info.mod_start * 4096, 4096), [7; 4096]);
    assert_eq!(b.layout.p2m_pfn.0, b.layout.window.pages + 1);
}

#[test]
fn a_p2m_address_inside_the_window_is_not_used() {
    for at in [0u64, 0x123, VIRT_BASE - 0x1000, 0xffff_8000_0000_0000, VIRT_BASE + 0x100_0000] {
        let file = linux_like(&[note(NoteType::INIT_P2M, &at.to_le_bytes())]);
        let b = build(&file, &Config { nr_pages: 0x1000, ..Config::default() }, None, 16);
        check(&b);
        assert_eq!(b.layout.p2m_mapping.is_some(), at == 0, "{at:#x}");
    }
}

#[test]
fn a_kernel_in_the_lower_half() {
    // Mini-OS: base 0, notes of the generic loader, entry from the ELF header.
    let mut notes = note(NoteType::LOADER, b"generic\0");
    notes.extend(note(NoteType::XEN_VERSION, b"xen-3.0\0"));
    let segs = [
        Seg { kind: 4, flags: 4, paddr: 0, bytes: &notes, memsz: notes.len() as u64 },
        Seg { kind: 1, flags: 7, paddr: 0, bytes: &[0x90; 100], memsz: 0x2000 },
    ];
    let b = build(&elf(62, 0x10, &segs), &Config { nr_pages: 1024, ..Config::default() }, None, 8);
    check(&b);
    assert_eq!(b.start.rip, GuestVa(0x10));
    assert_eq!(b.layout.window.va, GuestVa(0));
}

#[test]
fn the_legacy_section() {
    let base = 0xffff_ffff_8000_0000u64;
    let text = "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,\
                HYPERCALL_PAGE=0x201,FEATURES=writable_page_tables|!pae_pgdir_above_4gb,\
                LOADER=generic\0";
    let segs = [Seg { kind: 1, flags: 7, paddr: base + 0x20_0000, bytes: &[1; 64], memsz: 0x3000 }];
    let mut file = elf(62, base + 0x20_0000, &segs);
    // Sections: none, names, __xen_guest.
    let names_at = file.len();
    file.extend_from_slice(b"\0__xen_guest\0.shstrtab\0");
    let text_at = file.len();
    file.extend_from_slice(text.as_bytes());
    let shoff = file.len();
    for (name, offset, size) in [(0u32, 0, 0), (1, text_at, text.len()), (13, names_at, 23)] {
        let mut h = [0u8; 64];
        h[..4].copy_from_slice(&name.to_le_bytes());
        h[4..8].copy_from_slice(&3u32.to_le_bytes());
        h[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        h[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&h);
    }
    file[40..48].copy_from_slice(&(shoff as u64).to_le_bytes());
    file[58..60].copy_from_slice(&64u16.to_le_bytes());
    file[60..62].copy_from_slice(&3u16.to_le_bytes());
    file[62..64].copy_from_slice(&2u16.to_le_bytes());
    let kernel = Kernel::load(&file).unwrap();
    assert_eq!(kernel.virt_base, GuestVa(base));
    assert_eq!(kernel.entry, GuestVa(base + 0x20_0000));
    assert_eq!(kernel.hypercall_page, Some(GuestVa(base + 0x20_1000)));
    assert_eq!(kernel.segments[0].addr, 0x20_0000);
    assert_eq!(kernel.supported_features, 0x11);
    check(&build(&file, &Config { nr_pages: 2048, ..Config::default() }, None, 5));
}

#[test]
fn what_is_no_pv_kernel_is_told_apart() {
    assert_eq!(refused(b""), BuildError::UnknownFormat);
    assert_eq!(refused(b"#!/bin/sh"), BuildError::UnknownFormat);
    let load = |notes: &[u8], machine| {
        refused(&elf(
            machine,
            0x100,
            &[
                Seg { kind: 4, flags: 4, paddr: 0, bytes: notes, memsz: 0 },
                Seg { kind: 1, flags: 7, paddr: 0, bytes: b"x", memsz: 0x1000 },
            ],
        ))
    };
    assert_eq!(load(b"", 62), BuildError::NotXenPv);
    assert_eq!(load(b"", 183), BuildError::WrongMachine);
    assert_eq!(load(&note(NoteType::PHYS32_ENTRY, &[0; 8]), 62), BuildError::NotXenPv);
    let mut notes = note(NoteType::GUEST_OS, b"linux\0");
    notes.extend(note(NoteType::XEN_VERSION, b"xen-2.0\0"));
    assert!(matches!(load(&notes, 62), BuildError::BadNotes(_)));
    let mut file = linux_like(&[]);
    file[4] = 1;
    assert_eq!(refused(&file), BuildError::WrongMachine);
    file[18] = 3;
    assert_eq!(refused(&file), BuildError::Elf32);
    let file = linux_like(&[note(NoteType::FEATURES, b"!dom0\0")]);
    assert_eq!(refused(&file), BuildError::MissingFeature(11));
    let file = linux_like(&[note(NoteType::FEATURES, b"foo|!bar\0")]);
    assert!(matches!(refused(&file), BuildError::BadNotes(_)));
    let file = linux_like(&[note(NoteType::HYPERCALL_PAGE, &VIRT_BASE.to_le_bytes())]);
    assert_eq!(refused(&file), BuildError::BadHypercallPage);
    let file = linux_like(&[note(NoteType::ENTRY, &VIRT_BASE.to_le_bytes())]);
    assert!(matches!(refused(&file), BuildError::BadNotes(_)));
    let text = linux_notes(&[]);
    let segs = [
        Seg { kind: 4, flags: 4, paddr: 0, bytes: &text, memsz: 0 },
        Seg { kind: 1, flags: 7, paddr: u64::MAX - 1, bytes: b"x", memsz: 0x1000 },
    ];
    assert!(matches!(refused(&elf(62, 0, &segs)), BuildError::BadElf(_)));
}

#[test]
fn linux_says_which_features_it_needs() {
    let features = note(NoteType::FEATURES, b"!writable_page_tables|pae_pgdir_above_4gb\0");
    let known = note(NoteType::SUPPORTED_FEATURES, &0x8801u32.to_le_bytes());
    let file = linux_like(&[features, known]);
    assert_eq!(Kernel::load(&file).unwrap().supported_features, 0x8811);
}

#[test]
fn layouts_that_cannot_be() {
    let file = linux_like(&[init_p2m(), mod_start_pfn()]);
    let kernel = Kernel::load(&file).unwrap();
    let plan = |config: Config<'_>| layout::plan(&kernel, &config).unwrap_err();
    let base = Config { nr_pages: 0x1000, ..Config::default() };
    assert!(matches!(plan(Config { nr_pages: 0, ..base }), BuildError::TooLittleMemory(_)));
    assert!(matches!(plan(Config { nr_pages: 300, ..base }), BuildError::TooLittleMemory(_)));
    assert!(matches!(
        plan(Config { initrd_bytes: u64::MAX, ..base }),
        BuildError::TooLittleMemory(_)
    ));
    let at = |pfn| Config { initrd_bytes: 0x2000, initrd_pfn: Some(Pfn(pfn)), ..base };
    assert_eq!(plan(at(0xff)), BuildError::InitrdOverlaps);
    assert_eq!(plan(at(0x105)), BuildError::InitrdOverlaps);
    assert!(matches!(plan(at(0xfff)), BuildError::TooLittleMemory(_)));
    assert!(layout::plan(&kernel, &at(0xfe)).is_ok());
    // Where the p2m would go: it goes behind.
    let pushed = layout::plan(&kernel, &at(1025)).unwrap();
    assert_eq!(pushed.p2m_pfn, Pfn(1027));
    let long = [b'x'; 1024];
    assert_eq!(plan(Config { cmdline: &long, ..base }), BuildError::CommandLineTooLong);
    let mut memory = Memory::new(0x1000, 1);
    let planned = layout::plan(&kernel, &Config { initrd_bytes: 10, ..base }).unwrap();
    let refused = populate(&planned, &kernel, b"", None, &MACHINE, &mut memory).unwrap_err();
    assert_eq!(refused, BuildError::InitrdNeedsCopy);
}

#[test]
fn a_window_may_not_reach_the_hypervisor() {
    for base in [0xffff_8000_0000_0000u64, 0x7fff_ffff_f000, 0x8000_0000_0000, 0x1001] {
        let mut more = vec_of(NoteType::VIRT_BASE, base);
        more.extend(vec_of(NoteType::ENTRY, base.wrapping_add(LOAD_ADDR)));
        let file = linux_like(&more);
        let kernel = Kernel::load(&file).unwrap();
        let config = Config { nr_pages: 0x4000, ..Config::default() };
        assert_eq!(layout::plan(&kernel, &config), Err(BuildError::BadAddress), "{base:#x}");
    }
}

fn vec_of(kind: NoteType, value: u64) -> Vec<Vec<u8>> {
    alloc::vec![note(kind, &value.to_le_bytes())]
}

#[test]
fn large_domains_are_planned_at_once() {
    let file = linux_like(&[init_p2m(), mod_start_pfn()]);
    let kernel = Kernel::load(&file).unwrap();
    let config = Config { nr_pages: 64 << 18, ..Config::default() };
    let plan = layout::plan(&kernel, &config).unwrap();
    assert_eq!(plan.p2m_pages, 32768);
    assert_eq!(plan.p2m_mapping.unwrap().nr_tables(), 64 + 1 + 1);
    // Without INIT_P2M the same domain has its p2m in the window.
    let file = linux_like(&[]);
    let kernel = Kernel::load(&file).unwrap();
    let plan = layout::plan(&kernel, &config).unwrap();
    assert!(plan.window.pages > 32768);
}

#[test]
fn the_heap_is_known_before() {
    let file = linux_like(&[]);
    assert_eq!(heap_bytes(&file), Ok(file.len() + 0x1_0000));
    let sample = include_bytes!("decompress/samples/sample.xz");
    assert_eq!(heap_bytes(sample), Ok(200_000 + (7 << 20)));
    assert_eq!(heap_bytes(b"MZ"), Err(BuildError::UnknownFormat));
    assert_eq!(refused(sample), BuildError::UnknownFormat);
}

#[test]
fn errors_are_one_line() {
    for error in [
        BuildError::MissingFeature(11),
        BuildError::TooLittleMemory(1000),
        BuildError::Corrupt(super::error::Compression::Xz),
        BuildError::BadNotes("x"),
    ] {
        assert!(!error.to_string().contains('\n'));
    }
    assert!(format!("{}", BuildError::TooLittleMemory(1000)).contains("4 MiB"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_size_keeps_the_promises(kernel_pages in 0u64..2200, stride in 1u64..70,
                                     outside: bool, initrd in 0u64..9000, unmapped: bool) {
        let mut more = Vec::new();
        if outside { more.push(init_p2m()); }
        if unmapped { more.push(mod_start_pfn()); }
        let notes = linux_notes(&more);
        let segs = [
            Seg { kind: 4, flags: 4, paddr: 0, bytes: &notes, memsz: 0 },
            Seg { kind: 1, flags: 7, paddr: LOAD_ADDR, bytes: b"k", memsz: 0x20 + kernel_pages * 4096 },
        ];
        let file = elf(62, 0, &segs);
        let bytes = alloc::vec![9; initrd as usize];
        let config = Config { nr_pages: 0x1000, initrd_bytes: initrd, ..Config::default() };
        check(&build(&file, &config, Some(&bytes), stride));
    }

    #[test]
    fn damaged_kernels_never_panic(at in 0usize..700, value: u8, cut in 0usize..20000) {
        let mut file = linux_like(&[init_p2m(), mod_start_pfn()]);
        file[at] = value;
        file.truncate(cut.max(at));
        if let Ok(kernel) = Kernel::load(&file) {
            let config = Config { nr_pages: 0x1000, initrd_bytes: 77, ..Config::default() };
            let _ = layout::plan(&kernel, &config);
        }
    }
}
