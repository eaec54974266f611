//! The larger objects (NDIS; `drivers/net/hyperv/hyperv_net.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Start of every object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ObjectHeader {
    /// Kind.
    pub object_type: ObjectType,
    /// Revision.
    pub revision: u8,
    /// Bytes, this header included.
    pub size: u16,
}
const_assert_eq!(size_of::<ObjectHeader>(), 4);

/// Kind of object (`NDIS_OBJECT_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ObjectType(pub u8);

impl ObjectType {
    /// Any.
    pub const DEFAULT: Self = Self(0x80);
    /// [`RssCapabilities`].
    pub const RSS_CAPABILITIES: Self = Self(0x88);
    /// [`RssParameters`].
    pub const RSS_PARAMETERS: Self = Self(0x89);
    /// A query.
    pub const OID_REQUEST: Self = Self(0x96);
    /// [`Offload`].
    pub const OFFLOAD: Self = Self(0xa7);
    /// [`OffloadEncapsulation`].
    pub const OFFLOAD_ENCAPSULATION: Self = Self(0xa8);
}

/// Kinds of frames an offload is for (`NDIS_OFFLOAD_ENCAP_*`).
pub const ENCAPSULATION_8023: u32 = 2;
/// As above: with VLAN tags beside them.
pub const ENCAPSULATION_8023PQ_OOB: u32 = 8;

/// What checksums can be made or looked at. Each part is two bits, of which the lower says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ChecksumFlags(pub u32);

impl ChecksumFlags {
    /// IPv4: with IP options. IPv6: with extension headers.
    pub const IP_OPTIONS: u32 = 0x001;
    /// TCP with options.
    pub const TCP_OPTIONS: u32 = 0x004;
    /// TCP.
    pub const TCP: u32 = 0x010;
    /// UDP.
    pub const UDP: u32 = 0x040;
    /// IPv4: the header.
    pub const IP: u32 = 0x100;

    /// Whether all of these can be done.
    #[must_use]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
}

/// Checksums (`struct ndis_csum_offload`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "direction and version are in the names")]
pub struct ChecksumOffload {
    pub ipv4_tx_encapsulation: u32,
    pub ipv4_tx: ChecksumFlags,
    pub ipv4_rx_encapsulation: u32,
    pub ipv4_rx: ChecksumFlags,
    pub ipv6_tx_encapsulation: u32,
    pub ipv6_tx: ChecksumFlags,
    pub ipv6_rx_encapsulation: u32,
    pub ipv6_rx: ChecksumFlags,
}
const_assert_eq!(size_of::<ChecksumOffload>(), 32);

/// Segmentation, version 1: IPv4 (`struct ndis_lsov1_offload`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LargeSendV1 {
    /// Frames.
    pub encapsulation: u32,
    /// Most bytes of a packet; 0: none.
    pub max_bytes: u32,
    /// Least pieces.
    pub min_segments: u32,
    /// Options, two bits each: TCP's, IP's.
    pub options: u32,
}
const_assert_eq!(size_of::<LargeSendV1>(), 16);

/// Segmentation, version 2 (`struct ndis_lsov2_offload`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LargeSendV2 {
    /// Frames with IPv4.
    pub ipv4_encapsulation: u32,
    /// Most bytes of an IPv4 packet; 0: none.
    pub ipv4_max_bytes: u32,
    /// Least pieces.
    pub ipv4_min_segments: u32,
    /// Frames with IPv6.
    pub ipv6_encapsulation: u32,
    /// Most bytes of an IPv6 packet; 0: none.
    pub ipv6_max_bytes: u32,
    /// Least pieces.
    pub ipv6_min_segments: u32,
    /// [`LargeSendV2::IPV6_EXTENSIONS`], [`LargeSendV2::IPV6_TCP_OPTIONS`].
    pub ipv6_options: u32,
}
const_assert_eq!(size_of::<LargeSendV2>(), 28);

impl LargeSendV2 {
    /// `ipv6_options`: with extension headers.
    pub const IPV6_EXTENSIONS: u32 = 0x1;
    /// `ipv6_options`: with TCP options.
    pub const IPV6_TCP_OPTIONS: u32 = 0x4;
}

/// Coalescing of received segments (`struct ndis_rsc_offload`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CoalesceOffload {
    /// Not 0: of IPv4.
    pub ipv4: u8,
    /// Not 0: of IPv6.
    pub ipv6: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
