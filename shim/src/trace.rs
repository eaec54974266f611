//! Trace ring: with the `trace` feature every entry to ring 0 is noted, and a crash prints the last
//! of them. Without it there is no code on any path.

#[cfg(feature = "trace")]
mod ring {
    use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    const SIZE: usize = 64;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static RING: [[AtomicU64; 3]; SIZE] = [const { [const { AtomicU64::new(0) }; 3] }; SIZE];

    /// Notes an entry: what (vector, or hypercall number + 0x1000), where, and one value.
    pub fn record(what: u64, rip: u64, value: u64) {
        let slot = &RING[NEXT.fetch_add(1, Ordering::Relaxed) % SIZE];
        for (cell, value) in slot.iter().zip([what, rip, value]) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Prints the ring, oldest first.
    pub fn dump() {
        let next = NEXT.load(Ordering::Relaxed);
        for index in next.saturating_sub(SIZE)..next {
            let [what, rip, value] = &RING[index % SIZE];
            crate::log::print(format_args!(
                "trace {:#x} rip {:#x} value {:#x}",
                what.load(Ordering::Relaxed),
                rip.load(Ordering::Relaxed),
                value.load(Ordering::Relaxed)
            ));
        }
    }
}
#[cfg(feature = "trace")]
pub use ring::{dump, record};

/// See the module.
#[cfg(not(feature = "trace"))]
#[inline(always)]
pub fn dump() {}

/// See the module.
#[cfg(not(feature = "trace"))]
#[inline(always)]
pub fn record(_what: u64, _rip: u64, _value: u64) {}
