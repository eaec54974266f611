//! Packets longer than the host takes.

use hv_abi::netvsc::nvsp::Status;
use hv_abi::netvsc::ppi::{LargeSend, PpiType};

use super::transmit::tcp;
use super::*;
use crate::net::Ip;

const MSS: usize = 1448;

/// A packet of so many bytes, with FIN, PSH, ACK and CWR.
fn long(ip: Ip, bytes: usize) -> (Vec<u8>, TxCsum) {
    let headers = if ip == Ip::V4 { 66 } else { 86 };
    let (mut packet, csum) = tcp(ip, bytes - headers);
    packet[headers - 32 + 13] = 0x99;
    (packet, csum)
}

fn submit(bench: &Bench, bytes: &[u8], csum: TxCsum, tag: u64) -> TxSubmitted {
    let (first, rest) = bytes.split_at(60);
    let mut fragments = vec![bench.fragment(first, 700)];
    fragments.extend(rest.chunks(4096).map(|chunk| bench.fragment(chunk, 0)));
    let packet = TxPacket { csum, gso: Some(Gso { mss: MSS as u16 }), ..plain(&fragments) };
    bench.nic().submit(0, &packet, Tag(tag))
}

/// A bench whose host has the two pieces of a packet, and nobody knows how they fare.
fn pieces_at_the_host() -> Bench {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    let (bytes, csum) = long(Ip::V4, 65_000);
    assert_eq!(submit(&bench, &bytes, csum, 7), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    assert_eq!((bench.host.kept(), bench.ended()), (2, vec![]));
    bench
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[test]
fn pieces_are_what_the_whole_would_have_become() {
    for (ip, l4) in [(Ip::V4, 34), (Ip::V6, 54)] {
        let mut bench = Bench::ready();
        let (bytes, csum) = long(ip, 65_535);
        assert_eq!(submit(&bench, &bytes, csum, 7), TxSubmitted::Queued);
        bench.nic().commit(0);
        bench.run();
        assert_eq!(bench.ended(), [(0, 7, TxEnd::Sent)]);
        let sent: Vec<_> = bench.host.sent.drain(..).collect();
        assert_eq!(sent.len(), 2);
        let info = LargeSend::v2(MSS as u32, l4, ip == Ip::V6).0;
        let headers = usize::from(l4) + 32;
        let (mut payload, mut segments) = (Vec::new(), 0);
        for (nr, piece) in sent.iter().enumerate() {
            assert_eq!(piece.infos, [(PpiType::LARGE_SEND.0, info)]);
            assert!(piece.bytes.len() - 14 <= 62_780);
            let l4 = usize::from(l4);
            let sequence = be32(&bytes, l4 + 4).wrapping_add(payload.len() as u32);
            assert_eq!(be32(&piece.bytes, l4 + 4), sequence);
            // CWR with the first segment, FIN and PSH with the last.
            assert_eq!(piece.bytes[l4 + 13], if nr == 0 { 0x90 } else { 0x19 });
            if ip == Ip::V4 {
                assert_eq!(be32(&piece.bytes, 18) >> 16, 1 + segments, "the identification");
            }
            payload.extend_from_slice(&piece.bytes[headers..]);
            segments += (piece.bytes.len() - headers).div_ceil(MSS) as u32;
        }
        assert!(payload == bytes[headers..]);
        assert_eq!([Counter::TxPackets, Counter::TxCut].map(|c| bench.count(c)), [1, 1]);
        bench.assert_idle();
    }
}

#[test]
fn the_pages_are_the_host_s_until_the_last_piece() {
    for backwards in [false, true] {
        let mut bench = pieces_at_the_host();
        let nr = usize::from(backwards);
        let id = bench.host.kept_id(nr).expect("kept").1;
        bench.host.release_nth(&bench.bus, nr, Status::SUCCESS);
        bench.run();
        assert_eq!(bench.ended(), []);
        // Nobody is told twice.
        bench.host.complete_again(&bench.bus, PRIMARY, id);
        bench.run();
        assert_eq!((bench.ended(), bench.count(Counter::Bogus)), (vec![], 1));
        bench.host.release(&bench.bus, 1, Status::SUCCESS);
        bench.run();
        assert_eq!(bench.ended(), [(0, 7, TxEnd::Sent)]);
        bench.assert_idle();
    }
}

#[test]
fn one_piece_refused_is_the_packet_refused() {
    for first in [Status::FAILURE, Status::SUCCESS] {
        let mut bench = pieces_at_the_host();
        bench.host.release(&bench.bus, 1, first);
        let other = if first == Status::SUCCESS { Status::FAILURE } else { Status::SUCCESS };
        bench.host.release(&bench.bus, 1, other);
        bench.run();
        assert_eq!(bench.ended(), [(0, 7, TxEnd::Refused)]);
        bench.assert_idle();
    }
}

#[test]
fn a_channel_that_goes_takes_all_pieces() {
    for done in 0..2 {
        let mut bench = pieces_at_the_host();
        bench.host.release(&bench.bus, done, Status::SUCCESS);
        bench.host.rescind(&bench.bus, PRIMARY);
        bench.run();
        assert_eq!(bench.ended(), [(0, 7, TxEnd::Lost)]);
        assert_eq!(bench.count(Counter::TxLost), 1);
    }
}

#[test]
fn slots_for_all_pieces_or_none() {
    let mut bench = Bench::ready();
    bench.host.keep = true;
    let (bytes, csum) = long(Ip::V4, 65_000);
    let small = bench.fragments(&frame(1000, 1), &[]);
    assert_eq!(bench.nic().submit(0, &plain(&small), Tag(0)), TxSubmitted::Queued);
    // 16 slots.
    for nr in 1..8 {
        assert_eq!(submit(&bench, &bytes, csum, nr), TxSubmitted::Queued);
    }
    assert_eq!(submit(&bench, &bytes, csum, 8), TxSubmitted::Busy);
    bench.nic().commit(0);
    bench.run();
    bench.host.release(&bench.bus, 1, Status::SUCCESS);
    bench.run();
    assert_eq!(submit(&bench, &bytes, csum, 8), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    bench.host.release(&bench.bus, 16, Status::SUCCESS);
    bench.run();
    let ended: Vec<_> = bench.ended().iter().map(|end| end.1).collect();
    assert_eq!(ended, (0..9).collect::<Vec<_>>());
    bench.assert_idle();
}

#[test]
fn a_piece_without_room_in_the_ring_is_lost() {
    let small = Config { outgoing_pages: 1, tx_slots: 200, ..config() };
    let mut bench = Bench::ready_with(small, |_| {});
    let (bytes, csum) = long(Ip::V4, 65_000);
    let mut taken = 0;
    while submit(&bench, &bytes, csum, taken) == TxSubmitted::Queued {
        taken += 1;
    }
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.ended().len() as u64, taken);
    let short = bench.count(Counter::TxCutShort);
    assert!(short <= 1);
    assert_eq!(bench.host.sent.len() as u64, taken * 2 - short);
    bench.assert_idle();
}
