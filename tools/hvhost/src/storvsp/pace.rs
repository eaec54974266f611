//! A disk that takes its time: Hyper-V's limit of I/O a second (`MaximumIOPS`), in which each 8 KiB of a
//! transfer, or part of it, counts as one.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What counts as one.
const UNIT_BYTES: u64 = 8 << 10;

/// When a disk has time for the next transfer.
#[derive(Debug)]
pub struct Pace {
    unit: Duration,
    free: Mutex<Instant>,
}

impl Pace {
    /// So many units a second.
    #[must_use]
    pub fn new(iops: NonZeroU32) -> Self {
        Self { unit: Duration::from_secs(1) / iops.get(), free: Mutex::new(Instant::now()) }
    }

    /// Returns when the disk is done with a transfer that began at `begin`, one after the other.
    pub fn wait(&self, begin: Instant, bytes: u64) {
        let units = bytes.div_ceil(UNIT_BYTES).max(1);
        let time = self.unit.saturating_mul(u32::try_from(units).unwrap_or(u32::MAX));
        let done = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = begin.max(*free) + time;
            *free
        };
        thread::sleep(done.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_take_their_time() {
        let pace = Pace::new(NonZeroU32::new(1000).unwrap());
        let begin = Instant::now();
        // 1, 1 and 3 units, asked for at once.
        for bytes in [512, 8192, 8193 * 2] {
            pace.wait(begin, bytes);
        }
        assert!(begin.elapsed() >= Duration::from_millis(5));
        // It does not save up what it did not do.
        let later = Instant::now() + Duration::from_millis(20);
        pace.wait(later, 1);
        assert!(Instant::now() >= later + Duration::from_millis(1));
    }
}
