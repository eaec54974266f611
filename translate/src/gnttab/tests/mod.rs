//! What the guest asks for; [`backend`] has what backends do, [`threads`] both at once.

mod backend;
mod maps;
mod threads;

use std::vec::Vec;

use proptest::prelude::*;
use xen_abi::grant_table::{GnttabOp, GrantRef, GrantStatus, gtf};

use super::table::status_frames;
use super::*;
use crate::fake::{Machine, kernel_regs, mfn, va};
use crate::outcome::Outcome;

/// Guest frames the pool is made of.
const POOL: core::ops::Range<u64> = 40..49;
const SELF: u64 = 0x7ff0;

fn machine() -> Machine {
    let m = Machine::new();
    let pool: Vec<Mfn> = POOL.map(mfn).collect();
    m.dom.gnttab.set_pool(&m.plat, &pool);
    m
}

/// The call with its arguments in registers, continued to its end.
fn call(m: &mut Machine, cmd: u64, uop: u64, count: u64) -> HcResult {
    let mut regs = CpuRegs { rdi: cmd, rsi: uop, rdx: count, ..kernel_regs() };
    loop {
        match grant_table_op(&mut m.cx(), &mut regs) {
            Ok(Outcome::Continue) => {}
            result => return result,
        }
    }
}

fn op(m: &mut Machine, cmd: GnttabOp, words: &[u64]) -> HcResult {
    for (index, word) in (0u64..).zip(words) {
        m.plat.poke(va(3).add(index * 8), *word);
    }
    call(m, cmd.0.into(), va(3).0, 1)
}

fn word(m: &Machine, index: u64) -> u64 {
    m.plat.peek(va(3).add(index * 8))
}

/// `GNTTABOP_setup_table`: its status.
fn setup(m: &mut Machine, dom: u64, frames: u64, list: u64) -> i16 {
    assert_eq!(op(m, GnttabOp::SETUP_TABLE, &[frames << 32 | dom, 0xffff, list]), ret(0));
    word(m, 1) as i16
}

/// `GNTTABOP_query_size`: frames, most frames, status.
fn size(m: &mut Machine) -> (u64, u64, i16) {
    assert_eq!(op(m, GnttabOp::QUERY_SIZE, &[SELF, 0]), ret(0));
    (word(m, 0) >> 32, word(m, 1) & 0xffff_ffff, (word(m, 1) >> 32) as i16)
}

fn version(m: &mut Machine) -> u64 {
    assert_eq!(op(m, GnttabOp::GET_VERSION, &[SELF, 0]), ret(0));
    word(m, 0) >> 32
}

#[test]
fn set_up() {
    let mut m = machine();
    assert_eq!(size(&mut m), (1, 8, 0));
    m.plat.poke(va(41), u64::MAX);
    assert_eq!(setup(&mut m, SELF, 3, va(5).0), 0);
    let frames: Vec<u64> = (0..3).map(|i| m.plat.peek(va(5).add(i * 8))).collect();
    assert_eq!(frames, [mfn(40).0, mfn(41).0, mfn(42).0]);
    assert_eq!(m.plat.peek(va(41)), 0, "new frames are clean");
    assert_eq!(size(&mut m), (3, 8, 0));
    assert_eq!(setup(&mut m, SELF, 1, va(5).0), 0);
    assert_eq!(size(&mut m), (3, 8, 0), "a table never shrinks");
    assert_eq!(setup(&mut m, SELF, 9, va(5).0), -1);
    assert_eq!(setup(&mut m, 0, 1, va(5).0), -8);
    assert_eq!(setup(&mut m, 9, 1, va(5).0), -2);
    assert_eq!(setup(&mut m, 1, 1, 0x10), -5);
    let hole = 0xffff_8000_0000_0000;
    assert_eq!(op(&mut m, GnttabOp::SETUP_TABLE, &[SELF, 0, hole]), Err(Errno::EFAULT));
    assert_eq!(call(&mut m, 2, va(3).0, 2), Err(Errno::EINVAL));
    assert_eq!(call(&mut m, 6, va(3).0, 0), Err(Errno::EINVAL));
    assert_eq!(call(&mut m, 2, va(3).0, 1 << 31), Err(Errno::EINVAL));
    assert_eq!(call(&mut m, 2 | 1 << 12, va(3).0, 1), Err(Errno::EINVAL));
    assert_eq!(call(&mut m, 3, va(3).0, 1), Err(Errno::ENOSYS));
    assert_eq!(call(&mut m, 13, va(3).0, 1), Err(Errno::ENOSYS));
    assert_eq!(call(&mut m, 2, 0, 1), Err(Errno::EFAULT));
}

