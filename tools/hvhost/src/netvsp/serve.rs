//! The worker of a channel: NVSP with its guest.

use crate::netvsp::buffers::{ReceiveBuffer, Returned, SendBuffer};
use crate::netvsp::control::Control;
use crate::netvsp::lane::{Inbound, Lane};
use crate::netvsp::nic::{Nic, Path, Session};
use crate::netvsp::packet::{inbound, messages, outbound, split};
use crate::vmbus::{Channel, ChannelError, Outbound, Packet};
use hv_abi::netvsc::nvsp::{
    ChannelType, Init, InitComplete, MAX_LEGACY_BUFFER_BYTES, MAX_RECEIVE_BUFFER_BYTES, Message,
    MessageType, RECEIVE_BUFFER_ID, ReceiveSection, RevokeReceiveBuffer, RevokeSendBuffer,
    SEND_TABLE_ENTRIES, SendIndirectionTable, SendNdisConfig, SendNdisVersion, SendReceiveBuffer,
    SendReceiveBufferComplete, SendRndisPacket, SendRndisPacketComplete, SendSendBuffer,
    SendSendBufferComplete, Status, SubChannelComplete, SubChannelOperation, SubChannelRequest,
    SwitchDataPath, Version,
};
use hv_abi::netvsc::rndis;
use hv_abi::vmbus::PacketType;
use hv_abi::vmbus::packet::{TransferPageHeader, TransferPageRange};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use zerocopy::{FromZeros, IntoBytes};

/// Guest packets taken before frames for it have their turn.
const TURN: usize = 64;
/// Most frames in one packet to the guest.
const BATCH: usize = 16;
/// Most bytes a guest may send in one packet.
const SENT_BYTES_MAX: usize = 256 << 10;

/// An answer, and whether it follows a request that makes sense.
type Answer = Option<Message>;

