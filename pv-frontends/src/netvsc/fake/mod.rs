//! A network host in memory, for tests, here and of crates above. It checks that the guest keeps to
//! the protocol, and keeps to it itself unless it is told otherwise.
#![allow(missing_docs, reason = "they are what they are called")]

mod control;
mod wire;

pub use control::rss_table;
pub use wire::write_page;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::nvsp::*;
use hv_abi::netvsc::ppi::{PerPacketInfo, PpiType};
use hv_abi::netvsc::rndis::{self, Body as _, MessageHeader, MessageType as RndisType};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::packet::{GpaDirectHeader, PacketType};
use hv_abi::vmbus::{ChannelId, ControlMessage, GpaRange, GpadlId, RescindChannelOffer};
use zerocopy::{FromBytes, FromZeros, IntoBytes, transmute};

use crate::vmbus::VmBus;
use crate::vmbus::fake::{Fake, Server};
use crate::vmbus::ring::{ControlWord, RingMemory};
use wire::{read, write};

pub const MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x01, 0x02, 0x03];

/// A frame the guest sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub channel: u32,
    /// The transaction it came in.
    pub id: u64,
    pub bytes: Vec<u8>,
    pub infos: Vec<(u32, u32)>,
    /// It was in a section.
    pub copied: bool,
}

struct Packet {
    era: Era,
    channel: u32,
    kind: PacketType,
    id: u64,
    wants_completion: bool,
    payload: Vec<u8>,
    external: Vec<u8>,
    /// Index of the last channel that was open then.
    last_queue: u16,
}

/// What the host is about to say.
enum Saying {
    /// An answer in the ring: the transaction, the message.
    Completion(u64, Vec<u8>),
    /// An RNDIS message.
    Message(Vec<u8>),
}

pub struct Host {
    pub server: Server,
    pub primary: u32,
    pub newest: Version,
    pub mtu: u32,
    pub link: bool,
    pub rss_queues: u32,
    pub section_bytes: u32,
    pub offloads: bool,
    pub refuse: Vec<MessageType>,
    pub silent: bool,
    pub refuse_sets: bool,
    /// Frames are left unanswered.
    pub keep: bool,
    kept: VecDeque<(Era, u64)>,
    /// NVSP messages of the guest's, without packets.
    pub told: Vec<u32>,
    pub lengths: Vec<usize>,
    pub config: Option<SendNdisConfig>,
    pub sets: Vec<(Oid, Vec<u8>)>,
    pub sent: Vec<Sent>,
    pub messages: usize,
    pub replies: Vec<u32>,
    /// The card's channel while the conversation goes on.
    session: Era,
    receive: Vec<u64>,
    send: Vec<u64>,
    pub free_sections: Vec<u32>,
    /// Sections of transfer-page packets that are not answered.
    pub outstanding: BTreeMap<u64, (Era, Vec<u32>)>,
    pub completions: Vec<(u64, u32)>,
    /// Numbers of packets that are none; whether they are answered does not matter.
    pub strangers: Vec<u64>,
    next_id: u64,
    pub next_sub_channel: u32,
    /// The card's.
    pub instance: u8,
    /// Packets handled so far.
    pub handled: usize,
    pub limit: usize,
    /// Taken out of the rings, and not handled.
    inbox: VecDeque<Packet>,
    /// There was no room for it.
    unsaid: VecDeque<(Era, Saying)>,
    /// Bytes of the next answer to be other than they should: where, and what.
    pub twist: Vec<(usize, u8)>,
    /// It said what is not so, and does not look at what the guest makes of it.
    pub is_lying: bool,
    pub send_section_bytes: u32,
    /// Of a message with several.
    pub max_packets: u32,
    pub alignment_shift: u32,
}

/// A channel, and which of its lives.
type Era = (u32, u32);

/// A frame for the guest: data, per-packet information.
pub type Frame<'a> = (&'a [u8], &'a [(PpiType, u32)]);

