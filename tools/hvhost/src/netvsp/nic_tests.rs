//! Whole conversations: VMBus, NVSP, RNDIS and frames, without KVM.

use super::*;
use crate::net::frame::tests::packet;
use crate::net::frame::{Layout, Version as Ip, protocol};
use crate::net::{Stream, checksum};
use crate::netvsp::packet::{part, split};
use crate::vmbus::Packet;
use crate::vmbus::test_guest::{Guest, Open};
use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumSetting, HashInformation, ObjectHeader, ObjectType, OffloadParameters, RssParameters,
};
use hv_abi::netvsc::nvsp::{
    Body as _, ChannelType, Init, InitComplete, Message, MessageType, RECEIVE_BUFFER_ID,
    SendIndirectionTable, SendReceiveBuffer, SendReceiveBufferComplete, SendRndisPacket,
    SendRndisPacketComplete, SendSendBuffer, SendSendBufferComplete, Status, SubChannelComplete,
    SubChannelOperation, SubChannelRequest,
};
use hv_abi::netvsc::ppi::{LargeSend, PerPacketInfo, PpiType, TxChecksum};
use hv_abi::netvsc::rndis::{self, Body as _, IndicateStatus, Initialize, Set, SetComplete};
use hv_abi::vmbus::message::{CloseChannel, RelidReleased};
use hv_abi::vmbus::packet::{GpaDirectHeader, TransferPageHeader, TransferPageRange};
use hv_abi::vmbus::{ChannelId, GpaRange, PacketType, RescindChannelOffer};
use std::os::unix::net::UnixStream;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First page of the receive buffer; so many of them.
const RECEIVE: (u64, u64) = (0x800, 8);
const SEND: (u64, u64) = (0x900, 6);
const DATA_PAGE: u64 = 0x200;
/// Of the receive buffer, for frames of 1514 bytes and a tag.
const SECTION: u32 = 1664;
const SECTIONS: usize = 19;

struct Lab {
    guest: Guest,
    nic: Arc<Nic>,
    /// The other side.
    wire: Stream,
    primary: Open,
}

/// A guest whose adapter is open, and a wire on which frames come with `offload` or not.
fn lab(channels: u16, offload: bool) -> Lab {
    let (near, far) = UnixStream::pair().unwrap();
    let mut made = None;
    let guest = Guest::new(|memory, bus, counters| {
        let parts = Parts {
            number: 0,
            mac: Mac([0, 0x15, 0x5d, 0, 0, 1]),
            mtu: 9000,
            channels,
            monitored: false,
            backend: Arc::new(Stream::new(near.into(), offload).unwrap()),
            counters: counters.nic("net0"),
        };
        let nic = Nic::new(memory, parts).unwrap();
        bus.offer(nic.clone()).unwrap();
        made = Some(nic);
    });
    let primary = guest.open(ChannelId(1), 0x400, 8);
    Lab { guest, nic: made.unwrap(), wire: Stream::new(far.into(), offload).unwrap(), primary }
}

fn body<T: rndis::Body>(message: &[u8]) -> T {
    let (kind, body) = split(message).unwrap();
    assert_eq!(kind, T::TYPE);
    T::read_from_prefix(body).unwrap().0
}

impl Lab {
    fn ask<T: FromBytes>(&mut self, message: &Message) -> T {
        self.guest.send(&mut self.primary, PacketType::IN_BAND, true, &[], message.as_bytes());
        let packet = self.guest.receive(&mut self.primary);
        assert_eq!((packet.kind(), packet.transaction()), (PacketType::COMPLETION, Some(77)));
        T::read_from_prefix(&packet.payload()[4..]).unwrap().0
    }

    fn init(&mut self, version: Version) -> Status {
        let init = Init { min_version: version, max_version: version };
        self.ask::<InitComplete>(&Message::new(&init)).status
    }

