//! A frontend that behaves as Linux's netfront does.

use std::collections::BTreeMap;
use std::format;
use std::string::ToString;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::vec;
use std::vec::Vec;

use translate::platform::GuestMemory;
use xen_abi::grant_table::{GrantRef, gtf};
use xen_abi::io::netif::*;
use xen_abi::io::ring::{ENTRIES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingPage};
use xen_abi::{Mfn, Pfn};
use zerocopy::{FromBytes, IntoBytes};

use super::world::{World, page_bytes, set_page_bytes};
use crate::netback::{Kicked, Rings, port_of};

/// Entries of either ring.
pub const RING: u32 = 256;

/// What a frontend does.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub queues: u16,
    pub split: bool,
    pub ctrl: bool,
    pub sg: bool,
    pub gso: bool,
    pub gso_prefix: bool,
    pub csum_v4: bool,
    pub csum_v6: bool,
    pub notify: bool,
    pub flip: bool,
    pub headroom: u16,
    pub multicast: bool,
}

/// As Linux has them.
pub const LINUX: Features = Features {
    queues: 1,
    split: true,
    ctrl: false,
    sg: true,
    gso: true,
    gso_prefix: false,
    csum_v4: true,
    csum_v6: true,
    notify: true,
    flip: false,
    headroom: 0,
    multicast: false,
};

/// A ring as the guest sees it.
pub struct Ring {
    page: Mfn,
    gref: u32,
    words: usize,
    entries: u32,
    pub req_prod: u32,
    pub rsp_cons: u32,
}

impl Ring {
    fn new(w: &mut World, entry_bytes: usize, entries: u32) -> Self {
        let page = w.page();
        set_page_bytes(w.words(page), 0, &[0; 4096]);
        let gref = w.grant(page, false);
        let ring = Self { page, gref, words: entry_bytes / 4, entries, req_prod: 0, rsp_cons: 0 };
        ring.store(w, REQ_EVENT, 1);
        ring.store(w, RSP_EVENT, 1);
        ring
    }

    fn word<'w>(&self, w: &'w World, word: usize) -> &'w AtomicU32 {
        let page: &'static RingPage = w.plat().view(self.page.base()).expect("the guest's page");
        &page.words[word]
    }
    pub fn store(&self, w: &World, word: usize, value: u32) {
        self.word(w, word).store(value, Relaxed);
    }
    pub fn load(&self, w: &World, word: usize) -> u32 {
        self.word(w, word).load(Acquire)
    }

    pub fn put(&mut self, w: &World, entry: &[u8]) {
        let at = ENTRIES + (self.req_prod % self.entries) as usize * self.words;
        let mut words = [0u32; 4];
        words.as_mut_bytes()[..entry.len()].copy_from_slice(entry);
        for (nr, word) in words.iter().enumerate().take(self.words) {
            self.store(w, at + nr, *word);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows the requests; whether the backend wants to be told.
    pub fn push(&self, w: &World) -> bool {
        let old = self.load(w, REQ_PROD);
        self.word(w, REQ_PROD).store(self.req_prod, Release);
        fence(SeqCst);
        let event = self.load(w, REQ_EVENT);
        self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
    }

    /// The next response, and where it is.
    pub fn get<T: FromBytes + zerocopy::Immutable>(&mut self, w: &World) -> Option<(u32, T)> {
        let prod = self.load(w, RSP_PROD);
        assert!(prod.wrapping_sub(self.rsp_cons) <= self.req_prod.wrapping_sub(self.rsp_cons));
        if prod == self.rsp_cons {
            self.store(w, RSP_EVENT, self.rsp_cons.wrapping_add(1));
            return None;
        }
        let place = self.rsp_cons % self.entries;
        let at = ENTRIES + place as usize * self.words;
        let words: [u32; 4] =
            core::array::from_fn(|nr| if nr < self.words { self.load(w, at + nr) } else { 0 });
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Some((place, T::read_from_prefix(words.as_bytes()).unwrap().0))
    }
}

/// A packet to be sent, as slots.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub bytes: Vec<u8>,
    /// Where slots end, besides at the end of pages.
    pub cuts: Vec<usize>,
    /// Where in its page the first byte is.
    pub offset: usize,
    pub flags: u16,
    pub extras: Vec<NetifExtraInfo>,
}

