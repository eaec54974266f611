//! The rings' signalling under every interleaving and every stale value the memory model allows.
//!
//! What is checked: with one side changing the ring while the other goes to sleep, either the one
//! that sleeps has seen the change, or the other owes it a signal. Without the fences this does not
//! hold, and the models say so.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use pv_frontends::vmbus::ring::{
    ControlWord, External, Incoming, OutPacket, Outgoing, PageSpan, Received, RingMemory, SendError,
};

const BYTES: u32 = 256;

/// Ring memory of loom's atomics.
struct Memory {
    control: [AtomicU32; 5],
    data: [AtomicU64; BYTES as usize / 8],
    fences: bool,
}

/// Both ends have it.
#[derive(Clone)]
struct Handle(Arc<Memory>);

impl Handle {
    fn new(fences: bool) -> Self {
        Self(Arc::new(Memory {
            control: std::array::from_fn(|_| AtomicU32::new(0)),
            data: std::array::from_fn(|_| AtomicU64::new(0)),
            fences,
        }))
    }
}

impl RingMemory for Handle {
    fn data_bytes(&self) -> u32 {
        BYTES
    }
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.0.control[word as usize].load(order)
    }
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.0.control[word as usize].store(value, order);
    }
    fn fence(&self) {
        if self.0.fences {
            fence(Ordering::SeqCst);
        }
    }
    fn read(&self, at: u32) -> u64 {
        self.0.data[at as usize / 8].load(Ordering::Relaxed)
    }
    fn write(&self, at: u32, word: u64) {
        self.0.data[at as usize / 8].store(word, Ordering::Relaxed);
    }
}

fn packet(transaction_id: u64, payload: &[u8]) -> OutPacket<'_, PageSpan> {
    OutPacket {
        transaction_id,
        is_completion: false,
        completion_wanted: false,
        external: External::None,
        payload,
    }
}

fn rings(fences: bool) -> (Outgoing<Handle>, Incoming<Handle>) {
    let memory = Handle::new(fences);
    let incoming = Incoming::new(memory.clone()).expect("the size is right");
    (Outgoing::new(memory).expect("the size is right"), incoming)
}

/// A packet is written while the reader goes to sleep.
fn reader_sleeps(fences: bool) {
    let (mut out, mut incoming) = rings(fences);
    let writer = thread::spawn(move || out.write(&packet(7, &0x1234_u64.to_le_bytes())));
    let mut seen = false;
    let (received, _) = incoming
        .receive(5, |packet| {
            // A packet that is there is there as a whole.
            assert_eq!((packet.transaction_id(), packet.payload()), (7, Some(0x1234_u64)));
            seen = true;
        })
        .expect("sound");
    assert_eq!(received, Received::All);
    let signal = writer.join().expect("the writer ends").expect("there is room");
    assert!(seen || signal, "the reader sleeps, and the packet waits");
}

/// Two packets are written while the reader takes one after the other and goes to sleep.
fn reader_sleeps_after_the_first(fences: bool) {
    let (mut out, mut incoming) = rings(fences);
    out.write(&packet(1, &[])).expect("there is room");
    let writer = thread::spawn(move || out.write(&packet(2, &[])));
    let mut seen = 0;
    incoming.receive(5, |packet| seen = packet.transaction_id()).expect("sound");
    let signal = writer.join().expect("the writer ends").expect("there is room");
    assert!(seen == 2 || signal, "the reader sleeps, and the second packet waits");
}

/// A second packet is written while the reader stays with the first, looks again and leaves.
fn reader_leaves(fences: bool) {
    let (mut out, mut incoming) = rings(fences);
    out.write(&packet(1, &[])).expect("there is room");
    let writer = thread::spawn(move || out.write(&packet(2, &[])));
    let mut seen = 0;
    incoming.receive_and_stay(5, |packet| seen = packet.transaction_id()).expect("sound");
    if incoming.has_packets().expect("sound") {
        incoming.receive_and_stay(5, |packet| seen = packet.transaction_id()).expect("sound");
    }
    if incoming.unmask().expect("sound") {
        incoming.receive(5, |packet| seen = packet.transaction_id()).expect("sound");
    }
    let signal = writer.join().expect("the writer ends").expect("there is room");
    assert!(seen == 2 || signal, "the reader sleeps, and the second packet waits");
}

/// The writer finds the ring full and goes to sleep while the reader empties it.
fn writer_sleeps(fences: bool) {
    let (mut out, mut incoming) = rings(fences);
    out.write(&packet(1, &[0; 200])).expect("there is room");
    let writer = thread::spawn(move || out.write(&packet(2, &[0; 100])));
    let mut seen = 0;
    let (_, signal) = incoming.receive(5, |packet| seen = packet.transaction_id()).expect("sound");
    match writer.join().expect("the writer ends") {
        Err(error) => {
            assert_eq!((error, seen), (SendError::Full, 1));
            assert!(signal, "the writer sleeps, and there is room");
        }
        Ok(signal) => assert!(seen == 2 || signal, "the reader sleeps, and a packet waits"),
    }
}

fn check(model: fn(bool), fences: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || model(fences));
}

#[test]
fn no_packet_waits_for_a_sleeping_reader() {
    check(reader_sleeps, true);
}

#[test]
fn no_second_packet_waits_for_a_sleeping_reader() {
    check(reader_sleeps_after_the_first, true);
}

#[test]
fn no_packet_waits_for_a_reader_that_stayed() {
    check(reader_leaves, true);
}

#[test]
fn no_room_waits_for_a_sleeping_writer() {
    check(writer_sleeps, true);
}

#[test]
#[should_panic(expected = "the reader sleeps")]
fn without_fences_a_packet_waits() {
    check(reader_sleeps, false);
}

#[test]
#[should_panic(expected = "the reader sleeps")]
fn without_fences_a_packet_waits_for_a_reader_that_stayed() {
    check(reader_leaves, false);
}

#[test]
#[should_panic(expected = "the writer sleeps")]
fn without_fences_room_waits() {
    check(writer_sleeps, false);
}
