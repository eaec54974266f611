//! Checksums against known packets and against a plain sum; segments against what they
//! were cut from.

use super::*;
use crate::net::frame::tests::packet;
use proptest::prelude::*;

/// The checksum over all of it, slowly.
fn plain(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    let bytes = parts.concat();
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn expected(frame: &[u8], layout: &Layout) -> u16 {
    let length = ((layout.end - layout.l4) as u32).to_be_bytes();
    let next = [0, 0, 0, layout.protocol];
    let mut covered = frame[layout.l4..layout.end].to_vec();
    let at = layout.checksum_offset().unwrap();
    covered[at..at + 2].fill(0);
    plain(&[layout.addresses(frame), &length, &next, &covered])
}

#[test]
fn a_known_header() {
    // The example of RFC 1071's successors: 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
    let mut frame = vec![0; 14];
    frame[12] = 8;
    frame.extend([0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0]);
    frame.extend([0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7]);
    frame.resize(14 + 0x73, 0);
    let layout = Layout::of(&frame).unwrap();
    assert!(!ip_header_is_right(&frame, &layout));
    fill_ip_header(&mut frame, &layout);
    assert_eq!(frame[24..26], [0xb8, 0x61]);
    assert!(ip_header_is_right(&frame, &layout));
}

#[test]
fn a_udp_checksum_is_never_zero() {
    let mut frame = packet(Version::V4, protocol::UDP, &[0, 0]);
    let layout = Layout::of(&frame).unwrap();
    let needed = expected(&frame, &layout);
    frame[42..44].copy_from_slice(&needed.to_be_bytes());
    assert_eq!(expected(&frame, &layout), 0);
    assert!(fill_transport(&mut frame, &layout));
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_eq!(transport_is_right(&frame, &layout), Some(true));
    frame[40..42].fill(0);
    assert_eq!(transport_is_right(&frame, &layout), None);
}

#[test]
fn padding_does_not_count() {
    let mut frame = packet(Version::V4, protocol::UDP, b"x");
    let layout = Layout::of(&frame).unwrap();
    let right = expected(&frame, &layout);
    frame.resize(60, 0xaa);
    let mut frame = Frame::plain(frame);
    frame.offload.checksum = Some(Partial { start: 34, offset: 6 });
    complete(&mut frame);
    assert_eq!(frame.bytes[40..42], right.to_be_bytes());
    assert!(frame.offload.valid);
}

#[test]
fn other_protocols_are_summed_as_told() {
    // ICMP, its field holding 0.
    let mut bytes = packet(Version::V4, 1, &[7; 30]);
    bytes[36..38].fill(0);
    let right = plain(&[&bytes[34..]]);
    let checksum = Some(Partial { start: 34, offset: 2 });
    let mut frame = Frame { offload: Offload { checksum, ..Offload::default() }, bytes };
    complete(&mut frame);
    assert_eq!(frame.bytes[36..38], right.to_be_bytes());
}

#[test]
fn what_cannot_be_cut() {
    let udp = Frame::plain(packet(Version::V4, protocol::UDP, &[0; 99]));
    assert_eq!(segments(&udp, 10), None);
    let mut tcp = Frame::plain(packet(Version::V4, protocol::TCP, &[0; 99]));
    assert_eq!(segments(&tcp, 0), None);
    tcp.bytes[46] = 0x40;
    assert_eq!(segments(&tcp, 10), None, "a header of 16 bytes");
    tcp.bytes[46] = 0xf0;
    assert_eq!(segments(&tcp, 10).unwrap()[0].bytes.len(), 14 + 20 + 60 + 10);
    tcp.bytes.truncate(60);
    assert_eq!(segments(&tcp, 10), None);
}

proptest! {
    #[test]
    fn checksums(v6: bool, udp: bool, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let version = if v6 { Version::V6 } else { Version::V4 };
        let protocol = if udp { protocol::UDP } else { protocol::TCP };
        let mut frame = packet(version, protocol, &payload);
        let layout = Layout::of(&frame).unwrap();
        let right = expected(&frame, &layout);
        let partial = begin_transport(&mut frame, &layout).unwrap();
        // As a receiver would that knows nothing of protocols.
        let covered = &frame[usize::from(partial.start)..];
        let told = plain(&[covered]);
        prop_assert_eq!(told, right);
        let mut frame = Frame::plain(frame);
        frame.offload.checksum = Some(partial);
        complete(&mut frame);
        prop_assert_eq!(transport_is_right(&frame.bytes, &layout), Some(true));
        prop_assert!(expected(&frame.bytes, &layout) == right);
        frame.bytes[layout.l4 + 1] ^= 1;
        prop_assert_eq!(transport_is_right(&frame.bytes, &layout), Some(false));
    }

    #[test]
    fn segments_make_the_whole(
        v6: bool, tagged: bool, size in 1u16..2000, payload in proptest::collection::vec(any::<u8>(), 0..9000),
        flags: u8, long in any::<bool>(),
    ) {
        let version = if v6 { Version::V6 } else { Version::V4 };
        let mut whole = Frame::plain(packet(version, protocol::TCP, &payload));
        let l4 = Layout::of(&whole.bytes).unwrap().l4;
        whole.bytes[l4 + TCP_FLAGS] = flags;
        if long {
            // As guests send them: no length at all.
            let at = if v6 { 18 } else { 16 };
            whole.bytes[at..at + 2].fill(0);
        }
        if tagged {
            whole.put_vlan(9);
        }
        let list = segments(&whole, size).unwrap();
        let mut again = Vec::new();
        for (number, segment) in list.iter().enumerate() {
            let layout = Layout::of(&segment.bytes).unwrap();
            prop_assert_eq!(layout.end, segment.bytes.len());
            prop_assert_eq!(transport_is_right(&segment.bytes, &layout), Some(true));
            prop_assert!(ip_header_is_right(&segment.bytes, &layout));
            prop_assert!(segment.bytes.len() - layout.l4 - 20 <= size.into());
            let l4 = &segment.bytes[layout.l4..];
            let sequence = u32::from_be_bytes(l4[4..8].try_into().unwrap());
            prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(again.len() as u32));
            let last = number + 1 == list.len();
            let mut own = flags;
            if number != 0 { own &= !CWR; }
            if !last { own &= !(FIN | PSH); }
            prop_assert_eq!(l4[TCP_FLAGS], own);
            if !v6 {
                let at = layout.l3 + 4;
                let id = u16::from_be_bytes(segment.bytes[at..at + 2].try_into().unwrap());
                prop_assert_eq!(id, 0x1234 + number as u16);
            }
            again.extend_from_slice(&l4[20..]);
        }
        prop_assert_eq!(again, payload);
    }

    #[test]
    fn any_frame(
        bytes in proptest::collection::vec(any::<u8>(), 0..120), start in 0u16..130, offset in 0u16..20,
        size in proptest::option::of(0u16..50), checksum: bool, segment: bool,
    ) {
        let partial = Some(Partial { start, offset });
        let frame = Frame { offload: Offload { checksum: partial, segment: size, valid: false }, bytes };
        let _ = reduce(frame, Takes { checksum, segment }, |_| ());
    }
}
