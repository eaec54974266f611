//! Frames in RNDIS packets (`hv_abi::netvsc::rndis`), both ways.

use crate::net::checksum;
use crate::net::frame::{Frame, Layout, Offload, Partial, protocol};
use crate::netvsp::lane::Inbound;
use hv_abi::netvsc::ppi::{LargeSend, PerPacketInfo, PpiType, RxChecksum, TxChecksum, Vlan};
use hv_abi::netvsc::rndis::{Body, MessageHeader, MessageType, Packet};
use std::mem::size_of;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What goes with a frame of the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wishes {
    checksum: Option<TxChecksum>,
    large: Option<LargeSend>,
    vlan: Option<Vlan>,
}

/// Cuts what is in a section or in pages into messages; what follows the last is filling.
/// An item of `None` is one that makes no sense, and the last.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if bytes.len() < size_of::<MessageHeader>() {
            return None;
        }
        let whole = MessageHeader::read_from_prefix(bytes).ok().and_then(|(header, _)| {
            let length = usize::try_from(header.length).ok()?;
            bytes.split_at_checked(length).filter(|_| length >= size_of::<MessageHeader>())
        });
        bytes = whole.map_or(&[], |(_, rest)| rest);
        Some(whole.map(|(message, _)| message))
    })
}

/// A message's type, and its body with all behind it.
#[must_use]
pub fn split(message: &[u8]) -> Option<(MessageType, &[u8])> {
    let (header, _) = MessageHeader::read_from_prefix(message).ok()?;
    let body = message.get(size_of::<MessageHeader>()..usize::try_from(header.length).ok()?)?;
    Some((header.message_type, body))
}

/// `length` bytes at `offset` of a body.
#[must_use]
pub fn part(body: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    let begin = usize::try_from(offset).ok()?;
    body.get(begin..begin.checked_add(usize::try_from(length).ok()?)?)
}

fn wishes(mut list: &[u8]) -> Option<Wishes> {
    let mut wishes = Wishes::default();
    while !list.is_empty() {
        let (info, _) = PerPacketInfo::read_from_prefix(list).ok()?;
        let size = usize::try_from(info.size).ok()?;
        if size < size_of::<PerPacketInfo>() {
            return None;
        }
        let (this, rest) = list.split_at_checked(size)?;
        let word = || {
            let value = this.get(usize::try_from(info.offset).ok()?..)?;
            u32::read_from_prefix(value).ok().map(|(word, _)| word)
        };
        match info.kind {
            PpiType::CHECKSUM => wishes.checksum = Some(TxChecksum(word()?)),
            PpiType::LARGE_SEND => wishes.large = Some(LargeSend(word()?)),
            PpiType::VLAN => wishes.vlan = Some(Vlan(word()?)),
            // Hashes and whatever else guests know about their packets.
            _ => {}
        }
        list = rest;
    }
    Some(wishes)
}

/// The frame in a packet of the guest's, with what it wants done; `None`: it makes no sense.
#[must_use]
pub fn outbound(body: &[u8]) -> Option<Frame> {
    let (packet, _) = Packet::read_from_prefix(body).ok()?;
    let data = part(body, packet.data_offset, packet.data_length)?;
    let list = match packet.per_packet_info_offset {
        0 => &[],
        offset => part(body, offset, packet.per_packet_info_length)?,
    };
    let wishes = wishes(list)?;
    let mut bytes = data.to_vec();
    let offload = match (wishes.large, wishes.checksum) {
        (Some(large), _) => segmentation(&mut bytes, large)?,
        (None, Some(sum)) => checksums(&mut bytes, sum)?,
        (None, None) => Offload::default(),
    };
    let mut frame = Frame { offload, bytes };
    if let Some(vlan) = wishes.vlan {
        frame.put_vlan(vlan.tci());
    }
    Some(frame)
}