impl Wish {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }
    pub fn partial(bytes: Vec<u8>) -> Self {
        Self { flags: txf::CSUM_BLANK | txf::DATA_VALIDATED, ..Self::new(bytes) }
    }
    pub fn gso(bytes: Vec<u8>, size: u16, type_: GsoType) -> Self {
        let gso = NetifExtraGso { size, type_, pad: 0, features: 0 };
        Self { extras: vec![extra(ExtraType::GSO, gso.as_bytes())], ..Self::partial(bytes) }
    }
}

/// An extra info, as the only one.
pub fn extra(type_: ExtraType, u: &[u8]) -> NetifExtraInfo {
    NetifExtraInfo { type_, flags: 0, u: u.try_into().unwrap() }
}

/// A packet as it was received.
#[derive(Clone, Debug, Default)]
pub struct Got {
    pub bytes: Vec<u8>,
    pub flags: u16,
    pub slots: usize,
    pub gso: Option<NetifExtraGso>,
    pub prefix: Option<u16>,
    pub hash: Option<NetifExtraHash>,
    pub headroom: Option<u16>,
    /// A slot's status was an error.
    pub failed: bool,
}

impl Got {
    /// What is to be cut up or summed up has IP behind its Ethernet header (`skb_checksum_setup`).
    fn check_offloads(&self) {
        let is_work = self.gso.is_some() || self.prefix.is_some();
        if !self.failed && (is_work || self.flags & rxf::CSUM_BLANK != 0) {
            let kind = self.bytes.get(12..14);
            assert!(matches!(kind, Some([8, 0] | [0x86, 0xdd])), "{kind:?}: dropped");
        }
    }
}

/// A page for what is received.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    gref: u32,
    page: Mfn,
}

/// One queue's frontend.
pub struct Front {
    pub features: Features,
    pub queue: u16,
    pub tx: Ring,
    pub rx: Ring,
    pub tx_port: u32,
    pub rx_port: u32,
    /// Slots that are not answered, by id.
    pub sent: BTreeMap<u16, (u32, Mfn)>,
    next_id: u16,
    posted: Vec<Option<Buffer>>,
}

impl Front {
    fn new(w: &mut World, features: Features, queue: u16) -> Self {
        let tx = Ring::new(w, 12, RING);
        let rx = Ring::new(w, 8, RING);
        let tx_port = w.alloc_port();
        let rx_port = if features.split { w.alloc_port() } else { tx_port };
        let dir = if features.queues > 1 { format!("queue-{queue}/") } else { Default::default() };
        w.store.set_front(&format!("{dir}tx-ring-ref"), tx.gref);
        w.store.set_front(&format!("{dir}rx-ring-ref"), rx.gref);
        let names = ["event-channel-tx", "event-channel-rx", "event-channel"];
        names.iter().for_each(|name| w.store.remove_front(&format!("{dir}{name}")));
        if features.split {
            w.store.set_front(&format!("{dir}event-channel-tx"), tx_port);
            w.store.set_front(&format!("{dir}event-channel-rx"), rx_port);
        } else {
            w.store.set_front(&format!("{dir}event-channel"), tx_port);
        }
        let posted = vec![None; RING as usize];
        let sent = BTreeMap::new();
        Self { features, queue, tx, rx, tx_port, rx_port, sent, next_id: 7, posted }
    }

    fn rings(&self, own: Rings) -> Rings {
        if self.features.split { own } else { Rings::Both }
    }

    fn id(&mut self) -> u16 {
        loop {
            self.next_id = (self.next_id + 1) % RING as u16;
            if !self.sent.contains_key(&self.next_id) {
                return self.next_id;
            }
        }
    }

    /// Slots a packet takes; its parts as (offset in a page, bytes).
    fn parts(wish: &Wish) -> Vec<(usize, Vec<u8>)> {
        let (mut parts, mut at, mut offset) = (vec![], 0, wish.offset);
        while at < wish.bytes.len() {
            let cut = wish.cuts.iter().copied().filter(|cut| *cut > at).min().unwrap_or(usize::MAX);
            let end = wish.bytes.len().min(at + 4096 - offset).min(cut);
            parts.push((offset, wish.bytes[at..end].to_vec()));
            (at, offset) = (end, 0);
        }
        parts
    }

