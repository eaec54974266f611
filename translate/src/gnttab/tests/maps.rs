//! The guest's use of its own grants: mappings, copies, transfers.

use super::*;
use crate::gnttab::{access, release};
use crate::platform::GuestMemory;
use xen_abi::grant_table::gntmap;
use xen_abi::mm::pte;

/// Tables that map linear address 0x1000 * n at entry n of the last.
const L4: u64 = 20;
const L1: u64 = 23;
const IN_USE: u64 = (gtf::READING | gtf::WRITING) as u64;

fn tables() -> Machine {
    let mut m = machine();
    m.cx().vcpu.mmu.l4 = mfn(L4).0;
    for table in L4..L1 {
        m.plat.poke(va(table), mfn(table + 1).0 << 12 | 0x67);
    }
    m
}

fn grant(m: &Machine, gref: u64, flags: u16, dom: u64, pfn: u64) {
    m.plat.poke(va(40).add(gref * 8), u64::from(flags) | dom << 16 | mfn(pfn).0 << 32);
}

fn flags(m: &Machine, gref: u64) -> u64 {
    m.plat.peek(va(40).add(gref * 8)) & IN_USE
}

/// Maps grant 9 at an address: status and handle.
fn map(m: &mut Machine, at: u64, flags: u32, dom: u64) -> (i16, u64) {
    let words = [at, 9 << 32 | u64::from(flags), dom | 0xdead << 32, 0];
    assert_eq!(op(m, GnttabOp::MAP_GRANT_REF, &words), ret(0));
    ((word(m, 2) >> 16) as i16, word(m, 2) >> 32)
}

fn unmap(m: &mut Machine, cmd: GnttabOp, at: u64, second: u64, handle: u64) -> i16 {
    assert_eq!(op(m, cmd, &[at, second, handle]), ret(0));
    (word(m, 2) >> 32) as i16
}

#[test]
fn own_grants_can_be_mapped() {
    let mut m = tables();
    let read_only = gntmap::HOST_MAP | gntmap::READONLY;
    assert_eq!(map(&mut m, 0x5000, read_only, 1).0, -1, "not granted");
    grant(&m, 9, gtf::PERMIT_ACCESS, 1, 10);
    assert_eq!(map(&mut m, 0x5000, 0, 1).0, -3);
    assert_eq!(map(&mut m, 0x5000, read_only, 7).0, -2);
    assert_eq!(map(&mut m, 0x5000, read_only, 0x7ff0).0, -2);
    assert_eq!(map(&mut m, 0x5000, read_only, 0).0, -1);
    assert_eq!(map(&mut m, 1 << 30, read_only, 1).0, -1, "no page table there");
    assert_eq!(flags(&m, 9), 0);
    let (status, handle) = map(&mut m, 0x5000, read_only, 1);
    assert_eq!((status, word(&m, 3)), (0, mfn(10).0 << 12));
    let entry = mfn(10).0 << 12 | pte::P | pte::A | pte::D;
    assert_eq!(m.plat.peek(va(L1).add(5 * 8)), entry);
    assert_eq!(flags(&m, 9), u64::from(gtf::READING));
    // Once more, for writing, by the entry's machine address, for both sides.
    let all = gntmap::HOST_MAP | gntmap::DEVICE_MAP | gntmap::CONTAINS_PTE;
    let pte_at = (mfn(L1).0 << 12) + 6 * 8;
    assert_eq!(map(&mut m, pte_at + 4, all, 1).0, -1);
    let (status, second) = map(&mut m, pte_at, all | gntmap::APPLICATION_MAP | 5 << 16, 1);
    assert_eq!(status, 0);
    let entry = entry | pte::RW | pte::US | 5 << 9;
    assert_eq!(m.plat.peek(va(L1).add(6 * 8)), entry);
    assert_eq!(flags(&m, 9), IN_USE);
    assert_eq!(access(&m.dom, &m.plat, GrantRef(9), false), Err(GrantStatus::GENERAL_ERROR));
    // Away with them, one side after the other.
    let none = GnttabOp::UNMAP_GRANT_REF;
    assert_eq!(unmap(&mut m, none, 0x6000, 0, handle), -1, "not what is mapped there");
    assert_eq!(unmap(&mut m, none, pte_at, 0x1000, second), -6);
    assert_eq!(unmap(&mut m, none, pte_at, 0, second), 0);
    assert_eq!((m.plat.peek(va(L1).add(6 * 8)), flags(&m, 9)), (0, IN_USE));
    assert_eq!(unmap(&mut m, none, 0, mfn(10).0 << 12, second), 0);
    assert_eq!(flags(&m, 9), u64::from(gtf::READING));
    assert_eq!(unmap(&mut m, none, pte_at, 0, second), -4);
    assert_eq!(unmap(&mut m, none, 0x5000, 0, handle), 0);
    assert_eq!((m.plat.peek(va(L1).add(5 * 8)), flags(&m, 9)), (0, 0));
    assert_eq!(unmap(&mut m, none, 0x5000, 0, u64::from(u32::MAX)), -4);
}

