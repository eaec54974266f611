//! Neighbours in the ring that go to the device as one.

use std::vec;

use super::*;
use crate::blkback::Kicked;

/// Sectors and segments of all the device was given.
fn log(w: &World) -> Vec<(u64, u64, usize)> {
    let bytes = |given: &world::Given| given.segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
    let state = w.vbd.device().state();
    state.log.iter().map(|g| (g.sector, bytes(g) / 512, g.segments.len())).collect()
}

/// Requests of so many whole pages each, one behind the other from `sector` on; their numbers.
fn row(
    w: &mut World,
    front: &mut Front,
    operation: BlkifOp,
    sector: u64,
    pages: &[usize],
) -> Vec<u64> {
    let mut at = sector;
    let mut ids = Vec::new();
    for count in pages {
        let pieces: Vec<Piece> = (0..*count).map(|_| whole(w)).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let byte = (at / 8) as u8 ^ index as u8 ^ 0x80;
            set_page_bytes(&w.machine.plat, piece.page, 0, &[byte; 4096]);
        }
        ids.push(front.transfer(w, operation, at, &pieces, *count > 11));
        at += *count as u64 * 8;
    }
    ids
}

fn with_limits(info: DeviceInfo) -> (World, Front) {
    let limits = Limits { queues: 1, ring_page_order: 2, requests: 32, max_segments: 32 };
    let mut w = World::with(info, limits);
    w.vbd.announce(&w.store).unwrap();
    let front = connect(&mut w, Layout::X86_64, 2, 1).pop().unwrap();
    (w, front)
}

/// A disk that takes 32 whole pages at once.
fn large() -> DeviceInfo {
    DeviceInfo { max_transfer_bytes: 128 << 10, max_segments: 33, no_gaps: true, ..disk(4096) }
}

#[test]
fn neighbours_go_together() {
    for operation in [BlkifOp::READ, BlkifOp::WRITE] {
        let (mut w, mut front) = with_limits(large());
        let ids = row(&mut w, &mut front, operation, 64, &[1, 2, 4]);
        front.flush(&w);
        assert_eq!(log(&w), [(64, 56, 7)]);
        assert!(front.responses(&mut w).is_empty());
        w.complete(0);
        w.settle();
        let done = front.responses(&mut w);
        assert_eq!(statuses(&done), ids.iter().map(|id| (*id, 0)).collect::<Vec<_>>());
        let data = w.vbd.device().state().data.clone();
        let mut at = 64 * 512;
        for piece in done.iter().flat_map(|done| &done.shadow.pieces) {
            assert!(page_bytes(&w.machine.plat, piece.page) == data[at..at + 4096]);
            at += 4096;
        }
        assert!(!(8..512).any(|gref| w.in_use(gref) && !front.is_ring(gref)));
    }
}

#[test]
fn what_does_not_belong_together_goes_alone() {
    let (mut w, mut front) = with_limits(large());
    row(&mut w, &mut front, BlkifOp::READ, 0, &[1]);
    row(&mut w, &mut front, BlkifOp::WRITE, 8, &[1]);
    // Not behind it; before it; the same place again.
    row(&mut w, &mut front, BlkifOp::WRITE, 24, &[1]);
    row(&mut w, &mut front, BlkifOp::WRITE, 16, &[1]);
    row(&mut w, &mut front, BlkifOp::WRITE, 16, &[1, 1]);
    front.flush(&w);
    assert_eq!(log(&w), [(0, 8, 1), (8, 8, 1), (24, 8, 1), (16, 8, 1), (16, 16, 2)]);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 6);
    // Pieces that would leave a gap within the pages.
    let start = log(&w).len();
    let head = Piece { first: 0, last: 3, page: w.page() };
    let tail = Piece { first: 4, last: 7, page: w.page() };
    let next = whole(&mut w);
    front.transfer(&mut w, BlkifOp::READ, 100, &[head], false);
    front.transfer(&mut w, BlkifOp::READ, 104, &[tail], false);
    front.transfer(&mut w, BlkifOp::READ, 108, &[next], false);
    front.flush(&w);
    assert_eq!(log(&w)[start..], [(100, 4, 1), (104, 12, 2)]);
    w.drain();
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
}

