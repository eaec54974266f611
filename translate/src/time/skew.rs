//! How far two processors' TSCs are apart, by readings that bracket each other.
//!
//! ```text
//! here:  first ───────── last        the other one's was taken in between
//! there:         other
//! ```
//! So what is to be added here to have the other's lies between `other - last` and `other - first`. Each
//! round narrows that; TSCs for which 0 remains possible are taken to be the same.

/// What is known after some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    least: i64,
    most: i64,
}

impl Default for Skew {
    fn default() -> Self {
        Self::new()
    }
}

impl Skew {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { least: i64::MIN, most: i64::MAX }
    }

    /// A round.
    pub fn add(&mut self, first: u64, other: u64, last: u64) {
        self.least = self.least.max(other.wrapping_sub(last).cast_signed());
        self.most = self.most.min(other.wrapping_sub(first).cast_signed());
    }

    /// What is to be added to the TSC here to have the other one's; `None` where they may be the same.
    /// The error is half a round at most.
    #[must_use]
    pub fn correction(&self) -> Option<u64> {
        if self.least <= 0 && self.most >= 0 {
            return None;
        }
        // A clock that drifted meanwhile may leave nothing in between; the middle is best even then.
        let middle = i128::midpoint(self.least.into(), self.most.into());
        Some(i64::try_from(middle).unwrap_or(self.least).cast_unsigned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_narrow_it() {
        let mut skew = Skew::new();
        assert_eq!(skew.correction(), None, "nothing known");
        skew.add(1000, 1500, 2000);
        assert_eq!(skew.correction(), None, "in between");
        skew.add(3000, 3900, 3800);
        assert_eq!(skew.correction(), Some(300), "100 to 500");
        skew.add(5000, 5120, 5010);
        assert_eq!(skew.correction(), Some(115));
    }

    proptest! {
        /// What is corrected is right to half of the shortest round, and the same is left alone.
        #[test]
        fn corrections_are_right(
            apart in prop_oneof![Just(0i64), -1_000_000_000_000..1_000_000_000_000i64],
            rounds in prop::collection::vec((0..1u64 << 50, 0..5000u64, 0..5000u64), 1..20),
        ) {
            let mut skew = Skew::new();
            for (first, there, back) in &rounds {
                let other = (first + there).wrapping_add_signed(apart);
                skew.add(*first, other, first + there + back);
            }
            let shortest = rounds.iter().map(|(_, there, back)| there + back).min().unwrap_or(0);
            match skew.correction() {
                None => prop_assert!(apart.unsigned_abs() <= shortest),
                Some(correction) => {
                    prop_assert!(apart != 0);
                    let error = correction.cast_signed() - apart;
                    prop_assert!(error.unsigned_abs() <= shortest / 2 + 1);
                }
            }
        }
    }
}
