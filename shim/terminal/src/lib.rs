//! A terminal on a framebuffer. Bytes go through `vte`'s parser into a grid of characters
//! ([`Grid`]); what differs from what is on the screen is drawn with the Spleen font ([`Screen`]).
//!
//! Nothing is read back from the framebuffer, whose reads are slow, and nothing is allocated.
//! What it understands is what Linux's console does for a program that takes it for a VT102, with 16
//! colours: others are shown in the nearest of these.
#![no_std]
#![forbid(unsafe_code)]

mod cell;
mod font;
mod grid;
mod pixels;
mod sequences;

pub use cell::{Cell, Colour};
pub use font::glyph;
pub use grid::{Grid, MAX_CELLS};
pub use pixels::{Pixels, Screen};

/// Pixels of a character.
pub const GLYPH_WIDTH: u32 = 8;
/// As above.
pub const GLYPH_HEIGHT: u32 = 16;

/// A grid and the parser before it.
pub struct Terminal {
    /// Made when it is first needed, as it cannot be made beforehand.
    parser: Option<vte::Parser>,
    /// What is on it.
    pub grid: Grid,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// An empty one of one character, until it is [resized](Grid::resize).
    #[must_use]
    pub const fn new() -> Self {
        Self { parser: None, grid: Grid::new() }
    }

    /// Takes output.
    pub fn write(&mut self, bytes: &[u8]) {
        self.parser.get_or_insert_with(vte::Parser::new).advance(&mut self.grid, bytes);
    }
}

#[cfg(test)]
mod tests;
