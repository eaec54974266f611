//! A network host in memory.

mod wire;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumFlags, ENCAPSULATION_8023, LargeSendV2, ObjectHeader, ObjectType, Offload,
    OffloadParameters, RssCapabilities, RssParameters,
};
use hv_abi::netvsc::nvsp::*;
use hv_abi::netvsc::ppi::{PerPacketInfo, PpiType};
use hv_abi::netvsc::rndis::{self, Body as _, MessageHeader, MessageType as RndisType};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::packet::{GpaDirectHeader, PacketType};
use hv_abi::vmbus::{ChannelId, ControlMessage, GpaRange, GpadlId, RescindChannelOffer};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, transmute};

use crate::vmbus::VmBus;
use crate::vmbus::fake::{Fake, Server};
use crate::vmbus::ring::{ControlWord, RingMemory};
use wire::read;

pub(in crate::netvsc::tests) const MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x01, 0x02, 0x03];

/// A frame the guest sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::netvsc::tests) struct Sent {
    pub channel: u32,
    pub bytes: Vec<u8>,
    pub infos: Vec<(u32, u32)>,
    /// It was in a section.
    pub copied: bool,
}

struct Packet {
    channel: u32,
    kind: PacketType,
    id: u64,
    wants_completion: bool,
    payload: Vec<u8>,
    external: Vec<u8>,
}

pub(in crate::netvsc::tests) struct Host {
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
}

/// A channel, and which of its lives.
type Era = (u32, u32);

/// A frame for the guest: data, per-packet information.
pub(in crate::netvsc::tests) type Frame<'a> = (&'a [u8], &'a [(PpiType, u32)]);