#[test]
fn never_more_than_the_device_takes() {
    let (mut w, mut front) = with_limits(large());
    row(&mut w, &mut front, BlkifOp::READ, 0, &[12, 12, 12, 20, 20, 32, 1, 31, 1]);
    front.flush(&w);
    let pages: Vec<_> = log(&w).iter().map(|(_, _, pages)| *pages).collect();
    assert_eq!(pages, [24, 32, 20, 32, 32, 1]);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 9);
    // One that does not fit at all is cut, between two runs.
    w.vbd.device().state().info.max_transfer_bytes = 64 << 10;
    let start = log(&w).len();
    row(&mut w, &mut front, BlkifOp::WRITE, 0, &[3, 30, 3, 3]);
    front.flush(&w);
    let pages: Vec<_> = log(&w)[start..].iter().map(|(_, _, pages)| *pages).collect();
    assert_eq!(pages, [3, 16, 14, 6]);
    w.drain();
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
}

/// A device that came to take more than the vbd has memory for.
#[test]
fn never_more_than_there_is_room_for() {
    let (mut w, mut front) = with_limits(large());
    (w.vbd.device().state().info.max_transfer_bytes, w.vbd.device().state().info.max_segments) =
        (1 << 20, 257);
    row(&mut w, &mut front, BlkifOp::WRITE, 0, &[16, 16, 32, 30, 2, 32]);
    front.flush(&w);
    let pages: Vec<_> = log(&w).iter().map(|(_, _, pages)| *pages).collect();
    assert_eq!(pages, [32, 32, 32, 32]);
    w.drain();
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
}

/// Two neighbours that begin in the middle of a page: 32 pages' bytes in 33 pieces.
fn mid_page(w: &mut World, front: &mut Front, sector: u64, byte: u8) {
    let mut pieces: Vec<Piece> = (0..33).map(|_| whole(w)).collect();
    for (index, piece) in pieces.iter().enumerate() {
        set_page_bytes(&w.machine.plat, piece.page, 0, &[byte + index as u8; 4096]);
    }
    (pieces[0].first, pieces[32].last) = (4, 3);
    front.transfer(w, BlkifOp::WRITE, sector, &pieces[..32], true);
    front.transfer(w, BlkifOp::WRITE, sector + 252, &pieces[32..], false);
}

/// While the largest request waits behind the largest run, what goes alone leaves its pages alone.
#[test]
fn the_largest_of_all_kinds_at_once() {
    let (mut w, mut front) = with_limits(large());
    w.vbd.device().state().room = 1;
    w.vbd.device().state().fail = [IoError::Io].into();
    mid_page(&mut w, &mut front, 0, 1);
    front.flush(&w);
    mid_page(&mut w, &mut front, 1024, 40);
    row(&mut w, &mut front, BlkifOp::WRITE, 2048, &[32]);
    front.flush(&w);
    assert_eq!(log(&w).len(), 1, "no more than there is room for");
    // The first, whatever it is, fails while the others wait.
    w.complete(0);
    w.settle();
    w.drain();
    let done = front.responses(&mut w);
    let good: Vec<_> = done.iter().filter(|done| done.status == 0).collect();
    assert!(good.len() >= 4);
    let data = w.vbd.device().state().data.clone();
    for done in good {
        let mut at = done.shadow.sector as usize * 512;
        for piece in &done.shadow.pieces {
            let bytes = usize::from(piece.first) * 512..usize::from(piece.last + 1) * 512;
            let written = &data[at..at + bytes.len()];
            assert!(written == &page_bytes(&w.machine.plat, piece.page)[bytes], "{at}");
            at += written.len();
        }
    }
}

/// The device fails the whole; each request is asked for again alone, and gets its own answer.
#[test]
fn an_error_is_its_owners() {
    let (mut w, mut front) = with_limits(large());
    w.vbd.device().state().bad = 80..82;
    let ids = row(&mut w, &mut front, BlkifOp::WRITE, 64, &[1, 2, 4]);
    front.flush(&w);
    w.complete(0);
    assert!(front.responses(&mut w).is_empty(), "nobody's answer is known");
    w.settle();
    assert_eq!(log(&w), [(64, 56, 7), (64, 8, 1), (72, 16, 2), (88, 32, 4)]);
    // In any order.
    for index in [2, 0, 0] {
        w.complete(index);
        w.settle();
    }
    let mut done = statuses(&front.responses(&mut w));
    done.sort_unstable();
    assert_eq!(done, [(ids[0], 0), (ids[1], -1), (ids[2], 0)]);
    assert_eq!(run(&mut w, &mut front, BlkifOp::FLUSH_DISKCACHE, 0, &[], false), 0);
}

