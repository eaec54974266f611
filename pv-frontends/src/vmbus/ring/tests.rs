//! Rings: bytes as they lie in memory, corruption, flow control.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::vmbus::RingControl;
use hv_abi::vmbus::packet::{PacketType, TransferPageRange};
use proptest::prelude::*;
use translate::platform::PageWords;
use zerocopy::FromZeros;

use super::*;

fn memory(pages: usize) -> (&'static RingControl, PagedRing, PagedRing) {
    let control: &'static RingControl = Box::leak(Box::new(RingControl::new_zeroed()));
    let pages: Vec<&'static PageWords> =
        (0..pages).map(|_| &*Box::leak(Box::new(PageWords::new_zeroed()))).collect();
    let ring = || PagedRing::new(control, pages.clone().into_boxed_slice());
    (control, ring(), ring())
}

fn pair(pages: usize) -> (&'static RingControl, Outgoing<PagedRing>, Incoming<PagedRing>) {
    let (control, one, other) = memory(pages);
    let incoming = Incoming::new(other).expect("the size is right");
    (control, Outgoing::new(one).expect("the size is right"), incoming)
}

fn in_band(transaction_id: u64, payload: &[u8]) -> OutPacket<'_> {
    OutPacket {
        transaction_id,
        is_completion: false,
        completion_wanted: false,
        external: External::None,
        payload,
    }
}

fn words(out: &Outgoing<PagedRing>, count: u32) -> Vec<u64> {
    (0..count).map(|nr| out.memory().read(nr * 8)).collect()
}

#[test]
fn an_in_band_packet_in_memory() {
    let (control, mut out, _) = pair(1);
    let packet =
        OutPacket { completion_wanted: true, ..in_band(0x1122, &[1, 2, 3, 4, 5, 6, 7, 8, 9]) };
    assert_eq!(out.write(&packet), Ok(true));
    // Type 6, offset 2, length 4, flags 1; transaction; 16 bytes of payload; footer.
    assert_eq!(words(&out, 6), [0x0001_0004_0002_0006, 0x1122, 0x0807_0605_0403_0201, 9, 0, 0],);
    assert_eq!(control.write_index.load(Ordering::Relaxed), 40);
    assert_eq!(control.feature_bits.load(Ordering::Relaxed), 1);
    // Not the first in the ring: no signal, and the footer says where the packet began.
    assert_eq!(out.write(&in_band(7, &[])), Ok(false));
    assert_eq!(words(&out, 8)[5..], [0x0000_0002_0002_0006, 7, 40 << 32]);
}

#[test]
fn gpa_direct_packets_in_memory() {
    let (_, mut out, _) = pair(1);
    let spans = [
        PageSpan { gpfn: 0x55, offset: 0xe00, bytes: 0x200 },
        PageSpan { gpfn: 0x44, offset: 0, bytes: 0x1000 },
        PageSpan { gpfn: 0x66, offset: 0, bytes: 0x600 },
    ];
    let packet = OutPacket { external: External::MultiPage(&spans), ..in_band(1, &[0xff; 8]) };
    assert_eq!(out.write(&packet), Ok(true));
    // One range: 0x1800 bytes from 0xe00 of the first page.
    assert_eq!(
        words(&out, 9),
        [0x0000_0008_0007_0009, 1, 1 << 32, 0x0e00_0000_1800, 0x55, 0x44, 0x66, u64::MAX, 0],
    );
    let packet = OutPacket { external: External::PageBuffers(&spans[..2]), ..in_band(2, &[]) };
    assert_eq!(out.write(&packet), Ok(false));
    assert_eq!(
        words(&out, 16)[9..],
        [0x0000_0007_0007_0009, 2, 2 << 32, 0x0e00_0000_0200, 0x55, 0x1000, 0x44],
    );
}

