//! Ethernet frames, and what is left to be done to them.
//!
//! An offload is what `struct virtio_net_hdr` says of a frame
//! (`linux/include/uapi/linux/virtio_net.h`): TAPs and our own streams carry that header in
//! front of each frame, so that checksums and segmentation stay undone as long as nobody
//! needs them.

use std::fmt;
use std::str::FromStr;

/// Address, address, type.
pub const ETHERNET_BYTES: usize = 14;
/// An 802.1Q tag.
pub const VLAN_TAG_BYTES: usize = 4;
/// Longest frame taken: what IP's lengths allow behind an Ethernet header with a tag.
pub const FRAME_BYTES_MAX: usize = 65535 + ETHERNET_BYTES + 2 * VLAN_TAG_BYTES;

/// A hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// To all.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// To several, broadcasts included.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bytes: Option<Vec<u8>> = text
            .split([':', '-'])
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
            .collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        match bytes.map(Self) {
            Some(mac) if mac == Self::default() => anyhow::bail!("{text:?}: not this address"),
            Some(mac) if mac.is_multicast() => anyhow::bail!("{text:?} is a multicast address"),
            Some(mac) => Ok(mac),
            None => anyhow::bail!("{text:?} is no address such as 00:15:5d:01:02:03"),
        }
    }
}

/// A checksum whose field holds the sum over the pseudo header only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where what it covers begins, from the start of the frame.
    pub start: u16,
    /// Where its field is, from there.
    pub offset: u16,
}

/// What is left to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Complete this checksum.
    pub checksum: Option<Partial>,
    /// Cut into TCP segments of so many bytes.
    pub segment: Option<u16>,
    /// Nothing is left, and the checksums are known to be right.
    pub valid: bool,
}

/// A frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// What is left to be done.
    pub offload: Offload,
    /// From the destination's address on, without checksum.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A frame with nothing left to be done.
    #[must_use]
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self { offload: Offload::default(), bytes }
    }

    /// Destination; zeros where the frame is too short.
    #[must_use]
    pub fn destination(&self) -> Mac {
        Mac(self.bytes.first_chunk().copied().unwrap_or_default())
    }

    /// Takes the outer 802.1Q tag out: its TCI.
    pub fn take_vlan(&mut self) -> Option<u16> {
        let tag = self.bytes.get(12..16)?;
        if tag.get(..2)? != ethertype::VLAN.to_be_bytes() {
            return None;
        }
        let tci = u16::from_be_bytes(tag.get(2..4)?.try_into().ok()?);
        self.bytes.drain(12..16);
        if let Some(partial) = &mut self.offload.checksum {
            partial.start = partial.start.checked_sub(VLAN_TAG_BYTES as u16)?;
        }
        Some(tci)
    }

    /// Puts an 802.1Q tag in.
    pub fn put_vlan(&mut self, tci: u16) {
        if self.bytes.len() < 12 {
            return;
        }
        let [a, b] = ethertype::VLAN.to_be_bytes();
        let [c, d] = tci.to_be_bytes();
        self.bytes.splice(12..12, [a, b, c, d]);
        if let Some(partial) = &mut self.offload.checksum {
            partial.start = partial.start.saturating_add(VLAN_TAG_BYTES as u16);
        }
    }
}

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// IP protocols.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 4.
    V4,
    /// 6.
    V6,
}

