//! A frontend that writes anything anywhere.

use std::vec;

use proptest::prelude::*;
use xen_abi::io::netif::{ExtraType, GsoType, NetifTxRequest, txf};
use xen_abi::io::ring::{ENTRIES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};
use zerocopy::IntoBytes;

use super::front::{CtrlFront, extra};
use super::*;

/// The vif is closed: nothing is read any more, and the frontend is asked to go.
fn is_closed(w: &mut World, mut front: Front) {
    assert_eq!(w.back_state(), 5);
    assert!(!w.any_in_use(), "everything was let go");
    assert!(!w.vif.device().state().filter.directed);
    front.send(w, &Wish::new(Recipe::tcp(10).complete()));
    front.tx.push(w);
    w.kick(Rings::Tx, 0);
    assert!(w.vif.device().state().log.is_empty());
    w.arrive(0, Frame::new(Recipe::tcp(10).complete()));
    w.pump();
    w.set_state(4);
    assert_eq!(w.back_state(), 5, "it does not come back by itself");
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    front.destroy(w);
    w.set_state(1);
    let mut front = connect_all(w, LINUX).0.pop().unwrap();
    front.send(w, &Wish::new(Recipe::tcp(10).complete()));
    front.flush(w);
    w.drain();
    assert_eq!(statuses(&mut front, w), [0]);
}

#[test]
fn what_closes_a_vif() {
    let request = |offset, flags, size| NetifTxRequest {
        gref: xen_abi::grant_table::GrantRef(8),
        offset,
        flags,
        id: 1,
        size,
    };
    let whole = request(0, 0, 100);
    let more = request(0, txf::MORE_DATA, 100);
    let with_extra = request(0, txf::EXTRA_INFO, 100);
    let entry = |request: &NetifTxRequest| request.as_bytes().to_vec();
    let info = |type_, u: [u8; 6]| extra(type_, &u).as_bytes().to_vec();
    let chained = |flags| {
        let mut info = info(ExtraType::GSO, [1, 1, 1, 0, 0, 0]);
        info[1] = flags;
        info
    };
    let cases: Vec<(Vec<Vec<u8>>, Fatal)> = vec![
        (vec![entry(&more)], Fatal::MissingSlots),
        (vec![entry(&with_extra)], Fatal::MissingExtra),
        (vec![entry(&with_extra), chained(1)], Fatal::MissingExtra),
        (vec![entry(&with_extra), info(ExtraType::NONE, [0; 6])], Fatal::ExtraType),
        (vec![entry(&with_extra), info(ExtraType(6), [0; 6])], Fatal::ExtraType),
        (vec![entry(&with_extra), info(ExtraType::GSO, [0, 0, 1, 0, 0, 0])], Fatal::GsoSize),
        (vec![entry(&with_extra), info(ExtraType::GSO, [9, 0, 0, 0, 0, 0])], Fatal::GsoType),
        (vec![entry(&with_extra), info(ExtraType::GSO, [9, 0, 3, 0, 0, 0])], Fatal::GsoType),
        (vec![entry(&request(4000, 0, 97))], Fatal::CrossesPage),
        (vec![entry(&more), entry(&request(4090, 0, 7))], Fatal::CrossesPage),
        (vec![entry(&more); 23], Fatal::TooManySlots),
    ];
    for (entries, fatal) in cases {
        let (mut w, mut front) = connected();
        w.plat().calls();
        entries.iter().for_each(|entry| front.tx.put(&w, entry));
        front.flush(&w);
        let told = std::format!("vif 0: closed: {fatal:?}");
        let said = |call| matches!(call, translate::fake::Call::Log(text) if text == told);
        assert!(w.plat().calls().into_iter().any(said), "{told}");
        // Good ones behind it are not looked at.
        front.tx.put(&w, &entry(&whole));
        is_closed(&mut w, front);
    }
    assert_eq!(GsoType::TCPV6.0, 2);
}

#[test]
fn indices_that_cannot_be() {
    for rings in [Rings::Tx, Rings::Rx, Rings::Ctrl] {
        let mut w = World::new(card(1));
        w.vif.announce(&w.store).unwrap();
        let (mut fronts, ctrl) = connect_all(&mut w, Features { ctrl: true, ..LINUX });
        let front = fronts.pop().unwrap();
        let ring = match rings {
            Rings::Rx => &front.rx,
            Rings::Ctrl => &ctrl.as_ref().unwrap().ring,
            _ => &front.tx,
        };
        ring.store(&w, REQ_PROD, 300);
        if rings == Rings::Rx {
            // Looked at when something is there for it.
            w.arrive(0, Frame::new(Recipe::tcp(10).complete()));
            w.pump();
        }
        w.kick(rings, 0);
        assert_eq!(w.back_state(), 5, "{rings:?}");
        // The packet that found it out is nobody's.
        assert_eq!(w.vif.counters().rx.no_frontend, u64::from(rings == Rings::Rx));
        ctrl.unwrap().destroy(&mut w);
        is_closed(&mut w, front);
    }
}