const_assert_eq!(size_of::<CoalesceOffload>(), 4);

/// Offloads that are possible, or on (`struct ndis_offload`). Older revisions end earlier; what is
/// missing is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offload {
    /// [`ObjectType::OFFLOAD`].
    pub header: ObjectHeader,
    /// Checksums.
    pub checksum: ChecksumOffload,
    /// Segmentation.
    pub lso_v1: LargeSendV1,
    /// IPsec: nobody has it.
    pub ipsec_v1: [u32; 7],
    /// Segmentation.
    pub lso_v2: LargeSendV2,
    /// Zero.
    pub flags: u32,
    /// Revision 2: IPsec.
    pub ipsec_v2: [u32; 8],
    /// Revision 3: coalescing.
    pub rsc: CoalesceOffload,
    /// Revision 3: flags and longest header of encapsulated packets.
    pub encapsulated_gre: [u32; 2],
}
const_assert_eq!(size_of::<Offload>(), Offload::BYTES_3);
const_assert_eq!(offset_of!(Offload, lso_v2), 80);
const_assert_eq!(offset_of!(Offload, ipsec_v2), Offload::BYTES_1);
const_assert_eq!(offset_of!(Offload, rsc), Offload::BYTES_2);

impl Offload {
    /// Bytes of revision 1 (NDIS 6.0).
    pub const BYTES_1: usize = 112;
    /// Bytes of revision 2 (NDIS 6.1).
    pub const BYTES_2: usize = 144;
    /// Bytes of revision 3 (NDIS 6.30).
    pub const BYTES_3: usize = 156;
}

/// What is to become of a checksum offload (`NDIS_OFFLOAD_PARAMETERS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ChecksumSetting(pub u8);

#[allow(missing_docs, reason = "they say what they are")]
impl ChecksumSetting {
    pub const NO_CHANGE: Self = Self(0);
    pub const DISABLED: Self = Self(1);
    pub const TX: Self = Self(2);
    pub const RX: Self = Self(3);
    pub const TX_RX: Self = Self(4);

    /// Of its two directions.
    #[must_use]
    pub const fn of(tx: bool, rx: bool) -> Self {
        match (tx, rx) {
            (false, false) => Self::DISABLED,
            (true, false) => Self::TX,
            (false, true) => Self::RX,
            (true, true) => Self::TX_RX,
        }
    }
}

/// What is to become of another offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Setting(pub u8);

#[allow(missing_docs, reason = "they say what they are")]
impl Setting {
    pub const NO_CHANGE: Self = Self(0);
    pub const DISABLED: Self = Self(1);
    pub const ENABLED: Self = Self(2);

    /// On or off.
    #[must_use]
    pub const fn of(on: bool) -> Self {
        if on { Self::ENABLED } else { Self::DISABLED }
    }
}

/// Offloads that are to be on (`struct ndis_offload_params`). Older revisions end earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names say which offload")]
pub struct OffloadParameters {
    /// [`ObjectType::DEFAULT`].
    pub header: ObjectHeader,
    pub ipv4_checksum: ChecksumSetting,
    pub tcp_ipv4_checksum: ChecksumSetting,
    pub udp_ipv4_checksum: ChecksumSetting,
    pub tcp_ipv6_checksum: ChecksumSetting,
    pub udp_ipv6_checksum: ChecksumSetting,
    pub lso_v1: Setting,
    pub ipsec_v1: u8,
    pub lso_v2_ipv4: Setting,
    pub lso_v2_ipv6: Setting,
    pub tcp_connection_ipv4: u8,
    pub tcp_connection_ipv6: u8,
    pub reserved: u8,
    pub flags: u32,
    /// Revision 2.
    pub ipsec_v2: u8,
    /// Revision 2.
    pub ipsec_v2_ipv4: u8,
    /// Revision 3.
    pub rsc_ipv4: Setting,
    /// Revision 3.
    pub rsc_ipv6: Setting,
    /// Revision 3.
    pub encapsulated_packets: u8,
    /// Revision 3.
    pub encapsulation_types: u8,
    pub reserved2: [u8; 2],
}
const_assert_eq!(size_of::<OffloadParameters>(), OffloadParameters::BYTES_3);
const_assert_eq!(offset_of!(OffloadParameters, flags), 16);
const_assert_eq!(offset_of!(OffloadParameters, ipsec_v2), OffloadParameters::BYTES_1);
const_assert_eq!(offset_of!(OffloadParameters, rsc_ipv4), OffloadParameters::BYTES_2);

