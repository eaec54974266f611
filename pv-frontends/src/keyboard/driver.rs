//! The driver of all keyboards.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hv_abi::keyboard::{
    Keystroke, LedIndicators, Leds, MAX_MESSAGE_BYTES, Message, ProtocolRequest, ProtocolResponse,
    Version,
};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::packet::PacketType;
use hv_abi::vmbus::{ChannelId, OfferChannel, UserDefined};
use spin::{Mutex, RwLock};

use super::typist::{MAX_BYTES, Typist};
use crate::vmbus::{
    Channel, Driver, Event, External, Hypervisor, OpenParams, OutPacket, Packet, PageSpan,
    PagedRing, Received, VmBus,
};

/// Data pages of the rings: a hundred keystrokes from the host in each.
const OUTGOING_PAGES: u32 = 1;
const INCOMING_PAGES: u32 = 4;
/// Keystrokes handled in one go.
const BUDGET: u32 = 32;
/// Bytes typed that wait for the guest before keystrokes stay in their rings.
const QUEUE_BYTES: usize = 1024;
/// And what processors that are reading meanwhile may add.
const QUEUE_CAPACITY: usize = 2 * QUEUE_BYTES;
/// Most keyboards.
const MAX_KEYBOARDS: usize = 4;
/// How often a keyboard's channel is opened again after it broke.
const MAX_REOPENS: u8 = 3;
/// The number of the request, which its completion has.
const REQUEST_ID: u64 = 1;

/// Who wants to know that something was typed. Called on any virtual processor, with none of this
/// driver's locks held.
pub trait Sink: Send + Sync + 'static {
    /// [`Keyboard::take`] has bytes.
    fn typed(&self);
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Packets that made no sense, or came before the host had answered.
    Malformed,
    /// Keystrokes with codes that no key has.
    Unknown,
    /// Keystrokes there was no room for.
    Lost,
}

const NAMES: [&str; 3] = ["packets without sense", "unknown keys", "keystrokes lost"];

/// How far a keyboard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    /// The version was asked for.
    Asked,
    Ready,
    /// The host does not speak it.
    Refused,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    typist: Typist,
    /// The lights the host was told of.
    leds: Option<Leds>,
}

/// A keyboard.
#[derive(Debug)]
struct Board {
    offer: OfferChannel,
    reopened: AtomicU8,
    state: Mutex<State>,
}

impl Board {
    fn new(offer: OfferChannel) -> Self {
        let state = State { stage: Stage::Closed, typist: Typist::new(), leds: None };
        Self { offer, reopened: AtomicU8::new(0), state: Mutex::new(state) }
    }

    fn stage(&self) -> Stage {
        self.state.lock().stage
    }
}

#[derive(Debug)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Keystrokes were left in their rings.
    is_awaited: bool,
}

/// The driver.
#[derive(Debug)]
pub struct Keyboard<S> {
    sink: S,
    target_vp: u32,
    boards: RwLock<Vec<Arc<Board>>>,
    queue: Mutex<Queue>,
    counts: [AtomicU64; NAMES.len()],
}

impl<S: Sink> Keyboard<S> {
    /// A driver that tells `sink`; channels signal this virtual processor.
    #[must_use]
    pub fn new(sink: S, target_vp: u32) -> Self {
        let queue = Queue { bytes: VecDeque::with_capacity(QUEUE_CAPACITY), is_awaited: false };
        Self {
            sink,
            target_vp,
            boards: RwLock::new(Vec::with_capacity(MAX_KEYBOARDS)),
            queue: Mutex::new(queue),
            counts: [const { AtomicU64::new(0) }; _],
        }
    }

