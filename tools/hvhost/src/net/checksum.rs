//! Internet checksums (RFC 1071) and TCP segmentation, for receivers that cannot be given
//! what is left undone.

use crate::net::frame::{Frame, Layout, Offload, Partial, Version, protocol};

const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Adds up 16-bit words, big-endian; an odd last byte is a high one.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let word = |w: &[u8]| w.try_into().map_or(0, u32::from_be_bytes);
    let mut total: u64 = words.map(|w| u64::from(word(w))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_be_bytes(last));
    total
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn put16(frame: &mut [u8], at: usize, value: u16) {
    if let Some(to) = frame.get_mut(at..at + 2) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}

fn put32(frame: &mut [u8], at: usize, value: u32) {
    if let Some(to) = frame.get_mut(at..at + 4) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}

/// The sum over TCP's and UDP's pseudo header, for `length` bytes behind IP's headers.
fn pseudo_sum(frame: &[u8], layout: &Layout, length: usize) -> u64 {
    sum(layout.addresses(frame)) + u64::from(layout.protocol) + length as u64
}

/// The checksum of an IPv4 header, written into it.
pub fn fill_ip_header(frame: &mut [u8], layout: &Layout) {
    if layout.version == Version::V4 {
        put16(frame, layout.l3 + 10, 0);
        let header = frame.get(layout.l3..layout.l4).unwrap_or_default();
        let value = !fold(sum(header));
        put16(frame, layout.l3 + 10, value);
    }
}

/// The checksum of a TCP or UDP packet, written into it. `false`: it has none.
pub fn fill_transport(frame: &mut [u8], layout: &Layout) -> bool {
    let Some(offset) = layout.checksum_offset() else { return false };
    put16(frame, layout.l4 + offset, 0);
    let covered = frame.get(layout.l4..layout.end).unwrap_or_default();
    let value = !fold(sum(covered) + pseudo_sum(frame, layout, layout.end - layout.l4));
    // A UDP checksum of 0 is none.
    let none = layout.protocol == protocol::UDP && value == 0;
    put16(frame, layout.l4 + offset, if none { 0xffff } else { value });
    true
}

/// Whether a TCP or UDP packet's checksum is right; `None`: it has none.
#[must_use]
pub fn transport_is_right(frame: &[u8], layout: &Layout) -> Option<bool> {
    let offset = layout.checksum_offset()?;
    let field = frame.get(layout.l4 + offset..layout.l4 + offset + 2)?;
    if layout.protocol == protocol::UDP && field == [0, 0] {
        return None;
    }
    let covered = frame.get(layout.l4..layout.end)?;
    Some(fold(sum(covered) + pseudo_sum(frame, layout, layout.end - layout.l4)) == 0xffff)
}

/// Whether an IPv4 header's checksum is right; that of IPv6, which has none, is.
#[must_use]
pub fn ip_header_is_right(frame: &[u8], layout: &Layout) -> bool {
    let header = frame.get(layout.l3..layout.l4).unwrap_or_default();
    layout.version == Version::V6 || fold(sum(header)) == 0xffff
}

/// Leaves a TCP or UDP checksum to be completed: its field gets the sum over the pseudo
/// header. `None`: it has none.
pub fn begin_transport(frame: &mut [u8], layout: &Layout) -> Option<Partial> {
    let offset = layout.checksum_offset()?;
    let value = fold(pseudo_sum(frame, layout, layout.end - layout.l4));
    put16(frame, layout.l4 + offset, value);
    Some(Partial { start: u16::try_from(layout.l4).ok()?, offset: offset as u16 })
}

/// Makes a TCP packet that is still to be segmented what it would be without an upper limit
/// of its length: lengths, and the checksum of IPv4. `None`: it is longer than IP allows.
pub fn begin_segmentation(frame: &mut [u8], layout: &Layout) -> Option<()> {
    match layout.version {
        Version::V4 => {
            put16(frame, layout.l3 + 2, u16::try_from(layout.end - layout.l3).ok()?);
            fill_ip_header(frame, layout);
        }
        Version::V6 => {
            put16(frame, layout.l3 + 4, u16::try_from(layout.end - layout.l3 - 40).ok()?);
        }
    }
    Some(())
}

