//! Backends' pins, against a model.

use super::*;
use crate::gnttab::{Access, PinnedFrames, access, map_page, open, release};
use crate::platform::GuestMemory;

/// Grants the model looks at.
const GRANTS: u32 = 4;

/// An entry as the guest writes it.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    flags: u16,
    domid: u16,
    frame: u64,
    offset: u16,
    len: u16,
}

/// What is known about a pinned entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    mfn: u64,
    offset: u16,
    len: u16,
    sub_page: bool,
}

#[derive(Clone, Debug, Default)]
struct Model {
    v2: bool,
    entries: [Entry; GRANTS as usize],
    held: [Option<Held>; GRANTS as usize],
    pins: [(u32, u32); GRANTS as usize],
}

const IN_USE: u16 = gtf::READING | gtf::WRITING;

impl Model {
    fn in_use(&self, gref: usize) -> u16 {
        let (reads, writes) = self.pins[gref];
        let reading = if reads + writes > 0 { gtf::READING } else { 0 };
        reading | if writes > 0 { gtf::WRITING } else { 0 }
    }

    fn target(&self, entry: Entry) -> Held {
        let whole = Held { mfn: entry.frame, offset: 0, len: 4096, sub_page: false };
        if !self.v2 || entry.flags & gtf::SUB_PAGE == 0 {
            return whole;
        }
        let offset = entry.offset.min(4096);
        let len = (u32::from(offset) + u32::from(entry.len)).min(4096) as u16 - offset;
        Held { mfn: entry.frame, offset, len, sub_page: true }
    }

    fn access(&mut self, gref: u32, write: bool, map: bool) -> Result<Held, i16> {
        let index = gref as usize;
        let Some(&entry) = self.entries.get(index) else { return Err(-3) };
        let (reads, writes) = self.pins[index];
        let held = self.held[index];
        if held.is_some_and(|held| map && held.sub_page) {
            return Err(-1);
        }
        if held.is_none() || write && writes == 0 {
            let mask = gtf::TYPE_MASK | if map { gtf::SUB_PAGE } else { 0 };
            let good = entry.flags & mask == gtf::PERMIT_ACCESS && entry.domid == 0;
            if held.is_none() && !good || write && entry.flags & gtf::READONLY != 0 {
                return Err(-1);
            }
            if self.v2 && entry.flags & gtf::TYPE_MASK == gtf::TRANSITIVE {
                return Err(-1);
            }
            let target = self.target(entry);
            let checked = held.map_or(target.mfn, |held| held.mfn);
            if !(mfn(0).0..mfn(64).0).contains(&checked) {
                return Err(-9);
            }
            match held {
                None => self.held[index] = Some(target),
                Some(held) => {
                    let same = held.mfn == target.mfn && (!held.sub_page || held == target);
                    if !map && !same {
                        return Err(-1);
                    }
                }
            }
        }
        self.pins[index] = if write { (reads, writes + 1) } else { (reads + 1, writes) };
        Ok(self.held[index].unwrap())
    }

    fn release(&mut self, index: usize, write: bool) {
        let (reads, writes) = &mut self.pins[index];
        let counter = if write { writes } else { reads };
        *counter = counter.saturating_sub(1);
        if self.pins[index] == (0, 0) {
            self.held[index] = None;
        }
    }

    /// Stores an entry as the guest does that changes nothing of who uses it.
    fn store(&mut self, m: &Machine, gref: usize, entry: Entry) {
        self.entries[gref] = Entry { flags: entry.flags & !IN_USE, ..entry };
        let flags = u64::from(entry.flags & !IN_USE) | u64::from(entry.domid) << 16;
        if self.v2 {
            let word = flags | u64::from(entry.offset) << 32 | u64::from(entry.len) << 48;
            m.plat.poke(va(40).add(gref as u64 * 16), word);
            m.plat.poke(va(40).add(gref as u64 * 16 + 8), entry.frame);
        } else {
            let word = flags | u64::from(self.in_use(gref)) | entry.frame << 32;
            m.plat.poke(va(40).add(gref as u64 * 8), word);
            self.entries[gref].frame &= 0xffff_ffff;
        }
    }

