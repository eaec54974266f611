//! blkback: a frontend that puts requests into its rings, mostly such as it may, and a device that
//! completes them in any order, or not.
//!
//! While the frontend keeps to the protocol every request is answered once, with its own number,
//! and as its contents and the device's results say: well only after the device has done all of
//! it, for flushes and barriers in their order. In any case the device is asked for nothing it
//! could not do, and once the frontend is gone nothing of the guest's is in use.

mod disk;
mod expect;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use pv_frontends::blkback::{DeviceInfo, Discard, Env, IoError, Limits, Vbd, VbdConfig};
use translate::evtchn::{Here, event_channel_op};
use translate::fake::{FakePlatform, Machine, mfn, va};
use translate::platform::GuestMemory;
use xen_abi::Mfn;
use xen_abi::event_channel::EvtchnOp;
use xen_abi::io::ring::{ENTRIES, REQ_PROD, RSP_PROD, RingPage, WORDS_PER_PAGE, ring_size};

use crate::input::Input;
use disk::{Disk, Shared};
use expect::Expected;

/// Frames of the grant table's pool, of rings, and of data; one of these holds segments.
const TABLE: core::ops::Range<u64> = 10..12;
const RINGS: core::ops::Range<u64> = 12..16;
const PAGES: core::ops::Range<u64> = 20..40;
const SEGMENTS: u64 = 21;
/// Grants of the rings' pages and of those for data, in order.
const RING_GREF: u64 = 40;
const DATA_GREF: u64 = 8;
const SEGMENTS_GREF: u32 = 9;
const FRONT: &str = "/local/domain/1/device/vbd/51712";
/// Steps of one run.
const MAX_STEPS: usize = 150;
/// Segments of an indirect request.
const MAX_SEGMENTS: u16 = 20;

const READ: u8 = 0;
const WRITE: u8 = 1;
const BARRIER: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;
const INDIRECT: u8 = 6;

/// A request in a ring.
#[derive(Clone, Debug)]
struct Asked {
    operation: u8,
    is_indirect: bool,
    segments: usize,
    placed: u64,
    expected: Expected,
}

struct RingEnd {
    pages: Vec<&'static RingPage>,
    req_prod: u32,
    rsp_cons: u32,
    in_ring: u32,
}

struct World {
    machine: Machine,
    store: Shared,
    vbd: Vbd<Disk>,
    rings: Vec<RingEnd>,
    /// Words and number of entries.
    entry_words: usize,
    entries: u32,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    /// The frontend did what none should: nothing is known any more but bounds.
    is_spoilt: bool,
    is_removed: bool,
}

/// The device and the frontend, by four bytes.
fn shape(setup: [u8; 4]) -> (DeviceInfo, u16, u8) {
    let bit = |byte: usize, nr: u8| setup[byte] >> nr & 1 != 0;
    let logical_bytes = if bit(0, 4) { 4096 } else { 512 };
    let discard = Discard {
        granularity: 512,
        alignment: 0,
        secure: bit(1, 0),
        max_sectors: 1 + u64::from(setup[3]),
    };
    let info = DeviceInfo {
        sectors: 256,
        logical_bytes,
        physical_bytes: 4096,
        read_only: bit(1, 1),
        cdrom: bit(1, 2),
        removable: false,
        flush: !bit(1, 3),
        discard: (!bit(1, 4)).then_some(discard),
        max_transfer_bytes: 4096 << (setup[1] >> 6),
        max_segments: 1 + u16::from(setup[2] & 7),
        no_gaps: !bit(2, 3),
        depth: 1 + u16::from(setup[2] >> 4),
    };
    (info, 1 + u16::from(setup[0] >> 1 & 1), setup[0] >> 2 & 1)
}

impl World {
    fn new(setup: [u8; 4]) -> Self {
        let wide = setup[0] & 1 == 0;
        let (info, queues, order) = shape(setup);
        let machine = Machine::new();
        let pool: Vec<Mfn> = TABLE.map(mfn).collect();
        machine.dom.gnttab.set_pool(&machine.plat, &pool);
        let grants = (DATA_GREF..).zip(PAGES).chain((RING_GREF..).zip(RINGS));
        for (gref, pfn) in grants {
            let flags = if is_read_only(gref) { 5 } else { 1 };
            machine.plat.poke(va(TABLE.start).add(gref * 8), mfn(pfn).0 << 32 | flags);
        }
        let config = VbdConfig { number: 51712, read_only: false, cdrom: false };
        let limits = Limits {
            queues,
            ring_page_order: order,
            requests: 1 + u16::from(setup[0] >> 5) * 3,
            max_segments: MAX_SEGMENTS,
        };
        let disk = Disk { info: Mutex::new(info), book: Mutex::default() };
        let vbd = Vbd::new(0, config, limits, disk).expect("memory");
        let store = Shared::new();
        vbd.announce(&store).expect("room for a device");
        let entry_words = if wide { 28 } else { 27 };
        let mut world = Self {
            machine,
            store,
            vbd,
            rings: Vec::new(),
            entry_words,
            entries: ring_size(4096 << order, entry_words * 4),
            asked: BTreeMap::new(),
            next_id: 0,
            is_spoilt: false,
            is_removed: false,
        };
        world.set_up(wide, queues, order);
        world.connect();
        world
    }

