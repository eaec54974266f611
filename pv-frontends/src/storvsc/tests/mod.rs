//! Controllers against a host of plain memory.

mod bench;
mod host;
mod patience;
mod scans;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use bench::{Bench, Notes, PRIMARY, segment};
use host::{Fault, Host, Medium};
use hv_abi::scsi::{AdditionalSense, Opcode, SenseKey};
use hv_abi::storvsc::Version;
use hv_abi::vmbus::offer::interface;

use super::*;
use crate::blkback::{BlockDevice, Io, IoError, Operation as Op, Submitted, Tag};
use crate::vmbus::fake::Fake;
use crate::vmbus::{Driver, VmBus};

const SECOND: u64 = 1_000_000_000;

#[test]
fn versions_step_down_in_strict_order() {
    for (nr, version) in Version::ALL.into_iter().enumerate() {
        let mut bench = Bench::new(Config::default(), version, vec![(0, Medium::disk(64))]);
        bench.run();
        assert!(bench.driver.is_settled());
        assert_eq!(bench.notes.units.lock().len(), 1, "{version:?}");
        let mut expected = vec![7];
        expected.extend(vec![9; nr + 1]);
        expected.extend([10, 8]);
        assert_eq!(bench.host.operations, expected);
        // Commands are as long as the version says.
        let lengths: Vec<_> = bench.host.lengths.iter().copied().collect();
        assert_eq!(lengths, [if version < Version::V5_1 { 48 } else { 64 }]);
        assert_eq!(bench.host.signals_missed, 0);
    }
}

#[test]
fn what_a_scan_finds() {
    let mut large = Medium::disk(3 << 32);
    large.write_protected = true;
    large.capacity_10_only = true;
    let mut native = Medium::disk(1 << 20);
    native.block_bytes = 4096;
    let mut old = Medium::disk(100);
    old.capacity_10_only = true;
    old.no_pages = true;
    let media = vec![(0, Medium::disk(4096)), (7, native), (9, old), (63, Medium::cdrom())];
    let mut bench = Bench::new(Config::default(), Version::V6_2, media);
    bench.run();
    let luns: Vec<_> = bench.notes.units.lock().keys().copied().collect();
    assert_eq!(luns, [0, 7, 9, 63]);

    let info = bench.disk(0).unit().info();
    assert_eq!(info.identifier.bytes(), [0x60, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(info.rotates, Some(false));
    let device = info.device;
    assert_eq!((device.sectors, device.logical_bytes, device.physical_bytes), (4096, 512, 4096));
    assert!(!device.read_only && !device.cdrom && device.flush && device.no_gaps);
    assert_eq!((device.max_transfer_bytes, device.max_segments), (128 << 10, 65));
    let discard = device.discard.expect("it unmaps");
    assert_eq!((discard.granularity, discard.alignment, discard.max_sectors), (4096, 512, 2048));

    let device = bench.disk(7).info();
    assert_eq!((device.sectors, device.logical_bytes), (8 << 20, 4096));
    let device = bench.disk(9).info();
    assert_eq!((device.sectors, device.discard, device.flush), (100, None, true));
    let device = bench.disk(63).info();
    assert!(device.cdrom && device.read_only && device.removable);
    assert_eq!(device.sectors, 0, "no medium");
}

#[test]
fn hosts_without_a_list_are_asked_unit_by_unit() {
    let media = vec![(3, Medium::disk(8)), (63, Medium::disk(8))];
    let mut bench = Bench::new(Config::default(), Version::V5_1, media);
    bench.host.no_report_luns = true;
    bench.run();
    let luns: Vec<_> = bench.notes.units.lock().keys().copied().collect();
    assert_eq!(luns, [3, 63]);
}

#[test]
fn an_ide_port_has_one_unit() {
    let mut bench = Bench::new(Config::default(), Version::V6_2, vec![(0, Medium::disk(8))]);
    bench.host.server.offers.clear();
    bench.host.server.offer(9, interface::IDE, 0, 0);
    bench.host.server.offers.get_mut(&9).expect("offered").interface_instance.0[4] = 1;
    bench.host.target = 1;
    bench.run();
    let unit = Arc::clone(bench.disk(0).unit());
    assert_eq!(unit.address(), UnitAddress { path: 0, target: 1, lun: 0 });
    assert!(!bench.host.commands.contains(&Opcode::REPORT_LUNS));
    let (gpfn, _) = bench.page();
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 512)]), Ok(()));
}

