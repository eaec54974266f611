//! States: connecting, closing, again, for good.

use super::*;
use world::XVDA;

#[test]
fn what_the_toolstack_writes() {
    let w = World::new(disk(1024));
    w.vbd.announce(&w.store).unwrap();
    let back = |name| w.store.back(name).unwrap();
    assert_eq!((back("dev").as_str(), back("mode").as_str()), ("xvda", "w"));
    assert_eq!(back("feature-max-indirect-segments"), "32");
    assert_eq!(
        (back("max-ring-page-order").as_str(), back("max-ring-pages").as_str()),
        ("4", "16")
    );
    assert_eq!((back("multi-queue-max-queues").as_str(), w.back_state()), ("4", 2));
    assert_eq!(w.store.front("virtual-device").unwrap(), std::format!("{XVDA}"));
    assert_eq!(w.store.front("trusted").as_deref(), Some("1"));
    assert_eq!(w.store.front("device-type").unwrap(), "disk");
    let path = w.vbd.watched().unwrap();
    assert_eq!(path.as_str(), "/local/domain/1/device/vbd/51712/state");
    // A device whose numbers cannot be is not shown.
    let w = World::new(DeviceInfo { logical_bytes: 520, ..disk(64) });
    assert!(w.vbd.announce(&w.store).is_err());
    assert_eq!(w.store.back("state"), None);
}

#[test]
fn what_a_frontend_reads() {
    let (w, _front) = connected(disk(1024));
    let back = |name| w.store.back(name).unwrap();
    assert_eq!((back("sectors").as_str(), back("sector-size").as_str()), ("1024", "512"));
    assert_eq!((back("physical-sector-size").as_str(), back("info").as_str()), ("4096", "0"));
    assert_eq!(
        (back("feature-flush-cache").as_str(), back("feature-barrier").as_str()),
        ("1", "1")
    );
    assert_eq!(
        (back("feature-discard").as_str(), back("discard-granularity").as_str()),
        ("1", "512")
    );
    assert_eq!((back("discard-alignment").as_str(), back("discard-secure").as_str()), ("0", "0"));
    assert_eq!(back("feature-persistent"), "0");
}

#[test]
fn several_queues() {
    let mut w = World::new(disk(1024));
    w.vbd.announce(&w.store).unwrap();
    let mut fronts = connect(&mut w, Layout::X86_64, 1, 4);
    let page = whole(&mut w);
    for (queue, front) in fronts.iter_mut().enumerate() {
        assert_eq!(front.entries, 64);
        assert_eq!(run(&mut w, front, BlkifOp::READ, queue as u64, &[page], false), 0);
        assert!(w.take_event(front.port));
    }
    assert_eq!(w.vbd.device().state().log.len(), 4);
    assert_eq!(of_port(3 << 6 | 2), (3, 2));
}

#[test]
fn requests_go_where_their_completion_is_heard() {
    let mut w = World::new(disk(1024));
    w.vbd.announce(&w.store).unwrap();
    let mut fronts = connect(&mut w, Layout::X86_64, 0, 2);
    for (queue, vcpu) in [(0, 3), (1, 0), (1, 2), (0, 2)] {
        let front = &mut fronts[queue];
        w.bind_port(front.port, vcpu);
        let page = whole(&mut w);
        assert_eq!(run(&mut w, front, BlkifOp::WRITE, 8, &[page], false), 0);
        assert_eq!(w.vbd.device().state().log.pop().unwrap().vcpu, vcpu);
    }
}

#[test]
fn bad_frontends_are_not_connected() {
    let bad: [fn(&World); 8] = [
        |w| w.store.set_front("protocol", "mips-abi"),
        |w| w.store.set_front("multi-queue-num-queues", 0),
        |w| w.store.set_front("multi-queue-num-queues", 5),
        |w| w.store.set_front("ring-page-order", 5),
        |w| w.store.set_front("num-ring-pages", 3),
        |w| w.store.remove_front("event-channel"),
        |w| w.store.set_front("event-channel", 700),
        |w| w.store.set_front("ring-ref", 600),
    ];
    for spoil in bad {
        let mut w = World::new(disk(1024));
        w.vbd.announce(&w.store).unwrap();
        let (page, port) = (w.page(), w.alloc_port());
        let gref = w.grant(page, false);
        w.store.set_front("ring-ref", gref);
        w.store.set_front("event-channel", port);
        spoil(&w);
        w.set_state(3);
        assert_eq!(w.back_state(), 5, "closing");
        assert!(!w.in_use(gref), "everything was let go");
        // The next attempt, a proper one, succeeds.
        w.set_state(6);
        assert_eq!(w.back_state(), 6);
        w.store.remove_front("num-ring-pages");
        w.set_state(1);
        let mut front = connect(&mut w, Layout::X86_64, 0, 1).pop().unwrap();
        let page = whole(&mut w);
        assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
    }
}

