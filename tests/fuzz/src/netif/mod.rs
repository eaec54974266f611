//! netback: a frontend that sends what it may, or nearly, and a card that takes packets, or not,
//! ends them in any order, and brings others.
//!
//! While the frontend keeps to the protocol each chain of requests is answered once, by its own
//! numbers and with a null for each extra info, and well only after the card has sent it; the card
//! is given exactly the bytes of the granted ranges, in order; what the card brings comes once, as
//! it was brought, or is counted as dropped; and the vif is closed only on a frontend that broke a
//! rule. In any case the card is given nothing it cannot take, all it brings is counted, and once the
//! frontend is gone nothing of the guest's is in use and another can send and receive.

mod end;
mod seeds;
mod traffic;

use std::collections::BTreeMap;

use pv_frontends::net::{NetInfo, TxEnd, TxOffloads, TxRefusal};
use pv_frontends::netback::fake::card::{Frame, card};
use pv_frontends::netback::fake::front::{CtrlFront, Features, Front, connect_all};
use pv_frontends::netback::fake::world::{CONFIG, World, set_page_bytes};
use xen_abi::Mfn;
use xen_abi::io::netif::{CtrlType, NetifCtrlRequest};
use xen_abi::io::ring::REQ_PROD;
use zerocopy::IntoBytes;

use crate::input::Input;
pub(crate) use seeds::seeds;

/// Steps of one run.
const MAX_STEPS: usize = 150;
/// Frames of the guest's.
const FRAMES: u64 = 400;
/// Pages that all packets have parts of.
const SHARED: usize = 6;
/// Of them the one that says where packets go.
const MAPPING: usize = SHARED - 1;
/// Slots that can be pinned at once with every grant still good for another.
const CROWD: usize = 120;

/// Requests that are one packet, or what was meant to be one.
#[derive(Debug)]
struct Chain {
    queue: u16,
    ids: Vec<u16>,
    extras: usize,
    /// What the granted ranges hold; none: they do not hold a packet.
    bytes: Option<Vec<u8>>,
    /// The page its first slot is in: its grant, and it.
    own: (u32, Mfn),
    /// Its checksum is left to others.
    is_blank: bool,
    /// It can be sent by any card.
    is_plain: bool,
    /// It is no packet, but says what groups are heard.
    is_message: bool,
    /// The card has it, or had it; and how that ended.
    at_card: bool,
    end: Option<TxEnd>,
}

/// A chain whose answers are being read: which, its next slot, nulls to come, its status.
type Partial = (u32, usize, usize, i16);

struct Game {
    w: World,
    features: Features,
    fronts: Vec<Front>,
    ctrl: Option<CtrlFront>,
    shared: Vec<(u32, Mfn)>,
    next_serial: u32,
    next_id: u16,
    chains: BTreeMap<u32, Chain>,
    /// Chains by queue and number of a slot.
    ids: BTreeMap<(u16, u16), u32>,
    partial: Vec<Option<Partial>>,
    /// The backend has put something off.
    held: Vec<bool>,
    tags: BTreeMap<u64, u32>,
    /// The last packet of a queue that came to the card.
    last_sent: BTreeMap<u32, u32>,
    /// Packets for the guest, and the last that came from one queue by another.
    inbound: BTreeMap<u32, (u32, Frame)>,
    last_got: BTreeMap<(u32, usize), u32>,
    arrived: u64,
    got: u64,
    sent: (u64, u64),
    answered: u64,
    /// Packets refused, and lost, by their answers.
    refused: u64,
    lost: u64,
    /// What was not handed over never will be.
    is_closing: bool,
    /// A rule was broken, so that the vif may be closed.
    may_close: bool,
    /// Anything may be anywhere.
    is_spoilt: bool,
    /// Packets may be refused that need not be.
    may_refuse: bool,
    is_removed: bool,
}

/// The card and the frontend, by four bytes.
fn shape(setup: [u8; 4]) -> (NetInfo, Features, u64) {
    let bit = |byte: usize, nr: u8| setup[byte] >> nr & 1 != 0;
    let queues = 1 + u16::from(setup[0] & 3) % 3;
    let mut info = card(queues.into());
    if bit(0, 2) {
        let all = info.tx;
        info.tx = TxOffloads { gso_v4_bytes: all.gso_v4_bytes, ..TxOffloads::default() };
    }
    info.tx.vlan = !bit(0, 3);
    let features = Features {
        queues,
        split: !bit(0, 4),
        ctrl: bit(0, 5),
        sg: !bit(0, 6),
        gso: !bit(0, 7),
        gso_prefix: bit(1, 0),
        csum_v4: !bit(1, 1),
        csum_v6: bit(1, 2),
        notify: !bit(1, 3),
        headroom: if bit(1, 4) { 256 } else { 0 },
        multicast: bit(1, 5),
        flip: bit(1, 6),
    };
    (info, features, u64::from(setup[2] & 7))
}

