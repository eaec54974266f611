//! NVSP: the messages on a network card's channel.
//!
//! ```text
//! in-band, GPA-direct or transfer-page packet: message type | body, filled up with zeros
//! completion packet: the same, of the type that answers
//! ```
//! A message is [`Message::BYTES_LEGACY`] bytes below version 6.1, [`Message::BYTES_6_1`] from
//! then on. Hosts take longer ones in any version; a completion may be cut to its body.

use core::mem::{offset_of, size_of};
use static_assertions::{const_assert, const_assert_eq};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::vmbus::GpadlId;

/// Kind of a message (`NVSP_MSG_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MessageType(pub u32);

impl MessageType {
    /// First message: [`Init`].
    pub const INIT: Self = Self(1);
    /// Its answer: [`InitComplete`].
    pub const INIT_COMPLETE: Self = Self(2);
    /// [`SendNdisVersion`]; not answered.
    pub const SEND_NDIS_VERSION: Self = Self(100);
    /// [`SendReceiveBuffer`].
    pub const SEND_RECEIVE_BUFFER: Self = Self(101);
    /// [`SendReceiveBufferComplete`].
    pub const SEND_RECEIVE_BUFFER_COMPLETE: Self = Self(102);
    /// [`RevokeReceiveBuffer`].
    pub const REVOKE_RECEIVE_BUFFER: Self = Self(103);
    /// [`SendSendBuffer`].
    pub const SEND_SEND_BUFFER: Self = Self(104);
    /// [`SendSendBufferComplete`].
    pub const SEND_SEND_BUFFER_COMPLETE: Self = Self(105);
    /// [`RevokeSendBuffer`].
    pub const REVOKE_SEND_BUFFER: Self = Self(106);
    /// Both ways: [`SendRndisPacket`].
    pub const SEND_RNDIS_PACKET: Self = Self(107);
    /// Both ways: [`SendRndisPacketComplete`].
    pub const SEND_RNDIS_PACKET_COMPLETE: Self = Self(108);
    /// Version 2: TCP chimney, in which no guest takes part any more, to
    /// [`Self::POST_CHIMNEY_RECV_REQUEST_COMPLETE`].
    pub const SEND_CHIMNEY_DELEGATED_BUFFER: Self = Self(109);
    /// Last of those.
    pub const POST_CHIMNEY_RECV_REQUEST_COMPLETE: Self = Self(119);
    /// Version 2, deprecated.
    pub const ALLOCATE_RECEIVE_BUFFER: Self = Self(120);
    /// Version 2, deprecated.
    pub const ALLOCATE_RECEIVE_BUFFER_COMPLETE: Self = Self(121);
    /// Version 2, deprecated.
    pub const FREE_RECEIVE_BUFFER: Self = Self(122);
    /// Version 2, deprecated.
    pub const SEND_VMQ_RNDIS_PACKET: Self = Self(123);
    /// Version 2, deprecated.
    pub const SEND_VMQ_RNDIS_PACKET_COMPLETE: Self = Self(124);
    /// Version 2: [`SendNdisConfig`]; not answered.
    pub const SEND_NDIS_CONFIG: Self = Self(125);
    /// Version 2: TCP chimney.
    pub const ALLOCATE_CHIMNEY_HANDLE: Self = Self(126);
    /// Version 2: TCP chimney.
    pub const ALLOCATE_CHIMNEY_HANDLE_COMPLETE: Self = Self(127);
    /// Version 4, from the host: [`SendVfAssociation`]; not answered.
    pub const SEND_VF_ASSOCIATION: Self = Self(128);
    /// Version 4: [`SwitchDataPath`]; answered by an empty completion.
    pub const SWITCH_DATA_PATH: Self = Self(129);
    /// Version 4, deprecated.
    pub const UPLINK_CONNECT_STATE: Self = Self(130);
    /// Version 5: [`OidQueryEx`].
    pub const OID_QUERY_EX: Self = Self(131);
    /// Version 5: [`OidQueryExComplete`].
    pub const OID_QUERY_EX_COMPLETE: Self = Self(132);
    /// Version 5: [`SubChannelRequest`], answered by [`SubChannelComplete`] under the same type.
    pub const SUB_CHANNEL: Self = Self(133);
    /// Version 5, from the host: [`SendIndirectionTable`]; not answered.
    pub const SEND_INDIRECTION_TABLE: Self = Self(134);
    /// Version 6.1: [`PacketDirect`].
    pub const PACKET_DIRECT_API: Self = Self(135);
    /// Version 6.1: a batch of packet-direct buffers.
    pub const PACKET_DIRECT_POST_BATCH: Self = Self(136);
}