/// A range said by its frames is the range said by its pieces.
#[test]
fn frames_are_pieces() {
    let (_, mut by_pieces, _) = pair(1);
    let (_, mut by_frames, _) = pair(1);
    for (first, last, count) in [(0, 4096, 1), (512, 1024, 1), (3584, 512, 2), (1024, 4096, 5)] {
        let gpfns: Vec<u64> = (0..count).map(|nr| 0x77 + nr * 3).collect();
        let spans: Vec<_> = gpfns
            .iter()
            .zip(0..)
            .map(|(gpfn, nr)| {
                let offset = if nr == 0 { first } else { 0 };
                let end = if nr == count - 1 { last } else { 4096 };
                PageSpan { gpfn: *gpfn, offset, bytes: end - offset }
            })
            .collect();
        let bytes = spans.iter().map(|span| span.bytes).sum();
        let external = External::MultiPage(spans.as_slice());
        let sent = by_pieces.write(&OutPacket { external, ..in_band(1, &[1; 16]) });
        let external: External<'_, PageSpan> =
            External::Frames { offset: first, bytes, gpfns: &gpfns };
        assert_eq!(by_frames.write(&OutPacket { external, ..in_band(1, &[1; 16]) }), sent);
    }
    assert_eq!(words(&by_pieces, 60), words(&by_frames, 60));
    for (offset, bytes, count) in
        [(0, 0, 0), (0, 4096, 0), (0, 4097, 1), (1, 4096, 1), (0, 4096, 2), (4096, 1, 2)]
    {
        let gpfns = vec![1; count];
        let external = External::Frames { offset, bytes, gpfns: &gpfns };
        let packet = OutPacket { external, ..in_band(1, &[]) };
        assert_eq!(by_frames.write(&packet), Err(SendError::BadSpan), "{offset} {bytes} {count}");
    }
    let external = External::Frames { offset: 0, bytes: 4096, gpfns: &[1] };
    let packet = OutPacket { external, is_completion: true, ..in_band(1, &[]) };
    assert_eq!(by_frames.write(&packet), Err(SendError::BadSpan));
}

#[test]
fn spans_that_are_none() {
    let (control, mut out, _) = pair(1);
    let span = |offset, bytes| PageSpan { gpfn: 1, offset, bytes };
    for spans in [
        vec![],
        vec![span(0, 0)],
        vec![span(4096, 1)],
        vec![span(1, 4096)],
        vec![span(u32::MAX, u32::MAX)],
        vec![span(0, 4095), span(0, 1)],
        vec![span(0, 4096), span(1, 1)],
        vec![span(0, 4096), span(0, 512), span(512, 512)],
    ] {
        let external = External::MultiPage(spans.as_slice());
        let packet = OutPacket { external, ..in_band(1, &[]) };
        assert_eq!(out.write(&packet), Err(SendError::BadSpan), "{spans:?}");
    }
    let many = vec![span(0, 4096); 70_000];
    for external in [External::MultiPage(many.as_slice()), External::PageBuffers(&many)] {
        let packet = OutPacket { external, ..in_band(1, &[]) };
        assert_eq!(out.write(&packet), Err(SendError::TooLarge));
    }
    let whole = vec![0; 4096 - 24];
    assert_eq!(out.write(&in_band(1, &whole)), Err(SendError::TooLarge));
    assert_eq!(control.write_index.load(Ordering::Relaxed), 0);
    assert_eq!(out.write(&in_band(1, &whole[..4096 - 32])), Ok(true));
    assert_eq!(out.write(&in_band(1, &[])), Err(SendError::Full));
}

#[test]
fn how_many_spans_are_contiguous() {
    let span = |offset, bytes| PageSpan { gpfn: 1, offset, bytes };
    assert_eq!(contiguous::<PageSpan>(&[]), 0);
    assert_eq!(contiguous(&[span(5, 5)]), 1);
    assert_eq!(contiguous(&[span(4000, 96), span(0, 4096), span(0, 1), span(1, 1)]), 3);
}

#[test]
fn the_reader_signals_when_it_made_the_room_that_was_waited_for() {
    let (control, mut out, mut incoming) = pair(1);
    let kib = vec![1; 1000];
    for id in 0..3 {
        out.write(&in_band(id, &kib)).expect("there is room");
    }
    assert_eq!(control.pending_send_size.load(Ordering::Relaxed), 0);
    let large = vec![2; 2000];
    assert_eq!(out.write(&in_band(3, &large)), Err(SendError::Full));
    assert_eq!(control.pending_send_size.load(Ordering::Relaxed), 2024);

    let mut take = || {
        incoming.next_packet().expect("sound").expect("a packet");
        incoming.commit().expect("sound")
    };
    // 1016 bytes are free, then 2040.
    assert!(take(), "this made the room");
    assert!(!take(), "it was there before");
    assert_eq!(out.write(&in_band(3, &large)), Ok(false));
    assert_eq!(control.pending_send_size.load(Ordering::Relaxed), 0);
    assert!(!take());
}

