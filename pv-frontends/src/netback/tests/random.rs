//! Random packets both ways, by several queues.

use std::collections::{BTreeMap, VecDeque};
use std::vec;

use proptest::prelude::*;
use xen_abi::io::netif::{GsoType, rxf};

use super::*;
use crate::net::{Gso, Ip, RxCsum, Transport, TxCsum, TxEnd, TxOffloads};

/// A packet to be sent.
#[derive(Clone, Debug)]
struct Out {
    recipe: Recipe,
    cuts: Vec<usize>,
    offset: usize,
    partial: bool,
    mss: Option<u16>,
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize, Out),
    Flush(usize),
    Transmit(usize, bool),
    Answers(usize),
    Arrive(usize, Recipe, bool, Option<u16>, Vec<usize>),
    Pump,
    Post(usize, usize),
    Poll(usize),
    Room(usize),
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let size = prop_oneof![4 => 0..1500usize, 2 => 0..9000usize, 1 => 0..60000usize];
    (any::<bool>(), any::<bool>(), size, any::<(u16, u16)>(), prop::option::of(0..4096u16))
        .prop_map(|(v6, udp, size, ports, tag)| {
            let ip = if v6 { Ip::V6 } else { Ip::V4 };
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            Recipe { ports, tag, ..Recipe::new(ip, transport, size) }
        })
}

