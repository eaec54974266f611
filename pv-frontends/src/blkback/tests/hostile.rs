//! A frontend that writes anything anywhere.

use proptest::prelude::*;
use xen_abi::io::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

use super::*;

#[test]
fn an_index_that_cannot_be_stops_the_queue() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
    front.store(&w, REQ_PROD, 1 + 33);
    assert!(!w.vbd.kicked(&w.env(), 0));
    assert_eq!(w.vbd.device().state().log.len(), 1);
    // It stays stopped, whatever the index is then.
    front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    front.push(&w);
    assert!(!w.vbd.kicked(&w.env(), 0));
    assert_eq!(w.vbd.device().state().log.len(), 1);
    w.set_state(6);
    assert_eq!(w.back_state(), 6);
    front.destroy(&mut w);
}

#[test]
fn an_index_taken_back_means_nothing() {
    let (mut w, mut front) = connected(disk(1024));
    let page = whole(&mut w);
    for _ in 0..4 {
        front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
    }
    front.flush(&w);
    front.store(&w, REQ_PROD, 2);
    assert!(!w.vbd.kicked(&w.env(), 0));
    w.drain();
    assert_eq!(w.vbd.device().state().log.len(), 4);
    // The responses are all there; the index below them is 2^32 requests.
    assert_eq!(front.responses(&mut w).len(), 4);
}

#[test]
fn foreign_queues_and_tags() {
    let (w, _front) = connected(disk(64));
    assert!(!w.vbd.kicked(&w.env(), 4));
    assert!(!w.vbd.kicked(&w.env(), u16::MAX));
    for tag in [0, 1 << 16, u64::MAX, 5 << 16, 31] {
        w.vbd.complete(&w.env(), Tag(tag), Ok(()));
    }
    w.settle();
}

/// A host that completes a request twice: the second time it is another request's slot.
#[test]
fn completions_come_once() {
    let (mut w, mut front) = connected(disk(64));
    let page = whole(&mut w);
    assert_eq!(run(&mut w, &mut front, BlkifOp::READ, 0, &[page], false), 0);
    let tag = w.vbd.device().state().log[0].tag;
    front.transfer(&mut w, BlkifOp::READ, 8, &[page], false);
    front.flush(&w);
    assert_eq!(w.vbd.device().state().log[1].tag.0 as u32, tag.0 as u32, "the same slot");
    w.vbd.complete(&w.env(), tag, Ok(()));
    w.settle();
    assert!(front.responses(&mut w).is_empty());
    w.drain();
    assert_eq!(front.responses(&mut w).len(), 1);
}

/// Something a guest writes, or does.
#[derive(Clone, Debug)]
enum Act {
    /// An entry, shown.
    Entry([u32; 28]),
    /// A word of the ring's first page.
    Word {
        word: usize,
        value: u32,
    },
    /// A word of a page of segments.
    Segment {
        index: usize,
        gref: u32,
        first: u8,
        last: u8,
    },
    Kick,
    Complete(usize),
    State(u32),
}

fn entry() -> impl Strategy<Value = [u32; 28]> {
    let word = prop_oneof![4 => 0..40u32, 1 => any::<u32>()];
    let head = (0..8u32, 0..40u32, 0..8u32)
        .prop_map(|(op, n, inner)| if op == 6 { op | inner << 8 | n << 16 } else { op | n << 8 });
    (prop::array::uniform28(word), head, any::<bool>()).prop_map(|(mut words, head, zero)| {
        words[0] = head;
        if zero {
            // The high half of the sector's number.
            words[5] = 0;
        }
        for segment in 3..14 {
            if let Some(sectors) = words.get_mut(segment * 2 + 1) {
                *sectors = (*sectors % 9) + 256 * (*sectors / 9 % 9);
            }
        }
        words
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => entry().prop_map(Act::Entry),
        1 => (0..24usize, prop_oneof![0..64u32, any::<u32>()])
            .prop_map(|(word, value)| Act::Word { word, value }),
        3 => (0..512usize, 0..40u32, 0..9u8, 0..9u8)
            .prop_map(|(index, gref, first, last)| Act::Segment { index, gref, first, last }),
        4 => Just(Act::Kick),
        4 => (0..8usize).prop_map(Act::Complete),
        1 => prop_oneof![0..9u32, any::<u32>()].prop_map(Act::State),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Nothing panics, nothing outside the rules reaches the device (it checks), and once the
    /// frontend is gone nothing of the guest's is in use.
    #[test]
    fn survives(acts in prop::collection::vec(act(), 1..80), wide: bool, room in 1..6usize) {
        let mut w = World::new(disk(64));
        w.vbd.announce(&w.store).unwrap();
        let layout = if wide { Layout::X86_64 } else { Layout::X86_32 };
        let mut front = connect(&mut w, layout, 0, 1).pop().unwrap();
        w.vbd.device().state().room = room;
        // Grants 8 (the ring) to 39 are good; 9 is a page of segments.
        let segments = w.page();
        w.grant(segments, false);
        for read_only in 0..30 {
            let page = w.page();
            w.grant(page, read_only % 5 == 0);
        }
        for act in acts {
            match act {
                Act::Entry(words) => {
                    front.put_raw(&w, &words);
                    let _ = front.push(&w);
                }
                Act::Word { word, value } => front.store(&w, word, value),
                Act::Segment { index, gref, first, last } => {
                    let bytes = [&gref.to_le_bytes()[..], &[first, last, 0, 0]].concat();
                    set_page_bytes(&w.machine.plat, segments, index * 8, &bytes);
                }
                Act::Kick => {
                    let _ = w.vbd.kicked(&w.env(), 0);
                }
                Act::Complete(index) => {
                    let waiting = w.vbd.device().state().pending.len();
                    if waiting > 0 {
                        w.complete(index % waiting);
                        w.settle();
                    }
                }
                Act::State(state) => w.set_state(state),
            }
        }
        w.set_state(6);
        w.drain();
        w.settle();
        prop_assert_eq!(w.back_state(), 6);
        prop_assert!(!(0..512).any(|gref| w.in_use(gref)));
    }

    /// Any words in the header, with a few entries: the queue goes on or stops.
    #[test]
    fn any_header(header in prop::array::uniform4(prop_oneof![0..70u32, any::<u32>()])) {
        let (mut w, mut front) = connected(disk(64));
        let page = whole(&mut w);
        front.transfer(&mut w, BlkifOp::READ, 0, &[page], false);
        for (word, value) in [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].into_iter().zip(header) {
            front.store(&w, word, value);
        }
        let _ = w.vbd.kicked(&w.env(), 0);
        w.drain();
        w.set_state(6);
        prop_assert_eq!(w.back_state(), 6);
        prop_assert!(!(0..512).any(|gref| w.in_use(gref)));
        prop_assert!(w.vbd.device().state().log.len() <= 32);
    }
}