    /// What the frontend writes once.
    fn set_up(&mut self, wide: bool, queues: u16, order: u8) {
        let store = |name: &str, value: u64| self.store.set_front(name, &value.to_string());
        self.store.set_front("protocol", if wide { "x86_64-abi" } else { "x86_32-abi" });
        if queues > 1 {
            store("multi-queue-num-queues", queues.into());
        }
        if order > 0 {
            store("ring-page-order", order.into());
        }
        let pages = 1 << order;
        for queue in 0..u64::from(queues) {
            let dir = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            self.machine.plat.poke(va(5), 0x7ff0);
            let alloc = EvtchnOp::ALLOC_UNBOUND.0.into();
            event_channel_op(&mut self.machine.cx(), alloc, va(5).0).expect("a port");
            let store = |name: &str, value: u64| {
                self.store.set_front(&format!("{dir}{name}"), &value.to_string())
            };
            store("event-channel", self.machine.plat.peek(va(5)) >> 32);
            for page in 0..pages {
                let name = if order > 0 { format!("ring-ref{page}") } else { "ring-ref".into() };
                store(&name, RING_GREF + queue * pages + page);
            }
            let page = |nr| {
                let at = mfn(RINGS.start + queue * pages + nr).base();
                self.machine.plat.view(at).expect("a page")
            };
            let pages = (0..pages).map(page).collect();
            self.rings.push(RingEnd { pages, req_prod: 0, rsp_cons: 0, in_ring: 0 });
        }
    }

    /// Empty rings, and the state that says so.
    fn connect(&mut self) {
        for ring in &mut self.rings {
            (ring.req_prod, ring.rsp_cons, ring.in_ring) = (0, 0, 0);
            let words = ring.pages.iter().flat_map(|page| &page.words);
            words.for_each(|word| word.store(0, Relaxed));
        }
        self.asked.clear();
        self.set_state("3");
        assert_eq!(self.store.back_state().as_deref(), Some("4"), "connected");
    }