fn out() -> impl Strategy<Value = Out> {
    let cuts = prop::collection::vec(14..3000usize, 0..4);
    let mss = prop::option::of(500..1500u16);
    (recipe(), cuts, 0..4000usize, any::<bool>(), mss).prop_map(
        |(recipe, cuts, offset, partial, mss)| {
            let mss = mss.filter(|_| recipe.transport == Transport::Tcp && partial);
            Out { recipe, cuts, offset, partial, mss }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..3usize;
    let cuts = prop::collection::vec(0..9000usize, 0..3);
    prop_oneof![
        5 => (queue.clone(), out()).prop_map(|(queue, out)| Step::Send(queue, out)),
        3 => queue.clone().prop_map(Step::Flush),
        4 => (0..20usize, any::<bool>()).prop_map(|(index, settle)| Step::Transmit(index, settle)),
        2 => queue.clone().prop_map(Step::Answers),
        5 => (queue.clone(), recipe(), any::<bool>(), prop::option::of(500..1500u16), cuts)
            .prop_map(|(queue, recipe, partial, mss, cuts)| Step::Arrive(queue, recipe, partial, mss, cuts)),
        4 => Just(Step::Pump),
        3 => (queue.clone(), 1..30usize).prop_map(|(queue, count)| Step::Post(queue, count)),
        3 => queue.prop_map(Step::Poll),
        1 => prop_oneof![1..4usize, Just(1000)].prop_map(Step::Room),
    ]
}

struct Game {
    w: World,
    fronts: Vec<Front>,
    offloads: bool,
    /// Ids that wait for an answer, by queue.
    waiting: Vec<BTreeMap<u16, i16>>,
    /// What the card is to be given, by queue, in order.
    to_card: Vec<VecDeque<Out>>,
    /// What the guest is to be given, by queue, in order.
    to_guest: Vec<VecDeque<(Recipe, bool, Option<u16>)>>,
}

impl Game {
    fn send(&mut self, queue: usize, out: &Out) {
        let bytes = if out.partial { out.recipe.partial() } else { out.recipe.complete() };
        let mut wish = match (out.mss, out.recipe.ip) {
            (Some(mss), Ip::V4) => Wish::gso(bytes, mss, GsoType::TCPV4),
            (Some(mss), Ip::V6) => Wish::gso(bytes, mss, GsoType::TCPV6),
            (None, _) if out.partial => Wish::partial(bytes),
            (None, _) => Wish::new(bytes),
        };
        (wish.cuts, wish.offset) = (out.cuts.clone(), out.offset);
        let front = &mut self.fronts[queue];
        if front.has_room(&wish) && self.w.free_counts().1 > 150 {
            let ids = front.send(&mut self.w, &wish);
            self.waiting[queue].extend(ids.into_iter().map(|id| (id, 0)));
            self.to_card[queue].push_back(out.clone());
        }
    }

    /// Compares what the card was given with what was sent.
    fn check_card(&mut self) {
        let log = core::mem::take(&mut self.w.vif.device().state().log);
        for sent in log {
            let out = self.to_card[sent.queue as usize].pop_front().expect("nothing was sent");
            let recipe = &out.recipe;
            let gso = out.mss.filter(|mss| usize::from(*mss) < recipe.payload.len());
            let bare = Recipe { tag: None, ..recipe.clone() };
            let (bytes, csum, shown) = if !out.partial {
                (recipe.complete(), TxCsum::None, recipe)
            } else if self.offloads || gso.is_some() {
                (recipe.partial(), partial(recipe), recipe)
            } else {
                (recipe.complete(), TxCsum::None, recipe)
            };
            assert_eq!(sent.gso, gso.map(|mss| Gso { mss }));
            if sent.vlan.is_some() {
                assert_eq!(sent.vlan, recipe.tag);
                let bytes = if csum == TxCsum::None { bare.complete() } else { bare.partial() };
                let csum = if csum == TxCsum::None { csum } else { partial(&bare) };
                assert!(sent.bytes == bytes && sent.csum == csum);
            } else {
                assert!(sent.bytes == bytes && sent.csum == csum, "{shown:?}");
            }
        }
    }

    fn answers(&mut self, queue: usize) {
        for (id, status) in self.fronts[queue].answers(&mut self.w).0 {
            assert_eq!(self.waiting[queue].remove(&id), Some(status), "asked once");
        }
    }

    fn poll(&mut self, queue: usize) {
        for got in self.fronts[queue].poll(&mut self.w) {
            let (recipe, is_partial, mss) =
                self.to_guest[queue].pop_front().expect("nothing was for it");
            // Linux' frontend drops those with a tag.
            let is_blank = is_partial && recipe.tag.is_none();
            let mss = mss.filter(|_| recipe.tag.is_none());
            let bytes = if is_blank { recipe.partial() } else { recipe.complete() };
            assert!(got.bytes == bytes && !got.failed);
            let blank = if is_blank { rxf::CSUM_BLANK } else { 0 };
            assert_eq!(got.flags & 3, blank | rxf::DATA_VALIDATED);
            assert_eq!(got.gso.map(|gso| gso.size), mss);
        }
    }

    fn post(&mut self, queue: usize, count: usize) {
        let room = self.w.free_counts().1.saturating_sub(60) / 3;
        self.fronts[queue].post(&mut self.w, count.min(room));
        self.fronts[queue].flush_rx(&self.w);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(queue, out) => self.send(queue, &out),
            Step::Flush(queue) => self.fronts[queue].flush(&self.w),
            Step::Transmit(index, settle) => {
                let count = self.w.vif.device().state().pending.len();
                if count > 0 {
                    self.w.transmit(index % count, TxEnd::Sent);
                }
                if settle {
                    self.w.settle();
                }
            }
            Step::Answers(queue) => self.answers(queue),
            Step::Arrive(queue, recipe, is_partial, mss, cuts) => {
                let bare = Recipe { tag: None, ..recipe.clone() };
                let bytes = if is_partial { bare.partial() } else { bare.complete() };
                let csum = if is_partial { RxCsum::Partial } else { RxCsum::Validated };
                let gso = mss.map(|mss| Gso { mss });
                let frame = Frame { csum, gso, vlan: recipe.tag, cuts, ..Frame::new(bytes) };
                self.w.arrive(queue as u32, frame);
                self.to_guest[queue].push_back((recipe, is_partial, mss));
            }
            Step::Pump => self.w.pump(),
            Step::Post(queue, count) => self.post(queue, count),
            Step::Poll(queue) => self.poll(queue),
            Step::Room(room) => self.w.vif.device().state().room = room,
        }
        self.check_card();
    }

    fn end(mut self) {
        self.w.vif.device().state().room = usize::MAX;
        for queue in 0..3 {
            self.fronts[queue].flush(&self.w);
        }
        self.w.settle();
        self.w.drain();
        self.check_card();
        while self.w.vif.device().state().inbox.iter().any(|(inbox, _)| !inbox.is_empty()) {
            for queue in 0..3 {
                self.poll(queue);
                self.post(queue, 20);
            }
            self.w.pump();
        }
        for queue in 0..3 {
            self.answers(queue);
            self.poll(queue);
            assert!(self.waiting[queue].is_empty() && self.to_card[queue].is_empty());
            assert!(self.to_guest[queue].is_empty());
        }
        self.w.set_state(6);
        assert_eq!(self.w.back_state(), 6);
        assert!(!self.w.any_in_use());
        let mut w = self.w;
        self.fronts.into_iter().for_each(|front| front.destroy(&mut w));
        assert_eq!(w.free_counts().1, 504);
    }
}

fn partial(recipe: &Recipe) -> TxCsum {
    let (ip, transport) = (recipe.ip, recipe.transport);
    TxCsum::Partial { ip, transport, l3: recipe.l3() as u16, l4: recipe.l4() as u16 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Every packet arrives once, whole, with what belongs to it; in order within its queue; every
    /// slot is answered, every grant is let go.
    #[test]
    fn traffic(steps in prop::collection::vec(step(), 1..120), split: bool, offloads: bool) {
        let mut info = card(3);
        if !offloads {
            let all = info.tx;
            info.tx = TxOffloads { gso_v4_bytes: all.gso_v4_bytes, gso_v6_bytes: all.gso_v6_bytes, ..TxOffloads::default() };
        }
        let mut w = World::with(info, world::CONFIG, 4);
        w.vif.announce(&w.store).unwrap();
        let fronts = connect_all(&mut w, Features { queues: 3, split, ..LINUX }).0;
        let mut game = Game {
            w,
            fronts,
            offloads,
            waiting: vec![BTreeMap::new(); 3],
            to_card: vec![VecDeque::new(); 3],
            to_guest: vec![VecDeque::new(); 3],
        };
        for step in steps {
            game.step(step);
        }
        game.end();
    }
}
