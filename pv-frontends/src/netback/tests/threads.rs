//! Kicks, completions, arrivals and the handshake on several processors at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use xen_abi::io::ring::RSP_PROD;

use super::*;
use crate::net::TxEnd;

const PACKETS: usize = 110;

/// Two queues share a card's queue that takes three packets: each is held up by the other, and told
/// only by its completions. Packets that come wait for slots. Nobody kicks but as the rings ask.
#[test]
fn nothing_is_left_behind() {
    let mut w = World::new(card(1));
    w.vif.announce(&w.store).unwrap();
    let (mut fronts, _) = connect_all(&mut w, Features { queues: 2, ..LINUX });
    w.vif.device().state().room = 3;
    for front in &mut fronts {
        for size in 0..PACKETS {
            front.send(&mut w, &Wish::new(Recipe::tcp(size).complete()));
        }
        (front.tx.req_prod, front.tx.rsp_cons) = (0, 0);
    }
    fronts[0].post(&mut w, PACKETS);
    fronts[0].rx.req_prod = 0;
    for size in 0..PACKETS {
        w.arrive(0, Frame::new(Recipe::tcp(size).complete()));
    }
    let (done, delivered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (w, done, delivered) = (&w, &done, &delivered);
        scope.spawn(move || {
            while !done.load(Relaxed) {
                if w.transmit_early(0, TxEnd::Sent) {
                    w.settle();
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(move || {
            while !done.load(Relaxed) {
                w.pump();
                let left = w.vif.device().state().inbox[0].0.len();
                delivered.store(PACKETS - left, Relaxed);
                w.vif.frontend_changed(&w.env(), &w.store);
                std::thread::yield_now();
            }
        });
        for (queue, front) in fronts.iter_mut().enumerate() {
            scope.spawn(move || {
                for shown in 1..=PACKETS as u32 {
                    front.tx.req_prod = shown;
                    front.flush(w);
                    if queue == 0 {
                        front.rx.req_prod = shown;
                        front.flush_rx(w);
                    }
                    std::thread::yield_now();
                }
                let answered = || front.tx.load(w, RSP_PROD) as usize == PACKETS;
                let received = || queue > 0 || delivered.load(Relaxed) == PACKETS;
                for _ in 0..20_000 {
                    if answered() && received() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                done.store(true, Relaxed);
                panic!("queue {queue}: left behind");
            });
        }
        while !done.load(Relaxed) {
            let answered = w.vif.counters().tx.packets as usize == 2 * PACKETS;
            let idle = w.vif.device().state().pending.is_empty();
            if answered && idle && delivered.load(Relaxed) == PACKETS {
                done.store(true, Relaxed);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    for front in &mut fronts {
        assert_eq!(statuses(front, &mut w), std::vec![0; PACKETS]);
    }
    let got = fronts[0].poll(&mut w);
    let sizes: Vec<_> = got.iter().map(|got| got.bytes.len()).collect();
    assert_eq!(sizes, (54..54 + PACKETS).collect::<Vec<_>>(), "in order");
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    fronts.into_iter().for_each(|front| front.destroy(&mut w));
}
