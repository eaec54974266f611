use std::vec;
use std::vec::Vec;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering as LoomOrdering, fence};
use loom::thread;
use proptest::prelude::*;

use super::*;

/// Words that loom watches: the header, and entries of one word.
struct Watched(Vec<AtomicU32>);

const ENTRY: usize = 4;
/// Bytes of a ring of two entries.
const BYTES: usize = 64 + 2 * ENTRY;

impl Watched {
    /// Both sides are awake: neither asked to be told.
    fn new() -> Arc<Self> {
        Arc::new(Self((0..BYTES / 4).map(|_| AtomicU32::new(0)).collect()))
    }
}

impl RingMemory for Arc<Watched> {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.0[word].load(order)
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.0[word].store(value, order);
    }
    fn barrier(&self) {
        fence(LoomOrdering::SeqCst);
    }
}

/// The frontend's `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY` for one request.
fn request(words: &Watched, index: u32, value: u32) -> bool {
    words.0[ENTRIES + index as usize % 2].store(value, LoomOrdering::Relaxed);
    words.0[REQ_PROD].store(index + 1, LoomOrdering::Release);
    fence(LoomOrdering::SeqCst);
    let event = words.0[REQ_EVENT].load(LoomOrdering::Relaxed);
    (index + 1).wrapping_sub(event) < 1
}

/// One that waits for two requests is told of the second, however they come.
#[test]
fn two_requests_are_waited_for() {
    loom::model(|| {
        let words = Watched::new();
        let told = Arc::new(AtomicBool::new(false));
        let front = {
            let (words, told) = (words.clone(), told.clone());
            thread::spawn(move || {
                let first = request(&words, 0, 1);
                if request(&words, 1, 2) || first {
                    told.store(true, LoomOrdering::Relaxed);
                }
            })
        };
        let mut back = BackRing::attach(words, BYTES, ENTRY).unwrap();
        let there = back.sleep_for(2).unwrap();
        front.join().unwrap();
        assert!(there || told.load(LoomOrdering::Relaxed), "asleep, and not told");
        assert_eq!(back.waiting(), Ok(2));
    });
}

/// No request is left behind: what the backend does not see before it sleeps, it is told of; and
/// what it takes is what was written.
#[test]
fn no_request_is_lost() {
    loom::model(|| {
        let words = Watched::new();
        let told = Arc::new(AtomicBool::new(false));
        let front = {
            let (words, told) = (words.clone(), told.clone());
            thread::spawn(move || {
                for index in 0..2 {
                    if request(&words, index, 70 + index) {
                        told.store(true, LoomOrdering::Relaxed);
                    }
                }
            })
        };
        let mut back = BackRing::attach(words, BYTES, ENTRY).unwrap();
        let mut taken = 0;
        // As many turns as there are requests, then it sleeps whatever it saw.
        let mut awake = true;
        while awake && taken < 2 {
            awake = back.sleep().unwrap();
            if awake {
                let mut entry = [0];
                back.take(&mut entry);
                assert_eq!(entry, [70 + taken]);
                taken += 1;
            }
        }
        front.join().unwrap();
        assert!(taken == 2 || told.load(LoomOrdering::Relaxed), "asleep, and not told");
    });
}

/// No response is left behind: what the frontend does not see before it sleeps, it is told of.
#[test]
fn no_response_is_lost() {
    loom::model(|| {
        let words = Watched::new();
        request(&words, 0, 70);
        request(&words, 1, 71);
        let mut back = BackRing::attach(words.clone(), BYTES, ENTRY).unwrap();
        back.take(&mut [0]);
        back.take(&mut [0]);
        let told = Arc::new(AtomicBool::new(false));
        let backend = {
            let told = told.clone();
            thread::spawn(move || {
                for value in [80, 81] {
                    back.put(&[value]);
                    if back.push() {
                        told.store(true, LoomOrdering::Relaxed);
                    }
                }
            })
        };
        // The frontend's handler, once: all there is, then `RING_FINAL_CHECK_FOR_RESPONSES`.
        let mut cons = 0;
        loop {
            while cons != words.0[RSP_PROD].load(LoomOrdering::Acquire) {
                let value = words.0[ENTRIES + cons as usize].load(LoomOrdering::Relaxed);
                assert_eq!(value, 80 + cons);
                cons += 1;
            }
            if cons == 2 {
                break;
            }
            words.0[RSP_EVENT].store(cons + 1, LoomOrdering::Relaxed);
            fence(LoomOrdering::SeqCst);
            if words.0[RSP_PROD].load(LoomOrdering::Acquire) == cons {
                break;
            }
        }
        backend.join().unwrap();
        assert!(cons == 2 || told.load(LoomOrdering::Relaxed), "asleep, and not told");
    });
}