    fn env(&self) -> Env<'_, FakePlatform> {
        Env { dom: &self.machine.dom, plat: &self.machine.plat, here: Here::on_id(0) }
    }

    fn set_state(&self, state: &str) {
        self.store.set_front("state", state);
        self.vbd.frontend_changed(&self.env(), &self.store);
    }

    fn settle(&self) {
        let mut turns = 0;
        while self.vbd.settle(&self.env(), &self.store) {
            turns += 1;
            // A frontend that keeps its ring full of bad requests is refused them all.
            assert!(turns < 100_000, "settling has no end");
        }
    }

    fn complete(&self, which: usize, result: Result<(), IoError>) {
        if let Some(tag) = self.vbd.device().finish(which, result.is_ok()) {
            self.vbd.complete(&self.env(), tag, result);
        }
    }

    /// The frontend goes away and comes back.
    fn reconnect(&mut self) {
        self.close();
        if !self.is_removed {
            self.set_state("1");
            assert_eq!(self.store.back_state().as_deref(), Some("2"), "waits for a frontend");
            if !self.is_spoilt {
                self.connect();
            }
        }
    }

    fn close(&self) {
        self.vbd.device().book().is_busy = false;
        self.set_state("5");
        self.set_state("6");
        for _ in 0..10_000 {
            if self.vbd.device().book().pending.is_empty() {
                break;
            }
            self.complete(0, Ok(()));
            self.settle();
        }
        self.settle();
        if !self.is_removed {
            assert_eq!(self.store.back_state().as_deref(), Some("6"), "closed");
        }
    }

    /// The word of a ring, by its number.
    fn store_word(&self, queue: usize, word: usize, value: u32) {
        let pages = &self.rings[queue].pages;
        let word = word % (pages.len() * WORDS_PER_PAGE);
        pages[word / WORDS_PER_PAGE].words[word % WORDS_PER_PAGE].store(value, Relaxed);
    }

    fn word(&self, queue: usize, word: usize) -> u32 {
        let pages = &self.rings[queue].pages;
        pages[word / WORDS_PER_PAGE].words[word % WORDS_PER_PAGE].load(Relaxed)
    }

    fn place(&mut self, queue: usize, words: &[u32]) {
        let at = self.rings[queue].req_prod % self.entries;
        let at = ENTRIES + at as usize * self.entry_words;
        for (nr, word) in words.iter().take(self.entry_words).enumerate() {
            self.store_word(queue, at + nr, *word);
        }
        let ring = &mut self.rings[queue];
        ring.req_prod = ring.req_prod.wrapping_add(1);
        ring.in_ring += 1;
        let prod = ring.req_prod;
        self.store_word(queue, REQ_PROD, prod);
    }

    /// A request as a frontend makes it, or nearly.
    fn request(&mut self, what: u8, input: &mut Input<'_>) {
        let queue = usize::from(what >> 7) % self.rings.len();
        if self.rings[queue].in_ring >= self.entries {
            return;
        }
        let operation = match what >> 4 & 7 {
            nr @ READ..=FLUSH => nr,
            4 => DISCARD,
            5 | 6 => INDIRECT,
            _ => input.byte(),
        };
        let (count, sector) = (input.byte(), u64::from(input.byte()));
        let id = self.next_id;
        self.next_id += 1;
        let inner = if what >> 4 & 1 != 0 { WRITE } else { READ };
        let inner = if count & 0x80 != 0 { input.byte() } else { inner };
        let is_indirect = operation == INDIRECT;
        let expected;
        // As of x86_64: operation and a count, padding, number, sector. The other layout has no
        // padding.
        let mut words = vec![0; 28];
        let nr_segments = match operation {
            DISCARD => 0,
            INDIRECT => u16::from(count & 0x1f),
            _ => u16::from(count & 0xf),
        };
        if operation == DISCARD {
            let sectors = u64::from(input.byte()) << (count & 3);
            words[0] = u32::from(operation) | u32::from(count & 1) << 8;
            words[6] = sectors as u32;
            expected = self.expect_discard(sector, sectors);
        } else if is_indirect {
            words[0] = u32::from(operation) | u32::from(inner) << 8 | u32::from(nr_segments) << 16;
            words[7] = if what & 8 != 0 { input.byte().into() } else { SEGMENTS_GREF };
            expected = match words[7] {
                SEGMENTS_GREF => {
                    let segments: Vec<_> = (0..u64::from(nr_segments))
                        .map(|nr| self.machine.plat.peek(va(SEGMENTS).add(nr * 8)))
                        .collect();
                    self.expect_data(inner, true, sector, &segments)
                }
                _ => Expected::Anything,
            };
        } else {
            words[0] = u32::from(operation) | u32::from(nr_segments) << 8;
            let segments: Vec<_> = (0..nr_segments).map(|_| segment(input)).collect();
            for (nr, segment) in segments.iter().take(11).enumerate() {
                words[6 + nr * 2] = *segment as u32;
                words[7 + nr * 2] = (segment >> 32) as u32;
            }
            expected = self.expect_data(operation, false, sector, &segments);
        }
        (words[2], words[4]) = (id as u32, sector as u32);
        if self.entry_words == 27 {
            words.remove(1);
        }
        let placed = self.vbd.device().book().clock;
        let operation = if is_indirect { inner } else { operation };
        let segments = nr_segments.into();
        self.asked.insert(id, Asked { operation, is_indirect, segments, placed, expected });
        self.place(queue, &words);
    }

    /// Takes the responses there are.
    fn responses(&mut self) {
        for queue in 0..self.rings.len() {
            while !self.is_spoilt {
                let prod = self.word(queue, RSP_PROD);
                let ring = &mut self.rings[queue];
                if ring.rsp_cons == prod {
                    break;
                }
                assert!(ring.in_ring > 0, "an answer to nothing");
                let at = ENTRIES + (ring.rsp_cons % self.entries) as usize * self.entry_words;
                ring.rsp_cons = ring.rsp_cons.wrapping_add(1);
                ring.in_ring -= 1;
                let word = |nr| self.word(queue, at + nr);
                let id = u64::from(word(0)) | u64::from(word(1)) << 32;
                let (operation, status) = (word(2) as u8, (word(2) >> 16) as i16);
                let asked = self.asked.remove(&id).expect("one answer to each request");
                assert_eq!(operation, asked.operation);
                self.judge(&asked, status);
            }
        }
    }

    fn judge(&self, asked: &Asked, status: i16) {
        const OKAY: i16 = 0;
        const ERROR: i16 = -1;
        const EOPNOTSUPP: i16 = -2;
        let mut book = self.vbd.device().book();
        let failed = book.has_failed || self.is_removed;
        match &asked.expected {
            Expected::Anything => {}
            Expected::Error => assert_eq!(status, ERROR, "{asked:?}"),
            Expected::Unsupported => {
                assert!(status == EOPNOTSUPP || self.is_removed && status == ERROR, "{asked:?}");
            }
            Expected::Work { units, flush } => {
                if status != OKAY {
                    // An entry takes 127 pins of a kind.
                    let pins: usize = self.asked.values().map(|asked| asked.segments).sum();
                    let is_full = pins + asked.segments > 127;
                    assert!(failed || is_full, "{status} to {asked:?}");
                    return;
                }
                let mut last = asked.placed;
                for unit in units {
                    let done = book.done.get_mut(unit);
                    let at = done.and_then(|done| done.answer(asked.placed));
                    last = last.max(at.unwrap_or_else(|| panic!("{unit:?} was not done")));
                }
                if *flush && !failed {
                    assert!(book.flushes.iter().any(|at| *at > last), "{asked:?} without a flush");
                }
            }
        }
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what & 0xf {
            0..=4 => {
                let request = input.byte();
                self.request(request, input);
            }
            5 | 6 => {
                for queue in 0..self.rings.len() as u16 {
                    while self.vbd.kicked(&self.env(), queue) {}
                }
            }
            7 | 8 => {
                for _ in 0..=what >> 4 {
                    self.complete(input.byte().into(), Ok(()));
                }
                self.settle();
            }
            9 => self.indirect(input),
            10 => {
                let errors =
                    [IoError::Io, IoError::Unsupported, IoError::NoSpace, IoError::Removed];
                self.complete(what.into(), Err(errors[usize::from(what >> 4 & 3)]));
                self.settle();
            }
            11 => {
                let is_busy = what & 0x10 != 0;
                self.vbd.device().book().is_busy = is_busy;
                if !is_busy {
                    self.settle();
                }
            }
            12 => self.reconnect(),
            13 => self.spoil(what, input),
            14 if what == 0xfe => self.remove(),
            14 => {
                // A disk grows; what was judged by its old size may be judged by either.
                let disk = self.vbd.device();
                disk.info.lock().expect("one thread").sectors += 8;
                self.vbd.resized(&self.store);
                self.forget(|_| true);
            }
            _ => self.settle(),
        }
        self.responses();
    }

    /// Nothing is known of the answers to these requests any more.
    fn forget(&mut self, which: impl Fn(&Asked) -> bool) {
        for asked in self.asked.values_mut().filter(|asked| which(asked)) {
            asked.expected = Expected::Anything;
        }
    }

    /// Segments for indirect requests.
    fn indirect(&mut self, input: &mut Input<'_>) {
        let first = u64::from(input.byte());
        for nr in 0..u64::from(input.byte() & 0xf) + 1 {
            let word = segment(input);
            self.machine.plat.poke(va(SEGMENTS).add((first + nr) % 512 * 8), word);
        }
        self.forget(|asked| asked.is_indirect);
    }

    /// The device is taken away: it has nothing of the guest's any more.
    fn remove(&mut self) {
        self.vbd.device().book().pending.clear();
        self.vbd.device().book().is_busy = false;
        self.is_removed = true;
        self.vbd.remove(&self.env(), &self.store);
        self.settle();
    }

    /// What no frontend should do.
    fn spoil(&mut self, what: u8, input: &mut Input<'_>) {
        self.is_spoilt = true;
        let queue = usize::from(what >> 7) % self.rings.len();
        match what >> 4 & 7 {
            0 | 1 => self.store_word(queue, input.half().into(), input.word()),
            2 => {
                // An entry of anything.
                let words: Vec<u32> = (0..input.byte() % 29).map(|_| input.word()).collect();
                self.place(queue, &words);
            }
            3 => self.store_word(queue, REQ_PROD, input.word()),
            4 => {
                let at = va(TABLE.start).add(u64::from(input.byte()) * 8);
                // It leaves the flags of use alone.
                let word = self.machine.plat.peek(at) & 0x18 | input.number() & !0x18;
                self.machine.plat.poke(at, word);
            }
            5 => {
                let names = ["ring-ref", "event-channel", "protocol", "multi-queue-num-queues"];
                let name = input.pick(&names);
                let value = String::from_utf8_lossy(input.bytes()).into_owned();
                self.store.set_front(name, &value);
            }
            _ => self.set_state(&(input.byte() % 10).to_string()),
        }
    }

    fn end(mut self) {
        self.responses();
        // What is half done when the frontend leaves may fail.
        self.vbd.device().book().has_failed = true;
        self.close();
        self.responses();
        assert_eq!(self.vbd.is_gone(), self.is_removed);
        for gref in 0..512 {
            let entry = self.machine.plat.peek(va(TABLE.start).add(gref * 8));
            assert!(entry & 0x18 == 0, "grant {gref} is in use");
        }
    }
}

