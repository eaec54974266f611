//! Control messages: header, types, and those that are about a channel as a whole.

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::offer::UserDefined;
use super::version::ConnectionState;
use super::{ChannelId, ConnectionId, GpadlId, NtStatus};
use crate::Guid;

/// `enum vmbus_channel_message_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MessageType(pub u32);

#[allow(missing_docs, reason = "names are the protocol's own")]
impl MessageType {
    pub const INVALID: Self = Self(0);
    pub const OFFER_CHANNEL: Self = Self(1);
    pub const RESCIND_CHANNEL_OFFER: Self = Self(2);
    pub const REQUEST_OFFERS: Self = Self(3);
    pub const ALL_OFFERS_DELIVERED: Self = Self(4);
    pub const OPEN_CHANNEL: Self = Self(5);
    pub const OPEN_CHANNEL_RESULT: Self = Self(6);
    pub const CLOSE_CHANNEL: Self = Self(7);
    pub const GPADL_HEADER: Self = Self(8);
    pub const GPADL_BODY: Self = Self(9);
    pub const GPADL_CREATED: Self = Self(10);
    pub const GPADL_TEARDOWN: Self = Self(11);
    pub const GPADL_TORNDOWN: Self = Self(12);
    pub const RELID_RELEASED: Self = Self(13);
    pub const INITIATE_CONTACT: Self = Self(14);
    pub const VERSION_RESPONSE: Self = Self(15);
    pub const UNLOAD: Self = Self(16);
    pub const UNLOAD_RESPONSE: Self = Self(17);
    pub const OPEN_RESERVED_CHANNEL: Self = Self(18);
    pub const CLOSE_RESERVED_CHANNEL: Self = Self(19);
    pub const CLOSE_RESERVED_RESPONSE: Self = Self(20);
    pub const TL_CONNECT_REQUEST: Self = Self(21);
    pub const MODIFY_CHANNEL: Self = Self(22);
    pub const TL_CONNECT_RESULT: Self = Self(23);
    pub const MODIFY_CHANNEL_RESPONSE: Self = Self(24);
    pub const MODIFY_CONNECTION: Self = Self(25);
    pub const MODIFY_CONNECTION_RESPONSE: Self = Self(26);
    pub const PAUSE: Self = Self(27);
    pub const PAUSE_RESPONSE: Self = Self(28);
    pub const RESUME: Self = Self(29);
}

/// `struct vmbus_channel_message_header`: begins every control message; messages without
/// arguments (REQUEST_OFFERS, ALL_OFFERS_DELIVERED, UNLOAD, UNLOAD_RESPONSE, PAUSE,
/// PAUSE_RESPONSE, RESUME) are this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// Type.
    pub message_type: MessageType,
    /// Zero.
    pub padding: u32,
}
const_assert_eq!(size_of::<MessageHeader>(), 8);

impl MessageHeader {
    /// The header of a type.
    #[must_use]
    pub const fn new(message_type: MessageType) -> Self {
        Self { message_type, padding: 0 }
    }
}

/// A control message's structure, header included.
pub trait ControlMessage: FromBytes + IntoBytes + Immutable + KnownLayout + Sized {
    /// The type in its header.
    const TYPE: MessageType;

    /// All zero but the header.
    #[must_use]
    fn empty() -> Self {
        let mut message = Self::new_zeroed();
        // The header begins every structure of `messages!`.
        if let Some(header) = message.as_mut_bytes().first_chunk_mut::<8>() {
            *header = zerocopy::transmute!(MessageHeader::new(Self::TYPE));
        }
        message
    }

    /// Copies the message out of a payload of this type that is long enough; trailing bytes are
    /// left to later versions.
    #[must_use]
    fn parse(payload: &[u8]) -> Option<Self> {
        let (header, _) = MessageHeader::read_from_prefix(payload).ok()?;
        if header.message_type != Self::TYPE {
            return None;
        }
        Self::read_from_prefix(payload).ok().map(|(message, _)| message)
    }
}

