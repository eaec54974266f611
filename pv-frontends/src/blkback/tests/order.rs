//! What waits for what: barriers, flushes, a busy device.

use super::*;

/// The device's log as letters.
fn log(w: &World) -> std::string::String {
    let letter = |operation: &Operation| match operation {
        Operation::Read => 'r',
        Operation::Write => 'w',
        Operation::Flush => 'f',
        Operation::Discard { .. } => 'd',
    };
    w.vbd.device().state().log.iter().map(|given| letter(&given.operation)).collect()
}

#[test]
fn a_barrier_is_between_what_is_before_and_behind() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    for operation in [BlkifOp::WRITE, BlkifOp::WRITE, BlkifOp::WRITE_BARRIER, BlkifOp::WRITE] {
        front.transfer(&mut w, operation, 0, &[page], false);
    }
    front.flush(&w);
    let mut steps = std::vec![log(&w)];
    while !w.vbd.device().state().pending.is_empty() {
        w.complete(0);
        w.settle();
        steps.push(log(&w));
    }
    // The barrier's write has a flush before, for the writes it follows, and one behind, for
    // itself; nothing overtakes it.
    assert_eq!(steps, ["ww", "ww", "wwf", "wwfw", "wwfwf", "wwfwfw", "wwfwfw"]);
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
}

#[test]
fn a_flush_is_answered_by_the_device() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    let write = front.transfer(&mut w, BlkifOp::WRITE, 0, &[page], false);
    let flush = front.transfer(&mut w, BlkifOp::FLUSH_DISKCACHE, 0, &[], false);
    let after = front.transfer(&mut w, BlkifOp::WRITE, 8, &[page], false);
    front.flush(&w);
    assert_eq!(log(&w), "wfw", "a flush without data holds nothing up");
    assert!(front.responses(&mut w).is_empty());
    w.complete(2);
    w.settle();
    assert_eq!(statuses(&front.responses(&mut w)), [(after, 0)]);
    w.complete(1);
    w.settle();
    assert_eq!(statuses(&front.responses(&mut w)), [(flush, 0)]);
    w.complete(0);
    w.settle();
    assert_eq!(statuses(&front.responses(&mut w)), [(write, 0)]);
    // With data it is flush, write, flush.
    assert_eq!(run(&mut w, &mut front, BlkifOp::FLUSH_DISKCACHE, 0, &[page], false), 0);
    assert_eq!(log(&w), "wfwfwf");
}

#[test]
fn without_a_cache_there_is_nothing_to_flush() {
    let (mut w, mut front) = connected(DeviceInfo { flush: false, ..disk(1024) });
    assert_eq!(w.store.back("feature-flush-cache").unwrap(), "0");
    let page = whole(&mut w);
    assert_eq!(run(&mut w, &mut front, BlkifOp::FLUSH_DISKCACHE, 0, &[], false), 0);
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE_BARRIER, 0, &[page], false), 0);
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE_BARRIER, 0, &[], false), 0);
    assert_eq!(log(&w), "w");
}

#[test]
fn a_failed_step_ends_a_barrier() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    w.vbd.device().state().fail.push_back(IoError::Io);
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE_BARRIER, 0, &[page], false), -1);
    assert_eq!(log(&w), "f", "the write is not done");
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE, 0, &[page], false), 0);
}

/// A busy device stops the queue; a completion sets it going again, from the place it was at.
#[test]
fn back_pressure() {
    let (mut w, mut front) = connected(disk(1024));
    w.vbd.device().state().room = 3;
    let pieces: Vec<Piece> = (0..20).map(|_| whole(&mut w)).collect();
    for _ in 0..3 {
        front.transfer(&mut w, BlkifOp::READ, 0, &pieces, true);
    }
    front.flush(&w);
    assert_eq!(w.vbd.device().state().pending.len(), 3, "a request and a half");
    let mut done = 0;
    while done < 3 {
        w.complete(0);
        w.settle();
        done += front.responses(&mut w).len();
    }
    assert_eq!(w.vbd.device().state().log.len(), 6);
    // Somebody else took the device's room: it says when there is some.
    w.vbd.device().state().room = 0;
    front.transfer(&mut w, BlkifOp::READ, 0, &pieces[..1], false);
    front.flush(&w);
    assert!(w.vbd.device().state().pending.is_empty());
    w.vbd.device().state().room = 9;
    assert!(!w.vbd.resume(&w.env()));
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 1);
}

/// The device has room again before it is noted that somebody waits for that: its word came too
/// early, and nobody else gives one.
#[test]
fn room_at_once() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    (w.vbd.device().state().room, w.vbd.device().state().room_next) = (0, 1);
    front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    front.flush(&w);
    assert_eq!(w.vbd.device().state().pending.len(), 1);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 1);
}

/// All slots taken: the rest stays in the ring until some are free, without another notification.
#[test]
fn more_requests_than_slots() {
    let limits = Limits { queues: 1, ring_page_order: 4, requests: 4, max_segments: 32 };
    let mut w = World::with(disk(1024), limits);
    w.vbd.announce(&w.store).unwrap();
    let mut front = connect(&mut w, Layout::X86_64, 4, 1).pop().unwrap();
    assert_eq!(front.entries, 512);
    let page = whole(&mut w);
    for sector in 0..100 {
        front.transfer(&mut w, BlkifOp::READ, sector, &[page], false);
    }
    front.flush(&w);
    assert_eq!(w.vbd.device().state().pending.len(), 4);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 100);
}

/// The device is told once for all requests that were in the ring.
#[test]
fn one_commit_a_batch() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    for sector in 0..20 {
        front.transfer(&mut w, BlkifOp::READ, sector, &[page], false);
    }
    front.flush(&w);
    assert_eq!(w.vbd.device().state().commits, 1);
    for _ in 0..20 {
        w.complete(0);
    }
    assert!(w.vbd.is_unsettled());
    assert!(front.responses(&mut w).is_empty(), "not shown yet");
    w.settle();
    assert!(w.take_event(front.port));
    assert_eq!(front.responses(&mut w).len(), 20);
    w.settle();
    assert!(!w.take_event(front.port), "nothing new");
}
