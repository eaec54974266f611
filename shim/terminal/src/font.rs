//! The font: Spleen, 8 x 16 pixels, 512 characters, in the PSF1 format of Linux's consoles
//! (`kbd`'s `psf.h`).

use spleen_font::FONT_8X16 as FILE;

/// Bytes before the first glyph: magic, mode, bytes of a glyph.
const HEADER: usize = 4;
const GLYPH_BYTES: usize = 16;
const GLYPHS: usize = 512;
/// Ends the characters of a glyph in the table behind the glyphs.
const END: u16 = 0xffff;

const _: () = assert!(FILE[0] == 0x36 && FILE[1] == 0x04, "PSF1");
const _: () = assert!(FILE[2] == 3 && FILE[3] == 16, "512 glyphs of 16 bytes, with a table");

/// Number of a character's glyph.
fn index(character: char) -> Option<usize> {
    let wanted = u16::try_from(u32::from(character)).ok()?;
    if (0x20..0x7f).contains(&wanted) {
        return Some(wanted.into());
    }
    let (table, _) = FILE.get(HEADER + GLYPHS * GLYPH_BYTES..)?.as_chunks::<2>();
    let mut glyph = 0;
    for unit in table.iter().map(|unit| u16::from_le_bytes(*unit)) {
        if unit == END {
            glyph += 1;
        } else if unit == wanted {
            return Some(glyph);
        }
    }
    None
}

/// The rows of a character, or of a question mark for one that the font has not; the highest bit is
/// the leftmost pixel.
pub fn glyph(character: char) -> &'static [u8] {
    let start = HEADER + index(character).unwrap_or(usize::from(b'?')) * GLYPH_BYTES;
    FILE.get(start..start + GLYPH_BYTES).unwrap_or_default()
}
