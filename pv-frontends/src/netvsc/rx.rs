//! Packets from the host, on one queue.
//!
//! ```text
//! transfer-page packet ─> messages, ranges (copied, checked) ─> parse ─> RxPacket ─> backend
//!                                                     the last one is done: completion
//! ```
//! What the host says is copied out of the ring at once, so that the ring goes on while the backend
//! waits; how much of it there may be is bounded, and the ring is not read while that is full. The
//! data stays in the receive buffer until the backend has it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hv_abi::netvsc::nvsp::{
    MAX_RECEIVE_RANGES_RSC, Message, MessageType, RECEIVE_BUFFER_ID, SendRndisPacketComplete,
    Status,
};
use hv_abi::netvsc::ppi::PacketId;
use hv_abi::netvsc::rndis;
use zerocopy::IntoBytes;

use super::counters::{Counter, Counters};
use super::parse::{self, Frame, Malformed, Meta};
use super::slots::{Pages, Run};
use crate::net::{ETHERNET_HEADER_BYTES, Gso, MAX_PACKET_BYTES, RxPacket, RxVerdict};
use crate::vmbus::ring::RingMemory;
use crate::vmbus::{Channel, External, Hypervisor, OutPacket, Packet, PageSpan, SendError, VmBus};

/// Most messages of the host's at once, answered or not.
const MAX_MESSAGES: usize = 512;
/// Most ranges of them.
const MAX_RANGES: usize = 2048;
/// Most parts of a packet.
const MAX_PARTS: usize = MAX_RECEIVE_RANGES_RSC as usize;
/// Longest control message that is looked at.
const MAX_CONTROL_BYTES: usize = 512;

/// Who takes what is received.
pub(super) trait Taker {
    /// A packet.
    fn receive(&self, packet: &RxPacket<'_>) -> RxVerdict;
    /// Another message; `false`: it makes no sense.
    fn control(&self, message: &[u8]) -> bool;
    /// Whether packets have somewhere to go.
    fn wants_packets(&self) -> bool;
}

/// A transfer-page packet that is not answered.
#[derive(Clone, Copy, Debug)]
struct Pending {
    transaction_id: u64,
    /// Ranges that are not looked at.
    ranges: u32,
    status: Status,
}

/// An empty one with room for so many; `None` where there is no memory for it.
fn deque<T>(room: usize) -> Option<VecDeque<T>> {
    let mut deque = VecDeque::new();
    deque.try_reserve_exact(room).ok()?;
    Some(deque)
}

/// Receiving on one queue.
#[derive(Debug)]
pub(super) struct Rx {
    buffer: Arc<Pages>,
    messages: VecDeque<Pending>,
    ranges: VecDeque<(u32, u32)>,
    /// Parts of the packet in hand.
    parts: Vec<(u32, u32)>,
    /// More parts of it follow.
    assembling: Option<(u16, Meta)>,
    /// It is whole, and the backend does not have it.
    ready: Option<Meta>,
    completions: VecDeque<(u64, Status)>,
}

impl Rx {
    /// `None` where there is no memory for it.
    pub(super) fn new(buffer: Arc<Pages>) -> Option<Self> {
        let mut parts = Vec::new();
        parts.try_reserve_exact(MAX_PARTS).ok()?;
        Some(Self {
            buffer,
            messages: deque(MAX_MESSAGES)?,
            ranges: deque(MAX_RANGES)?,
            parts,
            assembling: None,
            ready: None,
            completions: deque(MAX_MESSAGES)?,
        })
    }

    /// Messages that may be read now.
    pub(super) fn room(&self) -> usize {
        MAX_MESSAGES.saturating_sub(self.messages.len() + self.completions.len())
    }

    /// Takes over a transfer-page packet; there is [`Self::room`].
    pub(super) fn push<M: RingMemory>(&mut self, packet: &Packet<'_, M>, counters: &Counters) {
        counters.add(Counter::RxMessages, 1);
        let transaction_id = packet.transaction_id();
        let message = Pending { transaction_id, ranges: 0, status: Status::SUCCESS };
        match self.take_ranges(packet, counters) {
            Ok(ranges) => {
                let all_there = ranges.1 == 0;
                let status = if all_there { Status::SUCCESS } else { Status::FAILURE };
                self.messages.push_back(Pending { ranges: ranges.0, status, ..message });
            }
            Err(counter) => {
                counters.add(counter, 1);
                self.completions.push_back((transaction_id, Status::FAILURE));
            }
        }
    }

