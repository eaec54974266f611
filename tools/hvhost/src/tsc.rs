//! This machine's TSC.
#![allow(unsafe_code, reason = "RDTSC")]

use std::thread;
use std::time::{Duration, Instant};

/// How long the TSC is watched.
const WINDOW: Duration = Duration::from_millis(50);
/// Of so many readings the best counts: the others may have waited for a processor.
const TRIES: usize = 100;

/// Its value.
#[must_use]
pub fn now() -> u64 {
    // SAFETY: every processor that runs this has one.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Its rate in kHz, measured; right to some millionths, however busy the machine is.
#[must_use]
pub fn khz() -> u64 {
    let (begin, first) = reading();
    thread::sleep(WINDOW);
    let (end, last) = reading();
    let ns = end.duration_since(begin).as_nanos().max(1);
    (u128::from(last.wrapping_sub(first)) * 1_000_000 / ns) as u64
}

/// A moment, and the TSC's value then.
fn reading() -> (Instant, u64) {
    let tries = (0..TRIES).map(|_| {
        let before = Instant::now();
        let tsc = now();
        (before.elapsed(), before, tsc)
    });
    // There is more than none.
    tries
        .min_by_key(|(took, ..)| *took)
        .map_or_else(|| (Instant::now(), now()), |(_, at, tsc)| (at, tsc))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also while other threads want every processor.
    #[test]
    fn the_same_each_time() {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let end = Instant::now() + Duration::from_millis(600);
        let rates: Vec<u64> = thread::scope(|scope| {
            for _ in 0..2 * cpus {
                scope.spawn(|| while Instant::now() < end {});
            }
            (0..5).map(|_| khz()).collect()
        });
        let (least, most) = (rates.iter().min().unwrap(), rates.iter().max().unwrap());
        assert!(most - least < least / 1000, "{rates:?}");
    }
}
