//! Packets both ways, and what is none.

use hv_abi::netvsc::ndis::HashInformation;
use hv_abi::netvsc::ppi::{LargeSend, PacketId, PpiType, RxChecksum, TxChecksum, Vlan};
use hv_abi::vmbus::packet::PacketType;
use pv_frontends::net::{
    Gso, HashTypes, Ip, NetDevice, RxCsum, RxHash, Tag, Transport, TxCsum, TxFragment, TxPacket,
    TxRefusal, TxSubmitted, copy_out,
};
use pv_frontends::netvsc::fake::{packet_message, write_page};
use xen_abi::Mfn;

use super::books::{Coming, Large, Out, SERIAL};
use super::{PATTERNS, World};
use crate::input::Input;

/// A packet to be sent.
struct Wish {
    header: Vec<u8>,
    csum: TxCsum,
    gso: Option<Gso>,
    vlan: Option<u16>,
    hash: Option<u32>,
}

/// The Ethernet, IP and transport headers of a frame.
fn headers(serial: u32, ip: Ip, transport: Transport) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1];
    bytes.extend(serial.to_le_bytes());
    bytes.extend([0, 2]);
    let protocol = if transport == Transport::Tcp { 6 } else { 17 };
    match ip {
        Ip::V4 => {
            bytes.extend([8, 0, 0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        }
        Ip::V6 => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 5, 0, protocol, 64]);
            bytes.extend([0xfe; 32]);
        }
    }
    match transport {
        Transport::Tcp => {
            bytes.extend([4, 0xd2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 4, 0, 1, 2, 0, 0]);
        }
        Transport::Udp => bytes.extend([4, 0xd2, 0, 80, 5, 0, 1, 2]),
    }
    bytes
}

/// The information of a part of a packet.
fn part(flags: u8) -> (PpiType, u32) {
    let flags = flags | PacketId::SUBALLOCATION;
    (PpiType::PACKET_ID, u32::from(PacketId::V1) | u32::from(flags) << 8 | 7 << 16)
}

/// What the host says of a packet: pieces of information, and what they mean.
type Facts = (Vec<(PpiType, u32)>, RxCsum, Option<u16>, Option<RxHash>);

fn facts(shape: u8) -> Facts {
    let (mut infos, mut hash) = (Vec::new(), None);
    let (csum, meaning) = match shape & 3 {
        0 => (None, RxCsum::Unchecked),
        1 => (Some(RxChecksum::TCP_SUCCEEDED | RxChecksum::IP_SUCCEEDED), RxCsum::Validated),
        2 => (Some(RxChecksum::UDP_FAILED | RxChecksum::IP_SUCCEEDED), RxCsum::Wrong),
        _ => (Some(RxChecksum::IP_SUCCEEDED), RxCsum::Unchecked),
    };
    infos.extend(csum.map(|csum| (PpiType::CHECKSUM, csum)));
    let vlan = (shape & 4 != 0).then_some(0x6000 | u16::from(shape));
    infos.extend(vlan.map(|tci| (PpiType::VLAN, Vlan::from_tci(tci).0)));
    if shape & 8 != 0 {
        let none = HashTypes::default();
        let (information, kind) = match shape >> 4 & 3 {
            0 => (0, None),
            1 => (HashInformation::TCP_IPV4, Some(HashTypes { tcp_v4: true, ..none })),
            2 => (HashInformation::IPV6, Some(HashTypes { v6: true, ..none })),
            // Of two kinds at once.
            _ => (HashInformation::IPV4 | HashInformation::TCP_IPV4, None),
        };
        let value = 0xdead_0000 | u32::from(shape);
        infos.push((PpiType::HASH_VALUE, value));
        if information != 0 {
            infos.push((PpiType::HASH_INFORMATION, HashInformation::TOEPLITZ | information));
        }
        hash = Some(RxHash { value, kind });
    }
    (infos, meaning, vlan, hash)
}

impl World {
    fn serial(&mut self) -> u32 {
        self.next_serial += 1;
        self.next_serial
    }

