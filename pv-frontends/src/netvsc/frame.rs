//! Packets to send: checked, and given their RNDIS header.

use arrayvec::ArrayVec;
use hv_abi::PAGE_SIZE;
use hv_abi::netvsc::ppi::{LargeSend, PerPacketInfo, PpiType, TxChecksum, Vlan};
use hv_abi::netvsc::rndis::{Body, MessageHeader, Packet};
use zerocopy::{FromZeros, IntoBytes};

use super::cut::{self, Cut, Cuts};
use super::slots::SLOT_BYTES;
use crate::net::{
    ETHERNET_HEADER_BYTES, Ip, MAX_PACKET_BYTES, Transport, TxCsum, TxFragment, TxOffloads,
    TxPacket, TxRefusal, VLAN_TAG_BYTES, copy_out,
};

/// Most fragments of a packet: Linux sends at most 32 pieces, of which the header is one.
pub(super) const MAX_FRAGMENTS: usize = 31;
/// Bytes of a TCP header without options.
const TCP_BYTES: u32 = 20;
/// Bytes of a UDP header.
const UDP_BYTES: u32 = 8;
/// Where a header may begin that the host is told of.
const MAX_HEADER_OFFSET: u16 = 1023;
/// Every message in a section begins at a multiple of this at least.
pub(super) const ALIGN: u32 = 8;

/// What a session allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub mtu: u32,
    pub tx: TxOffloads,
}

/// A packet's header: the message's, then as many of its own first bytes as were copied.
#[derive(Debug)]
pub(super) struct Header {
    bytes: ArrayVec<u8, SLOT_BYTES>,
    /// Bytes of the packet that are in it.
    pub copied: u32,
    /// Where what is not begins.
    pub rest: u32,
    /// Bytes of the packet, or of the piece of it.
    pub data_bytes: u32,
}

impl Header {
    /// The bytes, in a message that is filled up with `filling` bytes.
    pub(super) fn bytes(&mut self, filling: u32) -> &[u8] {
        let length = self.message_bytes() + filling;
        let field = core::mem::offset_of!(MessageHeader, length);
        if let Some(place) = self.bytes.get_mut(field..field + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        &self.bytes
    }

    /// Bytes of the message.
    pub(super) const fn message_bytes(&self) -> u32 {
        // At most a slot and a packet.
        self.bytes.len() as u32 - self.copied + self.data_bytes
    }

    /// Its own bytes.
    pub(super) const fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), TxRefusal> {
        self.bytes.try_extend_from_slice(bytes).map_err(|_| TxRefusal::Headers)
    }
}

/// What becomes of a packet.
#[derive(Debug)]
pub(super) enum Form {
    /// It goes as it is.
    Whole(Header),
    /// It goes in pieces.
    Pieces(Pieces),
}

/// A packet that goes in pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    pub cuts: Cuts,
    large: Large,
}

/// Checks a packet and makes its header.
pub(super) fn form(packet: &TxPacket<'_>, limits: &Limits) -> Result<Form, TxRefusal> {
    let data_bytes = check_fragments(packet)?;
    check_size(packet, limits, data_bytes)?;
    let csum = check_csum(packet, limits, data_bytes)?;
    let Some(mut large) = large_send(packet, limits, data_bytes)? else {
        return header(packet, csum, None, 0, data_bytes).map(Form::Whole);
    };
    let headers = large.headers.len() as u32;
    let (ip, l3) = (large.ip, large.l3);
    if let Some(cuts) = Cuts::of(packet, limits, (ip, l3 as u16), headers, data_bytes)? {
        return Ok(Form::Pieces(Pieces { cuts, large }));
    }
    large.prepare()?;
    header(packet, csum, Some(&large), headers, data_bytes).map(Form::Whole)
}

impl Pieces {
    /// The header of a piece.
    pub(super) fn header(&self, packet: &TxPacket<'_>, cut: &Cut) -> Result<Header, TxRefusal> {
        let mut large = self.large.clone();
        let changed = cut.change(&mut large.headers, large.ip, large.l3, large.l4);
        changed.ok_or(TxRefusal::Headers)?;
        large.prepare()?;
        let headers = large.headers.len() as u32;
        header(packet, None, Some(&large), headers + cut.begin, headers + cut.bytes)
    }
}

