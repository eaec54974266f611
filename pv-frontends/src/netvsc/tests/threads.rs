//! Several processors at once.

use core::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use super::*;

const PACKETS: u64 = 120;
const QUEUES: u32 = 3;

/// Counts a thread out, also one that panics: nobody waits for it then.
struct Leaves<'a>(&'a AtomicU64);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Ends the others, also when the host panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sends on a queue until all are on their way, with others' settings and polls in between.
fn sender(
    nic: &Nic<Arc<VmBus<Fake>>>,
    queue: u32,
    pages: &[Vec<TxFragment>],
    tags: &AtomicU64,
    done: &AtomicBool,
) {
    for nr in 0..PACKETS {
        let fragments = &pages[nr as usize % pages.len()];
        let tag = Tag(u64::from(queue) << 32 | nr);
        loop {
            match nic.submit(queue, &plain(fragments), tag) {
                TxSubmitted::Queued => {
                    tags.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                TxSubmitted::Copied => break,
                TxSubmitted::Busy if done.load(Ordering::Acquire) => return,
                TxSubmitted::Busy => {
                    nic.commit(queue);
                    thread::yield_now();
                }
                TxSubmitted::Refused(why) => panic!("{why:?}"),
            }
        }
        if nr % 5 == 0 {
            nic.commit(queue);
        }
    }
    nic.commit(queue);
}

/// All send; the host answers, sends, and `disturbs` from time to time.
fn everybody(disturb: impl Fn(&mut Bench, u32)) {
    let mut bench = Bench::ready_with(queues(QUEUES as u16), |_| {});
    let sizes = [60, 1000, 14, 512, 1514, 513];
    let pages: Vec<_> =
        sizes.iter().map(|len| bench.fragments(&frame(*len, 1), &[len / 2])).collect();
    let (queued, left) = (AtomicU64::new(0), AtomicU64::new(QUEUES.into()));
    let done = AtomicBool::new(false);
    let bus = Arc::clone(&bench.bus);
    let mut received = 0;
    thread::scope(|scope| {
        for queue in 0..QUEUES {
            let nic = bench.nic();
            let (pages, queued, left, done) = (&pages, &queued, &left, &done);
            scope.spawn(move || {
                let _leaves = Leaves(left);
                sender(&nic, queue, pages, queued, done);
            });
        }
        let (nic, done) = (bench.nic(), &done);
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                bus.poll();
                let filter = RxFilter { directed: true, ..RxFilter::default() };
                nic.set_filter(filter).expect("it is there");
                (0..QUEUES).for_each(|queue| nic.resume(queue));
                assert!(nic.info().queues > 0);
                thread::yield_now();
            }
        });
        let _ends = Ends(done);
        let mut turn = 0;
        while left.load(Ordering::Acquire) > 0 {
            turn += 1;
            disturb(&mut bench, turn);
            *bench.notes.room.lock() = (turn % 3 == 0).then_some(2);
            let bus = Arc::clone(&bench.bus);
            let primary = bench.host.primary;
            for channel in bench.host.sub_channels().into_iter().chain([primary]) {
                let open = bench.host.server.channels.contains_key(&channel);
                if open && bench.host.receive(&bus, channel, &[(&frame(300, 1), &[])]) {
                    received += 1;
                }
            }
            bench.run();
        }
    });
    *bench.notes.room.lock() = None;
    for _ in 0..3 {
        (0..QUEUES).for_each(|queue| bench.nic().resume(queue));
        (0..QUEUES).for_each(|queue| bench.nic().commit(queue));
        bench.pass(SECOND);
    }
    assert_eq!(bench.ended().len() as u64, queued.load(Ordering::Relaxed));
    let sent = bench.host.sent.len() as u64;
    let lost = bench.count(Counter::TxLost);
    assert!(sent + lost >= PACKETS * u64::from(QUEUES));
    assert!(bench.got().len() <= received && received > 0);
    bench.assert_idle();
}

#[test]
fn nobody_waits_for_ever() {
    everybody(|_, _| {});
}

#[test]
fn nobody_waits_for_a_channel_that_goes() {
    everybody(|bench, turn| {
        if turn % 40 == 20 {
            let mtu = 1500 + turn % 7;
            bench.nic().set_mtu(mtu).expect("it can");
        }
        if turn % 40 == 39 {
            bench.offer_again();
        }
    });
}