pub fn packet_message(frame: &[u8], infos: &[(PpiType, u32)]) -> Vec<u8> {
    let mut ppi = Vec::new();
    for (kind, value) in infos {
        ppi.extend_from_slice(PerPacketInfo::of_word(*kind).as_bytes());
        ppi.extend_from_slice(&value.to_le_bytes());
    }
    let body = rndis::Packet {
        data_offset: 36 + ppi.len() as u32,
        data_length: frame.len() as u32,
        per_packet_info_offset: if ppi.is_empty() { 0 } else { 36 },
        per_packet_info_length: ppi.len() as u32,
        ..rndis::Packet::new_zeroed()
    };
    let header = rndis::Packet::header((ppi.len() + frame.len()) as u32);
    [header.as_bytes(), body.as_bytes(), &ppi, frame].concat()
}

impl Host {
    pub fn new(fake: Fake) -> Self {
        Self {
            server: Server::new(fake),
            primary: 5,
            newest: Version::V6_1,
            mtu: 9000,
            link: true,
            rss_queues: 8,
            section_bytes: 1728,
            offloads: true,
            refuse: Vec::new(),
            silent: false,
            refuse_sets: false,
            keep: false,
            kept: VecDeque::new(),
            told: Vec::new(),
            lengths: Vec::new(),
            config: None,
            sets: Vec::new(),
            sent: Vec::new(),
            messages: 0,
            replies: Vec::new(),
            session: (0, 0),
            receive: Vec::new(),
            send: Vec::new(),
            free_sections: Vec::new(),
            outstanding: BTreeMap::new(),
            completions: Vec::new(),
            strangers: Vec::new(),
            next_id: 1,
            next_sub_channel: 101,
            instance: 1,
            handled: 0,
            limit: usize::MAX,
            inbox: VecDeque::new(),
            unsaid: VecDeque::new(),
            twist: Vec::new(),
            is_lying: false,
            send_section_bytes: 6144,
            max_packets: 8,
            alignment_shift: 3,
        }
    }

    pub fn run(&mut self, bus: &VmBus<Fake>) {
        for _ in 0..10_000 {
            // The rings first: a channel may be about to be closed.
            self.take();
            self.say_rest(bus);
            if self.inbox.is_empty() && self.is_idle(bus) {
                return;
            }
            while let Some(packet) = self.inbox.pop_front() {
                if self.handled < self.limit && !self.silent {
                    self.handled += 1;
                    self.handle(bus, &packet);
                }
            }
            self.answer_bus(bus);
        }
        panic!("the guest and the host go on and on");
    }

    /// Answers the bus, and takes what is in the rings without doing anything about it.
    pub fn look(&mut self, bus: &VmBus<Fake>) {
        for _ in 0..10_000 {
            self.take();
            self.say_rest(bus);
            if self.is_idle(bus) {
                return;
            }
            self.answer_bus(bus);
        }
        panic!("the guest and the bus go on and on");
    }

    /// Does what is due about the packet that came first; `false`: there is none.
    pub fn handle_next(&mut self, bus: &VmBus<Fake>) -> bool {
        let Some(packet) = self.inbox.pop_front() else { return false };
        self.handle(bus, &packet);
        true
    }

    fn is_idle(&self, bus: &VmBus<Fake>) -> bool {
        let inner = self.server.fake.inner();
        inner.posted.is_empty() && bus.next_poll_ns() > inner.now_ns
    }

    fn answer_bus(&mut self, bus: &VmBus<Fake>) {
        self.server.run(bus);
        self.server.fake.inner().signals.clear();
        self.forget();
    }

    fn take(&mut self) {
        let mut packets = Vec::new();
        let fake = self.server.fake.clone();
        let open = self.server.channels.values();
        let last_queue = open.map(|c| self.index(c.open.channel_id.0)).max().unwrap_or(0);
        for (&id, channel) in &mut self.server.channels {
            let era = (id, channel.open.open_id);
            let result = channel.incoming.receive(10_000, |packet| {
                let mut payload = vec![0; packet.payload_bytes()];
                packet.copy_payload(0, &mut payload);
                let kind = packet.packet_type();
                let mut external = Vec::new();
                if kind == PacketType::GPA_DIRECT {
                    let header: GpaDirectHeader = transmute!(packet.header_word(0).expect("it"));
                    assert!(header.range_count <= 32);
                    for nr in 0..header.range_count as usize {
                        let range: GpaRange =
                            transmute!(packet.header_word(1 + nr * 2).expect("a range"));
                        assert_eq!(range.pages(), 1);
                        let page = packet.header_word(2 + nr * 2).expect("a page");
                        let (at, len) = (range.byte_offset as usize, range.byte_count as usize);
                        external.extend(read(&fake, &[page], at, len));
                    }
                }
                packets.push(Packet {
                    era,
                    channel: id,
                    kind,
                    id: packet.transaction_id(),
                    wants_completion: packet.wants_completion(),
                    payload,
                    external,
                    last_queue,
                });
            });
            result.expect("the ring is whole");
        }
        self.inbox.extend(packets);
    }

