//! A guest with a store and a network card: what a vif's surroundings are in the shim.

use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::vec::Vec;

use translate::evtchn::{self, Backend, Here};
use translate::fake::{FakePlatform, Machine, kernel_regs, mfn, va};
use translate::gnttab;
use translate::outcome::Outcome;
use translate::platform::{GuestMemory, PageWords};
use translate::xenstore::{Config, DomainConfig, Store};
use xen_abi::event_channel::EvtchnOp;
use xen_abi::grant_table::{GnttabOp, GrantRef, gtf};
use xen_abi::{GuestVa, Mfn};

use super::card::{FakeNic, Frame};
use crate::net::{NetInfo, RxPacket, RxPage, RxVerdict, TxEnd, copy_out};
use crate::netback::{BouncePage, Env, Limits, Rings, Vif, VifConfig, port_of};
use crate::xenbus::Stores;

/// Guest frames: the grant table's, one for arguments, and from [`FIRST_FREE`] on any.
const TABLE: core::ops::Range<u64> = 10..19;
const ARGUMENTS: u64 = 9;
const FIRST_FREE: u64 = 20;
pub const FRAMES: u64 = 900;
/// Grants: one frame of entries, of which the first 8 are reserved.
const GREFS: core::ops::Range<u32> = 8..512;

/// The real store.
pub struct Shared(Mutex<Store>);

impl Stores for Shared {
    fn with<R>(&self, f: impl FnOnce(&mut dyn crate::xenbus::Store) -> R) -> Option<R> {
        Some(f(&mut *self.0.lock().unwrap()))
    }
}

impl Shared {
    fn new() -> Self {
        let mut store = Store::new(&Config { bytes: 256 << 10, ..Config::default() }).unwrap();
        let domain = DomainConfig {
            name: b"net",
            uuid: [7; 16],
            max_kib: 1 << 20,
            target_kib: 1 << 20,
            nr_vcpus: 1,
            console: (1, 1),
            store: (2, 2),
        };
        store.add_domain(&domain).unwrap();
        Self(Mutex::new(store))
    }
    fn read(&self, path: &str) -> Option<String> {
        self.with(|store| store.read(path))?.map(|value| value.as_str().to_string())
    }
    pub fn front(&self, name: &str) -> Option<String> {
        self.read(&format!("/local/domain/1/device/vif/0/{name}"))
    }
    pub fn back(&self, name: &str) -> Option<String> {
        self.read(&format!("/local/domain/0/backend/vif/1/0/{name}"))
    }
    pub fn set_front(&self, name: &str, value: impl ToString) {
        let path = format!("/local/domain/1/device/vif/0/{name}");
        self.with(|store| crate::xenbus::Store::write(store, &path, &value.to_string()))
            .unwrap()
            .unwrap();
    }
    /// As if it were not there: no number, and no flag.
    pub fn remove_front(&self, name: &str) {
        if self.front(name).is_some() {
            self.set_front(name, "");
        }
    }
}

/// Bytes of a page, where both sides may change them.
pub fn page_bytes(page: &PageWords) -> Vec<u8> {
    page.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect()
}

pub fn set_page_bytes(page: &PageWords, offset: usize, bytes: &[u8]) {
    crate::netvsc::fake::write_page(page, offset, bytes);
}

/// Pages of worlds that are gone: fuzzers make many.
static USED: Mutex<Vec<&'static PageWords>> = Mutex::new(Vec::new());

/// A page that is not the guest's.
pub fn own_page() -> &'static PageWords {
    let used = USED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    used.unwrap_or_else(|| Box::leak(Box::new([const { AtomicU64::new(0) }; 512])))
}

/// All together.
pub struct World {
    pub machine: Machine,
    pub store: Shared,
    pub vif: Vif<FakeNic>,
    frames: u64,
    free_pages: Vec<u64>,
    free_grefs: Vec<u32>,
    last_gref: u32,
    /// Bytes of an entry of the grant table.
    entry_bytes: u64,
    buffer: Vec<RxPage>,
    bounce: Vec<BouncePage>,
    /// The guest may change pages that are at the card.
    pub is_spoilt: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        let mut used = USED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        used.extend(self.buffer.iter().map(|page| page.page));
        used.extend(self.bounce.iter().map(|page| page.page));
    }
}

