//! Looks after the TSC's rate where the host does not vouch for it (docs/time.md): by the reference TSC
//! page, which says itself when it has changed; where none is valid, by the frequency MSR and the
//! reference counter once a second.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use translate::time::rate::{Rate, Reading};

use super::{NS_PER_S, SCALE, now_ns, rdtsc_ordered};
use crate::hv;

/// Somebody has to look.
static NEEDED: AtomicBool = AtomicBool::new(false);
static RATE: Mutex<Option<Rate>> = Mutex::new(None);
/// The page's sequence at the last look; 0 is none of a valid page.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);
/// When to look again without a page, in system time.
static NEXT_NS: AtomicU64 = AtomicU64::new(0);

/// What the host says now; `None` where it has no reference counter.
pub(super) fn reading() -> Option<Reading> {
    let page = hv::reference_tsc().and_then(|page| Some((page, page.hz()?)));
    if let Some((page, hz)) = page {
        let tsc = rdtsc_ordered();
        let reference = page.time_100ns(tsc);
        return Some(Reading { before: tsc, after: tsc, reference, hz: Some(hz) });
    }
    let hz = hv::tsc_frequency();
    let before = rdtsc_ordered();
    let reference = hv::reference_count()?;
    Some(Reading { before, after: rdtsc_ordered(), reference, hz })
}

/// System time begins with this reading, at `hz`. The page's sequence is noted with the first look, which
/// sees what has changed since.
pub(super) fn begin(hz: u64, first: Reading) {
    *RATE.lock() = Some(Rate::new(hz, first));
    NEEDED.store(true, Ordering::Release);
}

/// Looks, now and then; `true`: the guest is to be told of another conversion.
#[inline]
pub fn look() -> bool {
    NEEDED.load(Ordering::Relaxed) && is_time() && look_now()
}

fn is_time() -> bool {
    match hv::reference_tsc() {
        Some(page) => page.sequence != SEQUENCE.load(Ordering::Relaxed),
        None => now_ns() >= NEXT_NS.load(Ordering::Relaxed),
    }
}

#[cold]
fn look_now() -> bool {
    // One is enough.
    let Some(mut rate) = RATE.try_lock() else { return false };
    let sequence = hv::reference_tsc().map_or(0, |page| page.sequence);
    let (Some(rate), Some(reading)) = (rate.as_mut(), reading()) else { return false };
    let present = SCALE.load();
    let changed = rate.look(&present, reading);
    if let Some(scale) = &changed {
        SCALE.store(scale);
        let (is, was) = (scale.khz, present.khz);
        if is != was {
            crate::log!(Warn, "the host's clock has changed: TSC at {is} kHz, before at {was} kHz");
        }
    }
    SEQUENCE.store(sequence, Ordering::Relaxed);
    NEXT_NS.store(now_ns().saturating_add(NS_PER_S), Ordering::Relaxed);
    changed.is_some()
}
