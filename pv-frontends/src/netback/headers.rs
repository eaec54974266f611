//! What is in front of a packet's payload, as far as offloads need it.
//!
//! Works on a copy of a packet's first bytes. What is found is believed only as an offset into
//! that copy: every header lies in it whole.

use crate::net::{ETHERNET_HEADER_BYTES, HashTypes, Ip, Transport};

/// Bytes of a packet that are looked at: Linux looks into 256 bytes behind the Ethernet header.
pub(super) const HEADER_BYTES: usize = 288;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q and 802.1ad.
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Tags looked behind.
const MAX_TAGS: usize = 2;
/// Where an IPv4 header has its checksum.
const IP_CSUM_AT: usize = 10;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
/// Hop-by-hop options, routing, destination options: their second byte is their length in units
/// of 8 bytes, less one.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const EXTENSION_FRAGMENT: u8 = 44;
/// The authentication header counts in units of 4 bytes, less two.
const EXTENSION_AUTH: u8 = 51;

/// Headers of a packet of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) ip: Ip,
    /// Where the IP header begins.
    pub(super) l3: u16,
    /// Where what is behind it and its extensions begins.
    pub(super) l4: u16,
    /// What that is, where it is known and the packet is no fragment.
    pub(super) transport: Option<Transport>,
    /// Bytes of the transport's payload and header, as the IP header says.
    pub(super) l4_bytes: u32,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

impl Headers {
    /// Those of a packet that begins with `bytes`; `None` where it is none of IP's, or is cut off
    /// inside them.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut l3 = ETHERNET_HEADER_BYTES as usize;
        let mut kind = be16(bytes, l3 - 2)?;
        for _ in 0..MAX_TAGS {
            if ETHERTYPES_VLAN.contains(&kind) {
                l3 += 4;
                kind = be16(bytes, l3 - 2)?;
            }
        }
        match kind {
            ETHERTYPE_IPV4 => Self::parse_v4(bytes, l3),
            ETHERTYPE_IPV6 => Self::parse_v6(bytes, l3),
            _ => None,
        }
    }

    fn parse_v4(bytes: &[u8], l3: usize) -> Option<Self> {
        let header = bytes.get(l3..l3 + 20)?;
        let length = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || length < 20 {
            return None;
        }
        // Its offset, and "more fragments".
        let is_fragment = be16(header, 6)? & 0x3fff != 0;
        let transport = if is_fragment { None } else { transport(header[9]) };
        let total = u32::from(be16(header, 2)?);
        Some(Self {
            ip: Ip::V4,
            l3: l3 as u16,
            l4: (l3 + length) as u16,
            transport,
            l4_bytes: total.saturating_sub(length as u32),
        })
    }

    fn parse_v6(bytes: &[u8], l3: usize) -> Option<Self> {
        let header = bytes.get(l3..l3 + 40)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (mut next, mut l4, mut is_fragment) = (header[6], l3 + 40, false);
        let end = l4 + usize::from(be16(header, 4)?);
        // Each is 8 bytes at least, in `bytes`.
        loop {
            let unit = match next {
                EXTENSION_FRAGMENT => 0,
                EXTENSION_AUTH => 4,
                _ if EXTENSIONS.contains(&next) => 8,
                _ => break,
            };
            let extension = bytes.get(l4..l4 + 8)?;
            l4 += match unit {
                0 => {
                    is_fragment |= be16(extension, 2)? & 0xfff9 != 0;
                    8
                }
                4 => (usize::from(extension[1]) + 2) * 4,
                _ => (usize::from(extension[1]) + 1) * 8,
            };
            next = extension[0];
        }
        Some(Self {
            ip: Ip::V6,
            l3: l3 as u16,
            l4: l4 as u16,
            transport: if is_fragment { None } else { transport(next) },
            l4_bytes: end.saturating_sub(l4) as u32,
        })
    }

    /// Where the transport's checksum is.
    pub(super) const fn csum_at(&self) -> Option<u16> {
        match self.transport {
            Some(Transport::Tcp) => Some(self.l4 + 16),
            Some(Transport::Udp) => Some(self.l4 + 6),
            None => None,
        }
    }

    /// Where the IPv4 header's checksum is, and what it should be; `None` where the header is cut
    /// off, or IPv6's.
    pub(super) fn ip_csum(&self, bytes: &[u8]) -> Option<(u16, u16)> {
        let header = bytes.get(usize::from(self.l3)..usize::from(self.l4))?;
        if self.ip != Ip::V4 {
            return None;
        }
        let (before, behind) = (header.get(..IP_CSUM_AT)?, header.get(IP_CSUM_AT + 2..)?);
        let mut sum = Sum::default();
        sum.add(before);
        sum.add(behind);
        Some((self.l3 + IP_CSUM_AT as u16, !sum.folded()))
    }

    /// Bytes from the packet's beginning to TCP's payload; `None` where that is not TCP or cut off.
    pub(super) fn tcp_payload_at(&self, bytes: &[u8]) -> Option<u16> {
        if self.transport != Some(Transport::Tcp) {
            return None;
        }
        let l4 = usize::from(self.l4);
        let length = u16::from(*bytes.get(l4 + 12)? >> 4) * 4;
        (length >= 20 && bytes.len() >= l4 + usize::from(length)).then_some(self.l4 + length)
    }

    /// Where the IP addresses are.
    fn addresses(&self) -> core::ops::Range<usize> {
        let l3 = usize::from(self.l3);
        match self.ip {
            Ip::V4 => l3 + 12..l3 + 20,
            Ip::V6 => l3 + 8..l3 + 40,
        }
    }

    /// What is hashed of the packet, and which of `types` that is.
    pub(super) fn hashed<'a>(
        &self,
        bytes: &'a [u8],
        types: HashTypes,
    ) -> Option<(HashTypes, &'a [u8], &'a [u8])> {
        let none = HashTypes::default();
        let addresses = bytes.get(self.addresses())?;
        let l4 = usize::from(self.l4);
        let ports = bytes.get(l4..l4 + 4).filter(|_| self.transport == Some(Transport::Tcp));
        match (self.ip, ports) {
            (Ip::V4, Some(ports)) if types.tcp_v4 => {
                Some((HashTypes { tcp_v4: true, ..none }, addresses, ports))
            }
            (Ip::V6, Some(ports)) if types.tcp_v6 => {
                Some((HashTypes { tcp_v6: true, ..none }, addresses, ports))
            }
            (Ip::V4, _) if types.v4 => Some((HashTypes { v4: true, ..none }, addresses, &[])),
            (Ip::V6, _) if types.v6 => Some((HashTypes { v6: true, ..none }, addresses, &[])),
            _ => None,
        }
    }
}

