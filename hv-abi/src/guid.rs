//! GUIDs as VMBus carries them: the first three groups little-endian.

use core::fmt;
use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID in its wire form (`guid_t`).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);
const_assert_eq!(size_of::<Guid>(), 16);

/// Bytes of a GUID written out, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub const GUID_TEXT_BYTES: usize = 36;

/// The wire byte that each pair of digits becomes, in the order they are written.
const WIRE_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// All zero.
    pub const NIL: Self = Self([0; 16]);

    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, digits of either case; `None` for anything
    /// else.
    #[must_use]
    pub const fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != GUID_TEXT_BYTES {
            return None;
        }
        let mut bytes = [0; 16];
        let (mut at, mut nr) = (0, 0);
        while at < text.len() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if text[at] != b'-' {
                    return None;
                }
                at += 1;
                continue;
            }
            let (Some(high), Some(low)) = (digit(text[at]), digit(text[at + 1])) else {
                return None;
            };
            bytes[WIRE_ORDER[nr]] = high << 4 | low;
            nr += 1;
            at += 2;
        }
        Some(Self(bytes))
    }

    /// As [`Self::parse`], for constants.
    ///
    /// # Panics
    /// When the text is no GUID; in a constant that is a compile error.
    #[must_use]
    pub const fn literal(text: &str) -> Self {
        match Self::parse(text) {
            Some(guid) => guid,
            None => panic!("not a GUID"),
        }
    }
}

const fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        b'A'..=b'F' => Some(c - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, &wire) in WIRE_ORDER.iter().enumerate() {
            if matches!(nr, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[wire])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use alloc::string::ToString;

    #[test]
    fn text_and_wire_form() {
        let text = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
        let guid = Guid::literal(text);
        assert_eq!(guid.0[..10], [0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f]);
        assert_eq!(guid.to_string(), text);
        assert_eq!(Guid::parse("F8615163-DF3E-46C5-913F-F2D2F965ED0E"), Some(guid));
    }

    #[test]
    fn what_is_no_guid() {
        for text in [
            "",
            "f8615163-df3e-46c5-913f-f2d2f965ed0",
            "f8615163-df3e-46c5-913f-f2d2f965ed0e0",
            "f8615163+df3e-46c5-913f-f2d2f965ed0e",
            "f8615163-df3e-46c5-913f-f2d2f965ed0g",
            "f861516-3df3e-46c5-913f-f2d2f965ed0e",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }
}