pub(in crate::netvsc::tests) fn packet_message(frame: &[u8], infos: &[(PpiType, u32)]) -> Vec<u8> {
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
    pub(in crate::netvsc::tests) fn new(fake: Fake) -> Self {
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
        }
    }

    pub(in crate::netvsc::tests) fn run(&mut self, bus: &VmBus<Fake>) {
        for _ in 0..10_000 {
            // The rings first: a channel may be about to be closed.
            let packets = self.take();
            let is_idle = {
                let inner = self.server.fake.inner();
                inner.posted.is_empty() && bus.next_poll_ns() > inner.now_ns
            };
            if packets.is_empty() && is_idle {
                return;
            }
            for packet in packets {
                if self.handled < self.limit && !self.silent {
                    self.handled += 1;
                    self.handle(bus, &packet);
                }
            }
            self.server.run(bus);
            self.server.fake.inner().signals.clear();
            self.forget();
        }
        panic!("the guest and the host go on and on");
    }

    fn take(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        let fake = self.server.fake.clone();
        for (&id, channel) in &mut self.server.channels {
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
                    channel: id,
                    kind,
                    id: packet.transaction_id(),
                    wants_completion: packet.wants_completion(),
                    payload,
                    external,
                });
            });
            result.expect("the ring is whole");
        }
        packets
    }

    fn handle(&mut self, bus: &VmBus<Fake>, packet: &Packet) {
        let (kind, body) = MessageType::read_from_prefix(&packet.payload).expect("a type");
        if packet.kind == PacketType::COMPLETION {
            if kind == MessageType::SEND_RNDIS_PACKET_COMPLETE {
                let (status, _) = u32::read_from_prefix(body).expect("a status");
                self.completions.push((packet.id, status));
                match self.outstanding.remove(&packet.id) {
                    Some((_, sections)) => self.free_sections.extend(sections),
                    None => assert!(self.strangers.contains(&packet.id), "it was not sent"),
                }
            }
            return;
        }
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
            MessageType::SEND_NDIS_VERSION
            | MessageType::REVOKE_SEND_BUFFER
            | MessageType::REVOKE_RECEIVE_BUFFER => assert!(!packet.wants_completion),
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
                self.answer(bus, packet, &SendSendBufferComplete { status, section_bytes: 6144 });
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

    fn pages(&self, id: GpadlId) -> Vec<u64> {
        self.server.gpadl_pages(id)
    }

    fn answer<T: Body>(&mut self, bus: &VmBus<Fake>, packet: &Packet, body: &T) {
        assert!(packet.wants_completion);
        self.complete(bus, packet, Message::new(body).as_bytes());
    }

    fn complete(&mut self, bus: &VmBus<Fake>, packet: &Packet, message: &[u8]) {
        let message = &message[..28.min(message.len())];
        self.raw(bus, packet.channel, PacketType::COMPLETION, packet.id, &[], message);
    }

    fn rndis(&mut self, bus: &VmBus<Fake>, packet: &Packet, body: &[u8]) {
        let rndis = SendRndisPacket::read_from_prefix(body).expect("a body").0;
        let copied = rndis.section != SendRndisPacket::NO_SECTION;
        let mut bytes = if copied {
            let at = rndis.section as usize * 6144;
            read(&self.server.fake, &self.send, at, rndis.section_bytes as usize)
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(&packet.external);
        if rndis.channel_type == ChannelType::CONTROL {
            let status = Status::SUCCESS;
            self.answer(bus, packet, &SendRndisPacketComplete { status });
            return self.control(bus, packet.channel, &bytes);
        }
        self.messages += 1;
        self.frames(packet.channel, &bytes, copied);
        if self.keep {
            self.kept.push_back((self.era(packet.channel), packet.id));
        } else {
            self.finish(bus, packet.channel, packet.id, Status::SUCCESS);
        }
    }

    fn frames(&mut self, channel: u32, mut bytes: &[u8], copied: bool) {
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
            self.sent.push(Sent { channel, bytes: frame, infos, copied });
            bytes = &bytes[length..];
        }
    }

    /// Answers frames that were kept.
    pub(in crate::netvsc::tests) fn release(
        &mut self,
        bus: &VmBus<Fake>,
        count: usize,
        status: Status,
    ) {
        for _ in 0..count {
            let Some(((channel, _), id)) = self.kept.pop_front() else { return };
            self.finish(bus, channel, id, status);
        }
    }

    pub(in crate::netvsc::tests) fn release_last(&mut self, bus: &VmBus<Fake>) {
        if let Some(((channel, _), id)) = self.kept.pop_back() {
            self.finish(bus, channel, id, Status::SUCCESS);
        }
    }

    pub(in crate::netvsc::tests) fn kept(&self) -> usize {
        self.kept.len()
    }

    fn finish(&mut self, bus: &VmBus<Fake>, channel: u32, id: u64, status: Status) {
        let message = Message::new(&SendRndisPacketComplete { status });
        self.raw(bus, channel, PacketType::COMPLETION, id, &[], &message.as_bytes()[..28]);
    }

    fn control(&mut self, bus: &VmBus<Fake>, channel: u32, bytes: &[u8]) {
        let (header, body) = MessageHeader::read_from_prefix(bytes).expect("a header");
        assert_eq!(header.length as usize, bytes.len());
        match header.message_type {
            RndisType::INITIALIZE => {
                let request = rndis::Initialize::read_from_prefix(body).expect("it").0;
                let answer = rndis::InitializeComplete {
                    request_id: request.request_id,
                    major_version: 1,
                    device_flags: rndis::InitializeComplete::CONNECTIONLESS,
                    max_packets: 8,
                    max_transfer_bytes: 0xefff_ffff,
                    alignment_shift: 3,
                    ..rndis::InitializeComplete::new_zeroed()
                };
                self.reply(bus, channel, &answer, &[]);
            }
            RndisType::QUERY => {
                let query = rndis::Query::read_from_prefix(body).expect("it").0;
                let value = self.value(query.oid);
                let found = value.is_some();
                let value = value.unwrap_or_default();
                let answer = rndis::QueryComplete {
                    request_id: query.request_id,
                    status: if found {
                        rndis::Status::SUCCESS
                    } else {
                        rndis::Status::NOT_SUPPORTED
                    },
                    length: value.len() as u32,
                    offset: 16,
                };
                self.reply(bus, channel, &answer, &value);
            }
            RndisType::SET => {
                let set = rndis::Set::read_from_prefix(body).expect("it").0;
                let at = set.offset as usize;
                let value = body[at..at + set.length as usize].to_vec();
                self.check_set(set.oid, &value);
                self.sets.push((set.oid, value));
                let status =
                    if self.refuse_sets { rndis::Status::FAILURE } else { rndis::Status::SUCCESS };
                let answer = rndis::SetComplete { request_id: set.request_id, status };
                self.reply(bus, channel, &answer, &[]);
            }
            RndisType::KEEPALIVE_COMPLETE => {
                let answer = rndis::KeepaliveComplete::read_from_prefix(body).expect("it").0;
                self.replies.push(answer.request_id);
            }
            RndisType::HALT => {}
            other => panic!("{other:?}"),
        }
    }

    fn check_set(&self, oid: Oid, value: &[u8]) {
        match oid {
            Oid::TCP_OFFLOAD_PARAMETERS => {
                let set = OffloadParameters::read_from_bytes(value).expect("whole");
                assert_eq!((set.header.revision, set.header.size), (3, 28));
            }
            Oid::GEN_RECEIVE_SCALE_PARAMETERS => {
                let rss = RssParameters::read_from_prefix(value).expect("whole").0;
                assert_eq!(value.len(), 40 + 512 + 40);
                assert_eq!((rss.table_offset, rss.key_offset), (40, 552));
                let open = self.server.channels.values();
                let most = open.map(|c| self.index(c.open.channel_id.0)).max().unwrap_or(0);
                assert!(rss_table(value).iter().all(|queue| *queue <= u32::from(most)));
            }
            _ => assert_eq!(value.len(), 4),
        }
    }

    fn index(&self, id: u32) -> u16 {
        self.server.offers.get(&id).map_or(0, |offer| offer.sub_channel_index)
    }

    fn value(&self, oid: Oid) -> Option<Vec<u8>> {
        Some(match oid {
            Oid::IEEE_802_3_PERMANENT_ADDRESS => MAC.to_vec(),
            Oid::GEN_MAXIMUM_FRAME_SIZE => {
                let mtu = self.config.map_or(1500, |config| config.mtu - 14);
                mtu.min(self.mtu).to_le_bytes().to_vec()
            }
            Oid::GEN_MEDIA_CONNECT_STATUS => u32::from(!self.link).to_le_bytes().to_vec(),
            Oid::GEN_LINK_SPEED => 100_000_000u32.to_le_bytes().to_vec(),
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES if self.offloads => {
                let mut offload = Offload::new_zeroed();
                offload.header = ObjectHeader {
                    object_type: ObjectType::OFFLOAD,
                    revision: 3,
                    size: Offload::BYTES_3 as u16,
                };
                offload.checksum.ipv4_tx = ChecksumFlags(0x155);
                offload.checksum.ipv6_tx = ChecksumFlags(0x55);
                offload.lso_v2 = LargeSendV2 {
                    ipv4_encapsulation: ENCAPSULATION_8023,
                    ipv4_max_bytes: 0xf53c,
                    ipv4_min_segments: 2,
                    ipv6_encapsulation: ENCAPSULATION_8023,
                    ipv6_max_bytes: 0xf53c,
                    ipv6_min_segments: 2,
                    ipv6_options: 5,
                };
                (offload.rsc.ipv4, offload.rsc.ipv6) = (1, 1);
                offload.as_bytes().to_vec()
            }
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES if self.rss_queues > 1 => {
                let mut rss = RssCapabilities::new_zeroed();
                rss.header = ObjectHeader {
                    object_type: ObjectType::RSS_CAPABILITIES,
                    revision: 2,
                    size: RssCapabilities::BYTES_2 as u16,
                };
                (rss.receive_queues, rss.table_entries) = (self.rss_queues, 128);
                rss.as_bytes()[..RssCapabilities::BYTES_2].to_vec()
            }
            _ => return None,
        })
    }

    fn reply<T: rndis::Body + Immutable>(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        body: &T,
        value: &[u8],
    ) {
        let header = T::header(value.len() as u32);
        let message = [header.as_bytes(), body.as_bytes(), value].concat();
        assert!(self.push(bus, channel, &[&message]), "no room");
    }

    /// Says something of itself.
    pub(in crate::netvsc::tests) fn indicate(
        &mut self,
        bus: &VmBus<Fake>,
        status: rndis::Status,
        value: &[u8],
    ) {
        let length = value.len() as u32;
        let body = rndis::IndicateStatus { status, length, offset: 12 };
        self.reply(bus, self.primary, &body, value);
    }

    pub(in crate::netvsc::tests) fn keepalive(&mut self, bus: &VmBus<Fake>, request_id: u32) {
        self.reply(bus, self.primary, &rndis::Keepalive { request_id }, &[]);
    }

    pub(in crate::netvsc::tests) fn rescind(&mut self, bus: &VmBus<Fake>, id: u32) {
        self.server.offers.remove(&id);
        self.server.channels.remove(&id);
        self.forget();
        let channel_id = ChannelId(id);
        let rescind = RescindChannelOffer { channel_id, ..RescindChannelOffer::empty() };
        bus.on_message(rescind.as_bytes());
    }

    /// Which of its lives a channel is in; 0: none.
    pub(in crate::netvsc::tests) fn era(&self, channel: u32) -> Era {
        (channel, self.server.channels.get(&channel).map_or(0, |open| open.open.open_id))
    }

    /// What went with channels that closed.
    pub(in crate::netvsc::tests) fn forget(&mut self) {
        let channels = &self.server.channels;
        let lives = |era: &Era| channels.get(&era.0).is_some_and(|c| c.open.open_id == era.1);
        self.kept.retain(|(era, _)| lives(era));
        let mut free = core::mem::take(&mut self.free_sections);
        self.outstanding.retain(|_, (era, sections)| {
            let lives = lives(era);
            if !lives {
                free.append(sections);
            }
            lives
        });
        self.free_sections = free;
    }

    /// Sub-channels that are open.
    pub(in crate::netvsc::tests) fn sub_channels(&self) -> Vec<u32> {
        self.server.channels.keys().copied().filter(|id| *id != self.primary).collect()
    }

    pub(in crate::netvsc::tests) fn corrupt(&mut self, bus: &VmBus<Fake>, id: u32) {
        let channel = &self.server.channels[&id];
        channel.outgoing.memory().store(ControlWord::WriteIndex, 3, Ordering::Relaxed);
        bus.on_signal(ChannelId(id));
    }
}

/// The queues of a receive-side scaling object's table.
pub(in crate::netvsc::tests) fn rss_table(value: &[u8]) -> Vec<u32> {
    let entries = value[40..552].chunks(4);
    entries.map(|entry| u32::from_le_bytes(entry.try_into().expect("4"))).collect()
}
