//! Records that tell whether they are whole: what the power-cut test's guest writes,
//! and what is looked for afterwards. The guest's program has this file, too.

/// Size of a record.
pub const BYTES: usize = 4096;
/// Records of a file before the next one is begun.
pub const PER_FILE: u64 = 16;
/// Places on the raw disk, which are used over and over.
pub const PLACES: u64 = 64;

/// Record `number`: it in front, then bytes made of it.
#[must_use]
pub fn record(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = number.to_le_bytes().to_vec();
    while bytes.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The number of a record that is whole.
#[must_use]
pub fn number(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == record(number)).then_some(number)
}

/// Name of the file record `number` is in.
#[must_use]
pub fn file(number: u64) -> String {
    format!("log{}", number / PER_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_or_none() {
        let good = record(77);
        assert_eq!((good.len(), number(&good)), (BYTES, Some(77)));
        let torn = [&good[..512], &record(13)[512..]].concat();
        assert_eq!(number(&torn), None);
        assert_eq!(number(&good[..512]), None);
        assert_eq!(number(&[0; BYTES]), None);
    }
}
