//! Packets in a ring.
//!
//! ```text
//! descriptor, 16 bytes | more of the descriptor | payload | footer, 8 bytes
//! |<------------- data_offset8 --------------->|
//! |<--------------------- length8 ---------------------->|
//! ```

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum vmbus_packet_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PacketType(pub u16);

#[allow(missing_docs, reason = "names are the protocol's own")]
impl PacketType {
    pub const INVALID: Self = Self(0);
    pub const SYNCH: Self = Self(1);
    pub const ADD_TRANSFER_PAGE_SET: Self = Self(2);
    pub const REMOVE_TRANSFER_PAGE_SET: Self = Self(3);
    pub const ESTABLISH_GPADL: Self = Self(4);
    pub const TEARDOWN_GPADL: Self = Self(5);
    pub const IN_BAND: Self = Self(6);
    pub const TRANSFER_PAGES: Self = Self(7);
    pub const GPADL: Self = Self(8);
    pub const GPA_DIRECT: Self = Self(9);
    pub const CANCEL_REQUEST: Self = Self(10);
    pub const COMPLETION: Self = Self(11);
    pub const ADDITIONAL_PACKETS: Self = Self(12);
    pub const ADDITIONAL_DATA: Self = Self(13);
}

/// `struct vmpacket_descriptor`: begins every packet. Lengths are in units of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketDescriptor {
    /// Type.
    pub packet_type: PacketType,
    /// From the descriptor's begin to the payload.
    pub data_offset8: u16,
    /// From the descriptor's begin to the payload's end.
    pub length8: u16,
    /// [`PacketDescriptor::COMPLETION_REQUESTED`].
    pub flags: u16,
    /// Chosen by the sender; comes back in the completion.
    pub transaction_id: u64,
}
const_assert_eq!(size_of::<PacketDescriptor>(), 16);
const_assert_eq!(offset_of!(PacketDescriptor, transaction_id), 8);

impl PacketDescriptor {
    /// The receiver is to answer with a completion.
    pub const COMPLETION_REQUESTED: u16 = 1;
}

/// Behind the descriptor of TRANSFER_PAGES (`struct vmtransfer_page_packet_header`): ranges of a
/// buffer the receiver knows; `range_count` [`TransferPageRange`]s follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TransferPageHeader {
    /// Which buffer.
    pub transfer_page_set_id: u16,
    /// Not 0: the sender owns it. May hold garbage.
    pub sender_owns_set: u8,
    /// May hold garbage.
    pub reserved: u8,
    /// Ranges.
    pub range_count: u32,
}
const_assert_eq!(size_of::<TransferPageHeader>(), 8);

/// `struct vmtransfer_page_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TransferPageRange {
    /// Bytes.
    pub byte_count: u32,
    /// Where in the buffer.
    pub byte_offset: u32,
}
const_assert_eq!(size_of::<TransferPageRange>(), 8);

/// Behind the descriptor of GPA_DIRECT (`struct vmdata_gpa_direct`): guest memory that goes with
/// the packet; `range_count` times a [`GpaRange`](super::GpaRange) and its page numbers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpaDirectHeader {
    /// May hold garbage.
    pub reserved: u32,
    /// Ranges.
    pub range_count: u32,
}
const_assert_eq!(size_of::<GpaDirectHeader>(), 8);

/// Behind every packet: where it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketFooter {
    /// Zero.
    pub reserved: u32,
    /// The ring offset of the packet's descriptor.
    pub offset: u32,
}
const_assert_eq!(size_of::<PacketFooter>(), 8);

/// Begins the payload of a pipe's packets, whose lengths need not be multiples of 8
/// (`struct vmbuspipe_hdr`; `struct vmpipe_proto_header` of `net/vmw_vsock/hyperv_transport.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PipeHeader {
    /// Kind.
    pub packet_type: PipePacketType,
    /// Bytes of data behind it.
    pub data_bytes: u32,
}
const_assert_eq!(size_of::<PipeHeader>(), 8);

/// Kind of a pipe's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PipePacketType(pub u32);

impl PipePacketType {
    /// Data.
    pub const DATA: Self = Self(1);
    /// Data the reader took a part of; 31:16 of the length say how much. Never sent.
    pub const PARTIAL: Self = Self(2);
    /// Set up a GPA-direct buffer.
    pub const SETUP_GPA_DIRECT: Self = Self(3);
    /// Tear it down.
    pub const TEARDOWN_GPA_DIRECT: Self = Self(4);
}

/// Most data in one packet of a pipe (`MAX_PIPE_DATA_PAYLOAD`).
pub const MAX_PIPE_DATA_BYTES: usize = 16384;
