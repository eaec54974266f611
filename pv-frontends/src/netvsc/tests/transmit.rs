//! Sending.

use hv_abi::netvsc::nvsp::Status;
use hv_abi::netvsc::ppi::{LargeSend, PpiType, TxChecksum, Vlan};

use super::*;
use crate::net::{Ip, Transport, TxRefusal};

const CSUM: u32 = PpiType::CHECKSUM.0;
const LSO: u32 = PpiType::LARGE_SEND.0;

/// A TCP segment in IPv4 or IPv6, with options of 12 bytes.
pub(super) fn tcp(ip: Ip, payload: usize) -> (Vec<u8>, TxCsum) {
    let mut bytes = frame(14, 3);
    let total = 32 + payload;
    let l4 = match ip {
        Ip::V4 => {
            let len = (20 + total) as u16;
            bytes.extend([0x45, 0]);
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 1, 0x40, 0, 64, 6, 0xab, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2]);
            34
        }
        Ip::V6 => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend((total as u16).to_be_bytes());
            bytes.extend([6, 64]);
            bytes.extend((0..32).map(|nr| 0x20 + nr));
            54
        }
    };
    let mut header = frame(32, 9);
    header[12] = 0x80;
    bytes.extend(header);
    bytes.extend(frame(payload, 77));
    (bytes, TxCsum::Partial { ip, transport: Transport::Tcp, l3: 14, l4 })
}

