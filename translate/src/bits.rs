//! Sets as words.

/// The numbers of the bits that are set, lowest first.
#[inline]
pub fn bits(mut set: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_and_no_others(set: u64) {
            let all = (0..u64::BITS).filter(|bit| set >> bit & 1 != 0);
            prop_assert!(bits(set).eq(all));
        }
    }
}
