//! States: connecting, closing, again, for good.

use super::*;
use crate::net::{MacAddress, RxFilter, TxEnd, TxOffloads};
use front::set_up;

#[test]
fn what_the_toolstack_writes() {
    let w = World::new(card(2));
    w.vif.announce(&w.store).unwrap();
    let back = |name| w.store.back(name).unwrap();
    let front = |name| w.store.front(name).unwrap();
    assert_eq!((front("mac").as_str(), front("mtu").as_str()), ("00:15:5d:01:02:03", "1500"));
    assert_eq!((front("handle").as_str(), back("handle").as_str()), ("0", "0"));
    assert_eq!((back("mac"), back("mtu")), (front("mac"), front("mtu")));
    for name in [
        "feature-sg",
        "feature-gso-tcpv4",
        "feature-gso-tcpv6",
        "feature-ipv6-csum-offload",
        "feature-rx-copy",
        "feature-multicast-control",
        "feature-dynamic-multicast-control",
        "feature-split-event-channels",
        "feature-ctrl-ring",
        "feature-xdp-headroom",
        "carrier",
    ] {
        assert_eq!(back(name), "1", "{name}");
    }
    assert_eq!(
        (back("feature-rx-flip").as_str(), back("multi-queue-max-queues").as_str()),
        ("0", "4")
    );
    assert_eq!(w.back_state(), 2);
    let paths = w.vif.watched().unwrap();
    assert_eq!(paths[0].as_str(), "/local/domain/1/device/vif/0/state");
    assert_eq!(paths[1].as_str(), "/local/domain/1/device/vif/0/request-multicast-control");
    assert_eq!(w.vif.device().state().filter, RxFilter::default());
}

#[test]
fn as_it_is_configured() {
    let mac = MacAddress([2, 3, 4, 5, 6, 7]);
    let config = VifConfig { handle: 0, mac: Some(mac), mtu: Some(9000), promiscuous: true };
    let mut info = card(1);
    info.tx = TxOffloads { gso_v6_bytes: 0, ..info.tx };
    info.link = false;
    let mut w = World::with(info, config, 0);
    w.vif.announce(&w.store).unwrap();
    let back = |name| w.store.back(name).unwrap();
    assert_eq!((back("mac").as_str(), back("mtu").as_str()), ("02:03:04:05:06:07", "9000"));
    assert_eq!(
        (back("feature-gso-tcpv4").as_str(), back("feature-gso-tcpv6").as_str()),
        ("1", "0")
    );
    assert_eq!(back("carrier"), "0");
    assert_eq!((w.vif.mac(), w.vif.handle(), w.vif.index()), (mac, 0, 3));
    connect_all(&mut w, LINUX);
    let filter = w.vif.device().state().filter;
    assert!(filter.promiscuous && filter.directed && filter.broadcast && filter.all_multicast);
    // More than the card can: it stays as it is.
    let config = VifConfig { mtu: Some(9001), ..config };
    let w = World::with(card(1), config, 0);
    w.vif.announce(&w.store).unwrap();
    assert_eq!(w.store.back("mtu").unwrap(), "1500");
}

#[test]
fn bad_frontends_are_not_connected() {
    let bad: [fn(&World); 12] = [
        |w| w.store.set_front("multi-queue-num-queues", 0),
        |w| w.store.set_front("multi-queue-num-queues", 5),
        |w| w.store.set_front("multi-queue-num-queues", 2),
        |w| w.store.remove_front("event-channel-tx"),
        |w| w.store.set_front("event-channel-tx", 700),
        |w| w.store.set_front("event-channel-rx", 700),
        |w| w.store.remove_front("tx-ring-ref"),
        |w| w.store.set_front("rx-ring-ref", "0x100000000"),
        |w| w.store.set_front("tx-ring-ref", 600),
        |w| w.store.set_front("rx-ring-ref", 600),
        |w| w.store.set_front("event-channel-ctrl", 700),
        |w| w.store.set_front("ctrl-ring-ref", 600),
    ];
    for (nr, spoil) in bad.into_iter().enumerate() {
        let mut w = World::new(card(1));
        w.vif.announce(&w.store).unwrap();
        let free = w.free_counts();
        let (mut fronts, ctrl) = set_up(&mut w, Features { ctrl: true, ..LINUX });
        spoil(&w);
        w.set_state(4);
        assert_eq!(w.back_state(), 5, "{nr}: closing");
        assert!(!w.any_in_use(), "{nr}: everything was let go");
        w.set_state(4);
        assert_eq!(w.back_state(), 5, "{nr}: not once more");
        fronts.pop().unwrap().destroy(&mut w);
        ctrl.unwrap().destroy(&mut w);
        w.set_state(6);
        assert_eq!((w.back_state(), w.free_counts()), (6, free));
        // The next attempt, a proper one, succeeds.
        w.set_state(1);
        let mut front = connect_all(&mut w, LINUX).0.pop().unwrap();
        front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
        front.flush(&w);
        w.drain();
        assert_eq!(statuses(&mut front, &mut w), [0]);
    }
}

