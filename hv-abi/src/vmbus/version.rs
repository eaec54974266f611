//! Versions of the protocol, and the messages that agree on one.
//!
//! The guest proposes, from the newest it speaks downwards, with [`InitiateContact`]; the host
//! answers each with a [`VersionResponse`]. From 5.0 on the proposal goes to
//! [`ConnectionId::MESSAGE_V5`](super::ConnectionId::MESSAGE_V5), and the answer says where every
//! further message goes.

use bitflags::bitflags;
use core::fmt;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::message::{MessageHeader, MessageType, messages};
use crate::Guid;

/// A version: major in 31:16, minor in 15:0.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Version(pub u32);

impl Version {
    /// 0.13, Windows Server 2008.
    pub const V0_13: Self = Self::new(0, 13);
    /// 1.1, Windows 7: connection ids of channels, UNLOAD is answered.
    pub const V1_1: Self = Self::new(1, 1);
    /// 2.4, Windows 8: event flags in place of the interrupt page, target VP, sub-channels,
    /// pending send size.
    pub const V2_4: Self = Self::new(2, 4);
    /// 3.0, Windows 8.1: messages to the VP that INITIATE_CONTACT names.
    pub const V3_0: Self = Self::new(3, 0);
    /// 4.0, Windows 10: sockets.
    pub const V4_0: Self = Self::new(4, 0);
    /// 4.1: MODIFYCHANNEL.
    pub const V4_1: Self = Self::new(4, 1);
    /// 5.0: message connection ids, target SINT.
    pub const V5_0: Self = Self::new(5, 0);
    /// 5.1.
    pub const V5_1: Self = Self::new(5, 1);
    /// 5.2, Windows Server 2019: TL_CONNECT_REQUEST with silo id.
    pub const V5_2: Self = Self::new(5, 2);
    /// 5.3, Windows Server 2022: MODIFYCHANNEL is answered.
    pub const V5_3: Self = Self::new(5, 3);
    /// 6.0: feature flags.
    pub const V6_0: Self = Self::new(6, 0);

    /// Every version there is, oldest first.
    pub const ALL: [Self; 11] = [
        Self::V0_13,
        Self::V1_1,
        Self::V2_4,
        Self::V3_0,
        Self::V4_0,
        Self::V4_1,
        Self::V5_0,
        Self::V5_1,
        Self::V5_2,
        Self::V5_3,
        Self::V6_0,
    ];

    /// Composes a version.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// Major number.
    #[must_use]
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Minor number.
    #[must_use]
    pub const fn minor(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

bitflags! {
    /// What both sides may offer from 6.0 on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureFlags: u32 {
        /// [`OpenChannel2`](super::message::OpenChannel2) names event flag and connection.
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 1 << 0;
        /// OPENCHANNEL may ask for redirected interrupts.
        const CHANNEL_INTERRUPT_REDIRECTION = 1 << 1;
        /// MODIFY_CONNECTION.
        const MODIFY_CONNECTION = 1 << 2;
        /// [`InitiateContact2`] names its client.
        const CLIENT_ID = 1 << 3;
        /// Offers say what must be confidential.
        const CONFIDENTIAL_CHANNELS = 1 << 4;
        /// PAUSE and RESUME.
        const PAUSE_RESUME = 1 << 5;
        /// The server brings the monitor pages ([`VersionResponse3`]).
        const SERVER_SPECIFIED_MONITOR_PAGES = 1 << 6;
        /// Offers say what must be pinned.
        const GPA_PINNING = 1 << 7;
    }
}

/// The third word of [`InitiateContact`] from 5.0 on: SINT in 7:0, VTL in 15:8, and from 6.0 on
/// [`FeatureFlags`] in 63:32. Before, it is the address of the interrupt page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct TargetInfo(pub u64);

impl TargetInfo {
    /// Composes it.
    #[must_use]
    pub const fn new(sint: u8, vtl: u8, features: FeatureFlags) -> Self {
        Self(sint as u64 | (vtl as u64) << 8 | (features.bits() as u64) << 32)
    }

    /// SINT for messages.
    #[must_use]
    pub const fn sint(self) -> u8 {
        self.0 as u8
    }

