//! Grant tables: a guest that makes every call and writes every entry, and a backend that pins
//! and releases meanwhile.
//!
//! What is checked: the guest sees who uses its entries; a page in use is the guest's RAM, the one
//! its entry named; mappings are in the page tables while they exist and not after; and once
//! everybody has let go, no entry is pinned.

mod calls;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use translate::fake::{Machine, kernel_regs, mfn, va};
use translate::gnttab::{Access, access, grant_table_op, map_page, open, release};
use translate::outcome::{HcResult, Outcome};
use translate::platform::GuestMemory;
use translate::regs::CpuRegs;
use xen_abi::Mfn;
use xen_abi::grant_table::{GnttabOp, GrantRef, GrantStatus, gntmap, gtf};
use xen_abi::mm::{FIRST_XEN_SLOT, LAST_XEN_SLOT, pte};

use crate::input::Input;

/// Frames of the guest.
const FRAMES: u64 = 48;
/// Frames the pool is made of: of entries, and of status words.
const POOL: core::ops::Range<u64> = 32..36;
const STATUS: u64 = 35;
/// Page tables: linear address 0x1000 * n is mapped at entry n of the last.
const L4: u64 = 20;
const L1: u64 = 23;
/// Arguments of calls, and lists they want.
const ARGS: u64 = 3;
const LIST: u64 = 5;
/// Grants that are looked at: reserved ones and others.
const GRANTS: u32 = 16;
/// Frames that are granted.
const PAGES: core::ops::Range<u64> = 8..16;
const IN_USE: u16 = gtf::READING | gtf::WRITING;
const SELF: u64 = 0x7ff0;
/// Steps of one run.
const MAX_STEPS: usize = 120;

/// A mapping the guest has.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    gref: u32,
    flags: u32,
    at: u64,
    frame: u64,
}

/// Who uses an entry, and whether the guest has written to the flags that say so.
#[derive(Clone, Copy, Debug, Default)]
struct Pins {
    readers: u32,
    writers: u32,
    is_spoilt: bool,
}

struct World {
    machine: Machine,
    v2: bool,
    held: Vec<(GrantRef, bool, Access)>,
    maps: BTreeMap<u32, Mapping>,
    pins: [Pins; GRANTS as usize],
    /// The guest wrote into its page tables: mappings are where it says.
    tables_spoilt: bool,
}

impl World {
    fn new() -> Self {
        let mut machine = Machine::with(FRAMES, 1);
        let pool: Vec<Mfn> = POOL.map(mfn).collect();
        machine.dom.gnttab.set_pool(&machine.plat, &pool);
        machine.cx().vcpu.mmu.l4 = mfn(L4).0;
        machine.dom.vcpus[0].roots.begin(mfn(L4));
        for table in L4..L1 {
            machine.plat.poke(va(table), mfn(table + 1).0 << 12 | 0x67);
        }
        Self {
            machine,
            v2: false,
            held: Vec::new(),
            maps: BTreeMap::new(),
            pins: [Pins::default(); GRANTS as usize],
            tables_spoilt: false,
        }
    }

    /// Where an entry's words are.
    fn entry(&self, gref: u32, word: u64) -> xen_abi::GuestVa {
        let words = if self.v2 { 2 } else { 1 };
        va(POOL.start).add((u64::from(gref) * words + word) * 8)
    }

    /// What the guest sees of an entry's use.
    fn in_use(&self, gref: u32) -> u16 {
        let word = if self.v2 {
            let at = va(STATUS).add(u64::from(gref) / 4 * 8);
            self.machine.plat.peek(at) >> (gref % 4 * 16)
        } else {
            self.machine.plat.peek(self.entry(gref, 0))
        };
        word as u16 & IN_USE
    }