    fn wish(&mut self, serial: u32, input: &mut Input<'_>) -> Wish {
        let (kind, shape) = (input.byte(), input.byte());
        let ip = if shape & 1 != 0 { Ip::V6 } else { Ip::V4 };
        let transport = if shape & 2 != 0 { Transport::Udp } else { Transport::Tcp };
        let mut header = headers(serial, ip, transport);
        let l4 = if ip == Ip::V4 { 34 } else { 54 };
        let mut wish =
            Wish { header: Vec::new(), csum: TxCsum::None, gso: None, vlan: None, hash: None };
        match kind & 7 {
            0..=2 => header.truncate(14 + usize::from(shape >> 2)),
            kind => {
                wish.csum = TxCsum::Partial { ip, transport, l3: 14, l4 };
                if kind == 6 {
                    // Offsets of any value.
                    let (l3, l4) = (input.half(), input.half());
                    wish.csum = TxCsum::Partial { ip, transport, l3, l4 };
                }
                wish.gso = (kind >= 5).then(|| Gso { mss: u16::from(input.byte()) * 8 });
            }
        }
        wish.vlan = (kind & 8 != 0).then_some(0x2000 | u16::from(shape));
        wish.hash = (kind & 16 != 0).then_some(0xbeef_0000 | u32::from(shape));
        wish.header = header;
        wish
    }

    /// A packet from above.
    pub(super) fn submit(&mut self, queue: u32, input: &mut Input<'_>) {
        let Some(nic) = self.nic() else { return };
        let Some(page) = self.notes.books().free.pop() else { return };
        let serial = self.serial();
        let wish = self.wish(serial, input);
        let at = usize::from(input.byte()) * 15;
        let own = self.pool[page];
        write_page(own.view, at, &wish.header);
        let fragment = |page: &pv_frontends::vmbus::Shared<_>, offset: usize, len: usize| {
            let (offset, len) = (offset as u16, len as u16);
            TxFragment { gpfn: Mfn(page.gpfn), page: page.view, offset, len }
        };
        let mut fragments = vec![fragment(&own, at, wish.header.len())];
        let count = input.byte();
        let count = if count & 0x80 != 0 { count & 0x3f } else { count & 3 };
        for _ in 0..count {
            let shape = usize::from(input.half());
            let at = (shape & 0xff) * 2;
            fragments.push(fragment(&self.pool[shape % PATTERNS], at, 1 + (shape >> 8) * 14));
        }
        let mut bytes = Vec::new();
        for fragment in &fragments {
            let mut part = vec![0; fragment.len.into()];
            copy_out(fragment.page, fragment.offset.into(), &mut part);
            bytes.extend(part);
        }
        let Wish { csum, gso, vlan, hash, .. } = wish;
        let packet = TxPacket { fragments: &fragments, csum, gso, vlan, hash };
        let submitted = nic.submit(queue, &packet, Tag(serial.into()));
        let is_plain = csum == TxCsum::None && vlan.is_none() && count == 0;
        let is_taken = match submitted {
            TxSubmitted::Queued | TxSubmitted::Copied => true,
            TxSubmitted::Busy => false,
            TxSubmitted::Refused(why) => {
                assert!(!is_plain || why == TxRefusal::Removed, "{why:?} of a small packet");
                false
            }
        };
        let mut books = self.notes.books();
        if !is_taken {
            books.free.push(page);
            return;
        }
        let is_copied = submitted == TxSubmitted::Copied;
        if is_copied {
            // It is the sender's again.
            write_page(own.view, at, &vec![0xdd; wish.header.len()]);
            books.free.push(page);
        }
        let counts = books.counts.entry(nic.card().number()).or_default();
        counts.tx = (counts.tx.0 + 1, counts.tx.1 + bytes.len() as u64);
        let (csum, large) = told(csum, gso);
        let vlan = vlan.map(|tci| Vlan::from_tci(tci).0);
        let (seen, in_pieces, answers) = (Vec::new(), 0, Vec::new());
        let out = Out {
            queue,
            bytes,
            is_copied,
            page,
            hash,
            vlan,
            csum,
            large,
            seen,
            in_pieces,
            answers,
        };
        books.out.insert(serial, out);
    }