    /// VTL for messages.
    #[must_use]
    pub const fn vtl(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// What the guest can.
    #[must_use]
    pub const fn features(self) -> FeatureFlags {
        FeatureFlags::from_bits_retain((self.0 >> 32) as u32)
    }
}

/// INITIATE_CONTACT (`struct vmbus_channel_initiate_contact`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitiateContact {
    /// INITIATE_CONTACT.
    pub header: MessageHeader,
    /// Proposed version.
    pub version: Version,
    /// Virtual processor for the host's messages (3.0 and later; else they go to 0).
    pub target_vp: u32,
    /// 5.0 and later [`TargetInfo`]; before, address of the interrupt page.
    pub interrupt_page_or_target_info: u64,
    /// Address of the monitor page the host writes; 0: none.
    pub parent_to_child_monitor_page: u64,
    /// Address of the monitor page the guest writes; 0: none.
    pub child_to_parent_monitor_page: u64,
}
const_assert_eq!(size_of::<InitiateContact>(), 40);
const_assert_eq!(offset_of!(InitiateContact, interrupt_page_or_target_info), 16);

impl InitiateContact {
    /// The third word as 5.0 and later read it.
    #[must_use]
    pub const fn target_info(&self) -> TargetInfo {
        TargetInfo(self.interrupt_page_or_target_info)
    }
}

/// INITIATE_CONTACT with [`FeatureFlags::CLIENT_ID`]; told from [`InitiateContact`] by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitiateContact2 {
    /// The older message.
    pub base: InitiateContact,
    /// Who asks.
    pub client_id: Guid,
}
const_assert_eq!(size_of::<InitiateContact2>(), 56);

/// `connection_state` of a [`VersionResponse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ConnectionState(pub u8);

impl ConnectionState {
    /// Connected.
    pub const SUCCESSFUL: Self = Self(0);
    /// The host lacks resources.
    pub const FAILED_LOW_RESOURCES: Self = Self(1);
    /// Another failure.
    pub const FAILED_UNKNOWN_FAILURE: Self = Self(2);
}

/// VERSION_RESPONSE (`struct vmbus_channel_version_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionResponse {
    /// VERSION_RESPONSE.
    pub header: MessageHeader,
    /// Not 0: the host speaks the proposed version.
    pub version_supported: u8,
    /// Whether the connection stands, where the version is supported.
    pub connection_state: ConnectionState,
    /// Zero.
    pub padding: u16,
    /// 5.0 and later: the connection for every further message. Before: the selected version, and
    /// hosts below 3.0 end their message before it.
    pub connection_id_or_version: u32,
}
const_assert_eq!(size_of::<VersionResponse>(), 16);
const_assert_eq!(offset_of!(VersionResponse, connection_id_or_version), 12);

/// VERSION_RESPONSE to a supported proposal of 6.0 or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionResponse2 {
    /// The older message.
    pub base: VersionResponse,
    /// [`FeatureFlags`] both sides have.
    pub supported_features: u32,
}
const_assert_eq!(size_of::<VersionResponse2>(), 20);

/// VERSION_RESPONSE where both sides have [`FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionResponse3 {
    /// The older message.
    pub base: VersionResponse2,
    /// Zero.
    pub padding: u32,
    /// Address of the monitor page the host writes; 0: none.
    pub parent_to_child_monitor_page: u64,
    /// Address of the monitor page the guest writes.
    pub child_to_parent_monitor_page: u64,
}
const_assert_eq!(size_of::<VersionResponse3>(), 40);
const_assert_eq!(offset_of!(VersionResponse3, parent_to_child_monitor_page), 24);

messages! {
    InitiateContact.header = INITIATE_CONTACT;
    InitiateContact2.base = INITIATE_CONTACT;
    VersionResponse.header = VERSION_RESPONSE;
    VersionResponse2.base = VERSION_RESPONSE;
    VersionResponse3.base = VERSION_RESPONSE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::V5_3.0, 0x5_0003);
        assert_eq!((Version::V0_13.major(), Version::V0_13.minor()), (0, 13));
    }

    #[test]
    fn target_info_fields() {
        let info = TargetInfo::new(2, 1, FeatureFlags::CLIENT_ID);
        assert_eq!(info.0, 0x8_0000_0102);
        assert_eq!((info.sint(), info.vtl(), info.features()), (2, 1, FeatureFlags::CLIENT_ID));
    }
}
