//! A vbd between a fake blkfront and a fake device.

mod front;
mod handshake;
mod hostile;
mod merge;
mod order;
mod random;
mod threads;
mod world;

use std::vec::Vec;

use xen_abi::io::blkif::BlkifOp;

use super::request::Layout;
use super::*;
use front::{Done, Front, Piece, connect};
use world::{World, disk, page_bytes, set_page_bytes};

/// A whole page.
fn whole(w: &mut World) -> Piece {
    Piece { page: w.page(), first: 0, last: 7 }
}

/// A world with a vbd announced and one queue connected.
fn connected(info: DeviceInfo) -> (World, Front) {
    let mut w = World::new(info);
    w.vbd.announce(&w.store).unwrap();
    let front = connect(&mut w, Layout::X86_64, 0, 1).pop().unwrap();
    (w, front)
}

/// Runs a request to its end: its status.
fn run(
    w: &mut World,
    front: &mut Front,
    operation: BlkifOp,
    sector: u64,
    pieces: &[Piece],
    indirect: bool,
) -> i16 {
    front.transfer(w, operation, sector, pieces, indirect);
    front.flush(w);
    w.drain();
    let done = front.responses(w);
    assert_eq!(done.len(), 1);
    done[0].status
}

fn statuses(done: &[Done]) -> Vec<(u64, i16)> {
    done.iter().map(|done| (done.id, done.status)).collect()
}

#[test]
fn data_goes_both_ways() {
    for layout in [Layout::X86_64, Layout::X86_32] {
        let mut w = World::new(disk(1024));
        w.vbd.announce(&w.store).unwrap();
        let mut front = connect(&mut w, layout, 2, 1).pop().unwrap();
        let pieces = [whole(&mut w), Piece { first: 3, last: 3, page: w.page() }, whole(&mut w)];
        set_page_bytes(&w.machine.plat, pieces[1].page, 3 * 512, &[0xaa; 512]);
        assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE, 100, &pieces, false), 0);
        assert_eq!(w.vbd.device().state().data[108 * 512..109 * 512], [0xaa; 512]);
        assert!(w.take_event(front.port), "the frontend is told");
        let read = [Piece { first: 7, last: 7, page: w.page() }];
        for indirect in [false, true] {
            set_page_bytes(&w.machine.plat, read[0].page, 0, &[1; 4096]);
            assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 108, &read, indirect), 0);
            let page = page_bytes(&w.machine.plat, read[0].page);
            assert_eq!((page[7 * 512 - 1], &page[7 * 512..]), (1, &[0xaa; 512][..]));
        }
        assert_eq!(run(&mut w, &mut front, BlkifOp::FLUSH_DISKCACHE, 0, &[], false), 0);
        let operations: Vec<_> =
            w.vbd.device().state().log.iter().map(|given| given.operation).collect();
        use Operation::{Flush, Read, Write};
        assert_eq!(operations, [Write, Read, Read, Flush]);
    }
}

/// The device's frames are the guest's own: nothing is copied.
#[test]
fn the_pages_go_to_the_device_as_they_are() {
    let (mut w, mut front) = connected(disk(1024));
    let pieces = [Piece { first: 2, last: 5, page: w.page() }, whole(&mut w)];
    front.transfer(&mut w, BlkifOp::WRITE, 7, &pieces, false);
    front.flush(&w);
    let given = w.vbd.device().state().pending[0].clone();
    let segment = |piece: &Piece, offset, len| Segment { gpfn: piece.page, offset, len };
    assert_eq!(given.segments, [segment(&pieces[0], 1024, 2048), segment(&pieces[1], 0, 4096)]);
    assert_eq!((given.operation, given.sector), (Operation::Write, 7));
    assert!((8..512).filter(|gref| w.in_use(*gref)).count() == 3, "two pages and the ring");
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 1);
}

