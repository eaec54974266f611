//! What a guest receives.

use proptest::prelude::*;
use xen_abi::io::netif::{GsoType, NetifExtraGso, rxf};

use super::front::Got;
use super::*;
use crate::net::{Gso, Ip, RxCsum, Transport};

/// Brings a packet and gives what the guest got.
fn got(w: &mut World, front: &mut Front, frame: &Frame) -> Got {
    w.arrive(0, frame.clone());
    w.pump();
    let mut all = front.poll(w);
    assert_eq!(all.len(), 1);
    all.pop().unwrap()
}

fn posted(features: Features) -> (World, Front) {
    let (mut w, mut front) = connected_as(card(1), features);
    front.post(&mut w, 40);
    front.flush_rx(&w);
    (w, front)
}

#[test]
fn packets_come_as_they_are() {
    for features in [LINUX, Features { split: false, ..LINUX }, Features { flip: true, ..LINUX }] {
        let (mut w, mut front) = posted(features);
        for size in [0, 1, 100, 4042, 4043, 9000, 20000, 65481] {
            let bytes = Recipe::tcp(size).complete();
            let cuts = std::vec![3, 700, 5000, 5001];
            let frame = Frame { cuts, ..Frame::new(bytes.clone()) };
            let got = got(&mut w, &mut front, &frame);
            assert!(got.bytes == bytes, "{size}");
            assert_eq!(got.slots, bytes.len().div_ceil(4096), "as few slots as can be");
            assert_eq!(got.flags & !rxf::MORE_DATA, rxf::DATA_VALIDATED);
            assert!(w.take_event(front.rx_port));
            front.post(&mut w, 40);
            front.flush_rx(&w);
        }
        let counters = w.vif.counters().rx;
        assert_eq!((counters.packets, counters.waits, counters.bad_grants), (8, 0, 0));
        assert!(!features.split || !w.take_event(front.tx_port));
    }
}

#[test]
fn checksums() {
    for ip in [Ip::V4, Ip::V6] {
        for transport in [Transport::Tcp, Transport::Udp] {
            for vlan in [None, Some(0xe123)] {
                let recipe = Recipe::new(ip, transport, 5001);
                let tagged = Recipe { tag: vlan, ..recipe.clone() };
                let frame = |bytes, csum| Frame { csum, vlan, ..Frame::new(bytes) };
                let (mut w, mut front) = posted(LINUX);
                let mut flags = |bytes, csum| {
                    let got = got(&mut w, &mut front, &frame(bytes, csum));
                    (got.bytes, got.flags & 3)
                };
                let both = rxf::CSUM_BLANK | rxf::DATA_VALIDATED;
                let whole = tagged.complete();
                // Linux' frontend drops what it is to sum up behind a tag.
                let (partial, its_flags) = match vlan {
                    None => (recipe.partial(), both),
                    Some(_) => (whole.clone(), rxf::DATA_VALIDATED),
                };
                assert_eq!(flags(recipe.complete(), RxCsum::Unchecked), (whole.clone(), 0));
                assert_eq!(flags(recipe.complete(), RxCsum::Wrong), (whole.clone(), 0));
                assert_eq!(flags(recipe.partial(), RxCsum::Partial), (partial, its_flags));
                // The same with the tag left in the packet.
                let inside = Frame { vlan: None, ..frame(tagged.partial(), RxCsum::Partial) };
                let inside = got(&mut w, &mut front, &inside);
                let expected = if vlan.is_some() { whole.clone() } else { tagged.partial() };
                assert_eq!((inside.bytes, inside.flags & 3), (expected, its_flags));
                // A frontend that wants it done.
                let (mut w, mut front) =
                    posted(Features { csum_v4: false, csum_v6: false, ..LINUX });
                for headroom in [0, 256] {
                    w.store.set_front("xdp-headroom", headroom);
                    w.set_state(7);
                    w.set_state(4);
                    let got = got(&mut w, &mut front, &frame(recipe.partial(), RxCsum::Partial));
                    assert!(got.bytes == whole);
                    assert_eq!(got.flags & 3, rxf::DATA_VALIDATED);
                }
                assert_eq!(w.vif.counters().rx.software_csum, 2);
            }
        }
    }
}