/// Unload and load, as a frontend's driver or the kernel of a kexec does it; and a kernel that takes
/// over from one that closed nothing.
#[test]
fn again_and_again() {
    let mut w = World::new(card(2));
    w.vif.announce(&w.store).unwrap();
    let free = w.free_counts();
    let ways = [
        LINUX,
        Features { split: false, queues: 4, ..LINUX },
        Features { ctrl: true, flip: true, ..LINUX },
        Features { notify: false, queues: 2, ..LINUX },
    ];
    for (nr, features) in ways.into_iter().enumerate() {
        let (mut fronts, ctrl) = connect_all(&mut w, features);
        for front in &mut fronts {
            front.post(&mut w, if features.flip { 0 } else { 8 });
            front.flush_rx(&w);
            front.send(&mut w, &Wish::new(Recipe::tcp(5000).complete()));
            front.flush(&w);
        }
        w.drain();
        for front in &mut fronts {
            assert_eq!(statuses(front, &mut w), [0, 0]);
        }
        if nr % 2 == 0 {
            w.set_state(5);
            assert_eq!(w.back_state(), 5);
            w.set_state(6);
            assert_eq!(w.back_state(), 6);
        } else {
            w.set_state(1);
            assert_eq!(w.back_state(), 2);
        }
        fronts.into_iter().for_each(|front| front.destroy(&mut w));
        ctrl.into_iter().for_each(|ctrl| ctrl.destroy(&mut w));
        assert_eq!(w.free_counts(), free);
        w.set_state(1);
        assert_eq!(w.back_state(), 2, "the backend waits for the next");
    }
}

/// A frontend that goes while packets are at the card: its pages stay pinned until they are back,
/// and only then the backend is closed.
#[test]
fn closed_with_packets_at_the_card() {
    let (mut w, mut front) = connected();
    w.vif.device().state().room = 2;
    for _ in 0..5 {
        front.send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
    }
    front.flush(&w);
    w.set_state(6);
    assert_eq!(w.back_state(), 4, "not yet");
    w.transmit(0, TxEnd::Sent);
    w.settle();
    assert_eq!(w.back_state(), 4);
    assert!(w.any_in_use());
    w.drain();
    assert_eq!(w.back_state(), 6);
    assert!(!w.any_in_use());
    assert_eq!(w.vif.device().state().log.len(), 2, "the rest was never started");
    front.destroy(&mut w);
    w.set_state(1);
    let mut front = connect_all(&mut w, LINUX).0.pop().unwrap();
    front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
    front.flush(&w);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0]);
}

/// Packets that were put into the ring before the backend connected, and never announced.
#[test]
fn packets_before_the_connection() {
    let mut w = World::new(card(1));
    w.vif.announce(&w.store).unwrap();
    let mut front = set_up(&mut w, LINUX).0.pop().unwrap();
    front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
    assert!(front.tx.push(&w));
    w.set_state(3);
    assert_eq!(w.back_state(), 2, "not ready");
    w.set_state(4);
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0]);
    w.arrive(0, Frame::new(Recipe::tcp(1).complete()));
    w.pump();
}

#[test]
fn nobody_there() {
    let w = World::new(card(1));
    w.vif.announce(&w.store).unwrap();
    w.arrive(0, Frame::new(Recipe::tcp(1).complete()));
    w.pump();
    assert_eq!(w.vif.counters().rx.no_frontend, 1);
    for index in [0, 1 << 6, 3 << 6, 63, u16::MAX] {
        assert!(!w.vif.kicked(&w.env(), index));
    }
}

/// The card goes at each moment of its life.
#[test]
fn the_card_goes() {
    for moment in 0..6 {
        let mut w = World::new(card(2));
        w.vif.announce(&w.store).unwrap();
        let free = w.free_counts();
        let mut fronts = Vec::new();
        if moment > 0 {
            fronts = connect_all(&mut w, Features { queues: 2, ..LINUX }).0;
        }
        if moment > 1 {
            w.vif.device().state().room = 1;
            for _ in 0..3 {
                fronts[0].send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
            }
            fronts[0].flush(&w);
        }
        if moment > 2 {
            w.arrive(1, Frame::new(Recipe::tcp(1).complete()));
            w.pump();
        }
        if moment > 3 {
            w.set_state(5);
        }
        if moment > 4 {
            w.set_state(6);
        }
        let tag = w.vif.device().state().pending.pop_front().map(|sent| sent.tag);
        w.vif.device().state().gone = true;
        w.vif.remove(&w.env(), &w.store);
        if let Some(tag) = tag {
            // One that comes too late is nobody's.
            w.vif.transmitted(&w.env(), tag, TxEnd::Lost);
        }
        w.settle();
        if moment < 5 {
            assert_eq!(w.store.back("online").as_deref(), Some("0"), "{moment}");
            assert_eq!(w.back_state(), 5);
        }
        for front in &mut fronts {
            let answers = statuses(front, &mut w);
            let count = if moment > 1 && front.queue == 0 { 3 } else { 0 };
            assert_eq!(answers.len(), if moment > 3 { answers.len() } else { count }, "{moment}");
            assert!(answers.iter().all(|status| *status < 0));
            if moment < 4 {
                // So does what comes before the frontend has heard of it.
                front.send(&mut w, &Wish::new(Recipe::tcp(100).complete()));
                front.flush(&w);
                assert_eq!(statuses(front, &mut w), [-2]);
            }
        }
        assert!(w.vif.device().state().pending.is_empty(), "the card is asked nothing more");
        w.set_state(5);
        w.set_state(6);
        assert!(w.vif.is_gone());
        assert_eq!((w.store.back("state"), w.store.front("state")), (None, None));
        fronts.into_iter().for_each(|front| front.destroy(&mut w));
        assert_eq!(w.free_counts(), free);
    }
}

