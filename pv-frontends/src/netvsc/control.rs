//! RNDIS messages that are no packets: what is asked, and what is answered.

use alloc::vec::Vec;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumFlags, ChecksumSetting, ENCAPSULATION_8023, HashInformation, LargeSendV2, ObjectHeader,
    ObjectType, Offload, OffloadParameters, RSS_KEY_BYTES, RSS_TABLE_ENTRIES, RssCapabilities,
    RssParameters, Setting,
};
use hv_abi::netvsc::nvsp::{self, ChannelType, SendRndisPacket};
use hv_abi::netvsc::rndis::{
    Body, Halt, IndicateStatus, Initialize, InitializeComplete, Keepalive, KeepaliveComplete,
    MAJOR_VERSION, MINOR_VERSION, MessageHeader, MessageType, PacketFilter, Query, QueryComplete,
    Set, SetComplete, Status,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::net::{HASH_KEY_BYTES, HashTypes, RxFilter, TxOffloads};

/// Most bytes of a section with several packets that the host may make.
const MAX_TRANSFER_BYTES: u32 = 0x4000;
/// The key of Microsoft's specification of receive-side scaling, which hosts expect.
pub(super) const DEFAULT_KEY: [u8; HASH_KEY_BYTES] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
const _: () = assert!(HASH_KEY_BYTES == RSS_KEY_BYTES);

fn message<T: Body>(body: &T, value: &[u8]) -> Vec<u8> {
    let header = T::header(value.len() as u32);
    [header.as_bytes(), body.as_bytes(), value].concat()
}

/// The message that an RNDIS message in the page goes with.
pub(super) fn packet() -> nvsp::Message {
    nvsp::Message::new(&SendRndisPacket {
        channel_type: ChannelType::CONTROL,
        section: SendRndisPacket::NO_SECTION,
        section_bytes: 0,
    })
}

pub(super) fn initialize(request_id: u32) -> Vec<u8> {
    let body = Initialize {
        request_id,
        major_version: MAJOR_VERSION,
        minor_version: MINOR_VERSION,
        max_transfer_bytes: MAX_TRANSFER_BYTES,
    };
    message(&body, &[])
}

pub(super) fn halt(request_id: u32) -> Vec<u8> {
    message(&Halt { request_id }, &[])
}

pub(super) fn keepalive_complete(request_id: u32) -> Vec<u8> {
    message(&KeepaliveComplete { request_id, status: Status::SUCCESS }, &[])
}

/// Asks for an object; some want a header with the question.
pub(super) fn query(request_id: u32, oid: Oid) -> Vec<u8> {
    let object = |object_type, revision, size: usize| {
        let header = ObjectHeader { object_type, revision, size: size as u16 };
        let mut value = alloc::vec![0; size];
        for (to, from) in value.iter_mut().zip(header.as_bytes()) {
            *to = *from;
        }
        value
    };
    let value = match oid {
        Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => object(ObjectType::OFFLOAD, 3, Offload::BYTES_3),
        Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
            object(ObjectType::RSS_CAPABILITIES, 2, RssCapabilities::BYTES_2)
        }
        _ => Vec::new(),
    };
    let length = value.len() as u32;
    let offset = size_of::<Query>() as u32;
    message(&Query { request_id, oid, length, offset, vc_handle: 0 }, &value)
}

/// Sets an object.
pub(super) fn set(request_id: u32, oid: Oid, value: &[u8]) -> Vec<u8> {
    let (length, offset) = (value.len() as u32, size_of::<Set>() as u32);
    message(&Set { request_id, oid, length, offset, vc_handle: 0 }, value)
}