    /// What the guest sees of who uses its entries.
    fn check(&self, m: &Machine) {
        for gref in 0..GRANTS as usize {
            let flags = if self.v2 {
                (m.plat.peek(va(48)) >> (gref * 16)) as u16
            } else {
                m.plat.peek(va(40).add(gref as u64 * 8)) as u16 & IN_USE
            };
            assert_eq!(flags, self.in_use(gref), "gref {gref} of {self:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store { gref: usize, entry: Entry },
    Access { gref: u32, write: bool, map: bool },
    Release { gref: usize, write: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        4 => Just(gtf::PERMIT_ACCESS),
        2 => Just(gtf::PERMIT_ACCESS | gtf::READONLY),
        2 => Just(gtf::PERMIT_ACCESS | gtf::SUB_PAGE),
        1 => Just(gtf::TRANSITIVE),
        1 => any::<u16>(),
    ];
    let frame = prop_oneof![6 => mfn(8).0..mfn(12).0, 1 => Just(7), 1 => any::<u64>()];
    let offset = prop_oneof![0..4097u16, any::<u16>()];
    let entry = (flags, prop_oneof![5 => Just(0u16), 1 => 1..3u16], frame, offset.clone(), offset)
        .prop_map(|(flags, domid, frame, offset, len)| Entry { flags, domid, frame, offset, len });
    prop_oneof![
        2 => (0..GRANTS as usize, entry).prop_map(|(gref, entry)| Step::Store { gref, entry }),
        4 => (0..GRANTS, any::<bool>(), any::<bool>())
            .prop_map(|(gref, write, map)| Step::Access { gref, write, map }),
        3 => (0..GRANTS as usize, any::<bool>())
            .prop_map(|(gref, write)| Step::Release { gref, write }),
    ]
}

proptest! {
    #[test]
    fn pins_are_as_in_the_model(v2: bool, steps in prop::collection::vec(step(), 1..120)) {
        let mut m = machine();
        let mut model = Model { v2, ..Model::default() };
        if v2 {
            op(&mut m, GnttabOp::SET_VERSION, &[2]).unwrap();
        }
        for step in steps {
            match step {
                Step::Store { gref, entry } => model.store(&m, gref, entry),
                Step::Access { gref, write, map } => {
                    let expected = model.access(gref, write, map);
                    let (gref, dom, plat) = (GrantRef(gref), &m.dom, &m.plat);
                    if map {
                        let got = map_page(dom, plat, gref, write);
                        let expected = expected.map(|held| Mfn(held.mfn));
                        prop_assert_eq!(got.map_err(|status| status.0), expected);
                    } else {
                        let expected = expected.map(|held| {
                            Access { mfn: Mfn(held.mfn), offset: held.offset, len: held.len }
                        });
                        let got = access(dom, plat, gref, write);
                        prop_assert_eq!(got.map_err(|status| status.0), expected);
                    }
                }
                Step::Release { gref, write } => {
                    model.release(gref, write);
                    release(&m.dom, GrantRef(gref as u32), write);
                }
            }
            model.check(&m);
        }
    }
}

fn grant(m: &Machine, gref: u64, flags: u16, pfn: u64) {
    m.plat.poke(va(40).add(gref * 8), u64::from(flags) | mfn(pfn).0 << 32);
}

#[test]
fn what_is_pinned_stays() {
    let mut m = machine();
    grant(&m, 9, gtf::PERMIT_ACCESS, 10);
    let (dom, plat) = (&m.dom, &m.plat);
    let got = access(dom, plat, GrantRef(9), true);
    assert_eq!(got, Ok(Access { mfn: mfn(10), offset: 0, len: 4096 }));
    // The guest changes the frame: users of the pinned entry go on with the old one.
    grant(&m, 9, gtf::PERMIT_ACCESS | IN_USE, 11);
    assert_eq!(map_page(&m.dom, &m.plat, GrantRef(9), true), Ok(mfn(10)));
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[2]), Err(Errno::EBUSY));
    assert_eq!(op(&mut m, GnttabOp::SWAP_GRANT_REF, &[8 << 32 | 9, 0]), ret(0));
    assert_eq!(word(&m, 1) as i16, -12);
    for _ in 0..5 {
        release(&m.dom, GrantRef(9), true);
    }
    assert_eq!(m.plat.peek(va(40).add(72)) as u16, gtf::PERMIT_ACCESS);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[2]), ret(0));
    release(&m.dom, GrantRef(u32::MAX), true);
}

#[test]
fn reserved_entries_stay_pinned_over_a_switch() {
    let mut m = machine();
    grant(&m, 1, gtf::PERMIT_ACCESS, 10);
    assert_eq!(map_page(&m.dom, &m.plat, GrantRef(1), true), Ok(mfn(10)));
    for (version, status) in [(2, IN_USE), (1, 0), (2, IN_USE)] {
        assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[version]), ret(0));
        let found = (m.plat.peek(va(48)) >> 16) as u16;
        assert!(version == 1 || found == status);
    }
    release(&m.dom, GrantRef(1), true);
    assert_eq!(m.plat.peek(va(48)), 0);
    // Part of a page cannot be held by a version 1 entry.
    m.plat.poke(va(40).add(16), u64::from(gtf::PERMIT_ACCESS | gtf::SUB_PAGE) | 8 << 32 | 16 << 48);
    let part = access(&m.dom, &m.plat, GrantRef(1), false);
    assert_eq!(part, Ok(Access { mfn: mfn(10), offset: 8, len: 16 }));
    assert_eq!(map_page(&m.dom, &m.plat, GrantRef(1), false), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[1]), Err(Errno::EAGAIN));
    release(&m.dom, GrantRef(1), false);
    assert_eq!(op(&mut m, GnttabOp::SET_VERSION, &[1]), ret(0));
}