#[test]
fn bad_requests_are_refused() {
    let (mut w, mut front) = connected(disk(64));
    let page = whole(&mut w);
    let mut status = |operation, sector, pieces: &[Piece], indirect| {
        run(&mut w, &mut front, operation, sector, pieces, indirect)
    };
    assert_eq!(status(BlkifOp::READ, 56, &[page], false), 0);
    assert_eq!(status(BlkifOp::READ, 57, &[page], false), -1, "beyond the end");
    assert_eq!(status(BlkifOp::READ, u64::MAX - 3, &[page], false), -1);
    assert_eq!(status(BlkifOp::READ, 0, &[], false), -1, "nothing to read");
    assert_eq!(status(BlkifOp::WRITE, 0, &[], true), -1);
    let backwards = Piece { first: 4, last: 3, ..page };
    assert_eq!(status(BlkifOp::READ, 0, &[page, backwards], false), -1);
    let outside = Piece { first: 4, last: 8, ..page };
    assert_eq!(status(BlkifOp::READ, 0, &[outside], true), -1);
    assert_eq!(status(BlkifOp::FLUSH_DISKCACHE, 0, &[], true), -1);
    assert_eq!(status(BlkifOp::RESERVED_1, 0, &[], false), -2);
    assert_eq!(status(BlkifOp(99), 0, &[], false), -2);
    let many: Vec<Piece> = (0..33).map(|_| Piece { first: 0, last: 0, ..page }).collect();
    assert_eq!(status(BlkifOp::READ, 0, &many, true), -1, "more segments than offered");
    assert_eq!(status(BlkifOp::READ, 0, &many[..32], true), 0);
    assert_eq!(status(BlkifOp::READ, 0, &[page], false), 0, "and it goes on");
}

#[test]
fn grants_must_allow_it() {
    // Read only, for another domain, for a frame that is not the guest's, for none at all.
    let spoil: [fn(u64) -> u64; 4] =
        [|entry| entry | 4, |entry| entry | 1 << 16, |entry| entry | 1 << 63, |_| 0];
    for spoil in spoil {
        let (mut w, mut front) = connected(disk(64));
        let page = whole(&mut w);
        let id = front.transfer(&mut w, BlkifOp::READ, 0, &[page, page], false);
        // Grant 8 is the ring, 9 and 10 are the pages.
        let at = translate::fake::va(10).add(10 * 8);
        w.machine.plat.poke(at, spoil(w.machine.plat.peek(at)));
        front.flush(&w);
        assert!(w.vbd.device().state().log.is_empty());
        assert_eq!(statuses(&front.responses(&mut w)), [(id, -1)]);
    }
}

#[test]
fn read_only_disks_and_drives() {
    let info = DeviceInfo { read_only: true, cdrom: true, removable: true, ..disk(64) };
    let (mut w, mut front) = connected(info);
    let back = |name| w.store.back(name).unwrap();
    assert_eq!((back("info").as_str(), back("mode").as_str()), ("7", "r"));
    assert_eq!((back("device-type").as_str(), back("feature-discard").as_str()), ("cdrom", "0"));
    let page = whole(&mut w);
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE, 0, &[page], false), -1);
    assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE_BARRIER, 0, &[page], false), -1);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
    front.discard(&w, 0, 8, 0);
    front.flush(&w);
    assert_eq!(front.responses(&mut w)[0].status, -1);
}

/// Sectors of 4096 bytes: numbers stay in units of 512, and what is not whole sectors is refused.
#[test]
fn large_sectors() {
    let info = DeviceInfo { logical_bytes: 4096, ..disk(1024) };
    let (mut w, mut front) = connected(info);
    assert_eq!(w.store.back("sectors").unwrap(), "1024");
    assert_eq!(w.store.back("sector-size").unwrap(), "4096");
    let page = whole(&mut w);
    let half = Piece { last: 3, ..page };
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 8, &[page], false), 0);
    assert_eq!(w.vbd.device().state().log[0].sector, 8);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 9, &[page], false), -1);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 8, &[half, half], false), -1);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 1016, &[page], false), 0);
}