/// A completion, say, that still fits while a packet waits; and one that does not.
#[test]
fn a_small_packet_does_not_take_a_larger_one_s_signal() {
    let (control, mut out, mut incoming) = pair(1);
    let pending = || control.pending_send_size.load(Ordering::Relaxed);
    for id in 0..3 {
        out.write(&in_band(id, &[1; 1000])).expect("there is room");
    }
    assert_eq!(out.write(&in_band(3, &[2; 2000])), Err(SendError::Full));
    assert_eq!(out.write(&in_band(4, &[3; 800])), Ok(false));
    assert_eq!(pending(), 2024);
    assert_eq!(out.write(&in_band(5, &[4; 500])), Err(SendError::Full));
    assert_eq!(pending(), 2024, "both fit then");
    let mut take = || {
        incoming.next_packet().expect("sound").expect("a packet");
        incoming.commit().expect("sound")
    };
    assert_eq!([take(), take(), take()], [false, true, false]);
    // 192 bytes and three times 1024 are free.
    assert_eq!(out.write(&in_band(5, &[4; 500])), Ok(false));
    assert_eq!(pending(), 2024);
    assert_eq!(out.write(&in_band(3, &[2; 2000])), Ok(false));
    assert_eq!(pending(), 0);
}

#[test]
fn writers_without_the_feature_poll() {
    let (control, mut out, mut incoming) = pair(1);
    control.feature_bits.store(0, Ordering::Relaxed);
    out.write(&in_band(1, &[0; 4000])).expect("there is room");
    assert_eq!(out.write(&in_band(1, &[0; 4000])), Err(SendError::Full));
    incoming.next_packet().expect("sound").expect("a packet");
    assert_eq!(incoming.commit(), Ok(false));
}

#[test]
fn signals_are_for_readers_that_sleep() {
    let (control, mut out, mut incoming) = pair(1);
    assert_eq!(out.write(&in_band(1, &[])), Ok(true));
    assert_eq!(out.write(&in_band(2, &[])), Ok(false), "the first is still there");
    let mut seen = Vec::new();
    let result = incoming.receive(10, |packet| {
        assert_eq!(control.interrupt_mask.load(Ordering::Relaxed), 1);
        seen.push(packet.transaction_id());
        if seen.len() == 2 {
            assert_eq!(out.write(&in_band(3, &[])), Ok(false), "the reader is awake");
        }
    });
    assert_eq!(result, Ok((Received::All, false)));
    assert_eq!(seen, [1, 2, 3]);
    assert_eq!(control.interrupt_mask.load(Ordering::Relaxed), 0);
    assert_eq!(out.write(&in_band(4, &[])), Ok(true));
}

#[test]
fn receiving_is_bounded() {
    let (control, mut out, mut incoming) = pair(1);
    for id in 0..5 {
        out.write(&in_band(id, &[])).expect("there is room");
    }
    let mut count = 0;
    assert_eq!(incoming.receive(3, |_| count += 1), Ok((Received::More, false)));
    assert_eq!((count, control.interrupt_mask.load(Ordering::Relaxed)), (3, 1));
    assert_eq!(incoming.receive(3, |_| count += 1), Ok((Received::All, false)));
    assert_eq!((count, control.interrupt_mask.load(Ordering::Relaxed)), (5, 0));
}

#[test]
fn indices_and_lengths_that_cannot_be() {
    for write_index in [1, 4, 4096, 4104, u32::MAX] {
        let (control, _, mut incoming) = pair(1);
        control.write_index.store(write_index, Ordering::Relaxed);
        assert_eq!(incoming.next_packet().err(), Some(RingError::Index(write_index)));
        assert_eq!(incoming.receive(9, |_| ()).err(), Some(RingError::Index(write_index)));
    }
    for (descriptor, write_index, error) in [
        (0x0000_0002_0002_0006, 16, RingError::Truncated),
        (0x0000_0002_0002_0006, 8, RingError::Truncated),
        (0x0000_0002_0001_0006, 24, RingError::Lengths), // the payload begins in the descriptor
        (0x0000_0002_0003_0006, 40, RingError::Lengths), // it ends before it begins
        (0x0000_0003_0002_0006, 24, RingError::Lengths), // the footer is not there
        (0x0000_ffff_0002_0006, 4088, RingError::Lengths),
        (0, 4088, RingError::Lengths),
        (u64::MAX, 4088, RingError::Lengths),
    ] {
        let (control, out, mut incoming) = pair(1);
        out.memory().write(0, descriptor);
        control.write_index.store(write_index, Ordering::Relaxed);
        assert_eq!(incoming.next_packet().err(), Some(error), "{descriptor:#x}");
    }
    let (control, mut out, _) = pair(1);
    control.read_index.store(7, Ordering::Relaxed);
    out.write(&in_band(1, &[0; 4000])).expect("nobody looked");
    let full = out.write(&in_band(2, &[0; 4000]));
    assert_eq!(full, Err(SendError::Ring(RingError::Index(7))));
}

