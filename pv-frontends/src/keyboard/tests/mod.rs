//! Keyboards against a host of plain memory.

mod keys;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hv_abi::keyboard::{
    KeyFlags, Keystroke, LedIndicators, Leds, Message, ProtocolRequest, ProtocolResponse, Version,
};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, ControlMessage, RescindChannelOffer};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::vmbus::fake::{Fake, Server};
use crate::vmbus::ring::{ControlWord, RingMemory};
use crate::vmbus::{Driver, External, OutPacket, PageSpan, VmBus};

const ID: ChannelId = ChannelId(5);
/// Pages of the connection, and of an open channel.
const OWN_PAGES: usize = 3;
const CHANNEL_PAGES: usize = 7;

#[derive(Default)]
struct Told(AtomicUsize);

impl Sink for Arc<Told> {
    fn typed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    fake: Fake,
    server: Server,
    told: Arc<Told>,
    driver: Arc<Keyboard<Arc<Told>>>,
    bus: VmBus<Fake>,
}

fn make(code: u16) -> Keystroke {
    Keystroke::new(code, KeyFlags::empty())
}

fn release(code: u16) -> Keystroke {
    Keystroke::new(code, KeyFlags::BREAK)
}

impl Bench {
    /// A keyboard was offered, its channel is open, the version asked for.
    fn asked() -> Self {
        let fake = Fake::default();
        let told = Arc::new(Told::default());
        let driver = Arc::new(Keyboard::new(Arc::clone(&told), 3));
        let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
        let bus = VmBus::new(fake.clone(), drivers);
        let mut bench = Self { server: Server::new(fake.clone()), fake, told, driver, bus };
        bench.server.offer(ID.0, interface::KEYBOARD, 1, 0);
        bench.bus.connect();
        bench.run();
        bench
    }

    /// … and accepted.
    fn ready() -> Self {
        let mut bench = Self::asked();
        assert_eq!(bench.sent(ID), [ProtocolRequest::new(Version::V1_0).as_bytes()]);
        bench.put(ID, &ProtocolResponse::new(true));
        assert_eq!(bench.driver.ready(), 1);
        bench
    }

    fn run(&mut self) {
        self.server.run(&self.bus);
    }

    /// Puts a packet into the ring. Whether there was room.
    fn write(&mut self, id: ChannelId, packet: &OutPacket<'_>) -> bool {
        let host = self.server.channels.get_mut(&id.0).expect("it is open");
        host.outgoing.write(packet).is_ok()
    }

    /// Sends a message and signals.
    fn put(&mut self, id: ChannelId, message: &impl Message) {
        assert!(self.write(id, &in_band(message.as_bytes())));
        self.bus.on_signal(id);
        self.run();
    }

    fn strike(&mut self, strokes: &[Keystroke]) {
        strokes.iter().for_each(|stroke| self.put(ID, stroke));
    }

    /// What the guest sent, without what fills packets up; completions are empty.
    fn sent(&mut self, id: ChannelId) -> Vec<Vec<u8>> {
        let host = self.server.channels.get_mut(&id.0).expect("it is open");
        let mut sent = Vec::new();
        while let Some(packet) = host.incoming.next_packet().expect("no corrupt ring") {
            let mut bytes = vec![0; packet.payload_bytes()];
            packet.copy_payload(0, &mut bytes);
            sent.push(bytes);
        }
        host.incoming.commit().expect("no corrupt ring");
        sent
    }

    fn rescind(&mut self, id: ChannelId) {
        self.server.offers.remove(&id.0);
        self.server.channels.remove(&id.0);
        let rescind = RescindChannelOffer { channel_id: id, ..RescindChannelOffer::empty() };
        self.bus.on_message(rescind.as_bytes());
        self.run();
        self.fake.advance(2_000_000_000);
        self.run();
    }

    fn offer(&mut self, id: ChannelId) {
        self.server.offer(id.0, interface::KEYBOARD, id.0 as u8, 0);
        self.server.announce(&self.bus, id.0);
        self.run();
    }

    fn typed(&mut self) -> Vec<u8> {
        let (mut typed, mut part) = (Vec::new(), [0; 7]);
        loop {
            let count = self.driver.take(&self.bus, &mut part);
            if count == 0 {
                return typed;
            }
            typed.extend(&part[..count]);
            self.run();
        }
    }
}

fn in_band(payload: &[u8]) -> OutPacket<'_> {
    OutPacket {
        transaction_id: 9,
        is_completion: false,
        completion_wanted: false,
        external: External::None,
        payload,
    }
}

#[test]
fn what_is_pressed_is_typed() {
    let mut bench = Bench::ready();
    assert_eq!(bench.server.channels[&ID.0].open.target_vp, 3);
    assert_eq!(bench.typed(), b"");
    bench.strike(&[make(0x2a), make(0x23), release(0x23), release(0x2a)]);
    bench.strike(&[make(0x17), release(0x17), make(0x1c)]);
    assert_eq!(bench.typed(), b"Hi\r");
    // Shift, releases and answers type nothing.
    assert_eq!(bench.told.0.load(Ordering::Relaxed), 3);
    assert_eq!(bench.fake.pages_in_use(), OWN_PAGES + CHANNEL_PAGES);
}