/// A frame of IPv4 without the header's checksum, which has `options` bytes of options.
fn without_ip_csum(recipe: &Recipe, options: usize, junk: [u8; 2]) -> Vec<u8> {
    let mut bytes = recipe.complete();
    let l3 = recipe.l3();
    let total = (bytes.len() - l3 + options) as u16;
    bytes[l3] = 0x45 + (options / 4) as u8;
    bytes[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
    bytes[l3 + 10..l3 + 12].copy_from_slice(&junk);
    let options: Vec<u8> = (0..options).map(|at| at as u8 ^ 0x5a).collect();
    bytes.splice(l3 + 20..l3 + 20, options);
    bytes
}

/// The host vouches for the IPv4 header and did not put its checksum in.
#[test]
fn ip_checksums_are_made() {
    for vlan in [None, Some(0x6005)] {
        for (gso, is_partial) in [(None, false), (Some(Gso { mss: 1448 }), false), (None, true)] {
            for cuts in [std::vec![], std::vec![3, 15, 24, 25, 33, 34]] {
                let recipe = Recipe::tcp(9000);
                let mut bytes = without_ip_csum(&recipe, 0, [0xab, 0xcd]);
                let whole = bytes.clone();
                let mut csum = RxCsum::Validated;
                if is_partial {
                    let at = recipe.csum_at();
                    bytes[at..at + 2].copy_from_slice(&recipe.partial()[at..at + 2]);
                    csum = RxCsum::Partial;
                }
                let frame =
                    Frame { ip_csum_blank: true, csum, gso, vlan, cuts, ..Frame::new(bytes) };
                // One that wants the other checksum made, too.
                let (mut w, mut front) = posted(Features { csum_v4: !is_partial, ..LINUX });
                let got = got(&mut w, &mut front, &frame).bytes;
                let l3 = if vlan.is_some() { 18 } else { 14 };
                assert_eq!(packet::fold(&got[l3..l3 + 20]), 0xffff);
                assert_eq!(got[..12], whole[..12]);
                assert_eq!(got[l3..l3 + 10], whole[14..24]);
                assert!(got[l3 + 12..] == whole[26..], "nothing else changes");
            }
        }
    }
}

/// What has no such header stays as it is.
#[test]
fn ip_checksums_of_what_is_none() {
    let (mut w, mut front) = posted(LINUX);
    let v4 = without_ip_csum(&Recipe::tcp(0), 0, [0xab, 0xcd]);
    let with = |at: usize, byte: u8| {
        let mut bytes = v4.clone();
        bytes[at] = byte;
        bytes
    };
    let all = [
        // Not IPv4, a header of 16 bytes, one of 60 in 40 bytes, cut off, hardly Ethernet.
        Recipe::new(Ip::V6, Transport::Tcp, 100).complete(),
        with(13, 6),
        with(14, 0x65),
        with(14, 0x44),
        with(14, 0x4f),
        v4[..33].to_vec(),
        v4[..14].to_vec(),
    ];
    for bytes in all {
        let frame = Frame { ip_csum_blank: true, ..Frame::new(bytes.clone()) };
        assert!(got(&mut w, &mut front, &frame).bytes == bytes);
    }
    // Nobody said that the checksum is missing.
    assert!(got(&mut w, &mut front, &Frame::new(v4.clone())).bytes == v4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Wherever the header lies, in the receive buffer and in the guest's pages.
    #[test]
    fn ip_headers_sum_up(
        size in 0..3000usize,
        options in 0..=10usize,
        junk: [u8; 2],
        inside in prop::option::of(any::<u16>()),
        vlan in prop::option::of(any::<u16>()),
        headroom in prop::sample::select(std::vec![0u16, 256]),
        cuts in prop::collection::vec(1..80usize, 0..6),
    ) {
        let recipe = Recipe { tag: inside, ..Recipe::tcp(size) };
        let bytes = without_ip_csum(&recipe, options * 4, junk);
        let (mut w, mut front) = connected_as(card(1), Features { headroom, ..LINUX });
        front.post(&mut w, 40);
        front.flush_rx(&w);
        let frame = Frame { ip_csum_blank: true, vlan, cuts, ..Frame::new(bytes.clone()) };
        let mut got = got(&mut w, &mut front, &frame).bytes;
        if vlan.is_some() {
            got.drain(12..16);
        }
        let l3 = recipe.l3();
        prop_assert_eq!(packet::fold(&got[l3..l3 + 20 + options * 4]), 0xffff);
        got[l3 + 10..l3 + 12].copy_from_slice(&junk);
        prop_assert!(got == bytes);
    }
}

#[test]
fn packets_made_of_several() {
    for (ip, type_) in [(Ip::V4, GsoType::TCPV4), (Ip::V6, GsoType::TCPV6)] {
        let recipe = Recipe::new(ip, Transport::Tcp, 30000);
        let gso = Some(Gso { mss: 1448 });
        let frame = Frame { gso, ..Frame::new(recipe.complete()) };
        let (mut w, mut front) = posted(LINUX);
        assert_eq!(w.vif.device().state().coalescing, (true, true));
        let with_extra = got(&mut w, &mut front, &frame);
        let extra = NetifExtraGso { size: 1448, type_, pad: 0, features: 0 };
        assert_eq!((with_extra.gso, with_extra.prefix), (Some(extra), None));
        assert!(with_extra.bytes == frame.bytes);
        let (mut w, mut front) = posted(Features { gso: false, gso_prefix: true, ..LINUX });
        let with_prefix = got(&mut w, &mut front, &frame);
        assert_eq!((with_prefix.gso, with_prefix.prefix), (None, Some(1448)));
        assert!(with_prefix.bytes == frame.bytes);
        assert_eq!(w.vif.counters().rx.gso, 1);
        // A frontend that cannot be told of it.
        let (mut w, mut front) = posted(Features { gso: false, ..LINUX });
        assert_eq!(w.vif.device().state().coalescing, (false, false));
        let plain = got(&mut w, &mut front, &frame);
        assert_eq!((plain.gso, plain.prefix, plain.bytes == frame.bytes), (None, None, true));
    }
}

/// With a tag a frontend is not told that it was several, since Linux' would drop it.
#[test]
fn packets_made_of_several_with_a_tag() {
    for ip in [Ip::V4, Ip::V6] {
        for gso_prefix in [false, true] {
            let recipe = Recipe::new(ip, Transport::Tcp, 65475);
            let (mut w, mut front) = posted(Features { gso: !gso_prefix, gso_prefix, ..LINUX });
            assert_eq!(w.vif.device().state().coalescing, (true, true));
            let (gso, vlan) = (Some(Gso { mss: 1448 }), Some(0x6005));
            let frame = Frame { gso, vlan, ..Frame::new(recipe.complete()) };
            let got = got(&mut w, &mut front, &frame);
            assert_eq!((got.gso, got.prefix), (None, None));
            assert_eq!(got.flags & !rxf::MORE_DATA, rxf::DATA_VALIDATED);
            assert!(got.bytes == Recipe { tag: vlan, ..recipe }.complete());
            // A packet of which nobody can tell what is to be summed up.
            let mut bytes = Recipe::tcp(100).partial();
            bytes[20] |= 0x20;
            let frame = Frame { csum: RxCsum::Partial, vlan, ..Frame::new(bytes) };
            let got = self::got(&mut w, &mut front, &frame);
            assert_eq!(got.flags, rxf::DATA_VALIDATED);
        }
    }
}

#[test]
fn what_a_frontend_cannot_have_is_dropped() {
    let (mut w, mut front) = posted(Features { sg: false, ..LINUX });
    assert_eq!(w.vif.device().state().coalescing, (false, false));
    assert_eq!(got(&mut w, &mut front, &Frame::new(Recipe::tcp(4042).complete())).slots, 1);
    w.arrive(0, Frame::new(Recipe::tcp(4043).complete()));
    w.pump();
    assert!(front.poll(&mut w).is_empty());
    assert_eq!(w.vif.counters().rx.too_large, 1);
}

#[test]
fn headroom() {
    let (mut w, mut front) = posted(Features { headroom: 256, ..LINUX });
    let bytes = Recipe::tcp(9000).complete();
    let got = got(&mut w, &mut front, &Frame::new(bytes.clone()));
    assert_eq!((got.headroom, got.slots), (Some(256), 3));
    assert!(got.bytes == bytes);
}

#[test]
fn grants_must_allow_it() {
    let (mut w, mut front) = connected();
    // Read only: the response says so, and the next slots are where they should be.
    let page = w.page();
    let gref = w.grant(page, true);
    front.rx.put(&w, &[[0, 0, 0, 0], gref.to_le_bytes()].concat());
    front.flush_rx(&w);
    w.arrive(0, Frame::new(Recipe::tcp(100).complete()));
    w.pump();
    let (place, response) = front.rx.get::<xen_abi::io::netif::NetifRxResponse>(&w).unwrap();
    assert_eq!((place, response.status.0), (0, -1));
    assert!(!w.in_use(gref));
    assert_eq!(w.vif.counters().rx.bad_grants, 1);
    front.post(&mut w, 3);
    front.flush_rx(&w);
    let bytes = Recipe::tcp(5000).complete();
    assert!(got(&mut w, &mut front, &Frame::new(bytes.clone())).bytes == bytes);
}

/// Without slots packets stay in the receive buffer, in order, until there are.
#[test]
fn packets_wait_for_slots() {
    let (mut w, mut front) = connected();
    front.post(&mut w, 3);
    front.flush_rx(&w);
    let bytes = |size| Recipe::tcp(size).complete();
    for size in [10, 9000, 20] {
        w.arrive(0, Frame::new(bytes(size)));
    }
    w.pump();
    let all = front.poll(&mut w);
    assert_eq!(all.len(), 1, "the second needs three");
    assert!(w.vif.device().state().inbox[0].1, "the queue stands still");
    front.post(&mut w, 1);
    assert!(!front.rx.push(&w) || w.vif.device().state().resumed.is_empty());
    w.kick(Rings::Rx, 0);
    assert_eq!(w.vif.device().state().resumed, [0]);
    w.pump();
    let all = front.poll(&mut w);
    assert!(all.len() == 1 && all[0].bytes == bytes(9000));
    front.post(&mut w, 5);
    assert!(front.rx.push(&w), "it asked to be told");
    w.kick(Rings::Rx, 0);
    w.pump();
    assert!(front.poll(&mut w)[0].bytes == bytes(20));
    assert_eq!((w.vif.counters().rx.no_slots, w.vif.counters().rx.waits), (0, 2));
}

/// For too long: they are dropped, and so is what follows; then nothing is received at all; until
/// there are slots.
#[test]
fn a_guest_that_stops() {
    let (mut w, mut front) = connected();
    let open = |w: &World| w.vif.device().state().filter.directed;
    for size in 0..4 {
        w.arrive(0, Frame::new(Recipe::tcp(size).complete()));
    }
    w.pump();
    assert_eq!(w.vif.device().state().inbox[0].0.len(), 4);
    w.vif.tick(&w.env());
    w.pump();
    assert_eq!(w.vif.device().state().inbox[0].0.len(), 4, "not yet");
    w.tick();
    w.pump();
    assert_eq!(w.vif.device().state().inbox[0].0.len(), 0);
    assert_eq!((w.vif.counters().rx.no_slots, open(&w)), (4, true));
    w.tick();
    assert_eq!((w.vif.counters().rx.stalls, open(&w), w.vif.deadline()), (1, false, None));
    front.post(&mut w, 4);
    assert!(front.rx.push(&w), "it asked to be told");
    w.kick(Rings::Rx, 0);
    assert!(open(&w));
    let frame = Frame::new(Recipe::tcp(77).complete());
    assert!(got(&mut w, &mut front, &frame).bytes == frame.bytes);
    // A stalled guest that closes leaves nothing behind.
    for _ in 0..5 {
        w.arrive(0, frame.clone());
    }
    w.pump();
    assert_eq!(front.poll(&mut w).len(), 3);
    w.tick();
    w.tick();
    assert!(!open(&w));
    w.set_state(6);
    w.pump();
    assert!(!open(&w) && w.vif.device().state().inbox[0].0.is_empty());
    front.destroy(&mut w);
    w.set_state(1);
    connect_all(&mut w, LINUX);
    assert!(open(&w));
}

/// Frontends that do not tell of new slots are looked after.
#[test]
fn a_guest_that_does_not_tell() {
    let (mut w, mut front) = connected_as(card(1), Features { notify: false, ..LINUX });
    let frame = Frame::new(Recipe::tcp(77).complete());
    w.arrive(0, frame.clone());
    w.pump();
    front.post(&mut w, 4);
    front.flush_rx(&w);
    assert!(front.poll(&mut w).is_empty());
    let before = w.plat().state().now_ns;
    w.tick();
    assert_eq!(w.plat().state().now_ns - before, 30_000_000);
    w.pump();
    assert!(front.poll(&mut w)[0].bytes == frame.bytes);
    assert_eq!(w.vif.deadline(), None);
}

/// The memory the guest gave up is all used: slots fail, packets do not get mixed up.
#[test]
fn flipping_without_memory() {
    let (mut w, mut front) = connected_as(card(1), Features { flip: true, ..LINUX });
    front.post(&mut w, 4);
    front.flush_rx(&w);
    // All but one of the frames are taken otherwise.
    use translate::platform::GuestMemory;
    let taken: Vec<_> =
        (0..3).map(|_| w.plat().acquire_frame(xen_abi::Pfn(0)).expect("a frame")).collect();
    w.arrive(0, Frame::new(Recipe::tcp(100).complete()));
    w.arrive(0, Frame::new(Recipe::tcp(101).complete()));
    w.pump();
    for frame in taken {
        assert!(w.plat().release_frame(frame));
    }
    let all = front.poll(&mut w);
    let failed: Vec<_> = all.iter().map(|got| got.failed).collect();
    assert_eq!(failed, [false, true]);
    assert!(all[0].bytes == Recipe::tcp(100).complete());
    let frame = Frame::new(Recipe::tcp(5000).complete());
    assert!(got(&mut w, &mut front, &frame).bytes == frame.bytes);
}

#[test]
fn queues_go_their_own_ways() {
    let mut w = World::new(card(4));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 3, ..LINUX });
    for front in &mut fronts {
        front.post(&mut w, 4);
        front.flush_rx(&w);
    }
    for queue in 0..4 {
        w.arrive(queue, Frame::new(Recipe::tcp(queue as usize).complete()));
    }
    w.pump();
    let counts: Vec<_> = fronts.iter_mut().map(|front| front.poll(&mut w).len()).collect();
    assert_eq!(counts, [2, 1, 1]);
    for front in &mut fronts {
        assert!(w.take_event(front.rx_port));
        front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
        front.flush(&w);
    }
    let queues: Vec<_> = w.vif.device().state().log.iter().map(|sent| sent.queue).collect();
    assert_eq!(queues, [0, 1, 2]);
    // One queue waits; the others do not.
    for _ in 0..6 {
        w.arrive(1, Frame::new(Recipe::tcp(1).complete()));
    }
    w.arrive(0, Frame::new(Recipe::tcp(0).complete()));
    w.pump();
    assert_eq!(fronts[0].poll(&mut w).len(), 1);
    assert_eq!((fronts[1].poll(&mut w).len(), w.vif.device().state().inbox[1].0.len()), (3, 3));
    w.drain();
    for front in &mut fronts {
        assert_eq!(statuses(front, &mut w), [0]);
        assert!(w.take_event(front.tx_port));
    }
}