    /// The guest writes an entry. It may only leave the flags of use as they are; where it does
    /// not, what they say means nothing any more.
    fn write_entry(&mut self, input: &mut Input<'_>) {
        let (gref, kind) = (u32::from(input.byte()) % GRANTS, input.byte());
        let kinds = [gtf::PERMIT_ACCESS, gtf::INVALID, gtf::ACCEPT_TRANSFER, gtf::TRANSITIVE];
        let mut flags = kinds[usize::from(kind & 3)];
        flags |= if kind & 4 != 0 { gtf::READONLY } else { 0 };
        flags |= if kind & 8 != 0 { gtf::SUB_PAGE } else { 0 };
        let domid = if kind & 0x10 != 0 { 1 } else { u64::from(kind >> 7) * 7 };
        let frame = match input.byte() {
            what if what & 0xc0 == 0xc0 => not_the_table(input.number()),
            what => mfn(u64::from(what) % POOL.start).0,
        };
        let was = self.machine.plat.peek(self.entry(gref, 0));
        let mut head = u64::from(flags) | domid << 16;
        if kind & 0x20 != 0 {
            let more = input.half();
            head |= u64::from(more);
            // In version 2 they say nothing there, but a reserved entry takes them into version 1.
            self.pins[gref as usize].is_spoilt |= more & IN_USE != 0 || !self.v2;
        } else if !self.v2 && self.pins_of(gref) > 0 {
            // Of an entry that is not in use they tell of a transfer.
            head |= was & u64::from(IN_USE);
        }
        if self.v2 {
            let range = u64::from(input.half()) | u64::from(input.half()) << 16;
            self.machine.plat.poke(self.entry(gref, 0), head | range << 32);
            self.machine.plat.poke(self.entry(gref, 1), frame);
        } else {
            self.machine.plat.poke(self.entry(gref, 0), head | frame << 32);
        }
    }

    /// A backend wants a page.
    fn pin(&mut self, gref: u32, write: bool, whole: bool) {
        if self.held.len() >= 200 {
            return;
        }
        let (dom, plat) = (&self.machine.dom, &self.machine.plat);
        let gref32 = GrantRef(gref);
        let first = self.pins.get(gref as usize).is_some_and(|p| p.readers + p.writers == 0);
        let got = if whole {
            map_page(dom, plat, gref32, write).map(|mfn| Access { mfn, offset: 0, len: 4096 })
        } else {
            access(dom, plat, gref32, write)
        };
        let Ok(got) = got else { return };
        assert!(gref < GRANTS, "grant {gref} was never given");
        assert!(got.offset + got.len <= 4096);
        if first {
            assert!(plat.is_ram(got.mfn), "{:?} is not the guest's", got.mfn);
            let named = match self.v2 {
                true => plat.peek(self.entry(gref, 1)),
                false => plat.peek(self.entry(gref, 0)) >> 32,
            };
            assert_eq!(got.mfn.0, named);
        }
        let other = self.held.iter().find(|(other, ..)| *other == gref32);
        assert!(other.is_none_or(|(.., other)| other.mfn == got.mfn), "one entry, two frames");
        assert!(self.maps.values().all(|map| map.gref != gref), "both sides pin one entry");
        assert!(!write || got.mfn != mfn(L4), "an L4 in use is written to");
        self.held.push((gref32, write, got));
        self.count(gref, write, 1);
    }

    fn count(&mut self, gref: u32, write: bool, by: i32) {
        let Some(pins) = self.pins.get_mut(gref as usize) else { return };
        let counter = if write { &mut pins.writers } else { &mut pins.readers };
        *counter = counter.strict_add_signed(by);
    }

    fn release(&mut self, which: usize) {
        if !self.held.is_empty() {
            let (gref, write, _) = self.held.swap_remove(which % self.held.len());
            release(&self.machine.dom, gref, write);
            self.count(gref.0, write, -1);
        }
    }

    /// The call, continued to its end.
    fn call(&mut self, cmd: u64, at: u64, count: u64) -> HcResult {
        let mut regs = CpuRegs { rdi: cmd, rsi: at, rdx: count, ..kernel_regs() };
        for _ in 0..400 {
            match grant_table_op(&mut self.machine.cx(), &mut regs) {
                Ok(Outcome::Continue) => {}
                result => return result,
            }
        }
        // A list so long that it leaves memory ends there.
        panic!("a call without an end");
    }

