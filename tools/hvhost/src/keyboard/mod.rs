//! The synthetic keyboard (`hv_abi::keyboard`), typed on by commands.

mod typing;

use crate::vmbus::{Bus, Channel, ChannelError, Device, Offer, Outbound, Packet, Waker};
use anyhow::{Context, Result, bail};
use hv_abi::Guid;
use hv_abi::keyboard::{
    Keystroke, LedIndicators, Leds, Message, ProtocolRequest, ProtocolResponse, Version,
};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ControlMessage, OfferChannel, OfferFlags, PacketType};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Verbs of [`Keyboard::command`].
pub const VERBS: [&str; 4] = ["type", "key", "keyboard-add", "keyboard-remove"];

/// The keyboard of every Hyper-V machine.
const INSTANCE: Guid = Guid::literal("d34b2567-b9b6-42b9-8778-0a4ec0b955bf");
/// Keystrokes that may wait for the guest.
const WAITING_MAX: usize = 1 << 16;

#[derive(Default)]
struct State {
    /// What the guest has not got yet; kept while it has no channel.
    strokes: VecDeque<Keystroke>,
    /// Of the channel, while it is open.
    waker: Option<Arc<Waker>>,
    /// The version is agreed on.
    is_ready: bool,
    /// The lights, once the guest has said something about them.
    leds: Option<Leds>,
}

#[derive(Default)]
struct Board {
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    fn strike(&self, strokes: Vec<Keystroke>) -> Result<()> {
        let mut state = lock(&self.state);
        if state.strokes.len() + strokes.len() > WAITING_MAX {
            bail!("{} keystrokes wait for the guest already", state.strokes.len());
        }
        state.strokes.extend(strokes);
        if let Some(waker) = &state.waker {
            waker.wake();
        }
        Ok(())
    }

    fn serve(&self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut packet = Packet::default();
        loop {
            while channel.receive(&mut packet)? {
                self.packet(channel, &packet)?;
            }
            while let Some(stroke) = self.next() {
                send(channel, &stroke)?;
                lock(&self.state).strokes.pop_front();
                channel.counters.requests.fetch_add(1, Ordering::Relaxed);
            }
            channel.wait()?;
        }
    }

    /// The next keystroke the guest can be told of.
    fn next(&self) -> Option<Keystroke> {
        let state = lock(&self.state);
        state.strokes.front().copied().filter(|_| state.is_ready)
    }

    fn packet(&self, channel: &mut Channel, packet: &Packet) -> Result<(), ChannelError> {
        if packet.kind() != PacketType::IN_BAND {
            channel.malformed();
            return Ok(());
        }
        if let Some(transaction) = packet.transaction() {
            channel.complete(transaction, &[])?;
        }
        let is_ready = lock(&self.state).is_ready;
        if let (false, Some(request)) = (is_ready, ProtocolRequest::parse(packet.payload())) {
            let accepted = request.version == Version::V1_0;
            send(channel, &ProtocolResponse::new(accepted))?;
            lock(&self.state).is_ready = accepted;
        } else if let (true, Some(message)) = (is_ready, LedIndicators::parse(packet.payload())) {
            lock(&self.state).leds = Some(message.leds());
        } else {
            channel.malformed();
        }
        Ok(())
    }
}

fn send(channel: &mut Channel, message: &impl Message) -> Result<(), ChannelError> {
    let payload = message.as_bytes();
    let kind = PacketType::IN_BAND;
    channel.send(&Outbound { kind, flags: 0, transaction: 0, more: &[], payload })
}

impl Device for Board {
    fn name(&self) -> String {
        "keyboard".into()
    }

    fn offer(&self) -> Offer {
        let message = OfferChannel {
            interface_type: interface::KEYBOARD,
            interface_instance: INSTANCE,
            flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE.bits(),
            ..OfferChannel::empty()
        };
        Offer { message, monitored: false }
    }

    fn run(&self, channel: &mut Channel) {
        {
            let strokes = std::mem::take(&mut lock(&self.state).strokes);
            let waker = Some(channel.waker());
            *lock(&self.state) = State { strokes, waker, ..State::default() };
        }
        if let Err(ChannelError::Broken(error)) = self.serve(channel) {
            channel.malformed();
            eprintln!("hvhost: keyboard: the guest's ring makes no sense: {error:?}\r");
        }
        let mut state = lock(&self.state);
        (state.waker, state.is_ready, state.leds) = (None, false, None);
    }
}

/// The keyboard of a machine, and its number on the bus while it is offered.
pub struct Keyboard {
    bus: Arc<Bus>,
    board: Arc<Board>,
    offered: Mutex<Option<usize>>,
}

impl Keyboard {
    /// Offers a keyboard.
    ///
    /// # Errors
    /// No channel is left.
    pub fn new(bus: Arc<Bus>) -> Result<Arc<Self>> {
        let keyboard = Self { bus, board: Arc::default(), offered: Mutex::default() };
        keyboard.add()?;
        Ok(Arc::new(keyboard))
    }

    /// Does a command; `docs/hvhost.md` lists them.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn command(&self, line: &str) -> Result<String> {
        let line = line.trim_start().trim_end_matches(['\r', '\n']);
        let (verb, rest) = line.split_once(' ').unwrap_or((line.trim_end(), ""));
        match verb {
            "type" => self.board.strike(typing::text(rest)?)?,
            "key" => self.board.strike(typing::keys(rest)?)?,
            "keyboard-add" => self.add()?,
            "keyboard-remove" => self.remove()?,
            _ => bail!("{verb:?}: expected {}", VERBS.join(", ")),
        }
        Ok(String::new())
    }

    fn add(&self) -> Result<()> {
        let mut offered = lock(&self.offered);
        if offered.is_some() {
            bail!("the keyboard is there already");
        }
        let number = self.bus.offer(self.board.clone()).context("no channel is left")?;
        *offered = Some(number);
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let number = lock(&self.offered).take().context("the keyboard is not there")?;
        self.bus.revoke(number);
        Ok(())
    }

    /// What there is to say of it, in a line.
    #[must_use]
    pub fn list(&self) -> String {
        let is_offered = lock(&self.offered).is_some();
        let state = lock(&self.board.state);
        let what = match (is_offered, state.is_ready) {
            (false, _) => "removed",
            (true, false) => "unused",
            (true, true) => "ready",
        };
        let leds = match state.leds {
            None => "unknown".to_owned(),
            Some(leds) => {
                [(Leds::NUM_LOCK, "num"), (Leds::CAPS_LOCK, "caps"), (Leds::SCROLL_LOCK, "scroll")]
                    .into_iter()
                    .filter(|(led, _)| leds.contains(*led))
                    .map(|(_, name)| name)
                    .collect::<Vec<_>>()
                    .join(",")
            }
        };
        format!("keyboard {what} leds={leds} waiting={}", state.strokes.len())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
