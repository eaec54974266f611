//! Hosts and guests that do anything, in any order.

use std::format;

use hv_abi::netvsc::nvsp::Status as NvspStatus;
use hv_abi::netvsc::ppi::{PacketId, PpiType};
use hv_abi::netvsc::rndis::Status;
use hv_abi::vmbus::packet::PacketType;
use proptest::collection::vec as any_vec;
use proptest::prelude::*;

use super::host::packet_message;
use super::receive::part;
use super::*;
use crate::net::{Ip, Transport};

/// What someone does.
#[derive(Clone, Debug)]
enum Act {
    /// The guest sends: queue, bytes, cuts, whether there is an offload.
    Submit(u32, usize, Vec<usize>, bool),
    Commit(u32),
    /// The host answers so many, from the front or the back.
    Release(usize, bool),
    /// Frames: channel, lengths, whether they are parts of one.
    Receive(usize, Vec<usize>, bool),
    /// A message that is a packet but for some words.
    Twisted(usize, Vec<(usize, u32)>),
    /// Any bytes in a range.
    Bytes(usize, Vec<u8>),
    /// Any ranges.
    Ranges(usize, Vec<(u32, u32)>),
    /// Any packet.
    Raw(usize, u16, u64, Vec<u64>, Vec<u8>),
    /// The backend's room, and whether it says so.
    Room(Option<usize>, bool),
    Link(bool),
    Mtu(u32),
    Rescind,
    Corrupt(usize),
    Run,
    Pass(u64),
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..80, Just(u32::MAX), Just(0x8000_0000), any::<u32>()]
}

fn act() -> impl Strategy<Value = Act> {
    let channel = 0..3usize;
    let range = (word(), word());
    prop_oneof![
        6 => (0u32..4, 14..1600usize, any_vec(1..600usize, 0..6), any::<bool>())
            .prop_map(|(q, len, cuts, offload)| Act::Submit(q, len, cuts, offload)),
        3 => (0u32..4).prop_map(Act::Commit),
        3 => (1..20usize, any::<bool>()).prop_map(|(n, last)| Act::Release(n, last)),
        4 => (channel.clone(), any_vec(14..1500usize, 1..6), any::<bool>())
            .prop_map(|(c, lens, parts)| Act::Receive(c, lens, parts)),
        3 => (channel.clone(), any_vec((0..15usize, word()), 1..4))
            .prop_map(|(c, words)| Act::Twisted(c, words)),
        1 => (channel.clone(), any_vec(any::<u8>(), 0..200)).prop_map(|(c, b)| Act::Bytes(c, b)),
        1 => (channel.clone(), any_vec(range, 0..8)).prop_map(|(c, r)| Act::Ranges(c, r)),
        2 => (channel.clone(), 0..16u16, any::<u64>(), any_vec(any::<u64>(), 0..4),
              any_vec(any::<u8>(), 0..64))
            .prop_map(|(c, kind, id, header, payload)| Act::Raw(c, kind, id, header, payload)),
        2 => (proptest::option::of(0..5usize), any::<bool>()).prop_map(|(r, s)| Act::Room(r, s)),
        1 => any::<bool>().prop_map(Act::Link),
        1 => (1000..4000u32).prop_map(Act::Mtu),
        1 => Just(Act::Rescind),
        1 => channel.prop_map(Act::Corrupt),
        6 => Just(Act::Run),
        1 => (0..10_000_000_000u64).prop_map(Act::Pass),
    ]
}

struct World {
    bench: Bench,
    /// Tags that are with the device.
    out: Vec<u64>,
    next_tag: u64,
    /// Frames that were sent by the guest, and taken by the host or lost.
    submitted: usize,
}

impl World {
    fn channel(&self, nr: usize) -> u32 {
        let channels: Vec<u32> = self.bench.host.server.channels.keys().copied().collect();
        channels.get(nr % channels.len().max(1)).copied().unwrap_or(self.bench.host.primary)
    }

