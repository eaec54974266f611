//! Receive-side scaling: which channel a frame goes to, by a hash over its addresses and
//! ports with the guest's key.

use crate::net::frame::{Layout, Version, protocol};
use hv_abi::netvsc::ndis::{HashInformation, RSS_KEY_BYTES};

/// Most bytes hashed: two IPv6 addresses and two ports.
const INPUT_BYTES: usize = 36;

/// Toeplitz hashes with one key: the contribution of each byte at each place.
#[derive(Clone, Debug)]
pub struct Toeplitz(Vec<[u32; 256]>);

impl Toeplitz {
    /// Prepares a key.
    #[must_use]
    pub fn new(key: &[u8; RSS_KEY_BYTES]) -> Self {
        // The 32 bits of the key from a bit on.
        let window = |bit: usize| {
            let byte = |at: usize| u64::from(*key.get(bit / 8 + at).unwrap_or(&0));
            let bits = (0..5).fold(0, |value, at| value << 8 | byte(at));
            (bits >> (8 - bit % 8)) as u32
        };
        let table = |place: usize| {
            let mut table = [0; 256];
            for (value, entry) in table.iter_mut().enumerate() {
                for bit in (0..8).filter(|bit| value & (0x80 >> bit) != 0) {
                    *entry ^= window(place * 8 + bit);
                }
            }
            table
        };
        Self((0..INPUT_BYTES).map(table).collect())
    }

    /// The hash.
    #[must_use]
    pub fn hash<'a>(&self, input: impl IntoIterator<Item = &'a u8>) -> u32 {
        self.0
            .iter()
            .zip(input)
            .fold(0, |hash, (table, byte)| hash ^ table.get(usize::from(*byte)).unwrap_or(&0))
    }
}

/// The guest's wishes.
#[derive(Clone, Debug)]
pub struct Rss {
    /// The key, prepared.
    pub toeplitz: Toeplitz,
    /// What is hashed.
    pub types: HashInformation,
    /// Channels, by the low bits of the hash; a power of two of them.
    pub table: Vec<u16>,
}

impl Rss {
    /// The hash of a frame, as far as it is wanted.
    #[must_use]
    pub fn hash(&self, frame: &[u8]) -> Option<u32> {
        let layout = Layout::of(frame)?;
        type H = HashInformation;
        let (addresses, tcp, udp) = match layout.version {
            Version::V4 => (H::IPV4, H::TCP_IPV4, H::UDP_IPV4),
            Version::V6 => (H::IPV6, H::TCP_IPV6, H::UDP_IPV6),
        };
        let ports = match layout.protocol {
            protocol::TCP => tcp,
            protocol::UDP => udp,
            _ => 0,
        };
        let wanted = |bits| self.types.0 & bits != 0;
        let ports = match frame.get(layout.l4..layout.l4 + 4) {
            Some(bytes) if wanted(ports) && !layout.fragment => bytes,
            _ if wanted(addresses) => &[],
            _ => return None,
        };
        Some(self.toeplitz.hash(layout.addresses(frame).iter().chain(ports)))
    }

    /// The channel of a hash.
    #[must_use]
    pub fn channel(&self, hash: u32) -> u16 {
        let mask = self.table.len().wrapping_sub(1);
        self.table.get(hash as usize & mask).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::tests::packet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The key and the results of Microsoft's verification suite for RSS.
    const KEY: [u8; RSS_KEY_BYTES] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn rss(types: u32) -> Rss {
        let types = HashInformation(types | HashInformation::TOEPLITZ);
        Rss { toeplitz: Toeplitz::new(&KEY), types, table: (0..8).collect() }
    }

    #[test]
    fn known_hashes() {
        let toeplitz = Toeplitz::new(&KEY);
        for (from, to, ports, with, without) in [
            ([66, 9, 149, 187], [161, 142, 100, 80], [2794u16, 1766], 0x51cc_c178, 0x323e_8fc2),
            ([199, 92, 111, 2], [65, 69, 140, 83], [14230, 4739], 0xc626_b0ea, 0xd718_262a),
        ] {
            let (from, to) = (Ipv4Addr::from(from).octets(), Ipv4Addr::from(to).octets());
            let ports = ports.map(u16::to_be_bytes).concat();
            assert_eq!(toeplitz.hash(from.iter().chain(&to)), without);
            assert_eq!(toeplitz.hash(from.iter().chain(&to).chain(&ports)), with);
        }
        let from: Ipv6Addr = "3ffe:2501:200:1fff::7".parse().unwrap();
        let to: Ipv6Addr = "3ffe:2501:200:3::1".parse().unwrap();
        let (from, to) = (from.octets(), to.octets());
        let ports = [2794u16, 1766].map(u16::to_be_bytes).concat();
        assert_eq!(toeplitz.hash(from.iter().chain(&to)), 0x2cc1_8cd5);
        assert_eq!(toeplitz.hash(from.iter().chain(&to).chain(&ports)), 0x4020_7d3d);
    }

    #[test]
    fn frames_are_hashed_as_wanted() {
        type H = HashInformation;
        let all = H::IPV4 | H::TCP_IPV4 | H::IPV6 | H::TCP_IPV6 | H::UDP_IPV4;
        let mut tcp = packet(Version::V4, protocol::TCP, &[]);
        tcp[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
        tcp[34..38].copy_from_slice(&[2794u16, 1766].map(u16::to_be_bytes).concat());
        assert_eq!(rss(all).hash(&tcp), Some(0x51cc_c178));
        assert_eq!(rss(all & !H::TCP_IPV4).hash(&tcp), Some(0x323e_8fc2));
        assert_eq!(rss(0).hash(&tcp), None);
        tcp[20] = 0x20;
        assert_eq!(rss(all).hash(&tcp), Some(0x323e_8fc2), "a fragment");
        let udp = packet(Version::V6, protocol::UDP, &[]);
        assert_eq!(rss(all & !H::IPV6).hash(&udp), None);
        assert!(rss(all).hash(&udp).is_some());
        assert_eq!(rss(all).channel(0x51cc_c17d), 5);
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(rss(all).hash(&arp), None);
    }
}