#[test]
fn a_mapping_is_replaced_by_another() {
    let mut m = tables();
    grant(&m, 9, gtf::PERMIT_ACCESS, 1, 10);
    let (_, handle) = map(&mut m, 0x5000, gntmap::HOST_MAP, 1);
    m.plat.poke(va(L1).add(7 * 8), mfn(11).0 << 12 | 0x63);
    let replace = GnttabOp::UNMAP_AND_REPLACE;
    assert_eq!(unmap(&mut m, replace, 0x5000, 0x7000, handle), 0);
    assert_eq!(m.plat.peek(va(L1).add(5 * 8)), mfn(11).0 << 12 | 0x63);
    assert_eq!(m.plat.peek(va(L1).add(7 * 8)), 0);
    assert_eq!(flags(&m, 9), 0);
}

/// The hypervisor's slots of an L4 are no place for a grant.
#[test]
fn not_into_the_hole() {
    let mut m = tables();
    grant(&m, 9, gtf::PERMIT_ACCESS, 1, 10);
    m.plat.poke(va(L4).add(256 * 8), crate::fake::HOLE_ENTRY);
    let by_pte = gntmap::HOST_MAP | gntmap::CONTAINS_PTE;
    for index in [256, 260, 271] {
        assert_eq!(map(&mut m, (mfn(L4).0 << 12) + index * 8, by_pte, 1).0, -1);
    }
    assert_eq!(map(&mut m, (mfn(L4).0 << 12) + 272 * 8, by_pte, 1).0, 0);
    assert_eq!(map(&mut m, 7 << 12, by_pte, 1).0, -1, "not the guest's RAM");
}

#[test]
fn handles_run_out_and_come_back() {
    let mut m = tables();
    grant(&m, 9, gtf::PERMIT_ACCESS, 1, 10);
    let room = m.dom.gnttab.maps.lock().mappings_len();
    let mut handles = Vec::new();
    // A counter ends at 128; three more entries take the rest.
    for gref in 9..9 + room.div_ceil(128) as u64 {
        grant(&m, gref, gtf::PERMIT_ACCESS, 1, 10);
        for _ in 0..128.min(room - handles.len()) {
            let words = [0, gref << 32 | u64::from(gntmap::DEVICE_MAP), 1, 0];
            assert_eq!(op(&mut m, GnttabOp::MAP_GRANT_REF, &words), ret(0));
            assert_eq!((word(&m, 2) >> 16) as i16, 0);
            handles.push(word(&m, 2) >> 32);
        }
    }
    assert_eq!(map(&mut m, 0, gntmap::DEVICE_MAP, 1).0, -13);
    let bus = mfn(10).0 << 12;
    for handle in &handles {
        assert_eq!(unmap(&mut m, GnttabOp::UNMAP_GRANT_REF, 0, bus, *handle), 0);
    }
    assert_eq!(flags(&m, 9), 0);
    assert_eq!(map(&mut m, 0, gntmap::DEVICE_MAP, 1).0, 0);
}

