//! Offers: what devices the host has.

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::message::{MessageHeader, MessageType, messages};
use super::{ChannelId, ConnectionId};
use crate::Guid;

/// Interface types (`HV_*_GUID`).
#[allow(missing_docs, reason = "names say what they are")]
pub mod interface {
    use crate::Guid;

    pub const NETWORK: Guid = Guid::literal("f8615163-df3e-46c5-913f-f2d2f965ed0e");
    pub const IDE: Guid = Guid::literal("32412632-86cb-44a2-9b5c-50d1417354f5");
    pub const SCSI: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    pub const FIBRE_CHANNEL: Guid = Guid::literal("2f9bcc4a-0069-4af3-b76b-6fd0be528cda");
    pub const SHUTDOWN: Guid = Guid::literal("0e0b6031-5213-4934-818b-38d90ced39db");
    pub const TIMESYNC: Guid = Guid::literal("9527e630-d0ae-497b-adce-e80ab0175caf");
    pub const HEARTBEAT: Guid = Guid::literal("57164f39-9115-4e78-ab55-382f3bd5422d");
    pub const KVP: Guid = Guid::literal("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6");
    pub const VSS: Guid = Guid::literal("35fa2e29-ea23-4236-96ae-3a6ebacba440");
    pub const FILE_COPY: Guid = Guid::literal("34d14be3-dee4-41c8-9ae7-6b174977c192");
    pub const DYNAMIC_MEMORY: Guid = Guid::literal("525074dc-8985-46e2-8057-a307dc18a502");
    pub const MOUSE: Guid = Guid::literal("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a");
    pub const KEYBOARD: Guid = Guid::literal("f912ad6d-2b17-48ea-bd65-f927a61c7684");
    pub const VIDEO: Guid = Guid::literal("da0a7802-e377-4aac-8e77-0558eb1073f8");
    pub const NETWORK_DIRECT: Guid = Guid::literal("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501");
    pub const PCI: Guid = Guid::literal("44c4f61d-4444-4400-9d52-802e27ede19f");
    pub const REMOTE_DESKTOP: Guid = Guid::literal("276aacf4-ac15-426c-98dd-7521ad3f01fe");
    pub const ACTIVATION: Guid = Guid::literal("3375baf4-9e15-4b30-b765-67acb10d607b");
}

bitflags! {
    /// `chn_flags` of an offer (`VMBUS_CHANNEL_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OfferFlags: u16 {
        /// A device, to be enumerated.
        const ENUMERATE_DEVICE_INTERFACE = 1 << 0;
        /// The rings must be visible to the guest only (before 6.0: transfer pages are supported).
        const CONFIDENTIAL_RING_BUFFER = 1 << 1;
        /// So must other memory (before 6.0: GPADLs are supported).
        const CONFIDENTIAL_EXTERNAL_MEMORY = 1 << 2;
        /// Memory for other GPADLs and GPA-direct packets must be pinned.
        const REQUIRE_PINNED_EXTERNAL_MEMORY = 1 << 3;
        /// A pipe: packets begin with a [`PipeHeader`](super::packet::PipeHeader).
        const NAMED_PIPE_MODE = 1 << 4;
        /// A loopback offer.
        const LOOPBACK_OFFER = 1 << 8;
        /// An offer of the parent.
        const PARENT_OFFER = 1 << 9;
        /// Signals may go through the monitor page.
        const REQUEST_MONITORED_NOTIFICATION = 1 << 10;
        /// A socket.
        const TLNPI_PROVIDER_OFFER = 1 << 13;
    }
}

/// User-defined bytes of an offer or an open request (`MAX_USER_DEFINED_BYTES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct UserDefined(pub [u8; UserDefined::BYTES]);

impl UserDefined {
    /// Their number.
    pub const BYTES: usize = 120;
    /// All zero.
    pub const ZERO: Self = Self([0; Self::BYTES]);

    /// As those of a pipe.
    #[must_use]
    pub fn pipe(&self) -> PipeUserDefined {
        zerocopy::transmute!(self.0)
    }
}

/// `pipe_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PipeMode(pub u32);

impl PipeMode {
    /// A stream of bytes.
    pub const BYTE: Self = Self(0);
    /// Messages.
    pub const MESSAGE: Self = Self(4);
}

