//! RNDIS (MS-RNDIS; `include/linux/rndis.h`), as it travels in buffers and guest pages.
//!
//! ```text
//! MessageHeader | body | what the body's offsets point at
//! Packet: header | Packet | per-packet information | data | filling
//! ```
//! Offsets count from the body's first byte, behind the [`MessageHeader`]. Lengths of messages
//! count from the header's first byte. A section or a range holds one message; a data section may
//! hold several, each begun at a multiple of what [`InitializeComplete`] says.

use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Oid;

/// Kind of a message (`RNDIS_MSG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MessageType(pub u32);

impl MessageType {
    /// [`Packet`].
    pub const PACKET: Self = Self(1);
    /// [`Initialize`].
    pub const INITIALIZE: Self = Self(2);
    /// [`Halt`]; not answered.
    pub const HALT: Self = Self(3);
    /// [`Query`].
    pub const QUERY: Self = Self(4);
    /// [`Set`].
    pub const SET: Self = Self(5);
    /// [`Reset`].
    pub const RESET: Self = Self(6);
    /// From the host: [`IndicateStatus`].
    pub const INDICATE_STATUS: Self = Self(7);
    /// Both ways: [`Keepalive`].
    pub const KEEPALIVE: Self = Self(8);
    /// [`InitializeComplete`].
    pub const INITIALIZE_COMPLETE: Self = Self(0x8000_0002);
    /// [`QueryComplete`].
    pub const QUERY_COMPLETE: Self = Self(0x8000_0004);
    /// [`SetComplete`].
    pub const SET_COMPLETE: Self = Self(0x8000_0005);
    /// [`ResetComplete`].
    pub const RESET_COMPLETE: Self = Self(0x8000_0006);
    /// [`KeepaliveComplete`].
    pub const KEEPALIVE_COMPLETE: Self = Self(0x8000_0008);
    /// Bit of answers.
    pub const COMPLETION: u32 = 0x8000_0000;
}

/// Result or indication (`RNDIS_STATUS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// Not yet.
    pub const PENDING: Self = Self(0x0000_0103);
    /// Not known.
    pub const NOT_RECOGNIZED: Self = Self(0x0001_0001);
    /// Indication: a reset began.
    pub const RESET_START: Self = Self(0x4001_0004);
    /// Indication: a reset ended.
    pub const RESET_END: Self = Self(0x4001_0005);
    /// Indication: the link is up.
    pub const MEDIA_CONNECT: Self = Self(0x4001_000b);
    /// Indication: the link is down.
    pub const MEDIA_DISCONNECT: Self = Self(0x4001_000c);
    /// Indication of the medium's own.
    pub const MEDIA_SPECIFIC_INDICATION: Self = Self(0x4001_0012);
    /// Indication: a `u32` speed in units of 100 bits per second.
    pub const LINK_SPEED_CHANGE: Self = Self(0x4001_0013);
    /// Indication: the card is on another network; as if the link went down and up.
    pub const NETWORK_CHANGE: Self = Self(0x4001_0018);
    /// Indication: [`Offload`](super::ndis::Offload) is in force.
    pub const TASK_OFFLOAD_CURRENT_CONFIG: Self = Self(0x4002_0006);
    /// The answer does not fit.
    pub const BUFFER_OVERFLOW: Self = Self(0x8000_0005);
    /// Failed.
    pub const FAILURE: Self = Self(0xc000_0001);
    /// No room.
    pub const RESOURCES: Self = Self(0xc000_009a);
    /// Not supported.
    pub const NOT_SUPPORTED: Self = Self(0xc000_00bb);
    /// The version is not known.
    pub const BAD_VERSION: Self = Self(0xc001_0004);
    /// A list of groups is full.
    pub const MULTICAST_FULL: Self = Self(0xc001_0009);
    /// The packet makes no sense.
    pub const INVALID_PACKET: Self = Self(0xc001_000f);
    /// It is not ready.
    pub const ADAPTER_NOT_READY: Self = Self(0xc001_0011);
    /// A length makes no sense.
    pub const INVALID_LENGTH: Self = Self(0xc001_0014);
    /// A value makes no sense.
    pub const INVALID_DATA: Self = Self(0xc001_0015);
    /// The room given is too small.
    pub const BUFFER_TOO_SHORT: Self = Self(0xc001_0016);
    /// There is no such object.
    pub const INVALID_OID: Self = Self(0xc001_0017);
}