#[test]
fn the_link_and_the_mtu() {
    let (w, _front) = connected();
    let back = |name| w.store.back(name).unwrap();
    w.vif.device().state().info.link = false;
    w.vif.changed(&w.env(), &w.store);
    assert_eq!((back("carrier").as_str(), w.back_state()), ("0", 4));
    w.vif.device().state().info.link = true;
    w.vif.device().state().info.mtu = 4000;
    w.vif.changed(&w.env(), &w.store);
    assert_eq!((back("carrier").as_str(), back("mtu").as_str()), ("1", "4000"));
    assert_eq!(w.store.front("mtu").unwrap(), "4000");
}

/// Packets go by the queues of the card whose interrupts come to the vCPU that hears of the
/// frontend's queue.
#[test]
fn queues_meet_on_vcpus() {
    let mut w = World::new(card(4));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 4, ..LINUX });
    for vcpus in [[3, 0, 1, 2], [1, 3, 2, 0]] {
        for (front, vcpu) in fronts.iter().zip(vcpus) {
            w.bind_port(front.tx_port, vcpu);
            w.bind_port(front.rx_port, (vcpu + 1) % 4);
        }
        // Heard with the first notifications.
        for _ in 0..2 {
            w.vif.device().state().log.clear();
            for (front, queue) in fronts.iter_mut().zip(0..) {
                front.post(&mut w, 4);
                front.flush_rx(&w);
                front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
                front.flush(&w);
                w.arrive(queue, Frame::new(Recipe::tcp(queue as usize).complete()));
            }
            w.drain();
            w.pump();
            for front in &mut fronts {
                assert_eq!(statuses(front, &mut w), [0]);
            }
        }
        let sent: Vec<_> = w.vif.device().state().log.iter().map(|sent| sent.queue).collect();
        assert_eq!(sent, vcpus);
        for front in &mut fronts {
            front.poll(&mut w);
        }
        for (front, vcpu) in fronts.iter_mut().zip(vcpus) {
            w.arrive((vcpu + 1) % 4, Frame::new(Recipe::tcp(7).complete()));
            w.pump();
            assert_eq!(front.poll(&mut w).len(), 1);
        }
    }
}

/// Channels that open or close under a connected frontend.
#[test]
fn queues_of_the_card_change() {
    let mut w = World::new(card(4));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 4, ..LINUX });
    for (queues, expected) in [(4, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (1, [0; 4]), (3, [0, 0, 1, 2])]
    {
        w.vif.device().state().info.queues = queues;
        w.vif.changed(&w.env(), &w.store);
        w.vif.device().state().log.clear();
        for front in &mut fronts {
            front.send(&mut w, &Wish::new(Recipe::tcp(10).complete()));
            front.flush(&w);
        }
        let queues: Vec<_> = w.vif.device().state().log.iter().map(|sent| sent.queue).collect();
        assert_eq!(queues, expected);
        w.drain();
    }
}

#[test]
fn reconfiguring() {
    let (w, _front) = connected();
    w.store.set_front("xdp-headroom", 256);
    w.set_state(7);
    assert_eq!(w.back_state(), 8);
    w.set_state(4);
    assert_eq!(w.back_state(), 4);
    // Nonsense is none.
    w.store.set_front("xdp-headroom", 4096);
    w.set_state(7);
    w.set_state(4);
    assert_eq!(w.vif.queues[0].rx.lock().config.headroom, 0);
}

#[test]
fn indices_and_limits() {
    assert_eq!(of_port(port_of(200, Rings::Rx, 63)), 200);
    assert_eq!((Limits::new(0).queues, Limits::new(3).queues, Limits::new(64).queues), (1, 3, 8));
    let names: Vec<_> = Counters::default().rx.each().map(|(name, _)| name).collect();
    assert!(names.contains(&"no_slots") && names.len() == 12);
}
