//! A channel of a card: one queue, both directions.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use hv_abi::netvsc::nvsp::{
    MESSAGE_BYTES_MAX, Message, MessageType, SendRndisPacketComplete, Status,
};
use hv_abi::vmbus::packet::PacketType;
use spin::Mutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::counters::{Counter, Counters};
use super::rx::{Rx, Taker};
use super::slots::Pages;
use super::tx::{self, CONTROL, Ended, Session, Tx};
use crate::net::{Tag, TxEnd, TxPacket, TxSubmitted};
use crate::vmbus::{
    Channel, External, Hypervisor, OutPacket, Packet, PageSpan, PagedRing, Received, SendError,
    VmBus,
};

/// Packets of the host's read in one go.
const READ_BUDGET: u32 = 64;
/// RNDIS messages handed out in one go.
const DELIVER_BUDGET: u32 = 256;
/// Until completions that found no room are tried again.
const RETRY_NS: u64 = 1_000_000;

/// Who is told what a queue reads.
pub(super) trait Above: Taker {
    /// A transmission ended.
    fn transmitted(&self, tag: Tag, end: TxEnd);
    /// A message of the card's own was answered: its number, the answer.
    fn answered(&self, number: u64, message: &Message);
    /// The host says something of itself; `false`: it makes no sense.
    fn told(&self, message: &[u8]) -> bool;
    /// A run of receptions and ends is over, or there is room again.
    fn settled(&self);
}

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub index: u16,
    pub channel: Arc<Channel>,
    tx: Mutex<Tx>,
    /// Taken before the others, and held while packets are handed out.
    rx: Mutex<Rx>,
    /// The backend has room again.
    resumed: AtomicBool,
    /// Completions wait for room.
    deferred: AtomicBool,
    pub counters: Counters,
}

impl Queue {
    /// `None` without memory.
    pub(super) fn new<H: Hypervisor>(
        hv: &H,
        index: u16,
        channel: Arc<Channel>,
        slots: u16,
        buffer: Arc<Pages>,
    ) -> Option<Self> {
        Some(Self {
            index,
            channel,
            tx: Mutex::new(Tx::new(hv, slots)?),
            rx: Mutex::new(Rx::new(buffer)?),
            resumed: AtomicBool::new(false),
            deferred: AtomicBool::new(false),
            counters: Counters::new(),
        })
    }

    /// Packets can be sent, or cannot any more.
    pub(super) fn set_session(&self, session: Option<Arc<Session>>) {
        self.tx.lock().set_session(session);
    }