/// Implements [`ControlMessage`]: `Structure.header = TYPE;`, the header (or the older message that
/// has it) being its first field.
macro_rules! messages {
    ($($structure:ident . $header:ident = $message_type:ident;)*) => {
        $(
            impl crate::vmbus::ControlMessage for $structure {
                const TYPE: MessageType = MessageType::$message_type;
            }
            const_assert_eq!(offset_of!($structure, $header), 0);
        )*
    };
}
pub(super) use messages;

/// OPENCHANNEL (`struct vmbus_channel_open_channel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenChannel {
    /// OPEN_CHANNEL.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// Comes back in [`OpenResult`].
    pub open_id: u32,
    /// Both rings: the guest's outgoing one first.
    pub ring_gpadl: GpadlId,
    /// Virtual processor to interrupt (2.4 and later); [`VP_INDEX_NO_INTERRUPT`].
    pub target_vp: u32,
    /// Page of the GPADL at which the guest's incoming ring begins.
    pub downstream_page_offset: u32,
    /// For the device.
    pub user_data: UserDefined,
}
const_assert_eq!(size_of::<OpenChannel>(), 148);
const_assert_eq!(offset_of!(OpenChannel, user_data), 28);

/// Target VP that asks for no interrupts.
pub const VP_INDEX_NO_INTERRUPT: u32 = u32::MAX;

bitflags! {
    /// Flags of [`OpenChannel2`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u16 {
        /// Interrupts go to the redirected VTL and SINT.
        const REDIRECT_INTERRUPT = 1 << 0;
    }
}

/// OPENCHANNEL of 6.0 with GUEST_SPECIFIED_SIGNAL_PARAMETERS or CHANNEL_INTERRUPT_REDIRECTION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenChannel2 {
    /// The older message.
    pub base: OpenChannel,
    /// Connection for the guest's events.
    pub connection_id: ConnectionId,
    /// Event flag for the host's.
    pub event_flag: u16,
    /// [`OpenFlags`].
    pub flags: u16,
}
const_assert_eq!(size_of::<OpenChannel2>(), 156);

/// OPENCHANNEL_RESULT (`struct vmbus_channel_open_result`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenResult {
    /// OPEN_CHANNEL_RESULT.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// That of the OPENCHANNEL.
    pub open_id: u32,
    /// Whether it is open.
    pub status: NtStatus,
}
const_assert_eq!(size_of::<OpenResult>(), 20);

/// CLOSECHANNEL (`struct vmbus_channel_close_channel`); not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CloseChannel {
    /// CLOSE_CHANNEL.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
}
const_assert_eq!(size_of::<CloseChannel>(), 12);

/// RELID_RELEASED (`struct vmbus_channel_relid_released`): the guest is done with a rescinded
/// channel, and its number may be given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RelidReleased {
    /// RELID_RELEASED.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
}
const_assert_eq!(size_of::<RelidReleased>(), 12);

/// MODIFYCHANNEL (`struct vmbus_channel_modifychannel`), 4.1 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifyChannel {
    /// MODIFY_CHANNEL.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// New virtual processor to interrupt.
    pub target_vp: u32,
}
const_assert_eq!(size_of::<ModifyChannel>(), 16);

/// MODIFYCHANNEL_RESPONSE (`struct vmbus_channel_modifychannel_response`), 5.3 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifyChannelResponse {
    /// MODIFY_CHANNEL_RESPONSE.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// Whether it was done.
    pub status: NtStatus,
}
const_assert_eq!(size_of::<ModifyChannelResponse>(), 16);

/// OPEN_RESERVED_CHANNEL: opens a channel again after a crash, 4.0 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenReservedChannel {
    /// OPEN_RESERVED_CHANNEL.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// Virtual processor to interrupt.
    pub target_vp: u32,
    /// SINT for it.
    pub target_sint: u32,
    /// Both rings.
    pub ring_gpadl: GpadlId,
    /// As in [`OpenChannel`].
    pub downstream_page_offset: u32,
}
const_assert_eq!(size_of::<OpenReservedChannel>(), 28);