    pub fn has_room(&self, wish: &Wish) -> bool {
        let used = self.tx.req_prod.wrapping_sub(self.tx.rsp_cons) as usize;
        used + Self::parts(wish).len() + wish.extras.len() <= RING as usize
    }

    /// Queues a packet; its ids.
    pub fn send(&mut self, w: &mut World, wish: &Wish) -> Vec<u16> {
        let parts = Self::parts(wish);
        let count = parts.len();
        let mut ids = vec![];
        for (nr, (offset, bytes)) in parts.into_iter().enumerate() {
            let page = w.page();
            set_page_bytes(w.words(page), 0, &[0x5a; 4096]);
            set_page_bytes(w.words(page), offset, &bytes);
            let (gref, id) = (w.grant(page, true), self.id());
            self.sent.insert(id, (gref, page));
            ids.push(id);
            let mut flags = if nr + 1 < count { txf::MORE_DATA } else { 0 };
            let mut size = bytes.len() as u16;
            if nr == 0 {
                size = wish.bytes.len() as u16;
                flags |= wish.flags;
                flags |= if wish.extras.is_empty() { 0 } else { txf::EXTRA_INFO };
            }
            let request =
                NetifTxRequest { gref: GrantRef(gref), offset: offset as u16, flags, id, size };
            self.tx.put(w, request.as_bytes());
            if nr == 0 {
                for (nr, extra) in wish.extras.iter().enumerate() {
                    let flags = if nr + 1 < wish.extras.len() { EXTRA_FLAG_MORE } else { 0 };
                    self.tx.put(w, NetifExtraInfo { flags, ..*extra }.as_bytes());
                }
            }
        }
        ids
    }

    /// Shows what was queued, and tells the backend if it wants to be.
    pub fn flush(&self, w: &World) {
        if self.tx.push(w) {
            w.kick(self.rings(Rings::Tx), self.queue);
        }
    }

    /// As [`Self::flush`], but the backend may hold something back; `None`: it was not told.
    pub fn flush_holding(&self, w: &World) -> Option<Kicked> {
        let port = port_of(3, self.rings(Rings::Tx), self.queue);
        self.tx.push(w).then(|| w.vif.kicked_holding(&w.env(), port))
    }

    /// What is held back goes.
    pub fn release(&self, w: &World) {
        w.kick(self.rings(Rings::Tx), self.queue);
    }

    /// Takes all answers, checked as netfront checks them: ids and statuses, and how many were for
    /// extra infos.
    pub fn answers(&mut self, w: &mut World) -> (Vec<(u16, i16)>, usize) {
        let (mut answers, mut nulls) = (vec![], 0);
        while let Some((_, response)) = self.tx.get::<NetifTxResponse>(w) {
            if response.status == NetifStatus::NULL {
                nulls += 1;
                continue;
            }
            let (gref, page) = self.sent.remove(&response.id).expect("for an inactive request");
            w.end_access(gref);
            w.free_page(page);
            answers.push((response.id, response.status.0));
        }
        (answers, nulls)
    }

    /// Where the page is to be that a grant brings.
    fn place_of(gref: u32) -> u64 {
        1000 + u64::from(gref)
    }

    /// Gives the backend pages to fill.
    pub fn post(&mut self, w: &mut World, count: usize) {
        for _ in 0..count {
            let place = self.rx.req_prod % RING;
            if self.posted[place as usize].is_some() {
                break;
            }
            let page = w.page();
            set_page_bytes(w.words(page), 0, &[0xa5; 4096]);
            let gref = if self.features.flip {
                assert!(w.plat().release_frame(page));
                w.machine.dom.nr_pages.fetch_sub(1, Relaxed);
                w.grant_as(Self::place_of(w.next_grant()), gtf::ACCEPT_TRANSFER)
            } else {
                w.grant(page, false)
            };
            self.repost(w, Buffer { gref, page });
        }
    }

