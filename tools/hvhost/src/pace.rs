//! Devices that take their time, one thing after the other.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// When a device has time for the next thing.
#[derive(Debug)]
pub struct Pace {
    unit: Duration,
    slack: Duration,
    free: Mutex<Instant>,
}

impl Pace {
    /// So many units a second. What it did not do in the last `slack` it may catch up on.
    #[must_use]
    pub fn new(units: NonZeroU32, slack: Duration) -> Self {
        let unit = Duration::from_secs(1) / units.get();
        Self { unit, slack, free: Mutex::new(Instant::now()) }
    }

    /// Returns when the device is done with so many units, at least one, that began at `begin`.
    pub fn wait(&self, begin: Instant, units: u64) {
        let units = u32::try_from(units.max(1)).unwrap_or(u32::MAX);
        let time = self.unit.saturating_mul(units);
        let done = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = begin.checked_sub(self.slack).unwrap_or(begin);
            *free = earliest.max(*free) + time;
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
        let thousand = NonZeroU32::new(1000).unwrap();
        let pace = Pace::new(thousand, Duration::ZERO);
        let begin = Instant::now();
        for units in [0, 1, 3] {
            pace.wait(begin, units);
        }
        assert!(begin.elapsed() >= Duration::from_millis(5));
        // It does not save up what it did not do.
        let later = Instant::now() + Duration::from_millis(20);
        pace.wait(later, 1);
        assert!(Instant::now() >= later + Duration::from_millis(1));

        let pace = Pace::new(thousand, Duration::from_secs(1));
        thread::sleep(Duration::from_millis(10));
        let begin = Instant::now();
        pace.wait(begin, 10);
        let free = *pace.free.lock().unwrap();
        assert!(free <= begin, "ten units are caught up on");
        pace.wait(begin, 1000);
        assert!(Instant::now() >= free + Duration::from_secs(1));
    }
}
