//! Packets both ways, and what must become of them.

use pv_frontends::net::{Gso, HashTypes, Ip, RxCsum, RxHash, Transport, TxEnd, copy_out};
use pv_frontends::netback::fake::card::{Frame, Sent};
use pv_frontends::netback::fake::front::{RING, Ring, extra};
use pv_frontends::netback::fake::packet::{Recipe, fold};
use pv_frontends::netback::fake::world::set_page_bytes;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraType, NetifExtraInfo, NetifStatus, NetifTxRequest, NetifTxResponse, txf,
};
use xen_abi::io::ring::RSP_PROD;
use zerocopy::IntoBytes;

use super::{CROWD, Chain, Game, SHARED};
use crate::input::Input;

/// Where every packet has its number: its sender's address.
const SERIAL: core::ops::Range<usize> = 6..10;
/// Slots of a packet at most, as netback takes it.
const MAX_SLOTS: usize = 19;

fn serial_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[SERIAL].try_into().expect("4 bytes"))
}

/// A packet by two bytes: of which kind, and its payload.
fn recipe(kind: u8, payload: usize) -> Recipe {
    let ip = if kind & 4 != 0 { Ip::V6 } else { Ip::V4 };
    let transport = if kind & 8 != 0 { Transport::Udp } else { Transport::Tcp };
    let tag = (kind & 16 != 0).then_some(0x123);
    Recipe { tag, ..Recipe::new(ip, transport, payload) }
}

/// Whether two packets are the same but for a checksum, which is two bytes.
fn is_same_but_sum(one: &[u8], other: &[u8]) -> bool {
    let mut differ = (0..one.len()).filter(|at| one[*at] != other[*at]);
    let (first, last) = (differ.next(), differ.next_back());
    let span = last.or(first).zip(first).map_or(0, |(last, first)| last - first);
    one.len() == other.len() && span <= 1 && first.is_none_or(|at| at >= 14)
}

/// Extra infos as a byte says; whether every frontend may send them, and what they are.
struct Extras {
    list: Vec<NetifExtraInfo>,
    is_sound: bool,
    is_message: bool,
    is_gso: bool,
}

fn extras(what: u8, input: &mut Input<'_>) -> Extras {
    let mut all = Extras { list: Vec::new(), is_sound: true, is_message: false, is_gso: false };
    if what & 1 != 0 {
        let (size, kind) = (u16::from(input.byte()) * 8, input.byte());
        let type_ = if kind < 0xf0 { 1 + (kind & 1) } else { kind };
        let [low, high] = size.to_le_bytes();
        all.is_gso = true;
        all.is_sound &= size > 0 && (1..=2).contains(&type_);
        all.list.push(extra(ExtraType::GSO, &[low, high, type_, 0, 0, 0]));
    }
    if what & 2 != 0 {
        all.list.push(extra(ExtraType::HASH, &[1, 1, 1, 2, 3, 4]));
    }
    if what & 4 != 0 {
        let group = [1, 0, 0x5e, 0, 0, input.byte() & 3];
        let type_ = if what & 8 != 0 { ExtraType::MCAST_DEL } else { ExtraType::MCAST_ADD };
        all.is_message = true;
        all.list.push(extra(type_, &group));
    }
    if what & 0x30 == 0x30 {
        let type_ = ExtraType(input.byte() % 8);
        all.is_sound &= [ExtraType::HASH, ExtraType::XDP].contains(&type_);
        all.is_message |= [ExtraType::MCAST_ADD, ExtraType::MCAST_DEL].contains(&type_);
        all.list.push(extra(type_, &[0; 6]));
    }
    let last = all.list.len().saturating_sub(1);
    for info in &mut all.list[..last] {
        info.flags = EXTRA_FLAG_MORE;
    }
    all
}