/// A message of the host's that is no packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told<'a> {
    Initialized(InitializeComplete),
    /// Answer to a query: request, value where it succeeded.
    Value(u32, Option<&'a [u8]>),
    /// Answer to a set: request, whether it succeeded.
    Set(u32, bool),
    Status(Status, &'a [u8]),
    Keepalive(u32),
    /// Nothing to be done.
    Nothing,
}

/// Looks at a message, a copy of the host's; `None` where it makes no sense.
pub(super) fn told(bytes: &[u8]) -> Option<Told<'_>> {
    let (header, body) = MessageHeader::read_from_prefix(bytes).ok()?;
    let value = |offset: u32, length: u32| {
        let end = offset.checked_add(length)?;
        body.get(offset as usize..end as usize)
    };
    Some(match header.message_type {
        MessageType::INITIALIZE_COMPLETE => Told::Initialized(first(body)?),
        MessageType::QUERY_COMPLETE => {
            let answer: QueryComplete = first(body)?;
            let value = (answer.status == Status::SUCCESS)
                .then(|| value(answer.offset, answer.length))
                .flatten();
            Told::Value(answer.request_id, value)
        }
        MessageType::SET_COMPLETE => {
            let answer: SetComplete = first(body)?;
            Told::Set(answer.request_id, answer.status == Status::SUCCESS)
        }
        MessageType::INDICATE_STATUS => {
            let told: IndicateStatus = first(body)?;
            let value = if told.length == 0 { &[][..] } else { value(told.offset, told.length)? };
            Told::Status(told.status, value)
        }
        MessageType::KEEPALIVE => Told::Keepalive(first::<Keepalive>(body)?.request_id),
        // Never asked for, and harmless.
        MessageType::RESET_COMPLETE | MessageType::KEEPALIVE_COMPLETE => Told::Nothing,
        _ => return None,
    })
}

fn first<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// The number a value begins with.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    first(value)
}

/// An object of a type, cut off where the host's ends; what is missing is zero.
fn object<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
    value: &[u8],
    object_type: ObjectType,
    least: usize,
) -> Option<T> {
    let header: ObjectHeader = first(value)?;
    let there = value.get(..usize::from(header.size)).unwrap_or(value);
    if header.object_type != object_type || there.len() < least {
        return None;
    }
    let mut object = T::new_zeroed();
    for (to, from) in object.as_mut_bytes().iter_mut().zip(there) {
        *to = *from;
    }
    Some(object)
}

/// What the host can do, from its answer.
pub(super) fn offload(value: &[u8]) -> Option<Offload> {
    object(value, ObjectType::OFFLOAD, Offload::BYTES_1)
}

/// Queues and entries of the host's receive-side scaling.
pub(super) fn rss_capabilities(value: &[u8]) -> Option<(u32, u16)> {
    let most = RSS_TABLE_ENTRIES as u16;
    let rss: RssCapabilities =
        object(value, ObjectType::RSS_CAPABILITIES, RssCapabilities::BYTES_1)?;
    // Revision 1 does not say how many entries.
    let entries = if rss.table_entries == 0 { most } else { rss.table_entries.min(most) };
    // A power of two, as tables are.
    Some((rss.receive_queues, 1 << entries.ilog2()))
}

/// What of the host's offloads is used when packets are sent.
pub(super) fn tx_offloads(host: &Offload) -> TxOffloads {
    let (v4, v6) = (host.checksum.ipv4_tx, host.checksum.ipv6_tx);
    let tcp = ChecksumFlags::TCP | ChecksumFlags::TCP_OPTIONS;
    let csum_tcp_v4 = v4.has(tcp);
    let csum_tcp_v6 = v6.has(tcp | ChecksumFlags::IP_OPTIONS);
    let lso = &host.lso_v2;
    let options = LargeSendV2::IPV6_EXTENSIONS | LargeSendV2::IPV6_TCP_OPTIONS;
    let lso_v4 = csum_tcp_v4 && lso.ipv4_encapsulation & ENCAPSULATION_8023 != 0;
    let lso_v6 = csum_tcp_v6
        && lso.ipv6_encapsulation & ENCAPSULATION_8023 != 0
        && lso.ipv6_options & options == options;
    TxOffloads {
        csum_tcp_v4,
        csum_udp_v4: v4.has(ChecksumFlags::UDP),
        csum_tcp_v6,
        csum_udp_v6: v6.has(ChecksumFlags::UDP),
        gso_v4_bytes: if lso_v4 { lso.ipv4_max_bytes } else { 0 },
        gso_v6_bytes: if lso_v6 { lso.ipv6_max_bytes } else { 0 },
        vlan: true,
    }
}