/// CLOSE_RESERVED_CHANNEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CloseReservedChannel {
    /// CLOSE_RESERVED_CHANNEL.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// Virtual processor for the answer.
    pub target_vp: u32,
    /// SINT for the answer.
    pub target_sint: u32,
}
const_assert_eq!(size_of::<CloseReservedChannel>(), 20);

/// CLOSE_RESERVED_RESPONSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CloseReservedResponse {
    /// CLOSE_RESERVED_RESPONSE.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
}
const_assert_eq!(size_of::<CloseReservedResponse>(), 12);

/// TL_CONNECT_REQUEST (`struct vmbus_channel_tl_connect_request`): a socket to the host, 4.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TlConnectRequest {
    /// TL_CONNECT_REQUEST.
    pub header: MessageHeader,
    /// This end.
    pub endpoint_id: Guid,
    /// The host's service.
    pub service_id: Guid,
}
const_assert_eq!(size_of::<TlConnectRequest>(), 40);

/// TL_CONNECT_REQUEST of 5.2 and later; some guests still send the shorter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TlConnectRequest2 {
    /// The older message.
    pub base: TlConnectRequest,
    /// Container.
    pub silo_id: Guid,
}
const_assert_eq!(size_of::<TlConnectRequest2>(), 56);

/// TL_CONNECT_RESULT, 4.1 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TlConnectResult {
    /// TL_CONNECT_RESULT.
    pub header: MessageHeader,
    /// This end.
    pub endpoint_id: Guid,
    /// The host's service.
    pub service_id: Guid,
    /// Failure; success is an offer.
    pub status: NtStatus,
}
const_assert_eq!(size_of::<TlConnectResult>(), 44);

/// MODIFY_CONNECTION: other monitor pages, 6.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifyConnection {
    /// MODIFY_CONNECTION.
    pub header: MessageHeader,
    /// Address of the monitor page the host writes.
    pub parent_to_child_monitor_page: u64,
    /// Address of the monitor page the guest writes.
    pub child_to_parent_monitor_page: u64,
}
const_assert_eq!(size_of::<ModifyConnection>(), 24);

/// MODIFY_CONNECTION_RESPONSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct ModifyConnectionResponse {
    /// MODIFY_CONNECTION_RESPONSE.
    pub header: MessageHeader,
    /// Whether it was done.
    pub connection_state: ConnectionState,
}
const_assert_eq!(size_of::<ModifyConnectionResponse>(), 9);

messages! {
    OpenChannel.header = OPEN_CHANNEL;
    OpenChannel2.base = OPEN_CHANNEL;
    OpenResult.header = OPEN_CHANNEL_RESULT;
    CloseChannel.header = CLOSE_CHANNEL;
    RelidReleased.header = RELID_RELEASED;
    ModifyChannel.header = MODIFY_CHANNEL;
    ModifyChannelResponse.header = MODIFY_CHANNEL_RESPONSE;
    OpenReservedChannel.header = OPEN_RESERVED_CHANNEL;
    CloseReservedChannel.header = CLOSE_RESERVED_CHANNEL;
    CloseReservedResponse.header = CLOSE_RESERVED_RESPONSE;
    TlConnectRequest.header = TL_CONNECT_REQUEST;
    TlConnectRequest2.base = TL_CONNECT_REQUEST;
    TlConnectResult.header = TL_CONNECT_RESULT;
    ModifyConnection.header = MODIFY_CONNECTION;
    ModifyConnectionResponse.header = MODIFY_CONNECTION_RESPONSE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_type_and_long_enough() {
        let mut close = CloseChannel::empty();
        close.channel_id = ChannelId(7);
        assert_eq!(close.as_bytes(), [7, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(CloseChannel::parse(close.as_bytes()), Some(close));
        assert_eq!(RelidReleased::parse(close.as_bytes()), None);
        assert_eq!(CloseChannel::parse(&close.as_bytes()[..11]), None);
        let mut longer = [0xff; 16];
        longer[..12].copy_from_slice(close.as_bytes());
        assert_eq!(CloseChannel::parse(&longer), Some(close));
        assert_eq!(CloseChannel::parse(&[]), None);
    }
}
