//! Received RNDIS packets: where their data is, and what the host says of them.

use hv_abi::netvsc::ndis::HashInformation;
use hv_abi::netvsc::ppi::{PacketId, PerPacketInfo, PpiType, RxChecksum, Vlan};
use hv_abi::netvsc::rndis::{Body, MessageHeader, MessageType, Packet};
use zerocopy::{FromBytes, IntoBytes};

use super::slots::Run;
use crate::net::{HashTypes, RxCsum, RxHash};

/// Most pieces of per-packet information looked at.
const MAX_PPI: u32 = 32;
/// Bytes of a message's header.
const HEADER_BYTES: u32 = size_of::<MessageHeader>() as u32;

/// Bytes that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What goes with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub csum: RxCsum,
    /// The IPv4 header's checksum is not in the packet: parts that were put together have the first
    /// one's.
    pub ip_csum_blank: bool,
    pub hash: Option<RxHash>,
    pub vlan: Option<u16>,
    /// It is a part of a packet.
    pub fragment: Option<PacketId>,
}

impl Meta {
    pub(super) const NONE: Self = Self {
        csum: RxCsum::Unchecked,
        ip_csum_blank: false,
        hash: None,
        vlan: None,
        fragment: None,
    };
}

/// A packet in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where in the pages, and bytes.
    pub data: (u32, u32),
    pub meta: Meta,
}

/// The header of the message a run begins with: one that is whole.
pub(super) fn header(run: &Run<'_>) -> Result<MessageHeader, Malformed> {
    let header: MessageHeader = run.read(0).ok_or(Malformed)?;
    let is_whole = header.length >= HEADER_BYTES && header.length <= run.bytes;
    if is_whole { Ok(header) } else { Err(Malformed) }
}

/// Bytes of the message behind which another packet follows in the run; `None`: nothing does that
/// can be one.
pub(super) fn next_packet(run: &Run<'_>, length: u32) -> Option<u32> {
    let rest = run.part(length, run.bytes.checked_sub(length)?)?;
    let header: MessageHeader = rest.read(0)?;
    let is_packet = header.message_type == MessageType::PACKET;
    let is_whole = (Packet::MESSAGE_BYTES..=rest.bytes).contains(&header.length);
    (is_packet && is_whole).then_some(length)
}

/// The packet of a message of `length` bytes, which [`header`] has seen.
pub(super) fn packet(run: &Run<'_>, length: u32) -> Result<Frame, Malformed> {
    let body = run.part(HEADER_BYTES, length.saturating_sub(HEADER_BYTES)).ok_or(Malformed)?;
    let packet: Packet = body.read(0).ok_or(Malformed)?;
    let fixed = size_of::<Packet>() as u32;
    if packet.data_offset < fixed || packet.data_length == 0 {
        return Err(Malformed);
    }
    let data = body.part(packet.data_offset, packet.data_length).ok_or(Malformed)?;
    let meta = if packet.per_packet_info_length == 0 || packet.per_packet_info_offset == 0 {
        Meta::NONE
    } else {
        if packet.per_packet_info_offset < fixed {
            return Err(Malformed);
        }
        let infos = body.part(packet.per_packet_info_offset, packet.per_packet_info_length);
        meta(&infos.ok_or(Malformed)?)?
    };
    Ok(Frame { data: (data.at, data.bytes), meta })
}

fn meta(infos: &Run<'_>) -> Result<Meta, Malformed> {
    let (mut meta, mut at) = (Meta::NONE, 0);
    let mut hash_kind = None;
    for _ in 0..MAX_PPI {
        if at == infos.bytes {
            break;
        }
        let info: PerPacketInfo = infos.read(at).ok_or(Malformed)?;
        let header = size_of::<PerPacketInfo>() as u32;
        if info.size < header || info.offset < header {
            return Err(Malformed);
        }
        let whole = infos.part(at, info.size).ok_or(Malformed)?;
        let word = || whole.read::<u32>(info.offset).ok_or(Malformed);
        match info.kind {
            PpiType::CHECKSUM => {
                let info = RxChecksum(word()?);
                (meta.csum, meta.ip_csum_blank) = (checksum(info), is_ip_csum_blank(info));
            }
            PpiType::VLAN => meta.vlan = Some(Vlan(word()?).tci()),
            PpiType::HASH_VALUE => meta.hash = Some(RxHash { value: word()?, kind: None }),
            PpiType::HASH_INFORMATION => hash_kind = Some(HashInformation(word()?)),
            PpiType::PACKET_ID => {
                let id = PacketId::read_from_bytes(word()?.as_bytes()).map_err(|_| Malformed)?;
                let is_part = id.version == PacketId::V1 && id.flags & PacketId::SUBALLOCATION != 0;
                meta.fragment = is_part.then_some(id);
            }
            // Others are of no use here.
            _ => {}
        }
        at += info.size;
    }
    if let (Some(hash), Some(kind)) = (&mut meta.hash, hash_kind) {
        hash.kind = hash_types(kind);
    }
    Ok(meta)
}

fn checksum(info: RxChecksum) -> RxCsum {
    if info.0 & RxChecksum::ANY_FAILED != 0 {
        RxCsum::Wrong
    } else if info.0 & RxChecksum::TRANSPORT_SUCCEEDED != 0 {
        RxCsum::Validated
    } else {
        RxCsum::Unchecked
    }
}

/// The header was right as it came over the wire; its checksum's field is not part of that.
const fn is_ip_csum_blank(info: RxChecksum) -> bool {
    let both = RxChecksum::IP_SUCCEEDED | RxChecksum::IP_VALUE_INVALID;
    info.0 & both == both && info.0 & RxChecksum::IP_FAILED == 0
}

/// What a hash was made of; `None` where it is not one kind that has a name here.
fn hash_types(kind: HashInformation) -> Option<HashTypes> {
    let none = HashTypes::default();
    match kind.0 & !HashInformation::FUNCTION {
        HashInformation::TCP_IPV4 => Some(HashTypes { tcp_v4: true, ..none }),
        HashInformation::IPV4 => Some(HashTypes { v4: true, ..none }),
        HashInformation::TCP_IPV6 => Some(HashTypes { tcp_v6: true, ..none }),
        HashInformation::IPV6 => Some(HashTypes { v6: true, ..none }),
        _ => None,
    }
}

/// Bytes of Ethernet, IP and TCP headers a frame begins with; `None` where it does not.
pub(super) fn tcp_header_bytes(frame: &Run<'_>) -> Option<u32> {
    let kind = u16::from_be_bytes(frame.read(12)?);
    let l3 = 14;
    let (protocol, l4) = match kind {
        0x0800 => {
            let [first]: [u8; 1] = frame.read(l3)?;
            (frame.read::<[u8; 1]>(l3 + 9)?, l3 + u32::from(first & 0xf) * 4)
        }
        0x86dd => (frame.read(l3 + 6)?, l3 + 40),
        _ => return None,
    };
    let [offset]: [u8; 1] = frame.read(l4 + 12)?;
    (protocol == [6]).then_some(l4 + u32::from(offset >> 4) * 4)
}