    /// One call with one element.
    fn op(&mut self, op: GnttabOp, words: &[u64]) -> HcResult {
        for (index, word) in (0u64..).zip(words) {
            self.machine.plat.poke(va(ARGS).add(index * 8), *word);
        }
        self.call(op.0.into(), va(ARGS).0, 1)
    }

    fn word(&self, index: u64) -> u64 {
        self.machine.plat.peek(va(ARGS).add(index * 8))
    }

    fn map(&mut self, input: &mut Input<'_>) {
        let gref = u32::from(input.byte()) % (GRANTS + 1);
        let what = input.byte();
        let mut flags = u32::from(what & 0xf);
        flags |= if what & 0x10 != 0 { u32::from(input.half()) << 16 } else { 0 };
        flags |= if what & 0x20 != 0 { gntmap::CONTAINS_PTE } else { 0 };
        let domid = if what & 0x40 != 0 { u64::from(input.half()) } else { 1 };
        let at = self.place(input, flags);
        let args = [at, u64::from(gref) << 32 | u64::from(flags), domid, 0];
        if self.op(GnttabOp::MAP_GRANT_REF, &args).is_err() {
            return;
        }
        let (status, handle) = ((self.word(2) >> 16) as i16, (self.word(2) >> 32) as u32);
        if status != GrantStatus::OKAY.0 {
            return;
        }
        let (bus, frame) = (self.word(3), self.word(3) >> 12);
        assert!(gref < GRANTS && domid == 1 && bus & 0xfff == 0);
        assert!(self.machine.plat.is_ram(Mfn(frame)) || self.pins_of(gref) > 0);
        assert!(self.held.iter().all(|(other, ..)| other.0 != gref), "both sides pin one entry");
        if flags & gntmap::HOST_MAP != 0 {
            let entry = self.pte(at, flags).expect("a place for the entry");
            assert_eq!((entry & pte::ADDR) >> 12, frame);
            assert_eq!(entry & pte::RW == 0, flags & gntmap::READONLY != 0);
            // Tables are pages like any other.
            self.tables_spoilt |= flags & gntmap::CONTAINS_PTE != 0;
        }
        assert!(self.maps.insert(handle, Mapping { gref, flags, at, frame }).is_none());
        self.count_sides(gref, flags, flags, 1);
    }

    fn pins_of(&self, gref: u32) -> u32 {
        self.pins.get(gref as usize).map_or(0, |pins| pins.readers + pins.writers)
    }

    fn count_sides(&mut self, gref: u32, flags: u32, sides: u32, by: i32) {
        for side in [gntmap::DEVICE_MAP, gntmap::HOST_MAP] {
            if flags & sides & side != 0 {
                self.count(gref, flags & gntmap::READONLY == 0, by);
            }
        }
    }

    /// An address to map at.
    fn place(&self, input: &mut Input<'_>, flags: u32) -> u64 {
        let what = input.byte();
        match what >> 6 {
            3 => not_the_table(input.number() >> 12).wrapping_shl(12) | (u64::from(what & 7) << 2),
            _ if flags & gntmap::CONTAINS_PTE == 0 => u64::from(what & 0x3f) << 12,
            2 => mfn(L4).base().0 + u64::from(input.half() % 512) * 8,
            _ => mfn(L1).base().0 + u64::from(what & 0x3f) * 8,
        }
    }

    /// The entry at an address, where the tables are as they were.
    fn pte(&self, at: u64, flags: u32) -> Option<u64> {
        let slot = if flags & gntmap::CONTAINS_PTE != 0 { at } else { self.walk(at)? };
        let words = self.machine.plat.frame(Mfn(slot >> 12))?;
        Some(words[(slot & 0xfff) as usize / 8].load(Relaxed))
    }

    fn walk(&self, at: u64) -> Option<u64> {
        let mut table = mfn(L4);
        for shift in [39, 30, 21] {
            let words = self.machine.plat.frame(table)?;
            table = Mfn((words[(at >> shift) as usize & 511].load(Relaxed) & pte::ADDR) >> 12);
        }
        Some(table.base().0 + (at >> 12 & 511) * 8)
    }