/// Makes the header of `data_bytes` of a packet, of which those that are not copied are at `rest`.
fn header(
    packet: &TxPacket<'_>,
    csum: Option<TxChecksum>,
    large: Option<&Large>,
    rest: u32,
    data_bytes: u32,
) -> Result<Header, TxRefusal> {
    let mut infos: ArrayVec<(PpiType, u32), 3> = ArrayVec::new();
    // No more than there is room for.
    infos.extend(packet.hash.map(|hash| (PpiType::HASH_VALUE, hash)));
    infos.extend(packet.vlan.map(|tci| (PpiType::VLAN, Vlan::from_tci(tci).0)));
    match large {
        Some(large) => infos.push((PpiType::LARGE_SEND, large.info.0)),
        None => infos.extend(csum.map(|csum| (PpiType::CHECKSUM, csum.0))),
    }
    let info_bytes = infos.len() as u32 * PerPacketInfo::of_word(PpiType::VLAN).size;
    let fixed = size_of::<Packet>() as u32;
    let body = Packet {
        data_offset: fixed + info_bytes,
        data_length: data_bytes,
        per_packet_info_offset: if info_bytes == 0 { 0 } else { fixed },
        per_packet_info_length: info_bytes,
        ..Packet::new_zeroed()
    };
    let mut header = Header { bytes: ArrayVec::new(), copied: 0, rest, data_bytes };
    header.put(Packet::header(info_bytes + data_bytes).as_bytes())?;
    header.put(body.as_bytes())?;
    for (kind, value) in infos {
        header.put(PerPacketInfo::of_word(kind).as_bytes())?;
        header.put(value.as_bytes())?;
    }
    if let Some(large) = large {
        header.put(&large.headers)?;
        header.copied = large.headers.len() as u32;
    }
    Ok(header)
}

fn check_fragments(packet: &TxPacket<'_>) -> Result<u32, TxRefusal> {
    let fits =
        |f: &TxFragment| f.len > 0 && usize::from(f.offset) + usize::from(f.len) <= PAGE_SIZE;
    let count = packet.fragments.len();
    if count == 0 || count > MAX_FRAGMENTS || !packet.fragments.iter().all(fits) {
        return Err(TxRefusal::Fragments);
    }
    Ok(packet.bytes())
}

fn check_size(packet: &TxPacket<'_>, limits: &Limits, bytes: u32) -> Result<(), TxRefusal> {
    let most = match packet.gso {
        Some(_) => MAX_PACKET_BYTES,
        // A tag may be in the packet, whatever is beside it.
        None => limits.mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES,
    };
    if !(ETHERNET_HEADER_BYTES..=most).contains(&bytes) {
        return Err(TxRefusal::Size);
    }
    if packet.vlan.is_some() && !limits.tx.vlan { Err(TxRefusal::Unsupported) } else { Ok(()) }
}

fn check_csum(
    packet: &TxPacket<'_>,
    limits: &Limits,
    bytes: u32,
) -> Result<Option<TxChecksum>, TxRefusal> {
    let TxCsum::Partial { ip, transport, l3, l4 } = packet.csum else { return Ok(None) };
    let tx = &limits.tx;
    let (can, flags, least) = match (ip, transport) {
        (Ip::V4, Transport::Tcp) => (tx.csum_tcp_v4, TxChecksum::IPV4 | TxChecksum::TCP, TCP_BYTES),
        (Ip::V4, Transport::Udp) => (tx.csum_udp_v4, TxChecksum::IPV4 | TxChecksum::UDP, UDP_BYTES),
        (Ip::V6, Transport::Tcp) => (tx.csum_tcp_v6, TxChecksum::IPV6 | TxChecksum::TCP, TCP_BYTES),
        (Ip::V6, Transport::Udp) => (tx.csum_udp_v6, TxChecksum::IPV6 | TxChecksum::UDP, UDP_BYTES),
    };
    let ip_bytes = if ip == Ip::V4 { 20 } else { 40 };
    let is_sane = u32::from(l3) >= ETHERNET_HEADER_BYTES
        && u32::from(l4) >= u32::from(l3) + ip_bytes
        && l4 <= MAX_HEADER_OFFSET
        && u32::from(l4) + least <= bytes;
    if !is_sane {
        return Err(TxRefusal::Headers);
    }
    if !can {
        return Err(TxRefusal::Unsupported);
    }
    let offset = if transport == Transport::Tcp { l4 } else { 0 };
    Ok(Some(TxChecksum::new(flags, offset)))
}