impl OffloadParameters {
    /// Bytes of revision 1.
    pub const BYTES_1: usize = 20;
    /// Bytes of revision 2.
    pub const BYTES_2: usize = 22;
    /// Bytes of revision 3, with what fills it up.
    pub const BYTES_3: usize = 28;
}

/// Which frames offloads are for (`OID_OFFLOAD_ENCAPSULATION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names say which")]
pub struct OffloadEncapsulation {
    /// [`ObjectType::OFFLOAD_ENCAPSULATION`].
    pub header: ObjectHeader,
    pub ipv4_enabled: u32,
    pub ipv4_encapsulation: u32,
    pub ipv4_header_bytes: u32,
    pub ipv6_enabled: u32,
    pub ipv6_encapsulation: u32,
    pub ipv6_header_bytes: u32,
}
const_assert_eq!(size_of::<OffloadEncapsulation>(), 28);

/// What hashes are made of, and how (`NDIS_HASH_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct HashInformation(pub u32);

impl HashInformation {
    /// Function: Toeplitz.
    pub const TOEPLITZ: u32 = 0x0000_0001;
    /// Bits of the function.
    pub const FUNCTION: u32 = 0x0000_00ff;
    /// IPv4 addresses.
    pub const IPV4: u32 = 0x0000_0100;
    /// IPv4 addresses and TCP ports.
    pub const TCP_IPV4: u32 = 0x0000_0200;
    /// IPv6 addresses.
    pub const IPV6: u32 = 0x0000_0400;
    /// IPv6 addresses, those of extension headers too.
    pub const IPV6_EX: u32 = 0x0000_0800;
    /// IPv6 addresses and TCP ports.
    pub const TCP_IPV6: u32 = 0x0000_1000;
    /// Both.
    pub const TCP_IPV6_EX: u32 = 0x0000_2000;
    /// IPv4 addresses and UDP ports.
    pub const UDP_IPV4: u32 = 0x0000_4000;
    /// IPv6 addresses and UDP ports.
    pub const UDP_IPV6: u32 = 0x0000_8000;
    /// Both.
    pub const UDP_IPV6_EX: u32 = 0x0001_0000;
}

/// What the host's receive-side scaling can do (`struct ndis_recv_scale_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RssCapabilities {
    /// [`ObjectType::RSS_CAPABILITIES`]; a query has this header with it.
    pub header: ObjectHeader,
    /// [`RssCapabilities::HASH_TCP_IPV4`] and others.
    pub flags: u32,
    /// Interrupt messages.
    pub interrupt_messages: u32,
    /// Queues.
    pub receive_queues: u32,
    /// Entries of the table. From revision 2 on.
    pub table_entries: u16,
    /// Zero; not counted in the object's size.
    pub reserved: u16,
}
const_assert_eq!(size_of::<RssCapabilities>(), 20);
const_assert_eq!(offset_of!(RssCapabilities, reserved), RssCapabilities::BYTES_2);

impl RssCapabilities {
    /// Bytes of revision 1.
    pub const BYTES_1: usize = 16;
    /// Bytes of revision 2.
    pub const BYTES_2: usize = 18;
    /// `flags`: hashes of TCP over IPv4.
    pub const HASH_TCP_IPV4: u32 = 0x0000_0100;
    /// `flags`: hashes of TCP over IPv6.
    pub const HASH_TCP_IPV6: u32 = 0x0000_0200;
    /// `flags`: of TCP over IPv6 with extension headers.
    pub const HASH_TCP_IPV6_EX: u32 = 0x0000_0400;
    /// `flags`: of UDP over IPv4.
    pub const HASH_UDP_IPV4: u32 = 0x0000_0800;
    /// `flags`: of UDP over IPv6.
    pub const HASH_UDP_IPV6: u32 = 0x0000_1000;
    /// `flags`: message-signalled interrupts.
    pub const MESSAGE_SIGNALLED_INTERRUPTS: u32 = 0x0100_0000;
    /// `flags`: classified in the interrupt routine.
    pub const CLASSIFICATION_AT_ISR: u32 = 0x0200_0000;
    /// `flags`: classified behind it.
    pub const CLASSIFICATION_AT_DPC: u32 = 0x0400_0000;
}