    /// Takes a mapping away, as it was made or not quite.
    fn unmap(&mut self, input: &mut Input<'_>, replace: bool) {
        let (which, what) = (usize::from(input.byte()), input.byte());
        let known = self.maps.iter().nth(which % self.maps.len().max(1)).map(|(h, m)| (*h, *m));
        let (mut handle, mapping) =
            known.unwrap_or((u32::from(what), Mapping { gref: 0, flags: 0, at: 0x5000, frame: 0 }));
        let Mapping { gref, flags, mut at, frame } = mapping;
        let mut second = if replace { 0x7000 } else { frame << 12 };
        match what & 7 {
            1 => at = self.place(input, flags),
            2 => second = input.number(),
            3 => (at, second) = (0, frame << 12),
            4 => second = 0,
            5 => handle = input.word(),
            _ => {}
        }
        let op = if replace { GnttabOp::UNMAP_AND_REPLACE } else { GnttabOp::UNMAP_GRANT_REF };
        if self.op(op, &[at, second, handle.into()]).is_err() {
            return;
        }
        let status = (self.word(2) >> 32) as i16;
        if status != GrantStatus::OKAY.0 {
            return;
        }
        assert!(self.maps.contains_key(&handle), "a handle of nothing");
        let Some(mapping) = self.maps.get(&handle).copied() else { return };
        let _ = gref;
        let mut sides = 0;
        if at != 0 {
            sides |= gntmap::HOST_MAP;
        }
        if !replace && second != 0 {
            sides |= gntmap::DEVICE_MAP;
        }
        let gone = mapping.flags & sides;
        if gone & gntmap::HOST_MAP != 0 && !replace {
            assert_eq!(self.pte(at, mapping.flags).unwrap_or(0), 0, "unmapped");
        }
        self.count_sides(mapping.gref, mapping.flags, gone, -1);
        let left = mapping.flags & !gone;
        if left & (gntmap::HOST_MAP | gntmap::DEVICE_MAP) == 0 {
            self.maps.remove(&handle);
        } else {
            self.maps.insert(handle, Mapping { flags: left, ..mapping });
        }
    }

    fn set_version(&mut self, version: u64) {
        let is_pinned = (8..GRANTS).any(|gref| self.pins_of(gref) > 0);
        // A reserved entry the guest took back, though it is in use, is lost, and its flags with it.
        // What tells of a transfer in version 1 says something else in version 2.
        for gref in 0..8 {
            let flags = self.machine.plat.peek(self.entry(gref, 0)) as u16;
            let kind = flags & gtf::TYPE_MASK;
            let is_lost = self.v2 && kind != gtf::PERMIT_ACCESS && self.pins_of(gref) > 0;
            let is_transfer = !self.v2 && kind == gtf::ACCEPT_TRANSFER && flags & IN_USE != 0;
            self.pins[gref as usize].is_spoilt |= is_lost || is_transfer;
        }
        let result = self.op(GnttabOp::SET_VERSION, &[version]);
        let now = self.word(0) as u32;
        if result.is_ok() && (now == 2) != self.v2 {
            assert!(!is_pinned, "the version changed under a user");
            // Flags of reserved entries move along, also such as the guest made up.
            (8..GRANTS as usize).for_each(|gref| self.pins[gref].is_spoilt = false);
        }
        self.v2 = now == 2;
    }

