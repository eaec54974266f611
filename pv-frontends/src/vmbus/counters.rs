//! What went wrong, counted.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::Hypervisor;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Messages too short for their type, or with values that cannot be.
    Malformed,
    /// Messages of a type that is unknown or never sent to guests.
    UnknownType,
    /// Messages that answer nothing, or come in the wrong state.
    Unexpected,
    /// Messages about channels that are not offered.
    UnknownChannel,
    /// Messages the host had no room for; they are posted again.
    PostRetry,
    /// Messages the host refused for good.
    PostFailed,
    /// Signals the host refused.
    SignalFailed,
    /// Rings found corrupt.
    RingCorrupt,
    /// Requests to the host that were not answered in time.
    TimedOut,
}

const COUNTERS: usize = Counter::TimedOut as usize + 1;

/// All of them.
#[derive(Debug, Default)]
pub struct Counters {
    values: [AtomicU64; COUNTERS],
}

impl Counters {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self { values: [const { AtomicU64::new(0) }; COUNTERS] }
    }

    /// How many.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// One more; logged when the count is a power of two, so that a host that goes on and on does
    /// not fill the log.
    pub(super) fn add<H: Hypervisor>(&self, hv: &H, counter: Counter, what: fmt::Arguments<'_>) {
        let count = self.values[counter as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            hv.log(format_args!("vmbus: {counter:?} ({count}): {what}"));
        }
    }
}