/// Start of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// Type.
    pub message_type: MessageType,
    /// Bytes of the message, this header included.
    pub length: u32,
}

/// What a body is sent under.
pub trait Body: FromBytes + IntoBytes + Immutable + Sized {
    /// Type of its message.
    const TYPE: MessageType;
    /// Bytes of a message with nothing behind the body.
    const MESSAGE_BYTES: u32 = (size_of::<MessageHeader>() + size_of::<Self>()) as u32;

    /// The header of such a message with `more` bytes behind the body.
    #[must_use]
    fn header(more: u32) -> MessageHeader {
        MessageHeader { message_type: Self::TYPE, length: Self::MESSAGE_BYTES + more }
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

const_assert_eq!(size_of::<MessageHeader>(), 8);
bodies! {
    Packet = 36: PACKET;
    Initialize = 16: INITIALIZE;
    InitializeComplete = 44: INITIALIZE_COMPLETE;
    Halt = 4: HALT;
    Query = 20: QUERY;
    QueryComplete = 16: QUERY_COMPLETE;
    Set = 20: SET;
    SetComplete = 8: SET_COMPLETE;
    Reset = 4: RESET;
    ResetComplete = 8: RESET_COMPLETE;
    IndicateStatus = 12: INDICATE_STATUS;
    Keepalive = 4: KEEPALIVE;
    KeepaliveComplete = 8: KEEPALIVE_COMPLETE;
}

/// A frame (`struct rndis_packet`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packet {
    /// Where it begins.
    pub data_offset: u32,
    /// Its bytes.
    pub data_length: u32,
    /// Out-of-band data; none on this bus.
    pub oob_data_offset: u32,
    /// As above.
    pub oob_data_length: u32,
    /// As above.
    pub oob_data_elements: u32,
    /// Where [`PerPacketInfo`](super::ppi::PerPacketInfo)s begin; 0: none.
    pub per_packet_info_offset: u32,
    /// Bytes of all of them.
    pub per_packet_info_length: u32,
    /// Zero.
    pub vc_handle: u32,
    /// Zero.
    pub reserved: u32,
}

/// Begins everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Initialize {
    /// Comes back in the answer.
    pub request_id: u32,
    /// [`MAJOR_VERSION`].
    pub major_version: u32,
    /// [`MINOR_VERSION`].
    pub minor_version: u32,
    /// Most bytes of several packets in one section, of the host's.
    pub max_transfer_bytes: u32,
}

/// Version.
pub const MAJOR_VERSION: u32 = 1;
/// Version.
pub const MINOR_VERSION: u32 = 0;

/// Answers [`Initialize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitializeComplete {
    /// The request's.
    pub request_id: u32,
    /// Result.
    pub status: Status,
    /// [`MAJOR_VERSION`].
    pub major_version: u32,
    /// [`MINOR_VERSION`].
    pub minor_version: u32,
    /// [`InitializeComplete::CONNECTIONLESS`].
    pub device_flags: u32,
    /// Medium.
    pub medium: Medium,
    /// Most packets in one section, of the guest's.
    pub max_packets: u32,
    /// Most bytes of them.
    pub max_transfer_bytes: u32,
    /// Each begins at a multiple of `1 << alignment_shift`.
    pub alignment_shift: u32,
    /// Zero.
    pub af_list_offset: u32,
    /// Zero.
    pub af_list_bytes: u32,
}

impl InitializeComplete {
    /// `device_flags`: no connections.
    pub const CONNECTIONLESS: u32 = 1;
    /// `device_flags`: connections.
    pub const CONNECTION_ORIENTED: u32 = 2;
}

/// Kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Medium(pub u32);

impl Medium {
    /// Ethernet.
    pub const IEEE_802_3: Self = Self(0);
}

/// Ends everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Halt {
    /// Any.
    pub request_id: u32,
}

/// Asks for an object's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Query {
    /// Comes back in the answer.
    pub request_id: u32,
    /// Object.
    pub oid: Oid,
    /// Bytes of what goes with the query, mostly 0.
    pub length: u32,
    /// Where that begins.
    pub offset: u32,
    /// Zero.
    pub vc_handle: u32,
}

/// Answers [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueryComplete {
    /// The request's.
    pub request_id: u32,
    /// Result.
    pub status: Status,
    /// Bytes of the value.
    pub length: u32,
    /// Where it begins.
    pub offset: u32,
}