    /// Version, buffers, RNDIS.
    fn begin(&mut self, version: Version, frame: u32) {
        assert_eq!(self.init(version), Status::SUCCESS);
        if version.has_ndis_config() {
            let capabilities = Capabilities(Capabilities::IEEE_8021Q);
            let config = Message::new(&SendNdisConfig { mtu: frame, reserved: 0, capabilities });
            self.guest.send(&mut self.primary, PacketType::IN_BAND, false, &[], config.as_bytes());
        }
        let gpadl = self.guest.gpadl(ChannelId(1), RECEIVE.0, RECEIVE.1);
        let buffer = SendReceiveBuffer { gpadl, id: RECEIVE_BUFFER_ID, reserved: 0 };
        let complete: SendReceiveBufferComplete = self.ask(&Message::new(&buffer));
        assert_eq!((complete.status, complete.section_count), (Status::SUCCESS, 1));
        assert_eq!(self.ask::<Status>(&Message::new(&buffer)), Status::FAILURE, "only one");
        let gpadl = self.guest.gpadl(ChannelId(1), SEND.0, SEND.1);
        let buffer = SendSendBuffer { gpadl, id: 0, reserved: 0 };
        let complete: SendSendBufferComplete = self.ask(&Message::new(&buffer));
        assert_eq!((complete.status, complete.section_bytes), (Status::SUCCESS, 6144));
        let asked = Initialize {
            request_id: 1,
            major_version: 1,
            minor_version: 0,
            max_transfer_bytes: 0x4000,
        };
        let answer = self.control(&asked, &[]);
        assert_eq!(body::<rndis::InitializeComplete>(&answer).request_id, 1);
    }

    /// Asks RNDIS something, from guest pages; the answer.
    fn control<T: rndis::Body>(&mut self, asked: &T, more: &[u8]) -> Vec<u8> {
        let message = [T::header(more.len() as u32).as_bytes(), asked.as_bytes(), more].concat();
        assert_eq!(self.send_pages(ChannelType::CONTROL, &message), Status::SUCCESS);
        let (channel_type, mut messages) = self.received();
        assert_eq!(channel_type, ChannelType::CONTROL);
        messages.remove(0)
    }

    fn set(&mut self, oid: Oid, value: &[u8]) {
        let asked =
            Set { request_id: 2, oid, length: value.len() as u32, offset: 20, vc_handle: 0 };
        let answer = self.control(&asked, value);
        assert_eq!(body::<SetComplete>(&answer).status, rndis::Status::SUCCESS, "{oid:?}");
    }

    /// Sends what is in guest pages, a few bytes into the first.
    fn send_pages(&mut self, channel_type: ChannelType, bytes: &[u8]) -> Status {
        let at = GuestAddress(DATA_PAGE * 4096 + 40);
        self.guest.memory.write_slice(bytes, at).unwrap();
        let range = GpaRange { byte_count: bytes.len() as u32, byte_offset: 40 };
        let mut more = GpaDirectHeader { reserved: 0, range_count: 1 }.as_bytes().to_vec();
        more.extend_from_slice(range.as_bytes());
        (0..range.pages()).for_each(|page| more.extend((DATA_PAGE + page).to_le_bytes()));
        self.send_with(channel_type, SendRndisPacket::NO_SECTION, 0, PacketType::GPA_DIRECT, &more)
    }

    fn send_with(
        &mut self,
        channel_type: ChannelType,
        section: u32,
        section_bytes: u32,
        kind: PacketType,
        more: &[u8],
    ) -> Status {
        let message = Message::new(&SendRndisPacket { channel_type, section, section_bytes });
        self.guest.send(&mut self.primary, kind, true, more, message.as_bytes());
        let packet = self.guest.receive(&mut self.primary);
        assert_eq!(packet.kind(), PacketType::COMPLETION);
        let (message, _) =
            Message::read_from_prefix(&[packet.payload(), &[0; 40]].concat()).unwrap();
        message.get::<SendRndisPacketComplete>().unwrap().status
    }