/// User-defined bytes of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PipeUserDefined {
    /// Kind of pipe.
    pub pipe_mode: PipeMode,
    /// For the device.
    pub user_defined: [u8; 112],
    /// [`PipeUserDefined::GPA_DIRECT`].
    pub flags: u32,
}
const_assert_eq!(size_of::<PipeUserDefined>(), size_of::<UserDefined>());

impl PipeUserDefined {
    /// The pipe takes GPA-direct transfers.
    pub const GPA_DIRECT: u32 = 1;
}

impl From<PipeUserDefined> for UserDefined {
    fn from(pipe: PipeUserDefined) -> Self {
        Self(zerocopy::transmute!(pipe))
    }
}

/// User-defined bytes of a socket's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketUserDefined {
    /// [`PipeMode::BYTE`].
    pub pipe_mode: PipeMode,
    /// Not 0: the host connects to the guest.
    pub is_for_guest_accept: u8,
    /// Not 0: to a container.
    pub is_for_guest_container: u8,
    /// 1 from 5.2 on, little-endian.
    pub version: [u8; 4],
    /// Container.
    pub silo_id: Guid,
    /// Zero.
    pub padding: [u8; 2],
}
const_assert_eq!(size_of::<SocketUserDefined>(), 28);
const_assert_eq!(offset_of!(SocketUserDefined, silo_id), 10);

/// OFFERCHANNEL (`struct vmbus_channel_offer_channel`). Hosts below 1.1 end theirs at
/// `is_dedicated_interrupt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OfferChannel {
    /// OFFER_CHANNEL.
    pub header: MessageHeader,
    /// Kind of device ([`interface`]).
    pub interface_type: Guid,
    /// Which device; its sub-channels have the same.
    pub interface_instance: Guid,
    /// Zero.
    pub reserved: [u32; 4],
    /// [`OfferFlags`].
    pub flags: u16,
    /// Memory-mapped space the device needs, MiB.
    pub mmio_megabytes: u16,
    /// For the device.
    pub user_defined: UserDefined,
    /// 0: the primary channel (2.4 and later).
    pub sub_channel_index: u16,
    /// More of it that would be used, MiB.
    pub mmio_megabytes_optional: u16,
    /// Channel.
    pub channel_id: ChannelId,
    /// Number in the monitor page.
    pub monitor_id: u8,
    /// Bit 0: there is a monitor id.
    pub monitor_allocated: u8,
    /// Bit 0: no bit in the interrupt page is to be set for signals (1.1 and later).
    pub is_dedicated_interrupt: u16,
    /// Connection for the guest's signals (1.1 and later).
    pub connection_id: ConnectionId,
}
const_assert_eq!(size_of::<OfferChannel>(), 196);
const_assert_eq!(offset_of!(OfferChannel, flags), 56);
const_assert_eq!(offset_of!(OfferChannel, sub_channel_index), 180);
const_assert_eq!(offset_of!(OfferChannel, channel_id), 184);
const_assert_eq!(offset_of!(OfferChannel, connection_id), 192);

impl OfferChannel {
    /// Flags.
    #[must_use]
    pub const fn flags(&self) -> OfferFlags {
        OfferFlags::from_bits_retain(self.flags)
    }

    /// The channel's monitor number, if it has one.
    #[must_use]
    pub const fn monitor(&self) -> Option<u8> {
        if self.monitor_allocated & 1 != 0 { Some(self.monitor_id) } else { None }
    }

    /// Whether signals need no bit in the interrupt page.
    #[must_use]
    pub const fn has_dedicated_interrupt(&self) -> bool {
        self.is_dedicated_interrupt & 1 != 0
    }
}

/// RESCIND_CHANNELOFFER (`struct vmbus_channel_rescind_offer`): the device is gone; the guest
/// answers, when it is done with the channel, with RELID_RELEASED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RescindChannelOffer {
    /// RESCIND_CHANNEL_OFFER.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
}
const_assert_eq!(size_of::<RescindChannelOffer>(), 12);

messages! {
    OfferChannel.header = OFFER_CHANNEL;
    RescindChannelOffer.header = RESCIND_CHANNEL_OFFER;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_bytes_go_both_ways() {
        let mut user = UserDefined::ZERO;
        user.0[0] = 4;
        user.0[116] = 1;
        let pipe = user.pipe();
        assert_eq!((pipe.pipe_mode, pipe.flags), (PipeMode::MESSAGE, PipeUserDefined::GPA_DIRECT));
        assert_eq!(UserDefined::from(pipe), user);
    }
}
