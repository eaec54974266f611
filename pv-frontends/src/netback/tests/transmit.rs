//! What a guest sends.

use xen_abi::io::netif::{ExtraType, GsoType, HashType, NetifExtraHash};
use zerocopy::IntoBytes;

use super::front::extra;
use super::*;
use crate::net::{Gso, Ip, Transport, TxCsum, TxOffloads, TxRefusal};

/// Sends a packet and gives what the card was given.
fn sent(w: &mut World, front: &mut Front, wish: &Wish) -> card::Sent {
    front.send(w, wish);
    front.flush(w);
    w.drain();
    let statuses = statuses(front, w);
    assert!(statuses.iter().all(|status| *status == 0), "{statuses:?}");
    let log = &mut w.vif.device().state().log;
    assert_eq!(log.len(), 1);
    log.pop().unwrap()
}

fn refused(w: &mut World, front: &mut Front, wish: &Wish) {
    let count = front.send(w, wish).len();
    front.flush(w);
    assert!(w.vif.device().state().log.is_empty());
    assert_eq!(statuses(front, w), std::vec![-1; count]);
}

#[test]
fn packets_go_as_they_are() {
    let (mut w, mut front) = connected();
    let bytes = Recipe::tcp(20000).complete();
    let wish = Wish { cuts: std::vec![100, 101, 9000], offset: 3000, ..Wish::new(bytes.clone()) };
    let given = sent(&mut w, &mut front, &wish);
    assert_eq!((given.csum, given.gso, given.vlan, given.hash), (TxCsum::None, None, None, None));
    assert!(given.bytes == bytes);
    assert!(w.take_event(front.tx_port), "the frontend is told");
    assert_eq!(w.free_counts().1, 504 - 2, "only the rings");
    let counters = w.vif.counters().tx;
    assert_eq!((counters.packets, counters.bytes), (1, bytes.len() as u64));
}

/// The pages are the card's until it says so.
#[test]
fn pages_are_pinned_meanwhile() {
    let (mut w, mut front) = connected();
    front.send(&mut w, &Wish::new(Recipe::tcp(6000).complete()));
    front.flush(&w);
    let grefs: Vec<u32> = front.sent.values().map(|slot| slot.0).collect();
    assert_eq!(grefs.len(), 2);
    assert!(grefs.iter().all(|gref| w.in_use(*gref)));
    assert!(front.answers(&mut w).0.is_empty());
    w.drain();
    assert!(grefs.iter().all(|gref| !w.in_use(*gref)));
    assert_eq!(statuses(&mut front, &mut w), [0, 0]);
}

#[test]
fn copied_packets_are_answered_at_once() {
    let (mut w, mut front) = connected();
    w.vif.device().state().copies = 200;
    front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
    front.send(&mut w, &Wish::new(Recipe::tcp(1000).complete()));
    front.flush(&w);
    assert_eq!(statuses(&mut front, &mut w), [0]);
    assert_eq!(w.vif.counters().tx.copied, 1);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0]);
}

#[test]
fn partial_checksums() {
    for ip in [Ip::V4, Ip::V6] {
        for transport in [Transport::Tcp, Transport::Udp] {
            for tag in [None, Some(0x2005)] {
                let recipe = Recipe { tag, ..Recipe::new(ip, transport, 777) };
                let (mut w, mut front) = connected();
                // A tag is cut out, also one that is in two slots.
                let cuts = std::vec![15, 17];
                let wish = Wish { cuts, ..Wish::partial(recipe.partial()) };
                let given = sent(&mut w, &mut front, &wish);
                let plain = Recipe { tag: None, ..recipe.clone() };
                let (l3, l4) = (plain.l3() as u16, plain.l4() as u16);
                assert_eq!(given.csum, TxCsum::Partial { ip, transport, l3, l4 });
                assert_eq!((given.bytes, given.vlan), (plain.partial(), tag));
                // A card that does not: it is done here, in pages of ours; the tag stays.
                let mut info = card(1);
                info.tx = TxOffloads::default();
                let (mut w, mut front) = connected_as(info, LINUX);
                for cuts in [std::vec![], std::vec![20, 55, 301]] {
                    let wish = Wish { cuts, ..Wish::partial(recipe.partial()) };
                    let given = sent(&mut w, &mut front, &wish);
                    assert_eq!((given.csum, given.vlan), (TxCsum::None, None));
                    assert_eq!(given.bytes, recipe.complete());
                }
                assert_eq!(w.vif.counters().tx.software_csum, 2);
            }
        }
    }
}