    /// Ranges taken, and those that are not inside the buffer.
    fn take_ranges<M: RingMemory>(
        &mut self,
        packet: &Packet<'_, M>,
        counters: &Counters,
    ) -> Result<(u32, u32), Counter> {
        let kind: MessageType = packet.payload().ok_or(Counter::RxMalformed)?;
        let header = packet.transfer_pages().ok_or(Counter::RxMalformed)?;
        if kind != MessageType::SEND_RNDIS_PACKET
            || header.transfer_page_set_id != RECEIVE_BUFFER_ID
            || header.range_count > MAX_RECEIVE_RANGES_RSC
        {
            return Err(Counter::RxMalformed);
        }
        if self.ranges.len() + header.range_count as usize > MAX_RANGES {
            return Err(Counter::RxOverrun);
        }
        let (mut taken, mut refused) = (0, 0);
        for nr in 0..header.range_count {
            let Some(range) = packet.transfer_range(nr) else { break };
            let (at, bytes) = (range.byte_offset, range.byte_count);
            if Run::new(self.buffer.as_slice(), at, bytes).is_some() {
                self.ranges.push_back((at, bytes));
                taken += 1;
            } else {
                refused += 1;
            }
        }
        counters.add(Counter::RxMalformed, u64::from(refused));
        Ok((taken, refused))
    }

    /// Hands out up to `budget` messages. `true`: there are more, and the backend does not wait.
    pub(super) fn deliver(&mut self, budget: u32, taker: &impl Taker, counters: &Counters) -> bool {
        for _ in 0..budget {
            if let Some(meta) = self.ready {
                if self.hand_out(meta, taker, counters) == RxVerdict::Wait {
                    counters.add(Counter::RxWaits, 1);
                    return false;
                }
                self.ready = None;
                continue;
            }
            let Some(message) = self.messages.front_mut() else { return false };
            if message.ranges > 0 {
                if self.parse(taker, counters).is_err() {
                    counters.add(Counter::RxMalformed, 1);
                    self.assembling = None;
                    self.end_range(Status::FAILURE);
                }
                continue;
            }
            let (id, mut status) = (message.transaction_id, message.status);
            if self.assembling.take().is_some() {
                counters.add(Counter::RxMalformed, 1);
                status = Status::FAILURE;
            }
            self.messages.pop_front();
            self.completions.push_back((id, status));
        }
        true
    }

    /// The range in hand is done with.
    fn end_range(&mut self, status: Status) {
        self.ranges.pop_front();
        if let Some(message) = self.messages.front_mut() {
            message.ranges = message.ranges.saturating_sub(1);
            if status != Status::SUCCESS {
                message.status = status;
            }
        }
    }

    /// Looks at the message the first range begins with.
    fn parse(&mut self, taker: &impl Taker, counters: &Counters) -> Result<(), Malformed> {
        let (at, bytes) = self.ranges.front().copied().ok_or(Malformed)?;
        let run = Run::new(self.buffer.as_slice(), at, bytes).ok_or(Malformed)?;
        let header = parse::header(&run)?;
        if header.message_type != rndis::MessageType::PACKET {
            let mut copy = [0; MAX_CONTROL_BYTES];
            let there = run.part(0, header.length).ok_or(Malformed)?.copy(&mut copy);
            // Whoever changed it meanwhile is believed what the copy says.
            let is_sane = taker.control(copy.get(..there).unwrap_or_default());
            self.end_range(Status::SUCCESS);
            counters.add(Counter::Bogus, u64::from(!is_sane));
            return Ok(());
        }
        let frame = parse::packet(&run, header.length)?;
        let next = parse::next_packet(&run, header.length);
        self.take_frame(&frame)?;
        match next {
            // Another follows.
            Some(length) => {
                if let Some(range) = self.ranges.front_mut() {
                    *range = (at + length, bytes - length);
                }
            }
            None => self.end_range(Status::SUCCESS),
        }
        Ok(())
    }

