//! The network device protocol (`xen/include/public/io/netif.h`).
//!
//! Two rings, named after the frontend: on one it sends, on the other it receives. A packet is a
//! chain of entries; behind the first there may be entries that are [`NetifExtraInfo`] instead. A
//! third ring, for all queues together, carries control messages.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::grant_table::GrantRef;

/// `XEN_NETIF_NR_SLOTS_MIN`: slots of a packet every backend takes.
pub const NR_SLOTS_MIN: usize = 18;
/// `XEN_NETIF_MAX_TX_SIZE`.
pub const MAX_TX_SIZE: u16 = 0xffff;
/// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra info follows.
pub const EXTRA_FLAG_MORE: u8 = 1;
/// `XEN_NETIF_CTRLF_GREF_readonly`.
pub const CTRLF_GREF_READONLY: u16 = 1;

/// `NETTXF_*`: flags of a request to send.
#[allow(missing_docs, reason = "names are the header's own")]
pub mod txf {
    pub const CSUM_BLANK: u16 = 1;
    pub const DATA_VALIDATED: u16 = 2;
    pub const MORE_DATA: u16 = 4;
    pub const EXTRA_INFO: u16 = 8;
}

/// `NETRXF_*`: flags of a response with received data.
#[allow(missing_docs, reason = "names are the header's own")]
pub mod rxf {
    pub const DATA_VALIDATED: u16 = 1;
    pub const CSUM_BLANK: u16 = 2;
    pub const MORE_DATA: u16 = 4;
    pub const EXTRA_INFO: u16 = 8;
    pub const GSO_PREFIX: u16 = 16;
}

/// `XEN_NETIF_CTRL_HASH_TYPE_*`: sets of [`HashType`].
#[allow(missing_docs, reason = "names are the header's own")]
pub mod hash_types {
    pub const IPV4: u32 = 1;
    pub const IPV4_TCP: u32 = 2;
    pub const IPV6: u32 = 4;
    pub const IPV6_TCP: u32 = 8;
}

/// `NETIF_RSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NetifStatus(pub i16);

#[allow(missing_docs, reason = "names are the header's own")]
impl NetifStatus {
    pub const DROPPED: Self = Self(-2);
    pub const ERROR: Self = Self(-1);
    pub const OKAY: Self = Self(0);
    pub const NULL: Self = Self(1);
}

/// `XEN_NETIF_EXTRA_TYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ExtraType(pub u8);

#[allow(missing_docs, reason = "names are the header's own")]
impl ExtraType {
    pub const NONE: Self = Self(0);
    pub const GSO: Self = Self(1);
    pub const MCAST_ADD: Self = Self(2);
    pub const MCAST_DEL: Self = Self(3);
    pub const HASH: Self = Self(4);
    pub const XDP: Self = Self(5);
}

/// `XEN_NETIF_GSO_TYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GsoType(pub u8);

#[allow(missing_docs, reason = "names are the header's own")]
impl GsoType {
    pub const NONE: Self = Self(0);
    pub const TCPV4: Self = Self(1);
    pub const TCPV6: Self = Self(2);
}

/// `_XEN_NETIF_CTRL_HASH_TYPE_*`: numbers, where `hash_types` has bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct HashType(pub u8);

#[allow(missing_docs, reason = "names are the header's own")]
impl HashType {
    pub const IPV4: Self = Self(0);
    pub const IPV4_TCP: Self = Self(1);
    pub const IPV6: Self = Self(2);
    pub const IPV6_TCP: Self = Self(3);
}

/// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct HashAlgorithm(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl HashAlgorithm {
    pub const NONE: Self = Self(0);
    pub const TOEPLITZ: Self = Self(1);
}

/// `XEN_NETIF_CTRL_TYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CtrlType(pub u16);