#[test]
fn sizes() {
    assert_eq!(check_size(256), Ok(256));
    assert_eq!(check_size(4096 * 3), Ok(4096 * 3));
    for bytes in [0, 248, 260, u32::MAX, (1 << 30) + 8] {
        assert_eq!(check_size(bytes), Err(RingError::Size));
    }
}

#[test]
fn transfer_pages() {
    let (control, out, mut incoming) = pair(1);
    let put = |words: &[u64]| {
        for (nr, word) in words.iter().enumerate() {
            out.memory().write(nr as u32 * 8, *word);
        }
        control.write_index.store(words.len() as u32 * 8, Ordering::Relaxed);
    };
    // Two ranges of set 0xcafe, garbage in the reserved bytes; 8 bytes of payload.
    put(&[
        0x0001_0006_0005_0007,
        9,
        0x0000_0002_dead_cafe,
        0x0000_0010_0000_0040,
        0x0000_0080_0000_0020,
        0x77,
        0,
    ]);
    let packet = incoming.next_packet().expect("sound").expect("a packet");
    assert_eq!(packet.packet_type(), PacketType::TRANSFER_PAGES);
    assert!(packet.wants_completion());
    let header = packet.transfer_pages().expect("transfer pages");
    assert_eq!((header.transfer_page_set_id, header.range_count), (0xcafe, 2));
    assert_eq!(
        packet.transfer_range(1),
        Some(TransferPageRange { byte_count: 0x20, byte_offset: 0x80 })
    );
    assert_eq!(packet.transfer_range(2), None);
    assert_eq!(packet.payload::<u64>(), Some(0x77));
    assert_eq!(packet.payload::<[u64; 2]>(), None);

    // More ranges than there is room for, and no room for the header.
    for descriptor in [0x0001_0006_0004_0007, 0x0001_0006_0002_0007] {
        let (control, out, mut incoming) = pair(1);
        out.memory().write(0, descriptor);
        out.memory().write(16, 2 << 32);
        control.write_index.store(56, Ordering::Relaxed);
        let packet = incoming.next_packet().expect("sound").expect("a packet");
        assert_eq!(packet.transfer_pages(), None);
    }
}