    /// Messages of the next packet of the host's, which is given back.
    fn received(&mut self) -> (ChannelType, Vec<Vec<u8>>) {
        let packet = self.guest.receive(&mut self.primary);
        let all = self.ranges(&packet);
        let transaction = packet.transaction().unwrap();
        self.give_back(transaction);
        all
    }

    fn give_back(&mut self, transaction: u64) {
        let done = Message::new(&SendRndisPacketComplete { status: Status::SUCCESS });
        self.guest.complete(&mut self.primary, transaction, done.as_bytes());
    }

    fn ranges(&self, packet: &Packet) -> (ChannelType, Vec<Vec<u8>>) {
        assert_eq!(packet.kind(), PacketType::TRANSFER_PAGES);
        let (header, mut rest) = TransferPageHeader::read_from_prefix(packet.more()).unwrap();
        assert_eq!(header.transfer_page_set_id, RECEIVE_BUFFER_ID);
        let mut messages = Vec::new();
        for _ in 0..header.range_count {
            let (range, after) = TransferPageRange::read_from_prefix(rest).unwrap();
            rest = after;
            let mut bytes = vec![0; range.byte_count as usize];
            let at = RECEIVE.0 * 4096 + u64::from(range.byte_offset);
            self.guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            messages.push(bytes);
        }
        let (kind, body) = MessageType::read_from_prefix(packet.payload()).unwrap();
        assert_eq!(kind, SendRndisPacket::TYPE);
        (SendRndisPacket::read_from_prefix(body).unwrap().0.channel_type, messages)
    }

    fn frame_from_wire(&self) -> Frame {
        let mut frame = Frame::default();
        assert!(self.wire.receive(&mut frame).unwrap());
        frame
    }

    fn counters(&self) -> crate::netvsp::NicReport {
        self.guest.counters.report("", None).nics["net0"]
    }
}

