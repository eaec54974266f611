//! The reference TSC page (TLFS 12.7, "Partition Reference Time Enlightenment").

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// Sequence value that says: the page is not valid, read the reference counter MSR.
pub const SEQUENCE_INVALID: u32 = 0;
/// Units of reference time in a second.
pub const REFERENCE_HZ: u64 = 10_000_000;

/// `HV_REFERENCE_TSC_PAGE`. The host changes it under a new `tsc_sequence`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ReferenceTscPage {
    /// Changes whenever scale or offset does; [`SEQUENCE_INVALID`] means "do not use".
    pub tsc_sequence: AtomicU32,
    /// Reserved.
    pub reserved: AtomicU32,
    /// 64.64 fixed-point multiplier from TSC ticks to 100 ns units.
    pub tsc_scale: AtomicU64,
    /// Added after scaling, in 100 ns units.
    pub tsc_offset: AtomicI64,
    /// Reserved.
    pub reserved2: [AtomicU64; 509],
}
const_assert_eq!(size_of::<ReferenceTscPage>(), 4096);
const_assert_eq!(offset_of!(ReferenceTscPage, tsc_scale), 8);
const_assert_eq!(offset_of!(ReferenceTscPage, tsc_offset), 16);
impl SharedView for ReferenceTscPage {}

/// A consistent copy of the page's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceTsc {
    /// The sequence under which the two others were read.
    pub sequence: u32,
    /// 64.64 fixed-point multiplier.
    pub scale: u64,
    /// Offset in 100 ns units.
    pub offset: i64,
}

impl ReferenceTscPage {
    /// Reads scale and offset of one sequence. `None`: the page is not valid, or
    /// the host changed it during the read (ask again or use the counter MSR).
    #[must_use]
    pub fn read(&self) -> Option<ReferenceTsc> {
        // Acquire: the fields are read after the sequence; the fence keeps the
        // second look at it behind them.
        let sequence = self.tsc_sequence.load(Ordering::Acquire);
        if sequence == SEQUENCE_INVALID {
            return None;
        }
        let scale = self.tsc_scale.load(Ordering::Relaxed);
        let offset = self.tsc_offset.load(Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::Acquire);
        let again = self.tsc_sequence.load(Ordering::Relaxed);
        (again == sequence).then_some(ReferenceTsc { sequence, scale, offset })
    }
}

impl ReferenceTsc {
    /// Reference time in 100 ns units at TSC value `tsc`.
    #[must_use]
    pub const fn time_100ns(&self, tsc: u64) -> u64 {
        let scaled = ((tsc as u128 * self.scale as u128) >> 64) as u64;
        scaled.wrapping_add_signed(self.offset)
    }

    /// The TSC's rate in Hz; `None` for a scale that is none.
    #[must_use]
    pub const fn hz(&self) -> Option<u64> {
        match ((REFERENCE_HZ as u128) << 64).checked_div(self.scale as u128) {
            Some(hz) if hz <= u64::MAX as u128 => Some(hz as u64),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn two_gigahertz() {
        // 10 MHz / 2 GHz as a 64.64 fraction.
        let r = ReferenceTsc { sequence: 1, scale: ((10u128 << 64) / 2000) as u64, offset: -5 };
        assert_eq!(r.time_100ns(2_000_000_000), 10_000_000 - 1 - 5);
        assert_eq!(r.hz(), Some(2_000_000_000));
        assert_eq!(ReferenceTsc { scale: 0, ..r }.hz(), None);
        assert_eq!(ReferenceTsc { scale: 1, ..r }.hz(), None);
    }

    #[test]
    fn invalid_page_reads_none() {
        let page = ReferenceTscPage::new_zeroed();
        assert_eq!(page.read(), None);
        page.tsc_scale.store(7, Ordering::Relaxed);
        page.tsc_sequence.store(3, Ordering::Relaxed);
        assert_eq!(page.read(), Some(ReferenceTsc { sequence: 3, scale: 7, offset: 0 }));
    }
}