    fn repost(&mut self, w: &World, buffer: Buffer) {
        let place = self.rx.req_prod % RING;
        let request = NetifRxRequest { id: place as u16, pad: 0, gref: GrantRef(buffer.gref) };
        self.posted[place as usize] = Some(buffer);
        self.rx.put(w, request.as_bytes());
    }

    /// Shows the pages.
    pub fn flush_rx(&self, w: &World) {
        if self.rx.push(w) && self.features.notify {
            w.kick(self.rings(Rings::Rx), self.queue);
        }
    }

    /// The page a response is about: from now on there is room for another at its place.
    fn take(&mut self, place: u32) -> Buffer {
        self.posted[place as usize].take().expect("a response where none is due")
    }

    /// The page of a response that is done with; its contents.
    fn finish(&self, w: &mut World, buffer: Buffer) -> Vec<u8> {
        let mut page = buffer.page;
        if self.features.flip {
            let entry = w.entry_of(buffer.gref);
            let done = gtf::ACCEPT_TRANSFER | gtf::TRANSFER_COMMITTED | gtf::TRANSFER_COMPLETED;
            assert_eq!(entry as u16, done);
            page = Mfn(entry >> 32);
            assert_eq!(w.plat().m2p(page), Some(Pfn(Self::place_of(buffer.gref))));
        }
        let bytes = page_bytes(w.words(page));
        w.end_access(buffer.gref);
        w.free_page(page);
        bytes
    }

    fn extras(&mut self, w: &mut World, got: &mut Got) {
        loop {
            let (place, extra) = self.rx.get::<NetifExtraInfo>(w).expect("missing extra info");
            match extra.type_ {
                ExtraType::GSO => got.gso = NetifExtraGso::read_from_bytes(&extra.u).ok(),
                ExtraType::HASH => got.hash = NetifExtraHash::read_from_bytes(&extra.u).ok(),
                ExtraType::XDP => {
                    got.headroom =
                        NetifExtraXdp::read_from_bytes(&extra.u).ok().map(|xdp| xdp.headroom);
                }
                other => panic!("invalid extra type {other:?}"),
            }
            // Its page goes into the ring again, unused.
            let buffer = self.take(place);
            assert!(!w.in_use(buffer.gref));
            self.repost(w, buffer);
            if extra.flags & EXTRA_FLAG_MORE == 0 {
                return;
            }
        }
    }

    /// Takes all packets that came, checked as netfront checks them.
    pub fn poll(&mut self, w: &mut World) -> Vec<Got> {
        let mut all = vec![];
        while let Some((mut place, mut response)) = self.rx.get::<NetifRxResponse>(w) {
            let mut got = Got { flags: response.flags, slots: 1, ..Got::default() };
            if response.flags & rxf::GSO_PREFIX != 0 {
                got.prefix = Some(response.offset);
                let slots = response.status.0;
                let buffer = self.take(place);
                self.repost(w, buffer);
                (place, response) = self.rx.get(w).expect("need more slots");
                got.flags = response.flags;
                assert!(slots > 1);
            }
            let mut buffer = self.take(place);
            if response.flags & rxf::EXTRA_INFO != 0 {
                self.extras(w, &mut got);
            }
            loop {
                assert_eq!(u32::from(response.id), place, "responses are where requests were");
                got.failed |= response.status.0 < 0;
                let page = match response.status.0 {
                    ..0 => self.failed(w, buffer),
                    0.. => self.finish(w, buffer),
                };
                let (offset, size) = (usize::from(response.offset), response.status.0.max(0));
                let end = offset + size as usize;
                assert!(end <= 4096);
                got.bytes.extend(&page[offset..end]);
                if !self.features.flip && !got.failed {
                    assert!(page[end..].iter().all(|byte| *byte == 0xa5), "beyond the data");
                    assert!(page[..offset].iter().all(|byte| *byte == 0xa5), "before the data");
                }
                if response.flags & rxf::MORE_DATA == 0 {
                    break;
                }
                (place, response) = self.rx.get(w).expect("need more slots");
                buffer = self.take(place);
                got.slots += 1;
            }
            assert!(got.slots <= NR_SLOTS_MIN, "too many slots");
            got.check_offloads();
            all.push(got);
        }
        all
    }

