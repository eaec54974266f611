//! The TSCs of several processors: compared when a processor starts, and set right where they differ.
//!
//! System time is one conversion for all, so a processor whose TSC is not the boot processor's would tell
//! another time. The two bounce a word between them; the started one reads its TSC around it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use translate::time::Skew;

use super::{cpuid, msr};
use crate::time;

/// Rounds, and how long they may take: on a host with fewer processors than it gives, each is a turn of
/// its scheduler.
const ROUNDS: u32 = 16;
const ENOUGH_NS: u64 = 10_000_000;
/// How often a TSC is set before the processor is left out, and how close it must come.
const TRIES: u32 = 4;
const CLOSE_US: u64 = 50;

/// A started processor waits for the answer.
static ASKED: AtomicBool = AtomicBool::new(false);
static ANSWER: AtomicU64 = AtomicU64::new(0);
/// Some processor's TSC was not the others'.
static DIFFERED: AtomicBool = AtomicBool::new(false);

/// The boot processor answers a processor it has started, if that asks.
pub fn answer() {
    if ASKED.load(Ordering::Acquire) {
        ANSWER.store(time::rdtsc_ordered(), Ordering::Relaxed);
        ASKED.store(false, Ordering::Release);
    }
}

/// How far this processor's TSC is off.
fn compare() -> Skew {
    let mut skew = Skew::new();
    let begin = time::rdtsc();
    for round in 0..ROUNDS {
        if round > 0 && time::since(begin) > ENOUGH_NS {
            break;
        }
        let first = time::rdtsc_ordered();
        ASKED.store(true, Ordering::Release);
        while ASKED.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let other = ANSWER.load(Ordering::Relaxed);
        skew.add(first, other, time::rdtsc_ordered());
    }
    skew
}

/// Gives a started processor the TSC of the one that started it, and waits. `false`: it cannot be set.
pub fn follow(number: u32) -> bool {
    for round in 0..=TRIES {
        let Some(correction) = compare().correction() else { return true };
        let off = correction.cast_signed();
        if round > 0 && off.unsigned_abs() < u64::from(time::tsc_scale().khz) * CLOSE_US / 1000 {
            return true;
        }
        DIFFERED.store(true, Ordering::Relaxed);
        crate::log!(Warn, "the TSC of processor {number} is off by {} ticks", off.wrapping_neg());
        if !add(correction, round > 0) {
            return false;
        }
    }
    false
}

/// Adds to this processor's TSC; again: after it was once, for which the last time took too long.
fn add(ticks: u64, again: bool) -> bool {
    const ADJUST: u32 = 1 << 1;
    if cpuid(0, 0).eax >= 7
        && cpuid(7, 0).ebx & ADJUST != 0
        && let Some(old) = msr::try_read(msr::nr::TSC_ADJUST)
    {
        // SAFETY: what the shim's clocks tell on this processor is of use only from here on.
        return unsafe { msr::try_write(msr::nr::TSC_ADJUST, old.wrapping_add(ticks)) };
    }
    // What is left after the first time is how long the write takes.
    let late = if again { ticks } else { 0 };
    let value = time::rdtsc().wrapping_add(ticks).wrapping_add(late);
    // SAFETY: as above.
    unsafe { msr::try_write(msr::nr::TSC, value) }
}

/// Whether all processors' TSCs were the same from the start. Those that were set are so to some
/// microseconds only.
#[inline]
pub fn are_same() -> bool {
    !DIFFERED.load(Ordering::Relaxed)
}