#[test]
fn copies_go_through_grants() {
    let mut m = machine();
    m.plat.poke(va(10).add(8), u64::from_le_bytes(*b"abcdefgh"));
    grant(&m, 9, gtf::PERMIT_ACCESS | gtf::READONLY, 1, 10);
    grant(&m, 11, gtf::PERMIT_ACCESS, 1, 12);
    let mut copy = |source: (u64, u64), dest: (u64, u64), len: u64, flags: u64| {
        let dom = 0x7ff0;
        let words = [source.0, source.1 << 16 | dom, dest.0, dest.1 << 16 | dom, flags << 16 | len];
        assert_eq!(op(&mut m, GnttabOp::COPY, &words), ret(0));
        ((word(&m, 4) >> 32) as i16, m.plat.peek(va(12)))
    };
    assert_eq!(copy((9, 9), (11, 1), 3, 3), (0, u64::from_le_bytes(*b"\0bcd\0\0\0\0")));
    assert_eq!(copy((9, 8), (11, 0), 8, 3), (0, u64::from_le_bytes(*b"abcdefgh")));
    assert_eq!(copy((9, 8), (9, 0), 8, 3).0, -1, "read only");
    assert_eq!(copy((8, 8), (11, 0), 8, 3).0, -1, "not granted");
    assert_eq!(copy((9, 4090), (11, 0), 8, 3).0, -10);
    assert_eq!(copy((512, 0), (11, 0), 8, 3).0, -3);
    assert_eq!((flags(&m, 9), flags(&m, 11)), (0, 0));
    // Parts of pages, in version 2.
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[2]), ret(0));
    let part = u64::from(gtf::PERMIT_ACCESS | gtf::SUB_PAGE) | 1 << 16 | 8 << 32 | 4 << 48;
    m.plat.poke(va(40).add(9 * 16), part);
    m.plat.poke(va(40).add(9 * 16 + 8), mfn(10).0);
    let mut copy = |offset: u64, len: u64| {
        let words = [9, offset << 16 | 1, mfn(12).0, 0x7ff0, 1 << 16 | len];
        assert_eq!(op(&mut m, GnttabOp::COPY, &words), ret(0));
        (word(&m, 4) >> 32) as i16
    };
    assert_eq!([copy(8, 4), copy(10, 2), copy(8, 5), copy(7, 2)], [0, 0, -1, -1]);
    let transitive = u64::from(gtf::TRANSITIVE) | 1 << 16;
    m.plat.poke(va(40).add(9 * 16), transitive);
    assert_eq!(op(&mut m, GnttabOp::COPY, &[9, 1, mfn(12).0, 0x7ff0, 1 << 16 | 4]), ret(0));
    assert_eq!((word(&m, 4) >> 32) as i16, -1);
    assert_eq!(m.plat.peek(va(48).add(16)), 0);
}

#[test]
fn a_guest_gives_itself_a_page() {
    let mut m = machine();
    m.plat.poke(va(40).add(9 * 8), u64::from(gtf::ACCEPT_TRANSFER) | 1 << 16 | 55 << 32);
    let mut transfer = |frame: u64, dom: u64, gref: u64| {
        assert_eq!(op(&mut m, GnttabOp::TRANSFER, &[frame, gref << 32 | dom, 0]), ret(0));
        word(&m, 2) as i16
    };
    assert_eq!(transfer(1, 1, 9), -9);
    assert_eq!(transfer(mfn(10).0, 0, 9), -1);
    assert_eq!(transfer(mfn(10).0, 1, 8), -1);
    assert_eq!(transfer(mfn(10).0, 1, 600), -1);
    assert_eq!(transfer(mfn(10).0, 1, 9), 0);
    assert_eq!(transfer(mfn(11).0, 1, 9), -1);
    let done = gtf::ACCEPT_TRANSFER | gtf::TRANSFER_COMMITTED | gtf::TRANSFER_COMPLETED;
    assert_eq!(m.plat.peek(va(40).add(72)), u64::from(done) | 1 << 16 | mfn(10).0 << 32);
    assert_eq!(m.plat.m2p(mfn(10)), Some(xen_abi::Pfn(55)));
}

/// Long lists are continued: every element is done once.
#[test]
fn continuations() {
    let mut m = machine();
    // Swaps of neighbours carry the first entry to the end.
    m.plat.poke(va(40).add(8 * 8), 4321);
    for index in 0..300u64 {
        m.plat.poke(va(5).add(index * 12), 0);
        let at = va(5).add(index * 12);
        let op = [8 + index as u32, 9 + index as u32, 0xffff];
        let bytes: Vec<u8> = op.iter().flat_map(|word| word.to_le_bytes()).collect();
        m.plat.copy_to_guest(at, &bytes).unwrap();
    }
    assert_eq!(call(&mut m, 11, va(5).0, 300), ret(0));
    assert_eq!(m.plat.peek(va(40).add(308 * 8)), 4321);
    assert_eq!(m.plat.peek(va(40).add(8 * 8)), 0);
    // 300 unmappings of nothing, with a fault in the middle.
    assert_eq!(call(&mut m, 1, va(62).0, 400), Err(Errno::EFAULT));
    release(&m.dom, GrantRef(0), true);
}