/// A packet message with these words of information.
fn data(frame: &[u8], infos: &[(PpiType, u32)]) -> Vec<u8> {
    let more = infos.len() as u32 * 16;
    let packet = rndis::Packet {
        data_offset: 36 + more,
        data_length: frame.len() as u32,
        per_packet_info_offset: 36,
        per_packet_info_length: more,
        ..rndis::Packet::new_zeroed()
    };
    let mut bytes = rndis::Packet::header(more + frame.len() as u32).as_bytes().to_vec();
    bytes.extend_from_slice(packet.as_bytes());
    for (kind, value) in infos {
        bytes.extend_from_slice(PerPacketInfo::of_word(*kind).as_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(frame);
    bytes
}

fn frame_of(message: &[u8]) -> (rndis::Packet, Vec<u8>) {
    let (_, all) = split(message).unwrap();
    let packet: rndis::Packet = body(message);
    (packet, part(all, packet.data_offset, packet.data_length).unwrap().to_vec())
}

fn to_guest(payload: usize) -> Vec<u8> {
    let mut frame = packet(Ip::V4, protocol::UDP, &vec![3; payload]);
    frame[..6].copy_from_slice(&[0, 0x15, 0x5d, 0, 0, 1]);
    frame
}

#[test]
fn versions_are_agreed_on() {
    for version in Version::ALL {
        let mut lab = lab(1, false);
        assert_eq!(lab.init(Version(0x0007_0000)), Status::PROTOCOL_TOO_NEW);
        let early = SendSendBuffer { gpadl: hv_abi::vmbus::GpadlId(1), id: 0, reserved: 0 };
        assert_eq!(lab.ask::<Status>(&Message::new(&early)), Status::NONE, "out of order");
        lab.begin(version, 1514);
        assert_eq!(lab.init(version), Status::FAILURE, "once only");
    }
}

#[test]
fn frames_go_out_as_the_back_end_can_take_them() {
    for offload in [true, false] {
        let mut lab = lab(1, offload);
        let frame = packet(Ip::V6, protocol::TCP, &[5; 3000]);
        assert_eq!(
            lab.send_pages(ChannelType::DATA, &data(&frame, &[])),
            Status::INVALID_RNDIS_PACKET
        );
        lab.begin(Version::V6_1, 1514);
        let large = LargeSend::v2(1400, 54, true).0;
        let bytes = data(&frame, &[(PpiType::LARGE_SEND, large)]);
        assert_eq!(lab.send_pages(ChannelType::DATA, &bytes), Status::SUCCESS);
        if offload {
            let frame = lab.frame_from_wire();
            assert_eq!((frame.offload.segment, frame.bytes.len()), (Some(1400), 3074));
        } else {
            for length in [1400, 1400, 200] {
                let frame = lab.frame_from_wire();
                let layout = Layout::of(&frame.bytes).unwrap();
                assert_eq!(frame.bytes.len(), 74 + length);
                assert_eq!(checksum::transport_is_right(&frame.bytes, &layout), Some(true));
            }
        }
        // Two in a section, the second's end in pages.
        let sum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::UDP, 34).0;
        let one = data(&packet(Ip::V4, protocol::UDP, b"one."), &[(PpiType::CHECKSUM, sum)]);
        let two = data(&packet(Ip::V4, protocol::UDP, b"two!"), &[]);
        let both = [one.as_slice(), &two].concat();
        let (there, here) = both.split_at(both.len() - 20);
        let section = GuestAddress(SEND.0 * 4096 + 6144);
        lab.guest.memory.write_slice(there, section).unwrap();
        lab.guest.memory.write_slice(here, GuestAddress(DATA_PAGE * 4096)).unwrap();
        let range = GpaRange { byte_count: 20, byte_offset: 0 };
        let direct = GpaDirectHeader { reserved: 0, range_count: 1 };
        let more = [direct.as_bytes(), range.as_bytes(), &DATA_PAGE.to_le_bytes()].concat();
        let kind = PacketType::GPA_DIRECT;
        let status = lab.send_with(ChannelType::DATA, 1, there.len() as u32, kind, &more);
        assert_eq!(status, Status::SUCCESS);
        let first = lab.frame_from_wire();
        assert_eq!(first.offload.checksum.is_some(), offload);
        assert_eq!(lab.frame_from_wire().bytes[42..], *b"two!");
        let counters = lab.counters();
        assert_eq!((counters.sent_frames, counters.sent_large, counters.sent_checksum), (3, 1, 1));
        assert_eq!(counters.sent_malformed, 1);
    }
}

#[test]
fn frames_come_in_as_the_guest_wants_them() {
    let mut lab = lab(1, true);
    lab.begin(Version::V6_1, 1514);
    let frame = Frame::plain(to_guest(100));
    lab.wire.send(&frame).unwrap();
    while lab.counters().filtered == 0 {
        thread::yield_now();
    }
    lab.set(Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]);
    lab.wire.send(&frame).unwrap();
    let (channel_type, messages) = lab.received();
    assert_eq!((channel_type, frame_of(&messages[0]).1), (ChannelType::DATA, frame.bytes.clone()));
    // With a tag, and a checksum nobody has made yet.
    let on = OffloadParameters {
        header: ObjectHeader { object_type: ObjectType::DEFAULT, revision: 3, size: 28 },
        udp_ipv4_checksum: ChecksumSetting::TX_RX,
        ..OffloadParameters::new_zeroed()
    };
    lab.set(Oid::TCP_OFFLOAD_PARAMETERS, on.as_bytes());
    let mut tagged = frame.clone();
    let layout = Layout::of(&tagged.bytes).unwrap();
    tagged.offload.checksum = checksum::begin_transport(&mut tagged.bytes, &layout);
    tagged.put_vlan(7);
    lab.wire.send(&tagged).unwrap();
    let (_, messages) = lab.received();
    let (packet, bytes) = frame_of(&messages[0]);
    assert_eq!(packet.per_packet_info_length, 32);
    assert_eq!(checksum::transport_is_right(&bytes, &layout), Some(true));
    // Longer than the guest said.
    lab.wire.send(&Frame::plain(to_guest(1473))).unwrap();
    lab.wire.send(&Frame::plain(to_guest(1472))).unwrap();
    let (_, messages) = lab.received();
    assert_eq!(frame_of(&messages[0]).1.len(), 1514);
    assert_eq!((lab.counters().unfit, lab.counters().received_frames), (1, 3));
}

