//! Small packets held back for the next.

use super::*;

/// A card that copies small packets, and a frontend.
fn copying() -> (World, Front) {
    let (w, front) = connected();
    w.vif.device().state().copies = 200;
    (w, front)
}

/// Sends a packet of so many bytes of payload; whether it is held back, if the backend was told.
fn send(w: &mut World, front: &mut Front, payload: usize) -> Option<bool> {
    front.send(w, &Wish::new(Recipe::tcp(payload).complete()));
    front.flush_holding(w).map(|kicked| kicked.held)
}

/// Whether the card was told to send all that it has.
fn is_committed(w: &World) -> bool {
    w.vif.device().state().uncommitted == 0
}

#[test]
fn a_small_packet_waits_and_is_answered() {
    let (mut w, mut front) = copying();
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    assert!(!is_committed(&w) && !w.take_event(front.tx_port));
    // As Linux looks when it has sent.
    assert_eq!(statuses(&mut front, &mut w), [0]);
    assert_eq!(send(&mut w, &mut front, 20), Some(true));
    assert!(!is_committed(&w));
    assert_eq!(statuses(&mut front, &mut w), [0]);
    front.release(&w);
    assert!(is_committed(&w));
    assert!(!w.take_event(front.tx_port), "the frontend has seen all");
    assert_eq!(w.vif.device().state().log.len(), 2);
}

#[test]
fn a_frontend_that_did_not_look_is_told() {
    let (mut w, mut front) = copying();
    send(&mut w, &mut front, 10);
    assert_eq!(statuses(&mut front, &mut w), [0]);
    send(&mut w, &mut front, 10);
    send(&mut w, &mut front, 10);
    assert!(!w.take_event(front.tx_port));
    front.release(&w);
    assert!(is_committed(&w) && w.take_event(front.tx_port));
    front.release(&w);
    assert!(!w.take_event(front.tx_port), "once");
    assert_eq!(statuses(&mut front, &mut w), [0, 0]);
}

#[test]
fn a_packet_by_pages_takes_them_along() {
    let (mut w, mut front) = copying();
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    assert_eq!(send(&mut w, &mut front, 1000), Some(false));
    assert!(is_committed(&w) && w.take_event(front.tx_port));
    w.drain();
    // Nor is one that comes behind it in the same run held.
    front.send(&mut w, &Wish::new(Recipe::tcp(1000).complete()));
    assert_eq!(send(&mut w, &mut front, 10), Some(false));
    assert!(is_committed(&w));
    w.drain();
    assert_eq!(statuses(&mut front, &mut w), [0; 4]);
}

#[test]
fn neither_many_wait_nor_long() {
    let (mut w, mut front) = copying();
    for nr in 1..40 {
        assert_eq!(send(&mut w, &mut front, 10), Some(nr % 16 != 0), "{nr}");
        assert_eq!(is_committed(&w), nr % 16 == 0);
        assert_eq!(statuses(&mut front, &mut w), [0]);
    }
    front.release(&w);
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    w.advance(19_000);
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    w.advance(1_000);
    assert_eq!(send(&mut w, &mut front, 10), Some(false));
    assert!(is_committed(&w));
    assert_eq!(send(&mut w, &mut front, 10), Some(true), "a new one begins");
}

#[test]
fn a_busy_card_is_not_held_up() {
    let (mut w, mut front) = copying();
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    w.vif.device().state().room = 0;
    assert_eq!(send(&mut w, &mut front, 10), Some(false));
    assert!(is_committed(&w), "what it has goes");
    w.vif.device().state().room = 10;
    w.drain();
    front.release(&w);
    assert_eq!(statuses(&mut front, &mut w), [0, 0]);
}

#[test]
fn the_device_s_news_end_the_wait() {
    let (mut w, mut front) = copying();
    send(&mut w, &mut front, 1000);
    assert_eq!(send(&mut w, &mut front, 10), Some(true));
    assert!(w.vif.device().state().pending.len() == 1);
    w.transmit_early(0, TxEnd::Sent);
    w.settle();
    assert!(is_committed(&w) && w.take_event(front.tx_port));
    assert_eq!(statuses(&mut front, &mut w), [0, 0]);
}