    /// The host sends packets, as it should.
    pub(super) fn receive(&mut self, channel: u32, input: &mut Input<'_>) {
        let what = input.byte();
        let (infos, csum, vlan, hash) = facts(input.byte());
        let count = usize::from(what & 3) + 1;
        let most = self.host.section_bytes as usize - 150;
        let (mut messages, mut coming) = (Vec::new(), Vec::new());
        let era = self.host.era(channel);
        let is_optional = self.notes.books().cards.is_empty();
        let packet = |bytes, gso| Coming { bytes, csum, gso, hash, vlan, era, is_optional };
        let is_whole = what & 4 == 0 || count == 1;
        let mut whole = Vec::new();
        let mut mss = 0;
        for nr in 0..count {
            let len = usize::from(input.byte()) * 7 + 14;
            let mut bytes = headers(self.serial(), Ip::V4, Transport::Tcp);
            let headers = bytes.len();
            bytes.resize(
                len.clamp(14, most).max(if is_whole { 0 } else { headers + 1 }),
                what ^ nr as u8,
            );
            let mut infos = infos.clone();
            if is_whole {
                coming.push(packet(bytes.clone(), None));
            } else {
                let first = if nr == 0 { PacketId::FIRST } else { 0 };
                let last = if nr + 1 == count { PacketId::LAST } else { 0 };
                infos.push(part(first | last));
                mss = mss.max(bytes.len() - if nr == 0 { headers } else { 0 });
                whole.extend(&bytes);
            }
            messages.push(packet_message(&bytes, &infos));
        }
        if !is_whole {
            coming.push(packet(whole, Some(Gso { mss: mss as u16 })));
        }
        if is_whole && what & 8 != 0 {
            // Behind one another, where they fit.
            messages = joined(messages, self.host.section_bytes as usize);
        }
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let Some(queue) = self.queue_of(channel) else { return };
        // Before the guest has them.
        self.purge();
        let places = {
            let mut books = self.notes.books();
            let list = books.coming.entry(queue).or_default();
            let before = list.len();
            list.extend(coming);
            before
        };
        if !self.host.push(&self.bus, channel, &messages) {
            self.notes.books().coming.entry(queue).or_default().truncate(places);
        }
    }

    /// The host sends what may be no packet.
    pub(super) fn wild(&mut self, what: u8, channel: u32, input: &mut Input<'_>) {
        let Some(queue) = self.queue_of(channel) else { return };
        self.purge();
        match what & 3 {
            0 => {
                let mut message = packet_message(&[0x77; 60], &[(PpiType::VLAN, 1)]);
                for _ in 0..(what >> 2 & 3) + 1 {
                    let at = usize::from(input.byte()) % 15 * 4;
                    message[at..at + 4].copy_from_slice(&input.word().to_le_bytes());
                }
                self.anything(queue, &message);
                self.host.push(&self.bus, channel, &[&message]);
            }
            1 => {
                let message = input.bytes();
                self.anything(queue, message);
                self.host.push(&self.bus, channel, &[message]);
            }
            2 => {
                // Whatever is in the buffer.
                self.lie(queue);
                let ranges: Vec<_> = (0..input.byte() % 9)
                    .map(|_| match input.byte() {
                        0 => (input.word(), input.word()),
                        at => (u32::from(at) * 64, u32::from(input.half())),
                    })
                    .collect();
                self.host.ranges(&self.bus, channel, &ranges);
            }
            _ => {
                self.lie(queue);
                let (kind, id) = (PacketType(u16::from(input.byte() & 0xf)), input.number());
                let header: Vec<_> = (0..input.byte() % 4).map(|_| input.number()).collect();
                self.host.strangers.push(id);
                let payload = input.bytes();
                self.host.write(channel, kind, u16::from(what >> 2 & 1), id, &header, payload);
                self.bus.on_signal(hv_abi::vmbus::ChannelId(channel));
            }
        }
    }

    fn anything(&self, queue: u32, message: &[u8]) {
        // A packet is at most one too many; other messages change the card.
        if message.starts_with(&[1, 0, 0, 0]) {
            self.notes.books().wild.insert(queue);
        } else {
            self.lie(queue);
        }
    }
}

/// What the host is told of a packet's sums.
fn told(csum: TxCsum, gso: Option<Gso>) -> (Option<u32>, Option<(u32, Large)>) {
    let TxCsum::Partial { ip, transport, l3, l4 } = csum else { return (None, None) };
    let is_v6 = ip == Ip::V6;
    let version = if is_v6 { TxChecksum::IPV6 } else { TxChecksum::IPV4 };
    let word = match transport {
        Transport::Tcp => TxChecksum::new(version | TxChecksum::TCP, l4).0,
        Transport::Udp => TxChecksum::new(version | TxChecksum::UDP, 0).0,
    };
    let large = gso.map(|gso| {
        let word = LargeSend::v2(u32::from(gso.mss), l4, is_v6).0;
        (word, Large { is_v6, l3: l3.into(), l4: l4.into(), mss: gso.mss.into() })
    });
    (Some(word), large)
}

/// Messages in as few ranges as they fit into.
fn joined(messages: Vec<Vec<u8>>, most: usize) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for mut message in messages {
        // Each begins at a multiple of 8.
        let length = message.len().next_multiple_of(8);
        message.resize(length, 0);
        message[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        match all.last_mut().filter(|last| last.len() + message.len() <= most) {
            Some(last) => last.extend(message),
            None => all.push(message),
        }
    }
    all
}

const _: () = assert!(SERIAL.end <= 14);