#[test]
fn data_goes_both_ways() {
    let mut bench = Bench::ready();
    let pages: Vec<_> = (0..4).map(|_| bench.page()).collect();
    for (nr, (_, page)) in pages.iter().enumerate() {
        for (at, word) in page.iter().enumerate() {
            word.store((nr * 1000 + at) as u64, core::sync::atomic::Ordering::Relaxed);
        }
    }
    // A run that begins and ends inside pages: 512 + 4096 + 1536 bytes.
    let run = [
        segment(pages[0].0, 3584, 512),
        segment(pages[1].0, 0, 4096),
        segment(pages[2].0, 0, 1536),
    ];
    assert_eq!(bench.io(Op::Write, 10, &run), Ok(()));
    let data = &bench.host.media[&0].data;
    let word = |at: usize| u64::from_le_bytes(data[at * 8..at * 8 + 8].try_into().expect("8"));
    assert_eq!(word(10 * 64), 448);
    assert_eq!(word(11 * 64), 1000);
    assert_eq!(word(19 * 64), 2000);
    assert_eq!((word(22 * 64 - 1), word(22 * 64)), (2191, 0));

    let back = bench.page();
    assert_eq!(bench.io(Op::Read, 11, &[segment(back.0, 1024, 512)]), Ok(()));
    let word = |at: usize| back.1[at].load(core::sync::atomic::Ordering::Relaxed);
    assert_eq!((word(127), word(128), word(191), word(192)), (0, 1000, 1063, 0));
    assert_eq!(bench.host.signals_missed, 0);
}

#[test]
fn flush_and_discard() {
    let mut bench = Bench::ready();
    assert_eq!(bench.io(Op::Flush, 0, &[]), Ok(()));
    assert_eq!(bench.host.commands.last(), Some(&Opcode::SYNCHRONIZE_CACHE_10));
    let discard = |sectors| Op::Discard { sectors, secure: false };
    assert_eq!(bench.io(discard(2048), 5, &[]), Ok(()));
    assert_eq!(bench.host.media[&0].unmapped, [(5, 2048)]);
    assert_eq!(bench.io(discard(2049), 0, &[]), Err(IoError::Io), "more than the limit");
    assert_eq!(bench.io(discard(0), 0, &[]), Err(IoError::Io));
    let secure = Op::Discard { sectors: 8, secure: true };
    assert_eq!(bench.io(secure, 0, &[]), Err(IoError::Unsupported));
}

#[test]
fn requests_the_device_does_not_take() {
    let mut bench = Bench::ready();
    let (gpfn, _) = bench.page();
    let whole = segment(gpfn, 0, 4096);
    assert_eq!(bench.io(Op::Read, 4089, &[whole]), Err(IoError::Io), "over the end");
    assert_eq!(bench.io(Op::Read, u64::MAX, &[whole]), Err(IoError::Io));
    assert_eq!(bench.io(Op::Read, 0, &[]), Err(IoError::Io));
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 100)]), Err(IoError::Io));
    assert_eq!(bench.io(Op::Read, 0, &[whole; 33]), Err(IoError::Io), "more than the limit");
    let gap = [segment(gpfn, 0, 512), segment(gpfn, 1024, 512)];
    assert_eq!(bench.io(Op::Read, 0, &gap), Err(IoError::Io));
    let beyond = [segment(1 << 40, 0, 512)];
    assert_eq!(bench.io(Op::Read, 0, &beyond), Err(IoError::Io));
    assert_eq!(bench.io(Op::Read, 0, &[whole; 32]), Ok(()));
    bench.host.media.get_mut(&0).expect("there").write_protected = true;
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert!(bench.disk(0).info().read_only);
    assert_eq!(*bench.notes.changed.lock(), [0]);
    assert_eq!(bench.io(Op::Write, 0, &[whole]), Err(IoError::Io));
}

