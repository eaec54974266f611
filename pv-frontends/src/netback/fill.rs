//! A received packet's bytes on their way into granted pages.

use core::sync::atomic::Ordering;

use translate::platform::{GuestMemory, PageWords};

use super::headers::{HEADER_BYTES, Headers, Sum, VLAN_ETHERTYPE};
use crate::net::{
    ETHERNET_HEADER_BYTES, Ip, RxCsum, RxPacket, RxPiece, Transport, VLAN_TAG_BYTES, copy_out,
};

/// Where a tag goes: behind the two addresses.
const TAG_AT: u32 = ETHERNET_HEADER_BYTES - 2;

/// Two bytes of a packet that are other than the host's.
#[derive(Clone, Copy, Debug)]
struct Patch {
    /// In the packet, its tag included.
    at: u32,
    bytes: [u8; 2],
}

/// A packet's bytes from some place on. The tag the host took out is put in again: there is no
/// other way to tell a frontend of it.
#[derive(Clone)]
pub(super) struct Source<'a, I> {
    pieces: I,
    piece: Option<RxPiece>,
    packet: &'a RxPacket<'a>,
    patches: [Option<Patch>; 2],
    /// Bytes given, of the packet as the guest sees it.
    at: u32,
    bytes: u32,
}

impl<'a, I: Iterator<Item = RxPiece> + Clone> Source<'a, I> {
    /// `csums` are as [`make_csum`] and [`make_ip_csum`] give them.
    pub(super) fn new(
        packet: &'a RxPacket<'a>,
        mut pieces: I,
        csums: [Option<(u16, u16)>; 2],
    ) -> Self {
        let tag = if packet.vlan.is_some() { VLAN_TAG_BYTES } else { 0 };
        Self {
            piece: pieces.next(),
            pieces,
            packet,
            patches: csums.map(|csum| {
                csum.map(|(at, value)| Patch {
                    at: u32::from(at) + tag,
                    bytes: value.to_be_bytes(),
                })
            }),
            at: 0,
            bytes: packet.bytes + tag,
        }
    }

    /// Bytes that are left.
    pub(super) const fn left(&self) -> u32 {
        self.bytes - self.at
    }

    /// Copies as much as there is room for behind `at`; how many bytes. Without a page they are
    /// left out.
    pub(super) fn fill<M: GuestMemory>(
        &mut self,
        plat: &M,
        page: Option<&PageWords>,
        at: u16,
    ) -> u16 {
        let room = (size_of::<PageWords>() as u32).saturating_sub(at.into());
        let count = room.min(self.left());
        let (from, to) = (self.at, self.at + count);
        while self.at < to {
            let place = usize::from(at) + (self.at - from) as usize;
            if self.packet.vlan.is_some() && (TAG_AT..TAG_AT + VLAN_TAG_BYTES).contains(&self.at) {
                self.tag_byte(page, place);
                continue;
            }
            let Some(piece) = self.piece.as_mut() else { break };
            // Up to the tag, where that is ahead.
            let most = match self.packet.vlan {
                Some(_) if self.at < TAG_AT => to.min(TAG_AT),
                _ => to,
            };
            let len = (most - self.at).min(piece.len.into());
            if let Some(page) = page {
                let source = (piece.page, usize::from(piece.offset));
                plat.copy_bytes((page, place), source, len as usize);
            }
            piece.offset += len as u16;
            piece.len -= len as u16;
            if piece.len == 0 {
                self.piece = self.pieces.next();
            }
            self.at += len;
        }
        let patched = self.patches.iter().flatten().flat_map(|patch| (patch.at..).zip(patch.bytes));
        for (place, byte) in patched.filter(|(place, _)| (from..to).contains(place)) {
            if let Some(page) = page {
                set_byte(page, usize::from(at) + (place - from) as usize, byte);
            }
        }
        count as u16
    }

    fn tag_byte(&mut self, page: Option<&PageWords>, place: usize) {
        let [high, low] = self.packet.vlan.unwrap_or(0).to_be_bytes();
        let tag = [VLAN_ETHERTYPE[0], VLAN_ETHERTYPE[1], high, low];
        if let (Some(page), Some(byte)) = (page, tag.get((self.at - TAG_AT) as usize)) {
            set_byte(page, place, *byte);
        }
        self.at += 1;
    }
}

fn set_byte(page: &PageWords, at: usize, byte: u8) {
    if let Some(word) = page.get(at / 8) {
        let shift = at % 8 * 8;
        let old = word.load(Ordering::Relaxed) & !(0xff << shift);
        word.store(old | u64::from(byte) << shift, Ordering::Relaxed);
    }
}

/// Version of IP of a packet, from its first bytes.
pub(super) fn ip_of(packet: &RxPacket<'_>) -> Option<Ip> {
    let mut bytes = [0; 64];
    let count = packet.copy(0, &mut bytes);
    Headers::parse(bytes.get(..count)?).map(|headers| headers.ip)
}

/// The checksum of a packet that was left to be done, where the frontend does not do it (by
/// version of IP; Linux' drops it where a VLAN tag is in front of that): its place in the packet as
/// the host gave it, and its value. `None` where there is nothing to do, or no telling what.
pub(super) fn make_csum(
    packet: &RxPacket<'_>,
    frontend_does: impl Fn(Ip) -> bool,
) -> Option<(u16, u16)> {
    if packet.csum != RxCsum::Partial {
        return None;
    }
    let mut bytes = [0; HEADER_BYTES];
    let count = packet.copy(0, &mut bytes);
    let found = Headers::parse(bytes.get(..count)?)?;
    let transport: Transport = found.transport?;
    let is_tagged = packet.vlan.is_some() || u32::from(found.l3) != ETHERNET_HEADER_BYTES;
    if frontend_does(found.ip) && !is_tagged {
        return None;
    }
    let at = found.csum_at()?;
    let (mut skip, mut left) = (u32::from(found.l4), found.l4_bytes);
    let mut sum = Sum::default();
    for piece in packet.pieces() {
        let dropped = skip.min(piece.len.into());
        skip -= dropped;
        let len = (u32::from(piece.len) - dropped).min(left);
        left -= len;
        let (mut from, end) =
            (u32::from(piece.offset) + dropped, u32::from(piece.offset) + dropped + len);
        while from < end {
            let mut chunk = [0; 64];
            let chunk = chunk.get_mut(..((end - from) as usize).min(64))?;
            copy_out(piece.page, from as usize, chunk);
            sum.add(chunk);
            from += chunk.len() as u32;
        }
    }
    Some((at, sum.checksum(transport)))
}

/// The checksum of an IPv4 header that does not have it: its place in the packet as the host gave
/// it, and its value. `None` where there is nothing to do, or no such header.
pub(super) fn make_ip_csum(packet: &RxPacket<'_>) -> Option<(u16, u16)> {
    if !packet.ip_csum_blank {
        return None;
    }
    let mut bytes = [0; HEADER_BYTES];
    let count = packet.copy(0, &mut bytes);
    Headers::parse(bytes.get(..count)?)?.ip_csum(bytes.get(..count)?)
}