/// What is in the rings before the connection counts, too.
#[test]
fn closed_as_it_connects() {
    let mut w = World::new(card(1));
    w.vif.announce(&w.store).unwrap();
    let mut front = front::set_up(&mut w, LINUX).0.pop().unwrap();
    front.tx.put(&w, &[8, 0, 0, 0, 0, 0, 4, 0, 1, 0, 100, 0]);
    assert!(front.tx.push(&w));
    w.set_state(4);
    is_closed(&mut w, front);
}

/// Packets that are at the card while the vif is closed.
#[test]
fn closed_with_packets_at_the_card() {
    let (mut w, mut front) = connected();
    front.send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
    front.flush(&w);
    front.tx.store(&w, REQ_PROD, 500);
    w.kick(Rings::Tx, 0);
    assert_eq!(w.back_state(), 5);
    assert!(w.any_in_use());
    w.drain();
    assert!(!w.any_in_use());
    w.vif.device().state().log.clear();
    is_closed(&mut w, front);
}

/// Something a guest writes, or does; or a host.
#[derive(Clone, Debug)]
enum Act {
    Tx([u32; 3]),
    Rx([u32; 2]),
    Ctrl([u32; 4]),
    /// A word of a ring's page.
    Word {
        ring: u8,
        word: usize,
        value: u32,
    },
    /// A word of a grant's entry.
    Grant {
        gref: u32,
        flags: u16,
        domain: u16,
    },
    Push,
    Kick(u8),
    Arrive(usize),
    Transmit(usize),
    Room(usize),
    Time(u64),
    State(u32),
    Node(usize, u32),
}

const NODES: [&str; 8] = [
    "multi-queue-num-queues",
    "tx-ring-ref",
    "rx-ring-ref",
    "ctrl-ring-ref",
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "xdp-headroom",
];

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![3 => 14..300u32, 1 => 0..5000u32, 1 => any::<u16>().prop_map(u32::from)];
    let offset = prop_oneof![3 => 0..3800u32, 1 => 0..5000u32];
    let flags = prop_oneof![4 => 0..4u32, 2 => 0..16u32, 1 => any::<u16>().prop_map(u32::from)];
    let tx = (8..48u32, offset, flags, any::<u16>(), size).prop_map(
        |(gref, offset, flags, id, size)| {
            Act::Tx([gref, offset | flags << 16, u32::from(id) | size << 16])
        },
    );
    let info = (1..7u32, 0..2u32, 0..2000u32, 0..4u32)
        .prop_map(|(type_, flags, size, kind)| Act::Tx([type_ | flags << 8 | size << 16, kind, 0]));
    let rx = (any::<u16>(), 8..48u32).prop_map(|(id, gref)| Act::Rx([id.into(), gref]));
    let ctrl = (0..12u32, 0..48u32, 0..140u32, 0..140u32)
        .prop_map(|(type_, a, b, c)| Act::Ctrl([type_ << 16 | 9, a, b, c]));
    let value = prop_oneof![0..300u32, any::<u32>()];
    prop_oneof![
        8 => tx,
        2 => info,
        6 => rx,
        2 => ctrl,
        1 => (0..3u8, 0..20usize, value).prop_map(|(ring, word, value)| Act::Word { ring, word, value }),
        1 => (12..48u32, 0..10u16, 0..2u16).prop_map(|(gref, flags, domain)| Act::Grant { gref, flags, domain }),
        5 => Just(Act::Push),
        4 => (0..4u8).prop_map(Act::Kick),
        4 => (0..9000usize).prop_map(Act::Arrive),
        4 => (0..8usize).prop_map(Act::Transmit),
        1 => (0..5usize).prop_map(Act::Room),
        1 => (0..40_000_000_000u64).prop_map(Act::Time),
        1 => prop_oneof![0..9u32, any::<u32>()].prop_map(Act::State),
        1 => (0..NODES.len(), 0..50u32).prop_map(|(node, value)| Act::Node(node, value)),
    ]
}

