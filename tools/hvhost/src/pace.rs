//! Devices that take their time, one thing after the other.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// When a device has time for the next thing.
#[derive(Debug)]
pub struct Pace {
    unit: Duration,
    free: Mutex<Instant>,
}

impl Pace {
    /// So many units a second.
    #[must_use]
    pub fn new(units: NonZeroU32) -> Self {
        Self { unit: Duration::from_secs(1) / units.get(), free: Mutex::new(Instant::now()) }
    }

    /// Returns when the device is done with so many units, at least one, that began at `begin`.
    pub fn wait(&self, begin: Instant, units: u64) {
        let units = u32::try_from(units.max(1)).unwrap_or(u32::MAX);
        let time = self.unit.saturating_mul(units);
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
    fn units_take_their_time() {
        let pace = Pace::new(NonZeroU32::new(1000).unwrap());
        let begin = Instant::now();
        for units in [0, 1, 3] {
            pace.wait(begin, units);
        }
        assert!(begin.elapsed() >= Duration::from_millis(5));
        // It does not save up what it did not do.
        let later = Instant::now() + Duration::from_millis(20);
        pace.wait(later, 1);
        assert!(Instant::now() >= later + Duration::from_millis(1));
    }
}