    /// A backend at work while the guest rewrites the entry.
    fn race(&mut self, input: &mut Input<'_>) {
        let (gref, what) = (u32::from(input.byte()) % GRANTS, input.byte());
        if self.pins_of(gref) > 0 {
            return;
        }
        let head = u64::from(gtf::PERMIT_ACCESS);
        let frames = [mfn(8).0, mfn(9).0];
        let at = self.entry(gref, 0).0 & 0xfff;
        let v2 = self.v2;
        let (dom, plat) = (&*self.machine.dom, &self.machine.plat);
        let Some(words) = plat.frame(mfn(POOL.start)) else { return };
        let first = at as usize / 8;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..40 {
                    let frame = frames[round % 2];
                    if v2 {
                        words[first].store(0, SeqCst);
                        words[first + 1].store(frame, SeqCst);
                        words[first].store(head, SeqCst);
                    } else {
                        // As a guest does that knows its entry is in use: only if it is not.
                        let old = words[first].load(SeqCst);
                        let new = head | frame << 32;
                        if old as u16 & IN_USE == 0 {
                            let _ = words[first].compare_exchange(old, new, SeqCst, SeqCst);
                        }
                    }
                }
            });
            for _ in 0..40 {
                let write = what & 1 != 0;
                if let Ok(page) = access(dom, plat, GrantRef(gref), write) {
                    assert!(v2 || frames.contains(&page.mfn.0) || plat.is_ram(page.mfn));
                    release(dom, GrantRef(gref), write);
                }
            }
        });
    }

    fn swap(&mut self, input: &mut Input<'_>) {
        let (a, b) = (u32::from(input.byte()) % GRANTS, u32::from(input.byte()) % GRANTS);
        let status = self.swap_status(a, b);
        let is_pinned = a != b && (self.pins_of(a) > 0 || self.pins_of(b) > 0);
        assert_eq!(status == GrantStatus::EAGAIN, is_pinned, "grants {a} and {b}: {status:?}");
        if status == GrantStatus::OKAY {
            let (one, other) = (self.pins[a as usize].is_spoilt, self.pins[b as usize].is_spoilt);
            self.pins[a as usize].is_spoilt = other;
            self.pins[b as usize].is_spoilt = one;
        }
    }

    fn swap_status(&mut self, a: u32, b: u32) -> GrantStatus {
        let words = [u64::from(a) | u64::from(b) << 32, 0];
        self.op(GnttabOp::SWAP_GRANT_REF, &words).expect("the arguments are there");
        GrantStatus(self.word(1) as i16)
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what & 0x1f {
            0..=5 => self.write_entry(input),
            6..=9 => {
                let gref = u32::from(input.byte()) % (GRANTS + 1);
                self.pin(gref, what & 0x20 != 0, what & 0x40 != 0);
            }
            10..=12 => self.release(input.byte().into()),
            13..=15 => self.map(input),
            16..=18 => self.unmap(input, false),
            19 => self.unmap(input, true),
            20..=21 => self.copy(input),
            22..=23 => self.transfers(input),
            24 => self.set_version(u64::from(what >> 5) % 4),
            25 => self.queries(input),
            26 => self.swap(input),
            27 => self.balloon(input),
            28 => self.raw(input),
            29 => {
                let words = [input.number(), input.number()];
                let _ = self.op(GnttabOp::CACHE_FLUSH, &words);
            }
            30 => self.spoil_status(input),
            _ if what >> 5 == 7 => self.race(input),
            // Held over several, as blkback does.
            _ => drop(open(&self.machine.dom)),
        }
    }

    /// The guest writes where ring 0 tells it of use.
    fn spoil_status(&mut self, input: &mut Input<'_>) {
        if self.v2 {
            let at = u64::from(input.byte()) % u64::from(GRANTS / 4);
            self.machine.plat.poke(va(STATUS).add(at * 8), input.number());
            let first = at as usize * 4;
            self.pins[first..first + 4].iter_mut().for_each(|pins| pins.is_spoilt = true);
        }
    }

    fn check(&mut self) {
        for gref in 0..GRANTS {
            let pins = self.pins[gref as usize];
            let expected = match (pins.readers, pins.writers) {
                (0, 0) => 0,
                (_, 0) => gtf::READING,
                _ => IN_USE,
            };
            let seen = self.in_use(gref);
            assert!(pins.is_spoilt || seen & expected == expected, "grant {gref} is in use");
            // Flags of use are also those of a transfer.
            let is_transfer = self.machine.plat.peek(self.entry(gref, 0)) as u16 & gtf::TYPE_MASK
                == gtf::ACCEPT_TRANSFER;
            if !pins.is_spoilt && !is_transfer {
                assert_eq!(seen, expected, "grant {gref}, used {pins:?}");
            }
        }
        let owned = (0..FRAMES).filter(|pfn| self.machine.plat.may_map(mfn(*pfn))).count();
        assert_eq!(self.machine.dom.nr_pages.load(Relaxed), owned as u64);
        let l4 = self.machine.plat.frame(mfn(L4)).expect("nobody gave it away");
        // Nothing but the guest's own frames is in the tables.
        for index in (0..512).filter(|i| !(FIRST_XEN_SLOT..=LAST_XEN_SLOT).contains(i)) {
            let entry = l4[index].load(Relaxed);
            assert!(entry & pte::P == 0 || (entry & pte::ADDR) >> 12 >= mfn(0).0);
        }
    }

    /// Everybody lets go: nothing stays pinned.
    fn end(&mut self) {
        while !self.held.is_empty() {
            self.release(0);
        }
        let maps = core::mem::take(&mut self.maps);
        for (handle, mapping) in maps {
            let Mapping { gref, flags, at, frame } = mapping;
            let mut host = 0;
            if flags & gntmap::HOST_MAP != 0 {
                // The guest may have changed the entry; it puts it back.
                let bits = pte::P | if flags & gntmap::READONLY == 0 { pte::RW } else { 0 };
                let slot = if flags & gntmap::CONTAINS_PTE != 0 { Some(at) } else { self.walk(at) };
                let Some(slot) = slot else { return };
                let Some(words) = self.machine.plat.frame(Mfn(slot >> 12)) else { return };
                words[(slot & 0xfff) as usize / 8].store(frame << 12 | bits, Relaxed);
                host = at;
            }
            let bus = if flags & gntmap::DEVICE_MAP != 0 { frame << 12 } else { 0 };
            if host == 0 && flags & gntmap::HOST_MAP != 0
                || bus == 0 && flags & gntmap::DEVICE_MAP != 0
            {
                // Address 0 says "not this side": such a mapping stays for good, as under Xen.
                return;
            }
            self.op(GnttabOp::UNMAP_GRANT_REF, &[host, bus, handle.into()]).expect("arguments");
            let status = (self.word(2) >> 32) as i16;
            if status != 0 && self.tables_spoilt {
                return;
            }
            assert_eq!(status, 0, "{mapping:?} stays");
            self.count_sides(gref, flags, flags, -1);
        }
        for gref in 0..GRANTS {
            assert_eq!(self.pins_of(gref), 0);
            let status = self.swap_status(gref, (gref + 1) % GRANTS);
            assert_eq!(status, GrantStatus::OKAY, "grant {gref} is pinned by nobody");
        }
    }
}

