//! Whether the TSC still runs at the rate the guest was told, on a host that does not vouch for it: a
//! virtual machine may be moved to a processor of another rate while it runs.
//!
//! The host's reference counter goes on at its own rate whatever the TSC does, and says how far time
//! has come. Where the host states the TSC's rate, that is believed; otherwise it is measured from one
//! look to the next. What was told the guest until the change is noticed cannot be taken back: its time
//! goes on from there, and only forward.

use super::scale::{mul_shift_hz, tsc_to_ns};
use crate::platform::TscScale;

/// Units of the reference counter in a second.
const REFERENCE_HZ: u64 = 10_000_000;
const PER_MILLION: u64 = 1_000_000;
/// A rate below this is not one of a TSC.
const LEAST_HZ: u64 = 1_000_000;
/// Time that is behind the host's by less stays so: nobody is helped by many small steps.
const BEHIND_NS: u64 = 1_000_000;

/// What the host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// TSC before the counter was read.
    pub before: u64,
    /// TSC after the counter was read.
    pub after: u64,
    /// Reference counter, in 100 ns.
    pub reference: u64,
    /// The TSC's rate, if the host states it.
    pub hz: Option<u64>,
}

/// The rate the guest was told.
#[derive(Debug)]
pub struct Rate {
    hz: u64,
    /// Reference counter at system time 0.
    origin: u64,
    last: Reading,
}

impl Rate {
    /// System time began with `first`, at `hz`.
    #[must_use]
    pub const fn new(hz: u64, first: Reading) -> Self {
        Self { hz, origin: first.reference, last: first }
    }

    /// The conversion from now on, if the present one is no longer right.
    pub fn look(&mut self, present: &TscScale, now: Reading) -> Option<TscScale> {
        let stated = now.hz.filter(|hz| *hz >= LEAST_HZ);
        let (hz, tolerance) = match stated {
            // The page and the MSR may round differently.
            Some(hz) => (hz, 1),
            None => measured(&self.last, &now).unwrap_or((self.hz, 1)),
        };
        self.last = now;
        let allowed = u128::from(self.hz) * u128::from(tolerance) / u128::from(PER_MILLION);
        let changed = u128::from(hz.abs_diff(self.hz)) > allowed;
        let told = tsc_to_ns(present, now.after);
        let true_ns = now.reference.saturating_sub(self.origin).saturating_mul(100);
        if !changed && true_ns.saturating_sub(told) < BEHIND_NS {
            return None;
        }
        let (mul, shift) = if changed { mul_shift_hz(hz) } else { (present.mul, present.shift) };
        let khz = if changed { u32::try_from(hz / 1000).unwrap_or(u32::MAX) } else { present.khz };
        if changed {
            self.hz = hz;
        }
        let system_time_ns = told.max(true_ns);
        Some(TscScale { tsc_timestamp: now.after, system_time_ns, mul, shift, khz, ..*present })
    }
}

