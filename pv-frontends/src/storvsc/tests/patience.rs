//! Requests that take long, and devices that are busy.

use alloc::vec;
use alloc::vec::Vec;

use hv_abi::scsi::{AdditionalSense, Opcode, SenseKey};
use hv_abi::storvsc::{Operation, Version};
use hv_abi::vmbus::offer::interface;

use super::SECOND;
use super::bench::{Bench, PRIMARY, segment};
use super::host::{Fault, Medium};
use crate::blkback::{
    BlockDevice, Io, IoError, IoResult, Operation as Op, Segment, Submitted, Tag,
};
use crate::storvsc::Config;

const BEGIN_INITIALIZATION: u32 = 7;
const RESET_BUS: u32 = 6;

/// Submits a request that the host does not answer.
fn keep(bench: &mut Bench, tag: u64, segments: &[Segment]) {
    bench.host.faults.push_back(Fault::Keep);
    submit(bench, tag, segments);
}

fn submit(bench: &mut Bench, tag: u64, segments: &[Segment]) {
    let io = Io { operation: Op::Read, sector: 0, segments };
    assert_eq!(bench.disk(0).submit(0, &io, Tag(tag)), Submitted::Accepted);
    bench.disk(0).commit(0);
    bench.run();
}

fn count(bench: &Bench, operation: u32) -> usize {
    bench.host.operations.iter().filter(|other| **other == operation).count()
}

#[test]
fn the_host_has_time_to_reset_the_bus() {
    let mut bench = Bench::ready();
    let segments = [segment(bench.page().0, 0, 512)];
    bench.host.deaf_to_resets = true;
    keep(&mut bench, 1, &segments);
    bench.pass(SECOND);
    keep(&mut bench, 2, &segments);
    bench.pass(179 * SECOND);
    assert_eq!(count(&bench, RESET_BUS), 1);
    // The second is late, too.
    for _ in 0..179 {
        bench.pass(SECOND);
    }
    assert_eq!((count(&bench, RESET_BUS), count(&bench, BEGIN_INITIALIZATION)), (1, 1));
    assert_eq!(bench.completed(), []);
    bench.host.reset();
    bench.pass(SECOND);
    let failed = Err(IoError::Io);
    assert_eq!(bench.completed(), [(1, failed), (2, failed)]);
    assert_eq!(count(&bench, BEGIN_INITIALIZATION), 1, "opened again");
    assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()));
}

#[test]
fn a_reset_that_does_not_help_is_followed_by_a_close() {
    let mut bench = Bench::ready();
    let segments = [segment(bench.page().0, 0, 512)];
    bench.host.resets_nothing = true;
    keep(&mut bench, 1, &segments);
    bench.pass(181 * SECOND);
    assert_eq!(count(&bench, RESET_BUS), 1);
    bench.pass(170 * SECOND);
    assert_eq!(bench.completed(), []);
    bench.host.reset();
    bench.pass(11 * SECOND);
    assert_eq!(bench.completed(), [(1, Err(IoError::Io))]);
    assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()));
}

#[test]
fn a_reset_has_room_when_nothing_is_answered() {
    let config = Config { requests: 4, ..Config::default() };
    let mut bench = Bench::new(config, Version::V6_2, vec![(0, Medium::disk(4096))]);
    bench.run();
    let segments = [segment(bench.page().0, 0, 512)];
    (0..4).for_each(|tag| keep(&mut bench, tag, &segments));
    bench.pass(181 * SECOND);
    assert_eq!(count(&bench, RESET_BUS), 1);
    bench.pass(SECOND);
    assert_eq!(bench.completed(), [0, 1, 2, 3].map(|tag| (tag, Ok(()))));
}

#[test]
fn one_that_helped_does_not_count_against_later_requests() {
    let mut bench = Bench::ready();
    let segments = [segment(bench.page().0, 0, 512)];
    for round in 1..=3 {
        keep(&mut bench, round, &segments);
        bench.pass(181 * SECOND);
        assert_eq!(count(&bench, RESET_BUS), round as usize);
        // Sent while the first is tried again.
        keep(&mut bench, 10 + round, &segments);
        bench.pass(SECOND);
        assert_eq!(bench.completed(), [(round, Ok(()))]);
        bench.host.answer_kept(&bench.bus);
        bench.pass(5 * SECOND);
        assert_eq!(bench.completed(), [(10 + round, Ok(()))]);
    }
    assert_eq!(count(&bench, BEGIN_INITIALIZATION), 1);
}