fn segmentation(bytes: &mut [u8], large: LargeSend) -> Option<Offload> {
    let layout = Layout::of(bytes).filter(|layout| layout.protocol == protocol::TCP)?;
    let size = u16::try_from(large.mss()).ok().filter(|size| *size != 0)?;
    checksum::begin_segmentation(bytes, &layout)?;
    let partial = checksum::begin_transport(bytes, &layout)?;
    Some(Offload { checksum: Some(partial), segment: Some(size), valid: false })
}

fn checksums(bytes: &mut [u8], sum: TxChecksum) -> Option<Offload> {
    let wants = |flag| sum.0 & flag != 0;
    let layout = Layout::of(bytes)?;
    if wants(TxChecksum::IP_HEADER) {
        checksum::fill_ip_header(bytes, &layout);
    }
    let partial: Option<Partial> = match layout.protocol {
        protocol::TCP if wants(TxChecksum::TCP) => Some(checksum::begin_transport(bytes, &layout)?),
        protocol::UDP if wants(TxChecksum::UDP) => Some(checksum::begin_transport(bytes, &layout)?),
        _ if wants(TxChecksum::TCP | TxChecksum::UDP) => return None,
        _ => None,
    };
    Some(Offload { checksum: partial, ..Offload::default() })
}

/// What the guest wants to know of checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveChecksums {
    /// Of IPv4's header.
    pub ipv4: bool,
    /// Of TCP over IPv4.
    pub tcp_ipv4: bool,
    /// Of UDP over IPv4.
    pub udp_ipv4: bool,
    /// Of TCP over IPv6.
    pub tcp_ipv6: bool,
    /// Of UDP over IPv6.
    pub udp_ipv6: bool,
}

impl ReceiveChecksums {
    /// What is said of a frame whose checksums are right; 0: nothing.
    fn of(self, frame: &[u8]) -> RxChecksum {
        use crate::net::frame::Version::{V4, V6};
        let Some(layout) = Layout::of(frame) else { return RxChecksum(0) };
        let transport = match (layout.protocol, layout.version) {
            _ if layout.fragment => 0,
            (protocol::TCP, V4) if self.tcp_ipv4 => RxChecksum::TCP_SUCCEEDED,
            (protocol::TCP, V6) if self.tcp_ipv6 => RxChecksum::TCP_SUCCEEDED,
            (protocol::UDP, V4) if self.udp_ipv4 => RxChecksum::UDP_SUCCEEDED,
            (protocol::UDP, V6) if self.udp_ipv6 => RxChecksum::UDP_SUCCEEDED,
            _ => 0,
        };
        // The sender of a frame with such a checksum made the header's as well.
        let header = layout.version == V4 && self.ipv4;
        RxChecksum(transport | if header { RxChecksum::IP_SUCCEEDED } else { 0 })
    }
}

/// The RNDIS message in front of a frame for the guest.
pub fn inbound(frame: &Inbound, known: ReceiveChecksums, to: &mut Vec<u8>) {
    let sum = if frame.valid { known.of(&frame.bytes) } else { RxChecksum(0) };
    let infos = [
        (sum.0 != 0).then_some((PpiType::CHECKSUM, sum.0)),
        frame.vlan.map(|tci| (PpiType::VLAN, Vlan::from_tci(tci).0)),
        frame.hash.map(|hash| (PpiType::HASH_VALUE, hash)),
    ];
    let infos_bytes = infos.iter().flatten().count() * (size_of::<PerPacketInfo>() + 4);
    let mut packet = Packet {
        data_offset: (size_of::<Packet>() + infos_bytes) as u32,
        // Frames are below 2^17 bytes.
        data_length: frame.bytes.len() as u32,
        ..Packet::new_zeroed()
    };
    if infos_bytes != 0 {
        packet.per_packet_info_offset = size_of::<Packet>() as u32;
        packet.per_packet_info_length = infos_bytes as u32;
    }
    to.clear();
    let header = Packet::header((infos_bytes + frame.bytes.len()) as u32);
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(packet.as_bytes());
    for (kind, value) in infos.into_iter().flatten() {
        to.extend_from_slice(PerPacketInfo::of_word(kind).as_bytes());
        to.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