#[test]
fn an_error_at_once_and_a_busy_device() {
    let (mut w, mut front) = with_limits(large());
    w.vbd.device().state().fail_submit = [IoError::Io, IoError::NoSpace].into();
    w.vbd.device().state().room = 1;
    let ids = row(&mut w, &mut front, BlkifOp::READ, 0, &[1, 1, 1]);
    front.flush(&w);
    // The whole and the first fail, the second is with the device, which has no room for more.
    assert_eq!(statuses(&front.responses(&mut w)), [(ids[0], -1)]);
    assert_eq!(log(&w), [(8, 8, 1)]);
    // What comes meanwhile waits.
    let later = row(&mut w, &mut front, BlkifOp::READ, 64, &[2, 2]);
    front.flush(&w);
    assert_eq!(log(&w).len(), 1);
    w.drain();
    assert_eq!(log(&w), [(8, 8, 1), (16, 8, 1), (64, 32, 4)]);
    let done = statuses(&front.responses(&mut w));
    assert_eq!(done, [(ids[1], 0), (ids[2], 0), (later[0], 0), (later[1], 0)]);
}

/// A run that found the device busy takes more in while it waits.
#[test]
fn a_waiting_run_grows() {
    let (mut w, mut front) = with_limits(large());
    w.vbd.device().state().room = 0;
    row(&mut w, &mut front, BlkifOp::READ, 0, &[2]);
    front.flush(&w);
    row(&mut w, &mut front, BlkifOp::READ, 16, &[2]);
    front.flush(&w);
    w.vbd.device().state().room = 4;
    assert!(!w.vbd.resume(&w.env()));
    assert_eq!(log(&w), [(0, 32, 4)]);
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 2);
}

#[test]
fn a_barrier_ends_a_run() {
    let (mut w, mut front) = with_limits(large());
    row(&mut w, &mut front, BlkifOp::WRITE, 0, &[1, 1]);
    let page = whole(&mut w);
    front.transfer(&mut w, BlkifOp::WRITE_BARRIER, 16, &[page], false);
    row(&mut w, &mut front, BlkifOp::WRITE, 24, &[1, 1]);
    front.transfer(&mut w, BlkifOp::FLUSH_DISKCACHE, 0, &[], false);
    row(&mut w, &mut front, BlkifOp::WRITE, 40, &[1]);
    front.flush(&w);
    assert_eq!(log(&w), [(0, 16, 2)], "the barrier waits");
    w.drain();
    let flush = (0, 0, 0);
    let rest = [flush, (16, 8, 1), flush, (24, 16, 2), flush, (40, 8, 1)];
    assert_eq!(log(&w)[1..], rest);
    assert_eq!(front.responses(&mut w).len(), 7);
}

/// A barrier waits for those that go alone after an error, too.
#[test]
fn a_barrier_waits_for_those_that_are_asked_again() {
    let (mut w, mut front) = with_limits(large());
    w.vbd.device().state().bad = 8..9;
    row(&mut w, &mut front, BlkifOp::WRITE, 0, &[1, 1]);
    let page = whole(&mut w);
    front.transfer(&mut w, BlkifOp::WRITE_BARRIER, 16, &[page], false);
    front.flush(&w);
    let mut logs = Vec::new();
    while !w.vbd.device().state().pending.is_empty() {
        w.complete(0);
        w.settle();
        logs.push(log(&w).len());
    }
    assert_eq!(logs, [3, 3, 4, 5, 6, 6]);
    let done: Vec<_> = front.responses(&mut w).iter().map(|done| done.status).collect();
    assert_eq!(done, [0, -1, 0]);
}

#[test]
fn removal_fails_all_of_a_run() {
    for failed_before in [false, true] {
        let (mut w, mut front) = with_limits(large());
        let ids = row(&mut w, &mut front, BlkifOp::READ, 0, &[1, 1, 1]);
        front.flush(&w);
        if failed_before {
            w.vbd.device().state().bad = 8..9;
            w.complete(0);
        }
        let late = w.vbd.device().state().pending.pop_front();
        assert_eq!(late.is_none(), failed_before);
        w.vbd.remove(&w.env(), &w.store);
        let done = statuses(&front.responses(&mut w));
        assert_eq!(done, ids.iter().map(|id| (*id, -1)).collect::<Vec<_>>());
        // What comes from the device now is nobody's.
        if let Some(given) = late {
            w.vbd.complete(&w.env(), given.tag, Ok(()));
            w.settle();
        }
        assert!(front.responses(&mut w).is_empty());
        assert_eq!(w.back_state(), 5);
        w.set_state(6);
        assert_eq!(w.back_state(), 0, "its directory is gone");
        assert!(w.vbd.is_gone());
    }
}

const HELD: Kicked = Kicked { more: false, held: true };
const DONE: Kicked = Kicked { more: false, held: false };