/// Protocol version: major 31:16, minor 15:0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Version(pub u32);

impl Version {
    /// Windows Server 2008.
    pub const V1: Self = Self(0x0000_0002);
    /// Windows Server 2008 R2: [`SendNdisConfig`].
    pub const V2: Self = Self(0x0003_0002);
    /// Windows Server 2012: virtual functions.
    pub const V4: Self = Self(0x0004_0000);
    /// Windows Server 2012 R2: sub-channels, UDP checksums, NDIS 6.30.
    pub const V5: Self = Self(0x0005_0000);
    /// Windows Server 2016.
    pub const V6: Self = Self(0x0006_0000);
    /// Windows Server 2016 1803: longer messages, coalescing over VMBus.
    pub const V6_1: Self = Self(0x0006_0001);
    /// All of them, newest first.
    pub const ALL: [Self; 6] = [Self::V6_1, Self::V6, Self::V5, Self::V4, Self::V2, Self::V1];

    /// Whether there is [`MessageType::SEND_NDIS_CONFIG`].
    #[must_use]
    pub const fn has_ndis_config(self) -> bool {
        self.0 >= Self::V2.0
    }

    /// Whether there are sub-channels, and with them receive-side scaling.
    #[must_use]
    pub const fn has_sub_channels(self) -> bool {
        self.0 >= Self::V5.0
    }

    /// Whether received segments can be coalesced ([`Capabilities::RSC`]).
    #[must_use]
    pub const fn has_rsc(self) -> bool {
        self.0 >= Self::V6_1.0
    }

    /// NDIS version that belongs to it, as major, minor.
    #[must_use]
    pub const fn ndis(self) -> (u32, u32) {
        if self.0 >= Self::V5.0 { (6, 30) } else { (6, 1) }
    }

    /// Bytes of a message.
    #[must_use]
    pub const fn message_bytes(self) -> usize {
        if self.0 >= Self::V6_1.0 { Message::BYTES_6_1 } else { Message::BYTES_LEGACY }
    }
}

/// Result in an answer (`NVSP_STAT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u32);

#[allow(missing_docs, reason = "names are the protocol's own")]
impl Status {
    pub const NONE: Self = Self(0);
    pub const SUCCESS: Self = Self(1);
    pub const FAILURE: Self = Self(2);
    pub const PROTOCOL_TOO_NEW: Self = Self(3);
    pub const PROTOCOL_TOO_OLD: Self = Self(4);
    pub const INVALID_RNDIS_PACKET: Self = Self(5);
    pub const BUSY: Self = Self(6);
    pub const PROTOCOL_UNSUPPORTED: Self = Self(7);
}

/// What a body is sent under.
pub trait Body: FromBytes + IntoBytes + Immutable + Sized {
    /// Type of its message.
    const TYPE: MessageType;
}

/// A message, as long as the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Message {
    /// Type.
    pub message_type: MessageType,
    /// Body, then zeros.
    pub body: [u8; Self::BYTES_6_1 - size_of::<MessageType>()],
}
const_assert_eq!(size_of::<Message>(), Message::BYTES_6_1);

impl Message {
    /// Bytes below version 6.1: as many as the longest body of version 1 needs.
    pub const BYTES_LEGACY: usize = 28;
    /// Bytes from version 6.1 on.
    pub const BYTES_6_1: usize = 40;

    /// The message of a body.
    #[must_use]
    pub fn new<T: Body>(body: &T) -> Self {
        const { assert!(size_of::<T>() <= Self::BYTES_6_1 - size_of::<MessageType>()) };
        let mut message = Self { message_type: T::TYPE, ..Self::new_zeroed() };
        for (to, from) in message.body.iter_mut().zip(body.as_bytes()) {
            *to = *from;
        }
        message
    }