/// Sets an object's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Set {
    /// Comes back in the answer.
    pub request_id: u32,
    /// Object.
    pub oid: Oid,
    /// Bytes of the value.
    pub length: u32,
    /// Where it begins.
    pub offset: u32,
    /// Zero.
    pub vc_handle: u32,
}

/// Answers [`Set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetComplete {
    /// The request's.
    pub request_id: u32,
    /// Result.
    pub status: Status,
}

/// Resets the card; a host need not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reset {
    /// Zero.
    pub reserved: u32,
}

/// Answers [`Reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetComplete {
    /// Result.
    pub status: Status,
    /// Not 0: the filter and the groups are to be set again.
    pub addressing_reset: u32,
}

/// Something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IndicateStatus {
    /// What.
    pub status: Status,
    /// Bytes of what goes with it.
    pub length: u32,
    /// Where that begins.
    pub offset: u32,
}

/// Are you there?
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Keepalive {
    /// Comes back in the answer.
    pub request_id: u32,
}

/// Yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeepaliveComplete {
    /// The request's.
    pub request_id: u32,
    /// Result.
    pub status: Status,
}

/// Which frames are received ([`Oid::GEN_CURRENT_PACKET_FILTER`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PacketFilter(pub u32);

impl PacketFilter {
    /// To this card.
    pub const DIRECTED: u32 = 0x01;
    /// To the groups listed.
    pub const MULTICAST: u32 = 0x02;
    /// To groups.
    pub const ALL_MULTICAST: u32 = 0x04;
    /// To all.
    pub const BROADCAST: u32 = 0x08;
    /// Everything.
    pub const PROMISCUOUS: u32 = 0x20;
}

/// State of the link ([`Oid::GEN_MEDIA_CONNECT_STATUS`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MediaState(pub u32);

impl MediaState {
    /// Up.
    pub const CONNECTED: Self = Self(0);
    /// Down.
    pub const DISCONNECTED: Self = Self(1);
}

/// What a card does ([`Oid::GEN_MAC_OPTIONS`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MacOptions(pub u32);

impl MacOptions {
    /// Received data may be read as it is.
    pub const COPY_LOOKAHEAD_DATA: u32 = 0x001;
    /// One frame at a time.
    pub const RECEIVE_SERIALIZED: u32 = 0x002;
    /// Transfers do not pend.
    pub const TRANSFERS_NOT_PEND: u32 = 0x004;
    /// Frames to itself do not come back.
    pub const NO_LOOPBACK: u32 = 0x008;
    /// Full duplex.
    pub const FULL_DUPLEX: u32 = 0x010;
    /// Priorities in tags.
    pub const IEEE_8021P_PRIORITY: u32 = 0x040;
    /// VLANs in tags.
    pub const IEEE_8021Q_VLAN: u32 = 0x200;
}

/// Value of [`Oid::GEN_RNDIS_CONFIG_PARAMETER`]; offsets count from its first byte. A MAC is the
/// string `NetworkAddress` with twelve hexadecimal digits, both UTF-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigParameter {
    /// Where the name begins.
    pub name_offset: u32,
    /// Its bytes.
    pub name_length: u32,
    /// [`ConfigParameter::STRING`] or [`ConfigParameter::INTEGER`].
    pub parameter_type: u32,
    /// Where the value begins.
    pub value_offset: u32,
    /// Its bytes.
    pub value_length: u32,
}
const_assert_eq!(size_of::<ConfigParameter>(), 20);

impl ConfigParameter {
    /// `parameter_type`: a number.
    pub const INTEGER: u32 = 0;
    /// `parameter_type`: text.
    pub const STRING: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_numbers_of_their_questions() {
        for (question, answer) in [
            (MessageType::INITIALIZE, MessageType::INITIALIZE_COMPLETE),
            (MessageType::QUERY, MessageType::QUERY_COMPLETE),
            (MessageType::SET, MessageType::SET_COMPLETE),
            (MessageType::RESET, MessageType::RESET_COMPLETE),
            (MessageType::KEEPALIVE, MessageType::KEEPALIVE_COMPLETE),
        ] {
            assert_eq!(question.0 | MessageType::COMPLETION, answer.0);
        }
    }

    #[test]
    fn lengths_count_from_the_header() {
        assert_eq!(Packet::MESSAGE_BYTES, 44);
        let header = Set::header(4);
        assert_eq!((header.message_type, header.length), (MessageType::SET, 32));
    }
}