#[test]
fn failures_and_news_of_the_device() {
    let mut bench = Bench::ready();
    let (gpfn, _) = bench.page();
    let run = [segment(gpfn, 0, 4096)];
    let sense = |key, code| Fault::Sense(key, AdditionalSense(code));
    for (faults, result) in [
        (vec![sense(SenseKey::MEDIUM_ERROR, 0x1100)], Err(IoError::Io)),
        (vec![sense(SenseKey::DATA_PROTECT, 0x2707)], Err(IoError::NoSpace)),
        (vec![sense(SenseKey::UNIT_ATTENTION, 0x2900)], Ok(())),
        (vec![sense(SenseKey::UNIT_ATTENTION, 0x2900); 7], Ok(())),
        (vec![sense(SenseKey::UNIT_ATTENTION, 0x2900); 8], Err(IoError::Io)),
        (vec![Fault::Short(512)], Err(IoError::Io)),
        (vec![Fault::Garbage], Err(IoError::Io)),
    ] {
        bench.host.faults = faults.clone().into();
        assert_eq!(bench.io(Op::Read, 0, &run), result, "{faults:?}");
        assert!(bench.host.faults.is_empty());
    }
    // A device that is busy is asked again later.
    bench.host.faults = vec![Fault::Busy; 3].into();
    let disk = bench.disk(0);
    let io = Io { operation: Op::Read, sector: 0, segments: &run };
    assert_eq!(disk.submit(0, &io, Tag(1)), Submitted::Accepted);
    disk.commit(0);
    let mut waited = 0;
    while bench.completed() != [(1, Ok(()))] {
        bench.pass(SECOND / 1000);
        waited += 1;
        assert!(waited < 100);
    }
    assert!(waited >= 70, "10, 20 and 40 ms: {waited}");
}

#[test]
fn the_unit_grew() {
    let mut bench = Bench::ready();
    let medium = bench.host.media.get_mut(&0).expect("there");
    medium.grow(8192);
    let news = Fault::Sense(SenseKey::UNIT_ATTENTION, AdditionalSense::CAPACITY_DATA_CHANGED);
    bench.host.faults.push_back(news);
    let (gpfn, _) = bench.page();
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 512)]), Ok(()));
    assert_eq!(bench.disk(0).info().sectors, 8192);
    assert_eq!(*bench.notes.changed.lock(), [0]);
}

#[test]
fn units_come_and_go() {
    let mut bench = Bench::ready();
    let gone = bench.disk(0);
    bench.host.media.insert(5, Medium::disk(16));
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(bench.notes.units.lock().len(), 2);
    bench.host.media.remove(&0);
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(*bench.notes.removed.lock(), [0]);
    let (gpfn, _) = bench.page();
    let io = Io { operation: Op::Read, sector: 0, segments: &[segment(gpfn, 0, 512)] };
    assert_eq!(gone.submit(0, &io, Tag(1)), Submitted::Failed(IoError::Removed));
    // Another disk in its place is another unit.
    let mut other = Medium::disk(16);
    other.name = 9;
    bench.host.media.insert(5, other);
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(*bench.notes.removed.lock(), [0, 5]);
    assert_eq!(bench.disk(5).unit().info().identifier.bytes()[7], 9);
    assert_eq!(bench.driver.bogus(), 0);
}

#[test]
fn a_unit_goes_after_its_requests() {
    let mut bench = Bench::ready();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let io = Io { operation: Op::Read, sector: 0, segments: &[segment(gpfn, 0, 512)] };
    bench.host.faults.push_back(Fault::Keep);
    assert_eq!(disk.submit(0, &io, Tag(1)), Submitted::Accepted);
    disk.commit(0);
    bench.run();
    bench.host.media.remove(&0);
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    // The host may still write to the page.
    assert_eq!(*bench.notes.removed.lock(), []);
    assert_eq!(bench.completed(), []);
    assert_eq!(disk.submit(0, &io, Tag(2)), Submitted::Failed(IoError::Removed));
    // It answers when it is asked to give up.
    for seconds in [181, 2, 1] {
        bench.pass(seconds * SECOND);
    }
    assert_eq!(bench.completed(), [(1, Err(IoError::Removed))]);
    assert_eq!(*bench.notes.removed.lock(), [0]);
    assert_eq!(bench.driver.bogus(), 0);
}