/// The offloads that are to be on: all that are used, and what else was asked for.
pub(super) fn offload_parameters(tx: &TxOffloads, coalesce: (bool, bool)) -> OffloadParameters {
    let both = |on| if on { ChecksumSetting::TX_RX } else { ChecksumSetting::NO_CHANGE };
    let lso = |bytes| if bytes > 0 { Setting::ENABLED } else { Setting::NO_CHANGE };
    OffloadParameters {
        header: ObjectHeader {
            object_type: ObjectType::DEFAULT,
            revision: 3,
            size: OffloadParameters::BYTES_3 as u16,
        },
        tcp_ipv4_checksum: both(tx.csum_tcp_v4),
        udp_ipv4_checksum: both(tx.csum_udp_v4),
        tcp_ipv6_checksum: both(tx.csum_tcp_v6),
        udp_ipv6_checksum: both(tx.csum_udp_v6),
        lso_v2_ipv4: lso(tx.gso_v4_bytes),
        lso_v2_ipv6: lso(tx.gso_v6_bytes),
        rsc_ipv4: Setting::of(coalesce.0),
        rsc_ipv6: Setting::of(coalesce.1),
        ..OffloadParameters::new_zeroed()
    }
}

/// Receive-side scaling with a table that is repeated up to the host's length.
pub(super) fn rss_parameters(
    types: HashTypes,
    key: &[u8; HASH_KEY_BYTES],
    table: &[u16],
) -> Vec<u8> {
    let bits = [
        (types.v4, HashInformation::IPV4),
        (types.tcp_v4, HashInformation::TCP_IPV4),
        (types.v6, HashInformation::IPV6),
        (types.tcp_v6, HashInformation::TCP_IPV6),
    ];
    let hash = bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
    // Without a hash: all to one queue, which takes some hash to say.
    let one = [table.first().copied().unwrap_or(0)];
    let (hash, table) = match hash {
        0 => (HashInformation::IPV4 | HashInformation::IPV6, &one[..]),
        hash => (hash, table),
    };
    let fixed = size_of::<RssParameters>();
    let table_bytes = RSS_TABLE_ENTRIES * 4;
    let parameters = RssParameters {
        header: ObjectHeader {
            object_type: ObjectType::RSS_PARAMETERS,
            revision: 2,
            size: RssParameters::BYTES_2 as u16,
        },
        hash: HashInformation(HashInformation::TOEPLITZ | hash),
        table_bytes: table_bytes as u16,
        table_offset: fixed as u32,
        key_bytes: RSS_KEY_BYTES as u16,
        key_offset: (fixed + table_bytes) as u32,
        ..RssParameters::new_zeroed()
    };
    let mut value = parameters.as_bytes().to_vec();
    for queue in table.iter().cycle().take(RSS_TABLE_ENTRIES) {
        value.extend_from_slice(&u32::from(*queue).to_le_bytes());
    }
    value.extend_from_slice(key);
    value
}

/// The packet filter's bits.
pub(super) fn filter_bits(filter: RxFilter) -> u32 {
    if filter.promiscuous {
        return PacketFilter::PROMISCUOUS;
    }
    let bits = [
        (filter.directed, PacketFilter::DIRECTED),
        (filter.broadcast, PacketFilter::BROADCAST),
        (filter.all_multicast, PacketFilter::ALL_MULTICAST),
    ];
    bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}
