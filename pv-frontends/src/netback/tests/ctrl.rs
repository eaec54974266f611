//! The control ring, and groups.

use xen_abi::io::netif::{CtrlStatus, CtrlType, ExtraType, HashType, NetifStatus, hash_types, rxf};

use super::front::{CtrlFront, extra};
use super::world::set_page_bytes;
use super::*;
use crate::net::{HashTypes, Ip, RxHash, Transport};
use crate::netback::headers::toeplitz;

const KEY: [u8; 40] = *b"a key of forty bytes, as all of them are";

fn world(queues: u16) -> (World, Vec<Front>, CtrlFront) {
    let mut w = World::new(card(2));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, ctrl) = connect_all(&mut w, Features { queues, ctrl: true, ..LINUX });
    for front in &mut fronts {
        front.post(&mut w, 30);
        front.flush_rx(&w);
    }
    (w, fronts, ctrl.unwrap())
}

/// Grants some bytes.
fn grant(w: &mut World, bytes: &[u8]) -> u32 {
    let page = w.page();
    set_page_bytes(w.words(page), 0, bytes);
    w.grant(page, true)
}

fn mapping(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

const OK: (CtrlStatus, u32) = (CtrlStatus::SUCCESS, 0);
const BAD: (CtrlStatus, u32) = (CtrlStatus::INVALID_PARAMETER, 0);

fn set_up(w: &mut World, ctrl: &mut CtrlFront, types: u32, entries: &[u32]) {
    let key = grant(w, &KEY);
    let table = grant(w, &mapping(entries));
    let count = entries.len() as u32;
    assert_eq!(ctrl.ask(w, CtrlType::SET_HASH_ALGORITHM, [1, 0, 0]), OK);
    assert_eq!(ctrl.ask(w, CtrlType::SET_HASH_FLAGS, [types, 0, 0]), OK);
    assert_eq!(ctrl.ask(w, CtrlType::SET_HASH_KEY, [key, 40, 0]), OK);
    assert_eq!(ctrl.ask(w, CtrlType::SET_HASH_MAPPING_SIZE, [count, 0, 0]), OK);
    assert_eq!(ctrl.ask(w, CtrlType::SET_HASH_MAPPING, [table, count, 0]), OK);
    assert!(!w.in_use(key) && !w.in_use(table));
}

#[test]
fn messages() {
    let (mut w, _fronts, mut ctrl) = world(2);
    let key = grant(&mut w, &KEY);
    let table = grant(&mut w, &mapping(&[1, 0, 2, 1]));
    let mut ask = |type_, data| ctrl.ask(&w, type_, data);
    let unsupported = (CtrlStatus::NOT_SUPPORTED, 0);
    let overflow = (CtrlStatus::BUFFER_OVERFLOW, 0);
    assert_eq!(ask(CtrlType::GET_HASH_FLAGS, [0; 3]), unsupported, "no algorithm");
    assert_eq!(ask(CtrlType::SET_HASH_FLAGS, [1, 0, 0]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_ALGORITHM, [2, 0, 0]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_ALGORITHM, [1, 0, 0]), OK);
    assert_eq!(ask(CtrlType::GET_HASH_FLAGS, [0; 3]), (CtrlStatus::SUCCESS, 15));
    assert_eq!(ask(CtrlType::SET_HASH_FLAGS, [16, 0, 0]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_FLAGS, [15, 0, 0]), OK);
    assert_eq!(ask(CtrlType::SET_HASH_KEY, [key, 41, 0]), overflow);
    assert_eq!(ask(CtrlType::SET_HASH_KEY, [600, 40, 0]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_KEY, [600, 0, 0]), OK, "no key at all");
    assert_eq!(ask(CtrlType::SET_HASH_KEY, [key, 5, 0]), OK);
    assert_eq!(ask(CtrlType::GET_HASH_MAPPING_SIZE, [0; 3]), (CtrlStatus::SUCCESS, 128));
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING_SIZE, [129, 0, 0]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING_SIZE, [4, 0, 0]), OK);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [table, 4, 1]), overflow);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [table, u32::MAX, 2]), overflow);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [table, 3, 0]), BAD, "there is no queue 2");
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [table, 2, 2]), OK);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [600, 2, 2]), BAD);
    assert_eq!(ask(CtrlType::SET_HASH_MAPPING, [600, 0, 4]), OK);
    assert_eq!(ask(CtrlType::GET_GREF_MAPPING_SIZE, [0; 3]), unsupported);
    assert_eq!(ask(CtrlType::ADD_GREF_MAPPING, [key, 1, 0]), unsupported);
    assert_eq!(ask(CtrlType(77), [0; 3]), unsupported);
    let mut wanted = [0; 40];
    wanted[..5].copy_from_slice(&KEY[..5]);
    let rss = w.vif.device().state().rss.clone().unwrap();
    assert_eq!((rss.key, rss.table.len()), (wanted, 64));
    assert_eq!(rss.table[..8], [0, 0, 1, 0, 0, 0, 1, 0]);
    let hash = w.vif.steering.read().hash.mapping.clone();
    assert_eq!(hash[..], [0, 0, 1, 0]);
}