impl Game {
    fn new_id(&mut self, queue: u16) -> u16 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if !self.ids.contains_key(&(queue, self.next_id)) {
                return self.next_id;
            }
        }
    }

    /// Bytes of a range a grant allows to read.
    fn granted(&self, gref: u32, offset: usize, len: usize) -> Option<Vec<u8>> {
        let page = self.shared.iter().find(|shared| shared.0 == gref)?.1;
        let mut bytes = vec![0; len];
        copy_out(self.w.words(page), offset, &mut bytes);
        Some(bytes)
    }

    /// A frontend's packet, or nearly.
    pub(super) fn send(&mut self, queue: usize, input: &mut Input<'_>) {
        let (what, kind) = (input.byte(), input.byte());
        let (payload, place, count) = (input.byte(), input.byte(), input.byte());
        let count = usize::from(if count & 0x80 != 0 { count & 0x1f } else { count & 7 });
        let used = self.fronts[queue].tx.req_prod.wrapping_sub(self.fronts[queue].tx.rsp_cons);
        let has_room = used as usize + count + 5 <= RING as usize;
        if self.is_removed || !has_room || self.w.free_counts().0 < 4 || self.w.free_counts().1 < 4
        {
            return;
        }
        self.next_serial += 1;
        let serial = self.next_serial;
        let recipe = recipe(kind, payload.into());
        let is_blank = what & 3 != 0;
        let mut bytes = if is_blank { recipe.partial() } else { recipe.complete() };
        bytes[SERIAL].copy_from_slice(&serial.to_le_bytes());
        let page = self.w.page();
        let offset = usize::from(place) * 15;
        bytes.truncate(4096 - offset);
        set_page_bytes(self.w.words(page), offset, &bytes);
        let own = (self.w.grant(page, what & 4 == 0), page);
        // What is to be cut up has an info that says so, and what has a hash.
        let wants = what >> 4 << 2 | [0, 0, 1, 2][usize::from(what & 3)];
        let Extras { list, is_sound, is_message, is_gso } = extras(wants, input);

        let queue_nr = queue as u16;
        let first = self.new_id(queue_nr);
        self.ids.insert((queue_nr, first), serial);
        let mut ids = vec![first];
        let (mut total, mut is_sound, mut is_good) = (bytes.len(), is_sound, true);
        let own_bytes = bytes.len();
        let mut slots = Vec::new();
        // A message has one slot.
        for _ in 0..if is_message { 0 } else { count } {
            let shape = usize::from(input.half());
            let (offset, len) = ((shape >> 4 & 0xff) * 8, 1 + (shape >> 8) * 12);
            let id = self.new_id(queue_nr);
            self.ids.insert((queue_nr, id), serial);
            ids.push(id);
            let gref = match shape & 0xf {
                // None, or none of ours.
                14 => 3,
                15 => 600,
                nr => self.shared[nr % SHARED].0,
            };
            is_sound &= offset + len <= 4096;
            match self.granted(gref, offset, len).filter(|_| offset + len <= 4096) {
                Some(part) => bytes.extend(part),
                None => is_good = false,
            }
            total += len;
            slots.push((gref, offset, len, id));
        }
        // Sizes of 64 KiB and more are none.
        let is_fit = total <= 0xffff && ids.len() <= MAX_SLOTS;
        let size = total as u16;
        let flags = [0, txf::CSUM_BLANK, txf::CSUM_BLANK, txf::CSUM_BLANK | txf::DATA_VALIDATED];
        let mut flags = flags[usize::from(what & 3)];
        flags |= if list.is_empty() { 0 } else { txf::EXTRA_INFO };
        flags |= if slots.is_empty() { 0 } else { txf::MORE_DATA };
        if what & 8 != 0 {
            // More is announced than there is, or what is there is not.
            // From here on entries are taken for others.
            flags ^= if payload & 1 != 0 { txf::MORE_DATA } else { txf::EXTRA_INFO };
            self.spoil_all();
        }
        is_good &= is_fit && own_bytes >= 14;
        let front = &mut self.fronts[queue];
        let request = |gref, offset: usize, flags, id, size| NetifTxRequest {
            gref: GrantRef(gref),
            offset: offset as u16,
            flags,
            id,
            size,
        };
        front.tx.put(&self.w, request(own.0, offset, flags, first, size).as_bytes());
        list.iter().for_each(|info| front.tx.put(&self.w, info.as_bytes()));
        for (nr, (gref, offset, len, id)) in slots.iter().enumerate() {
            let flags = if nr + 1 < slots.len() { txf::MORE_DATA } else { 0 };
            front.tx.put(&self.w, request(*gref, *offset, flags, *id, *len as u16).as_bytes());
        }
        self.may_close |= !is_sound || !is_fit;
        let slots = self.ids.len();
        self.may_refuse |= slots > CROWD;
        let is_plain = is_good && !is_blank && !is_gso && !is_message;
        let chain = Chain {
            queue: queue_nr,
            ids,
            extras: list.len(),
            bytes: is_good.then_some(bytes),
            own,
            is_blank,
            is_plain,
            is_message,
            at_card: false,
            end: None,
        };
        self.chains.insert(serial, chain);
    }

    /// Compares what the card was given with what was sent.
    pub(super) fn check_card(&mut self) {
        let log = core::mem::take(&mut self.w.vif.device().state().log);
        for sent in log {
            self.sent.0 += 1;
            self.sent.1 += sent.bytes.len() as u64;
            if !self.is_spoilt {
                self.check_sent(&sent);
            }
        }
    }

    fn check_sent(&mut self, sent: &Sent) {
        let serial = serial_of(&sent.bytes);
        let chain = self.chains.get_mut(&serial).expect("a packet nobody sent, or answered");
        assert!(!chain.at_card && !chain.is_message, "sent twice");
        assert_eq!(sent.queue, u32::from(chain.queue));
        chain.at_card = true;
        let mut bytes = sent.bytes.clone();
        if let Some(tag) = sent.vlan {
            let [high, low] = tag.to_be_bytes();
            bytes.splice(12..12, [0x81, 0, high, low]);
        }
        let wanted = chain.bytes.as_ref().expect("no packet, and the card has it");
        let is_same =
            if chain.is_blank { is_same_but_sum(wanted, &bytes) } else { *wanted == bytes };
        assert!(is_same, "{serial}: the card was given something else: {sent:?}");
        let last = self.last_sent.insert(sent.queue, serial);
        assert!(last.is_none_or(|last| last < serial), "packets of a queue stay in order");
        let is_pending = {
            let state = self.w.vif.device().state();
            state.pending.iter().any(|pending| pending.tag == sent.tag)
        };
        if is_pending {
            self.tags.insert(sent.tag.0, serial);
        } else {
            chain.end = Some(TxEnd::Sent);
        }
    }

    /// A frontend that has taken all there was is told of what comes.
    fn check_event(&self, port: u32, ring: &Ring) {
        let is_told = self.w.take_event(port);
        let is_news = ring.load(&self.w, RSP_PROD) != ring.rsp_cons;
        // The event of a common port may be the other ring's.
        assert!(is_told || !is_news || !self.features.split, "the frontend is not told");
    }

    /// Takes the answers there are.
    pub(super) fn answers(&mut self, queue: usize) {
        if self.is_spoilt {
            return;
        }
        if !self.held[queue] {
            self.check_event(self.fronts[queue].tx_port, &self.fronts[queue].tx);
        }
        while let Some((_, answer)) = self.fronts[queue].tx.get::<NetifTxResponse>(&self.w) {
            let (id, status) = (answer.id, answer.status.0);
            let (serial, next, nulls, status) = match self.partial[queue].take() {
                None => {
                    let serial = self.ids.remove(&(queue as u16, id)).expect("an answer to each");
                    assert_eq!(self.chains[&serial].ids[0], id, "not the first of its packet");
                    (serial, 1, self.chains[&serial].extras, status)
                }
                Some((serial, next, nulls, status)) if nulls > 0 => {
                    assert_eq!(answer.status, NetifStatus::NULL, "an extra info's answer");
                    (serial, next, nulls - 1, status)
                }
                Some((serial, next, nulls, first)) => {
                    assert_eq!(self.ids.remove(&(queue as u16, id)), Some(serial));
                    assert_eq!((self.chains[&serial].ids[next], first), (id, status));
                    (serial, next + 1, nulls, status)
                }
            };
            if nulls == 0 && next == self.chains[&serial].ids.len() {
                let chain = self.chains.remove(&serial).expect("it is there");
                self.judge(&chain, NetifStatus(status));
                self.w.end_access(chain.own.0);
                self.w.free_page(chain.own.1);
                self.answered += 1;
            } else {
                self.partial[queue] = Some((serial, next, nulls, status));
            }
        }
    }

    fn judge(&mut self, chain: &Chain, status: NetifStatus) {
        let is_counted = !self.is_closing || chain.at_card;
        self.refused += u64::from(status == NetifStatus::ERROR && !chain.is_message && is_counted);
        self.lost += u64::from(status == NetifStatus::DROPPED);
        match (status, chain.end) {
            (NetifStatus::OKAY, Some(TxEnd::Sent)) => {}
            (NetifStatus::OKAY, None) => assert!(chain.is_message, "{chain:?} was not sent"),
            (NetifStatus::ERROR, Some(TxEnd::Refused)) => {}
            (NetifStatus::ERROR, None) => {
                let is_due = !chain.is_plain || self.may_refuse;
                assert!(!chain.at_card && is_due, "{chain:?} was refused");
            }
            (NetifStatus::DROPPED, Some(TxEnd::Lost)) => {}
            (NetifStatus::DROPPED, None) => assert!(self.is_removed && !chain.at_card),
            _ => panic!("{status:?} to {chain:?}"),
        }
    }

    /// The host has a packet for the guest.
    pub(super) fn arrive(&mut self, queue: u8, input: &mut Input<'_>) {
        let queue = self.queue(queue) as u32;
        let (kind, payload, flags) = (input.byte(), input.byte(), input.byte());
        let recipe =
            recipe(kind & !16, usize::from(payload) * if flags & 0x80 != 0 { 100 } else { 9 });
        let csum = [RxCsum::Validated, RxCsum::Partial, RxCsum::Unchecked, RxCsum::Wrong];
        let csum = csum[usize::from(flags & 3)];
        let mut bytes = if csum == RxCsum::Partial { recipe.partial() } else { recipe.complete() };
        self.next_serial += 1;
        bytes[SERIAL].copy_from_slice(&self.next_serial.to_le_bytes());
        if flags & 4 != 0 {
            bytes[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, payload & 3]);
        }
        let none = HashTypes::default();
        let cut = usize::from(input.byte()) * 11;
        let frame = Frame {
            bytes,
            csum,
            ip_csum_blank: flags & 64 != 0,
            gso: (flags & 8 != 0).then_some(Gso { mss: 700 }),
            hash: (flags & 16 != 0).then_some(RxHash {
                value: payload.into(),
                kind: Some(HashTypes { tcp_v4: true, ..none }),
            }),
            vlan: (flags & 32 != 0).then_some(0x321),
            cuts: vec![cut, cut * 2],
        };
        self.arrived += 1;
        self.inbound.insert(self.next_serial, (queue, frame.clone()));
        self.w.arrive(queue, frame);
    }

    /// The frontend posts pages; some of them with grants that are none.
    pub(super) fn post(&mut self, queue: usize, count: u8) {
        if self.is_spoilt || self.is_removed {
            return;
        }
        let (pages, grefs) = self.w.free_counts();
        let most = pages.min(grefs).saturating_sub(20) / self.fronts.len();
        let before = self.fronts[queue].rx.req_prod;
        self.fronts[queue].post(&mut self.w, usize::from(count & 0x3f).min(most));
        if count & 0xc0 == 0xc0 && self.fronts[queue].rx.req_prod != before {
            self.w.spoil(self.w.last_grant(), 0);
        }
        self.fronts[queue].flush_rx(&self.w);
        self.w.settle();
    }

    /// The frontend takes what came.
    pub(super) fn poll(&mut self, queue: usize) {
        if self.is_spoilt {
            return;
        }
        self.check_event(self.fronts[queue].rx_port, &self.fronts[queue].rx);
        for got in self.fronts[queue].poll(&mut self.w) {
            self.got += 1;
            if got.failed {
                // Its number may be where there was no page.
                continue;
            }
            let serial = serial_of(&got.bytes);
            let (from, frame) = self.inbound.remove(&serial).expect("once what the card brought");
            let mut wanted = frame.bytes;
            if frame.ip_csum_blank && wanted[12..14] == [8, 0] {
                let sum = !fold(&[&wanted[14..24], &wanted[26..34]].concat());
                wanted[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            if let Some(tag) = frame.vlan {
                let [high, low] = tag.to_be_bytes();
                wanted.splice(12..12, [0x81, 0, high, low]);
            }
            let is_same = match frame.csum {
                RxCsum::Partial => is_same_but_sum(&wanted, &got.bytes),
                _ => wanted == got.bytes,
            };
            assert!(is_same, "{serial}: the guest was given something else");
            let last = self.last_got.insert((from, queue), serial);
            assert!(last.is_none_or(|last| last < serial), "packets stay in order");
            // Linux' frontend drops those with a tag.
            let is_told = self.features.gso && frame.vlan.is_none();
            let mss = frame.gso.map(|gso| gso.mss).filter(|_| is_told);
            assert_eq!(got.gso.map(|gso| gso.size), mss);
        }
    }
}