    /// Adds a frame to the packet in hand.
    fn take_frame(&mut self, frame: &Frame) -> Result<(), Malformed> {
        let (id, is_first, is_last) = match frame.meta.fragment {
            None => (0, true, true),
            Some(PacketId { flags, id, .. }) => {
                (id, flags & PacketId::FIRST != 0, flags & PacketId::LAST != 0)
            }
        };
        let meta = if is_first {
            // One that was begun and not ended is an error, and so is this, then.
            if self.assembling.is_some() {
                return Err(Malformed);
            }
            self.parts.clear();
            frame.meta
        } else {
            let (begun, meta) = self.assembling.ok_or(Malformed)?;
            if begun != id || self.parts.len() >= MAX_PARTS {
                return Err(Malformed);
            }
            meta
        };
        self.parts.push(frame.data);
        self.assembling = Some((id, meta));
        let bytes: u64 = self.parts.iter().map(|part| u64::from(part.1)).sum();
        if bytes > u64::from(MAX_PACKET_BYTES) {
            return Err(Malformed);
        }
        if is_last {
            self.assembling = None;
            if bytes < u64::from(ETHERNET_HEADER_BYTES) {
                return Err(Malformed);
            }
            self.ready = Some(meta);
        }
        Ok(())
    }

    fn hand_out(&self, meta: Meta, taker: &impl Taker, counters: &Counters) -> RxVerdict {
        if !taker.wants_packets() {
            counters.add(Counter::RxDropped, 1);
            return RxVerdict::Done;
        }
        let Some(packet) = RxPacket::new(self.buffer.as_slice(), &self.parts) else {
            // It was looked at when it was taken.
            counters.add(Counter::RxMalformed, 1);
            return RxVerdict::Done;
        };
        let gso = if self.parts.len() > 1 { self.segment() } else { None };
        let Meta { csum, ip_csum_blank, hash, vlan, .. } = meta;
        let packet = RxPacket { csum, ip_csum_blank, hash, vlan, gso, ..packet };
        let verdict = taker.receive(&packet);
        if verdict == RxVerdict::Done {
            counters.add(Counter::RxPackets, 1);
            counters.add(Counter::RxBytes, u64::from(packet.bytes));
            counters.add(Counter::RxCoalesced, u64::from(gso.is_some()));
        }
        verdict
    }

    /// Payload of the segments that the packet in hand was made of.
    fn segment(&self) -> Option<Gso> {
        let (&(at, bytes), others) = self.parts.split_first()?;
        let first = Run::new(self.buffer.as_slice(), at, bytes)?;
        let headers = parse::tcp_header_bytes(&first)?;
        let least = bytes.checked_sub(headers)?;
        let mss = others.iter().map(|part| part.1).fold(least, u32::max);
        Some(Gso { mss: u16::try_from(mss).ok().filter(|mss| *mss > 0)? })
    }

    /// Answers what is done with, as far as there is room. `false`: some of it has to wait.
    pub(super) fn complete<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        counters: &Counters,
    ) -> bool {
        let mut owed = false;
        let mut is_done = true;
        while let Some(&(transaction_id, status)) = self.completions.front() {
            let message = Message::new(&SendRndisPacketComplete { status });
            let packet = OutPacket::<PageSpan> {
                transaction_id,
                is_completion: true,
                completion_wanted: false,
                external: External::None,
                payload: message.as_bytes().get(..8).unwrap_or_default(),
            };
            match bus.send_quietly(channel, &packet) {
                Ok(signal) => owed |= signal,
                Err(SendError::Full) => {
                    counters.add(Counter::RxCompletionsDeferred, 1);
                    is_done = false;
                    break;
                }
                // The channel is gone; the host asks no more.
                Err(_) => {
                    self.completions.clear();
                    break;
                }
            }
            self.completions.pop_front();
        }
        if owed {
            bus.signal(channel);
        }
        is_done
    }

    /// Forgets everything: the channel is gone.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.ranges.clear();
        self.completions.clear();
        (self.assembling, self.ready) = (None, None);
    }

    /// Messages and ranges in hand.
    #[cfg(any(test, feature = "fake"))]
    pub(super) fn in_use(&self) -> usize {
        self.messages.len() + self.ranges.len() + self.completions.len()
    }
}
