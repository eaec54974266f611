//! Counters of a network adapter.

use crate::net::Mac;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Frames and their bytes.
#[derive(Debug, Default)]
pub struct Count {
    /// Frames.
    pub frames: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
}

/// One direction, by who frames are for.
#[derive(Debug, Default)]
pub struct Traffic {
    /// To one.
    pub directed: Count,
    /// To groups.
    pub multicast: Count,
    /// To all.
    pub broadcast: Count,
}

impl Traffic {
    /// Counts a frame.
    pub fn frame(&self, destination: Mac, bytes: usize) {
        let count = match destination {
            Mac::BROADCAST => &self.broadcast,
            mac if mac.is_multicast() => &self.multicast,
            _ => &self.directed,
        };
        count.frames.fetch_add(1, Relaxed);
        count.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn sum(&self, of: impl Fn(&Count) -> &AtomicU64) -> u64 {
        [&self.directed, &self.multicast, &self.broadcast].iter().map(|c| of(c).load(Relaxed)).sum()
    }

    /// All frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.sum(|count| &count.frames)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sum(|count| &count.bytes)
    }
}

/// Counters of an adapter, kept over closing, opening and offering it again.
#[derive(Debug, Default)]
pub struct NicCounters {
    /// What the guest sent, as it sent it: before it was cut into segments.
    pub sent: Traffic,
    /// What the guest was given.
    pub received: Traffic,
    /// Frames sent with a checksum left to be completed.
    pub sent_checksum: AtomicU64,
    /// Frames sent to be cut into segments.
    pub sent_large: AtomicU64,
    /// Frames of the guest that nobody took.
    pub sent_dropped: AtomicU64,
    /// Frames of the guest that made no sense.
    pub sent_malformed: AtomicU64,
    /// Frames not for this guest.
    pub filtered: AtomicU64,
    /// Frames longer than the guest's MTU allows, or that could not be made sense of.
    pub unfit: AtomicU64,
    /// Frames for which the guest had no room in its receive buffer or ring in time.
    pub no_room: AtomicU64,
    /// RNDIS control messages.
    pub control: AtomicU64,
}

/// JSON form of [`NicCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of `NicCounters`")]
pub struct NicReport {
    pub sent_frames: u64,
    pub sent_bytes: u64,
    pub received_frames: u64,
    pub received_bytes: u64,
    pub sent_checksum: u64,
    pub sent_large: u64,
    pub sent_dropped: u64,
    pub sent_malformed: u64,
    pub filtered: u64,
    pub unfit: u64,
    pub no_room: u64,
    pub control: u64,
}

impl NicCounters {
    /// Values as they stand.
    #[must_use]
    pub fn report(&self) -> NicReport {
        let get = |value: &AtomicU64| value.load(Relaxed);
        NicReport {
            sent_frames: self.sent.frames(),
            sent_bytes: self.sent.bytes(),
            received_frames: self.received.frames(),
            received_bytes: self.received.bytes(),
            sent_checksum: get(&self.sent_checksum),
            sent_large: get(&self.sent_large),
            sent_dropped: get(&self.sent_dropped),
            sent_malformed: get(&self.sent_malformed),
            filtered: get(&self.filtered),
            unfit: get(&self.unfit),
            no_room: get(&self.no_room),
            control: get(&self.control),
        }
    }
}