#[test]
fn pages_go_as_they_are() {
    let mut bench = Bench::ready();
    let bytes = frame(1514, 5);
    let fragments = bench.fragments(&bytes, &[54, 700, 1]);
    assert_eq!(fragments.len(), 4);
    let packet = TxPacket { vlan: Some(0xb123), hash: Some(0x1234_5678), ..plain(&fragments) };
    assert_eq!(bench.nic().submit(0, &packet, Tag(42)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    let sent = bench.host.sent.pop().expect("it came");
    assert_eq!((sent.bytes, sent.copied, sent.channel), (bytes, false, PRIMARY));
    let vlan = Vlan::from_tci(0xb123).0;
    assert_eq!(sent.infos, [(PpiType::HASH_VALUE.0, 0x1234_5678), (PpiType::VLAN.0, vlan)]);
    assert_eq!(bench.ended(), [(0, 42, TxEnd::Sent)]);
    assert_eq!(bench.count(Counter::TxPackets), 1);
    assert_eq!(bench.count(Counter::TxBytes), 1514);
    bench.assert_idle();
}

#[test]
fn small_packets_share_a_section() {
    let mut bench = Bench::ready();
    let sizes = [14, 60, 61, 67, 512, 300];
    for (nr, size) in sizes.into_iter().enumerate() {
        let fragments = bench.fragments(&frame(size, nr as u8), &[9]);
        let packet = TxPacket { vlan: (nr == 1).then_some(7), ..plain(&fragments) };
        assert_eq!(bench.nic().submit(0, &packet, Tag(1)), TxSubmitted::Copied);
    }
    bench.run();
    assert!(bench.host.sent.is_empty(), "not before the batch ends");
    // One by pages comes behind them.
    let large = bench.fragments(&frame(1000, 9), &[]);
    assert_eq!(bench.nic().submit(0, &plain(&large), Tag(2)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    let sent: Vec<_> = bench.host.sent.drain(..).collect();
    assert_eq!(sent.len(), 7);
    for (nr, size) in sizes.into_iter().enumerate() {
        assert_eq!((&sent[nr].bytes, sent[nr].copied), (&frame(size, nr as u8), true));
    }
    assert_eq!(sent[1].infos, [(PpiType::VLAN.0, 7 << 4)]);
    assert_eq!((sent[6].bytes.len(), sent[6].copied), (1000, false));
    assert_eq!(bench.host.messages, 2);
    assert_eq!(bench.ended(), [(0, 2, TxEnd::Sent)]);
    let counts = [Counter::TxCopied, Counter::TxBatches].map(|c| bench.count(c));
    assert_eq!(counts, [6, 1]);
    bench.assert_idle();
}

#[test]
fn a_section_takes_no_more_packets_than_agreed() {
    let mut bench = Bench::ready();
    for nr in 0..20 {
        let fragments = bench.fragments(&frame(60, nr), &[]);
        assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(1)), TxSubmitted::Copied);
    }
    bench.nic().commit(0);
    bench.run();
    // Eight each.
    assert_eq!((bench.host.sent.len(), bench.host.messages), (20, 3));
    bench.assert_idle();
}

#[test]
fn sections_run_out() {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    // 32 KiB make five sections.
    for nr in 0..7 {
        let fragments = bench.fragments(&frame(60, nr), &[]);
        let submitted = bench.nic().submit(0, &plain(&fragments), Tag(nr.into()));
        assert_eq!(submitted == TxSubmitted::Copied, nr < 5, "{nr}");
        bench.nic().commit(0);
        bench.run();
    }
    assert_eq!(bench.count(Counter::TxNoSection), 2);
    bench.host.release(&bench.bus, 100, Status::SUCCESS);
    bench.run();
    assert_eq!(bench.ended().len(), 2);
    bench.assert_idle();
}

#[test]
fn checksums_are_asked_for() {
    let mut bench = Bench::ready();
    let v4 = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34).0;
    let v6 = TxChecksum::new(TxChecksum::IPV6 | TxChecksum::TCP, 54).0;
    for (ip, wanted) in [(Ip::V4, v4), (Ip::V6, v6)] {
        let (bytes, csum) = tcp(ip, 1000);
        let fragments = bench.fragments(&bytes, &[20]);
        let packet = TxPacket { csum, ..plain(&fragments) };
        assert_eq!(bench.nic().submit(0, &packet, Tag(1)), TxSubmitted::Queued);
        bench.nic().commit(0);
        bench.run();
        let sent = bench.host.sent.pop().expect("it came");
        assert_eq!((sent.bytes, sent.infos), (bytes, vec![(CSUM, wanted)]));
    }
    let udp = TxCsum::Partial { ip: Ip::V4, transport: Transport::Udp, l3: 14, l4: 34 };
    let fragments = bench.fragments(&frame(600, 1), &[]);
    let packet = TxPacket { csum: udp, ..plain(&fragments) };
    assert_eq!(bench.nic().submit(0, &packet, Tag(1)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    let infos = bench.host.sent.pop().expect("it came").infos;
    assert_eq!(infos, [(CSUM, TxChecksum::IPV4 | TxChecksum::UDP)]);
}

#[test]
fn large_packets_get_their_headers_prepared() {
    let mut bench = Bench::ready();
    for (ip, l4) in [(Ip::V4, 34), (Ip::V6, 54)] {
        let (bytes, csum) = tcp(ip, 12_000);
        // Headers across fragments.
        let fragments = bench.fragments(&bytes, &[16, 30, 3000, 4000, 1000]);
        let packet = TxPacket { csum, gso: Some(Gso { mss: 1448 }), ..plain(&fragments) };
        assert_eq!(bench.nic().submit(0, &packet, Tag(8)), TxSubmitted::Queued);
        bench.nic().commit(0);
        bench.run();
        let sent = bench.host.sent.pop().expect("it came");
        let info = LargeSend::v2(1448, l4, ip == Ip::V6).0;
        assert_eq!(sent.infos, [(LSO, info)]);
        let l4 = usize::from(l4);
        let mut wanted = bytes.clone();
        let addresses = if ip == Ip::V4 {
            wanted[16..18].fill(0);
            wanted[24..26].fill(0);
            26..34
        } else {
            wanted[18..20].fill(0);
            22..54
        };
        let words = bytes[addresses].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let sum = words.sum::<u32>() + 6;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        wanted[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
        assert!(sent.bytes == wanted);
        // The guest's own bytes are as they were.
        let mut own = [0; 16];
        crate::net::copy_out(fragments[0].page, fragments[0].offset.into(), &mut own);
        assert_eq!(own, bytes[..16]);
    }
    assert_eq!(bench.count(Counter::TxGso), 2);
    bench.assert_idle();
}

#[test]
fn one_segment_is_not_cut_up() {
    let mut bench = Bench::ready();
    let (bytes, csum) = tcp(Ip::V4, 1448);
    let fragments = bench.fragments(&bytes, &[]);
    let packet = TxPacket { csum, gso: Some(Gso { mss: 1448 }), ..plain(&fragments) };
    assert_eq!(bench.nic().submit(0, &packet, Tag(8)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    let sent = bench.host.sent.pop().expect("it came");
    assert_eq!((sent.infos[0].0, sent.bytes), (CSUM, bytes));
}

#[test]
fn what_cannot_be_is_refused() {
    let bench = Bench::ready();
    let refused = |packet: &TxPacket<'_>| match bench.nic().submit(0, packet, Tag(1)) {
        TxSubmitted::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    let good = bench.fragments(&frame(1000, 1), &[]);
    let many: Vec<_> = (0..32).map(|_| good[0]).collect();
    let leaves = TxFragment { offset: 4000, len: 97, ..good[0] };
    let empty = TxFragment { len: 0, ..good[0] };
    for fragments in [&[][..], &many, &[leaves], &[good[0], empty]] {
        assert_eq!(refused(&plain(fragments)), TxRefusal::Fragments);
    }
    for (len, cuts) in [(13, &[][..]), (1519, &[])] {
        let fragments = bench.fragments(&frame(len, 1), cuts);
        assert_eq!(refused(&plain(&fragments)), TxRefusal::Size);
    }
    let partial = |l3, l4| TxCsum::Partial { ip: Ip::V4, transport: Transport::Tcp, l3, l4 };
    for csum in [partial(13, 40), partial(14, 33), partial(14, 990), partial(14, 1024)] {
        assert_eq!(refused(&TxPacket { csum, ..plain(&good) }), TxRefusal::Headers);
    }
    let gso = Some(Gso { mss: 100 });
    assert_eq!(refused(&TxPacket { gso, ..plain(&good) }), TxRefusal::Unsupported);
    // Its bytes are no IPv4.
    let (bytes, csum) = tcp(Ip::V6, 1000);
    let TxCsum::Partial { l4, .. } = csum else { panic!("partial") };
    let fragments = bench.fragments(&bytes, &[]);
    let packet = TxPacket { csum: partial(14, l4), gso, ..plain(&fragments) };
    assert_eq!(refused(&packet), TxRefusal::Headers);
    let packet = TxPacket { csum, gso: Some(Gso { mss: 0 }), ..plain(&fragments) };
    assert_eq!(refused(&packet), TxRefusal::Unsupported);
    assert_eq!(bench.count(Counter::TxRefused), 13);
    bench.assert_idle();
}

#[test]
fn a_full_queue_goes_on() {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    let mut queued = 0;
    let busy = loop {
        match bench.nic().submit(0, &plain(&fragments), Tag(queued)) {
            TxSubmitted::Queued => queued += 1,
            other => break other,
        }
        assert!(queued <= 16);
    };
    assert_eq!((queued, busy), (16, TxSubmitted::Busy));
    bench.nic().commit(0);
    bench.run();
    bench.notes.settled.lock().clear();
    bench.host.release(&bench.bus, 3, Status::SUCCESS);
    bench.run();
    assert!(!bench.notes.settled.lock().is_empty());
    assert_eq!(bench.ended().len(), 3);
    for _ in 0..3 {
        assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(99)), TxSubmitted::Queued);
    }
    bench.nic().commit(0);
    bench.run();
    bench.host.release(&bench.bus, 100, Status::SUCCESS);
    bench.run();
    assert_eq!(bench.ended().len(), 16);
    bench.assert_idle();
}

#[test]
fn a_full_ring_goes_on() {
    let small = Config { outgoing_pages: 1, tx_slots: 200, ..config() };
    let mut bench = Bench::ready_with(small, |_| {});
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    let mut queued = 0;
    while bench.nic().submit(0, &plain(&fragments), Tag(queued)) == TxSubmitted::Queued {
        queued += 1;
    }
    assert!((20..200).contains(&queued), "{queued}");
    bench.nic().commit(0);
    bench.notes.settled.lock().clear();
    bench.run();
    // The host read, and its completions came.
    assert!(bench.notes.settled.lock().contains(&0));
    assert_eq!(bench.ended().len() as u64, queued);
    assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(1)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    bench.assert_idle();
}

#[test]
fn copies_wait_for_room_in_the_ring() {
    let small = Config { outgoing_pages: 1, tx_slots: 200, ..config() };
    let mut bench = Bench::ready_with(small, |_| {});
    let small = bench.fragments(&frame(60, 1), &[]);
    let large = bench.fragments(&frame(1000, 1), &[]);
    while bench.nic().submit(0, &plain(&large), Tag(0)) == TxSubmitted::Queued {}
    let copied = bench.nic().submit(0, &plain(&small), Tag(0));
    assert_eq!(copied, TxSubmitted::Copied);
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.host.sent.last().map(|sent| sent.bytes.len()), Some(60));
    bench.assert_idle();
}

#[test]
fn answers_in_any_order_and_refusals() {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    for tag in 0..4 {
        bench.nic().submit(0, &plain(&fragments), Tag(tag));
    }
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.host.kept(), 4);
    bench.host.release_last(&bench.bus);
    bench.host.release(&bench.bus, 1, Status::FAILURE);
    bench.host.release_last(&bench.bus);
    bench.host.release(&bench.bus, 1, Status::SUCCESS);
    bench.run();
    let sent = TxEnd::Sent;
    let wanted = [(0, 3, sent), (0, 0, TxEnd::Refused), (0, 2, sent), (0, 1, sent)];
    assert_eq!(bench.ended(), wanted);
    assert_eq!(bench.count(Counter::TxHostRefused), 1);
    bench.assert_idle();
}