/// A frame that is no part of the table: on real machines those are no RAM of the guest's, and who
/// writes to them by way of grants is told so.
fn not_the_table(frame: u64) -> u64 {
    if (mfn(POOL.start).0..mfn(POOL.end).0).contains(&frame) { mfn(0).0 } else { frame }
}

/// A guest, its table, and a backend.
pub(crate) fn gnttab(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        world.step(what, &mut input);
        world.check();
    }
    world.end();
}

/// What frontends and backends do with either version, and mappings.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Access for domain 0 to frames 8 and 9, used, the second read only.
    let mut use_of = vec![0, 9, 0, 8, 0, 10, 4, 9, 6, 9, 0x26, 9, 0x46, 10, 0x26, 10, 10, 0, 10, 0];
    use_of.extend([10, 0, 0, 9, 1, 8, 26, 9, 10]);
    // Access for the guest itself, mapped at 0x5000 both ways, copied, unmapped.
    let maps = vec![
        0, 9, 0x10, 8, 0, 10, 0x10, 9, 13, 9, 3, 5, 13, 10, 0x22, 6, 20, 1, 9, 1, 10, 8, 0, 16, 0,
        0, 16, 0, 0,
    ];
    let mut v2 = vec![0x58, 0, 9, 8, 8, 0, 2, 0, 1, 6, 9, 10, 0, 0, 10, 0, 9, 0, 0, 0, 0, 0x46, 10];
    v2.extend([25, 2, 1, 24, 10, 0, 0x38]);
    // A page waited for, given by the backend after the guest gave one up.
    let transfer = vec![0, 9, 2, 12, 27, 3, 22, 0, 9, 0, 10, 0x12, 12, 23, 0x41, 10, 0xff, 11, 1];
    vec![use_of, maps, v2, transfer]
}