    fn act(&mut self, act: &Act) {
        let bus = Arc::clone(&self.bench.bus);
        match act {
            Act::Submit(queue, len, cuts, offload) => self.submit(*queue, *len, cuts, *offload),
            Act::Commit(queue) => self.bench.nic().commit(*queue),
            Act::Release(count, last) => {
                for _ in 0..*count {
                    if *last {
                        self.bench.host.release_last(&bus);
                    } else {
                        self.bench.host.release(&bus, 1, NvspStatus::FAILURE);
                    }
                }
            }
            Act::Receive(channel, lens, parts) => {
                let channel = self.channel(*channel);
                let last = lens.len() - 1;
                let messages: Vec<_> = lens
                    .iter()
                    .enumerate()
                    .map(|(nr, len)| {
                        let first = if nr == 0 { PacketId::FIRST } else { 0 };
                        let end = if nr == last { PacketId::LAST } else { 0 };
                        let info = [part(1, first | end)];
                        packet_message(&frame(*len, 1), if *parts { &info } else { &[] })
                    })
                    .collect();
                let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
                self.bench.host.push(&bus, channel, &messages);
            }
            Act::Twisted(channel, words) => {
                let mut message = packet_message(&frame(60, 1), &[(PpiType::VLAN, 1)]);
                for (nr, word) in words {
                    message[nr * 4..nr * 4 + 4].copy_from_slice(&word.to_le_bytes());
                }
                let channel = self.channel(*channel);
                self.bench.host.push(&bus, channel, &[&message]);
            }
            Act::Bytes(channel, bytes) => {
                let channel = self.channel(*channel);
                self.bench.host.push(&bus, channel, &[bytes]);
            }
            Act::Ranges(channel, ranges) => {
                let channel = self.channel(*channel);
                self.bench.host.ranges(&bus, channel, ranges);
            }
            Act::Raw(channel, kind, id, header, payload) => {
                let channel = self.channel(*channel);
                let kind = PacketType(*kind);
                self.bench.host.raw(&bus, channel, kind, *id, header, payload);
                self.bench.host.strangers.push(*id);
            }
            Act::Room(room, says) => {
                *self.bench.notes.room.lock() = *room;
                if *says || room.is_none() {
                    (0..4).for_each(|queue| self.bench.nic().resume(queue));
                }
            }
            Act::Link(up) => {
                let status = if *up { Status::MEDIA_CONNECT } else { Status::MEDIA_DISCONNECT };
                if !self.bench.host.free_sections.is_empty() && self.has_primary() {
                    self.bench.host.indicate(&bus, status, &[]);
                }
            }
            Act::Mtu(mtu) => {
                self.bench.nic().set_mtu(*mtu).expect("it is within bounds");
                self.bench.run();
            }
            Act::Rescind => self.bench.offer_again(),
            Act::Corrupt(channel) => {
                let channel = self.channel(*channel);
                if self.bench.host.server.channels.contains_key(&channel) {
                    self.bench.host.corrupt(&bus, channel);
                    self.bench.run();
                }
            }
            Act::Run => self.bench.run(),
            Act::Pass(ns) => self.bench.pass(*ns),
        }
        self.check();
    }

    fn has_primary(&self) -> bool {
        let primary = self.bench.host.primary;
        self.bench.host.server.channels.contains_key(&primary)
    }

    fn submit(&mut self, queue: u32, len: usize, cuts: &[usize], offload: bool) {
        let fragments = self.bench.fragments(&frame(len, 1), cuts);
        let csum = if offload {
            TxCsum::Partial { ip: Ip::V4, transport: Transport::Tcp, l3: 14, l4: 34 }
        } else {
            TxCsum::None
        };
        let gso = (offload && len.is_multiple_of(2)).then_some(Gso { mss: 536 });
        let packet = TxPacket { csum, gso, ..plain(&fragments) };
        let tag = self.next_tag;
        self.next_tag += 1;
        match self.bench.nic().submit(queue, &packet, Tag(tag)) {
            TxSubmitted::Queued => {
                self.out.push(tag);
                self.submitted += 1;
            }
            TxSubmitted::Copied => self.submitted += 1,
            TxSubmitted::Busy | TxSubmitted::Refused(_) => {}
        }
    }

