//! Packets to be segmented that are longer than the host takes.
//!
//! A frontend is not told of a limit and sends 64 KiB at a time; hosts take 62 780 bytes. Such a
//! packet goes in pieces, each of whole segments and each a packet to be segmented of its own: its
//! headers are in its slot, its payload where it is. The pages are the sender's again when the host has
//! done with all of them.

use super::frame::Limits;
use crate::net::{Ip, TxOffloads, TxPacket, TxRefusal};

/// Most pieces of a packet.
const MAX_PIECES: u32 = 8;
/// Least segments for which there must be room: so no piece has fewer than two, which hosts want.
const MIN_SEGMENTS: u32 = 3;
/// Least bytes that a host must take for segmentation to be of use: those segments, of any MTU there
/// is, and their headers.
const MIN_BYTES: u32 = (MIN_SEGMENTS + 1) * 9000;

/// Most bytes of an IP packet.
const MAX_IP_BYTES: u32 = 65_535;

/// How a packet is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    mss: u32,
    payload: u32,
    segments: u32,
    pieces: u32,
}

/// A piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Where it begins in the payload.
    pub begin: u32,
    /// Bytes of payload.
    pub bytes: u32,
    /// Segments before it.
    pub segments_before: u32,
    pub is_first: bool,
    pub is_last: bool,
}

/// Most bytes behind the Ethernet header that the host cuts up; 0: it does not.
pub(super) const fn most(tx: &TxOffloads, ip: Ip) -> u32 {
    match ip {
        Ip::V4 => tx.gso_v4_bytes,
        Ip::V6 => tx.gso_v6_bytes,
    }
}

/// What the host does, without what is of no use.
pub(super) fn useful(host: TxOffloads) -> TxOffloads {
    let useful = |bytes: u32| if bytes >= MIN_BYTES { bytes } else { 0 };
    let (v4, v6) = (useful(host.gso_v4_bytes), useful(host.gso_v6_bytes));
    TxOffloads { gso_v4_bytes: v4, gso_v6_bytes: v6, ..host }
}

/// What a sender may ask for where the host does this.
pub(super) fn offered(host: TxOffloads) -> TxOffloads {
    let any = |bytes: u32| if bytes == 0 { 0 } else { MAX_IP_BYTES };
    let (v4, v6) = (any(host.gso_v4_bytes), any(host.gso_v6_bytes));
    TxOffloads { gso_v4_bytes: v4, gso_v6_bytes: v6, ..host }
}

impl Cuts {
    /// How a packet of `bytes` is divided whose headers are its first `headers`, if it is longer than
    /// the host takes.
    ///
    /// # Errors
    /// Its segments are too large.
    pub(super) fn of(
        packet: &TxPacket<'_>,
        limits: &Limits,
        (ip, l3): (Ip, u16),
        headers: u32,
        bytes: u32,
    ) -> Result<Option<Self>, TxRefusal> {
        let most = most(&limits.tx, ip);
        let l3 = u32::from(l3);
        if bytes - l3 <= most {
            return Ok(None);
        }
        let mss = packet.gso.map_or(0, |gso| u32::from(gso.mss));
        let room = most.saturating_sub(headers - l3).checked_div(mss).unwrap_or(0);
        let payload = bytes - headers;
        let segments = payload.div_ceil(mss.max(1));
        let pieces = segments.div_ceil(room.max(1));
        if room < MIN_SEGMENTS || pieces > MAX_PIECES {
            return Err(TxRefusal::Size);
        }
        Ok(Some(Self { mss, payload, segments, pieces }))
    }

    /// How many pieces there are.
    pub(super) const fn count(&self) -> u32 {
        self.pieces
    }

    /// The pieces, as equal as they can be.
    pub(super) fn each(self) -> impl Iterator<Item = Cut> {
        let (each, more) = (self.segments / self.pieces, self.segments % self.pieces);
        (0..self.pieces).map(move |nr| {
            let segments_before = nr * each + nr.min(more);
            let segments = each + u32::from(nr < more);
            let begin = segments_before * self.mss;
            let bytes = (segments * self.mss).min(self.payload - begin);
            let is_last = nr + 1 == self.pieces;
            Cut { begin, bytes, segments_before, is_first: nr == 0, is_last }
        })
    }
}

