//! A vif between a fake netfront and a fake card.

mod ctrl;
mod handshake;
mod hold;
mod hostile;
mod random;
mod receive;
mod threads;
mod transmit;

use std::vec::Vec;

use super::fake::{card, front, packet, world};
use super::*;
use crate::net::NetInfo;
use card::{Frame, card};
use front::{Features, Front, LINUX, Wish, connect_all};
use packet::Recipe;
use world::World;

/// A world with a vif announced and a frontend of one queue connected.
fn connected_as(info: NetInfo, features: Features) -> (World, Front) {
    let mut w = World::new(info);
    w.vif.announce(&w.store).unwrap();
    let front = connect_all(&mut w, features).0.pop().unwrap();
    (w, front)
}

fn connected() -> (World, Front) {
    connected_as(card(1), LINUX)
}

/// The statuses of all answers, which are of one packet.
fn statuses(front: &mut Front, w: &mut World) -> Vec<i16> {
    front.answers(w).0.into_iter().map(|(_, status)| status).collect()
}