#[test]
fn full_queues_push_back() {
    let config = Config { requests: 4, ..Config::default() };
    let media = vec![(0, Medium::disk(4096))];
    let mut bench = Bench::new(config, Version::V6_2, media);
    bench.run();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    for tag in 0..4 {
        assert_eq!(disk.submit(0, &io, Tag(tag)), Submitted::Accepted);
    }
    *bench.notes.settled.lock() = 0;
    assert_eq!(disk.submit(0, &io, Tag(9)), Submitted::Busy);
    disk.commit(0);
    bench.run();
    let tags: Vec<_> = bench.completed().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(tags, [0, 1, 2, 3]);
    assert!(*bench.notes.settled.lock() >= 1);
    assert_eq!(disk.submit(0, &io, Tag(9)), Submitted::Accepted);

    // The ring, too: large requests, many slots.
    let config = Config { requests: 1000, outgoing_pages: 4, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.run();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 4096); 32];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    let mut accepted = 0;
    while disk.submit(0, &io, Tag(accepted)) == Submitted::Accepted {
        accepted += 1;
    }
    assert!((40..50).contains(&accepted), "{accepted}");
    disk.commit(0);
    bench.run();
    assert_eq!(bench.completed().len() as u64, accepted);
    assert!(*bench.notes.settled.lock() >= 1);
    assert_eq!(bench.host.signals_missed, 0);
}

#[test]
fn a_full_channel_leaves_the_rest_to_others() {
    let config =
        Config { vps: vec![0, 1, 2, 3], max_sub_channels: 3, requests: 4, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.host.max_sub_channels = 8;
    bench.run();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    for tag in 0..16 {
        assert_eq!(disk.submit(2, &io, Tag(tag)), Submitted::Accepted);
    }
    assert_eq!(disk.submit(2, &io, Tag(16)), Submitted::Busy);
    disk.commit(2);
    bench.host.by_channel.clear();
    bench.run();
    assert_eq!(bench.completed().len(), 16);
    assert!(bench.host.by_channel.values().all(|count| *count == 4), "{:?}", bench.host.by_channel);
    assert_eq!(bench.host.signals_missed, 0);
}

#[test]
fn sub_channels_share_the_work() {
    let config = Config { vps: vec![0, 1, 2, 3], max_sub_channels: 3, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.host.max_sub_channels = 8;
    bench.run();
    assert_eq!(bench.host.operations, [7, 9, 10, 13, 8]);
    let targets: Vec<_> =
        bench.host.server.channels.values().map(|channel| channel.open.target_vp).collect();
    assert_eq!(targets, [0, 1, 2, 3]);
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    for queue in 0..8 {
        let io = Io { operation: Op::Read, sector: 0, segments: &segments };
        assert_eq!(disk.submit(queue, &io, Tag(u64::from(queue))), Submitted::Accepted);
        disk.commit(queue);
    }
    bench.host.by_channel.clear();
    bench.run();
    assert_eq!(bench.completed().len(), 8);
    assert!(bench.host.by_channel.values().all(|count| *count == 2), "{:?}", bench.host.by_channel);

    // Hosts that refuse them do with one channel.
    let config = Config { vps: vec![0, 1], max_sub_channels: 1, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.host.max_sub_channels = 8;
    bench.host.refuse_sub_channels = true;
    bench.run();
    assert_eq!(bench.host.operations, [7, 9, 10, 13, 8]);
    assert_eq!(bench.notes.units.lock().len(), 1);
}

#[test]
fn a_rescinded_controller_fails_its_requests() {
    let mut bench = Bench::ready();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    for tag in 0..3 {
        assert_eq!(disk.submit(0, &io, Tag(tag)), Submitted::Accepted);
    }
    bench.host.rescind(&bench.bus, PRIMARY);
    let removed = Err(IoError::Removed);
    assert_eq!(bench.completed(), [(0, removed), (1, removed), (2, removed)]);
    assert_eq!(*bench.notes.removed.lock(), [0]);
    assert_eq!(disk.submit(0, &io, Tag(9)), Submitted::Failed(IoError::Removed));
    bench.pass(2 * SECOND);
    assert_eq!(bench.fake.pages_in_use(), 3 + 1, "the bus's, and the guest's");
    assert_eq!(bench.host.server.released, [PRIMARY]);

    bench.host.reset();
    bench.host.server.offer(PRIMARY, interface::SCSI, 1, 0);
    bench.host.server.announce(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()));
}

/// What the host has on a sub-channel is its own until it lets that go, too.
#[test]
fn units_go_with_the_last_channel() {
    let config = Config { vps: vec![0, 1], max_sub_channels: 1, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.host.max_sub_channels = 1;
    bench.run();
    let sub_channel = *bench.host.server.channels.keys().find(|id| **id != PRIMARY).unwrap();
    let disk = bench.disk(0);
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    for queue in 0..2 {
        assert_eq!(disk.submit(queue, &io, Tag(queue.into())), Submitted::Accepted);
    }
    bench.host.rescind(&bench.bus, PRIMARY);
    assert_eq!(bench.completed().len(), 1, "that of the primary channel");
    assert!(bench.notes.removed.lock().is_empty());
    bench.host.rescind(&bench.bus, sub_channel);
    assert_eq!(bench.completed().len(), 1);
    assert_eq!(*bench.notes.removed.lock(), [0]);
    bench.pass(2 * SECOND);
    assert_eq!(bench.fake.pages_in_use(), 3 + 1, "the bus's, and the guest's");
}

#[test]
fn late_requests_reset_the_bus_then_close_the_channel() {
    let mut bench = Bench::ready();
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    let io = Io { operation: Op::Read, sector: 0, segments: &segments };
    // A host that gives up on requests when it is told to.
    bench.host.faults.push_back(Fault::Keep);
    assert_eq!(bench.disk(0).submit(0, &io, Tag(1)), Submitted::Accepted);
    bench.disk(0).commit(0);
    let deadline = bench.fake.inner().now_ns + 180 * SECOND;
    assert!(bench.bus.next_poll_ns() <= deadline, "somebody will look");
    bench.pass(179 * SECOND);
    assert_eq!(bench.completed(), []);
    bench.pass(2 * SECOND);
    assert_eq!(bench.host.operations.last(), Some(&6));
    bench.pass(SECOND);
    assert_eq!(bench.completed(), [(1, Ok(()))], "sent again after the reset");

    // One that does not: the pages are the guest's when the channel is closed, not before.
    bench.host.faults.push_back(Fault::Keep);
    bench.host.deaf_to_resets = true;
    assert_eq!(bench.disk(0).submit(0, &io, Tag(2)), Submitted::Accepted);
    bench.disk(0).commit(0);
    bench.pass(181 * SECOND);
    assert_eq!(bench.completed(), []);
    bench.host.reset();
    bench.pass(181 * SECOND);
    assert_eq!(bench.completed(), [(2, Err(IoError::Io))]);
    // And it is opened again.
    assert!(bench.driver.is_settled());
    assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()));
    assert_eq!(*bench.notes.removed.lock(), []);
}

#[test]
fn a_broken_ring_is_opened_again() {
    let mut bench = Bench::ready();
    let (gpfn, _) = bench.page();
    let segments = [segment(gpfn, 0, 512)];
    for round in 0..4 {
        let io = Io { operation: Op::Read, sector: 0, segments: &segments };
        assert_eq!(bench.disk(0).submit(0, &io, Tag(1)), Submitted::Accepted);
        bench.host.corrupt(&bench.bus, PRIMARY);
        bench.host.reset();
        bench.run();
        assert_eq!(bench.completed(), [(1, Err(IoError::Io))]);
        if round < 3 {
            assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()), "{round}");
        }
    }
    // It breaks again and again.
    assert_eq!(*bench.notes.removed.lock(), [0]);
    assert!(bench.driver.is_settled());
}