const fn transport(protocol: u8) -> Option<Transport> {
    match protocol {
        PROTO_TCP => Some(Transport::Tcp),
        PROTO_UDP => Some(Transport::Udp),
        _ => None,
    }
}

/// The tag of an 802.1Q packet that begins with `bytes`.
pub(super) fn vlan_tag(bytes: &[u8]) -> Option<u16> {
    let at = ETHERNET_HEADER_BYTES as usize;
    (be16(bytes, at - 2)? == ETHERTYPES_VLAN[0]).then(|| be16(bytes, at)).flatten()
}

/// The Ethernet type of the tags [`vlan_tag`] finds.
pub(super) const VLAN_ETHERTYPE: [u8; 2] = ETHERTYPES_VLAN[0].to_be_bytes();

/// Adds up 16-bit words, in network order, as the Internet's checksum does (RFC 1071). Bytes may
/// come in pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.odd
            && let Some((first, behind)) = rest.split_first()
        {
            self.sum += u64::from(*first);
            (self.odd, rest) = (false, behind);
        }
        let mut pairs = rest.chunks_exact(2);
        // At most 2^15 pairs of a packet: no carry is lost.
        for pair in &mut pairs {
            self.sum += u64::from(pair[0]) << 8 | u64::from(pair[1]);
        }
        if let [last] = pairs.remainder() {
            self.sum += u64::from(*last) << 8;
            self.odd = true;
        }
    }

    /// The sum, folded and not inverted.
    pub(super) const fn folded(self) -> u16 {
        let mut sum = self.sum;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// What goes into the checksum's field; for UDP 0 would mean that there is none.
    pub(super) const fn checksum(self, transport: Transport) -> u16 {
        match (!self.folded(), transport) {
            (0, Transport::Udp) => 0xffff,
            (sum, _) => sum,
        }
    }
}

