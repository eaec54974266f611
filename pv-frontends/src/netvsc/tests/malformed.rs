//! What hosts must not send.

use hv_abi::netvsc::ppi::{PerPacketInfo, PpiType};
use hv_abi::vmbus::packet::PacketType;
use zerocopy::IntoBytes;

use super::host::packet_message;
use super::*;

/// Changes the word at an offset of a message.
fn with(mut message: Vec<u8>, changes: &[(usize, u32)]) -> Vec<u8> {
    for (at, value) in changes {
        message[*at..*at + 4].copy_from_slice(&value.to_le_bytes());
    }
    message
}

#[test]
fn lengths_and_offsets() {
    let mut bench = Bench::ready();
    let good = packet_message(&frame(60, 1), &[(PpiType::VLAN, 0x10)]);
    let length = good.len() as u32;
    assert_eq!(length, 8 + 36 + 16 + 60);
    // Message's length, data's offset, its length, information's offset, its length, its size, its
    // value's offset.
    let (len, data, bytes, info, infos, size, value) = (4, 8, 12, 28, 32, 44, 52);
    let cases: &[&[(usize, u32)]] = &[
        &[(len, 0)],
        &[(len, 7)],
        &[(len, 43)],
        &[(len, length + 1)],
        &[(len, u32::MAX)],
        &[(data, 0)],
        &[(data, 35)],
        &[(data, 53)],
        &[(data, u32::MAX)],
        &[(data, u32::MAX - 59)],
        &[(bytes, 61)],
        &[(bytes, 0)],
        &[(bytes, 13)],
        &[(bytes, u32::MAX)],
        &[(info, 35)],
        &[(info, u32::MAX)],
        &[(infos, u32::MAX)],
        &[(infos, 113)],
        &[(infos, 11)],
        &[(infos, 17)],
        &[(size, 0)],
        &[(size, 11)],
        &[(size, 17)],
        &[(size, u32::MAX)],
        &[(value, 0)],
        &[(value, 13)],
        &[(value, u32::MAX)],
    ];
    for case in cases {
        let before = bench.count(Counter::RxMalformed);
        assert!(bench.host.push(&bench.bus, PRIMARY, &[&with(good.clone(), case), &good]));
        bench.run();
        assert_eq!(bench.count(Counter::RxMalformed), before + 1, "{case:?}");
        // The one behind it is as good as ever, and the host is told that one was not.
        assert_eq!(bench.got().len(), 1, "{case:?}");
        assert_eq!(bench.host.completions.last().map(|c| c.1), Some(2), "{case:?}");
        bench.assert_idle();
    }
}

#[test]
fn very_many_infos_are_not_looked_at() {
    let mut bench = Bench::ready();
    let infos = vec![(PpiType::VLAN, 0x10); 100];
    assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&frame(60, 1), &infos)]));
    bench.run();
    assert_eq!(bench.got().len(), 1);
    bench.assert_idle();
}

#[test]
fn ranges_outside_the_buffer() {
    let mut bench = Bench::ready();
    let end = 64 << 10;
    let cases =
        [(end, 1), (end - 8, 9), (u32::MAX, 1), (0, u32::MAX), (u32::MAX, u32::MAX), (1, end)];
    for range in cases {
        let before = bench.count(Counter::RxMalformed);
        bench.host.ranges(&bench.bus, PRIMARY, &[range]).expect("there is room");
        bench.run();
        assert_eq!(bench.count(Counter::RxMalformed), before + 1);
        assert_eq!(bench.host.completions.last().map(|c| c.1), Some(2));
    }
    // Short ones, empty ones, none at all.
    for range in [&[(0, 0)][..], &[(8, 7)], &[]] {
        bench.host.ranges(&bench.bus, PRIMARY, range).expect("there is room");
        bench.run();
    }
    assert!(bench.got().is_empty());
    bench.assert_idle();
}

#[test]
fn more_than_the_buffer_can_hold() {
    let mut bench = Bench::ready();
    *bench.notes.room.lock() = Some(0);
    let message = packet_message(&frame(60, 1), &[]);
    assert!(bench.host.push(&bench.bus, PRIMARY, &[&message]));
    bench.run();
    // The same range, over and over.
    let ranges = vec![(0, message.len() as u32); 500];
    for _ in 0..8 {
        bench.host.ranges(&bench.bus, PRIMARY, &ranges).expect("there is room");
        bench.run();
    }
    assert_eq!(bench.count(Counter::RxOverrun), 4);
    bench.host.ranges(&bench.bus, PRIMARY, &vec![(0, 8); 563]).expect("there is room");
    *bench.notes.room.lock() = None;
    bench.nic().resume(0);
    bench.run();
    bench.assert_idle();
}