/// Plain words, for indices of every kind.
#[derive(Debug)]
struct Plain(Vec<core::sync::atomic::AtomicU32>);

impl RingMemory for &Plain {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.0.get(word).map_or(0, |word| word.load(order))
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        if let Some(word) = self.0.get(word) {
            word.store(value, order);
        }
    }
    fn barrier(&self) {}
}

proptest! {
    /// A ring against a model, from any start, over the wrap of its indices.
    #[test]
    fn as_in_the_model(
        start in prop_oneof![0..100u32, u32::MAX - 100..=u32::MAX],
        order in 0..3usize,
        steps in prop::collection::vec((0..4u8, 0..10u32), 1..80),
    ) {
        let bytes = 4096 << order;
        let plain = Plain((0..bytes / 4).map(|_| Default::default()).collect());
        let set = |word: usize, value| plain.0[word].store(value, Ordering::Relaxed);
        set(RSP_PROD, start);
        set(REQ_PROD, start);
        let mut ring = BackRing::attach(&plain, bytes, 112).unwrap();
        let entries = ring.entries();
        prop_assert_eq!(entries, 32 << order);
        let (mut req_prod, mut req_cons, mut rsp_prod, mut shown) = (0u32, 0u32, 0u32, 0u32);
        for (what, count) in steps {
            match what {
                0 => {
                    let room = entries - (req_prod - rsp_prod);
                    for _ in 0..count.min(room) {
                        let index = start.wrapping_add(req_prod) % entries;
                        set(ENTRIES + index as usize * 28, req_prod);
                        req_prod += 1;
                    }
                    set(REQ_PROD, start.wrapping_add(req_prod));
                }
                1 => for _ in 0..count.min(req_prod - req_cons) {
                    let mut entry = [0; 28];
                    ring.take(&mut entry);
                    prop_assert_eq!(entry[0], req_cons);
                    req_cons += 1;
                },
                2 => for _ in 0..count.min(req_cons - rsp_prod) {
                    ring.put(&[rsp_prod + 1000; 4]);
                    rsp_prod += 1;
                },
                _ => {
                    set(RSP_EVENT, start.wrapping_add(shown + count));
                    let wanted = count > 0 && shown + count <= rsp_prod;
                    prop_assert_eq!(ring.push(), wanted);
                    shown = rsp_prod;
                    prop_assert_eq!(plain.0[RSP_PROD].load(Ordering::Relaxed), start.wrapping_add(shown));
                }
            }
            prop_assert_eq!(ring.waiting(), Ok(req_prod - req_cons));
            prop_assert_eq!(ring.unanswered(), req_cons - rsp_prod);
        }
        set(REQ_PROD, start.wrapping_add(rsp_prod + entries + 1));
        prop_assert_eq!(ring.waiting(), Err(Bogus));
    }
}

#[test]
fn rings_that_cannot_be() {
    let plain = Plain((0..1024).map(|_| Default::default()).collect());
    assert_eq!(BackRing::attach(&plain, 100, 112).unwrap_err(), Bogus);
    plain.0[REQ_PROD].store(33, Ordering::Relaxed);
    assert_eq!(BackRing::attach(&plain, 4096, 112).unwrap_err(), Bogus);
    // Requests that were there before; a response without a request is none.
    plain.0[REQ_PROD].store(5, Ordering::Relaxed);
    plain.0[RSP_PROD].store(3, Ordering::Relaxed);
    let mut ring = BackRing::attach(&plain, 4096, 112).unwrap();
    assert_eq!(ring.waiting(), Ok(2));
    ring.put(&[1]);
    assert!(!ring.push());
    assert_eq!(vec![ring.unanswered(), plain.0[RSP_PROD].load(Ordering::Relaxed)], [0, 3]);
}