    fn handle(&mut self, bus: &VmBus<Fake>, packet: &Packet) {
        if packet.kind == PacketType::COMPLETION {
            return self.completed(packet);
        }
        let (kind, body) = MessageType::read_from_prefix(&packet.payload).expect("a type");
        if kind != MessageType::SEND_RNDIS_PACKET {
            self.told.push(kind.0);
            self.lengths.push(packet.payload.len());
        }
        if self.refuse.contains(&kind) {
            let mut message = [0; 28];
            message[..4].copy_from_slice(&(kind.0 + 1).to_le_bytes());
            message[4..8].copy_from_slice(Status::FAILURE.as_bytes());
            return self.complete(bus, packet, &message);
        }
        match kind {
            MessageType::INIT => {
                self.session = packet.era;
                let init = Init::read_from_prefix(body).expect("a body").0;
                assert_eq!(init.min_version, init.max_version);
                let good = init.max_version <= self.newest;
                let status = if good { Status::SUCCESS } else { Status::NONE };
                let answer = InitComplete { negotiated_version: 0, max_mdl_chain: 34, status };
                self.answer(bus, packet, &answer);
            }
            MessageType::SEND_NDIS_CONFIG => {
                assert!(!packet.wants_completion);
                self.config = Some(SendNdisConfig::read_from_prefix(body).expect("a body").0);
            }
            MessageType::SEND_NDIS_VERSION | MessageType::REVOKE_SEND_BUFFER => {
                assert!(!packet.wants_completion);
            }
            MessageType::REVOKE_RECEIVE_BUFFER => {
                assert!(!packet.wants_completion);
                self.forget_buffer();
            }
            MessageType::SEND_RECEIVE_BUFFER => {
                let buffer = SendReceiveBuffer::read_from_prefix(body).expect("a body").0;
                assert_eq!(buffer.id, RECEIVE_BUFFER_ID);
                self.receive = self.pages(buffer.gpadl);
                let bytes = self.section_bytes;
                let count = (self.receive.len() * 4096) as u32 / bytes;
                self.free_sections = (0..count).rev().collect();
                let section = ReceiveSection { offset: 0, bytes, count, end: bytes * count };
                let status = Status::SUCCESS;
                let answer = SendReceiveBufferComplete { status, section_count: 1, section };
                self.answer(bus, packet, &answer);
            }
            MessageType::SEND_SEND_BUFFER => {
                let buffer = SendSendBuffer::read_from_prefix(body).expect("a body").0;
                self.send = self.pages(buffer.gpadl);
                let status = Status::SUCCESS;
                let section_bytes = self.send_section_bytes;
                self.answer(bus, packet, &SendSendBufferComplete { status, section_bytes });
            }
            MessageType::SUB_CHANNEL => {
                let request = SubChannelRequest::read_from_prefix(body).expect("a body").0;
                for index in 1..=request.count as u16 {
                    let id = self.next_sub_channel;
                    self.next_sub_channel += 1;
                    self.server.offer(id, interface::NETWORK, self.instance, index);
                    self.server.announce(bus, id);
                }
                let answer = SubChannelComplete { status: Status::SUCCESS, count: request.count };
                self.answer(bus, packet, &answer);
            }
            MessageType::SEND_RNDIS_PACKET => self.rndis(bus, packet, body),
            other => panic!("{other:?}"),
        }
    }

