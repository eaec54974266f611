//! The image's ELF file, as far as loaders need it: ELF64, loaded at physical addresses.

use arrayvec::ArrayVec;

use crate::bytes::{u16_at, u32_at, u64_at};

/// Most loadable segments.
pub const MAX_SEGMENTS: usize = 16;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
/// Offsets in the header: where the sections are; their number and that of their names.
const SECTIONS: usize = 0x28;
const SECTION_COUNT: usize = 0x3c;

/// A segment that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Physical address.
    pub address: u64,
    /// What is there.
    pub content: &'a [u8],
    /// Bytes in memory; those behind `content` are zero.
    pub bytes: u64,
}

/// The segments that are loaded; `None` if the file is not whole.
#[must_use]
pub fn segments(file: &[u8]) -> Option<ArrayVec<Segment<'_>, MAX_SEGMENTS>> {
    const CLASS_64_LITTLE_ENDIAN: [u8; 6] = *b"\x7fELF\x02\x01";
    let head = file.get(..HEADER_BYTES)?;
    if !head.starts_with(&CLASS_64_LITTLE_ENDIAN) {
        return None;
    }
    let table = usize::try_from(u64_at(head, 0x20)?).ok()?;
    let (step, count) = (usize::from(u16_at(head, 0x36)?), usize::from(u16_at(head, 0x38)?));
    let mut segments = ArrayVec::new();
    for n in 0..count {
        let entry = file.get(table.checked_add(n * step)?..)?.get(..PROGRAM_HEADER_BYTES)?;
        if u32_at(entry, 0)? != PT_LOAD {
            continue;
        }
        let offset = usize::try_from(u64_at(entry, 8)?).ok()?;
        let len = usize::try_from(u64_at(entry, 32)?).ok()?;
        let segment = Segment {
            address: u64_at(entry, 24)?,
            content: file.get(offset..offset.checked_add(len)?)?,
            bytes: u64_at(entry, 40)?,
        };
        segment.address.checked_add(segment.bytes)?;
        if (segment.content.len() as u64) > segment.bytes {
            return None;
        }
        segments.try_push(segment).ok()?;
    }
    (!segments.is_empty()).then_some(segments)
}

/// Takes the sections out of the header, which loading does not need, and says how much of the file
/// to keep. Symbols and debugging information, which loaders would load or read, go with them.
pub fn strip(file: &mut [u8]) -> Option<usize> {
    let start = file.as_ptr() as usize;
    let end = |s: &Segment<'_>| s.content.as_ptr() as usize - start + s.content.len();
    let used = segments(file)?.iter().map(end).max()?;
    let headers = usize::try_from(u64_at(file, 0x20)?).ok()?
        + usize::from(u16_at(file, 0x36)?) * usize::from(u16_at(file, 0x38)?);
    file.get_mut(SECTIONS..SECTIONS + 8)?.fill(0);
    file.get_mut(SECTION_COUNT..SECTION_COUNT + 4)?.fill(0);
    Some(used.max(headers).max(HEADER_BYTES))
}