#[test]
fn the_host_knows_the_lights() {
    let mut bench = Bench::ready();
    let leds = |leds: Leds| LedIndicators::new(leds).as_bytes().to_vec();
    assert_eq!(bench.sent(ID), [leds(Leds::NUM_LOCK)]);
    bench.strike(&[make(0x1e), make(0x3a), release(0x3a), make(0x1e)]);
    assert_eq!(bench.sent(ID), [leds(Leds::NUM_LOCK | Leds::CAPS_LOCK)]);
    bench.strike(&[make(0x45), make(0x3a), release(0x3a)]);
    assert_eq!(bench.sent(ID), [leds(Leds::CAPS_LOCK), leds(Leds::empty())]);
    assert_eq!(bench.typed(), b"aA");
}

#[test]
fn a_refused_version_closes_the_channel() {
    let mut bench = Bench::asked();
    bench.put(ID, &ProtocolResponse::new(false));
    assert_eq!(bench.driver.ready(), 0);
    assert!(bench.server.channels.is_empty());
    assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);
    // Another time it may.
    bench.rescind(ID);
    bench.offer(ChannelId(6));
    bench.put(ChannelId(6), &ProtocolResponse::new(true));
    assert_eq!(bench.driver.ready(), 1);
}

#[test]
fn keys_before_the_answer_are_not_typed() {
    let mut bench = Bench::asked();
    bench.put(ID, &make(0x1e));
    assert_eq!(bench.driver.count(Counter::Malformed), 1);
    bench.put(ID, &ProtocolResponse::new(true));
    // A second answer is to nothing.
    bench.put(ID, &ProtocolResponse::new(false));
    assert_eq!((bench.driver.ready(), bench.driver.count(Counter::Malformed)), (1, 2));
    assert_eq!(bench.typed(), b"");
}

#[test]
fn a_keyboard_goes_and_comes() {
    let mut bench = Bench::ready();
    bench.strike(&[make(0x1d), make(0x2a), make(0x1e)]);
    assert_eq!(bench.typed(), [1]);
    bench.rescind(ID);
    assert_eq!(bench.driver.ready(), 0);
    assert_eq!(bench.server.released, [ID.0]);
    assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);
    bench.offer(ID);
    bench.put(ID, &ProtocolResponse::new(true));
    // What was held is held no more.
    bench.put(ID, &make(0x1e));
    assert_eq!(bench.typed(), b"a");
}

#[test]
fn several_keyboards_type_one_text_up_to_a_number() {
    let mut bench = Bench::ready();
    for id in (6..12).map(ChannelId) {
        bench.offer(id);
        if bench.server.channels.contains_key(&id.0) {
            bench.put(id, &ProtocolResponse::new(true));
            bench.put(id, &make(0x1e));
        }
    }
    bench.strike(&[make(0x30)]);
    assert_eq!((bench.driver.ready(), bench.server.channels.len()), (4, 4));
    assert_eq!(bench.typed(), b"aaab");
}

#[test]
fn what_makes_no_sense_is_counted_and_no_more() {
    let mut bench = Bench::ready();
    let event = make(0x1e);
    let unknown = Keystroke { make_code: 0x5f, ..event };
    for payload in [
        &event.as_bytes()[..8],
        &[0; 16],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[],
        &[3; 300],
        ProtocolRequest::new(Version::V1_0).as_bytes(),
    ] {
        assert!(bench.write(ID, &in_band(payload)));
    }
    let span = [PageSpan { gpfn: 5, offset: 0, bytes: 100 }];
    let external = External::PageBuffers(&span);
    assert!(bench.write(ID, &OutPacket { external, ..in_band(event.as_bytes()) }));
    bench.bus.on_signal(ID);
    assert_eq!(bench.driver.count(Counter::Malformed), 7);
    bench.put(ID, &unknown);
    assert_eq!(bench.driver.count(Counter::Unknown), 1);
    bench.sent(ID);
    // Completions are no messages; who wants one gets it.
    assert!(bench.write(ID, &OutPacket { is_completion: true, ..in_band(event.as_bytes()) }));
    assert!(bench.write(ID, &OutPacket { completion_wanted: true, ..in_band(event.as_bytes()) }));
    bench.bus.on_signal(ID);
    assert_eq!(bench.sent(ID), [b""]);
    assert_eq!(bench.typed(), b"a");
    assert_eq!(bench.driver.count(Counter::Malformed), 7);
}

#[test]
fn a_corrupt_ring_is_opened_again_three_times() {
    let mut bench = Bench::ready();
    for round in 0.. {
        let host = &bench.server.channels[&ID.0];
        host.outgoing.memory().store(ControlWord::WriteIndex, 5, Ordering::Relaxed);
        bench.bus.on_signal(ID);
        bench.run();
        if round == 3 {
            break;
        }
        bench.put(ID, &ProtocolResponse::new(true));
        bench.put(ID, &make(0x1e));
        assert_eq!(bench.typed(), b"a");
    }
    assert!(bench.server.channels.is_empty());
    assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);
}

