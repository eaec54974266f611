//! Receiving.

use hv_abi::netvsc::ndis::HashInformation;
use hv_abi::netvsc::ppi::{PacketId, PpiType, RxChecksum, Vlan};

use super::host::packet_message;
use super::*;
use crate::net::HashTypes;

/// The word of a packet's identifier.
pub(super) fn part(id: u16, flags: u8) -> (PpiType, u32) {
    let flags = flags | PacketId::SUBALLOCATION;
    (PpiType::PACKET_ID, u32::from(PacketId::V1) | u32::from(flags) << 8 | u32::from(id) << 16)
}

#[test]
fn packets_come_with_what_is_known_of_them() {
    let mut bench = Bench::ready();
    let bytes = frame(1514, 3);
    let infos = [
        (PpiType::CHECKSUM, RxChecksum::TCP_SUCCEEDED | RxChecksum::IP_SUCCEEDED),
        (PpiType::VLAN, Vlan::from_tci(0x6005).0),
        (PpiType::HASH_VALUE, 0xdead_beef),
        (PpiType::IPSEC, 5),
    ];
    assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &infos)]));
    bench.run();
    let got = bench.got();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].queue, &got[0].bytes, got[0].csum), (0, &bytes, RxCsum::Validated));
    assert_eq!((got[0].vlan, got[0].gso), (Some(0x6005), None));
    assert_eq!(got[0].hash, Some(RxHash { value: 0xdead_beef, kind: None }));
    assert_eq!(bench.host.completions.last().map(|c| c.1), Some(1));
    assert_eq!(bench.count(Counter::RxPackets), 1);
    assert_eq!(bench.count(Counter::RxBytes), 1514);
    bench.assert_idle();
}

#[test]
fn sums_and_hashes_of_all_kinds() {
    let mut bench = Bench::ready();
    let bytes = frame(60, 1);
    let tcp_v6 = HashInformation::TOEPLITZ | HashInformation::TCP_IPV6;
    let hash = [(PpiType::HASH_INFORMATION, tcp_v6), (PpiType::HASH_VALUE, 1)];
    let wrong = [(PpiType::CHECKSUM, RxChecksum::TCP_FAILED | RxChecksum::IP_SUCCEEDED)];
    let udp = [(PpiType::CHECKSUM, RxChecksum::UDP_SUCCEEDED)];
    let ip_only = [(PpiType::CHECKSUM, RxChecksum::IP_SUCCEEDED)];
    let frames: [host::Frame<'_>; 5] =
        [(&bytes, &[]), (&bytes, &wrong), (&bytes, &udp), (&bytes, &ip_only), (&bytes, &hash)];
    assert!(bench.host.receive(&bench.bus, PRIMARY, &frames));
    bench.run();
    let got = bench.got();
    let sums: Vec<_> = got.iter().map(|got| got.csum).collect();
    let none = RxCsum::Unchecked;
    assert_eq!(sums, [none, RxCsum::Wrong, RxCsum::Validated, none, none]);
    let kind = Some(HashTypes { tcp_v6: true, ..HashTypes::default() });
    assert_eq!(got[4].hash, Some(RxHash { value: 1, kind }));
    // One message, one answer.
    assert_eq!(bench.count(Counter::RxMessages), bench.host.completions.len() as u64);
    bench.assert_idle();
}

/// Which IPv4 headers come without their checksum; of a packet made of several the first part
/// says it.
#[test]
fn ip_checksums_that_are_not_in_the_packet() {
    let mut bench = Bench::ready();
    let bytes = frame(60, 1);
    let both = RxChecksum::IP_SUCCEEDED | RxChecksum::IP_VALUE_INVALID;
    for (bits, expected) in [
        (both, (RxCsum::Unchecked, true)),
        (
            both | RxChecksum::TCP_SUCCEEDED | RxChecksum::TCP_VALUE_INVALID,
            (RxCsum::Validated, true),
        ),
        (both | RxChecksum::TCP_FAILED, (RxCsum::Wrong, true)),
        (both | RxChecksum::IP_FAILED, (RxCsum::Wrong, false)),
        (RxChecksum::IP_SUCCEEDED, (RxCsum::Unchecked, false)),
        (RxChecksum::IP_VALUE_INVALID, (RxCsum::Unchecked, false)),
    ] {
        let info = [(PpiType::CHECKSUM, bits)];
        assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &info)]));
        bench.run();
        let got = bench.got().pop().unwrap();
        assert_eq!((got.csum, got.ip_csum_blank), expected, "{bits:#x}");
    }
    let parts = parts(1400, 9);
    let first = [part(7, PacketId::FIRST), (PpiType::CHECKSUM, both | RxChecksum::TCP_SUCCEEDED)];
    let frames: [host::Frame<'_>; 2] =
        [(&parts[0], &first), (&parts[1], &[part(7, PacketId::LAST)])];
    assert!(bench.host.receive(&bench.bus, PRIMARY, &frames));
    bench.run();
    let got = bench.got();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].gso, got[0].ip_csum_blank), (Some(Gso { mss: 1400 }), true));
    bench.assert_idle();
}