    /// The guest is done with what it received.
    fn completed(&mut self, packet: &Packet) {
        let Ok((kind, body)) = MessageType::read_from_prefix(&packet.payload) else { return };
        if kind != MessageType::SEND_RNDIS_PACKET_COMPLETE {
            return;
        }
        let (status, _) = u32::read_from_prefix(body).expect("a status");
        self.completions.push((packet.id, status));
        match self.outstanding.remove(&packet.id) {
            Some((_, sections)) => {
                // Who looks again sees that it should not have.
                let bytes = self.section_bytes as usize;
                for section in sections.iter().filter(|_| !self.receive.is_empty()) {
                    let at = *section as usize * bytes;
                    write(&self.server.fake, &self.receive, at, &vec![0xee; bytes]);
                }
                self.free_sections.extend(sections);
            }
            None => assert!(self.strangers.contains(&packet.id), "it was not sent"),
        }
    }

    fn pages(&self, id: GpadlId) -> Vec<u64> {
        self.server.gpadl_pages(id)
    }

    fn answer<T: Body>(&mut self, bus: &VmBus<Fake>, packet: &Packet, body: &T) {
        assert!(packet.wants_completion);
        self.complete(bus, packet, Message::new(body).as_bytes());
    }

    fn complete(&mut self, bus: &VmBus<Fake>, packet: &Packet, message: &[u8]) {
        let mut message = message[..28.min(message.len())].to_vec();
        self.twist(&mut message);
        self.say(bus, packet.channel, Saying::Completion(packet.id, message));
    }

    fn twist(&mut self, message: &mut [u8]) {
        for (at, value) in core::mem::take(&mut self.twist) {
            let byte = &mut message[at % message.len()];
            self.is_lying |= *byte != value;
            *byte = value;
        }
    }

    /// Says it behind what found no room before.
    fn say(&mut self, bus: &VmBus<Fake>, channel: u32, saying: Saying) {
        self.unsaid.push_back((self.era(channel), saying));
        self.say_rest(bus);
    }

    fn say_rest(&mut self, bus: &VmBus<Fake>) {
        while let Some((era, saying)) = self.unsaid.pop_front() {
            let channel = era.0;
            let is_said = self.era(channel) != era
                || match &saying {
                    Saying::Completion(id, message) => {
                        self.raw(bus, channel, PacketType::COMPLETION, *id, &[], message)
                    }
                    Saying::Message(message) => {
                        self.receive.is_empty() || self.push(bus, channel, &[message])
                    }
                };
            if !is_said {
                self.unsaid.push_front((era, saying));
                return;
            }
        }
    }

