//! Kicks, completions and the handshake on several processors at once.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use xen_abi::io::ring::REQ_PROD;

use super::*;

const REQUESTS: u32 = 480;

#[test]
fn every_request_is_answered_once() {
    let limits = Limits { queues: 1, ring_page_order: 4, requests: 8, max_segments: 32 };
    let mut w = World::with(disk(1024), limits);
    w.vbd.announce(&w.store).unwrap();
    let mut front = connect(&mut w, Layout::X86_64, 4, 1).pop().unwrap();
    let page = whole(&mut w);
    w.vbd.device().state().room = 5;
    for n in 0..REQUESTS {
        let flush = n % 50 == 7;
        let (operation, pieces) =
            if flush { (BlkifOp::WRITE_BARRIER, &[][..]) } else { (BlkifOp::READ, &[page][..]) };
        front.transfer(&mut w, operation, n.into(), pieces, false);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (w, done) = (&w, &done);
        for kicker in 0..2 {
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    w.vbd.kicked(&w.env(), 0);
                    if kicker == 1 {
                        w.vbd.frontend_changed(&w.env(), &w.store);
                    }
                    std::thread::yield_now();
                }
            });
        }
        for completer in 0..2usize {
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    if w.complete_any(completer) {
                        w.vbd.settle(&w.env(), &w.store);
                    }
                    std::thread::yield_now();
                }
            });
        }
        // The frontend shows its requests a few at a time.
        for shown in (0..=REQUESTS).step_by(8) {
            front.store(w, REQ_PROD, shown);
            std::thread::yield_now();
        }
        let answered = || front.load(w, xen_abi::io::ring::RSP_PROD) == REQUESTS;
        for _ in 0..20_000 {
            if answered() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        done.store(true, Relaxed);
        assert!(answered(), "some were never answered");
    });
    assert_eq!(front.responses(&mut w).len() as u32, REQUESTS);
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    assert!(!(0..512).any(|gref| w.in_use(gref)));
}