/// One step of a test.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    SendPages(u8, Vec<u8>),
    Receive(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..700);
    let step = prop_oneof![
        4 => bytes().prop_map(Step::Send),
        1 => (1..40u8, bytes()).prop_map(|(n, b)| Step::SendPages(n, b)),
        2 => (1..12u32).prop_map(Step::Receive),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever is sent arrives, once, in order, through any number of turns of the ring; and
    /// whoever sleeps is signalled.
    #[test]
    fn everything_arrives(pages in 1..4usize, steps in steps()) {
        let (_, mut out, mut incoming) = pair(pages);
        let (mut sent, mut expected) = (0, alloc::collections::VecDeque::new());
        let (mut reader_sleeps, mut writer_waits) = (true, false);
        // Bytes of the largest packet that waits.
        let mut asked = 0;
        let pages_bytes = |pages: usize| if pages > 0 { 16 + pages * 8 } else { 0 };
        let total = |pages, payload: &[u8]| {
            16 + pages_bytes(pages) + payload.len().next_multiple_of(8) + 8
        };
        for step in steps {
            match step {
                Step::Receive(budget) => {
                    let (received, signal) = incoming.receive(budget, |packet| {
                        let (id, payload): (u64, Vec<u8>) = expected.pop_front().expect("sent");
                        assert_eq!(packet.transaction_id(), id);
                        assert_eq!(packet.payload_bytes(), payload.len().next_multiple_of(8));
                        let mut got = vec![0; payload.len()];
                        assert_eq!(packet.copy_payload(0, &mut got), payload.len());
                        assert_eq!(got, payload);
                    }).expect("sound");
                    reader_sleeps = received == Received::All;
                    prop_assert!(!reader_sleeps || expected.is_empty());
                    if signal {
                        prop_assert!(asked > 0);
                        writer_waits = false;
                    }
                    prop_assert!(!(writer_waits && expected.is_empty()), "room, and no signal");
                }
                Step::Send(payload) => {
                    let result = out.write(&in_band(sent, &payload));
                    let bytes = total(0, &payload);
                    if let Ok(signal) = result {
                        prop_assert_eq!(signal, reader_sleeps && expected.is_empty());
                        expected.push_back((sent, payload));
                        sent += 1;
                        if bytes >= asked {
                            (writer_waits, asked) = (false, 0);
                        }
                    } else {
                        prop_assert_eq!(result, Err(SendError::Full));
                        (writer_waits, asked) = (true, asked.max(bytes));
                    }
                }
                Step::SendPages(count, payload) => {
                    let spans: Vec<_> = (0..u64::from(count))
                        .map(|gpfn| PageSpan { gpfn, offset: 0, bytes: 4096 })
                        .collect();
                    let gpfns: Vec<u64> = (0..u64::from(count)).collect();
                    let bytes = u32::from(count) * 4096;
                    let external = if count % 2 == 0 && count > 0 {
                        External::Frames { offset: 0, bytes, gpfns: &gpfns }
                    } else {
                        External::MultiPage(spans.as_slice())
                    };
                    let packet = OutPacket { external, ..in_band(sent, &payload) };
                    let total = total(count.into(), &payload);
                    if out.write(&packet).is_ok() {
                        expected.push_back((sent, payload));
                        sent += 1;
                        if total >= asked {
                            (writer_waits, asked) = (false, 0);
                        }
                    } else {
                        (writer_waits, asked) = (true, asked.max(total));
                    }
                }
            }
        }
    }

    /// Any bytes, any indices: errors, never a panic, and never more work than asked for.
    #[test]
    fn any_ring_is_survived(
        data in prop::collection::vec(any::<u64>(), 512),
        small in any::<bool>(),
        indices in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..20),
    ) {
        let (control, mut out, mut incoming) = pair(1);
        for (nr, word) in data.into_iter().enumerate() {
            // Small lengths get further.
            let word = if small { word & 0x0001_000f_0007_000f } else { word };
            out.memory().write(nr as u32 * 8, word);
        }
        for (write, read, pending) in indices {
            let (write, read) = if small { (write % 512 * 8, read % 512 * 8) } else { (write, read) };
            control.write_index.store(write, Ordering::Relaxed);
            let mut count = 0;
            let result = incoming.receive(50, |packet| {
                count += 1;
                assert!(packet.payload_bytes() < 4096);
                let mut all = vec![0; 5000];
                assert_eq!(packet.copy_payload(0, &mut all), packet.payload_bytes());
                if let Some(header) = packet.transfer_pages() {
                    for nr in 0..header.range_count {
                        assert!(packet.transfer_range(nr).is_some());
                    }
                }
            });
            prop_assert!(count <= 50);
            if result.is_err() {
                incoming = Incoming::new(memory(1).1).expect("the size is right");
            }
            control.read_index.store(read, Ordering::Relaxed);
            control.pending_send_size.store(pending, Ordering::Relaxed);
            let _ = out.write(&in_band(1, &[1; 100]));
        }
    }
}

/// Two threads, a small ring, sleeping readers and writers: nobody sleeps for ever.
#[test]
fn threads() {
    const PACKETS: u64 = 20_000;
    let (_, mut out, mut incoming) = pair(1);
    let signal = || std::sync::mpsc::sync_channel::<()>(1);
    let (wake_reader, reader_wakes) = signal();
    let (wake_writer, writer_wakes) = signal();
    let patience = std::time::Duration::from_secs(20);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for id in 0..PACKETS {
                let payload = vec![id as u8; (id * 37 % 1500) as usize];
                loop {
                    match out.write(&in_band(id, &payload)) {
                        Ok(signal) => {
                            if signal {
                                let _ = wake_reader.try_send(());
                            }
                            break;
                        }
                        Err(SendError::Full) => {
                            writer_wakes.recv_timeout(patience).expect("the writer is woken");
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        });
        scope.spawn(move || {
            let mut next = 0;
            while next < PACKETS {
                let (received, signal) = incoming
                    .receive(7, |packet| {
                        assert_eq!(packet.transaction_id(), next);
                        let mut payload = vec![0; packet.payload_bytes()];
                        packet.copy_payload(0, &mut payload);
                        assert!(
                            payload[..(next * 37 % 1500) as usize].iter().all(|b| *b == next as u8)
                        );
                        next += 1;
                    })
                    .expect("sound");
                if signal {
                    let _ = wake_writer.try_send(());
                }
                if received == Received::All && next < PACKETS {
                    reader_wakes.recv_timeout(patience).expect("the reader is woken");
                }
            }
        });
    });
}