/// There are two pages for such headers: more packets than that wait for one.
#[test]
fn own_headers_are_few() {
    let mut info = card(1);
    info.tx = TxOffloads::default();
    let mut w = World::with(info, world::CONFIG, 8);
    w.vif.announce(&w.store).unwrap();
    let mut front = connect_all(&mut w, LINUX).0.pop().unwrap();
    for size in 0..7 {
        front.send(&mut w, &Wish::partial(Recipe::tcp(100 + size).partial()));
    }
    front.flush(&w);
    // Pages are shared out among the queues offered.
    assert_eq!(w.vif.device().state().pending.len(), 2);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0; 7]);
    for (size, given) in w.vif.device().state().log.iter().enumerate() {
        assert_eq!(given.bytes, Recipe::tcp(100 + size).complete());
    }
    // Without any it cannot be done.
    let mut w = World::with(info, world::CONFIG, 0);
    w.vif.announce(&w.store).unwrap();
    let mut front = connect_all(&mut w, LINUX).0.pop().unwrap();
    refused(&mut w, &mut front, &Wish::partial(Recipe::tcp(100).partial()));
    assert_eq!(w.vif.counters().tx.unsupported, 1);
}

#[test]
fn segmentation() {
    for (ip, type_) in [(Ip::V4, GsoType::TCPV4), (Ip::V6, GsoType::TCPV6)] {
        let (mut w, mut front) = connected();
        let recipe = Recipe::new(ip, Transport::Tcp, 60000);
        let wish = Wish { offset: 4000, ..Wish::gso(recipe.partial(), 1448, type_) };
        let given = sent(&mut w, &mut front, &wish);
        assert_eq!(given.gso, Some(Gso { mss: 1448 }));
        let (l3, l4) = (14, recipe.l4() as u16);
        assert_eq!(given.csum, TxCsum::Partial { ip, transport: Transport::Tcp, l3, l4 });
        assert!(given.bytes == recipe.partial());
        // One that forgot to say that its checksum is blank.
        let given = sent(&mut w, &mut front, &Wish { flags: 0, ..wish.clone() });
        assert_eq!((given.gso, given.csum != TxCsum::None), (Some(Gso { mss: 1448 }), true));
        assert_eq!(w.vif.counters().tx.gso_csum_fixup, 1);
        // What fits into one segment is none.
        let recipe = Recipe::new(ip, Transport::Tcp, 1448);
        let given = sent(&mut w, &mut front, &Wish::gso(recipe.partial(), 1448, type_));
        assert_eq!((given.gso, given.csum != TxCsum::None), (None, true));
        // What the headers say counts, and what the card does.
        let other = if ip == Ip::V4 { GsoType::TCPV6 } else { GsoType::TCPV4 };
        refused(&mut w, &mut front, &Wish::gso(recipe.partial(), 700, other));
        let udp = Recipe::new(ip, Transport::Udp, 3000);
        refused(&mut w, &mut front, &Wish::gso(udp.partial(), 700, type_));
        let tx = TxOffloads { gso_v4_bytes: 1000, gso_v6_bytes: 1000, ..card(1).tx };
        w.vif.device().state().info.tx = tx;
        refused(&mut w, &mut front, &Wish::gso(recipe.partial(), 700, type_));
        let counters = w.vif.counters().tx;
        assert_eq!((counters.bad_headers, counters.unsupported), (2, 1));
    }
}

#[test]
fn hashes_of_the_guests_own() {
    let (mut w, mut front) = connected();
    let hash = NetifExtraHash {
        type_: HashType::IPV4_TCP,
        algorithm: 1,
        value: 0xdead_beef_u32.to_ne_bytes(),
    };
    let mut wish = Wish::gso(Recipe::tcp(5000).partial(), 1000, GsoType::TCPV4);
    wish.extras.push(extra(ExtraType::HASH, hash.as_bytes()));
    wish.extras.push(extra(ExtraType::XDP, &[0; 6]));
    front.send(&mut w, &wish);
    front.flush(&w);
    w.drain();
    let (answers, nulls) = front.answers(&mut w);
    assert_eq!((answers.len(), nulls), (2, 3), "an answer to each extra info, too");
    let given = w.vif.device().state().log.pop().unwrap();
    assert_eq!((given.hash, given.gso), (Some(0xdead_beef), Some(Gso { mss: 1000 })));
}

#[test]
fn headers_that_are_not_there() {
    let (mut w, mut front) = connected();
    let recipe = Recipe::tcp(100);
    let mut arp = recipe.partial();
    arp[13] = 6;
    let mut fragment = recipe.partial();
    fragment[20] = 0x20;
    let mut icmp = recipe.partial();
    icmp[23] = 1;
    for bytes in [arp, fragment, icmp, recipe.partial()[..49].to_vec()] {
        refused(&mut w, &mut front, &Wish::partial(bytes.clone()));
        // Without the flag nobody looks.
        assert_eq!(sent(&mut w, &mut front, &Wish::new(bytes.clone())).bytes, bytes);
    }
    assert_eq!(w.vif.counters().tx.bad_headers, 4);
}