pub const CONFIG: VifConfig = VifConfig { handle: 0, mac: None, mtu: None, promiscuous: false };

impl World {
    pub fn new(info: NetInfo) -> Self {
        Self::with(info, CONFIG, 2)
    }

    pub fn with(info: NetInfo, config: VifConfig, nr_bounce: u64) -> Self {
        Self::sized(info, config, nr_bounce, FRAMES)
    }

    /// A world of so many frames.
    pub fn sized(info: NetInfo, config: VifConfig, nr_bounce: u64, frames: u64) -> Self {
        let machine = Machine::with(frames, 4);
        let pool: Vec<Mfn> = TABLE.map(mfn).collect();
        machine.dom.gnttab.set_pool(&machine.plat, &pool);
        let bounce: Vec<_> = (0..nr_bounce)
            .map(|nr| BouncePage { gpfn: Mfn(1 << 40 | nr), page: own_page() })
            .collect();
        let vif = Vif::new(3, config, Limits { queues: 4 }, FakeNic::new(info), &bounce).unwrap();
        let buffer = (0..20).map(|nr| RxPage { gpfn: 1 << 41 | nr, page: own_page() }).collect();
        Self {
            machine,
            store: Shared::new(),
            vif,
            frames,
            free_pages: (FIRST_FREE..frames).rev().collect(),
            free_grefs: GREFS.rev().collect(),
            last_gref: 0,
            entry_bytes: 8,
            buffer,
            bounce,
            is_spoilt: false,
        }
    }

    pub fn plat(&self) -> &FakePlatform {
        &self.machine.plat
    }