#[test]
fn sections_are_lent_and_come_back() {
    let mut lab = lab(1, false);
    lab.begin(Version::V5, 1514);
    lab.set(Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]);
    for _ in 0..SECTIONS + 5 {
        lab.wire.send(&Frame::plain(to_guest(1472))).unwrap();
    }
    let (mut lent, mut transactions) = (0, Vec::new());
    while lent < SECTIONS {
        let packet = lab.guest.receive(&mut lab.primary);
        lent += lab.ranges(&packet).1.len();
        transactions.push(packet.transaction().unwrap());
    }
    assert_eq!(lent, SECTIONS, "{SECTION} bytes each");
    thread::sleep(std::time::Duration::from_millis(30));
    assert!(!lab.primary.inc.next(&mut Packet::default()).unwrap(), "there is no more room");
    let malformed = |lab: &Lab| lab.guest.counters.report("", None).channels["net0"].malformed;
    let before = malformed(&lab);
    lab.give_back(transactions[0] + 1000);
    transactions.into_iter().for_each(|transaction| lab.give_back(transaction));
    let mut rest = 0;
    while rest < 5 {
        rest += lab.received().1.len();
    }
    assert_eq!((rest, lab.counters().no_room, malformed(&lab)), (5, 0, before + 1));
}

#[test]
fn the_cable_is_pulled() {
    let mut lab = lab(1, false);
    lab.begin(Version::V6_1, 1514);
    lab.set(Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]);
    lab.nic.set_link(false);
    let (_, messages) = lab.received();
    let down = body::<IndicateStatus>(&messages[0]).status;
    assert_eq!(down, rndis::Status::MEDIA_DISCONNECT);
    let frame = data(&to_guest(10), &[]);
    assert_eq!(lab.send_pages(ChannelType::DATA, &frame), Status::SUCCESS);
    assert_eq!(lab.counters().sent_dropped, 1);
    lab.nic.set_link(true);
    let (_, messages) = lab.received();
    assert_eq!(body::<IndicateStatus>(&messages[0]).status, rndis::Status::MEDIA_CONNECT);
}

#[test]
fn a_lost_wire_is_a_pulled_cable() {
    let mut lab = lab(1, false);
    lab.begin(Version::V6_1, 1514);
    let (a, _b) = UnixStream::pair().unwrap();
    lab.wire = Stream::new(a.into(), false).unwrap();
    let (_, messages) = lab.received();
    let down = body::<IndicateStatus>(&messages[0]).status;
    assert_eq!(down, rndis::Status::MEDIA_DISCONNECT);
    assert!(!lab.nic.is_up());
}

