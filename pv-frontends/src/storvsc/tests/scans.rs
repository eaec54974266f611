//! What scans make of hosts that do not answer as one would like.

use hv_abi::scsi::Opcode;

use super::bench::{Bench, PRIMARY, segment};
use crate::blkback::Operation as Op;

#[test]
fn a_scan_asked_for_before_the_last_one_was_told_of() {
    let mut bench = Bench::ready();
    bench.host.commands.clear();
    bench.host.enumerate_behind = Some(Opcode::MODE_SENSE_6);
    bench.host.enumerate(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(bench.host.enumerate_behind, None);
    let scans = bench.host.commands.iter().filter(|opcode| **opcode == Opcode::REPORT_LUNS);
    assert_eq!(scans.count(), 2);
    assert_eq!(*bench.notes.removed.lock(), []);
    assert!(bench.driver.is_settled());
    let (gpfn, _) = bench.page();
    assert_eq!(bench.io(Op::Read, 0, &[segment(gpfn, 0, 512)]), Ok(()));
}
