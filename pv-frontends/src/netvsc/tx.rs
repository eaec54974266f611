//! Packets on their way to the host, on one queue.
//!
//! A packet goes by its pages, with its header in a slot of this client's; or, when it is small, it
//! is copied behind others into a section of the send buffer, and the section goes when the batch
//! ends, is full, or a packet by pages follows.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_abi::PAGE_SIZE;
use hv_abi::netvsc::nvsp::{ChannelType, Message, SendRndisPacket};
use zerocopy::IntoBytes;

use super::counters::{Counter, Counters};
use super::frame::{self, ALIGN, Form, Header, Limits, MAX_FRAGMENTS, Pieces};
use super::slots::{Pages, SLOT_BYTES, SLOTS_PER_PAGE, Sections, Writer};
use crate::net::{Tag, TxEnd, TxPacket, TxRefusal, TxSubmitted};
use crate::vmbus::{Channel, External, Hypervisor, OutPacket, PageSpan, SendError, VmBus};

/// What was agreed with the host, as far as sending goes.
#[derive(Debug)]
pub(super) struct Session {
    pub limits: Limits,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// Most packets of a section, and most bytes.
    pub max_packets: u32,
    pub max_batch_bytes: u32,
    /// Packets of a section begin at multiples of this.
    pub align: u32,
    pub copy_max_bytes: u32,
    pub sections: Sections,
    pub send_pages: Arc<Pages>,
}

/// What is in a slot.
#[derive(Clone, Copy, Debug)]
enum InSlot {
    Nothing,
    /// A packet by its pages.
    Packet(Tag),
    /// The first piece of a packet that goes in pieces. Its slot is free when the host has done with
    /// all of them.
    First(First),
    /// Another piece, of the packet whose first is in that slot.
    Piece(u16),
    /// Copied packets.
    Section {
        section: u32,
        packets: u32,
    },
}

/// A packet in pieces.
#[derive(Clone, Copy, Debug)]
struct First {
    tag: Tag,
    /// Pieces the host has.
    left: u8,
    /// It has the first one.
    is_sent: bool,
    /// It did not refuse any.
    succeeded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Counts the slot's uses, so that an answer to an earlier one finds nothing.
    generation: u32,
    what: InSlot,
}

/// Copied packets that the host does not know of yet.
#[derive(Clone, Copy, Debug)]
struct Batch {
    nr: u16,
    section: u32,
    bytes: u32,
    packets: u32,
}

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// A packet; whether the host took it.
    Packet(Tag, bool),
    /// Copied ones, whose sender knows nothing of it, or a piece of one.
    Part,
}

/// Sending on one queue.
#[derive(Debug)]
pub(super) struct Tx {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    pages: Pages,
    batch: Option<Batch>,
    /// Something found no room, and was not told since that there is some.
    blocked: bool,
    /// A packet was written and the host not signalled.
    owed: bool,
    session: Option<Arc<Session>>,
}

impl Tx {
    /// `None` without memory.
    pub(super) fn new<H: Hypervisor>(hv: &H, slots: u16) -> Option<Self> {
        let pages = Pages::allocate(hv, usize::from(slots).div_ceil(SLOTS_PER_PAGE))?;
        let slot = Slot { generation: 0, what: InSlot::Nothing };
        Some(Self {
            slots: (0..slots).map(|_| slot).collect(),
            free: (0..slots).rev().collect(),
            pages,
            batch: None,
            blocked: false,
            owed: false,
            session: None,
        })
    }

    /// From now on packets are taken, or none are any more.
    pub(super) fn set_session(&mut self, session: Option<Arc<Session>>) {
        self.session = session;
    }

    /// The pages of its slots, to be given back.
    pub(super) fn gpfns(&self) -> Box<[u64]> {
        self.pages.gpfns()
    }

    /// Someone waits for room: there may be some.
    pub(super) const fn take_blocked(&mut self) -> bool {
        core::mem::replace(&mut self.blocked, false)
    }