#[test]
fn several_channels() {
    let mut lab = lab(4, false);
    lab.begin(Version::V6_1, 1514);
    let asked = SubChannelRequest { operation: SubChannelOperation::ALLOCATE, count: 9 };
    let complete: SubChannelComplete = lab.ask(&Message::new(&asked));
    assert_eq!((complete.status, complete.count), (Status::SUCCESS, 3));
    let table = lab.guest.receive(&mut lab.primary);
    let (kind, rest) = MessageType::read_from_prefix(table.payload()).unwrap();
    assert_eq!(kind, SendIndirectionTable::TYPE);
    let (head, _) = SendIndirectionTable::read_from_prefix(rest).unwrap();
    let entries = &table.payload()[head.offset as usize..][..64];
    assert_eq!(entries[12..20], [3, 0, 0, 0, 0, 0, 0, 0]);
    lab.set(Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]);
    // Everything to the third.
    let parameters = RssParameters {
        header: ObjectHeader { object_type: ObjectType::RSS_PARAMETERS, revision: 2, size: 40 },
        hash: HashInformation(HashInformation::TOEPLITZ | HashInformation::IPV4),
        table_bytes: 4,
        table_offset: 40,
        key_bytes: 40,
        key_offset: 44,
        ..RssParameters::new_zeroed()
    };
    let value = [parameters.as_bytes(), &[2, 0, 0, 0], &[9; 40]].concat();
    lab.set(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &value);
    let frame = Frame::plain(to_guest(64));
    lab.wire.send(&frame).unwrap();
    let (_, messages) = lab.received();
    let (packet, _) = frame_of(&messages[0]);
    assert_eq!(packet.per_packet_info_length, 16, "the hash, on the only open channel");
    let offer = loop {
        let offer: OfferChannel = lab.guest.message();
        if offer.sub_channel_index == 2 {
            break offer;
        }
    };
    let mut third = lab.guest.open(offer.channel_id, 0x500, 8);
    while !lab.nic.lanes[2].is_open() {
        thread::yield_now();
    }
    lab.wire.send(&frame).unwrap();
    let packet = lab.guest.receive(&mut third);
    let (channel_type, messages) = lab.ranges(&packet);
    assert_eq!((channel_type, frame_of(&messages[0]).1), (ChannelType::DATA, frame.bytes));
    // It is not this channel's to give back.
    lab.give_back(packet.transaction().unwrap());
    let init = Message::new(&Init { min_version: Version::V5, max_version: Version::V5 });
    lab.guest.send(&mut third, PacketType::IN_BAND, true, &[], init.as_bytes());
    let refused = lab.guest.receive(&mut third);
    assert_eq!(refused.payload()[..4], [0; 4], "the primary channel's business");
    assert_eq!(lab.nic.facts().2, 2);
}

#[test]
fn what_was_sent_is_completed_when_it_is_taken_away() {
    let mut lab = lab(1, true);
    lab.begin(Version::V6_1, 1514);
    let frame = data(&to_guest(10), &[]);
    lab.guest.memory.write_slice(&frame, GuestAddress(SEND.0 * 4096)).unwrap();
    let body = SendRndisPacket {
        channel_type: ChannelType::DATA,
        section: 0,
        section_bytes: frame.len() as u32,
    };
    let message = Message::new(&body);
    lab.set(Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]);
    lab.guest.bus.revoke(0);
    assert_eq!(lab.guest.message::<RescindChannelOffer>().channel_id, ChannelId(1));
    // The same adapter is told of when this one is done with.
    lab.guest.bus.offer(lab.nic.clone()).unwrap();
    while lab.nic.facts().2 != 0 {
        thread::yield_now();
    }
    lab.wire.send(&Frame::plain(to_guest(9))).unwrap();
    for _ in 0..4 {
        lab.guest.send(&mut lab.primary, PacketType::IN_BAND, true, &[], message.as_bytes());
        let packet = lab.guest.receive(&mut lab.primary);
        assert_eq!((packet.kind(), packet.payload()[4]), (PacketType::COMPLETION, 1));
    }
    let channel_id = ChannelId(1);
    lab.guest.post(&CloseChannel { channel_id, ..CloseChannel::empty() });
    lab.guest.post(&RelidReleased { channel_id, ..RelidReleased::empty() });
    let offer: OfferChannel = lab.guest.message();
    assert_ne!(offer.channel_id, channel_id);
    // Again, and this time the guest does not even close it.
    lab.primary = lab.guest.open(offer.channel_id, 0x500, 8);
    assert_eq!(lab.init(Version::V6_1), Status::SUCCESS);
    lab.guest.bus.revoke(1);
    assert_eq!(lab.guest.message::<RescindChannelOffer>().channel_id, offer.channel_id);
    lab.guest.bus.offer(lab.nic.clone()).unwrap();
    lab.guest.post(&RelidReleased { channel_id: offer.channel_id, ..RelidReleased::empty() });
    let third: OfferChannel = lab.guest.message();
    lab.primary = lab.guest.open(third.channel_id, 0x600, 8);
    assert_eq!(lab.init(Version::V6_1), Status::SUCCESS);
    assert_eq!(lab.guest.counters.report("", None).vmbus_malformed, 0);
}