    /// Every end is of something that was out.
    fn check(&mut self) {
        for (_, tag, _) in self.bench.ended() {
            let at = self.out.iter().position(|out| *out == tag).expect("it was out");
            self.out.swap_remove(at);
        }
    }

    /// In the end nothing is anybody's, and packets go both ways.
    fn finish(mut self) -> Result<(), TestCaseError> {
        let bus = Arc::clone(&self.bench.bus);
        *self.bench.notes.room.lock() = None;
        self.bench.host.keep = false;
        // Whatever the host said that was wrong: a new channel is as good as the first.
        for round in 0..2 {
            for queue in 0..4 {
                self.bench.nic().commit(queue);
                self.bench.nic().resume(queue);
            }
            self.bench.run();
            self.bench.host.release(&bus, 10_000, NvspStatus::SUCCESS);
            self.bench.run();
            self.bench.pass(100_000_000_000);
            self.check();
            if round == 0 {
                self.bench.offer_again();
            }
        }
        prop_assert!(self.out.is_empty(), "{:?}", self.out);
        for card in self.bench.driver.cards() {
            prop_assert_eq!(card.in_use(), (0, 0, 0));
        }
        prop_assert!(self.bench.host.outstanding.is_empty());
        let sent = self.bench.host.sent.len() as u64;
        let lost = self.bench.count(Counter::TxLost);
        prop_assert!(self.submitted as u64 <= sent + lost);
        prop_assert_eq!(self.bench.count(Counter::TxPackets), self.submitted as u64);
        prop_assert!(self.bench.driver.is_settled());

        self.bench.got();
        let fragments = self.bench.fragments(&frame(1000, 9), &[]);
        let submitted = self.bench.nic().submit(0, &plain(&fragments), Tag(u64::MAX));
        prop_assert_eq!(submitted, TxSubmitted::Queued);
        self.bench.nic().commit(0);
        let channel = self.bench.host.primary;
        prop_assert!(self.bench.host.receive(&bus, channel, &[(&frame(99, 4), &[])]));
        self.bench.run();
        prop_assert_eq!(self.bench.ended(), [(0, u64::MAX, TxEnd::Sent)]);
        prop_assert_eq!(self.bench.got().len(), 1);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_leaks(acts in any_vec(act(), 1..40)) {
        let mut bench = Bench::ready_with(queues(3), |host| host.section_bytes = 2048);
        bench.host.keep = true;
        let mut world = World { bench, out: Vec::new(), next_tag: 1, submitted: 0 };
        for act in &acts {
            world.act(act);
        }
        world.finish()?;
    }

    /// Sections, slots and what is written where: frames come out as they went in.
    #[test]
    fn frames_arrive_whole(
        frames in any_vec((14..1514usize, any_vec(1..400usize, 0..5), any::<bool>()), 1..60),
        copy_max_bytes in 0..1600u32,
    ) {
        let config = Config { copy_max_bytes, ..config() };
        let mut bench = Bench::ready_with(config, |_| {});
        let mut wanted = Vec::new();
        for (nr, (len, cuts, commit)) in frames.iter().enumerate() {
            let bytes = frame(*len, nr as u8);
            let fragments = bench.fragments(&bytes, cuts);
            let mut submitted = bench.nic().submit(0, &plain(&fragments), Tag(1));
            if submitted == TxSubmitted::Busy {
                bench.run();
                submitted = bench.nic().submit(0, &plain(&fragments), Tag(1));
            }
            prop_assert!(
                matches!(submitted, TxSubmitted::Queued | TxSubmitted::Copied),
                "{}", format!("{submitted:?}"),
            );
            if *commit {
                bench.nic().commit(0);
            }
            wanted.push(bytes);
        }
        bench.nic().commit(0);
        bench.run();
        let got: Vec<_> = bench.host.sent.drain(..).map(|sent| sent.bytes).collect();
        prop_assert!(got == wanted);
        bench.assert_idle();
    }
}
