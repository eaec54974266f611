//! Both ABIs under real concurrency.

use std::sync::atomic::AtomicUsize;

use super::*;

/// Senders, a mover and consumers on real threads: nothing is lost, nothing deadlocks.
fn threads(fifo: bool) {
    const SENDERS: u32 = 2;
    const EVENTS: u32 = 20_000;
    let mut m = Machine::with(64, 2);
    unmask_upcalls(&m);
    if fifo {
        start_fifo(&mut m);
    }
    for _ in 0..PORTS {
        alloc(&mut m, SELF);
    }
    let m = &m;
    let (dom, plat) = (&*m.dom, &m.plat);
    let busy = &AtomicUsize::new(SENDERS as usize + 1);
    let state = |port| dom.evtchn.state(port).expect("a port");
    let unmask = |port| {
        if fifo {
            fifo::unmask(dom, plat, Here::NOWHERE, port, state(port));
        } else {
            two_level::unmask(dom, plat, Here::NOWHERE, port, state(port).vcpu());
        }
    };
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            scope.spawn(move || {
                for event in 0..EVENTS {
                    let port = 1 + (event * (sender + 5) + event / 7) % PORTS;
                    set_pending(dom, plat, Here::NOWHERE, port, state(port));
                }
                busy.fetch_sub(1, SeqCst);
            });
        }
        // As Linux moves an event: mask, bind, unmask.
        scope.spawn(move || {
            let guest = Guest { fifo, heads: Default::default() };
            for round in 0..3000 {
                let port = 1 + round % PORTS;
                guest.mask(m, port);
                let slot = dom.evtchn.port(port).expect("a port");
                {
                    let _config = dom.evtchn.config.lock();
                    let moved = slot.state().with_vcpu(round / PORTS % 2);
                    slot.set_state(if fifo { moved.with_priority(round % 16) } else { moved });
                }
                unmask(port);
            }
            busy.fetch_sub(1, SeqCst);
        });
        for vcpu in 0..2 {
            scope.spawn(move || {
                let mut guest = Guest { fifo, heads: Default::default() };
                while busy.load(SeqCst) != 0 {
                    guest.consume(m, vcpu);
                    std::thread::yield_now();
                }
                guest.consume(m, vcpu);
            });
        }
    });
    // What was sent while a port was being moved may wait on the other vCPU; one more round of
    // upcalls must find everything, and without an upcall there must be nothing to find.
    for port in 1..=PORTS {
        let left = if fifo {
            dom.evtchn.fifo.is_pending(plat, port)
        } else {
            two_level::is_pending(dom, port)
        };
        let upcalls = m.vcpus.iter().any(|v| v.entry.info.evtchn_upcall_pending.load(SeqCst) != 0);
        assert!(!left || upcalls, "port {port} is pending and nobody was told");
    }
}

#[test]
fn two_level_threads() {
    threads(false);
}

#[test]
fn fifo_threads() {
    for _ in 0..5 {
        threads(true);
    }
}
