//! The header in an image.

use super::{ALIGN, ARCHITECTURE_I386, HEADER_MAGIC, HEADER_SEARCH, header_tag};
use crate::bytes::{u16_at, u32_at};

/// Bytes of the header before its first tag.
const HEAD: usize = 16;
/// Bytes of a tag's type, flags and size.
const TAG: usize = 8;

/// Where the image may be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocatable {
    /// Lowest address.
    pub min: u32,
    /// Highest address of its last byte.
    pub max: u32,
    /// Alignment, in bytes.
    pub align: u32,
}

/// What a loader has to know of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Entry in 32-bit protected mode, as linked.
    pub entry: Option<u32>,
    /// Entry in 64-bit mode, as linked.
    pub entry_efi64: Option<u32>,
    /// Whether it may lie elsewhere than linked.
    pub relocatable: Option<Relocatable>,
}

impl Header {
    /// Finds the header in an image's file.
    #[must_use]
    pub fn find(file: &[u8]) -> Option<Self> {
        let head = file.get(..HEADER_SEARCH.min(file.len()))?;
        let at = (0..head.len()).step_by(ALIGN).find(|&at| is_header(head, at))?;
        let bytes = u32_at(head, at + 8)? as usize;
        let mut tags = file.get(at + HEAD..at.checked_add(bytes)?)?;
        let mut header = Self::default();
        while let Some(kind) = u16_at(tags, 0).filter(|&kind| kind != header_tag::END) {
            let bytes = u32_at(tags, 4)? as usize;
            let body = tags.get(TAG..bytes)?;
            match kind {
                header_tag::ENTRY => header.entry = u32_at(body, 0),
                header_tag::ENTRY_EFI64 => header.entry_efi64 = u32_at(body, 0),
                header_tag::RELOCATABLE => {
                    header.relocatable = Some(Relocatable {
                        min: u32_at(body, 0)?,
                        max: u32_at(body, 4)?,
                        align: u32_at(body, 8)?,
                    });
                }
                _ => {}
            }
            tags = tags.get(bytes.checked_next_multiple_of(ALIGN)?..)?;
        }
        Some(header)
    }
}

fn is_header(file: &[u8], at: usize) -> bool {
    let words = [0, 4, 8, 12].map(|offset| u32_at(file, at + offset));
    let [Some(magic), Some(architecture), Some(bytes), Some(checksum)] = words else {
        return false;
    };
    let sum = magic.wrapping_add(architecture).wrapping_add(bytes).wrapping_add(checksum);
    magic == HEADER_MAGIC && architecture == ARCHITECTURE_I386 && sum == 0
}