    pub fn env(&self) -> Env<'_, FakePlatform> {
        Env { dom: &self.machine.dom, plat: &self.machine.plat, here: Here::on_id(0) }
    }

    pub fn words(&self, page: Mfn) -> &'static PageWords {
        self.plat().frame(page).expect("the guest's")
    }

    pub fn page(&mut self) -> Mfn {
        mfn(self.free_pages.pop().expect("a free page"))
    }

    pub fn free_page(&mut self, page: Mfn) {
        self.free_pages.push(page.0 - mfn(0).0);
    }

    pub fn free_counts(&self) -> (usize, usize) {
        (self.free_pages.len(), self.free_grefs.len())
    }

    fn entry(&self, gref: u32) -> GuestVa {
        va(TABLE.start).add(u64::from(gref) * self.entry_bytes)
    }

    /// From now on grants are of version 2. Their use shows elsewhere than in the entries.
    pub fn use_version_2(&mut self) {
        let at = va(ARGUMENTS);
        self.plat().poke(at, 2);
        let mut regs = kernel_regs();
        (regs.rdi, regs.rsi, regs.rdx) = (GnttabOp::SET_VERSION.0.into(), at.0, 1);
        let done = gnttab::grant_table_op(&mut self.machine.cx(), &mut regs);
        assert_eq!(done, Ok(Outcome::Return(0)));
        self.entry_bytes = 16;
    }

    /// Makes a grant of version 2 one of a part of its page.
    pub fn cut(&self, gref: u32, offset: u16, len: u16) {
        let part = u64::from(gtf::SUB_PAGE) | u64::from(offset) << 32 | u64::from(len) << 48;
        self.plat().poke(self.entry(gref), self.entry_of(gref) | part);
    }

    pub fn entry_of(&self, gref: u32) -> u64 {
        self.plat().peek(self.entry(gref))
    }

    /// The grant that is made next.
    pub fn next_grant(&self) -> u32 {
        *self.free_grefs.last().expect("a free grant")
    }

    /// Makes an entry of a frame number and flags, for domain 0.
    pub fn grant_as(&mut self, frame: u64, flags: u16) -> u32 {
        let gref = self.free_grefs.pop().expect("a free grant");
        self.last_gref = gref;
        if self.entry_bytes == 16 {
            self.plat().poke(self.entry(gref).add(8), frame);
            self.plat().poke(self.entry(gref), flags.into());
        } else {
            self.plat().poke(self.entry(gref), frame << 32 | u64::from(flags));
        }
        gref
    }

    /// The grant made last.
    pub fn last_grant(&self) -> u32 {
        self.last_gref
    }

    pub fn grant(&mut self, page: Mfn, read_only: bool) -> u32 {
        let flags = gtf::PERMIT_ACCESS | if read_only { gtf::READONLY } else { 0 };
        self.grant_as(page.0, flags)
    }

    /// Whether a backend shows that it uses a grant.
    pub fn in_use(&self, gref: u32) -> bool {
        let flags = self.entry_of(gref) as u16;
        flags & gtf::TYPE_MASK == gtf::PERMIT_ACCESS && flags & (gtf::READING | gtf::WRITING) != 0
    }

    /// Whether a backend uses a grant, by what it shows or by what the table knows.
    pub fn any_in_use(&self) -> bool {
        let grants = gnttab::open(&self.machine.dom);
        let is_pinned = |gref| grants.pinned(GrantRef(gref)).is_some();
        GREFS.into_iter().any(|gref| self.in_use(gref) || is_pinned(gref))
    }

    /// Takes a grant back.
    pub fn end_access(&mut self, gref: u32) {
        assert!(!self.in_use(gref), "gref {gref} is still in use");
        self.spoil(gref, 0);
        self.free_grefs.push(gref);
    }

    /// Writes something else into a grant's entry.
    pub fn spoil(&self, gref: u32, entry: u64) {
        self.plat().poke(self.entry(gref), entry);
    }

    pub fn alloc_port(&mut self) -> u32 {
        let at = va(ARGUMENTS);
        self.plat().poke(at, 0x7ff0);
        let op = EvtchnOp::ALLOC_UNBOUND.0.into();
        evtchn::event_channel_op(&mut self.machine.cx(), op, at.0).expect("a port");
        (self.plat().peek(at) >> 32) as u32
    }

    /// Has a vCPU told of a port.
    pub fn bind_port(&mut self, port: u32, vcpu: u32) {
        let at = va(ARGUMENTS);
        self.machine.plat.poke(at, u64::from(vcpu) << 32 | u64::from(port));
        let cx = &mut self.machine.cx();
        let op = EvtchnOp::BIND_VCPU.0.into();
        evtchn::event_channel_op(cx, op, at.0).expect("bound");
    }

    pub fn close_port(&mut self, port: u32) {
        let at = va(ARGUMENTS);
        self.plat().poke(at, port.into());
        evtchn::event_channel_op(&mut self.machine.cx(), EvtchnOp::CLOSE.0.into(), at.0).unwrap();
    }

    /// Whether a port waits for a backend: none has it.
    pub fn is_let_go(&self, port: u32) -> bool {
        let (evtchn, backend) = (&self.machine.dom.evtchn, Backend::Net(0));
        let bound = evtchn.bind_backend(port, backend);
        bound.map(|()| evtchn.unbind_backend(port, backend)).is_ok()
    }

    /// Another kernel has the guest's frames, and knows of no grant.
    pub fn begin_anew(&mut self) {
        GREFS.for_each(|gref| self.spoil(gref, 0));
        self.free_grefs = GREFS.rev().collect();
        let frames = FIRST_FREE..self.frames;
        let is_its = |page: &u64| self.plat().frame(mfn(*page)).is_some();
        self.free_pages = frames.rev().filter(is_its).collect();
        self.is_spoilt = false;
    }

    /// The guest notifies a port that is of these rings of a queue.
    pub(in crate::netback) fn kick(&self, rings: Rings, queue: u16) {
        while self.vif.kicked(&self.env(), port_of(3, rings, queue)) {}
        if self.vif.is_unsettled() {
            self.settle();
        }
    }

    /// Takes a port's pending bit.
    pub fn take_event(&self, port: u32) -> bool {
        let word = &self.machine.dom.shared_info.evtchn_pending[port as usize / 64];
        let bit = 1 << (port % 64);
        word.fetch_and(!bit, Relaxed) & bit != 0
    }

    pub fn settle(&self) {
        while self.vif.settled(&self.env(), &self.store) {}
    }

    /// Ends the way of the `index`-th of the packets at the card: the bytes are those it was given.
    pub fn transmit(&self, index: usize, end: TxEnd) -> bool {
        assert_eq!(self.vif.device().state().uncommitted, 0, "the host was not told");
        self.transmit_early(index, end)
    }

    /// The same, maybe amid a batch of another thread's.
    pub fn transmit_early(&self, index: usize, end: TxEnd) -> bool {
        let sent = self.vif.device().state().pending.remove(index);
        let Some(sent) = sent else { return false };
        let mut bytes = Vec::new();
        for (gpfn, offset, len) in &sent.places {
            let bounce = self.bounce.iter().find(|page| page.gpfn == *gpfn);
            let page = bounce.map_or_else(|| self.words(*gpfn), |page| page.page);
            let mut part = std::vec![0; usize::from(*len)];
            copy_out(page, usize::from(*offset), &mut part);
            bytes.extend(part);
        }
        assert!(self.is_spoilt || bytes == sent.bytes, "the pages changed under the card");
        self.vif.transmitted(&self.env(), sent.tag, end);
        true
    }

    /// Sends everything that is at the card.
    pub fn drain(&self) {
        loop {
            while self.transmit(0, TxEnd::Sent) {}
            self.vif.device().state().was_busy = false;
            self.settle();
            if self.vif.device().state().pending.is_empty() {
                break;
            }
        }
    }

    /// Has the host bring a packet.
    pub fn arrive(&self, queue: u32, frame: Frame) {
        self.vif.device().state().inbox[queue as usize].0.push_back(frame);
    }

    /// Brings the guest what the host has, as far as it goes.
    pub fn pump(&self) {
        let queues = self.vif.device().state().inbox.len();
        for queue in 0..queues {
            loop {
                let frame = {
                    let mut state = self.vif.device().state();
                    let (inbox, stopped) = &mut state.inbox[queue];
                    if *stopped || inbox.is_empty() {
                        break;
                    }
                    // Waits, unless it is resumed meanwhile.
                    *stopped = true;
                    inbox[0].clone()
                };
                if self.bring(queue as u32, &frame) == RxVerdict::Wait {
                    break;
                }
                let mut state = self.vif.device().state();
                state.inbox[queue].0.pop_front();
                state.inbox[queue].1 = false;
            }
        }
        self.settle();
    }

    /// Brings one packet, in parts somewhere in the receive buffer, which is overwritten after.
    pub fn bring(&self, queue: u32, frame: &Frame) -> RxVerdict {
        let mut parts = Vec::new();
        let (mut from, mut at) = (0, 37);
        let mut ends: Vec<_> = frame.cuts.iter().map(|cut| (*cut).min(frame.bytes.len())).collect();
        ends.push(frame.bytes.len());
        ends.sort_unstable();
        for end in ends {
            if end == from {
                continue;
            }
            parts.push((at as u32, (end - from) as u32));
            let mut rest = &frame.bytes[from..end];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(4096 - at % 4096));
                set_page_bytes(self.buffer[at / 4096].page, at % 4096, now);
                (rest, at) = (later, at + now.len());
            }
            (from, at) = (end, at + 13);
        }
        let mut packet = RxPacket::new(&self.buffer, &parts).expect("a packet");
        (packet.csum, packet.gso) = (frame.csum, frame.gso);
        (packet.hash, packet.vlan) = (frame.hash, frame.vlan);
        packet.ip_csum_blank = frame.ip_csum_blank;
        let verdict = self.vif.receive(&self.env(), queue, &packet);
        for page in &self.buffer {
            page.page.iter().for_each(|word| word.store(u64::MAX, Relaxed));
        }
        verdict
    }

    pub fn set_state(&self, state: u32) {
        self.store.set_front("state", state);
        self.vif.frontend_changed(&self.env(), &self.store);
    }

    pub fn back_state(&self) -> u32 {
        self.store.back("state").map_or(0, |state| state.parse().unwrap())
    }

    pub fn advance(&self, ns: u64) {
        self.plat().state().now_ns += ns;
    }

    /// Lets time pass up to what the vif waits for.
    pub fn tick(&self) {
        let deadline = self.vif.deadline().expect("it waits for something");
        let now = self.plat().state().now_ns;
        self.advance(deadline.saturating_sub(now));
        self.vif.tick(&self.env());
    }
}
