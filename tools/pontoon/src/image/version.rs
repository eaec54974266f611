//! The order of version numbers in file names.

use std::cmp::Ordering;

/// Compares as people do: runs of digits by their value. A tilde sorts before
/// everything, the end included, as in Debian's versions.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (digits(&mut a), digits(&mut b));
                x.len().cmp(&y.len()).then(x.cmp(y))
            }
            (x, y) => {
                a = a.get(1..).unwrap_or_default();
                b = b.get(1..).unwrap_or_default();
                weight(x).cmp(&weight(y))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) => i32::from(*b) + 1,
    }
}

/// Takes digits off the front, leaves out leading zeroes.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    let zeroes = number.iter().take_while(|&&b| b == b'0').count();
    number.get(zeroes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_their_order() {
        let mut all = ["6.12.9-amd64", "5.10.0-32-amd64", "6.12.10-amd64", "6.1.0-9", "6.1.0-10"];
        all.sort_by(|a, b| compare(a, b));
        assert_eq!(
            all,
            ["5.10.0-32-amd64", "6.1.0-9", "6.1.0-10", "6.12.9-amd64", "6.12.10-amd64"]
        );
        assert_eq!(compare("6.1~rc1", "6.1"), Ordering::Less);
        assert_eq!(compare("6.1", "6.1-a"), Ordering::Less);
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }
}