/// A packet to be cut up: what the host is told, and its headers.
#[derive(Clone, Debug)]
struct Large {
    info: LargeSend,
    headers: ArrayVec<u8, SLOT_BYTES>,
    ip: Ip,
    l3: usize,
    l4: usize,
}

impl Large {
    /// Makes the headers what the host wants.
    fn prepare(&mut self) -> Result<(), TxRefusal> {
        prepare(&mut self.headers, self.ip, self.l3, self.l4).ok_or(TxRefusal::Headers)
    }
}

fn large_send(
    packet: &TxPacket<'_>,
    limits: &Limits,
    bytes: u32,
) -> Result<Option<Large>, TxRefusal> {
    let Some(gso) = packet.gso else { return Ok(None) };
    let TxCsum::Partial { ip, transport: Transport::Tcp, l3, l4 } = packet.csum else {
        return Err(TxRefusal::Unsupported);
    };
    if gso.mss == 0 || cut::most(&limits.tx, ip) == 0 {
        return Err(TxRefusal::Unsupported);
    }
    let (l3, l4) = (usize::from(l3), usize::from(l4));
    let mut headers = ArrayVec::new();
    read(packet, l4 + TCP_BYTES as usize, &mut headers)?;
    let offset = headers.get(l4 + 12).copied().unwrap_or(0);
    let end = l4 + usize::from(offset >> 4) * 4;
    if offset >> 4 < 5 || end as u32 > bytes {
        return Err(TxRefusal::Headers);
    }
    read(packet, end, &mut headers)?;
    if bytes - end as u32 <= u32::from(gso.mss) {
        // One piece: hosts want two at least.
        check_size(&TxPacket { gso: None, ..*packet }, limits, bytes)?;
        return Ok(None);
    }
    let info = LargeSend::v2(u32::from(gso.mss), l4 as u16, ip == Ip::V6);
    Ok(Some(Large { info, headers, ip, l3, l4 }))
}

/// The first `bytes` bytes of a packet, behind those that are there already.
fn read(
    packet: &TxPacket<'_>,
    bytes: usize,
    into: &mut ArrayVec<u8, SLOT_BYTES>,
) -> Result<(), TxRefusal> {
    let mut skip = into.len();
    for fragment in packet.fragments {
        let len = usize::from(fragment.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = (len - skip).min(bytes.saturating_sub(into.len()));
        let mut copy = [0; SLOT_BYTES];
        let part = copy.get_mut(..take).ok_or(TxRefusal::Headers)?;
        copy_out(fragment.page, usize::from(fragment.offset) + skip, part);
        into.try_extend_from_slice(part).map_err(|_| TxRefusal::Headers)?;
        skip = 0;
    }
    if into.len() < bytes { Err(TxRefusal::Headers) } else { Ok(()) }
}

/// Makes of the headers what a host cuts up: lengths zero, TCP's checksum that of a pseudo header
/// without one. `None` where they are not what they are said to be.
fn prepare(headers: &mut [u8], ip: Ip, l3: usize, l4: usize) -> Option<()> {
    let first = *headers.get(l3)?;
    let addresses = match ip {
        Ip::V4 => {
            if first >> 4 != 4 || l3 + usize::from(first & 0xf) * 4 != l4 {
                return None;
            }
            headers.get_mut(l3 + 2..l3 + 4)?.fill(0);
            headers.get_mut(l3 + 10..l3 + 12)?.fill(0);
            l3 + 12..l3 + 20
        }
        Ip::V6 => {
            if first >> 4 != 6 {
                return None;
            }
            headers.get_mut(l3 + 4..l3 + 6)?.fill(0);
            l3 + 8..l3 + 40
        }
    };
    let words = headers.get(addresses)?.chunks(2);
    let sum: u32 = words.map(|w| w.iter().fold(0, |word, b| word << 8 | u32::from(*b))).sum();
    let sum = sum + 6;
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    headers.get_mut(l4 + 16..l4 + 18)?.copy_from_slice(&(folded as u16).to_be_bytes());
    Some(())
}