/// Completes a checksum.
pub fn complete(frame: &mut Frame) {
    let Some(Partial { start, offset }) = frame.offload.checksum.take() else { return };
    let bytes = &mut frame.bytes;
    let layout = Layout::of(bytes).filter(|layout| layout.l4 == usize::from(start));
    if layout.is_none_or(|layout| !fill_transport(bytes, &layout)) {
        // Some other protocol: its field holds the sum to begin with.
        let covered = bytes.get(start.into()..).unwrap_or_default();
        let value = !fold(sum(covered));
        put16(bytes, usize::from(start) + usize::from(offset), value);
    }
    frame.offload.valid = true;
}

/// Cuts a frame into TCP segments with their checksums. `None`: there is no TCP in it.
#[must_use]
pub fn segments(frame: &Frame, size: u16) -> Option<Vec<Frame>> {
    let layout = Layout::of(&frame.bytes).filter(|l| l.protocol == protocol::TCP)?;
    layout.checksum_offset()?;
    let words = usize::from(frame.bytes.get(layout.l4 + 12)? >> 4);
    let header_end = layout.l4 + words * 4;
    let payload = frame.bytes.get(header_end..layout.end).filter(|_| words >= 5 && size != 0)?;
    let headers = frame.bytes.get(..header_end)?;
    let field = |at: usize, len: usize| -> Option<u32> {
        let bytes = headers.get(at..at + len)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    let sequence = field(layout.l4 + 4, 4)?;
    let identification = field(layout.l3 + 4, 2)? as u16;
    let flags = *headers.get(layout.l4 + TCP_FLAGS)?;
    // One without payload is a segment, too.
    let count = payload.len().div_ceil(size.into()).max(1);
    let mut list = Vec::with_capacity(count);
    for number in 0..count {
        let at = number * usize::from(size);
        let part = payload.get(at..payload.len().min(at + usize::from(size)))?;
        let mut bytes = Vec::with_capacity(header_end + part.len());
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(part);
        let here = Layout { end: bytes.len(), ..layout };
        if layout.version == Version::V4 {
            put16(&mut bytes, layout.l3 + 4, identification.wrapping_add(number as u16));
        }
        begin_segmentation(&mut bytes, &here)?;
        // Payloads are below 2^32.
        put32(&mut bytes, layout.l4 + 4, sequence.wrapping_add(at as u32));
        let mut own = flags;
        if number != 0 {
            own &= !CWR;
        }
        if number + 1 != count {
            own &= !(FIN | PSH);
        }
        *bytes.get_mut(layout.l4 + TCP_FLAGS)? = own;
        fill_transport(&mut bytes, &here);
        list.push(Frame { offload: Offload { valid: true, ..Offload::default() }, bytes });
    }
    Some(list)
}

/// What a receiver can be left to do itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Complete checksums.
    pub checksum: bool,
    /// Cut into segments.
    pub segment: bool,
}

impl Takes {
    /// Frames as they are on the wire.
    pub const NOTHING: Self = Self { checksum: false, segment: false };
    /// All a virtio-net header can say.
    pub const ALL: Self = Self { checksum: true, segment: true };
}

/// Does what `takes` does not, and gives each frame that results. `None`: it cannot be done.
pub fn reduce(mut frame: Frame, takes: Takes, mut each: impl FnMut(Frame)) -> Option<()> {
    match frame.offload.segment {
        Some(size) if !takes.segment => segments(&frame, size)?.into_iter().for_each(each),
        _ => {
            if !takes.checksum {
                complete(&mut frame);
            }
            each(frame);
        }
    }
    Some(())
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
