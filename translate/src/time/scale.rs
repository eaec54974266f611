//! From TSC ticks to nanoseconds and back, in the arithmetic a guest uses, so that guest and
//! shim agree to the nanosecond on when a deadline is.
//!
//! `ns = ((ticks << shift) * mul) >> 32`, right shift where `shift` is negative; the shifted
//! ticks have 64 bits, the product 96 (`xen.h`, `struct vcpu_time_info`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::platform::TscScale;

const NS_PER_S: u128 = 1_000_000_000;

/// Multiplier and shift for a frequency in Hz; 0 counts as 1 Hz. Give it the best frequency
/// there is: a rounding to kHz can be 0.1 ms in ten minutes.
///
/// The shift brings a tick to between half a nanosecond and one, so that `mul` uses all its 32
/// bits: rounded it is off by at most one part in 2^32, 0.14 us in ten minutes.
#[must_use]
pub const fn mul_shift_hz(hz: u64) -> (u32, i8) {
    let hz = if hz == 0 { 1 } else { hz as u128 };
    // mul = 10^9 * 2^(32 - shift) / hz. Find the shift that puts it between 2^31 and 2^32.
    let mut shift: i8 = 0;
    while hz << shift <= NS_PER_S {
        shift += 1;
    }
    while shift <= 0 && hz > NS_PER_S << (1 - shift) {
        shift -= 1;
    }
    let (dividend, divisor) =
        if shift >= 0 { (NS_PER_S << 32, hz << shift) } else { (NS_PER_S << (32 - shift), hz) };
    let mul = (dividend + divisor / 2) / divisor;
    // A frequency a hair above a power of two times 1 GHz rounds up to 2^32.
    (if mul > u32::MAX as u128 { u32::MAX } else { mul as u32 }, shift)
}

/// [`mul_shift_hz`] for a frequency in kHz.
#[must_use]
pub const fn mul_shift(khz: u32) -> (u32, i8) {
    mul_shift_hz(if khz == 0 { 1 } else { khz as u64 } * 1000)
}

/// The conversion for a TSC of `khz` that shows `system_time_ns` at `tsc_timestamp`.
#[must_use]
pub const fn tsc_scale(
    khz: u32,
    tsc_timestamp: u64,
    system_time_ns: u64,
    stable: bool,
) -> TscScale {
    let (mul, shift) = mul_shift(khz);
    TscScale { tsc_timestamp, system_time_ns, mul, shift, khz, stable, invariant: false }
}

/// Nanoseconds of a number of ticks, as a guest computes them.
#[inline]
#[must_use]
pub const fn ticks_to_ns(mul: u32, shift: i8, ticks: u64) -> u64 {
    let shifted = if shift >= 0 {
        ticks.wrapping_shl(shift as u32)
    } else {
        ticks.wrapping_shr(shift.unsigned_abs() as u32)
    };
    ((shifted as u128 * mul as u128) >> 32) as u64
}

/// System time at a TSC value. A TSC before the time stamp gives the stamp's time: another
/// processor may have taken the stamp a moment ago.
#[inline]
#[must_use]
pub const fn tsc_to_ns(scale: &TscScale, tsc: u64) -> u64 {
    let ticks = tsc.saturating_sub(scale.tsc_timestamp);
    scale.system_time_ns.wrapping_add(ticks_to_ns(scale.mul, scale.shift, ticks))
}

/// The first TSC value at which system time is at least `ns` (for a TSC deadline); `u64::MAX`
/// where that is out of reach.
#[must_use]
pub const fn ns_to_tsc(scale: &TscScale, ns: u64) -> u64 {
    let ns = ns.saturating_sub(scale.system_time_ns);
    if ns == 0 || scale.mul == 0 {
        return scale.tsc_timestamp;
    }
    // Smallest shifted tick count with count * mul >= ns << 32.
    let shifted = ((ns as u128) << 32).div_ceil(scale.mul as u128);
    let ticks = if scale.shift >= 0 {
        // Smallest tick count that is at least `shifted` when shifted up.
        let unit = 1u128 << (scale.shift as u32 & 63);
        shifted.div_ceil(unit)
    } else {
        let down = scale.shift.unsigned_abs() as u32 & 63;
        if shifted > u64::MAX as u128 >> down {
            return u64::MAX;
        }
        shifted << down
    };
    if ticks > u64::MAX as u128 {
        u64::MAX
    } else {
        scale.tsc_timestamp.saturating_add(ticks as u64)
    }
}

/// A conversion that everybody reads and one changes, hardly ever.
///
/// Of two places one is written while the other is read, so that a reader never waits for a writer: not
/// even one that has interrupted it.
#[derive(Debug, Default)]
pub struct SharedScale {
    /// Changes until now; its lowest bit says which place is read.
    version: AtomicU32,
    places: [[AtomicU64; 4]; 2],
}

impl SharedScale {
    /// One in which time stands still at 0.
    #[must_use]
    pub const fn new() -> Self {
        Self { version: AtomicU32::new(0), places: [const { [const { AtomicU64::new(0) }; 4] }; 2] }
    }

