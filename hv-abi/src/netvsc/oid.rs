//! Objects that can be queried and set (`include/linux/rndis.h`, `RNDIS_OID_*`; NDIS's `OID_*`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of an object.
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
pub struct Oid(pub u32);

macro_rules! oids {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Oid {
            $($(#[$doc])* pub const $name: Self = Self($value);)*
            /// All that have a name here.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

oids! {
    /// All objects there are: `u32`s.
    GEN_SUPPORTED_LIST = 0x0001_0101;
    /// `u32`, 0: ready.
    GEN_HARDWARE_STATUS = 0x0001_0102;
    /// `u32`s: [`Medium`](super::rndis::Medium).
    GEN_MEDIA_SUPPORTED = 0x0001_0103;
    /// As above.
    GEN_MEDIA_IN_USE = 0x0001_0104;
    /// `u32` bytes.
    GEN_MAXIMUM_LOOKAHEAD = 0x0001_0105;
    /// `u32`: MTU, without the Ethernet header.
    GEN_MAXIMUM_FRAME_SIZE = 0x0001_0106;
    /// `u32`: units of 100 bits per second.
    GEN_LINK_SPEED = 0x0001_0107;
    /// `u32` bytes.
    GEN_TRANSMIT_BUFFER_SPACE = 0x0001_0108;
    /// `u32` bytes.
    GEN_RECEIVE_BUFFER_SPACE = 0x0001_0109;
    /// `u32` bytes.
    GEN_TRANSMIT_BLOCK_SIZE = 0x0001_010a;
    /// `u32` bytes.
    GEN_RECEIVE_BLOCK_SIZE = 0x0001_010b;
    /// `u32`: three bytes of a MAC, one of the vendor's choice.
    GEN_VENDOR_ID = 0x0001_010c;
    /// Text, ended by a zero.
    GEN_VENDOR_DESCRIPTION = 0x0001_010d;
    /// `u32`: [`PacketFilter`](super::rndis::PacketFilter).
    GEN_CURRENT_PACKET_FILTER = 0x0001_010e;
    /// `u32` bytes.
    GEN_CURRENT_LOOKAHEAD = 0x0001_010f;
    /// `u16`: NDIS version.
    GEN_DRIVER_VERSION = 0x0001_0110;
    /// `u32` bytes of a frame, its Ethernet header included.
    GEN_MAXIMUM_TOTAL_SIZE = 0x0001_0111;
    /// `u32`.
    GEN_PROTOCOL_OPTIONS = 0x0001_0112;
    /// `u32`: [`MacOptions`](super::rndis::MacOptions).
    GEN_MAC_OPTIONS = 0x0001_0113;
    /// `u32`: [`MediaState`](super::rndis::MediaState).
    GEN_MEDIA_CONNECT_STATUS = 0x0001_0114;
    /// `u32`.
    GEN_MAXIMUM_SEND_PACKETS = 0x0001_0115;
    /// `u32`.
    GEN_VENDOR_DRIVER_VERSION = 0x0001_0116;
    /// GUIDs.
    GEN_SUPPORTED_GUIDS = 0x0001_0117;
    /// Addresses of the network layer, set by guests.
    GEN_NETWORK_LAYER_ADDRESSES = 0x0001_0118;
    /// `u32` bytes.
    GEN_TRANSPORT_HEADER_OFFSET = 0x0001_0119;
    /// `u32`.
    GEN_PHYSICAL_MEDIUM = 0x0001_0202;
    /// [`RssCapabilities`](super::ndis::RssCapabilities).
    GEN_RECEIVE_SCALE_CAPABILITIES = 0x0001_0203;
    /// [`RssParameters`](super::ndis::RssParameters).
    GEN_RECEIVE_SCALE_PARAMETERS = 0x0001_0204;
    /// [`LinkSpeed`](super::ndis::LinkSpeed).
    GEN_MAX_LINK_SPEED = 0x0001_0206;
    /// [`LinkState`](super::ndis::LinkState).
    GEN_LINK_STATE = 0x0001_0207;
    /// What the link is to be.
    GEN_LINK_PARAMETERS = 0x0001_0208;
    /// Interrupt moderation.
    GEN_INTERRUPT_MODERATION = 0x0001_0209;
    /// UTF-16 name of the machine.
    GEN_MACHINE_NAME = 0x0001_021a;
    /// [`ConfigParameter`](super::rndis::ConfigParameter): how a MAC is set.
    GEN_RNDIS_CONFIG_PARAMETER = 0x0001_021b;
    /// `u32`.
    GEN_VLAN_ID = 0x0001_021c;

    /// Frames sent; as all below, `u32` or `u64` by the room in the query.
    GEN_XMIT_OK = 0x0002_0101;
    /// Frames received.
    GEN_RCV_OK = 0x0002_0102;
    /// Frames not sent.
    GEN_XMIT_ERROR = 0x0002_0103;
    /// Frames received with errors.
    GEN_RCV_ERROR = 0x0002_0104;
    /// Frames for which there was no room.
    GEN_RCV_NO_BUFFER = 0x0002_0105;
    /// Bytes sent to one.
    GEN_DIRECTED_BYTES_XMIT = 0x0002_0201;
    /// Frames sent to one.
    GEN_DIRECTED_FRAMES_XMIT = 0x0002_0202;
    /// Bytes sent to groups.
    GEN_MULTICAST_BYTES_XMIT = 0x0002_0203;
    /// Frames sent to groups.
    GEN_MULTICAST_FRAMES_XMIT = 0x0002_0204;
    /// Bytes sent to all.
    GEN_BROADCAST_BYTES_XMIT = 0x0002_0205;
    /// Frames sent to all.
    GEN_BROADCAST_FRAMES_XMIT = 0x0002_0206;
    /// Bytes received for this one.
    GEN_DIRECTED_BYTES_RCV = 0x0002_0207;
    /// Frames received for this one.
    GEN_DIRECTED_FRAMES_RCV = 0x0002_0208;
    /// Bytes received for groups.
    GEN_MULTICAST_BYTES_RCV = 0x0002_0209;
    /// Frames received for groups.
    GEN_MULTICAST_FRAMES_RCV = 0x0002_020a;
    /// Bytes received for all.
    GEN_BROADCAST_BYTES_RCV = 0x0002_020b;
    /// Frames received for all.
    GEN_BROADCAST_FRAMES_RCV = 0x0002_020c;
    /// Frames with wrong check sequences.
    GEN_RCV_CRC_ERROR = 0x0002_020d;
    /// Frames waiting to be sent.
    GEN_TRANSMIT_QUEUE_LENGTH = 0x0002_020e;
    /// UTF-16 name of the card.
    GEN_FRIENDLY_NAME = 0x0002_0216;
    /// Bytes received.
    GEN_BYTES_RCV = 0x0002_0219;
    /// Bytes sent.
    GEN_BYTES_XMIT = 0x0002_021a;
    /// Frames thrown away that were received.
    GEN_RCV_DISCARDS = 0x0002_021b;
    /// Frames thrown away that were to be sent.
    GEN_XMIT_DISCARDS = 0x0002_021c;

    /// MAC the card was made with.
    IEEE_802_3_PERMANENT_ADDRESS = 0x0101_0101;
    /// MAC it has.
    IEEE_802_3_CURRENT_ADDRESS = 0x0101_0102;
    /// MACs of groups.
    IEEE_802_3_MULTICAST_LIST = 0x0101_0103;
    /// `u32`: most of those.
    IEEE_802_3_MAXIMUM_LIST_SIZE = 0x0101_0104;
    /// `u32`.
    IEEE_802_3_MAC_OPTIONS = 0x0101_0105;
    /// [`OffloadEncapsulation`](super::ndis::OffloadEncapsulation).
    OFFLOAD_ENCAPSULATION = 0x0101_010a;
    /// Frames with wrong lengths.
    IEEE_802_3_RCV_ERROR_ALIGNMENT = 0x0102_0101;
    /// Frames sent after one collision.
    IEEE_802_3_XMIT_ONE_COLLISION = 0x0102_0102;
    /// Frames sent after more.
    IEEE_802_3_XMIT_MORE_COLLISIONS = 0x0102_0103;

    /// [`Offload`](super::ndis::Offload): what is on.
    TCP_OFFLOAD_CURRENT_CONFIG = 0xfc01_020b;
    /// [`OffloadParameters`](super::ndis::OffloadParameters): what is to be on.
    TCP_OFFLOAD_PARAMETERS = 0xfc01_020c;
    /// [`Offload`](super::ndis::Offload): what can be on.
    TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xfc01_020d;
    /// Chimney.
    TCP_CONNECTION_OFFLOAD_CURRENT_CONFIG = 0xfc01_020e;
    /// Chimney.
    TCP_CONNECTION_OFFLOAD_HARDWARE_CAPABILITIES = 0xfc01_020f;
}

#[cfg(test)]
mod tests {
    use super::Oid;

    #[test]
    fn no_number_has_two_names() {
        assert!(Oid::ALL.is_sorted_by(|a, b| a < b));
    }
}