#[allow(missing_docs, reason = "names are the header's own")]
impl CtrlType {
    pub const INVALID: Self = Self(0);
    pub const GET_HASH_FLAGS: Self = Self(1);
    pub const SET_HASH_FLAGS: Self = Self(2);
    pub const SET_HASH_KEY: Self = Self(3);
    pub const GET_HASH_MAPPING_SIZE: Self = Self(4);
    pub const SET_HASH_MAPPING_SIZE: Self = Self(5);
    pub const SET_HASH_MAPPING: Self = Self(6);
    pub const SET_HASH_ALGORITHM: Self = Self(7);
    pub const GET_GREF_MAPPING_SIZE: Self = Self(8);
    pub const ADD_GREF_MAPPING: Self = Self(9);
    pub const DEL_GREF_MAPPING: Self = Self(10);
}

/// `XEN_NETIF_CTRL_STATUS_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CtrlStatus(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl CtrlStatus {
    pub const SUCCESS: Self = Self(0);
    pub const NOT_SUPPORTED: Self = Self(1);
    pub const INVALID_PARAMETER: Self = Self(2);
    pub const BUFFER_OVERFLOW: Self = Self(3);
}

/// `struct netif_tx_request`. In a packet's first entry `size` is the whole packet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifTxRequest {
    pub gref: GrantRef,
    pub offset: u16,
    pub flags: u16,
    pub id: u16,
    pub size: u16,
}
const_assert_eq!(size_of::<NetifTxRequest>(), 12);
const_assert_eq!(offset_of!(NetifTxRequest, size), 10);

/// `struct netif_tx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifTxResponse {
    pub id: u16,
    pub status: NetifStatus,
}
const_assert_eq!(size_of::<NetifTxResponse>(), 4);

/// `struct netif_rx_request`: a page to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifRxRequest {
    pub id: u16,
    pub pad: u16,
    pub gref: GrantRef,
}
const_assert_eq!(size_of::<NetifRxRequest>(), 8);
const_assert_eq!(offset_of!(NetifRxRequest, gref), 4);

/// `struct netif_rx_response`. A `status` above 0 is the number of bytes. It must be at the place
/// in the ring its request was at: frontends go by that, not by `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifRxResponse {
    pub id: u16,
    pub offset: u16,
    pub flags: u16,
    pub status: NetifStatus,
}
const_assert_eq!(size_of::<NetifRxResponse>(), 8);
const_assert_eq!(offset_of!(NetifRxResponse, status), 6);

/// `struct netif_extra_info`: in a place of its own in either ring. `u` is one of the structures
/// below or a multicast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifExtraInfo {
    pub type_: ExtraType,
    pub flags: u8,
    pub u: [u8; 6],
}
const_assert_eq!(size_of::<NetifExtraInfo>(), 8);
const_assert_eq!(offset_of!(NetifExtraInfo, u), 2);

/// `u.gso`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifExtraGso {
    pub size: u16,
    pub type_: GsoType,
    pub pad: u8,
    pub features: u16,
}
const_assert_eq!(size_of::<NetifExtraGso>(), 6);

/// `u.hash`. The value is in this machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifExtraHash {
    pub type_: HashType,
    pub algorithm: u8,
    pub value: [u8; 4],
}
const_assert_eq!(size_of::<NetifExtraHash>(), 6);

/// `u.xdp`: how far behind the start of its page each part of the packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifExtraXdp {
    pub headroom: u16,
    pub pad: [u16; 2],
}
const_assert_eq!(size_of::<NetifExtraXdp>(), 6);

/// `struct xen_netif_ctrl_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifCtrlRequest {
    pub id: u16,
    pub type_: CtrlType,
    pub data: [u32; 3],
}
const_assert_eq!(size_of::<NetifCtrlRequest>(), 16);

/// `struct xen_netif_ctrl_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifCtrlResponse {
    pub id: u16,
    pub type_: CtrlType,
    pub status: CtrlStatus,
    pub data: u32,
}
const_assert_eq!(size_of::<NetifCtrlResponse>(), 12);

/// `struct xen_netif_gref`: an entry of a table of static grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct NetifGref {
    pub ref_: GrantRef,
    pub flags: u16,
    pub status: u16,
}
const_assert_eq!(size_of::<NetifGref>(), 8);
