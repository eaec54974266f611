//! What goes with a packet: a [`PerPacketInfo`] and its value, one behind the other.

use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kind of information (`enum ndis_per_pkt_info_type`; with [`PpiType::INTERNAL`] `enum
/// rndis_per_pkt_info_interal_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PpiType(pub u32);

impl PpiType {
    /// [`TxChecksum`] or [`RxChecksum`].
    pub const CHECKSUM: Self = Self(0);
    /// IPsec.
    pub const IPSEC: Self = Self(1);
    /// [`LargeSend`].
    pub const LARGE_SEND: Self = Self(2);
    /// A classification handle.
    pub const CLASSIFICATION_HANDLE: Self = Self(3);
    /// A scatter-gather list.
    pub const SG_LIST: Self = Self(5);
    /// [`Vlan`].
    pub const VLAN: Self = Self(6);
    /// The original packet.
    pub const ORIGINAL_PACKET: Self = Self(7);
    /// `u32`: hash of the packet's flow.
    pub const HASH_VALUE: Self = Self(8);
    /// `u32`, only where hosts say it: what the hash was made of, as
    /// [`HashInformation`](super::ndis::HashInformation) has it.
    pub const HASH_INFORMATION: Self = Self(9);
    /// Filling of short packets.
    pub const SHORT_PACKET_PADDING: Self = Self(11);
    /// Bit of types that RNDIS has on this bus only.
    pub const INTERNAL: u32 = 1 << 31;
    /// Version 6.1: [`PacketId`].
    pub const PACKET_ID: Self = Self(Self::INTERNAL | 1);
}

/// Begins each piece of information (`struct rndis_per_packet_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PerPacketInfo {
    /// Bytes up to the next, this header included; a multiple of 4.
    pub size: u32,
    /// Kind.
    pub kind: PpiType,
    /// Where the value begins, from this header's first byte.
    pub offset: u32,
}
const_assert_eq!(size_of::<PerPacketInfo>(), 12);

impl PerPacketInfo {
    /// The header of a value of four bytes behind it.
    #[must_use]
    pub const fn of_word(kind: PpiType) -> Self {
        let offset = size_of::<Self>() as u32;
        Self { size: offset + 4, kind, offset }
    }
}

/// To the host: which checksums are to be made (`transmit` of `struct ndis_tcp_ip_checksum_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct TxChecksum(pub u32);

impl TxChecksum {
    /// The packet is IPv4.
    pub const IPV4: u32 = 1 << 0;
    /// The packet is IPv6.
    pub const IPV6: u32 = 1 << 1;
    /// Make TCP's.
    pub const TCP: u32 = 1 << 2;
    /// Make UDP's.
    pub const UDP: u32 = 1 << 3;
    /// Make the IPv4 header's.
    pub const IP_HEADER: u32 = 1 << 4;

    /// Flags, and where the TCP header begins in the frame (below 1024).
    #[must_use]
    pub const fn new(flags: u32, tcp_header_offset: u16) -> Self {
        Self(flags | (tcp_header_offset as u32 & 0x3ff) << 16)
    }

    /// Where the TCP header begins.
    #[must_use]
    pub const fn tcp_header_offset(self) -> u16 {
        (self.0 >> 16 & 0x3ff) as u16
    }
}

/// From the host: what is known of checksums (`receive`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RxChecksum(pub u32);

impl RxChecksum {
    /// TCP's is wrong.
    pub const TCP_FAILED: u32 = 1 << 0;
    /// UDP's is wrong.
    pub const UDP_FAILED: u32 = 1 << 1;
    /// The IPv4 header's is wrong.
    pub const IP_FAILED: u32 = 1 << 2;
    /// TCP's is right.
    pub const TCP_SUCCEEDED: u32 = 1 << 3;
    /// UDP's is right.
    pub const UDP_SUCCEEDED: u32 = 1 << 4;
    /// The IPv4 header's is right.
    pub const IP_SUCCEEDED: u32 = 1 << 5;
    /// The frame is this machine's own.
    pub const LOOPBACK: u32 = 1 << 6;
    /// The field holds nothing of use.
    pub const TCP_VALUE_INVALID: u32 = 1 << 7;
    /// As above.
    pub const IP_VALUE_INVALID: u32 = 1 << 8;
    /// All that mean a wrong sum.
    pub const ANY_FAILED: u32 = Self::TCP_FAILED | Self::UDP_FAILED | Self::IP_FAILED;
    /// All that mean a right sum of the transport's.
    pub const TRANSPORT_SUCCEEDED: u32 = Self::TCP_SUCCEEDED | Self::UDP_SUCCEEDED;
}

/// To the host: cut the packet up (`struct ndis_tcp_lso_info`). The IP header's length is zero in
/// such a packet, IPv4's checksum too, and TCP's field holds the pseudo header's sum without a
/// length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct LargeSend(pub u32);

impl LargeSend {
    /// Version 2 of this information.
    pub const V2: u32 = 1 << 30;
    /// Version 2: IPv6.
    pub const IPV6: u32 = 1 << 31;
    /// Most that `mss` can be.
    pub const MAX_MSS: u32 = 0xf_ffff;

    /// Version 1, for IPv4: most TCP payload of a piece, and where the TCP header begins in the
    /// frame (below 1024).
    #[must_use]
    pub const fn v1(mss: u32, tcp_header_offset: u16) -> Self {
        Self(mss & Self::MAX_MSS | (tcp_header_offset as u32 & 0x3ff) << 20)
    }

    /// Version 2.
    #[must_use]
    pub const fn v2(mss: u32, tcp_header_offset: u16, is_ipv6: bool) -> Self {
        let ipv6 = if is_ipv6 { Self::IPV6 } else { 0 };
        Self(Self::v1(mss, tcp_header_offset).0 | Self::V2 | ipv6)
    }

    /// Most TCP payload of a piece.
    #[must_use]
    pub const fn mss(self) -> u32 {
        self.0 & Self::MAX_MSS
    }

    /// Where the TCP header begins.
    #[must_use]
    pub const fn tcp_header_offset(self) -> u16 {
        (self.0 >> 20 & 0x3ff) as u16
    }

    /// Whether it is version 2.
    #[must_use]
    pub const fn is_v2(self) -> bool {
        self.0 & Self::V2 != 0
    }

    /// Whether it is IPv6.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        self.is_v2() && self.0 & Self::IPV6 != 0
    }
}