/// Extension headers push the transport's beyond the first look.
#[test]
fn long_headers() {
    let (mut w, mut front) = connected();
    let mut bytes = Recipe::new(Ip::V6, Transport::Tcp, 300).partial();
    let tcp = bytes.split_off(54);
    bytes[20] = 60;
    bytes.extend([6, 19]);
    bytes.extend([0; 158]);
    bytes.extend(tcp);
    let given = sent(&mut w, &mut front, &Wish { cuts: std::vec![60], ..Wish::partial(bytes) });
    let csum = TxCsum::Partial { ip: Ip::V6, transport: Transport::Tcp, l3: 14, l4: 214 };
    assert_eq!(given.csum, csum);
}

/// Options of both headers, as long as they may be, with a tag in front.
#[test]
fn the_longest_of_tcp() {
    let (mut w, mut front) = connected();
    let mut bytes = Recipe { tag: Some(5), ..Recipe::tcp(3000) }.partial();
    let mut tcp = bytes.split_off(38);
    bytes[18] = 0x4f;
    bytes.extend([1; 40]);
    tcp[12] = 0xf0;
    let payload = tcp.split_off(20);
    bytes.extend(tcp);
    bytes.extend([1; 40]);
    bytes.extend(payload);
    let given = sent(&mut w, &mut front, &Wish::gso(bytes, 1400, GsoType::TCPV4));
    let csum = TxCsum::Partial { ip: Ip::V4, transport: Transport::Tcp, l3: 14, l4: 74 };
    assert_eq!((given.csum, given.gso, given.vlan), (csum, Some(Gso { mss: 1400 }), Some(5)));
}

#[test]
fn chains_that_are_wrong_cost_the_packet() {
    let (mut w, mut front) = connected();
    // Too short for its header.
    refused(&mut w, &mut front, &Wish::new(std::vec![0; 13]));
    let cut = Wish { cuts: std::vec![13], ..Wish::new(Recipe::tcp(100).complete()) };
    refused(&mut w, &mut front, &cut);
    // As many slots as Linux takes; and one and two more.
    let slots = |count: usize| Wish {
        cuts: (1..count).map(|nr| nr * 100).collect(),
        ..Wish::new(Recipe::tcp(count * 100 - 54).complete())
    };
    assert_eq!(sent(&mut w, &mut front, &slots(19)).bytes, slots(19).bytes);
    refused(&mut w, &mut front, &slots(20));
    refused(&mut w, &mut front, &slots(21));
    // 64 KiB and more: the size overflows.
    let huge = Wish { bytes: std::vec![1; 66000], ..Wish::default() };
    refused(&mut w, &mut front, &huge);
    assert_eq!(w.vif.counters().tx.bad_chains, 5);
    assert_eq!(sent(&mut w, &mut front, &slots(2)).bytes, slots(2).bytes, "and it goes on");
    assert_eq!(w.back_state(), 4);
}

#[test]
fn grants_must_allow_it() {
    // For another domain, for a frame that is not the guest's, for none at all.
    let spoil: [fn(u64) -> u64; 3] = [|entry| entry | 1 << 16, |entry| entry | 1 << 63, |_| 0];
    for spoil in spoil {
        let (mut w, mut front) = connected();
        let ids = front.send(&mut w, &Wish::new(Recipe::tcp(9000).complete()));
        let gref = front.sent[&ids[1]].0;
        w.spoil(gref, spoil(w.entry_of(gref)));
        front.flush(&w);
        assert_eq!(statuses(&mut front, &mut w), [-1; 3]);
        assert!(w.vif.device().state().log.is_empty());
        assert_eq!(w.vif.counters().tx.bad_grants, 1);
    }
}

#[test]
fn a_busy_card_holds_the_queue_up() {
    let (mut w, mut front) = connected();
    w.vif.device().state().room = 2;
    for size in 0..10 {
        front.send(&mut w, &Wish::new(Recipe::tcp(size).complete()));
    }
    front.flush(&w);
    assert_eq!(w.vif.device().state().pending.len(), 2);
    w.transmit(0, TxEnd::Sent);
    w.settle();
    assert_eq!(front.answers(&mut w).0.len(), 1);
    assert_eq!(w.vif.device().state().log.len(), 3);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0; 9]);
    let state = w.vif.device().state();
    for (size, given) in state.log.iter().enumerate() {
        assert_eq!(given.bytes, Recipe::tcp(size).complete(), "in order");
    }
}