/// Some grants are read only; those of rings and of the segments are not.
const fn is_read_only(gref: u64) -> bool {
    gref % 4 == 3 && gref < RING_GREF
}

/// The guest's page a grant names.
fn granted(gref: u32) -> Option<u64> {
    let of = |first: u64, pages: core::ops::Range<u64>| {
        let pfn = pages.start + u64::from(gref).checked_sub(first)?;
        pages.contains(&pfn).then_some(pfn)
    };
    of(DATA_GREF, PAGES).or_else(|| of(RING_GREF, RINGS))
}

/// A segment as it stands in a page: its grant, first and last sector.
fn segment(input: &mut Input<'_>) -> u64 {
    let (gref, sectors) = (input.byte(), input.byte());
    let whole = sectors & 0x80 == 0;
    let first = if whole { 0 } else { sectors & 7 };
    let last = if whole { 7 } else { sectors >> 3 & 0xf };
    let gref = if gref < 0xf0 { u64::from(gref) % 20 + DATA_GREF } else { u64::from(gref) };
    gref | u64::from(first) << 32 | u64::from(last) << 40
}

/// A frontend and a device, both with their own mind.
pub(crate) fn blkif(data: &[u8]) {
    let mut input = Input::new(data);
    let setup = [(); 4].map(|()| input.byte());
    let mut world = World::new(setup);
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        world.step(what, &mut input);
    }
    world.end();
}