/// A VLAN tag that is not in the frame (`struct ndis_pkt_8021q_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Vlan(pub u32);

impl Vlan {
    /// Of tag control information: priority 15:13, DEI 12, VLAN 11:0.
    #[must_use]
    pub const fn from_tci(tci: u16) -> Self {
        let tci = tci as u32;
        Self(tci >> 13 | (tci >> 12 & 1) << 3 | (tci & 0xfff) << 4)
    }

    /// As tag control information.
    #[must_use]
    pub const fn tci(self) -> u16 {
        ((self.0 & 7) << 13 | (self.0 >> 3 & 1) << 12 | self.0 >> 4 & 0xfff) as u16
    }
}

/// Which packet a range is of, where a packet takes several (`struct rndis_pktinfo_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketId {
    /// [`PacketId::V1`].
    pub version: u8,
    /// [`PacketId::SUBALLOCATION`] and others.
    pub flags: u8,
    /// Packet.
    pub id: u16,
}
const_assert_eq!(size_of::<PacketId>(), 4);

impl PacketId {
    /// `version`.
    pub const V1: u8 = 1;
    /// `flags`: the packet takes several ranges.
    pub const SUBALLOCATION: u8 = 1 << 0;
    /// `flags`: its first.
    pub const FIRST: u8 = 1 << 1;
    /// `flags`: its last.
    pub const LAST: u8 = 1 << 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_turn_around() {
        // Priority 5, DEI, VLAN 0x123.
        let tci = 0b1011_0001_0010_0011;
        assert_eq!(Vlan::from_tci(tci).0, 5 | 1 << 3 | 0x123 << 4);
        for tci in 0..=u16::MAX {
            assert_eq!(Vlan::from_tci(tci).tci(), tci);
        }
    }

    #[test]
    fn fields_of_offloads() {
        let sum = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34);
        assert_eq!((sum.0, sum.tcp_header_offset()), (0x0022_0005, 34));
        let large = LargeSend::v2(1448, 54, true);
        assert_eq!(large.0, 1448 | 54 << 20 | 0b11 << 30);
        assert_eq!((large.mss(), large.tcp_header_offset()), (1448, 54));
        assert!(large.is_v2() && large.is_ipv6());
        assert!(!LargeSend::v1(1448, 34).is_v2());
        assert_eq!(PerPacketInfo::of_word(PpiType::VLAN).size, 16);
    }
}