    /// How often it was changed; wraps.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The present conversion.
    #[inline]
    #[must_use]
    pub fn load(&self) -> TscScale {
        loop {
            let version = self.version();
            let [tsc, ns, rate, flags] = &self.places[version as usize & 1];
            let [tsc_timestamp, system_time_ns, rate, flags] =
                [tsc, ns, rate, flags].map(|word| word.load(Ordering::Relaxed));
            // The second look at the version comes after the words. Only after it has gone on is this
            // place written again.
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return TscScale {
                    tsc_timestamp,
                    system_time_ns,
                    mul: rate as u32,
                    khz: (rate >> 32) as u32,
                    shift: flags as u8 as i8,
                    stable: flags & STABLE != 0,
                    invariant: flags & INVARIANT != 0,
                };
            }
        }
    }

    /// Changes it; one at a time.
    pub fn store(&self, scale: &TscScale) {
        let next = self.version.load(Ordering::Relaxed).wrapping_add(1);
        let flag = |is: bool, bit| if is { bit } else { 0 };
        let words = [
            scale.tsc_timestamp,
            scale.system_time_ns,
            u64::from(scale.khz) << 32 | u64::from(scale.mul),
            u64::from(scale.shift.cast_unsigned())
                | flag(scale.stable, STABLE)
                | flag(scale.invariant, INVARIANT),
        ];
        // Whoever reads one of these words also sees the version that came before them.
        fence(Ordering::Release);
        for (place, word) in self.places[next as usize & 1].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.version.store(next, Ordering::Release);
    }
}

const STABLE: u64 = 1 << 8;
const INVARIANT: u64 = 1 << 9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shared_by_threads() {
        let shared = SharedScale::new();
        assert_eq!(tsc_to_ns(&shared.load(), u64::MAX), 0, "stands still");
        let scale = |n: u32| TscScale {
            tsc_timestamp: n.into(),
            system_time_ns: u64::from(n) << 9,
            mul: !n,
            shift: -((n % 7) as i8),
            khz: n,
            stable: n.is_multiple_of(2),
            invariant: n.is_multiple_of(3),
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < 20_000 {
                        let seen = shared.load();
                        assert!(seen.khz >= last, "an old one");
                        last = seen.khz;
                        assert!(last == 0 || seen == scale(last), "of two");
                    }
                });
            }
            for n in 1..=20_000 {
                shared.store(&scale(n));
            }
        });
        assert_eq!(shared.version(), 20_000);
    }

    /// Ten minutes.
    const RUN_S: u128 = 600;

    #[test]
    fn known_frequencies() {
        assert_eq!(mul_shift(1_000_000), (0x8000_0000, 1));
        assert_eq!(mul_shift(2_000_000), (0x8000_0000, 0));
        assert_eq!(mul_shift(4_000_000), (0x8000_0000, -1));
        assert_eq!(mul_shift(3_000_000), (0xaaaa_aaab, -1));
        assert_eq!(mul_shift(0), mul_shift(1));
        assert_eq!(mul_shift(2_500_000), mul_shift_hz(2_500_000_000));
        assert_eq!(mul_shift_hz(u64::MAX).1, -34);
        assert_eq!(mul_shift_hz(8_000_000_001), (u32::MAX, -3));
    }

    proptest! {
        /// Against exact arithmetic: below a microsecond in ten minutes at any frequency.
        #[test]
        fn ten_minutes(hz in 1_000_000u64..10_000_000_000) {
            let (mul, shift) = mul_shift_hz(hz);
            prop_assert!(mul >= 1 << 31);
            let ticks = u128::from(hz) * RUN_S;
            let exact = RUN_S * NS_PER_S;
            let got = u128::from(ticks_to_ns(mul, shift, ticks as u64));
            prop_assert!(got.abs_diff(exact) < 1_000, "{hz} Hz: {got} for {exact}");
        }

        /// Any elapsed time, not only round ones.
        #[test]
        fn any_time(khz in 100_000u32..10_000_000, ticks in 0u64..6_000_000_000_000) {
            let (mul, shift) = mul_shift(khz);
            let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
            let got = u128::from(ticks_to_ns(mul, shift, ticks));
            prop_assert!(got.abs_diff(exact) < 1_000 + exact / 2_000_000_000);
        }

        /// A deadline's TSC value is the first that shows it.
        #[test]
        fn deadline_is_exact(
            khz in 100_000u32..10_000_000,
            start in 0u64..1 << 60,
            epoch in 0u64..1 << 60,
            ahead in 1u64..600_000_000_000,
        ) {
            let scale = tsc_scale(khz, start, epoch, true);
            let tsc = ns_to_tsc(&scale, epoch + ahead);
            prop_assert!(tsc_to_ns(&scale, tsc) >= epoch + ahead);
            prop_assert!(tsc_to_ns(&scale, tsc - 1) < epoch + ahead);
        }

        #[test]
        fn never_panics(mul: u32, shift: i8, a: u64, b: u64, t: u64, khz: u32, hz: u64) {
            let scale = TscScale {
                tsc_timestamp: a, system_time_ns: b, mul, shift, khz,
                stable: false, invariant: false,
            };
            let _ = (tsc_to_ns(&scale, t), ns_to_tsc(&scale, t), mul_shift(khz), mul_shift_hz(hz));
        }
    }
}