/// Where the parts of an IP packet are in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Version.
    pub version: Version,
    /// IP header.
    pub l3: usize,
    /// Protocol behind IP's headers.
    pub protocol: u8,
    /// What is behind IP's headers.
    pub l4: usize,
    /// End of the packet. Short frames are filled up behind it.
    pub end: usize,
    /// A fragment: behind IP's headers is no transport header, or not all of its packet.
    pub fragment: bool,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl Layout {
    /// `None`: it is no IP packet, or not a whole one. A length of 0 in IP's header means
    /// that the packet goes to the end of the frame, as in what is still to be segmented.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let mut l3 = ETHERNET_BYTES;
        let mut kind = be16(frame, 12)?;
        while matches!(kind, ethertype::VLAN | ethertype::SERVICE_VLAN) {
            kind = be16(frame, l3 + 2)?;
            l3 += VLAN_TAG_BYTES;
        }
        match kind {
            ethertype::IPV4 => Self::v4(frame, l3),
            ethertype::IPV6 => Self::v6(frame, l3),
            _ => None,
        }
    }

    fn v4(frame: &[u8], l3: usize) -> Option<Self> {
        let first = *frame.get(l3)?;
        let header = usize::from(first & 0xf) * 4;
        let total = match usize::from(be16(frame, l3 + 2)?) {
            0 => frame.len() - l3,
            total => total,
        };
        let fragment = be16(frame, l3 + 6)? & 0x3fff != 0;
        let protocol = *frame.get(l3 + 9)?;
        let good = first >> 4 == 4 && header >= 20 && total >= header && l3 + total <= frame.len();
        good.then_some(Self {
            version: Version::V4,
            l3,
            protocol,
            l4: l3 + header,
            end: l3 + total,
            fragment,
        })
    }

    fn v6(frame: &[u8], l3: usize) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;
        let mut l4 = l3 + 40;
        let end = match usize::from(be16(frame, l3 + 4)?) {
            0 => frame.len(),
            payload => l4 + payload,
        };
        if frame.get(l3)? >> 4 != 6 || end > frame.len() || l4 > end {
            return None;
        }
        let mut protocol = *frame.get(l3 + 6)?;
        let mut fragment = false;
        // Each round goes on by at least 8 bytes.
        loop {
            let next = *frame.get(l4).unwrap_or(&0);
            let size = usize::from(*frame.get(l4 + 1).unwrap_or(&0));
            let bytes = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => (size + 1) * 8,
                AUTHENTICATION => (size + 2) * 4,
                FRAGMENT => {
                    // Offset, or more fragments to come.
                    fragment |= be16(frame, l4 + 2)? & 0xfff9 != 0;
                    8
                }
                _ => break,
            };
            (protocol, l4) = (next, l4 + bytes);
            if l4 > end {
                return None;
            }
        }
        Some(Self { version: Version::V6, l3, protocol, l4, end, fragment })
    }

    /// Offset of the checksum in TCP's or UDP's header, where all of that header is there.
    #[must_use]
    pub fn checksum_offset(&self) -> Option<usize> {
        let (header, offset) = match self.protocol {
            protocol::TCP => (20, 16),
            protocol::UDP => (8, 6),
            _ => return None,
        };
        (!self.fragment && self.l4 + header <= self.end).then_some(offset)
    }

    /// Source and destination addresses, one behind the other.
    #[must_use]
    pub fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let range = match self.version {
            Version::V4 => self.l3 + 12..self.l3 + 20,
            Version::V6 => self.l3 + 8..self.l3 + 40,
        };
        frame.get(range).unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame with a TCP or UDP packet in it, its checksums zero.
    pub fn packet(version: Version, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        let header = if protocol == protocol::TCP { 20 } else { 8 };
        let length = (header + payload.len()) as u16;
        match version {
            Version::V4 => {
                frame.extend([0x08, 0, 0x45, 0]);
                frame.extend((length + 20).to_be_bytes());
                frame.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            }
            Version::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend((1..=32).collect::<Vec<u8>>());
            }
        }
        frame.extend([0x30, 0x39, 0, 80]);
        if protocol == protocol::TCP {
            frame.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
        } else {
            frame.extend(length.to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn addresses_are_read() {
        let mac: Mac = "00:15:5d:0A:02:03".parse().unwrap();
        assert_eq!((mac.0[3], mac.to_string().as_str()), (10, "00:15:5d:0a:02:03"));
        assert_eq!("00-15-5d-01-02-03".parse::<Mac>().unwrap().0[5], 3);
        for bad in ["", "00:15:5d:01:02", "01:15:5d:01:02:03", "00:00:00:00:00:00", "0:1:2:3:4:5"] {
            let error = bad.parse::<Mac>().unwrap_err().to_string();
            assert!(!error.contains('\n'), "{bad}");
        }
    }

    #[test]
    fn layouts() {
        let mut frame = packet(Version::V4, protocol::TCP, &[1; 10]);
        frame.resize(80, 0);
        let layout = Layout::of(&frame).unwrap();
        assert_eq!((layout.l3, layout.l4, layout.end), (14, 34, 64));
        assert_eq!((layout.checksum_offset(), layout.fragment), (Some(16), false));
        assert_eq!(layout.addresses(&frame), [10, 0, 0, 1, 10, 0, 0, 2]);
        frame[20] |= 0x20;
        assert_eq!(Layout::of(&frame).unwrap().checksum_offset(), None);
        frame[17] = 0xff;
        assert_eq!(Layout::of(&frame), None, "longer than its frame");

        let mut frame = packet(Version::V6, protocol::UDP, &[2; 3]);
        assert_eq!(Layout::of(&frame).unwrap().addresses(&frame)[31], 32);
        // A hop-by-hop header of 16 bytes, then a fragment header.
        frame.splice(54..54, [44, 1].into_iter().chain([0; 14]).chain([17, 0, 0, 1, 0, 0, 0, 0]));
        frame[20] = 0;
        frame[19] += 24;
        let layout = Layout::of(&frame).unwrap();
        assert_eq!((layout.protocol, layout.l4, layout.fragment), (17, 78, true));

        let mut tagged = Frame::plain(packet(Version::V6, protocol::UDP, &[2; 3]));
        tagged.offload.checksum = Some(Partial { start: 54, offset: 6 });
        let plain = tagged.clone();
        assert_eq!(tagged.take_vlan(), None);
        tagged.put_vlan(0x2005);
        assert_eq!(Layout::of(&tagged.bytes).unwrap().l4, 58);
        assert_eq!(tagged.offload.checksum.unwrap().start, 58);
        assert_eq!(tagged.take_vlan(), Some(0x2005));
        assert_eq!(tagged, plain);
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if bytes.len() > 15 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(layout) = Layout::of(&bytes) {
                prop_assert!(layout.l3 < layout.l4 && layout.l4 <= layout.end);
                prop_assert!(layout.end <= bytes.len());
                prop_assert!(!layout.addresses(&bytes).is_empty());
            }
            let mut frame = Frame::plain(bytes);
            frame.put_vlan(1);
            let _ = (frame.take_vlan(), frame.destination());
        }
    }
}