#[test]
fn several_packets_in_one_range() {
    let mut bench = Bench::ready();
    let mut messages = Vec::new();
    for nr in 0..4 {
        let mut message = packet_message(&frame(100, nr), &[]);
        // Each begins at a multiple of 8.
        let length = message.len().next_multiple_of(8);
        message.resize(length, 0);
        message[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        messages.extend(message);
    }
    // Something behind the last that is no packet.
    messages.extend([0xff; 60]);
    assert!(bench.host.push(&bench.bus, PRIMARY, &[&messages]));
    bench.run();
    let got = bench.got();
    assert_eq!(got.len(), 4);
    for (nr, got) in got.iter().enumerate() {
        assert_eq!(got.bytes, frame(100, nr as u8));
    }
    assert_eq!(bench.count(Counter::RxMalformed), 0);
    bench.assert_idle();
}

/// The parts of a TCP stream's packet: headers of 54 bytes and `mss` bytes, then more.
fn parts(mss: usize, last: usize) -> Vec<Vec<u8>> {
    let mut first = frame(54 + mss, 1);
    (first[12], first[13], first[14], first[23], first[46]) = (8, 0, 0x45, 6, 0x50);
    vec![first, frame(mss, 2), frame(last, 3)]
}

#[test]
fn parts_become_one_packet() {
    let mut bench = Bench::ready();
    let parts = parts(1400, 9);
    let first = [part(7, PacketId::FIRST), (PpiType::CHECKSUM, RxChecksum::TCP_SUCCEEDED)];
    let frames: [host::Frame<'_>; 3] =
        [(&parts[0], &first), (&parts[1], &[part(7, 0)]), (&parts[2], &[part(7, PacketId::LAST)])];
    assert!(bench.host.receive(&bench.bus, PRIMARY, &frames));
    bench.run();
    let got = bench.got();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].gso, got[0].csum), (Some(Gso { mss: 1400 }), RxCsum::Validated));
    assert_eq!(got[0].bytes, parts.concat());
    assert_eq!(bench.count(Counter::RxCoalesced), 1);
    bench.assert_idle();
}

#[test]
fn parts_that_do_not_fit_together() {
    let mut bench = Bench::ready();
    let bytes = frame(60, 1);
    let (first, last) = ([part(7, PacketId::FIRST)], [part(8, PacketId::LAST)]);
    let middle = [part(7, 0)];
    let cases: [&[host::Frame<'_>]; 4] = [
        // Another's, none begun, none ended, begun twice.
        &[(&bytes, &first), (&bytes, &last)],
        &[(&bytes, &middle)],
        &[(&bytes, &first)],
        &[(&bytes, &first), (&bytes, &first)],
    ];
    for (nr, frames) in cases.into_iter().enumerate() {
        let before = bench.count(Counter::RxMalformed);
        assert!(bench.host.receive(&bench.bus, PRIMARY, frames));
        bench.run();
        assert!(bench.got().is_empty(), "{nr}");
        assert_eq!(bench.count(Counter::RxMalformed), before + 1, "{nr}");
        assert_eq!(bench.host.completions.last().map(|c| c.1), Some(2), "{nr}");
    }
    bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &[])]);
    bench.run();
    assert_eq!(bench.got().len(), 1);
    bench.assert_idle();
}