#[test]
fn a_host_that_does_not_begin_again() {
    for refused in [
        Operation::BEGIN_INITIALIZATION,
        Operation::QUERY_PROTOCOL_VERSION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
    ] {
        let mut bench = Bench::ready();
        let segments = [segment(bench.page().0, 0, 512)];
        let io = Io { operation: Op::Read, sector: 0, segments: &segments };
        let disk = bench.disk(0);
        assert_eq!(disk.submit(0, &io, Tag(1)), Submitted::Accepted);
        bench.host.refuse = Some(refused);
        bench.host.corrupt(&bench.bus, PRIMARY);
        bench.host.reset();
        bench.run();
        assert_eq!(bench.completed(), [(1, Err(IoError::Io))], "{refused:?}");
        assert_eq!(*bench.notes.removed.lock(), [0]);
        assert_eq!(disk.submit(0, &io, Tag(2)), Submitted::Failed(IoError::Removed));
        assert_eq!(count(&bench, BEGIN_INITIALIZATION), 1, "no third time");
        assert!(bench.host.server.channels.is_empty() && bench.driver.is_settled());
        // A controller that is offered anew is a new one.
        bench.host.rescind(&bench.bus, PRIMARY);
        bench.pass(2 * SECOND);
        assert_eq!(bench.fake.pages_in_use(), 3 + 1, "the bus's, and the guest's");
        bench.host.reset();
        bench.host.refuse = None;
        bench.host.server.offer(PRIMARY, interface::SCSI, 1, 0);
        bench.host.server.announce(&bench.bus, PRIMARY);
        bench.run();
        assert_eq!(bench.io(Op::Read, 0, &segments), Ok(()));
    }
}

/// How long, in ms, a request takes that these faults befall, and how it ends.
fn befall(faults: Vec<Fault>) -> (u64, IoResult) {
    let mut bench = Bench::ready();
    let segments = [segment(bench.page().0, 0, 512)];
    bench.host.faults = faults.into();
    submit(&mut bench, 1, &segments);
    let mut waited_ms = 0;
    loop {
        if let [(1, result)] = bench.completed()[..] {
            return (waited_ms, result);
        }
        assert!(waited_ms < 300_000);
        bench.pass(10_000_000);
        waited_ms += 10;
    }
}

#[test]
fn busy_devices_and_aborted_commands() {
    let (waited_ms, result) = befall(vec![Fault::Busy; 100]);
    assert_eq!(result, Ok(()));
    assert!((90_000..100_000).contains(&waited_ms), "1 s at most: {waited_ms}");
    let (waited_ms, result) = befall(vec![Fault::Busy; 1000]);
    assert_eq!(result, Err(IoError::Io));
    assert!((180_000..=181_000).contains(&waited_ms), "{waited_ms}");
    let aborted = Fault::Sense(SenseKey::ABORTED_COMMAND, AdditionalSense::NONE);
    let (waited_ms, result) = befall(vec![aborted.clone(); 7]);
    assert_eq!(result, Ok(()));
    assert!((4000..5000).contains(&waited_ms), "{waited_ms}");
    assert_eq!(befall(vec![aborted; 8]).1, Err(IoError::Io));
}

#[test]
fn a_request_that_waits_does_not_go_to_another_disk() {
    let mut bench = Bench::ready();
    let segments = [segment(bench.page().0, 0, 512)];
    bench.host.faults.push_back(Fault::Busy);
    submit(&mut bench, 1, &segments);
    bench.host.media.clear();
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    bench.host.media.insert(0, Medium::disk(4096));
    bench.pass(SECOND);
    assert_eq!(bench.completed(), [(1, Err(IoError::Removed))]);
    assert_eq!(*bench.notes.removed.lock(), [0]);
    let reads = bench.host.commands.iter().filter(|opcode| **opcode == Opcode::READ_10);
    assert_eq!(reads.count(), 1);
}