    /// See [`NetDevice::submit`](crate::net::NetDevice::submit).
    pub(super) fn submit<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        queue: usize,
        counters: &Counters,
        packet: &TxPacket<'_>,
        tag: Tag,
    ) -> TxSubmitted {
        // Taken out meanwhile: to be lent, and not counted.
        let session = self.session.take();
        let submitted = match &session {
            Some(session) => match frame::form(packet, &session.limits) {
                Ok(Form::Whole(header)) => {
                    self.send(bus, channel, queue, counters, session, packet, header, tag)
                }
                Ok(Form::Pieces(pieces)) => {
                    self.send_pieces(bus, channel, counters, session, packet, &pieces, tag)
                }
                Err(refusal) => TxSubmitted::Refused(refusal),
            },
            None => TxSubmitted::Busy,
        };
        self.session = session;
        match submitted {
            TxSubmitted::Busy => {
                counters.add(Counter::TxBusy, 1);
                self.blocked = true;
            }
            TxSubmitted::Refused(_) => counters.add(Counter::TxRefused, 1),
            TxSubmitted::Queued | TxSubmitted::Copied => {
                counters.add(Counter::TxPackets, 1);
                counters.add(Counter::TxBytes, u64::from(packet.bytes()));
                counters.add(Counter::TxGso, u64::from(packet.gso.is_some()));
            }
        }
        submitted
    }

    #[allow(clippy::too_many_arguments, reason = "all of one call's, from one place")]
    fn send<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        queue: usize,
        counters: &Counters,
        session: &Session,
        packet: &TxPacket<'_>,
        mut header: Header,
        tag: Tag,
    ) -> TxSubmitted {
        let bytes = header.message_bytes().next_multiple_of(session.align);
        let is_small = header.data_bytes <= session.copy_max_bytes
            && header.copied == 0
            && bytes <= session.max_batch_bytes;
        if is_small {
            match self.room_for(bus, channel, queue, counters, session, bytes) {
                Ok(true) => {
                    self.copy(session, packet, &mut header, bytes);
                    counters.add(Counter::TxCopied, 1);
                    return TxSubmitted::Copied;
                }
                Ok(false) => counters.add(Counter::TxNoSection, 1),
                Err(error) => return outcome(error),
            }
        }
        // Packets stay in order.
        if let Err(error) = self.flush(bus, channel, counters, session) {
            return outcome(error);
        }
        match self.send_pages(bus, channel, session, packet, &mut header, InSlot::Packet(tag)) {
            Ok(_) => TxSubmitted::Queued,
            Err(error) => outcome(error),
        }
    }

    /// Sends a packet, or a piece of one, by its pages; the slot it is in.
    fn send_pages<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        session: &Session,
        packet: &TxPacket<'_>,
        header: &mut Header,
        what: InSlot,
    ) -> Result<u16, SendError> {
        let nr = self.free.last().copied().ok_or(SendError::Full)?;
        let spans = self.spans(nr, packet, header).ok_or(SendError::BadSpan)?;
        let body = SendRndisPacket {
            channel_type: ChannelType::DATA,
            section: SendRndisPacket::NO_SECTION,
            section_bytes: 0,
        };
        self.write(bus, channel, session, nr, External::PageBuffers(&spans), &body)?;
        self.occupy(nr, what);
        Ok(nr)
    }

    /// Sends a packet that is longer than the host takes. Where there is room for the first piece,
    /// but not for another, that one is lost, as a switch may lose it: the packet cannot be taken
    /// back any more.
    #[allow(clippy::too_many_arguments, reason = "all of one call's, from one place")]
    fn send_pieces<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        counters: &Counters,
        session: &Session,
        packet: &TxPacket<'_>,
        pieces: &Pieces,
        tag: Tag,
    ) -> TxSubmitted {
        if let Err(error) = self.flush(bus, channel, counters, session) {
            return outcome(error);
        }
        if self.free.len() < pieces.cuts.count() as usize {
            return TxSubmitted::Busy;
        }
        let mut first = None;
        for cut in pieces.cuts.each() {
            let what = match first {
                None => InSlot::First(First { tag, left: 1, is_sent: true, succeeded: true }),
                Some(first) => InSlot::Piece(first),
            };
            let sent = match pieces.header(packet, &cut) {
                Ok(mut header) => self.send_pages(bus, channel, session, packet, &mut header, what),
                Err(refusal) if first.is_none() => return TxSubmitted::Refused(refusal),
                Err(_) => Err(SendError::BadSpan),
            };
            match (sent, first) {
                (Ok(nr), None) => first = Some(nr),
                (Ok(_), Some(first)) => {
                    if let Some(first) = self.first(first) {
                        first.left += 1;
                    }
                }
                (Err(error), None) => return outcome(error),
                (Err(_), Some(_)) => {
                    counters.add(Counter::TxCutShort, 1);
                    break;
                }
            }
        }
        counters.add(Counter::TxCut, 1);
        TxSubmitted::Queued
    }

    /// The packet in pieces whose first is in a slot.
    fn first(&mut self, nr: u16) -> Option<&mut First> {
        match &mut self.slots.get_mut(usize::from(nr))?.what {
            InSlot::First(first) => Some(first),
            _ => None,
        }
    }

    /// Sees to it that the open batch has room for a message; `false`: no section is free.
    fn room_for<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        queue: usize,
        counters: &Counters,
        session: &Session,
        bytes: u32,
    ) -> Result<bool, SendError> {
        if let Some(batch) = &self.batch {
            let room = session.max_batch_bytes - batch.bytes;
            if bytes <= room && batch.packets < session.max_packets {
                return Ok(true);
            }
            self.flush(bus, channel, counters, session)?;
        }
        let nr = self.free.last().copied().ok_or(SendError::Full)?;
        let Some(section) = session.sections.take(queue) else { return Ok(false) };
        self.free.pop();
        self.batch = Some(Batch { nr, section, bytes: 0, packets: 0 });
        Ok(true)
    }

    fn copy(&mut self, session: &Session, packet: &TxPacket<'_>, header: &mut Header, bytes: u32) {
        let Some(batch) = &mut self.batch else { return };
        let at = batch.section * session.sections.bytes + batch.bytes;
        let mut writer = Writer::new(session.send_pages.as_slice(), at as usize);
        let filling = bytes - header.message_bytes();
        writer.put(header.bytes(filling));
        for fragment in packet.fragments {
            writer.put_page(fragment.page, fragment.offset.into(), fragment.len.into());
        }
        writer.put([0; 64].get(..filling as usize).unwrap_or_default());
        writer.finish();
        batch.bytes += bytes;
        batch.packets += 1;
    }

    /// Tells the host of copied packets.
    ///
    /// # Errors
    /// [`SendError`]; they stay where they are.
    fn flush<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        counters: &Counters,
        session: &Session,
    ) -> Result<(), SendError> {
        let Some(batch) = self.batch else { return Ok(()) };
        let body = SendRndisPacket {
            channel_type: ChannelType::DATA,
            section: batch.section,
            section_bytes: batch.bytes,
        };
        self.write(bus, channel, session, batch.nr, External::None, &body)?;
        counters.add(Counter::TxBatches, 1);
        self.batch = None;
        if let Some(slot) = self.slots.get_mut(usize::from(batch.nr)) {
            slot.generation = next(slot.generation);
            slot.what = InSlot::Section { section: batch.section, packets: batch.packets };
        }
        Ok(())
    }

    /// Writes a header into its slot; the pieces of a packet with it. `None`: too many.
    fn spans(
        &self,
        nr: u16,
        packet: &TxPacket<'_>,
        header: &mut Header,
    ) -> Option<ArrayVec<PageSpan, { MAX_FRAGMENTS + 1 }>> {
        let at = usize::from(nr) * SLOT_BYTES;
        let page = self.pages.get(at / PAGE_SIZE)?;
        let mut writer = Writer::new(self.pages.as_slice(), at);
        writer.put(header.bytes(0));
        writer.finish();
        let mut spans = ArrayVec::new();
        spans.push(PageSpan {
            gpfn: page.gpfn,
            offset: (at % PAGE_SIZE) as u32,
            bytes: header.len(),
        });
        let (mut skip, mut left) = (header.rest, header.data_bytes - header.copied);
        for fragment in packet.fragments {
            let len = u32::from(fragment.len);
            let cut = skip.min(len);
            skip -= cut;
            let bytes = (len - cut).min(left);
            left -= bytes;
            if bytes > 0 {
                let offset = u32::from(fragment.offset) + cut;
                spans.try_push(PageSpan { gpfn: fragment.gpfn.0, offset, bytes }).ok()?;
            }
        }
        Some(spans)
    }

    fn write<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        session: &Session,
        nr: u16,
        external: External<'_, PageSpan>,
        body: &SendRndisPacket,
    ) -> Result<(), SendError> {
        let generation = self.slots.get(usize::from(nr)).map_or(0, |slot| next(slot.generation));
        let message = Message::new(body);
        let packet = OutPacket {
            transaction_id: transaction(nr, generation),
            is_completion: false,
            completion_wanted: true,
            external,
            payload: message.as_bytes().get(..session.message_bytes).unwrap_or_default(),
        };
        self.owed |= bus.send_quietly(channel, &packet)?;
        Ok(())
    }

    fn occupy(&mut self, nr: u16, what: InSlot) {
        self.free.pop();
        if let Some(slot) = self.slots.get_mut(usize::from(nr)) {
            *slot = Slot { generation: next(slot.generation), what };
        }
    }

    /// Sends what is copied, and signals the host if it has to be.
    pub(super) fn commit<H: Hypervisor>(
        &mut self,
        bus: &VmBus<H>,
        channel: &Channel,
        counters: &Counters,
    ) {
        let session = self.session.take();
        if let Some(session) = &session
            && self.flush(bus, channel, counters, session).is_err()
        {
            // It goes with the next commit, which comes when there is room.
            self.blocked = true;
        }
        self.session = session;
        if core::mem::take(&mut self.owed) {
            bus.signal(channel);
        }
    }

    /// A message of the host's says that a transmission ended, and how; `None`: there is none such.
    pub(super) fn complete(&mut self, transaction_id: u64, succeeded: bool) -> Option<Ended> {
        let nr = u16::try_from(transaction_id & 0xffff_ffff).ok()?;
        let slot = self.slots.get_mut(usize::from(nr))?;
        if u64::from(slot.generation) != transaction_id >> 32 {
            return None;
        }
        match slot.what {
            InSlot::Nothing => None,
            InSlot::First(ref mut first) => {
                if !core::mem::take(&mut first.is_sent) {
                    return None;
                }
                Some(self.piece_ended(nr, succeeded))
            }
            InSlot::Piece(first) => {
                self.vacate(nr);
                Some(self.piece_ended(first, succeeded))
            }
            InSlot::Packet(tag) => {
                self.vacate(nr);
                Some(Ended::Packet(tag, succeeded))
            }
            InSlot::Section { section, .. } => {
                self.vacate(nr);
                if let Some(session) = &self.session {
                    session.sections.release(section);
                }
                Some(Ended::Part)
            }
        }
    }

    /// A piece of the packet ended whose first is in a slot.
    fn piece_ended(&mut self, nr: u16, succeeded: bool) -> Ended {
        let Some(first) = self.first(nr) else { return Ended::Part };
        first.left -= 1;
        first.succeeded &= succeeded;
        let (tag, left, succeeded) = (first.tag, first.left, first.succeeded);
        if left > 0 {
            return Ended::Part;
        }
        self.vacate(nr);
        Ended::Packet(tag, succeeded)
    }

    fn vacate(&mut self, nr: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(nr)) {
            slot.what = InSlot::Nothing;
            self.free.push(nr);
        }
    }

    /// Takes a packet that the host does not have any more; `false`: there is none.
    pub(super) fn drain(&mut self, counters: &Counters, mut each: impl FnMut(Tag)) {
        if let Some(batch) = self.batch.take() {
            self.free.push(batch.nr);
            counters.add(Counter::TxLost, u64::from(batch.packets));
            if let Some(session) = &self.session {
                session.sections.release(batch.section);
            }
        }
        for nr in 0..self.slots.len() as u16 {
            let Some(slot) = self.slots.get_mut(usize::from(nr)) else { continue };
            match core::mem::replace(&mut slot.what, InSlot::Nothing) {
                InSlot::Nothing => continue,
                InSlot::Piece(_) => {}
                InSlot::Packet(tag) | InSlot::First(First { tag, .. }) => {
                    counters.add(Counter::TxLost, 1);
                    each(tag);
                }
                InSlot::Section { section, packets } => {
                    counters.add(Counter::TxLost, u64::from(packets));
                    if let Some(session) = &self.session {
                        session.sections.release(section);
                    }
                }
            }
            self.free.push(nr);
        }
    }

    /// Slots in use.
    #[cfg(any(test, feature = "fake"))]
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// What a packet's sender is told.
fn outcome(error: SendError) -> TxSubmitted {
    match error {
        // Closed, or soon: then all queues begin anew, or the card is gone.
        SendError::Full | SendError::Closed | SendError::Ring(_) => TxSubmitted::Busy,
        SendError::TooLarge | SendError::BadSpan => TxSubmitted::Refused(TxRefusal::Fragments),
    }
}

/// Bit of the numbers that the card's own messages have.
pub(super) const CONTROL: u64 = 1 << 63;

/// The number a transmission goes by; below [`CONTROL`].
const fn transaction(nr: u16, generation: u32) -> u64 {
    (generation as u64) << 32 | nr as u64
}

const fn next(generation: u32) -> u32 {
    (generation + 1) & 0x7fff_ffff
}

/// Bytes of a section that packets may fill.
pub(super) fn batch_bytes(section_bytes: u32, max_transfer_bytes: u32) -> u32 {
    section_bytes.min(max_transfer_bytes) & !(ALIGN - 1)
}

/// What a transmission's end is called.
pub(super) const fn end(succeeded: bool) -> TxEnd {
    if succeeded { TxEnd::Sent } else { TxEnd::Refused }
}