#[test]
fn a_backend_without_room_stops_its_queue() {
    let mut bench = Bench::ready();
    let before = bench.host.completions.len();
    *bench.notes.room.lock() = Some(3);
    for nr in 0..4 {
        let frames = [frame(60, nr), frame(61, nr)];
        let frames: Vec<host::Frame<'_>> = frames.iter().map(|f| (&f[..], &[][..])).collect();
        assert!(bench.host.receive(&bench.bus, PRIMARY, &frames));
    }
    bench.run();
    assert_eq!(bench.got().len(), 3);
    // The first message is done with, the second half: it is not answered.
    assert_eq!(bench.host.completions.len() - before, 1);
    assert_eq!(bench.host.outstanding.len(), 3);
    // Nobody spins meanwhile.
    let waits = bench.count(Counter::RxWaits);
    bench.pass(SECOND);
    assert_eq!(bench.count(Counter::RxWaits), waits);
    // Transmissions go on.
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    bench.nic().submit(0, &plain(&fragments), Tag(1));
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.ended().len(), 1);

    *bench.notes.room.lock() = Some(1);
    bench.nic().resume(0);
    bench.run();
    assert_eq!(bench.got().len(), 1);
    *bench.notes.room.lock() = None;
    bench.nic().resume(0);
    bench.run();
    let rest: Vec<_> = bench.got().into_iter().map(|got| got.bytes).collect();
    let wanted = [(60, 2), (61, 2), (60, 3), (61, 3)].map(|(len, nr)| frame(len, nr));
    assert_eq!(rest, wanted);
    assert_eq!(bench.host.completions.len() - before, 4);
    bench.assert_idle();
}

#[test]
fn a_receive_buffer_runs_out_and_comes_back() {
    let mut bench = Bench::ready();
    *bench.notes.room.lock() = Some(0);
    let sections = bench.host.free_sections.len();
    let bytes = frame(1000, 1);
    let mut sent = 0;
    while bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &[])]) {
        sent += 1;
        bench.run();
    }
    assert_eq!(sent, sections);
    *bench.notes.room.lock() = None;
    bench.nic().resume(0);
    bench.run();
    assert_eq!(bench.got().len(), sections);
    assert_eq!(bench.host.free_sections.len(), sections);
    bench.assert_idle();
}

#[test]
fn answers_wait_for_room() {
    let small = Config { outgoing_pages: 1, tx_slots: 200, ..config() };
    let mut bench = Bench::ready_with(small, |_| {});
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    while bench.nic().submit(0, &plain(&fragments), Tag(0)) == TxSubmitted::Queued {}
    bench.nic().commit(0);
    // The ring has no room for an answer, perhaps for a few.
    let bytes = frame(60, 1);
    for _ in 0..8 {
        assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &[])]));
    }
    assert_eq!(bench.got().len(), 8);
    assert!(bench.count(Counter::RxCompletionsDeferred) > 0);
    bench.run();
    bench.pass(SECOND);
    bench.assert_idle();
}

#[test]
fn nothing_is_handed_out_before_the_card_is_known() {
    // The host says nothing behind RNDIS's INITIALIZE.
    let mut bench = Bench::new(config(), |host| host.limit = 6);
    bench.run();
    assert!(bench.notes.cards.lock().is_empty());
    let bytes = frame(60, 1);
    assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&bytes, &[])]));
    bench.host.limit = usize::MAX;
    bench.run();
    assert!(bench.got().is_empty());
    let cards = bench.driver.cards();
    assert_eq!(cards[0].count(Counter::RxDropped), 1);
}

#[test]
fn no_packet_is_longer_than_ip_allows() {
    let large = Config { receive_buffer_bytes: 128 << 10, ..config() };
    let mut bench = Bench::ready_with(large, |_| {});
    let bytes = frame(1638, 1);
    for (count, comes) in [(40, true), (41, false)] {
        let infos: Vec<_> = (1..=count)
            .map(|nr| match nr {
                1 => [part(1, PacketId::FIRST)],
                nr if nr == count => [part(1, PacketId::LAST)],
                _ => [part(1, 0)],
            })
            .collect();
        let frames: Vec<host::Frame<'_>> =
            infos.iter().map(|info| (&bytes[..], &info[..])).collect();
        assert!(bench.host.receive(&bench.bus, PRIMARY, &frames));
        bench.run();
        let got: Vec<_> = bench.got().iter().map(|got| got.bytes.len()).collect();
        assert_eq!(got, if comes { vec![40 * 1638] } else { vec![] });
        let status = bench.host.completions.last().map(|c| c.1);
        assert_eq!(status, Some(if comes { 1 } else { 2 }));
    }
    bench.assert_idle();
}