    /// What is in it; `None` where it is of another type.
    #[must_use]
    pub fn get<T: Body>(&self) -> Option<T> {
        let of_type = self.message_type == T::TYPE;
        of_type.then(|| T::read_from_prefix(&self.body).ok()).flatten().map(|(body, _)| body)
    }
}

macro_rules! bodies {
    ($($name:ident = $bytes:literal: $kind:ident;)*) => {
        $(
            const_assert_eq!(size_of::<$name>(), $bytes);
            impl Body for $name {
                const TYPE: MessageType = MessageType::$kind;
            }
        )*
    };
}

bodies! {
    Init = 8: INIT;
    InitComplete = 12: INIT_COMPLETE;
    SendNdisVersion = 8: SEND_NDIS_VERSION;
    SendReceiveBuffer = 8: SEND_RECEIVE_BUFFER;
    SendReceiveBufferComplete = 24: SEND_RECEIVE_BUFFER_COMPLETE;
    RevokeReceiveBuffer = 4: REVOKE_RECEIVE_BUFFER;
    SendSendBuffer = 8: SEND_SEND_BUFFER;
    SendSendBufferComplete = 8: SEND_SEND_BUFFER_COMPLETE;
    RevokeSendBuffer = 4: REVOKE_SEND_BUFFER;
    SendRndisPacket = 12: SEND_RNDIS_PACKET;
    SendRndisPacketComplete = 4: SEND_RNDIS_PACKET_COMPLETE;
    SendNdisConfig = 16: SEND_NDIS_CONFIG;
    SendVfAssociation = 8: SEND_VF_ASSOCIATION;
    SwitchDataPath = 4: SWITCH_DATA_PATH;
    OidQueryEx = 8: OID_QUERY_EX;
    OidQueryExComplete = 8: OID_QUERY_EX_COMPLETE;
    SubChannelRequest = 8: SUB_CHANNEL;
    SendIndirectionTable = 8: SEND_INDIRECTION_TABLE;
    PacketDirect = 8: PACKET_DIRECT_API;
}

/// Proposes a version; both fields are the same (`struct nvsp_message_init`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Init {
    /// Version.
    pub min_version: Version,
    /// Version again.
    pub max_version: Version,
}

/// Answers [`Init`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitComplete {
    /// The oldest hosts' version; no longer looked at.
    pub negotiated_version: u32,
    /// Pieces of guest memory a packet may have; no longer looked at.
    pub max_mdl_chain: u32,
    /// [`Status::SUCCESS`], or the version is refused.
    pub status: Status,
}

/// NDIS version of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendNdisVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

/// Number that receive buffers go by, also in transfer-page packets.
pub const RECEIVE_BUFFER_ID: u16 = 0xcafe;
/// Number that send buffers go by.
pub const SEND_BUFFER_ID: u16 = 0;

/// Gives the host the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendReceiveBuffer {
    /// Its pages.
    pub gpadl: GpadlId,
    /// [`RECEIVE_BUFFER_ID`].
    pub id: u16,
    /// Zero.
    pub reserved: u16,
}

/// How the host cuts the receive buffer up: `count` pieces of `bytes` each, from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReceiveSection {
    /// First byte.
    pub offset: u32,
    /// Bytes of a piece.
    pub bytes: u32,
    /// Pieces.
    pub count: u32,
    /// Behind the last.
    pub end: u32,
}

/// Answers [`SendReceiveBuffer`]. No host has ever sent more than one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendReceiveBufferComplete {
    /// Result.
    pub status: Status,
    /// Sections: 1.
    pub section_count: u32,
    /// The section.
    pub section: ReceiveSection,
}
const_assert_eq!(offset_of!(SendReceiveBufferComplete, section), 8);

/// Takes the receive buffer back. The completion, where one was asked for, is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RevokeReceiveBuffer {
    /// [`RECEIVE_BUFFER_ID`].
    pub id: u16,
    /// Zero.
    pub reserved: u16,
}