#[test]
fn no_memory_is_no_keyboard() {
    let mut bench = Bench::ready();
    bench.fake.inner().free_pages = CHANNEL_PAGES - 1;
    bench.offer(ChannelId(6));
    assert_eq!((bench.driver.ready(), bench.server.channels.len()), (1, 1));
    bench.strike(&[make(0x1e)]);
    assert_eq!(bench.typed(), b"a");
}

/// More than queue and ring hold, faster than it is taken.
#[test]
fn nothing_is_lost_for_want_of_room() {
    let mut bench = Bench::ready();
    let (mut wanted, mut typed) = (Vec::new(), Vec::new());
    for n in 0..4000_u16 {
        let unit = u16::from(b'!') + n % 90;
        let stroke = Keystroke::new(unit, KeyFlags::UNICODE);
        let mut turns = 0;
        while !bench.write(ID, &in_band(stroke.as_bytes())) {
            // The host waits for a signal of the guest's; here, for room.
            let mut some = [0; 100];
            let count = bench.driver.take(&bench.bus, &mut some);
            typed.extend(&some[..count]);
            bench.run();
            turns += 1;
            assert!(turns < 100, "the guest does not go on");
        }
        bench.bus.on_signal(ID);
        bench.run();
        wanted.push(unit as u8);
    }
    typed.extend(bench.typed());
    assert_eq!(typed, wanted);
    assert_eq!(bench.driver.count(Counter::Lost), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Packet(u8, Vec<u8>),
    Stroke(u16, u32),
    Index(u32),
    Take(usize),
    Rescind,
    Offer,
    Answer(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(k, b)| Step::Packet(k, b)),
        9 => (0..0x80_u16, 0..16_u32).prop_map(|(c, f)| Step::Stroke(c, f)),
        3 => (any::<u16>(), any::<u32>()).prop_map(|(c, f)| Step::Stroke(c, f)),
        1 => any::<u32>().prop_map(Step::Index),
        3 => (0..40_usize).prop_map(Step::Take),
        1 => Just(Step::Rescind),
        2 => Just(Step::Offer),
        2 => any::<bool>().prop_map(Step::Answer),
    ]
}

proptest! {
    /// A host that says anything: no panic, no page lost, and whoever answers well afterwards has a
    /// keyboard that types.
    #[test]
    fn any_host(steps in prop::collection::vec(step(), 0..120)) {
        let mut bench = Bench::asked();
        for step in steps {
            let is_open = bench.server.channels.contains_key(&ID.0);
            match step {
                Step::Offer if !bench.server.offers.contains_key(&ID.0) => bench.offer(ID),
                Step::Rescind if bench.server.offers.contains_key(&ID.0) => bench.rescind(ID),
                Step::Take(bytes) => {
                    let mut some = vec![0; bytes];
                    prop_assert!(bench.driver.take(&bench.bus, &mut some) <= bytes);
                }
                Step::Packet(kind, payload) if is_open => {
                    let (is_completion, completion_wanted) = (kind & 3 == 1, kind & 3 == 2);
                    let packet = OutPacket { is_completion, completion_wanted, ..in_band(&payload) };
                    bench.write(ID, &packet);
                }
                Step::Stroke(code, flags) if is_open => {
                    let stroke = Keystroke { flags, ..make(code) };
                    bench.write(ID, &in_band(stroke.as_bytes()));
                }
                Step::Answer(good) if is_open => {
                    bench.write(ID, &in_band(ProtocolResponse::new(good).as_bytes()));
                }
                Step::Index(index) if is_open => {
                    let host = &bench.server.channels[&ID.0];
                    host.outgoing.memory().store(ControlWord::WriteIndex, index, Ordering::Relaxed);
                }
                _ => continue,
            }
            bench.bus.on_signal(ID);
            bench.run();
        }
        bench.typed();
        if bench.server.offers.contains_key(&ID.0) {
            bench.rescind(ID);
        }
        prop_assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);
        bench.offer(ChannelId(6));
        bench.put(ChannelId(6), &ProtocolResponse::new(true));
        bench.put(ChannelId(6), &make(0x1e));
        prop_assert_eq!(bench.typed(), b"a");
    }

    /// Any keystrokes, in any order, of any code.
    #[test]
    fn any_keys(strokes in prop::collection::vec((any::<u16>(), any::<u32>()), 0..200)) {
        let mut typist = Typist::new();
        for (code, flags) in strokes {
            let _ = typist.stroke(&Keystroke { flags, ..make(code) });
            let code = code & 0x7f;
            let _ = typist.stroke(&Keystroke { flags: flags & 0xf, ..make(code) });
        }
        // Whatever came before, a prefix does not wait for what follows.
        for key in [0x1d, 0x2a, 0x36, 0x38] {
            for flags in [KeyFlags::BREAK, KeyFlags::BREAK | KeyFlags::E0] {
                let _ = typist.stroke(&Keystroke::new(key, flags));
            }
        }
        let typed = typist.stroke(&make(0x02)).unwrap_or_default();
        prop_assert_eq!(typed.as_slice(), b"1");
    }
}