    /// Keyboards that type.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.boards.read().iter().filter(|board| board.stage() == Stage::Ready).count()
    }

    /// How often something went wrong.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        self.counts.get(counter as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn add<H: Hypervisor>(&self, bus: &VmBus<H>, counter: Counter) {
        let at = counter as usize;
        let (Some(count), Some(name)) = (self.counts.get(at), NAMES.get(at)) else { return };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            bus.hypervisor().log(format_args!("keyboard: {name}: {count}"));
        }
    }

    /// Takes what was typed; how many bytes there were. Where that makes room for keystrokes that wait,
    /// [`VmBus::next_poll_ns`] says so.
    pub fn take<H: Hypervisor>(&self, bus: &VmBus<H>, into: &mut [u8]) -> usize {
        let mut queue = self.queue.lock();
        let count = queue.bytes.len().min(into.len());
        for (to, byte) in into.iter_mut().zip(queue.bytes.drain(..count)) {
            *to = byte;
        }
        if queue.is_awaited && count > 0 {
            bus.poll_at(0);
        }
        count
    }

    /// Keystrokes there is room for. Where there is none, [`Self::take`] has the bus poll.
    fn budget(&self) -> u32 {
        let mut queue = self.queue.lock();
        let room = QUEUE_BYTES.saturating_sub(queue.bytes.len()) / MAX_BYTES;
        queue.is_awaited |= room == 0;
        BUDGET.min(room as u32)
    }

    fn board(&self, id: ChannelId) -> Option<Arc<Board>> {
        self.boards.read().iter().find(|board| board.offer.channel_id == id).cloned()
    }

    fn forget(&self, id: ChannelId) {
        self.boards.write().retain(|board| board.offer.channel_id != id);
    }

    fn offered<H: Hypervisor>(&self, bus: &VmBus<H>, offer: &OfferChannel) {
        let is_full = self.boards.read().len() >= MAX_KEYBOARDS;
        if is_full {
            let instance = offer.interface_instance;
            bus.hypervisor().log(format_args!("keyboard {instance}: not used, there are many"));
            return;
        }
        self.boards.write().push(Arc::new(Board::new(*offer)));
        self.open(bus, offer.channel_id);
    }

    fn open<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let params = OpenParams {
            outgoing_pages: OUTGOING_PAGES,
            incoming_pages: INCOMING_PAGES,
            target_vp: self.target_vp,
            user_data: UserDefined::ZERO,
        };
        if let Err(error) = bus.open(id, &params) {
            bus.hypervisor().log(format_args!("keyboard: channel {} stays shut: {error:?}", id.0));
            self.forget(id);
        }
    }

    fn opened<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let (Some(board), Some(channel)) = (self.board(id), bus.channel(id)) else { return };
        *board.state.lock() = State { stage: Stage::Asked, typist: Typist::new(), leds: None };
        // The ring is new: there is room.
        let _ = send(bus, &channel, &ProtocolRequest::new(Version::V1_0), true);
    }

    /// The channel is closed: broken, or because the host refused.
    fn closed<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(board) = self.board(id) else { return };
        let was_refused = board.stage() == Stage::Refused;
        board.state.lock().stage = Stage::Closed;
        if was_refused || board.reopened.fetch_add(1, Ordering::Relaxed) >= MAX_REOPENS {
            self.forget(id);
        } else {
            self.open(bus, id);
        }
    }

    /// Reads what there is room for.
    fn read<H: Hypervisor>(&self, bus: &VmBus<H>, board: &Board, channel: &Channel) -> Received {
        let budget = self.budget();
        if budget == 0 {
            // No signal comes for what is in the ring, but `take` has it looked at.
            return Received::All;
        }
        let mut has_typed = false;
        let received = bus.receive(channel, budget, |packet| {
            has_typed |= self.on_packet(bus, board, channel, packet);
        });
        match board.stage() {
            Stage::Ready => tell_leds(bus, board, channel),
            // One that is closing already has its event on the way.
            Stage::Refused => drop(bus.close(channel.id())),
            Stage::Closed | Stage::Asked => {}
        }
        if has_typed {
            self.sink.typed();
        }
        received
    }

    /// A packet of the host's. Whether something was typed.
    fn on_packet<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        board: &Board,
        channel: &Channel,
        packet: &Packet<'_, PagedRing>,
    ) -> bool {
        match packet.packet_type() {
            // Of the request; what it asked for comes in a packet of its own.
            PacketType::COMPLETION => return false,
            PacketType::IN_BAND if packet.payload_bytes() <= MAX_MESSAGE_BYTES => {}
            _ => {
                self.add(bus, Counter::Malformed);
                return false;
            }
        }
        if packet.wants_completion() {
            let answer = OutPacket::<PageSpan> {
                transaction_id: packet.transaction_id(),
                is_completion: true,
                completion_wanted: false,
                external: External::None,
                payload: &[],
            };
            // A host that gives no room for it does not get it.
            let _ = bus.send(channel, &answer);
        }
        let mut bytes = [0; 16];
        let count = packet.copy_payload(0, &mut bytes);
        self.on_message(bus, board, bytes.get(..count).unwrap_or_default())
    }

    fn on_message<H: Hypervisor>(&self, bus: &VmBus<H>, board: &Board, message: &[u8]) -> bool {
        let mut state = board.state.lock();
        if let (Stage::Asked, Some(response)) = (state.stage, ProtocolResponse::parse(message)) {
            let is_accepted = response.is_accepted();
            state.stage = if is_accepted { Stage::Ready } else { Stage::Refused };
            let what = if is_accepted { "ready" } else { "the host does not speak version 1.0" };
            bus.hypervisor().log(format_args!("keyboard: {what}"));
            return false;
        }
        let (Stage::Ready, Some(stroke)) = (state.stage, Keystroke::parse(message)) else {
            self.add(bus, Counter::Malformed);
            return false;
        };
        let Some(bytes) = state.typist.stroke(&stroke) else {
            self.add(bus, Counter::Unknown);
            return false;
        };
        let mut queue = self.queue.lock();
        if queue.bytes.len() + bytes.len() > QUEUE_CAPACITY {
            self.add(bus, Counter::Lost);
            return false;
        }
        queue.bytes.extend(&bytes);
        !bytes.is_empty()
    }
}