/// The card has room again before its being busy was noted: nobody will say so once more.
#[test]
fn a_card_that_was_busy_a_moment_ago() {
    let (mut w, mut front) = connected();
    w.vif.device().state().busy_once = true;
    front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
    front.flush(&w);
    assert_eq!(w.vif.device().state().log.len(), 1);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0]);
}

/// Grants of version 2 may be of parts of pages.
#[test]
fn parts_of_pages() {
    let mut w = World::new(card(1));
    w.use_version_2();
    w.vif.announce(&w.store).unwrap();
    let mut front = connect_all(&mut w, LINUX).0.pop().unwrap();
    let bytes = Recipe::tcp(100).complete();
    for (offset, len, status) in [(200, 154, 0), (201, 153, -1), (0, 353, -1), (199, 155, 0)] {
        let wish = Wish { offset: 200, ..Wish::new(bytes.clone()) };
        let ids = front.send(&mut w, &wish);
        w.cut(front.sent[&ids[0]].0, offset, len);
        front.flush(&w);
        w.drain();
        assert_eq!(statuses(&mut front, &mut w), [status], "{len} from {offset}");
    }
    assert_eq!(w.vif.device().state().log.len(), 2);
    // What is received wants whole pages.
    front.post(&mut w, 2);
    w.cut(w.last_grant(), 0, 2000);
    front.flush_rx(&w);
    for _ in 0..2 {
        w.arrive(0, Frame::new(bytes.clone()));
    }
    w.pump();
    let failed: Vec<_> = front.poll(&mut w).iter().map(|got| got.failed).collect();
    assert_eq!(failed, [false, true]);
}

/// A queue that has nothing at the card is told by those that have.
#[test]
fn a_card_that_is_busy_with_another_queue() {
    let mut w = World::new(card(1));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 2, ..LINUX });
    w.vif.device().state().room = 1;
    for front in &mut fronts {
        front.send(&mut w, &Wish::new(Recipe::tcp(front.queue.into()).complete()));
        front.flush(&w);
    }
    assert_eq!(w.vif.device().state().log.len(), 1);
    w.transmit(0, TxEnd::Sent);
    w.settle();
    assert_eq!(w.vif.device().state().log.len(), 2);
    w.drain();
    assert_eq!(statuses(&mut fronts[1], &mut w), [0]);
}

#[test]
fn what_becomes_of_packets() {
    let (mut w, mut front) = connected();
    for (end, status) in [(TxEnd::Sent, 0), (TxEnd::Refused, -1), (TxEnd::Lost, -2)] {
        front.send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
        front.flush(&w);
        let tag = w.vif.device().state().pending[0].tag;
        assert_eq!(of_tag(tag), 3);
        w.transmit(0, end);
        // A second end of the same packet is none.
        w.vif.transmitted(&w.env(), tag, TxEnd::Sent);
        w.settle();
        assert_eq!(statuses(&mut front, &mut w), [status]);
    }
    for refusal in [TxRefusal::Size, TxRefusal::Removed, TxRefusal::Unsupported] {
        w.vif.device().state().refuse = Some(refusal);
        w.vif.device().state().log.clear();
        refused(&mut w, &mut front, &Wish::new(Recipe::tcp(100).complete()));
    }
    let counters = w.vif.counters().tx;
    assert_eq!((counters.refused, counters.lost, counters.unsupported), (2, 2, 1));
}

/// A packet as large as the protocol has, in as many slots.
#[test]
fn the_largest() {
    let (mut w, mut front) = connected();
    let recipe = Recipe::tcp(65535 - 54);
    let wish = Wish { offset: 2048, ..Wish::gso(recipe.partial(), 1400, GsoType::TCPV4) };
    let given = sent(&mut w, &mut front, &wish);
    assert!(given.bytes == recipe.partial());
}

#[test]
fn slots_without_bytes() {
    let (mut w, mut front) = connected();
    let bytes = Recipe::tcp(100).complete();
    let end = bytes.len();
    front.send(&mut w, &Wish { cuts: std::vec![end], ..Wish::new([&bytes[..], &[0]].concat()) });
    // The second slot's byte is taken away again, from both sizes.
    for (word, keep) in [(2, (end as u32) << 16), (5, 0)] {
        let at = xen_abi::io::ring::ENTRIES + word;
        front.tx.store(&w, at, front.tx.load(&w, at) & 0xffff | keep);
    }
    front.flush(&w);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0, 0]);
    assert_eq!(w.vif.device().state().log[0].bytes, bytes);
}