/// Requests of all kinds in both layouts, errors, a busy device, and departures.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let direct: &[u8] = &[0, 0x00, 2, 0, 0, 0, 2, 0, 0, 0x10, 1, 8, 4, 0xb8, 0, 0x30, 0, 0];
    let more: &[u8] = &[0, 0x20, 1, 16, 0, 0, 0, 0x40, 1, 32, 64, 0, 0x70, 9, 0, 0];
    let done: &[u8] = &[5, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    let indirect: &[u8] = &[9, 0, 12, 0, 0, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0, 12, 0, 14, 0, 16, 0, 0];
    let indirect =
        [indirect, &[0, 2, 0, 4, 0, 6, 0, 8, 0, 0, 0x60, 13, 0, 0, 0x50, 3, 32]].concat();
    let plain = [&[0xe0, 0xc0, 0x35, 8], direct, more, done].concat();
    let small = [&[0x25, 0x01, 0x00, 8], direct, &indirect, more, done, done, done].concat();
    let several =
        [&[0xe2, 0xc0, 0x77, 60], direct, &[0, 0x80, 1, 0, 0, 0], &indirect, done].concat();
    let paged = [&[0xe4, 0xc0, 0x77, 60], direct, more, done, &[12], direct, done].concat();
    let bad =
        [&[0x40, 0xc0, 0x11, 8], direct, &[5, 0x0a, 0x1a, 0x1b], more, &[5, 0x0b], done, &[0xfe]]
            .concat();
    // A barrier's write, which another queue does, too, after its flush.
    let twins: &[u8] = &[0, 0x20, 1, 8, 0, 0, 0, 0x90, 1, 8, 0, 0, 5, 7, 0, 7, 1, 0x17, 1, 0];
    let twins = [&[0xe2, 0xc0, 0x77, 60], twins].concat();
    let spoilt =
        [&[0xe0, 0xc0, 0x35, 8], direct, &[5, 0x3d, 9, 9, 0, 0, 5, 0x6d, 7, 0x6d, 3], done]
            .concat();
    vec![plain, small, several, paged, bad, twins, spoilt]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach the device.
    #[test]
    fn seeds_reach_the_device() {
        for seed in seeds() {
            let mut input = Input::new(&seed);
            let mut world = World::new([(); 4].map(|()| input.byte()));
            let mut most = 0;
            while let Some(what) = input.next() {
                world.step(what, &mut input);
                most = most.max(world.vbd.device().book().clock);
            }
            assert!(most > 3, "{seed:?}");
        }
    }
}
