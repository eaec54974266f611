//! VMBus, versions 0.13 to 6.0: what a guest (client) and a host (server) say to each other
//! (`include/linux/hyperv.h`, `drivers/hv/hyperv_vmbus.h` of Linux; `vmbus_core` and `vmbus_ring`
//! of OpenVMM).
//!
//! ```text
//! control   guest: HvPostMessage to a message connection     message.rs, version.rs,
//!           host: message in the SINT's slot                 offer.rs, gpadl.rs
//! data      two rings in guest memory for each channel       ring.rs, packet.rs
//! signals   guest: HvSignalEvent, or a monitor page bit      interrupt.rs
//!           host: event flag in the SINT's flags
//! ```
//!
//! A control message is a [`MessageHeader`] and the structure its type names; the structures here
//! begin with the header, as they lie in the payload of `HV_MESSAGE`.

pub mod gpadl;
pub mod interrupt;
pub mod message;
pub mod offer;
pub mod packet;
pub mod ring;
pub mod version;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use gpadl::{GpaRange, GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown};
pub use interrupt::{InterruptPage, MonitorPage};
pub use message::{ControlMessage, MessageHeader, MessageType};
pub use offer::{OfferChannel, OfferFlags, RescindChannelOffer, UserDefined};
pub use packet::{PacketDescriptor, PacketFooter, PacketType};
pub use ring::RingControl;
pub use version::{FeatureFlags, InitiateContact, Version, VersionResponse};

pub use crate::NtStatus;

/// Largest control message: the payload of `HV_MESSAGE`.
pub const MAX_MESSAGE_BYTES: usize = crate::synic::MESSAGE_PAYLOAD_BYTES;
/// Channel ids (`child_relid`) are below this: one event flag each.
pub const MAX_CHANNELS: usize = crate::synic::EVENT_FLAGS_PER_SINT;

/// A channel (`child_relid`); 1 to 2047. Its number is also its event flag.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct ChannelId(pub u32);

/// A list of guest pages the host knows by this number (`gpadl`); chosen by the guest, not 0.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct GpadlId(pub u32);

/// `HV_CONNECTION_ID`: where a message or an event goes; 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ConnectionId(pub u32);

impl ConnectionId {
    /// Messages, all versions below 5.0 (`VMBUS_MESSAGE_CONNECTION_ID`).
    pub const MESSAGE: Self = Self(1);
    /// Events of channels without a connection of their own (`VMBUS_EVENT_CONNECTION_ID`).
    pub const EVENT: Self = Self(2);
    /// Monitored notifications (`VMBUS_MONITOR_CONNECTION_ID`).
    pub const MONITOR: Self = Self(3);
    /// INITIATE_CONTACT of 5.0 and later (`VMBUS_MESSAGE_CONNECTION_ID_4`).
    pub const MESSAGE_V5: Self = Self(4);
    /// Messages redirected to another VTL's server.
    pub const MESSAGE_REDIRECT: Self = Self(0x80_0074);

    /// The connection a server gives a channel for its events: VTL, SINT, channel id.
    #[must_use]
    pub const fn of_channel(channel: ChannelId, vtl: u8, sint: u8) -> Self {
        Self(channel.0 & 0xfff | (sint as u32 & 0xf) << 12 | (vtl as u32) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_of_a_channel() {
        // As OpenVMM offers them: VTL 0, SINT 2.
        assert_eq!(ConnectionId::of_channel(ChannelId(7), 0, 2).0, 0x2007);
        assert_eq!(ConnectionId::of_channel(ChannelId(0x7ff), 2, 2).0, 0x2_27ff);
    }
}