impl Cut {
    /// Makes of the whole packet's headers those of the piece.
    pub(super) fn change(&self, headers: &mut [u8], ip: Ip, l3: usize, l4: usize) -> Option<()> {
        if ip == Ip::V4 {
            let id = headers.get_mut(l3 + 4..)?.first_chunk_mut()?;
            *id = u16::from_be_bytes(*id).wrapping_add(self.segments_before as u16).to_be_bytes();
        }
        let sequence = headers.get_mut(l4 + 4..)?.first_chunk_mut()?;
        *sequence = u32::from_be_bytes(*sequence).wrapping_add(self.begin).to_be_bytes();
        let flags = headers.get_mut(l4 + 13)?;
        if !self.is_last {
            *flags &= !(FIN | PSH);
        }
        if !self.is_first {
            *flags &= !CWR;
        }
        Some(())
    }
}

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 0x80;

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::net::{Gso, TxCsum};

    fn limits(most: u32) -> Limits {
        let tx = TxOffloads { gso_v4_bytes: most, gso_v6_bytes: most, ..TxOffloads::default() };
        Limits { mtu: 1500, tx }
    }

    fn cuts(most: u32, mss: u16, headers: u32, bytes: u32) -> Result<Option<Cuts>, TxRefusal> {
        let gso = Some(Gso { mss });
        let packet = TxPacket { fragments: &[], csum: TxCsum::None, gso, vlan: None, hash: None };
        Cuts::of(&packet, &limits(most), (Ip::V4, 14), headers, bytes)
    }

    #[test]
    fn what_fits_is_not_cut() {
        assert!(cuts(62_780, 1448, 66, 62_794).expect("sound").is_none());
        let cut: Vec<_> =
            cuts(62_780, 1448, 66, 62_795).expect("sound").expect("too long").each().collect();
        let first =
            Cut { begin: 0, bytes: 22 * 1448, segments_before: 0, is_first: true, is_last: false };
        let rest = Cut {
            begin: first.bytes,
            bytes: 62_795 - 66 - first.bytes,
            segments_before: 22,
            is_first: false,
            is_last: true,
        };
        assert_eq!(cut, [first, rest]);
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() {
        for (most, mss) in [(62_780, 0), (62_780, 20_910), (20_000, 9000), (8_000, 1448)] {
            assert_eq!(cuts(most, mss, 66, 65_535).err(), Some(TxRefusal::Size), "{most} {mss}");
        }
    }

    #[test]
    fn hosts_that_take_little_are_not_asked() {
        let all = limits(62_780).tx;
        assert_eq!(useful(all), all);
        assert_eq!(useful(limits(35_999).tx), limits(0).tx);
        assert_eq!(offered(all), limits(65_535).tx);
        assert_eq!(offered(limits(0).tx), limits(0).tx);
    }

    proptest! {
        #[test]
        fn pieces_are_whole_segments_that_fit(
            most in MIN_BYTES..65_600,
            mss in 1_u16..9000,
            headers in 54_u32..200,
            bytes in MIN_BYTES..=65_535,
        ) {
            match cuts(most, mss, headers, bytes) {
                Ok(Some(cuts)) => {
                    let (mut at, mut segments) = (0, 0);
                    let count = cuts.count();
                    for (nr, cut) in (1..).zip(cuts.each()) {
                        prop_assert_eq!((cut.begin, cut.segments_before), (at, segments));
                        prop_assert_eq!((cut.is_first, cut.is_last), (nr == 1, nr == count));
                        prop_assert!(cut.bytes > u32::from(mss), "two segments at least");
                        prop_assert!(headers - 14 + cut.bytes <= most);
                        at += cut.bytes;
                        segments += cut.bytes.div_ceil(mss.into());
                        prop_assert!(cut.is_last || cut.bytes % u32::from(mss) == 0);
                    }
                    prop_assert_eq!(at, bytes - headers);
                }
                Ok(None) => prop_assert!(bytes - 14 <= most),
                Err(error) => prop_assert!(false, "{error:?}"),
            }
        }
    }
}