fn send<H: Hypervisor>(
    bus: &VmBus<H>,
    channel: &Channel,
    message: &impl Message,
    completion_wanted: bool,
) -> bool {
    let packet = OutPacket::<PageSpan> {
        transaction_id: if completion_wanted { REQUEST_ID } else { 0 },
        is_completion: false,
        completion_wanted,
        external: External::None,
        payload: message.as_bytes(),
    };
    bus.send(channel, &packet).is_ok()
}

/// Tells the host which lights are on, where it does not know. One that gives no room for it is told
/// with the next keystroke.
fn tell_leds<H: Hypervisor>(bus: &VmBus<H>, board: &Board, channel: &Channel) {
    let leds = {
        let mut state = board.state.lock();
        let leds = state.typist.leds();
        if state.leds.replace(leds) == Some(leds) {
            return;
        }
        leds
    };
    if !send(bus, channel, &LedIndicators::new(leds), false) {
        board.state.lock().leds = None;
    }
}

impl<H: Hypervisor, S: Sink> Driver<H> for Keyboard<S> {
    fn wants(&self, offer: &OfferChannel) -> bool {
        offer.interface_type == interface::KEYBOARD && offer.sub_channel_index == 0
    }

    fn on_event(&self, bus: &VmBus<H>, event: &Event) {
        match event {
            Event::Offered(offer) => self.offered(bus, offer),
            Event::Opened(id) => self.opened(bus, *id),
            Event::OpenFailed(id, error) => {
                let id = *id;
                bus.hypervisor().log(format_args!("keyboard: channel {}: {error:?}", id.0));
                self.forget(id);
            }
            Event::Closed(id) => self.closed(bus, *id),
            Event::Rescinded(id) => self.forget(*id),
            // The channel is being closed; that is told, too.
            Event::Broken(_)
            | Event::Connected(_)
            | Event::OffersDelivered
            | Event::Disconnected
            | Event::GpadlCreated(..)
            | Event::GpadlTorndown(..)
            | Event::Retargeted(..) => {}
        }
    }

    fn on_signal(&self, bus: &VmBus<H>, channel: &Channel) -> Received {
        match self.board(channel.id()) {
            Some(board) => self.read(bus, &board, channel),
            None => Received::All,
        }
    }

    fn poll(&self, bus: &VmBus<H>) -> Option<u64> {
        if !core::mem::take(&mut self.queue.lock().is_awaited) {
            return None;
        }
        let (mut nr, mut has_more) = (0, false);
        while let Some(board) = { self.boards.read().get(nr).cloned() } {
            nr += 1;
            if let Some(channel) = bus.channel(board.offer.channel_id) {
                has_more |= self.read(bus, &board, &channel) == Received::More;
            }
        }
        if has_more {
            self.queue.lock().is_awaited = true;
        }
        has_more.then_some(0)
    }
}