/// The device's hash, or one made here, says which queue; the frontend is told of it.
#[test]
fn packets_are_spread() {
    let (mut w, mut fronts, mut ctrl) = world(2);
    let entries = [1, 0, 1, 1, 0];
    set_up(&mut w, &mut ctrl, hash_types::IPV4_TCP | hash_types::IPV6, &entries);
    let expected = HashTypes { tcp_v4: true, v6: true, ..HashTypes::default() };
    assert_eq!(w.vif.device().state().rss.as_ref().unwrap().types, expected);
    for (nr, ports) in [(1, 2), (1000, 80), (77, 78), (9999, 443)].into_iter().enumerate() {
        for (ip, transport, type_) in [
            (Ip::V4, Transport::Tcp, Some(HashType::IPV4_TCP)),
            (Ip::V4, Transport::Udp, None),
            (Ip::V6, Transport::Tcp, Some(HashType::IPV6)),
            (Ip::V6, Transport::Udp, Some(HashType::IPV6)),
        ] {
            let recipe = Recipe { ports, ..Recipe::new(ip, transport, 20) };
            let bytes = recipe.complete();
            let value = match (ip, type_) {
                (_, None) => 0,
                (Ip::V4, _) => toeplitz(&KEY, &bytes[26..38]),
                (Ip::V6, _) => toeplitz(&KEY, &bytes[22..54]),
            };
            let kind = match ip {
                Ip::V4 => HashTypes { tcp_v4: true, ..HashTypes::default() },
                Ip::V6 => HashTypes { v6: true, ..HashTypes::default() },
            };
            // Of the same kind it is believed; of another it is not.
            let of_card = match nr {
                0 => None,
                1 => Some(RxHash { value: 12, kind: None }),
                _ => Some(RxHash { value: value ^ (nr as u32 - 2), kind: Some(kind) }),
            };
            let shown = if nr == 3 && type_.is_some() { value ^ 1 } else { value };
            w.arrive(nr as u32 % 2, Frame { hash: of_card, ..Frame::new(bytes) });
            w.pump();
            let queue = entries[shown as usize % entries.len()] as usize;
            let got = fronts[queue].poll(&mut w).pop().expect("on this queue");
            let told = got.hash.map(|hash| (hash.type_, u32::from_ne_bytes(hash.value)));
            assert_eq!(told, type_.map(|type_| (type_, shown)));
            assert_eq!(got.flags & rxf::EXTRA_INFO != 0, type_.is_some());
        }
    }
    // Without a table the hash modulo queues counts.
    assert_eq!(ctrl.ask(&w, CtrlType::SET_HASH_MAPPING_SIZE, [0; 3]), OK);
    let bytes = Recipe::tcp(1).complete();
    let queue = toeplitz(&KEY, &bytes[26..38]) % 2;
    w.arrive(1 - queue, Frame::new(bytes));
    w.pump();
    assert_eq!(fronts[queue as usize].poll(&mut w).len(), 1);
    // And without a hash the card's queue.
    assert_eq!(ctrl.ask(&w, CtrlType::SET_HASH_ALGORITHM, [0; 3]), OK);
    for queue in 0..2 {
        w.arrive(queue, Frame::new(Recipe::tcp(1).complete()));
        w.pump();
        let got = fronts[queue as usize].poll(&mut w).pop().expect("on its own");
        assert_eq!(got.hash, None);
    }
}

