//! What scans make of hosts that do not answer as one would like.

use alloc::vec;

use hv_abi::scsi::Opcode;
use hv_abi::storvsc::Version;

use super::SECOND;
use super::bench::{Bench, PRIMARY, segment};
use super::host::Medium;
use crate::blkback::{BlockDevice, Operation as Op};
use crate::storvsc::Config;

fn rescan(bench: &mut Bench) {
    bench.host.commands.clear();
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert!(bench.driver.is_settled());
}

fn scans(bench: &Bench) -> usize {
    bench.host.commands.iter().filter(|opcode| **opcode == Opcode::REPORT_LUNS).count()
}

#[test]
fn a_scan_asked_for_before_the_last_one_was_told_of() {
    let mut bench = Bench::ready();
    bench.host.enumerate_behind = Some(Opcode::MODE_SENSE_6);
    rescan(&mut bench);
    assert_eq!(bench.host.enumerate_behind, None);
    assert_eq!(scans(&bench), 2);
    assert_eq!(*bench.notes.removed.lock(), []);
    let (gpfn, _) = bench.page();
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 512)]), Ok(()));
}

#[test]
fn a_unit_that_does_not_answer_stays() {
    let capacities = vec![(Opcode::SERVICE_ACTION_IN_16, 0), (Opcode::READ_CAPACITY_10, 0)];
    for failing in [vec![(Opcode::INQUIRY, 0)], capacities, vec![(Opcode::INQUIRY, 0x83)]] {
        let mut bench = Bench::ready();
        let before = bench.disk(0).unit().info();
        bench.host.failing = failing;
        rescan(&mut bench);
        assert_eq!(bench.disk(0).unit().info(), before);
        // It is asked again, now and then.
        for _ in 0..10 {
            bench.pass(6 * SECOND);
        }
        assert!((5..=7).contains(&scans(&bench)), "{}", scans(&bench));
        assert_eq!(*bench.notes.removed.lock(), []);
        assert_eq!(*bench.notes.changed.lock(), []);
        // Until it answers.
        bench.host.failing.clear();
        bench.host.media.get_mut(&0).expect("there").grow(8192);
        bench.pass(11 * SECOND);
        assert_eq!(bench.disk(0).info().sectors, 8192);
        bench.host.commands.clear();
        bench.pass(60 * SECOND);
        assert_eq!(scans(&bench), 0);
        // Then another disk is another disk.
        bench.host.media.get_mut(&0).expect("there").name = 7;
        rescan(&mut bench);
        assert_eq!(*bench.notes.removed.lock(), [0]);
        assert_eq!(bench.disk(0).unit().info().identifier.bytes()[7], 7);
    }
}

#[test]
fn a_list_that_fails_takes_no_unit_away() {
    let media = vec![(3, Medium::disk(8)), (200, Medium::disk(8))];
    let mut bench = Bench::new(Config::default(), Version::V6_2, media);
    bench.run();
    bench.host.no_report_luns = true;
    bench.host.media.remove(&3);
    rescan(&mut bench);
    assert_eq!(*bench.notes.removed.lock(), [3]);
    assert!(bench.notes.units.lock().contains_key(&200));
}

#[test]
fn a_name_that_is_told_late_is_no_other_disk() {
    let media = vec![(0, Medium::disk(4096))];
    let mut bench = Bench::new(Config::default(), Version::V6_2, media);
    bench.host.failing = vec![(Opcode::INQUIRY, 0x83)];
    bench.run();
    assert_eq!(bench.disk(0).unit().info().identifier.bytes(), []);
    bench.host.failing.clear();
    rescan(&mut bench);
    assert_eq!(*bench.notes.removed.lock(), []);
    assert_eq!(bench.disk(0).unit().info().identifier.bytes().len(), 8);
    // What the short command cannot say is no size.
    bench.host.failing = vec![(Opcode::SERVICE_ACTION_IN_16, 0)];
    bench.host.media.insert(1, Medium::disk(3 << 32));
    rescan(&mut bench);
    assert!(!bench.notes.units.lock().contains_key(&1));
}
