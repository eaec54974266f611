//! Packets as guests write them, and anything else.

use super::*;
use crate::net::frame::Version;
use crate::net::frame::tests::packet;
use crate::netvsp::buffers::SECTION_OVERHEAD;
use proptest::prelude::*;

/// A packet message with these words of information.
fn message(frame: &[u8], infos: &[(PpiType, u32)]) -> Vec<u8> {
    let more = infos.len() as u32 * 16;
    let body = Packet {
        data_offset: 36 + more,
        data_length: frame.len() as u32,
        per_packet_info_offset: if infos.is_empty() { 0 } else { 36 },
        per_packet_info_length: more,
        ..Packet::new_zeroed()
    };
    let mut bytes = Packet::header(more + frame.len() as u32).as_bytes().to_vec();
    bytes.extend_from_slice(body.as_bytes());
    for (kind, value) in infos {
        bytes.extend_from_slice(PerPacketInfo::of_word(*kind).as_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(frame);
    bytes
}

fn parse(message: &[u8]) -> Option<Frame> {
    let (kind, body) = split(message)?;
    assert_eq!(kind, MessageType::PACKET);
    outbound(body)
}

#[test]
fn several_messages_in_one() {
    let one = message(&[1; 20], &[]);
    let two = message(&[2; 30], &[(PpiType::HASH_VALUE, 7)]);
    let mut all = [one.clone(), two.clone()].concat();
    all.extend([0; 5]);
    let list: Vec<_> = messages(&all).collect();
    assert_eq!(list, [Some(one.as_slice()), Some(&two)]);
    all.extend([0; 8]);
    assert_eq!(messages(&all).last(), Some(None), "of no length");
    assert_eq!(parse(&two).unwrap(), Frame::plain(vec![2; 30]));
}

#[test]
fn wishes_become_what_is_left_to_do() {
    for (version, flags) in [(Version::V4, TxChecksum::IPV4), (Version::V6, TxChecksum::IPV6)] {
        for (protocol, flag, offset) in
            [(protocol::TCP, TxChecksum::TCP, 16), (protocol::UDP, TxChecksum::UDP, 6)]
        {
            let mut bytes = packet(version, protocol, b"some data");
            let layout = Layout::of(&bytes).unwrap();
            let sum = TxChecksum::new(flags | flag, layout.l4 as u16);
            let tagged = [(PpiType::CHECKSUM, sum.0), (PpiType::VLAN, Vlan::from_tci(0x6123).0)];
            let mut frame = parse(&message(&bytes, &tagged)).unwrap();
            let start = layout.l4 as u16 + 4;
            assert_eq!(frame.offload.checksum, Some(Partial { start, offset }));
            assert_eq!(frame.take_vlan(), Some(0x6123));
            checksum::complete(&mut frame);
            checksum::fill_transport(&mut bytes, &layout);
            assert_eq!(frame.bytes, bytes);
        }
    }
    // TCP's checksum of a UDP packet.
    let udp = packet(Version::V4, protocol::UDP, b"x");
    let sum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34);
    assert_eq!(parse(&message(&udp, &[(PpiType::CHECKSUM, sum.0)])), None);
    let sum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::IP_HEADER, 0);
    let frame = parse(&message(&udp, &[(PpiType::CHECKSUM, sum.0)])).unwrap();
    assert!(checksum::ip_header_is_right(&frame.bytes, &Layout::of(&frame.bytes).unwrap()));
}

#[test]
fn large_packets() {
    for version in [Version::V4, Version::V6] {
        let mut bytes = packet(version, protocol::TCP, &[9; 5000]);
        // As Linux leaves them.
        let layout = Layout::of(&bytes).unwrap();
        let at = if version == Version::V4 { 16 } else { 18 };
        bytes[at..at + 2].fill(0);
        let large = LargeSend::v2(1000, layout.l4 as u16, version == Version::V6);
        let frame = parse(&message(&bytes, &[(PpiType::LARGE_SEND, large.0)])).unwrap();
        assert_eq!(frame.offload.segment, Some(1000));
        assert_eq!(Layout::of(&frame.bytes).unwrap().end, bytes.len());
        assert_eq!(checksum::segments(&frame, 1000).unwrap().len(), 5);
        let large = LargeSend::v1(0, layout.l4 as u16);
        assert_eq!(parse(&message(&bytes, &[(PpiType::LARGE_SEND, large.0)])), None);
    }
}

#[test]
fn what_the_guest_is_told() {
    let all = ReceiveChecksums {
        ipv4: true,
        tcp_ipv4: true,
        udp_ipv4: true,
        tcp_ipv6: true,
        udp_ipv6: true,
    };
    let frame = |version, protocol, valid| Inbound {
        bytes: packet(version, protocol, &[]),
        vlan: Some(0x2007),
        hash: Some(0x1234_5678),
        valid,
    };
    let mut header = Vec::new();
    for (version, protocol, said) in [
        (Version::V4, protocol::TCP, RxChecksum::TCP_SUCCEEDED | RxChecksum::IP_SUCCEEDED),
        (Version::V4, protocol::UDP, RxChecksum::UDP_SUCCEEDED | RxChecksum::IP_SUCCEEDED),
        (Version::V6, protocol::TCP, RxChecksum::TCP_SUCCEEDED),
        (Version::V6, protocol::UDP, RxChecksum::UDP_SUCCEEDED),
    ] {
        let frame = frame(version, protocol, true);
        inbound(&frame, all, &mut header);
        assert!(header.len() <= SECTION_OVERHEAD as usize);
        let whole = [header.as_slice(), &frame.bytes].concat();
        let (_, body) = split(&whole).unwrap();
        let (packet, _) = Packet::read_from_prefix(body).unwrap();
        assert_eq!(part(body, packet.data_offset, packet.data_length), Some(&frame.bytes[..]));
        let words: Vec<u32> = (0..3)
            .map(|n| u32::from_le_bytes(body[36 + n * 16 + 12..][..4].try_into().unwrap()))
            .collect();
        assert_eq!(words, [said, Vlan::from_tci(0x2007).0, 0x1234_5678]);
    }
    inbound(&frame(Version::V4, protocol::TCP, false), all, &mut header);
    assert_eq!(header.len(), 44 + 32, "nothing is known");
    inbound(&frame(Version::V4, protocol::TCP, true), ReceiveChecksums::default(), &mut header);
    assert_eq!(header.len(), 44 + 32, "nobody wants to know");
}

proptest! {
    #[test]
    fn any_message(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        infos in proptest::collection::vec((0u32..12, any::<u32>()), 0..4),
        at in 0usize..90, value: u32, v6: bool, tcp: bool,
    ) {
        for message in messages(&bytes).flatten() {
            if let Some((_, body)) = split(message) {
                let _ = outbound(body);
            }
        }
        // One that is nearly right.
        let version = if v6 { Version::V6 } else { Version::V4 };
        let protocol = if tcp { protocol::TCP } else { protocol::UDP };
        let infos: Vec<_> = infos.into_iter().map(|(kind, word)| (PpiType(kind), word)).collect();
        bytes = message(&packet(version, protocol, &bytes), &infos);
        let at = (at & !3).min(bytes.len() - 4);
        bytes[at..][..4].copy_from_slice(&value.to_le_bytes());
        for message in messages(&bytes).flatten() {
            if let Some((_, body)) = split(message)
                && let Some(frame) = outbound(body)
            {
                let _ = checksum::reduce(frame, checksum::Takes::NOTHING, |_| ());
            }
        }
    }
}