#[test]
fn very_many_messages_wait_in_the_ring() {
    let mut bench = Bench::ready();
    *bench.notes.room.lock() = Some(0);
    let message = packet_message(&frame(60, 1), &[]);
    bench.host.push(&bench.bus, PRIMARY, &[&message]);
    let mut sent = 1;
    while bench.host.ranges(&bench.bus, PRIMARY, &[(0, message.len() as u32)]).is_some() {
        sent += 1;
        bench.run();
        assert!(sent < 2000);
    }
    assert!(sent > 512, "{sent}");
    assert!(bench.card().in_use().1 <= 512 * 2);
    *bench.notes.room.lock() = None;
    bench.nic().resume(0);
    bench.run();
    assert_eq!(bench.got().len(), sent);
    bench.assert_idle();
}

#[test]
fn packets_and_answers_to_nothing() {
    let mut bench = Bench::ready();
    let bogus = bench.count(Counter::Bogus);
    let kinds = [PacketType::COMPLETION, PacketType::IN_BAND, PacketType::GPA_DIRECT];
    let ids = [0, 1, 77, 1 << 32, 1 << 63, u64::MAX, (1 << 63) + 3];
    let mut sent = 0;
    for kind in kinds {
        for id in ids {
            for payload in [&[][..], &[0; 8], &[107, 0, 0, 0, 0, 0, 0, 0], &[0xff; 40]] {
                bench.host.raw(&bench.bus, PRIMARY, kind, id, &[], payload);
                bench.run();
                sent += 1;
            }
        }
    }
    assert_eq!(bench.count(Counter::Bogus) - bogus, sent);
    // Transfer pages that are none.
    let kind = PacketType::TRANSFER_PAGES;
    for (header, payload) in [
        (&[][..], &[107u8, 0, 0, 0][..]),
        (&[0x0000_0001_0000_cafe], &[107, 0, 0, 0]),
        (&[0xffff_ffff_0000_cafe], &[107, 0, 0, 0]),
        (&[0x0000_0001_0000_0001, 0x40], &[107, 0, 0, 0]),
        (&[0x0000_0001_0000_cafe, 0x40], &[108, 0, 0, 0]),
        (&[0x0000_0001_0000_cafe, 0x40], &[]),
    ] {
        let before = bench.count(Counter::RxMalformed);
        bench.host.strangers.push(9999);
        bench.host.raw(&bench.bus, PRIMARY, kind, 9999, header, payload);
        bench.run();
        assert_eq!(bench.count(Counter::RxMalformed), before + 1);
    }
    bench.assert_idle();
}

#[test]
fn an_answer_is_believed_once() {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    bench.nic().submit(0, &plain(&fragments), Tag(1));
    bench.nic().commit(0);
    bench.run();
    // The first use of the last slot in the list.
    let answer = [108, 0, 0, 0, 1, 0, 0, 0];
    let id = 1 << 32;
    for expected in [1, 1] {
        bench.host.raw(&bench.bus, PRIMARY, PacketType::COMPLETION, id, &[], &answer);
        bench.run();
        assert_eq!(bench.notes.ended.lock().len(), expected);
    }
    assert_eq!(bench.count(Counter::Bogus), 1);
    // The slot's next packet has another number.
    bench.nic().submit(0, &plain(&fragments), Tag(2));
    bench.nic().commit(0);
    bench.run();
    bench.host.raw(&bench.bus, PRIMARY, PacketType::COMPLETION, id, &[], &answer);
    assert_eq!(bench.notes.ended.lock().len(), 1);
    bench.host.raw(&bench.bus, PRIMARY, PacketType::COMPLETION, 2 << 32, &[], &answer);
    assert_eq!(bench.ended().last(), Some(&(0, 2, TxEnd::Sent)));
    bench.assert_idle();
}

#[test]
fn control_messages_that_are_none() {
    let mut bench = Bench::ready();
    let before = bench.count(Counter::Bogus);
    let mut messages = vec![vec![9, 0, 0, 0, 8, 0, 0, 0], vec![7, 0, 0, 0, 8, 0, 0, 0]];
    // Answers to nothing.
    for kind in [2u32, 4, 5] {
        let mut message = (0x8000_0000 | kind).to_le_bytes().to_vec();
        message.extend(52u32.to_le_bytes());
        message.extend([1; 44]);
        messages.push(message);
    }
    // An indication whose value is elsewhere.
    let mut message = vec![7, 0, 0, 0, 20, 0, 0, 0, 0x13, 0, 1, 0x40];
    message.extend([4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    messages.push(message);
    for message in &messages {
        bench.host.push(&bench.bus, PRIMARY, &[message]);
        bench.run();
    }
    assert_eq!(bench.count(Counter::Bogus) - before, messages.len() as u64);
    // Packets that have no room for a header.
    let info = PerPacketInfo::of_word(PpiType::VLAN);
    bench.host.push(&bench.bus, PRIMARY, &[info.as_bytes()]);
    bench.run();
    assert!(bench.got().is_empty());
    bench.assert_idle();
}