    pub(super) fn submit<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        packet: &TxPacket<'_>,
        tag: Tag,
    ) -> TxSubmitted {
        let mut tx = self.tx.lock();
        tx.submit(bus, &self.channel, self.index.into(), &self.counters, packet, tag)
    }

    pub(super) fn commit<H: Hypervisor>(&self, bus: &VmBus<H>) {
        self.tx.lock().commit(bus, &self.channel, &self.counters);
    }

    /// Sends a message of the card's own.
    pub(super) fn send_control<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        number: u32,
        message: &[u8],
        external: Option<PageSpan>,
        is_answered: bool,
    ) -> Result<(), SendError> {
        let spans = external.as_slice();
        let packet = OutPacket {
            transaction_id: CONTROL | u64::from(number),
            is_completion: false,
            completion_wanted: is_answered,
            external: if spans.is_empty() { External::None } else { External::PageBuffers(spans) },
            payload: message,
        };
        bus.send(&self.channel, &packet)
    }

    /// The backend has room again after it had none.
    pub(super) fn resume<H: Hypervisor>(&self, bus: &VmBus<H>) {
        self.resumed.store(true, Ordering::Release);
        bus.poll_at(0);
    }

    /// Whether something was put off that can be tried again.
    pub(super) fn is_due(&self) -> bool {
        self.resumed.load(Ordering::Acquire) || self.deferred.load(Ordering::Relaxed)
    }

    /// Reads what the host sent, and hands it out.
    pub(super) fn run<H: Hypervisor>(&self, bus: &VmBus<H>, above: &impl Above) -> Received {
        let mut rx = self.rx.lock();
        self.resumed.store(false, Ordering::Relaxed);
        let room = u32::try_from(rx.room()).unwrap_or(u32::MAX);
        let received = if room > 0 {
            bus.receive(&self.channel, READ_BUDGET.min(room), |packet| {
                self.on_packet(bus, &mut rx, above, packet);
            })
        } else {
            // Read on when something was handed out or answered.
            Received::All
        };
        let more = rx.deliver(DELIVER_BUDGET, above, &self.counters);
        let all_answered = rx.complete(bus, &self.channel, &self.counters);
        let has_room_now = room == 0 && rx.room() > 0;
        drop(rx);
        self.deferred.store(!all_answered, Ordering::Relaxed);
        if !all_answered {
            bus.poll_at(bus.hypervisor().now_ns().saturating_add(RETRY_NS));
        }
        let blocked = self.tx.lock().take_blocked();
        above.settled();
        if blocked {
            // What is copied and could not go, goes now.
            self.commit(bus);
        }
        if more || has_room_now || self.resumed.load(Ordering::Acquire) {
            return Received::More;
        }
        received
    }

    fn on_packet<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        rx: &mut Rx,
        above: &impl Above,
        packet: &Packet<'_, PagedRing>,
    ) {
        match packet.packet_type() {
            PacketType::COMPLETION => self.on_completion(above, packet),
            PacketType::TRANSFER_PAGES => rx.push(packet, &self.counters),
            PacketType::IN_BAND => {
                let mut copy = [0; MESSAGE_BYTES_MAX];
                let bytes = packet.copy_payload(0, &mut copy);
                if !above.told(copy.get(..bytes).unwrap_or_default()) {
                    self.counters.add(Counter::Bogus, 1);
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
                    let _ = bus.send(&self.channel, &answer);
                }
            }
            _ => self.counters.add(Counter::Bogus, 1),
        }
    }

    fn on_completion(&self, above: &impl Above, packet: &Packet<'_, PagedRing>) {
        let id = packet.transaction_id();
        let mut message = Message::new_zeroed();
        packet.copy_payload(0, message.as_mut_bytes());
        if id & CONTROL != 0 {
            above.answered(id & !CONTROL, &message);
            return;
        }
        let status = message.get::<SendRndisPacketComplete>().map(|answer| answer.status);
        let succeeded = status == Some(Status::SUCCESS);
        // The lock ends before anyone is told.
        let ended = self.tx.lock().complete(id, succeeded);
        match ended {
            Some(ended) => {
                if !succeeded {
                    self.counters.add(Counter::TxHostRefused, 1);
                }
                if let Ended::Packet(tag, succeeded) = ended {
                    above.transmitted(tag, tx::end(succeeded));
                }
            }
            None => self.counters.add(Counter::Bogus, 1),
        }
    }

    /// Ends it: the channel is closed, or gone. The packets whose pages it had.
    pub(super) fn end<H: Hypervisor>(&self, bus: &VmBus<H>) -> Vec<Tag> {
        self.rx.lock().clear();
        let mut tags = Vec::new();
        let mut tx = self.tx.lock();
        tx.drain(&self.counters, |tag| tags.push(tag));
        tx.set_session(None);
        let pages = tx.gpfns();
        drop(tx);
        // Not under the lock: whoever has the bus's may wait for a ring, and its reader for this.
        bus.free_later(pages);
        tags
    }

    /// Slots of packets, and messages of the host's, in use.
    #[cfg(any(test, feature = "fake"))]
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.tx.lock().in_use(), self.rx.lock().in_use())
    }
}

/// The type of a message, where there is one.
pub(super) fn message_type(bytes: &[u8]) -> Option<MessageType> {
    MessageType::read_from_prefix(bytes).ok().map(|(kind, _)| kind)
}