    fn rndis(&mut self, bus: &VmBus<Fake>, packet: &Packet, body: &[u8]) {
        let rndis = SendRndisPacket::read_from_prefix(body).expect("a body").0;
        let copied = rndis.section != SendRndisPacket::NO_SECTION;
        let is_data = rndis.channel_type != ChannelType::CONTROL;
        let mut bytes = if copied && !self.is_lying {
            let at = (rndis.section * self.send_section_bytes) as usize;
            read(&self.server.fake, &self.send, at, rndis.section_bytes as usize)
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(&packet.external);
        if !is_data {
            let status = Status::SUCCESS;
            let message = Message::new(&SendRndisPacketComplete { status });
            let message = message.as_bytes()[..28].to_vec();
            assert!(packet.wants_completion);
            self.say(bus, packet.channel, Saying::Completion(packet.id, message));
            return self.control(bus, packet, &bytes);
        }
        self.messages += 1;
        if !self.is_lying {
            self.frames(packet, &bytes, copied);
        }
        if self.keep {
            self.kept.push_back((packet.era, packet.id));
        } else {
            self.finish(bus, packet.channel, packet.id, Status::SUCCESS);
        }
    }

    fn frames(&mut self, sender: &Packet, mut bytes: &[u8], copied: bool) {
        while !bytes.is_empty() {
            let (header, body) = MessageHeader::read_from_prefix(bytes).expect("a header");
            assert_eq!(header.message_type, RndisType::PACKET);
            let packet = rndis::Packet::read_from_prefix(body).expect("a packet").0;
            let length = header.length as usize;
            assert!(length <= bytes.len(), "{length} of {}", bytes.len());
            let body = &bytes[8..length];
            let data = packet.data_offset as usize;
            let frame = body[data..data + packet.data_length as usize].to_vec();
            let at = packet.per_packet_info_offset as usize;
            let infos = body[at..at + packet.per_packet_info_length as usize]
                .chunks(16)
                .map(|info| {
                    let header = PerPacketInfo::read_from_prefix(info).expect("16 bytes").0;
                    assert_eq!((header.size, header.offset), (16, 12));
                    let value = u32::from_le_bytes(info[12..16].try_into().expect("4"));
                    (header.kind.0, value)
                })
                .collect();
            let (channel, id) = (sender.channel, sender.id);
            self.sent.push(Sent { channel, id, bytes: frame, infos, copied });
            bytes = &bytes[length..];
        }
    }

    /// Answers frames that were kept.
    pub fn release(&mut self, bus: &VmBus<Fake>, count: usize, status: Status) {
        for _ in 0..count {
            self.release_nth(bus, 0, status);
        }
    }

    pub fn release_last(&mut self, bus: &VmBus<Fake>) {
        if let Some(last) = self.kept.len().checked_sub(1) {
            self.release_nth(bus, last, Status::SUCCESS);
        }
    }

    pub fn release_nth(&mut self, bus: &VmBus<Fake>, nr: usize, status: Status) {
        if let Some(((channel, _), id)) = self.kept.remove(nr) {
            self.finish(bus, channel, id, status);
        }
    }

    /// Answers a transaction that was answered.
    pub fn complete_again(&mut self, bus: &VmBus<Fake>, channel: u32, id: u64) {
        self.finish(bus, channel, id, Status::SUCCESS);
    }

    /// The channel and the transaction of frames that were kept.
    pub fn kept_id(&self, nr: usize) -> Option<(u32, u64)> {
        self.kept.get(nr).map(|((channel, _), id)| (*channel, *id))
    }

    /// Answers and indications that wait for room.
    pub fn unsaid(&self) -> usize {
        self.unsaid.len()
    }

    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    fn finish(&mut self, bus: &VmBus<Fake>, channel: u32, id: u64, status: Status) {
        let message = Message::new(&SendRndisPacketComplete { status });
        let message = message.as_bytes()[..28].to_vec();
        self.say(bus, channel, Saying::Completion(id, message));
    }

    fn index(&self, id: u32) -> u16 {
        self.server.offers.get(&id).map_or(0, |offer| offer.sub_channel_index)
    }

    pub fn rescind(&mut self, bus: &VmBus<Fake>, id: u32) {
        self.server.offers.remove(&id);
        self.server.channels.remove(&id);
        self.forget();
        let channel_id = ChannelId(id);
        let rescind = RescindChannelOffer { channel_id, ..RescindChannelOffer::empty() };
        bus.on_message(rescind.as_bytes());
    }

    /// Which of its lives a channel is in; 0: none.
    pub fn era(&self, channel: u32) -> Era {
        (channel, self.server.channels.get(&channel).map_or(0, |open| open.open.open_id))
    }

    /// What went with channels that closed.
    pub fn forget(&mut self) {
        let channels = &self.server.channels;
        let lives = |era: &Era| channels.get(&era.0).is_some_and(|c| c.open.open_id == era.1);
        self.kept.retain(|(era, _)| lives(era));
        self.inbox.retain(|packet| lives(&packet.era));
        let has_session = lives(&self.session);
        let mut free = core::mem::take(&mut self.free_sections);
        self.outstanding.retain(|_, (era, sections)| {
            let lives = lives(era);
            if !lives {
                free.append(sections);
            }
            lives
        });
        self.free_sections = free;
        if !has_session {
            self.forget_buffer();
        }
    }

    /// The receive buffer is the guest's again.
    fn forget_buffer(&mut self) {
        self.receive.clear();
        self.free_sections.clear();
    }

    /// Frames of the receive buffer, in order.
    pub fn receive_pages(&self) -> &[u64] {
        &self.receive
    }

    /// Sub-channels that are open.
    pub fn sub_channels(&self) -> Vec<u32> {
        self.server.channels.keys().copied().filter(|id| *id != self.primary).collect()
    }

    pub fn corrupt(&mut self, bus: &VmBus<Fake>, id: u32) {
        let channel = &self.server.channels[&id];
        channel.outgoing.memory().store(ControlWord::WriteIndex, 3, Ordering::Relaxed);
        bus.on_signal(ChannelId(id));
    }
}