#[test]
fn no_pool_no_table() {
    let mut m = Machine::new();
    assert_eq!(size(&mut m), (0, 0, 0));
    assert_eq!(setup(&mut m, SELF, 1, va(5).0), -1);
    assert_eq!(op(&mut m, GnttabOp::SWAP_GRANT_REF, &[0, 0]), ret(0));
    assert_eq!(word(&m, 1) as i16, -3);
}

#[test]
fn versions_keep_the_reserved_entries() {
    let mut m = machine();
    assert_eq!(version(&mut m), 1);
    let frames = |m: &mut Machine, nr: u64| {
        let args = [SELF << 32 | nr, va(5).0];
        assert_eq!(op(m, GnttabOp::GET_STATUS_FRAMES, &args), ret(0));
        (word(m, 0) >> 48) as i16
    };
    assert_eq!(frames(&mut m, 1), -1, "version 1 has none");
    // Entry 0: access for domain 0 to frame 0x1234, being read; entry 9 is lost.
    m.plat.poke(va(40), 0x1234 << 32 | 0x9);
    m.plat.poke(va(40).add(9 * 8), u64::MAX);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[2]), ret(0));
    assert_eq!((word(&m, 0) & 0xffff_ffff, version(&mut m)), (2, 2));
    assert_eq!((m.plat.peek(va(40)), m.plat.peek(va(40).add(8))), (1, 0x1234));
    assert_eq!(m.plat.peek(va(48)) & 0xffff, 8, "the status word");
    assert_eq!(m.plat.peek(va(40).add(9 * 16)), 0);
    assert_eq!(frames(&mut m, 1), 0);
    assert_eq!(m.plat.peek(va(5)), mfn(48).0);
    assert_eq!(frames(&mut m, 2), -1);
    // What version 1 cannot say stays.
    m.plat.poke(va(40).add(8), 1 << 32);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[1]), Err(Errno::ERANGE));
    assert_eq!(word(&m, 0) & 0xffff_ffff, 2);
    m.plat.poke(va(40).add(8), 0x1234);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[1]), ret(0));
    assert_eq!(m.plat.peek(va(40)), 0x1234 << 32 | 0x9);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[3]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, GnttabOp::GET_VERSION, &[0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, GnttabOp::GET_VERSION, &[7]), Err(Errno::ESRCH));
}

#[test]
fn nobody_else_grants_anything() {
    let mut m = machine();
    let mut map = |flags: u64, dom: u64| {
        assert_eq!(op(&mut m, GnttabOp::MAP_GRANT_REF, &[0, flags, dom, 0]), ret(0));
        (word(&m, 2) >> 16) as i16
    };
    assert_eq!(map(0, 0), -3);
    assert_eq!(map(2, 7), -2);
    assert_eq!(map(2, SELF), -2);
    assert_eq!(map(2, 0), -1);
    assert_eq!(op(&mut m, GnttabOp::UNMAP_GRANT_REF, &[0, 0, 0]), ret(0));
    assert_eq!((word(&m, 2) >> 32) as i16, -4);
    assert_eq!(op(&mut m, GnttabOp::TRANSFER, &[1, 0, 0]), ret(0));
    assert_eq!(word(&m, 2) as i16, -9);
    assert_eq!(op(&mut m, GnttabOp::TRANSFER, &[mfn(9).0, 7, 0]), ret(0));
    assert_eq!(word(&m, 2) as i16, -2);
    assert_eq!(call(&mut m, 0, 0, 1), Err(Errno::EFAULT));
    assert_eq!(call(&mut m, 0, 0, 0), ret(0));
}