/// Microsoft's Toeplitz hash (`netif.h`, "Toeplitz hash").
pub(super) fn toeplitz<'a>(key: &[u8], data: impl IntoIterator<Item = &'a u8>) -> u32 {
    let mut behind = key.iter();
    let mut next = || u64::from(behind.next().copied().unwrap_or(0));
    let mut window = (0..8).fold(0, |window, _| window << 8 | next());
    let mut hash = 0;
    for byte in data {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= window;
            }
            window <<= 1;
        }
        window |= next();
    }
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The key and vectors of Microsoft's documentation of RSS.
    #[test]
    fn toeplitz_vectors() {
        let key = [
            0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
            0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
            0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
        ];
        // 66.9.149.187:2794 to 161.142.100.80:1766.
        let data = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&key, &data), 0x51cc_c178);
        assert_eq!(toeplitz(&key, &data[..8]), 0x323e_8fc2);
        // A key that is all used up counts as zeros.
        assert_eq!(toeplitz(&[], &data), 0);
    }

    fn v4(options: usize, protocol: u8, fragment: u16) -> std::vec::Vec<u8> {
        let mut packet = std::vec![0; 14 + 20 + options + 40];
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14] = 0x45 + (options / 4) as u8;
        let total = (packet.len() - 14) as u16;
        packet[16..18].copy_from_slice(&total.to_be_bytes());
        packet[20..22].copy_from_slice(&fragment.to_be_bytes());
        packet[23] = protocol;
        packet[34 + options + 12] = 0x60;
        packet
    }

    #[test]
    fn ipv4() {
        let found = Headers::parse(&v4(8, 6, 0x4000)).unwrap();
        assert_eq!((found.ip, found.l3, found.l4, found.l4_bytes), (Ip::V4, 14, 42, 40));
        assert_eq!((found.transport, found.csum_at()), (Some(Transport::Tcp), Some(58)));
        assert_eq!(found.tcp_payload_at(&v4(8, 6, 0)), Some(66));
        assert_eq!(found.tcp_payload_at(&v4(8, 6, 0)[..65]), None, "cut off");
        assert_eq!(Headers::parse(&v4(0, 17, 0)).unwrap().csum_at(), Some(40));
        for fragment in [1, 0x2000, 0x1fff] {
            assert_eq!(Headers::parse(&v4(0, 6, fragment)).unwrap().transport, None);
        }
        let mut bad = v4(0, 6, 0);
        bad[14] = 0x44;
        assert_eq!(Headers::parse(&bad), None);
        bad[14] = 0x65;
        assert_eq!(Headers::parse(&bad), None);
        bad[13] = 6;
        assert_eq!(Headers::parse(&bad), None, "ARP");
    }

    #[test]
    fn ipv6_and_tags() {
        let mut packet = std::vec![0; 400];
        packet[12..18].copy_from_slice(&[0x88, 0xa8, 0, 5, 0x81, 0]);
        packet[20..22].copy_from_slice(&[0x86, 0xdd]);
        packet[22] = 0x60;
        packet[26..28].copy_from_slice(&100u16.to_be_bytes());
        packet[28] = 0;
        // Hop-by-hop (16 bytes), authentication (12), a fragment header that is whole, TCP.
        packet[62..64].copy_from_slice(&[51, 1]);
        packet[78..80].copy_from_slice(&[44, 1]);
        packet[90] = 6;
        let found = Headers::parse(&packet).unwrap();
        assert_eq!((found.ip, found.l3, found.l4, found.l4_bytes), (Ip::V6, 22, 98, 64));
        assert_eq!(found.transport, Some(Transport::Tcp));
        packet[93] = 8;
        assert_eq!(Headers::parse(&packet).unwrap().transport, None, "a fragment");
        assert_eq!(Headers::parse(&packet[..95]), None, "cut off");
        assert_eq!(vlan_tag(&packet), None, "only the outermost");
        assert_eq!(vlan_tag(&packet[4..]), Some(0));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..HEADER_BYTES), kind in 0..4usize) {
            let mut bytes = bytes;
            let kinds = [[8, 0], [0x86, 0xdd], [0x81, 0], [8, 6]];
            if let Some(to) = bytes.get_mut(12..14) {
                to.copy_from_slice(&kinds[kind]);
            }
            if let Some(found) = Headers::parse(&bytes) {
                prop_assert!(found.l3 < found.l4);
                let _ = (found.csum_at(), found.tcp_payload_at(&bytes));
                let all = HashTypes { tcp_v4: true, v4: true, tcp_v6: true, v6: true };
                prop_assert!(found.hashed(&bytes, all).is_some());
            }
        }

        #[test]
        fn sums_of_pieces_are_sums(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0..200usize, 0..5)) {
            let mut whole = Sum::default();
            whole.add(&bytes);
            let mut cuts: std::vec::Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut pieces, mut at) = (Sum::default(), 0);
            for cut in cuts {
                pieces.add(&bytes[at..cut]);
                at = cut;
            }
            prop_assert_eq!(pieces.folded(), whole.folded());
            let plain: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum();
            prop_assert_eq!(u64::from(whole.folded()) % 0xffff, plain % 0xffff);
        }
    }
}