    /// The page of a response that says there is nothing in it.
    fn failed(&self, w: &mut World, buffer: Buffer) -> Vec<u8> {
        if self.features.flip {
            w.machine.dom.nr_pages.fetch_add(1, Relaxed);
        } else {
            w.free_page(buffer.page);
        }
        w.end_access(buffer.gref);
        vec![0; 4096]
    }

    /// Lets go of everything, which the backend has.
    pub fn destroy(mut self, w: &mut World) {
        for (gref, page) in core::mem::take(&mut self.sent).into_values() {
            w.end_access(gref);
            w.free_page(page);
        }
        for buffer in self.posted.iter().flatten() {
            w.end_access(buffer.gref);
            w.free_page(buffer.page);
        }
        for ring in [&self.tx, &self.rx] {
            w.end_access(ring.gref);
            w.free_page(ring.page);
        }
        w.close_port(self.tx_port);
        if self.features.split {
            w.close_port(self.rx_port);
        }
    }
}

/// A control ring's frontend.
pub struct CtrlFront {
    pub ring: Ring,
    pub port: u32,
}

impl CtrlFront {
    fn new(w: &mut World) -> Self {
        let front = Self { ring: Ring::new(w, 16, 128), port: w.alloc_port() };
        w.store.set_front("ctrl-ring-ref", front.ring.gref);
        w.store.set_front("event-channel-ctrl", front.port);
        front
    }

    /// Sends a message: the answer's status and data.
    pub fn ask(&mut self, w: &World, type_: CtrlType, data: [u32; 3]) -> (CtrlStatus, u32) {
        let id = self.ring.req_prod as u16 ^ 0x55;
        self.ring.put(w, NetifCtrlRequest { id, type_, data }.as_bytes());
        self.kick(w);
        let (_, response) = self.ring.get::<NetifCtrlResponse>(w).expect("an answer");
        assert!(self.ring.get::<NetifCtrlResponse>(w).is_none(), "one answer");
        assert_eq!((response.id, response.type_), (id, type_));
        assert!(w.take_event(self.port));
        (response.status, response.data)
    }

    /// Shows the messages, and tells the backend if it wants to be.
    pub fn kick(&self, w: &World) {
        if self.ring.push(w) {
            w.kick(Rings::Ctrl, 0);
        }
    }

    pub fn destroy(self, w: &mut World) {
        w.end_access(self.ring.gref);
        w.free_page(self.ring.page);
        w.close_port(self.port);
    }
}

/// Writes what the frontend says of itself, and sets its rings up, without connecting.
pub fn set_up(w: &mut World, features: Features) -> (Vec<Front>, Option<CtrlFront>) {
    let most: u16 = w.store.back("multi-queue-max-queues").unwrap().parse().unwrap();
    assert!(features.queues <= most);
    let flags = [
        ("request-rx-copy", !features.flip),
        ("feature-rx-notify", features.notify),
        ("feature-sg", features.sg),
        ("feature-gso-tcpv4", features.gso),
        ("feature-gso-tcpv6", features.gso),
        ("feature-gso-tcpv4-prefix", features.gso_prefix),
        ("feature-gso-tcpv6-prefix", features.gso_prefix),
        ("feature-no-csum-offload", !features.csum_v4),
        ("feature-ipv6-csum-offload", features.csum_v6),
        ("request-multicast-control", features.multicast),
    ];
    for (name, value) in flags {
        w.store.set_front(name, u8::from(value));
    }
    w.store.set_front("xdp-headroom", features.headroom);
    w.store.set_front("multi-queue-num-queues", features.queues.to_string());
    ["ctrl-ring-ref", "event-channel-ctrl"].iter().for_each(|name| w.store.remove_front(name));
    let fronts = (0..features.queues).map(|queue| Front::new(w, features, queue)).collect();
    (fronts, features.ctrl.then(|| CtrlFront::new(w)))
}

/// Connects a frontend through the states as netfront goes.
pub fn connect_all(w: &mut World, features: Features) -> (Vec<Front>, Option<CtrlFront>) {
    assert_eq!(w.back_state(), 2, "the backend waits");
    let fronts = set_up(w, features);
    w.set_state(4);
    assert_eq!(w.back_state(), 4);
    fronts
}