/// The worker.
pub(super) struct Worker<'a> {
    nic: &'a Nic,
    lane: &'a Lane,
    channel: &'a mut Channel,
    number: u16,
    waiting: VecDeque<Inbound>,
    /// Room for what a guest sends, and for what is in front of a frame.
    sent: Vec<u8>,
    header: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub fn new(nic: &'a Nic, lane: &'a Lane, channel: &'a mut Channel) -> Self {
        let number = channel.sub_channel;
        let (sent, header) = (Vec::new(), Vec::new());
        Self { nic, lane, channel, number, waiting: VecDeque::new(), sent, header }
    }

    /// Serves until it is asked to end.
    pub fn serve(&mut self) -> Result<(), ChannelError> {
        let mut packet = Packet::default();
        loop {
            for _ in 0..TURN {
                if !self.channel.receive(&mut packet)? {
                    break;
                }
                self.packet(&packet)?;
            }
            let path = self.nic.path();
            if self.number == 0 {
                self.say(&path)?;
            }
            if self.channel.is_withdrawn() {
                self.lane.close();
                self.waiting.clear();
            } else {
                self.lane.take(&mut self.waiting);
                self.deliver(&path)?;
            }
            self.channel.wait()?;
        }
    }

    fn packet(&mut self, packet: &Packet) -> Result<(), ChannelError> {
        if packet.kind() == PacketType::COMPLETION {
            self.returned(packet.transaction().unwrap_or(u64::MAX));
            return Ok(());
        }
        let payload = packet.payload();
        let good = packet.kind() == PacketType::IN_BAND || packet.kind() == PacketType::GPA_DIRECT;
        let mut message = Message::new_zeroed();
        for (to, from) in message.as_mut_bytes().iter_mut().zip(payload) {
            *to = *from;
        }
        let data = message.get::<SendRndisPacket>();
        let answer = match data {
            _ if !good || payload.len() < size_of::<MessageType>() => None,
            Some(data) => Some(self.rndis(packet, &data)),
            None if self.number == 0 => self.negotiate(&message),
            None => None,
        };
        if answer.is_none() {
            self.channel.malformed();
        }
        let more = answer.and_then(|answer| answer.get::<SubChannelComplete>());
        if let Some(transaction) = packet.transaction() {
            let answer = answer.unwrap_or_else(Message::new_zeroed);
            // As long as the question: guests copy as much of it as they know.
            let room = payload.len().clamp(Message::BYTES_LEGACY, Message::BYTES_6_1);
            self.channel
                .complete(transaction, answer.as_bytes().get(..room).unwrap_or_default())?;
        }
        match more {
            Some(more) if more.status == Status::SUCCESS => self.send_table(more.count + 1),
            _ => Ok(()),
        }
    }

    /// Frames the guest is done with.
    fn returned(&mut self, transaction: u64) {
        let path = self.nic.path();
        let returned =
            path.receive.as_ref().map(|buffer| buffer.give_back(transaction, self.number));
        match returned {
            Some(Returned::Done(true)) => self.nic.lanes.iter().for_each(Lane::wake),
            Some(Returned::Done(false)) => {}
            Some(Returned::Unknown) => self.channel.malformed(),
            // It took the buffer back meanwhile.
            None => {}
        }
    }

    /// A message of the primary channel. `None`: it makes no sense; an answer to a message
    /// that has none is empty.
    fn negotiate(&mut self, message: &Message) -> Answer {
        let nic = self.nic;
        let mut session = nic.session();
        let empty = Some(Message::new_zeroed());
        let answer = if let Some(init) = message.get::<Init>() {
            Some(initialize(nic, &mut session, init))
        } else {
            let version = session.version?;
            match message.message_type {
                MessageType::SEND_NDIS_VERSION => message.get::<SendNdisVersion>().and(empty),
                MessageType::SEND_NDIS_CONFIG => {
                    let config = message.get::<SendNdisConfig>()?;
                    let good = version.has_ndis_config() && session.receive.is_none();
                    if good {
                        session.config = Some(config);
                    }
                    empty.filter(|_| good)
                }
                MessageType::SEND_RECEIVE_BUFFER => {
                    Some(self.receive_buffer(&mut session, version, message.get()?))
                }
                MessageType::SEND_SEND_BUFFER => {
                    Some(self.send_buffer(&mut session, message.get()?))
                }
                MessageType::REVOKE_RECEIVE_BUFFER => {
                    let RevokeReceiveBuffer { .. } = message.get()?;
                    session.receive.take().and(empty)
                }
                MessageType::REVOKE_SEND_BUFFER => {
                    let RevokeSendBuffer { .. } = message.get()?;
                    session.send.take().and(empty)
                }
                MessageType::SUB_CHANNEL => Some(self.sub_channels(version, message.get()?)),
                // There is one way only, and no answer could refuse another.
                MessageType::SWITCH_DATA_PATH => message.get::<SwitchDataPath>().and(empty),
                _ => None,
            }
        };
        nic.publish(&session);
        answer
    }

    fn receive_buffer(
        &self,
        session: &mut Session,
        version: Version,
        asked: SendReceiveBuffer,
    ) -> Message {
        let old = version <= Version::V2;
        let max = if old { MAX_LEGACY_BUFFER_BYTES } else { MAX_RECEIVE_BUFFER_BYTES };
        let gpadl = self.channel.gpadl(asked.gpadl).filter(|_| session.receive.is_none());
        let frame = session.frame_bytes().saturating_add(crate::net::frame::VLAN_TAG_BYTES as u32);
        let buffer =
            gpadl.and_then(|gpadl| ReceiveBuffer::new(&self.nic.memory, gpadl, frame, max));
        let Some(buffer) = buffer else {
            return Message::new(&SendReceiveBufferComplete {
                status: Status::FAILURE,
                ..SendReceiveBufferComplete::new_zeroed()
            });
        };
        let (bytes, count) = (buffer.section_bytes(), buffer.count());
        session.receive = Some(Arc::new(buffer));
        let section = ReceiveSection { offset: 0, bytes, count, end: bytes * count };
        Message::new(&SendReceiveBufferComplete {
            status: Status::SUCCESS,
            section_count: 1,
            section,
        })
    }

    fn send_buffer(&self, session: &mut Session, asked: SendSendBuffer) -> Message {
        let gpadl = self.channel.gpadl(asked.gpadl).filter(|_| session.send.is_none());
        let buffer = gpadl
            .and_then(|gpadl| SendBuffer::new(&self.nic.memory, gpadl, MAX_LEGACY_BUFFER_BYTES));
        let status = if buffer.is_some() { Status::SUCCESS } else { Status::FAILURE };
        session.send = session.send.take().or(buffer.map(Arc::new));
        let section_bytes = crate::netvsp::buffers::SEND_SECTION_BYTES;
        Message::new(&SendSendBufferComplete { status, section_bytes })
    }

    fn sub_channels(&self, version: Version, asked: SubChannelRequest) -> Message {
        let most = self.nic.parts.channels - 1;
        // A guest that asks for more gets what there is.
        let count = u16::try_from(asked.count).unwrap_or(u16::MAX).min(most);
        let good = version.has_sub_channels()
            && asked.operation == SubChannelOperation::ALLOCATE
            && count != 0
            && self.channel.offer_sub_channels(count);
        let status = if good { Status::SUCCESS } else { Status::FAILURE };
        Message::new(&SubChannelComplete { status, count: if good { count.into() } else { 0 } })
    }

    /// Tells the guest which channels to send through, one after the other.
    fn send_table(&mut self, channels: u32) -> Result<(), ChannelError> {
        let table = SendIndirectionTable {
            count: SEND_TABLE_ENTRIES as u32,
            offset: Message::BYTES_6_1 as u32,
        };
        let mut payload = Message::new(&table).as_bytes().to_vec();
        for entry in 0..SEND_TABLE_ENTRIES as u32 {
            payload.extend((entry % channels).to_le_bytes());
        }
        self.channel.send(&Outbound {
            kind: PacketType::IN_BAND,
            flags: 0,
            transaction: 0,
            more: &[],
            payload: &payload,
        })
    }

    /// RNDIS of the guest's.
    fn rndis(&mut self, packet: &Packet, data: &SendRndisPacket) -> Message {
        let path = self.nic.path();
        let mut bytes = std::mem::take(&mut self.sent);
        bytes.clear();
        let good = self.collect(packet, data, &path, &mut bytes).is_some()
            && self.rndis_messages(data.channel_type, &path, &bytes);
        self.sent = bytes;
        if !good {
            self.channel.malformed();
            self.nic.parts.counters.sent_malformed.fetch_add(1, Relaxed);
        }
        let status = if good { Status::SUCCESS } else { Status::INVALID_RNDIS_PACKET };
        Message::new(&SendRndisPacketComplete { status })
    }

    /// Copies what was sent: a part of a section, then guest memory.
    fn collect(
        &self,
        packet: &Packet,
        data: &SendRndisPacket,
        path: &Path,
        bytes: &mut Vec<u8>,
    ) -> Option<()> {
        if data.section != SendRndisPacket::NO_SECTION {
            path.send.as_ref()?.read(data.section, data.section_bytes, bytes)?;
        }
        for range in packet.ranges()? {
            let begin = bytes.len();
            let len = range.len as usize;
            if begin + len > SENT_BYTES_MAX || !range.is_backed(&self.nic.memory) {
                return None;
            }
            bytes.resize(begin + len, 0);
            range.read(&self.nic.memory, 0, bytes.get_mut(begin..)?)?;
        }
        (!bytes.is_empty()).then_some(())
    }

    fn rndis_messages(&mut self, kind: ChannelType, path: &Path, bytes: &[u8]) -> bool {
        let mut good = true;
        for message in messages(bytes) {
            let parsed = message.and_then(|message| Some((message, split(message)?)));
            good &= match parsed {
                // Packets need a card that was initialized.
                Some((_, (rndis::MessageType::PACKET, body))) if kind == ChannelType::DATA => {
                    match outbound(body).filter(|_| path.control.is_some()) {
                        Some(frame) => {
                            self.channel.counters.requests.fetch_add(1, Relaxed);
                            let length = frame.bytes.len() as u64;
                            self.channel.counters.bytes_written.fetch_add(length, Relaxed);
                            self.nic.transmit(frame);
                            true
                        }
                        None => false,
                    }
                }
                Some((message, (other, _)))
                    if self.number == 0 && other != rndis::MessageType::PACKET =>
                {
                    self.control(message)
                }
                _ => false,
            };
        }
        good
    }

    fn control(&self, message: &[u8]) -> bool {
        let nic = self.nic;
        nic.parts.counters.control.fetch_add(1, Relaxed);
        let mut session = nic.session();
        // Answers are put into the receive buffer.
        let known = session.receive.is_some();
        let Some(control) = session.control.as_mut().filter(|_| known) else { return false };
        let Ok(answer) = control.handle(message) else { return false };
        session.outbox.extend(answer);
        nic.publish(&session);
        true
    }

    /// Tells the guest what is to be told, as far as there is room.
    fn say(&mut self, path: &Path) -> Result<(), ChannelError> {
        let Some(buffer) = &path.receive else { return Ok(()) };
        loop {
            let Some(message) = self.nic.session().outbox.pop_front() else { return Ok(()) };
            let batch = buffer.take(1, self.number);
            let Some(section) = batch.first() else {
                self.nic.session().outbox.push_front(message);
                return Ok(());
            };
            let Some(at) = buffer.fill(*section, [&message, &[]]) else {
                // Nobody could take it, now or later.
                let _ = buffer.give_back((*section).into(), self.number);
                self.channel.malformed();
                continue;
            };
            let range = TransferPageRange { byte_count: message.len() as u32, byte_offset: at };
            if !self.transfer(ChannelType::CONTROL, *section, &[range])? {
                let _ = buffer.give_back((*section).into(), self.number);
                self.nic.session().outbox.push_front(message);
                return Ok(());
            }
        }
    }

    /// Brings the guest frames, as far as there is room in its buffer and its ring.
    fn deliver(&mut self, path: &Path) -> Result<(), ChannelError> {
        let (Some(buffer), Some(control)) = (&path.receive, &path.control) else {
            self.waiting.clear();
            return Ok(());
        };
        while !self.waiting.is_empty() {
            let wanted = self.waiting.len().min(BATCH);
            let batch = buffer.take(wanted, self.number);
            let Some(first) = batch.first().copied() else { return Ok(()) };
            let mut ranges = Vec::with_capacity(batch.len());
            let (sections, unfit) = self.fill(buffer, control, &batch, &mut ranges);
            if unfit {
                // Without it, all over again.
                let _ = buffer.give_back(first.into(), self.number);
                self.waiting.remove(sections);
                self.nic.parts.counters.unfit.fetch_add(1, Relaxed);
                continue;
            }
            if !self.transfer(ChannelType::DATA, first, &ranges)? {
                let _ = buffer.give_back(first.into(), self.number);
                return Ok(());
            }
            for frame in self.waiting.drain(..sections) {
                let counters = &self.channel.counters;
                counters.requests.fetch_add(1, Relaxed);
                counters.bytes_read.fetch_add(frame.bytes.len() as u64, Relaxed);
                let to = crate::net::Mac(frame.bytes.first_chunk().copied().unwrap_or_default());
                self.nic.parts.counters.received.frame(to, frame.bytes.len());
            }
        }
        Ok(())
    }

    /// Puts the next frames into sections; how many, and whether one was found that fits
    /// none.
    fn fill(
        &mut self,
        buffer: &ReceiveBuffer,
        control: &Control,
        batch: &[u32],
        ranges: &mut Vec<TransferPageRange>,
    ) -> (usize, bool) {
        for (section, frame) in batch.iter().zip(&self.waiting) {
            inbound(frame, control.receives(), &mut self.header);
            let Some(at) = buffer.fill(*section, [&self.header, &frame.bytes]) else {
                return (ranges.len(), true);
            };
            let length = self.header.len() + frame.bytes.len();
            ranges.push(TransferPageRange { byte_count: length as u32, byte_offset: at });
        }
        (ranges.len(), false)
    }

    /// Hands the guest sections of its receive buffer; `false`: its ring is full.
    fn transfer(
        &mut self,
        channel_type: ChannelType,
        first: u32,
        ranges: &[TransferPageRange],
    ) -> Result<bool, ChannelError> {
        let header = TransferPageHeader {
            transfer_page_set_id: RECEIVE_BUFFER_ID,
            sender_owns_set: 0,
            reserved: 0,
            range_count: ranges.len() as u32,
        };
        let mut more = header.as_bytes().to_vec();
        more.extend_from_slice(ranges.as_bytes());
        let body = SendRndisPacket {
            channel_type,
            section: SendRndisPacket::NO_SECTION,
            section_bytes: 0,
        };
        self.channel.try_send(&Outbound {
            kind: PacketType::TRANSFER_PAGES,
            flags: hv_abi::vmbus::PacketDescriptor::COMPLETION_REQUESTED,
            transaction: first.into(),
            more: &more,
            payload: Message::new(&body).as_bytes(),
        })
    }
}

/// Agrees on a version, and begins anew.
fn initialize(nic: &Nic, session: &mut Session, init: Init) -> Message {
    let version =
        Version::ALL.into_iter().find(|v| (init.min_version..=init.max_version).contains(v));
    let status = match version {
        Some(_) if session.version.is_none() => Status::SUCCESS,
        Some(_) => Status::FAILURE,
        None => Status::PROTOCOL_TOO_NEW,
    };
    if let (Some(version), Status::SUCCESS) = (version, status) {
        session.version = Some(version);
        session.control = Some(nic.control(version));
    }
    Message::new(&InitComplete {
        negotiated_version: version.map_or(0, |version| version.0),
        // Pieces of guest memory a packet may have: as Hyper-V says.
        max_mdl_chain: 34,
        status,
    })
}