impl Game {
    fn new(setup: [u8; 4]) -> Self {
        let (info, features, nr_bounce) = shape(setup);
        let mut w = World::sized(info, CONFIG, nr_bounce, FRAMES);
        w.vif.announce(&w.store).expect("room for a device");
        let shared = (0..SHARED)
            .map(|nr| {
                let page = w.page();
                // None of it is a serial number; the last is a table of queues.
                let bytes: Vec<_> = match nr {
                    MAPPING => (0..4096).map(|at| u8::from(at % 16 == 12)).collect(),
                    _ => (0..4096).map(|at| (at * 7) as u8 ^ nr as u8 | 0x81).collect(),
                };
                set_page_bytes(w.words(page), 0, &bytes);
                (w.grant(page, nr % 2 == 0), page)
            })
            .collect();
        let (fronts, ctrl) = connect_all(&mut w, features);
        Self {
            w,
            features,
            partial: vec![None; fronts.len()],
            held: vec![false; fronts.len()],
            fronts,
            ctrl,
            shared,
            next_serial: 0,
            next_id: 0,
            chains: BTreeMap::new(),
            ids: BTreeMap::new(),
            tags: BTreeMap::new(),
            last_sent: BTreeMap::new(),
            inbound: BTreeMap::new(),
            last_got: BTreeMap::new(),
            arrived: 0,
            got: 0,
            sent: (0, 0),
            answered: 0,
            refused: 0,
            lost: 0,
            is_closing: false,
            may_close: false,
            is_spoilt: false,
            may_refuse: false,
            is_removed: false,
        }
    }

    /// A queue's number.
    fn queue(&self, nr: u8) -> usize {
        usize::from(nr) % self.fronts.len()
    }

    fn spoil_all(&mut self) {
        (self.is_spoilt, self.w.is_spoilt) = (true, true);
    }

    /// Looks at what the card was given, and whether the vif is closed.
    fn check(&mut self) {
        self.check_card();
        if !self.is_spoilt && !self.is_removed && self.w.back_state() != 4 {
            assert!(self.may_close, "closed without a reason");
            self.spoil_all();
        }
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        let rest = what >> 4;
        let queue = self.queue(rest);
        if !matches!(what & 0xf, 0..=3 | 5) {
            self.release();
        }
        match what & 0xf {
            0..=2 => self.send(queue, input),
            3 => self.flush(queue, rest & 8 != 0),
            4 => self.transmit(input.byte(), rest),
            5 => self.answers(queue),
            6 => self.arrive(rest, input),
            7 => self.w.pump(),
            8 => self.post(queue, input.byte()),
            9 => self.poll(queue),
            10 => self.change_card(rest, input),
            11 => self.ask(input),
            12 => {
                self.w.advance(1 << (22 + rest));
                self.w.vif.tick(&self.w.env());
                self.w.settle();
            }
            13 => self.reconnect(),
            14 => self.spoil(rest, input),
            _ => self.w.settle(),
        }
        self.check();
    }

    /// The frontend shows what it put into a ring; with `hold` the backend may put small packets off.
    fn flush(&mut self, queue: usize, hold: bool) {
        let front = &self.fronts[queue];
        if !hold {
            front.flush(&self.w);
        } else if let Some(kicked) = front.flush_holding(&self.w) {
            let uncommitted = self.w.vif.device().state().uncommitted;
            assert_eq!(
                kicked.held,
                uncommitted >> queue & 1 != 0,
                "put off for ever, or not at all"
            );
            self.held[queue] = kicked.held;
            if kicked.more || self.w.vif.is_unsettled() {
                front.release(&self.w);
            }
        }
    }

    /// Nothing is put off any more.
    fn release(&mut self) {
        for (front, held) in self.fronts.iter().zip(&mut self.held) {
            if core::mem::take(held) {
                front.release(&self.w);
            }
        }
    }

    /// The card ends a packet.
    fn transmit(&mut self, which: u8, how: u8) {
        let end = match how {
            14 => TxEnd::Refused,
            15 => TxEnd::Lost,
            _ => TxEnd::Sent,
        };
        let pending = self.w.vif.device().state().pending.len();
        if pending == 0 {
            return;
        }
        self.end_packet(usize::from(which) % pending, end);
        if how & 1 == 0 {
            self.w.settle();
        }
    }

    fn end_packet(&mut self, nr: usize, end: TxEnd) {
        let tag = self.w.vif.device().state().pending[nr].tag.0;
        if let Some(serial) = self.tags.remove(&tag)
            && let Some(chain) = self.chains.get_mut(&serial)
        {
            chain.end = Some(end);
        }
        self.w.transmit(nr, end);
    }

