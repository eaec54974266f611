use super::*;
use crate::vmbus::test_guest::{Guest, Open};
use hv_abi::keyboard::KeyFlags;
use hv_abi::vmbus::RescindChannelOffer;
use hv_abi::vmbus::message::RelidReleased;
use zerocopy::IntoBytes;

fn machine() -> (Guest, Arc<Keyboard>) {
    let mut keyboard = None;
    let guest = Guest::new(|_, bus, _| keyboard = Some(Keyboard::new(bus.clone()).unwrap()));
    (guest, keyboard.unwrap())
}

fn open(guest: &Guest, page: u64) -> Open {
    let offer = guest.message::<OfferChannel>();
    assert_eq!(offer.interface_type, interface::KEYBOARD);
    assert_eq!(offer.user_defined.pipe().pipe_mode.0, 0);
    guest.open(offer.channel_id, page, 1)
}

fn ask(guest: &Guest, open: &mut Open, version: u32) -> bool {
    let request = ProtocolRequest::new(Version(version));
    guest.send(open, PacketType::IN_BAND, true, &[], request.as_bytes());
    let completion = guest.receive(open);
    assert_eq!((completion.kind(), completion.transaction()), (PacketType::COMPLETION, Some(77)));
    let answer = guest.receive(open);
    assert_eq!((answer.kind(), answer.transaction()), (PacketType::IN_BAND, None));
    ProtocolResponse::parse(answer.payload()).unwrap().is_accepted()
}

fn stroke(guest: &Guest, open: &mut Open) -> (u16, KeyFlags) {
    let packet = guest.receive(open);
    let stroke = Keystroke::parse(packet.payload()).expect("a keystroke");
    (stroke.make_code, stroke.flags())
}

#[test]
fn keys_wait_for_a_guest_that_speaks_the_version() {
    let (guest, keyboard) = machine();
    keyboard.command("type a").unwrap();
    assert_eq!(keyboard.list(), "keyboard unused leds=unknown waiting=2");
    let mut open = open(&guest, 0x100);
    for version in [0, 1, 0x1_0001, 0x2_0000] {
        assert!(!ask(&guest, &mut open, version));
    }
    assert!(ask(&guest, &mut open, 0x1_0000));
    assert_eq!(stroke(&guest, &mut open), (0x1e, KeyFlags::empty()));
    assert_eq!(stroke(&guest, &mut open), (0x1e, KeyFlags::BREAK));
    keyboard.command("key up").unwrap();
    assert_eq!(stroke(&guest, &mut open), (0x48, KeyFlags::E0));
    assert_eq!(stroke(&guest, &mut open), (0x48, KeyFlags::E0 | KeyFlags::BREAK));
    assert_eq!(keyboard.list(), "keyboard ready leds=unknown waiting=0");
    assert_eq!(guest.counters.channel("keyboard").report().malformed, 0);
}

#[test]
fn lights_and_what_makes_no_sense() {
    let (guest, keyboard) = machine();
    let mut open = open(&guest, 0x100);
    let leds = LedIndicators::new(Leds::NUM_LOCK | Leds::CAPS_LOCK);
    // Too early, too short, unknown, of another kind.
    guest.send(&mut open, PacketType::IN_BAND, false, &[], leds.as_bytes());
    guest.send(&mut open, PacketType::IN_BAND, false, &[], &[]);
    guest.send(&mut open, PacketType::IN_BAND, false, &[], &[0xff; 8]);
    guest.send(&mut open, PacketType::GPA_DIRECT, false, &[0; 8], leds.as_bytes());
    assert!(ask(&guest, &mut open, 0x1_0000));
    guest.send(&mut open, PacketType::IN_BAND, true, &[], leds.as_bytes());
    assert_eq!(guest.receive(&mut open).kind(), PacketType::COMPLETION);
    keyboard.command("key esc").unwrap();
    assert_eq!(stroke(&guest, &mut open).0, 1);
    assert_eq!(stroke(&guest, &mut open).0, 1);
    assert!(keyboard.list().starts_with("keyboard ready leds=num,caps "), "{}", keyboard.list());
    assert_eq!(guest.counters.channel("keyboard").report().malformed, 4);
}

#[test]
fn a_text_longer_than_the_ring_comes_whole() {
    let (guest, keyboard) = machine();
    let mut open = open(&guest, 0x100);
    assert!(ask(&guest, &mut open, 0x1_0000));
    keyboard.command(&format!("type {}", "abc".repeat(300))).unwrap();
    for _ in 0..300 {
        for code in [0x1e, 0x30, 0x2e] {
            assert_eq!(stroke(&guest, &mut open), (code, KeyFlags::empty()));
            assert_eq!(stroke(&guest, &mut open), (code, KeyFlags::BREAK));
        }
    }
}

#[test]
fn it_goes_and_comes() {
    let (guest, keyboard) = machine();
    let first = open(&guest, 0x100);
    keyboard.command("keyboard-remove").unwrap();
    assert!(keyboard.command("keyboard-remove").is_err());
    keyboard.command("type x").unwrap();
    keyboard.command("keyboard-add").unwrap();
    assert!(keyboard.command("keyboard-add").is_err());
    assert_eq!(guest.message::<RescindChannelOffer>().channel_id, first.id);
    guest.post(&RelidReleased { channel_id: first.id, ..RelidReleased::empty() });
    let mut again = open(&guest, 0x200);
    assert!(ask(&guest, &mut again, 0x1_0000));
    assert_eq!(stroke(&guest, &mut again).0, 0x2d);
}

#[test]
fn commands_are_refused() {
    let (_guest, keyboard) = machine();
    for wrong in ["type \\q", "key", "key nokey", "keyboard", "keyboard-up"] {
        assert!(keyboard.command(wrong).is_err(), "{wrong}");
    }
    let long = format!("type {}", "a".repeat(WAITING_MAX / 2));
    keyboard.command(&long).unwrap();
    assert!(keyboard.command("type a").is_err());
    // Spaces are typed, the line's end is not.
    keyboard.board.state.lock().unwrap().strokes.clear();
    keyboard.command("type   \n").unwrap();
    assert_eq!(keyboard.board.state.lock().unwrap().strokes.len(), 4);
}