/// The next frontend starts without a hash, whatever the last one set up.
#[test]
fn a_hash_ends_with_its_frontend() {
    let (mut w, fronts, mut ctrl) = world(2);
    set_up(&mut w, &mut ctrl, 15, &[1, 1]);
    assert_eq!(w.vif.device().state().rss.as_ref().unwrap().table, [1; 64]);
    w.set_state(6);
    fronts.into_iter().for_each(|front| front.destroy(&mut w));
    ctrl.destroy(&mut w);
    w.set_state(1);
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 2, ..LINUX });
    let table = w.vif.device().state().rss.as_ref().unwrap().table.clone();
    assert_eq!(table[..4], [0, 1, 0, 1]);
    fronts[0].post(&mut w, 3);
    fronts[0].flush_rx(&w);
    w.arrive(0, Frame::new(Recipe::tcp(1).complete()));
    w.pump();
    assert_eq!(fronts[0].poll(&mut w).pop().unwrap().hash, None);
}

fn group(w: &mut World, front: &mut Front, add: bool, address: [u8; 6]) -> Vec<i16> {
    let type_ = if add { ExtraType::MCAST_ADD } else { ExtraType::MCAST_DEL };
    let wish = Wish {
        bytes: std::vec![0; 1],
        extras: std::vec![extra(type_, &address)],
        ..Wish::default()
    };
    front.send(w, &wish);
    front.flush(w);
    assert!(w.vif.device().state().log.is_empty());
    let (answers, nulls) = front.answers(w);
    assert_eq!(nulls, 1);
    answers.into_iter().map(|(_, status)| status).collect()
}

#[test]
fn groups() {
    let (mut w, mut front) = connected_as(card(1), Features { multicast: true, ..LINUX });
    front.post(&mut w, 30);
    front.flush_rx(&w);
    let to = |address: [u8; 6]| {
        let mut bytes = Recipe::tcp(10).complete();
        bytes[..6].copy_from_slice(&address);
        Frame::new(bytes)
    };
    let heard = |w: &mut World, front: &mut Front, address| {
        w.arrive(0, to(address));
        w.pump();
        front.poll(w).len()
    };
    let (a, b) = ([1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(heard(&mut w, &mut front, a), 0);
    assert_eq!(heard(&mut w, &mut front, [0xff; 6]), 1, "that is for all");
    assert_eq!(heard(&mut w, &mut front, [2; 6]), 1);
    assert_eq!(group(&mut w, &mut front, true, a), [0]);
    assert_eq!(group(&mut w, &mut front, true, b), [0]);
    assert_eq!((heard(&mut w, &mut front, a), heard(&mut w, &mut front, b)), (1, 1));
    assert_eq!(group(&mut w, &mut front, false, a), [0]);
    assert_eq!((heard(&mut w, &mut front, a), heard(&mut w, &mut front, b)), (0, 1));
    assert_eq!(w.vif.counters().rx.filtered, 2);
    // The list has an end.
    for nr in 1..64 {
        assert_eq!(group(&mut w, &mut front, true, [1, 0, 0x5e, 1, 1, nr]), [0]);
    }
    assert_eq!(group(&mut w, &mut front, true, a), [NetifStatus::ERROR.0]);
    // It can be switched off and on.
    w.store.set_front("request-multicast-control", 0);
    w.vif.frontend_changed(&w.env(), &w.store);
    assert_eq!(heard(&mut w, &mut front, a), 1);
    w.store.set_front("request-multicast-control", 1);
    w.vif.frontend_changed(&w.env(), &w.store);
    assert_eq!(heard(&mut w, &mut front, a), 0);
}
