//! A switch that takes its time: so many packets a second in each direction, and no more.

use crate::net::frame::{ETHERNET_BYTES, Frame};
use crate::net::{Backend, Sent, Takes};
use crate::pace::Pace;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the switch may catch up on: whoever sleeps wakes late.
const SLACK: Duration = Duration::from_millis(5);
/// What every segment of a frame has of its own: Ethernet, IPv4 and TCP without options.
const HEADER_BYTES: usize = ETHERNET_BYTES + 40;

/// A back end with such a switch in front.
pub struct Paced {
    backend: Arc<dyn Backend>,
    sending: Pace,
    receiving: Pace,
}

impl Paced {
    /// So many packets a second.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, pps: NonZeroU32) -> Self {
        Self { backend, sending: Pace::new(pps, SLACK), receiving: Pace::new(pps, SLACK) }
    }
}

/// Packets that a frame is on the wire.
fn packets(frame: &Frame) -> u64 {
    let segment = frame.offload.segment.filter(|&bytes| bytes != 0).map_or(usize::MAX, usize::from);
    frame.bytes.len().saturating_sub(HEADER_BYTES).div_ceil(segment) as u64
}

impl Backend for Paced {
    fn takes(&self) -> Takes {
        self.backend.takes()
    }

    fn send(&self, frame: &Frame) -> io::Result<Sent> {
        self.sending.wait(Instant::now(), packets(frame));
        self.backend.send(frame)
    }

    fn receive(&self, frame: &mut Frame) -> io::Result<bool> {
        let is_there = self.backend.receive(frame)?;
        if is_there {
            self.receiving.wait(Instant::now(), packets(frame));
        }
        Ok(is_there)
    }

    fn stop(&self) {
        self.backend.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::Offload;

    #[test]
    fn frames_are_packets() {
        let frame = |bytes: usize, segment| Frame {
            offload: Offload { segment, ..Offload::default() },
            bytes: vec![0; bytes],
        };
        assert_eq!(packets(&frame(1514, None)), 1);
        assert_eq!(packets(&frame(54 + 1460 * 3, Some(1460))), 3);
        assert_eq!(packets(&frame(54 + 1460 * 3 + 1, Some(1460))), 4);
        // Nonsense is a packet, too: `Pace` counts at least one.
        assert_eq!(packets(&frame(10, Some(0))), 0);
    }
}