#[test]
fn answers_to_nothing_are_counted() {
    let mut bench = Bench::ready();
    for id in [0, 1, 63, 64, 0xffff, 1 << 16, 1 << 32, (1 << 32) + 63, u64::MAX] {
        bench.host.complete_raw(&bench.bus, PRIMARY, id, &[1, 0, 0, 0]);
    }
    assert_eq!(bench.driver.bogus(), 9);
    bench.host.in_band_raw(&bench.bus, PRIMARY, &[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.host.in_band_raw(&bench.bus, PRIMARY, &[]);
    assert_eq!(bench.driver.bogus(), 11);
    assert_eq!(bench.completed(), []);
    let (gpfn, _) = bench.page();
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 512)]), Ok(()));
}

#[test]
fn a_host_that_refuses_everything() {
    let mut bench = Bench::new(Config::default(), Version(0x0200), vec![(0, Medium::disk(8))]);
    bench.run();
    assert!(bench.driver.is_settled());
    assert_eq!(bench.notes.units.lock().len(), 0);
    assert_eq!(bench.host.operations, [7, 9, 9, 9, 9]);
    let fake = Fake::default();
    fake.inner().free_pages = 5;
    let driver = Arc::new(StorVsc::new(Arc::new(Notes::default()), Config::default()));
    let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
    let bus = VmBus::new(fake.clone(), drivers);
    let mut host = Host::new(fake, Version::V6_2);
    host.server.offer(PRIMARY, interface::SCSI, 1, 0);
    bus.connect();
    host.run(&bus);
    assert!(driver.is_settled());
}