#[test]
fn counters_do_not_overflow() {
    let m = machine();
    grant(&m, 3, gtf::PERMIT_ACCESS, 10);
    let get = |write| access(&m.dom, &m.plat, GrantRef(3), write);
    assert!((0..128).all(|_| get(false).is_ok()));
    assert_eq!(get(false), Err(GrantStatus::GENERAL_ERROR));
    assert!(get(true).is_ok());
    (0..128).for_each(|_| release(&m.dom, GrantRef(3), false));
    assert_eq!(m.plat.peek(va(40).add(24)) as u16, gtf::PERMIT_ACCESS | IN_USE);
    release(&m.dom, GrantRef(3), true);
    assert_eq!(m.plat.peek(va(40).add(24)) as u16, gtf::PERMIT_ACCESS);
}

/// Devices do not write over the page table a processor uses.
#[test]
fn the_l4_in_use_is_not_written() {
    let m = machine();
    m.dom.vcpus[0].roots.begin(mfn(10));
    grant(&m, 3, gtf::PERMIT_ACCESS, 10);
    assert!(access(&m.dom, &m.plat, GrantRef(3), false).is_ok());
    assert_eq!(access(&m.dom, &m.plat, GrantRef(3), true), Err(GrantStatus::GENERAL_ERROR));
    release(&m.dom, GrantRef(3), false);
    assert_eq!(m.plat.peek(va(40).add(24)) as u16, gtf::PERMIT_ACCESS);
}

#[test]
fn frames_in_use_are_not_given_up() {
    let mut m = machine();
    grant(&m, 8, gtf::PERMIT_ACCESS, 21);
    let give_up = |m: &mut Machine| {
        let (arg, list) = (va(30), va(31));
        m.plat.poke(list, mfn(21).0);
        let reservation = [list.0, 1, 0, xen_abi::mm::DomId::SELF.0.into()];
        for (word, at) in reservation.into_iter().zip(0u64..) {
            m.plat.poke(arg.add(at * 8), word);
        }
        let mut regs = kernel_regs();
        (regs.rdi, regs.rsi) = (1, arg.0);
        crate::memory::memory_op(&mut m.cx(), &mut regs)
    };
    let access = access(&m.dom, &m.plat, GrantRef(8), true).unwrap();
    assert_eq!(access.mfn, mfn(21));
    assert_eq!(open(&m.dom).pinned(GrantRef(8)), Some(mfn(21)));
    let pinned = |m: &Machine, pfn| PinnedFrames::now(&m.dom).has(&m.dom, mfn(pfn));
    assert!(pinned(&m, 21) && !pinned(&m, 22) && !pinned(&m, 21 + 64 * 64));
    assert_eq!(give_up(&mut m), Ok(Outcome::Return(0)));
    release(&m.dom, GrantRef(8), true);
    assert!(!pinned(&m, 21));
    assert_eq!(open(&m.dom).pinned(GrantRef(8)), None);
    assert_eq!(give_up(&mut m), Ok(Outcome::Return(1)));
}

#[test]
fn pages_change_hands() {
    let m = machine();
    let give = |gref| {
        transfer_to_guest(&m.dom, &m.plat, GrantRef(gref), |words| {
            words[0].store(77, core::sync::atomic::Ordering::Relaxed);
        })
    };
    grant(&m, 3, gtf::ACCEPT_TRANSFER, 0);
    m.plat.poke(va(40).add(24), u64::from(gtf::ACCEPT_TRANSFER) | 123 << 32);
    assert_eq!(give(3), Err(GrantStatus::GENERAL_ERROR), "the guest has all its memory");
    // A page is given up first, as frontends that flip do.
    assert!(m.plat.release_frame(mfn(20)));
    m.dom.nr_pages.fetch_sub(1, core::sync::atomic::Ordering::Relaxed);
    assert_eq!(give(4), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(give(512), Err(GrantStatus::GENERAL_ERROR));
    assert_eq!(give(3), Ok(mfn(20)));
    let done = gtf::ACCEPT_TRANSFER | gtf::TRANSFER_COMMITTED | gtf::TRANSFER_COMPLETED;
    assert_eq!(m.plat.peek(va(40).add(24)), u64::from(done) | mfn(20).0 << 32);
    assert_eq!(m.plat.peek(va(20)), 77);
    assert_eq!(m.plat.m2p(mfn(20)), Some(xen_abi::Pfn(123)));
    assert_eq!(m.dom.nr_pages.load(core::sync::atomic::Ordering::Relaxed), 64);
    assert_eq!(give(3), Err(GrantStatus::GENERAL_ERROR), "once");
}