/// Gives the host the send buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSendBuffer {
    /// Its pages.
    pub gpadl: GpadlId,
    /// [`SEND_BUFFER_ID`].
    pub id: u16,
    /// Zero.
    pub reserved: u16,
}

/// Answers [`SendSendBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSendBufferComplete {
    /// Result.
    pub status: Status,
    /// Bytes of each section the buffer is cut into.
    pub section_bytes: u32,
}

/// Takes the send buffer back. The completion, where one was asked for, is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RevokeSendBuffer {
    /// [`SEND_BUFFER_ID`].
    pub id: u16,
    /// Zero.
    pub reserved: u16,
}

/// Which of RNDIS's two channels a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ChannelType(pub u32);

impl ChannelType {
    /// Packets.
    pub const DATA: Self = Self(0);
    /// Everything else.
    pub const CONTROL: Self = Self(1);
}

/// "Here is RNDIS". From the guest: in a send section, then the packet's external pages (either may
/// be missing). From the host: in the ranges of a transfer-page packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendRndisPacket {
    /// Which channel.
    pub channel_type: ChannelType,
    /// Section of the send buffer, or [`SendRndisPacket::NO_SECTION`].
    pub section: u32,
    /// Bytes in it.
    pub section_bytes: u32,
}

impl SendRndisPacket {
    /// `section`: none.
    pub const NO_SECTION: u32 = 0xffff_ffff;
}

/// Answers [`SendRndisPacket`]: what it was in is the sender's again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendRndisPacketComplete {
    /// Result.
    pub status: Status,
}

/// What a guest can do (`struct nvsp_2_vsc_capability`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Virtual machine queues.
    pub const VMQ: u64 = 1 << 0;
    /// TCP chimney.
    pub const CHIMNEY: u64 = 1 << 1;
    /// Virtual functions: the host may send [`SendVfAssociation`].
    pub const SRIOV: u64 = 1 << 2;
    /// 802.1Q tags travel beside the packet.
    pub const IEEE_8021Q: u64 = 1 << 3;
    /// Correlation identifiers.
    pub const CORRELATION_ID: u64 = 1 << 4;
    /// Teaming; hosts report changes of link speed only to guests that have it.
    pub const TEAMING: u64 = 1 << 5;
    /// Virtual subnet identifiers.
    pub const VIRTUAL_SUBNET_ID: u64 = 1 << 6;
    /// Received segments may come coalesced (6.1).
    pub const RSC: u64 = 1 << 7;
}

/// The guest's MTU and what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendNdisConfig {
    /// Bytes of a frame, its Ethernet header included.
    pub mtu: u32,
    /// Zero.
    pub reserved: u32,
    /// Capabilities.
    pub capabilities: Capabilities,
}
const_assert_eq!(offset_of!(SendNdisConfig, capabilities), 8);

/// A virtual function came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendVfAssociation {
    /// 1: there is one.
    pub allocated: u32,
    /// Its serial number.
    pub serial: u32,
}

/// Says by which way packets are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwitchDataPath {
    /// Way.
    pub active: DataPath,
}

/// A way for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DataPath(pub u32);

impl DataPath {
    /// The channel.
    pub const SYNTHETIC: Self = Self(0);
    /// The virtual function.
    pub const VF: Self = Self(1);
}

/// Queries an object outside RNDIS; no guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OidQueryEx {
    /// Header of the query.
    pub header: super::ndis::ObjectHeader,
    /// Object.
    pub oid: super::Oid,
}

/// Answers [`OidQueryEx`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OidQueryExComplete {
    /// Result, as RNDIS has it.
    pub status: super::rndis::Status,
    /// Bytes.
    pub bytes: u32,
}

/// What is wanted of sub-channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SubChannelOperation(pub u32);

impl SubChannelOperation {
    /// Offer some.
    pub const ALLOCATE: Self = Self(1);
}

/// Asks for sub-channels. They are offered, with indices from 1, before or after the answer; they
/// go when the primary channel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubChannelRequest {
    /// What to do.
    pub operation: SubChannelOperation,
    /// How many.
    pub count: u32,
}