/// What does not fit into one request of the device becomes several, and one response.
#[test]
fn splitting() {
    let split = |change: fn(&mut DeviceInfo), count: usize| {
        let mut info = disk(4096);
        change(&mut info);
        let (mut w, mut front) = connected(info);
        let pieces: Vec<Piece> = (0..20).map(|_| whole(&mut w)).collect();
        set_page_bytes(&w.machine.plat, pieces[19].page, 0, b"last");
        assert_eq!(run(&mut w, &mut front, BlkifOp::WRITE, 64, &pieces, true), 0);
        assert_eq!(w.vbd.device().state().log.len(), count);
        assert_eq!(w.vbd.device().state().data[(64 + 19 * 8) * 512..][..4], *b"last");
    };
    split(|info| (info.max_segments, info.max_transfer_bytes) = (64, 1 << 20), 1);
    split(|info| info.max_transfer_bytes = 8192, 10);
    split(|info| info.max_segments = 3, 7);
    split(|info| info.no_gaps = true, 2);
    // Gaps cut a request where the device cannot have them.
    let (mut w, mut front) = connected(DeviceInfo { no_gaps: true, ..disk(64) });
    let mut piece = |first, last| Piece { first, last, page: w.page() };
    let pieces = [piece(4, 7), piece(0, 7), piece(0, 2), piece(5, 6), piece(0, 7)];
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &pieces, false), 0);
    let lens: Vec<_> = w.vbd.device().state().log.iter().map(|io| io.segments.len()).collect();
    assert_eq!(lens, [3, 1, 1]);
}

#[test]
fn discards() {
    let (mut w, mut front) = connected(disk(1024));
    let mut discard = |sector, sectors| {
        front.discard(&w, sector, sectors, 1);
        front.flush(&w);
        w.drain();
        front.responses(&mut w)[0].status
    };
    assert_eq!(discard(100, 150), 0);
    assert_eq!(discard(1000, 25), -1);
    assert_eq!(discard(u64::MAX, 2), -1);
    assert_eq!(discard(5, 0), 0);
    let state = w.vbd.device().state();
    let parts: Vec<_> = state.log.iter().map(|io| (io.sector, io.operation)).collect();
    let part = |sectors| Operation::Discard { sectors, secure: false };
    assert_eq!(parts, [(100, part(64)), (164, part(64)), (228, part(22))]);
    assert!(state.data[100 * 512..250 * 512].iter().all(|byte| *byte == 0));
    assert_ne!(state.data[250 * 512 + 1], 0);
    drop(state);
    let (mut w, mut front) = connected(DeviceInfo { discard: None, ..disk(64) });
    front.discard(&w, 0, 8, 0);
    front.flush(&w);
    assert_eq!(front.responses(&mut w)[0].status, -2);
}

#[test]
fn errors_of_the_device() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    let cases = [(IoError::Io, -1), (IoError::NoSpace, -1), (IoError::Unsupported, -2)];
    for (error, status) in cases {
        w.vbd.device().state().fail.push_back(error);
        assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), status);
        w.vbd.device().state().fail_submit.push_back(error);
        assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), status);
    }
    assert_eq!(w.store.back("feature-flush-cache").unwrap(), "1");
    // A device that turns out not to flush says so from then on.
    w.vbd.device().state().fail.push_back(IoError::Unsupported);
    assert_eq!(run(&mut w, &mut front, BlkifOp::FLUSH_DISKCACHE, 0, &[], false), -2);
    assert_eq!(w.store.back("feature-flush-cache").unwrap(), "0");
    assert_eq!(w.store.back("feature-barrier").unwrap(), "0");
    // Part of a split request fails: all of it does, once.
    let pieces: Vec<Piece> = (0..20).map(|_| whole(&mut w)).collect();
    w.vbd.device().state().fail.push_back(IoError::Io);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &pieces, true), -1);
}