/// Receive-side scaling as it is to be (`struct ndis_recv_scale_param`): the table (a `u32` channel
/// index for each entry, [`RSS_TABLE_ENTRIES`]) and the key ([`RSS_KEY_BYTES`]) follow where the
/// offsets, from this structure's first byte, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RssParameters {
    /// [`ObjectType::RSS_PARAMETERS`].
    pub header: ObjectHeader,
    /// [`RssParameters::DISABLE`] and others.
    pub flags: u16,
    /// Not used.
    pub base_cpu: u16,
    /// Hash.
    pub hash: HashInformation,
    /// Bytes of the table.
    pub table_bytes: u16,
    /// Zero.
    pub reserved: u16,
    /// Where the table begins.
    pub table_offset: u32,
    /// Bytes of the key.
    pub key_bytes: u16,
    /// Zero.
    pub reserved2: u16,
    /// Where the key begins.
    pub key_offset: u32,
    /// Processors; not used. From revision 2 on.
    pub processor_masks_offset: u32,
    /// As above.
    pub processor_masks: u32,
    /// As above.
    pub processor_mask_bytes: u32,
}
const_assert_eq!(size_of::<RssParameters>(), RssParameters::BYTES_2);
const_assert_eq!(offset_of!(RssParameters, table_offset), 16);
const_assert_eq!(offset_of!(RssParameters, key_offset), 24);
const_assert_eq!(offset_of!(RssParameters, processor_masks_offset), RssParameters::BYTES_1);

impl RssParameters {
    /// Bytes of revision 1.
    pub const BYTES_1: usize = 28;
    /// Bytes of revision 2.
    pub const BYTES_2: usize = 40;
    /// `flags`: leave the hash as it is.
    pub const HASH_UNCHANGED: u16 = 0x0002;
    /// `flags`: leave the table as it is.
    pub const TABLE_UNCHANGED: u16 = 0x0004;
    /// `flags`: leave the key as it is.
    pub const KEY_UNCHANGED: u16 = 0x0008;
    /// `flags`: no scaling.
    pub const DISABLE: u16 = 0x0010;
}

/// Most entries of the receive-side scaling table.
pub const RSS_TABLE_ENTRIES: usize = 128;
/// Bytes of a Toeplitz key.
pub const RSS_KEY_BYTES: usize = 40;

/// The link (`OID_GEN_LINK_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LinkState {
    /// [`ObjectType::DEFAULT`].
    pub header: ObjectHeader,
    /// [`LinkState::CONNECTED`] or [`LinkState::DISCONNECTED`].
    pub connect_state: u32,
    /// [`LinkState::FULL_DUPLEX`].
    pub duplex_state: u32,
    /// Zero.
    pub reserved: u32,
    /// Bits per second.
    pub xmit_speed_bps: u64,
    /// Bits per second.
    pub rcv_speed_bps: u64,
    /// Pauses.
    pub pause_functions: u32,
    /// What was negotiated.
    pub negotiation_flags: u32,
}
const_assert_eq!(size_of::<LinkState>(), 40);

impl LinkState {
    /// `connect_state`: up.
    pub const CONNECTED: u32 = 1;
    /// `connect_state`: down.
    pub const DISCONNECTED: u32 = 2;
    /// `duplex_state`.
    pub const FULL_DUPLEX: u32 = 2;
}

/// The link's speed (`OID_GEN_MAX_LINK_SPEED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LinkSpeed {
    /// Bits per second.
    pub xmit_bps: u64,
    /// Bits per second.
    pub rcv_bps: u64,
}
const_assert_eq!(size_of::<LinkSpeed>(), 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_directions() {
        assert_eq!(ChecksumSetting::of(true, true).0, 4);
        assert_eq!(ChecksumSetting::of(true, false).0, 2);
        assert_eq!(ChecksumSetting::of(false, true).0, 3);
        assert_eq!(ChecksumSetting::of(false, false).0, 1);
        assert_eq!((Setting::of(true).0, Setting::of(false).0), (2, 1));
    }

    #[test]
    fn flags_are_had_all_or_not() {
        let flags = ChecksumFlags(0x154);
        assert!(flags.has(ChecksumFlags::TCP | ChecksumFlags::IP));
        assert!(!flags.has(ChecksumFlags::TCP | ChecksumFlags::IP_OPTIONS));
    }
}