#[test]
fn copy_within_the_guest() {
    let mut m = machine();
    m.plat.poke(va(8).add(16), u64::from_le_bytes(*b"abcdefgh"));
    let mut copy = |source: (u64, u64, u64), dest: (u64, u64, u64), len: u64, flags: u64| {
        let words =
            [source.0, source.2 << 16 | source.1, dest.0, dest.2 << 16 | dest.1, flags << 16 | len];
        assert_eq!(op(&mut m, GnttabOp::COPY, &words), ret(0));
        let status = (word(&m, 4) >> 32) as i16;
        (status, m.plat.peek(va(9)))
    };
    let (from, to) = ((mfn(8).0, SELF, 17), (mfn(9).0, SELF, 2));
    assert_eq!(copy(from, to, 4, 0), (0, u64::from_le_bytes(*b"\0\0bcde\0\0")));
    assert_eq!(copy((0, SELF, 0), to, 4, 0).0, -9);
    assert_eq!(copy((u64::MAX, SELF, 0), to, 4, 0).0, -9);
    assert_eq!(copy(from, (mfn(9).0, SELF, 4090), 7, 0).0, -10);
    assert_eq!(copy((mfn(8).0, 0, 0), to, 4, 0).0, -8);
    assert_eq!(copy((5, 7, 0), to, 4, 1).0, -2);
    assert_eq!(copy((5, 0, 0), to, 4, 1).0, -1, "domain 0 has entries, all invalid");
    assert_eq!(copy((512, 0, 0), to, 4, 1).0, -3);
    assert_eq!(copy((512, 7, 9000), to, 0, 1).0, 0, "nothing to copy");
}

#[test]
fn swap() {
    let mut m = machine();
    m.plat.poke(va(40).add(10 * 8), 10);
    m.plat.poke(va(40).add(20 * 8), 20);
    assert_eq!(op(&mut m, GnttabOp::SWAP_GRANT_REF, &[20 << 32 | 10, 0]), ret(0));
    assert_eq!(m.plat.peek(va(40).add(10 * 8)), 20);
    assert_eq!(m.plat.peek(va(40).add(20 * 8)), 10);
    assert_eq!(op(&mut m, GnttabOp::SWAP_GRANT_REF, &[512, 0]), ret(0));
    assert_eq!(word(&m, 1) as i16, -3);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[2]), ret(0));
    m.plat.poke(va(40).add(255 * 16 + 8), 77);
    m.plat.poke(va(48).add(255 / 4 * 8), 8 << 48);
    assert_eq!(op(&mut m, GnttabOp::SWAP_GRANT_REF, &[255 << 32 | 4, 0]), ret(0));
    assert_eq!(m.plat.peek(va(40).add(4 * 16 + 8)), 77);
    assert_eq!(m.plat.peek(va(48).add(8)), 8);
}

#[test]
fn cache() {
    let mut m = machine();
    let at = mfn(9).base().0;
    let mut flush = |a: u64, offset: u64, length: u64, flags: u64| {
        op(&mut m, GnttabOp::CACHE_FLUSH, &[a, flags << 32 | length << 16 | offset])
    };
    assert_eq!(flush(at, 0, 4096, 1), ret(0));
    assert_eq!(flush(at, 0, 4096, 3), ret(0));
    assert_eq!(flush(at, 0, 4096, 2), Err(Errno::EOPNOTSUPP));
    assert_eq!(flush(at, 1, 4096, 1), Err(Errno::EINVAL));
    assert_eq!(flush(at, 0, 8, 4), Err(Errno::EINVAL));
    assert_eq!(flush(at, 0, 0, 1), ret(0));
    assert_eq!(flush(0, 0, 8, 1), Err(Errno::EPERM));
    assert_eq!(flush(u64::MAX, 0, 8, 1), Err(Errno::EINVAL));
}

proptest! {
    #[test]
    fn any_pool(len in 0usize..100) {
        let m = Machine::with(128, 1);
        let pool: Vec<Mfn> = (0..len as u64).map(|pfn| mfn(pfn + 10)).collect();
        m.dom.gnttab.set_pool(&m.plat, &pool);
        let table = m.dom.gnttab.table.read();
        prop_assert!(table.status.len() >= status_frames(table.max_frames()) as usize);
        prop_assert_eq!(table.max_frames() > 0, len > 1);
    }

    #[test]
    fn never_panics(
        calls in prop::collection::vec(
            (0u64..14, prop::array::uniform6(prop_oneof![
                0u64..4, Just(SELF), Just(SELF << 32 | 1), Just(mfn(9).0), Just(va(5).0), any::<u64>(),
            ]), 0u64..4),
            0..30,
        ),
        at: u64,
    ) {
        let mut m = machine();
        for (cmd, words, count) in calls {
            let r = op(&mut m, GnttabOp(cmd as u32), &words);
            prop_assert!(matches!(r, Err(_) | Ok(Outcome::Return(_))));
            let _ = call(&mut m, cmd, va(3).0, count);
            let _ = call(&mut m, cmd, at, count);
        }
    }
}