/// Answers [`SubChannelRequest`], under the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubChannelComplete {
    /// Result.
    pub status: Status,
    /// How many there are to be.
    pub count: u32,
}
const_assert_eq!(size_of::<SubChannelComplete>(), 8);

impl Body for SubChannelComplete {
    const TYPE: MessageType = MessageType::SUB_CHANNEL;
}

/// Entries of the table [`SendIndirectionTable`] brings.
pub const SEND_TABLE_ENTRIES: usize = 16;

/// Tells the guest which channel to send which flows on: a `u32` channel index for each value of a
/// hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendIndirectionTable {
    /// [`SEND_TABLE_ENTRIES`].
    pub count: u32,
    /// Where the table begins, from the message's first byte. Hosts up to version 6 may say it
    /// wrongly: the table is at [`Message::BYTES_6_1`] where the message is that long.
    pub offset: u32,
}

/// Largest message: [`SendIndirectionTable`] with its table.
pub const MESSAGE_BYTES_MAX: usize = Message::BYTES_6_1 + SEND_TABLE_ENTRIES * 4;

/// Packet direct: a request by the guest, or its answer; further fields follow, by operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketDirect {
    /// Operation.
    pub operation: u32,
    /// Of an answer: `NTSTATUS`.
    pub status: u32,
}

/// Most ranges of a transfer-page packet.
pub const MAX_RECEIVE_RANGES: u32 = 375;
/// Most ranges where segments may come coalesced: one more for each smallest segment of the largest
/// IPv4 packet.
pub const MAX_RECEIVE_RANGES_RSC: u32 = 562;
/// Largest receive buffer a host takes.
pub const MAX_RECEIVE_BUFFER_BYTES: u32 = 31 << 20;
/// Largest receive buffer of versions 1 and 2, and largest send buffer of all.
pub const MAX_LEGACY_BUFFER_BYTES: u32 = 15 << 20;
const_assert!(MAX_RECEIVE_RANGES < MAX_RECEIVE_RANGES_RSC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_messages() {
        let numbers = [
            (MessageType::INIT, 1),
            (MessageType::SEND_NDIS_VERSION, 100),
            (MessageType::SEND_RNDIS_PACKET, 107),
            (MessageType::SEND_RNDIS_PACKET_COMPLETE, 108),
            (MessageType::SEND_NDIS_CONFIG, 125),
            (MessageType::SEND_VF_ASSOCIATION, 128),
            (MessageType::SWITCH_DATA_PATH, 129),
            (MessageType::SUB_CHANNEL, 133),
            (MessageType::SEND_INDIRECTION_TABLE, 134),
            (MessageType::PACKET_DIRECT_POST_BATCH, 136),
        ];
        for (kind, number) in numbers {
            assert_eq!(kind.0, number);
        }
    }

    #[test]
    fn what_versions_have() {
        let what = |v: Version| {
            (v.has_ndis_config(), v.has_sub_channels(), v.has_rsc(), v.message_bytes(), v.ndis().1)
        };
        assert_eq!(what(Version::V1), (false, false, false, 28, 1));
        assert_eq!(what(Version::V2), (true, false, false, 28, 1));
        assert_eq!(what(Version::V4), (true, false, false, 28, 1));
        assert_eq!(what(Version::V5), (true, true, false, 28, 30));
        assert_eq!(what(Version::V6), (true, true, false, 28, 30));
        assert_eq!(what(Version::V6_1), (true, true, true, 40, 30));
        assert!(Version::ALL.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn messages_hold_one_kind_of_body() {
        let sent = SendNdisConfig { mtu: 1514, reserved: 0, capabilities: Capabilities(0xa8) };
        let message = Message::new(&sent);
        assert_eq!(message.as_bytes()[..8], [125, 0, 0, 0, 0xea, 5, 0, 0]);
        assert_eq!(message.as_bytes()[12..20], [0xa8, 0, 0, 0, 0, 0, 0, 0]);
        assert!(message.as_bytes()[20..].iter().all(|byte| *byte == 0));
        assert_eq!(message.get::<SendNdisConfig>(), Some(sent));
        assert_eq!(message.get::<Init>(), None);
    }
}