/// A frontend that notifies after each piece: what it cut goes to the device whole.
#[test]
fn pieces_wait_for_each_other() {
    let info = DeviceInfo { max_transfer_bytes: 128 << 10, max_segments: 32, ..disk(4096) };
    let (mut w, mut front) = with_limits(info);
    let kick = |w: &World, front: &Front| {
        assert!(front.push(w), "wants to notify");
        w.vbd.kicked_holding(&w.env(), 0)
    };
    let next = |w: &mut World, front: &mut Front, sector, pages| {
        row(w, front, BlkifOp::WRITE, sector, &[pages]);
        kick(w, front)
    };
    assert_eq!(next(&mut w, &mut front, 0, 16), HELD);
    assert!(log(&w).is_empty());
    assert_eq!(next(&mut w, &mut front, 128, 16), DONE, "full");
    assert_eq!(log(&w), [(0, 256, 32)]);
    // Another place: the one before goes at once.
    assert_eq!(next(&mut w, &mut front, 256, 16), HELD);
    assert_eq!(next(&mut w, &mut front, 1024, 16), HELD);
    assert_eq!(log(&w)[1..], [(256, 128, 16)]);
    // One that is smaller is no piece, or the last.
    assert_eq!(next(&mut w, &mut front, 1152, 12), DONE);
    assert_eq!(next(&mut w, &mut front, 2048, 12), DONE);
    assert_eq!(next(&mut w, &mut front, 2500, 1), DONE);
    assert_eq!(log(&w)[2..], [(1024, 224, 28), (2048, 96, 12), (2500, 8, 1)]);
    // The guest does something else.
    let last = log(&w).len();
    assert_eq!(next(&mut w, &mut front, 0, 16), HELD);
    assert!(!w.vbd.kicked(&w.env(), 0));
    assert_eq!(log(&w)[last..], [(0, 128, 16)]);
    // A completion comes by.
    w.drain();
    assert_eq!(next(&mut w, &mut front, 3000, 1), DONE);
    assert_eq!(next(&mut w, &mut front, 128, 16), HELD);
    w.complete(0);
    w.settle();
    assert_eq!(log(&w)[last + 2..], [(128, 128, 16)]);
    w.drain();
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
    assert!(front.shadows.is_empty());
}

/// A full ring sends a piece for each that is answered; they become whole again behind others.
#[test]
fn a_busy_device_does_not_wait_for_a_stream() {
    let info = DeviceInfo { max_transfer_bytes: 128 << 10, max_segments: 32, ..disk(4096) };
    let (mut w, mut front) = with_limits(info);
    let next = |w: &mut World, front: &mut Front, sector| {
        row(w, front, BlkifOp::WRITE, sector, &[16]);
        assert!(front.push(w), "wants to notify");
        // Held back, and released at once.
        w.vbd.kicked_holding(&w.env(), 0);
        assert!(!w.vbd.kicked(&w.env(), 0));
    };
    // A stream, alone and then with enough before it.
    for sector in [0, 128, 256, 384] {
        next(&mut w, &mut front, sector);
    }
    assert_eq!(log(&w).len(), 4);
    next(&mut w, &mut front, 512);
    assert_eq!(log(&w).len(), 4);
    next(&mut w, &mut front, 640);
    assert_eq!(log(&w)[4..], [(512, 256, 32)]);
    // No stream: it goes at once.
    next(&mut w, &mut front, 2048);
    assert_eq!(log(&w)[5..], [(2048, 128, 16)]);
    // The device has less and less to do.
    next(&mut w, &mut front, 2176);
    for left in [5, 4] {
        w.complete(0);
        w.settle();
        assert_eq!(w.vbd.device().state().pending.len(), left);
        assert_eq!(log(&w).len(), 6);
    }
    w.complete(0);
    w.settle();
    assert_eq!(log(&w)[6..], [(2176, 128, 16)]);
    w.drain();
    assert!(front.responses(&mut w).iter().all(|done| done.status == 0));
    assert!(front.shadows.is_empty());
}

/// What is held back when the frontend closes never was at the device.
#[test]
fn closing_ends_what_is_held() {
    let info = DeviceInfo { max_transfer_bytes: 128 << 10, max_segments: 32, ..disk(4096) };
    let (mut w, mut front) = with_limits(info);
    let ids = row(&mut w, &mut front, BlkifOp::READ, 0, &[16]);
    assert!(front.push(&w));
    assert_eq!(w.vbd.kicked_holding(&w.env(), 0), HELD);
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    assert!(log(&w).is_empty());
    assert_eq!(statuses(&front.responses(&mut w)), vec![(ids[0], -1)]);
    assert!(!(0..512).any(|gref| w.in_use(gref)));
}