/// Unload and load, as a frontend's driver or the kernel of a kexec does it.
#[test]
fn again_and_again() {
    let mut w = World::new(disk(1024));
    w.vbd.announce(&w.store).unwrap();
    let grefs = w.free_grefs();
    for (layout, order) in [(Layout::X86_64, 0), (Layout::X86_32, 4), (Layout::X86_64, 1)] {
        let mut front = connect(&mut w, layout, order, 1).pop().unwrap();
        let page = whole(&mut w);
        assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
        w.set_state(5);
        assert_eq!(w.back_state(), 5);
        w.set_state(6);
        assert_eq!(w.back_state(), 6);
        front.destroy(&mut w);
        assert_eq!(w.free_grefs(), grefs);
        w.set_state(1);
        assert_eq!(w.back_state(), 2, "the backend waits for the next");
    }
}

/// A frontend that goes while requests are at the device: its pages stay pinned until they are
/// back, and only then the backend is closed.
#[test]
fn closed_with_requests_at_the_device() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    w.vbd.device().state().room = 2;
    for _ in 0..5 {
        front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    }
    front.flush(&w);
    w.set_state(6);
    assert_eq!(w.back_state(), 4, "not yet");
    w.vbd.frontend_changed(&w.env(), &w.store);
    w.complete(1);
    w.settle();
    assert_eq!(w.back_state(), 4);
    assert!((8..512).any(|gref| w.in_use(gref)));
    w.drain();
    assert_eq!(w.back_state(), 6);
    assert!(!(8..512).any(|gref| w.in_use(gref)));
    assert_eq!(w.vbd.device().state().log.len(), 2, "the rest was never started");
    front.destroy(&mut w);
    w.set_state(1);
    let mut front = connect(&mut w, Layout::X86_64, 0, 1).pop().unwrap();
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
}

/// Requests that were put into the ring before the backend connected, and never announced.
#[test]
fn requests_before_the_connection() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    assert!(front.push(&w));
    w.set_state(1);
    w.set_state(3);
    assert_eq!(w.back_state(), 4);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 1);
}

#[test]
fn the_device_goes() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    for operation in [BlkifOp::READ, BlkifOp::WRITE_BARRIER, BlkifOp::READ] {
        front.transfer(&mut w, operation, 0, &[page], false);
    }
    front.flush(&w);
    let tag = w.vbd.device().state().pending[0].tag;
    w.vbd.device().state().pending.clear();
    w.vbd.remove(&w.env(), &w.store);
    assert_eq!((w.back_state(), w.store.back("online").unwrap().as_str()), (5, "0"));
    let done = front.responses(&mut w);
    assert!(done.iter().all(|done| done.status == -1) && done.len() == 3, "all that was asked");
    assert!(w.take_event(front.port));
    // So does what comes before the frontend has heard of it.
    front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    front.flush(&w);
    let done = front.responses(&mut w);
    assert!(done.iter().all(|done| done.status == -1) && done.len() == 1, "answered");
    assert!(w.vbd.device().state().pending.is_empty(), "the device is asked nothing more");
    // A completion that comes too late is nobody's.
    w.vbd.complete(&w.env(), tag, Ok(()));
    w.settle();
    assert!(front.responses(&mut w).is_empty());
    w.set_state(5);
    w.set_state(6);
    assert_eq!(w.store.back("state"), None, "gone");
    assert_eq!(w.store.front("state"), None);
    front.destroy(&mut w);
}

#[test]
fn the_device_grows() {
    let (w, _front) = connected(disk(1024));
    w.vbd.resized(&w.store);
    assert_eq!(w.store.back("sectors").unwrap(), "1024");
    w.vbd.device().state().info.sectors = 2048;
    w.vbd.resized(&w.store);
    assert_eq!((w.store.back("sectors").unwrap().as_str(), w.back_state()), ("2048", 4));
}