    fn change_card(&mut self, what: u8, input: &mut Input<'_>) {
        let value = input.byte();
        match what & 7 {
            0 | 1 => {
                let room = if what & 8 != 0 { usize::from(value & 7) } else { usize::MAX };
                self.w.vif.device().state().room = room;
                // It tells of room.
                self.w.settle();
            }
            2 => self.w.vif.device().state().busy_once = true,
            3 => self.w.vif.device().state().copies = u32::from(value) * 8,
            4 => {
                let refusal = [None, Some(TxRefusal::Size), Some(TxRefusal::Headers), None];
                self.may_refuse = true;
                self.w.vif.device().state().refuse = refusal[usize::from(value & 3)];
            }
            5 if what & 8 != 0 && value > 0xf0 => self.remove(),
            _ => {
                let mut state = self.w.vif.device().state();
                state.info.link = value & 1 != 0;
                state.info.mtu = 1500 + u32::from(value >> 4);
                drop(state);
                self.w.vif.changed(&self.w.env(), &self.w.store);
                self.w.settle();
            }
        }
    }

    /// The card is taken away: it has nothing of the guest's any more.
    fn remove(&mut self) {
        self.check_card();
        let mut state = self.w.vif.device().state();
        state.pending.clear();
        state.gone = true;
        drop(state);
        for chain in self.chains.values_mut().filter(|chain| chain.at_card) {
            chain.end = chain.end.or(Some(TxEnd::Lost));
        }
        self.tags.clear();
        (self.is_removed, self.may_refuse, self.may_close) = (true, true, true);
        self.w.vif.remove(&self.w.env(), &self.w.store);
        self.w.settle();
    }

    /// A control message.
    fn ask(&mut self, input: &mut Input<'_>) {
        let (type_, a, b, c) = (input.byte(), input.byte(), input.byte(), input.byte());
        let Some(ctrl) = self.ctrl.as_mut().filter(|_| !self.is_spoilt && !self.is_removed) else {
            return;
        };
        let type_ = CtrlType(u16::from(type_ % 12));
        let a = match type_ {
            CtrlType::SET_HASH_KEY | CtrlType::SET_HASH_MAPPING => {
                self.shared.get(usize::from(a)).map_or(u32::from(a), |shared| shared.0)
            }
            _ => a.into(),
        };
        ctrl.ask(&self.w, type_, [a, b.into(), u32::from(c)]);
    }

    /// What no frontend should do.
    fn spoil(&mut self, what: u8, input: &mut Input<'_>) {
        self.spoil_all();
        let queue = self.queue(what);
        let value = input.word();
        match what & 7 {
            0 | 1 => {
                let ring =
                    if value & 1 == 0 { &self.fronts[queue].tx } else { &self.fronts[queue].rx };
                ring.store(&self.w, usize::from(input.half()) % 1024, value);
            }
            2 => {
                let front = &mut self.fronts[queue];
                for _ in 0..1 + value % 5 {
                    let entry: Vec<u8> = (0..12).map(|_| input.byte()).collect();
                    front.tx.put(&self.w, &entry);
                }
                front.flush(&self.w);
            }
            3 => {
                self.fronts[queue].tx.store(&self.w, REQ_PROD, value);
                self.fronts[queue].flush(&self.w);
            }
            4 => {
                let gref = 8 + value % 300;
                // It leaves the flags of use alone. Where pages change hands their bits mean something else.
                let in_use = if self.w.in_use(gref) { self.w.entry_of(gref) & 0x18 } else { 0 };
                let entry = in_use | input.number() & !0x18;
                self.w.spoil(gref, entry);
            }
            5 => {
                let names =
                    ["tx-ring-ref", "event-channel", "multi-queue-num-queues", "ctrl-ring-ref"];
                let name = input.pick(&names);
                let value = String::from_utf8_lossy(input.bytes()).into_owned();
                self.w.store.set_front(name, value);
            }
            6 => {
                let Some(ctrl) = self.ctrl.as_mut() else { return };
                let data = [value, input.byte().into(), input.word()];
                let (id, type_) = (input.half(), CtrlType(input.byte().into()));
                ctrl.ring.put(&self.w, NetifCtrlRequest { id, type_, data }.as_bytes());
                ctrl.kick(&self.w);
            }
            _ => self.w.set_state(value % 10),
        }
        self.w.settle();
    }

    /// The frontend goes away and comes back.
    fn reconnect(&mut self) {
        if self.is_spoilt || self.is_removed || self.features.flip {
            return;
        }
        self.close();
        self.let_go();
        self.w.set_state(1);
        assert_eq!(self.w.back_state(), 2, "it waits for a frontend");
        (self.fronts, self.ctrl) = connect_all(&mut self.w, self.features);
        self.w.settle();
    }
}

fn run(data: &[u8]) -> (u64, u64) {
    let mut input = Input::new(data);
    let mut game = Game::new([(); 4].map(|()| input.byte()));
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        game.step(what, &mut input);
    }
    game.end()
}

/// A frontend and a card, both with their own mind.
pub(crate) fn netif(data: &[u8]) {
    run(data);
}

#[cfg(test)]
mod tests {
    /// The seeds get as far as their comments say.
    #[test]
    fn the_seeds_have_traffic() {
        let seen: Vec<_> = super::seeds().iter().map(|seed| super::run(seed)).collect();
        assert!(seen.iter().filter(|seen| seen.0 >= 3).count() >= 5, "{seen:?}");
        assert!(seen.iter().filter(|seen| seen.1 >= 2).count() >= 4, "{seen:?}");
    }
}
