//! `struct virtio_net_hdr_v1`, 12 bytes, little-endian: in front of each frame of a TAP
//! and of our own streams.
//!
//! ```text
//! flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 | num_buffers u16
//! ```

use crate::net::frame::{Frame, Layout, Offload, Partial, Version, protocol};

/// Bytes.
pub const VNET_BYTES: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
/// TCP flags, and the one that is for the first segment only.
const TCP_FLAGS: usize = 13;
const TCP_CWR: u8 = 0x80;

/// The header of a frame.
#[must_use]
pub fn encode(frame: &Frame) -> [u8; VNET_BYTES] {
    let mut header = [0; VNET_BYTES];
    let mut put = |at: usize, value: u16| {
        if let Some(to) = header.get_mut(at..at + 2) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    };
    put(10, 1);
    if let Some(partial) = frame.offload.checksum {
        put(6, partial.start);
        put(8, partial.offset);
    }
    let mut kind = GSO_NONE;
    if let (Some(size), Some(layout)) = (frame.offload.segment, Layout::of(&frame.bytes)) {
        kind = match layout.version {
            Version::V4 => GSO_TCPV4,
            Version::V6 => GSO_TCPV6,
        };
        if frame.bytes.get(layout.l4 + TCP_FLAGS).is_some_and(|flags| flags & TCP_CWR != 0) {
            kind |= GSO_ECN;
        }
        let words = frame.bytes.get(layout.l4 + 12).map_or(5, |byte| usize::from(byte >> 4));
        put(2, u16::try_from(layout.l4 + words * 4).unwrap_or(0));
        put(4, size);
    }
    let flags = match frame.offload {
        Offload { checksum: Some(_), .. } => NEEDS_CSUM,
        Offload { valid: true, .. } => DATA_VALID,
        _ => 0,
    };
    [header[0], header[1]] = [flags, kind];
    header
}

/// What a header says of its frame; `None`: nothing that could be done.
#[must_use]
pub fn decode(header: &[u8; VNET_BYTES], bytes: &[u8]) -> Option<Offload> {
    let [flags, kind, _, _, s0, s1, c0, c1, o0, o1, _, _] = *header;
    let (size, start) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([c0, c1]));
    let offset = u16::from_le_bytes([o0, o1]);
    let mut offload = Offload { valid: flags & DATA_VALID != 0, ..Offload::default() };
    if flags & NEEDS_CSUM != 0 {
        let field = usize::from(start).checked_add(offset.into())?;
        if field + 2 > bytes.len() {
            return None;
        }
        offload.checksum = Some(Partial { start, offset });
        offload.valid = false;
    }
    let version = match kind & !GSO_ECN {
        GSO_NONE => return Some(offload),
        GSO_TCPV4 => Version::V4,
        GSO_TCPV6 => Version::V6,
        _ => return None,
    };
    let layout = Layout::of(bytes)?;
    let good = layout.version == version
        && layout.protocol == protocol::TCP
        && layout.checksum_offset().is_some()
        && size != 0;
    offload.segment = Some(size);
    good.then_some(offload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::tests::packet;
    use proptest::prelude::*;

    #[test]
    fn headers_come_back() {
        for version in [Version::V4, Version::V6] {
            let bytes = packet(version, protocol::TCP, &[0; 3000]);
            let start = Layout::of(&bytes).unwrap().l4 as u16;
            let checksum = Some(Partial { start, offset: 16 });
            for offload in [
                Offload::default(),
                Offload { valid: true, ..Offload::default() },
                Offload { checksum, ..Offload::default() },
                Offload { checksum, segment: Some(1448), valid: false },
            ] {
                let frame = Frame { offload, bytes: bytes.clone() };
                assert_eq!(decode(&encode(&frame), &bytes), Some(offload));
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bytes = packet(Version::V4, protocol::UDP, &[0; 100]);
        let header = |kind, start| [1, kind, 0, 0, 100, 0, start, 0, 6, 0, 1, 0];
        assert!(decode(&header(0, 34), &bytes).is_some());
        assert!(decode(&header(GSO_TCPV4, 34), &bytes).is_none(), "UDP");
        assert!(decode(&header(GSO_TCPV6, 34), &bytes).is_none(), "IPv4");
        assert!(decode(&header(3, 34), &bytes).is_none(), "UFO");
        assert!(decode(&header(0, 255), &bytes).is_none(), "beyond");
    }

    proptest! {
        #[test]
        fn any_header(header: [u8; 12], bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            if let Some(offload) = decode(&header, &bytes) {
                let frame = Frame { offload, bytes };
                let _ = encode(&frame);
            }
        }
    }
}