/// Does one thing.
fn perform(w: &mut World, front: &mut Front, ctrl: &mut CtrlFront, act: &Act) {
    match *act {
        Act::Tx(words) => front.tx.put(w, words.as_bytes()),
        Act::Rx(words) => front.rx.put(w, words.as_bytes()),
        Act::Ctrl(words) => ctrl.ring.put(w, words.as_bytes()),
        Act::Word { ring, word, value } => {
            let ring = [&front.tx, &front.rx, &ctrl.ring][usize::from(ring)];
            ring.store(w, word, value);
        }
        Act::Grant { gref, flags, domain } => {
            // Not under a use: a frontend that does that loses its page only.
            if !w.in_use(gref) {
                let frame = w.entry_of(gref) >> 32;
                w.spoil(gref, frame << 32 | u64::from(domain) << 16 | u64::from(flags & 7));
            }
        }
        Act::Push => {
            for (ring, rings) in
                [(&front.tx, Rings::Tx), (&front.rx, Rings::Rx), (&ctrl.ring, Rings::Ctrl)]
            {
                if ring.push(w) {
                    w.kick(rings, 0);
                }
            }
        }
        Act::Kick(rings) => {
            w.kick([Rings::Both, Rings::Tx, Rings::Rx, Rings::Ctrl][usize::from(rings)], 0);
        }
        Act::Arrive(size) => {
            w.arrive(0, Frame::new(Recipe::tcp(size).complete()));
            w.pump();
        }
        Act::Transmit(index) => {
            let count = w.vif.device().state().pending.len();
            if count > 0 {
                end_any(w, index % count);
            }
        }
        Act::Room(room) => w.vif.device().state().room = room,
        Act::Time(ns) => {
            w.advance(ns);
            w.vif.tick(&w.env());
            w.pump();
        }
        Act::State(state) => w.set_state(state),
        Act::Node(node, value) => w.store.set_front(NODES[node], value),
    }
}

/// Ends a packet's way, whatever its pages hold by now.
fn end_any(w: &World, index: usize) {
    let sent = w.vif.device().state().pending.remove(index).unwrap();
    w.vif.transmitted(&w.env(), sent.tag, TxEnd::Sent);
    w.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Nothing panics, nothing outside the rules reaches the card (it checks), and once the frontend
    /// is gone nothing of the guest's is in use, and nothing waits.
    #[test]
    fn survives(acts in prop::collection::vec(act(), 1..100), flip: bool, split: bool, multicast: bool) {
        let mut w = World::new(card(2));
        w.vif.announce(&w.store).unwrap();
        let features = Features { flip, split, multicast, ctrl: true, ..LINUX };
        let (mut fronts, ctrl) = connect_all(&mut w, features);
        let (mut front, mut ctrl) = (fronts.pop().unwrap(), ctrl.unwrap());
        // Grants 8 to 10 are the rings; up to 47 they are good, some of them read only.
        for nr in 0..37u64 {
            let page = w.page();
            if flip && nr % 3 == 0 {
                w.grant_as(5000 + nr, xen_abi::grant_table::gtf::ACCEPT_TRANSFER);
            } else {
                w.grant(page, nr % 4 == 0);
            }
        }
        for act in &acts {
            perform(&mut w, &mut front, &mut ctrl, act);
        }
        w.set_state(6);
        while !w.vif.device().state().pending.is_empty() {
            end_any(&w, 0);
        }
        w.settle();
        w.pump();
        prop_assert_eq!(w.back_state(), 6);
        prop_assert!(!w.any_in_use());
        prop_assert!(w.vif.device().state().inbox[0].0.is_empty());
        w.vif.tick(&w.env());
        prop_assert_eq!(w.vif.deadline(), None);
        prop_assert!(!w.vif.device().state().filter.directed);
    }

    /// Any words in the headers, with packets both ways: the vif goes on or closes.
    #[test]
    fn any_headers(header in prop::array::uniform8(prop_oneof![0..300u32, any::<u32>()])) {
        let (mut w, mut front) = connected();
        front.send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
        front.post(&mut w, 5);
        for (ring, values) in [&front.tx, &front.rx].into_iter().zip(header.chunks(4)) {
            for (word, value) in [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].into_iter().zip(values) {
                ring.store(&w, word, *value);
            }
        }
        w.kick(Rings::Both, 0);
        w.arrive(0, Frame::new(Recipe::tcp(10).complete()));
        w.pump();
        while !w.vif.device().state().pending.is_empty() {
            end_any(&w, 0);
        }
        w.set_state(6);
        prop_assert_eq!(w.back_state(), 6);
        prop_assert!(!w.any_in_use());
        prop_assert!(w.vif.device().state().log.len() <= 256);
    }

    /// Any chain of entries: what is taken is answered entry by entry, or the vif is closed.
    #[test]
    fn any_chain(entries in prop::collection::vec(prop::array::uniform3(any::<u32>()), 1..40)) {
        let (w, mut front) = connected();
        entries.iter().for_each(|words| front.tx.put(&w, words.as_bytes()));
        front.flush(&w);
        let answered = front.tx.load(&w, RSP_PROD);
        let closed = w.back_state() == 5;
        prop_assert!(closed || answered as usize == entries.len());
        prop_assert!(w.vif.device().state().log.is_empty(), "no grant allows it");
        prop_assert_eq!(ENTRIES, 16);
    }
}