/// The rate between two readings, and how much of it is uncertain, in millionths; `None` where they say
/// nothing of it.
fn measured(first: &Reading, last: &Reading) -> Option<(u64, u64)> {
    let time = last.reference.checked_sub(first.reference).filter(|time| *time != 0)?;
    let ticks = last.after.checked_sub(first.after)?;
    let hz = u128::from(ticks) * u128::from(REFERENCE_HZ) / u128::from(time);
    // When the counter had its value is not known better than this.
    let took = |reading: &Reading| u128::from(reading.after.saturating_sub(reading.before));
    let unsure = took(last) + took(first);
    let parts = unsure * u128::from(PER_MILLION) / u128::from(ticks.max(1));
    let hz = u64::try_from(hz).ok().filter(|hz| *hz >= LEAST_HZ)?;
    Some((hz, u64::try_from(parts).unwrap_or(u64::MAX).saturating_add(100)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::scale::tsc_scale;
    use super::*;

    const GHZ: u64 = 1_000_000_000;

    /// A host, whose counter takes so many ticks to be read.
    struct World {
        tsc: u64,
        time_ns: u64,
        hz: u64,
        slow: u64,
        states: bool,
    }

    impl World {
        fn new(hz: u64, slow: u64, states: bool) -> Self {
            Self { tsc: 1 << 40, time_ns: 77 * GHZ, hz, slow, states }
        }
        fn pass(&mut self, ns: u64) {
            self.time_ns += ns;
            self.tsc += (u128::from(ns) * u128::from(self.hz) / u128::from(GHZ)) as u64;
        }
        fn read(&mut self) -> Reading {
            let before = self.tsc;
            let half = (u128::from(self.slow) * u128::from(GHZ) / u128::from(self.hz)) as u64 / 2;
            self.pass(half);
            let reference = self.time_ns / 100;
            self.pass(half);
            Reading { before, after: self.tsc, reference, hz: self.states.then_some(self.hz) }
        }
    }

    fn begin(world: &mut World) -> (Rate, TscScale) {
        let first = world.read();
        let scale = tsc_scale((world.hz / 1000) as u32, first.after, 0, true);
        (Rate::new(world.hz, first), scale)
    }

    #[test]
    fn nothing_changes() {
        for states in [true, false] {
            let mut world = World::new(3 * GHZ, 6000, states);
            let (mut rate, scale) = begin(&mut world);
            for second in 0..100 {
                world.pass(GHZ + second * 1_000_003);
                assert_eq!(rate.look(&scale, world.read()), None);
            }
        }
    }

    #[test]
    fn a_faster_host_and_a_slower_one() {
        for (states, to) in [(true, 4 * GHZ), (true, 2 * GHZ), (false, 4 * GHZ), (false, 2 * GHZ)] {
            let mut world = World::new(3 * GHZ, 6000, states);
            let (mut rate, mut scale) = begin(&mut world);
            let start = world.time_ns;
            for _ in 0..10 {
                world.pass(GHZ);
                assert_eq!(rate.look(&scale, world.read()), None);
            }
            world.hz = to;
            let mut last = 0;
            for _ in 0..5 {
                world.pass(GHZ);
                let now = world.read();
                assert!(tsc_to_ns(&scale, now.after) >= last);
                if let Some(new) = rate.look(&scale, now) {
                    assert!(new.stable, "what else is said stays");
                    assert!(tsc_to_ns(&new, now.after) >= tsc_to_ns(&scale, now.after));
                    scale = new;
                }
                last = tsc_to_ns(&scale, now.after);
            }
            // Too fast for the second until it was noticed, if at all, and right from then on.
            let ahead = last.cast_signed() - (world.time_ns - start).cast_signed();
            let most = if to > 3 * GHZ { GHZ / 3 + 1_000_000 } else { 1_000_000 };
            assert!((-1_000_000..=most.cast_signed()).contains(&ahead), "{states} {to}: {ahead}");
            let begin = tsc_to_ns(&scale, world.tsc);
            world.pass(GHZ);
            let second = tsc_to_ns(&scale, world.tsc) - begin;
            assert!(second.abs_diff(GHZ) < 200_000, "{states} {to}: {second}");
        }
    }

    #[test]
    fn a_tsc_that_jumps() {
        // Back, or not far enough: the machine was saved, and its TSC began anew.
        let mut world = World::new(GHZ, 0, true);
        let (mut rate, scale) = begin(&mut world);
        world.pass(50 * GHZ);
        world.tsc = 5;
        world.pass(GHZ);
        let now = world.read();
        let new = rate.look(&scale, now).unwrap();
        assert_eq!((new.tsc_timestamp, new.system_time_ns), (now.after, 51 * GHZ));
        assert_eq!((new.mul, new.shift), (scale.mul, scale.shift));
        world.pass(GHZ);
        assert_eq!(rate.look(&new, world.read()), None);
    }

    proptest! {
        /// Whatever the host says, time does not go back.
        #[test]
        fn any_host(readings in prop::collection::vec(
            (any::<u64>(), any::<u64>(), any::<u64>(), prop::option::of(any::<u64>())), 1..20)
        ) {
            let read = |&(before, after, reference, hz)| Reading { before, after, reference, hz };
            let first = read(&readings[0]);
            let mut rate = Rate::new(first.hz.unwrap_or(0), first);
            let mut scale = tsc_scale(1_000_000, first.after, 0, true);
            for now in readings.iter().map(read) {
                let told = tsc_to_ns(&scale, now.after);
                if let Some(new) = rate.look(&scale, now) {
                    prop_assert!(tsc_to_ns(&new, now.after) >= told);
                    scale = new;
                }
            }
        }
    }
}
