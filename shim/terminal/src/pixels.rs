//! Characters become pixels.

use boot_abi::{Channel, Framebuffer, PixelFormat};

use crate::font::glyph;
use crate::{Cell, Colour, GLYPH_HEIGHT, GLYPH_WIDTH, Grid, MAX_CELLS};

/// Where pixels are stored.
pub trait Pixels {
    /// Stores the first `bytes` of a little-endian value at a distance from the first pixel. Never
    /// outside what [`Framebuffer::bytes`] says.
    fn store(&mut self, offset: usize, value: u32, bytes: usize);
}

/// What is on the screen.
pub struct Screen {
    shown: [Cell; MAX_CELLS],
    layout: Option<Framebuffer>,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// No screen.
    #[must_use]
    #[allow(clippy::large_stack_arrays, reason = "made once, in a static")]
    pub const fn new() -> Self {
        Self { shown: [Cell::UNKNOWN; MAX_CELLS], layout: None }
    }

    /// A screen of unknown content; columns and rows of characters it has room for. `None` if it is
    /// none that can be drawn on.
    pub fn attach(&mut self, layout: &Framebuffer) -> Option<(u32, u32)> {
        layout.bytes()?;
        let PixelFormat::Rgb(red, green, blue) = layout.format else { return None };
        let fits = |c: Channel| u32::from(c.shift) + u32::from(c.bits) <= 32 && c.bits <= 16;
        if ![red, green, blue].into_iter().all(fits) {
            return None;
        }
        self.shown.fill(Cell::UNKNOWN);
        self.layout = Some(*layout);
        let (columns, rows) = (layout.width / GLYPH_WIDTH, layout.height / GLYPH_HEIGHT);
        (columns != 0 && rows != 0).then_some((columns, rows))
    }

    /// Draws what has changed.
    pub fn draw(&mut self, grid: &Grid, pixels: &mut impl Pixels) {
        let Some(layout) = self.layout else { return };
        let (columns, _) = grid.size();
        for (at, cell) in grid.cells().enumerate() {
            if self.shown[at] != cell {
                self.shown[at] = cell;
                draw_cell(&layout, (at % columns, at / columns), cell, pixels);
            }
        }
    }

    /// Draws all of the screen black, also where no characters go.
    pub fn blank(&self, pixels: &mut impl Pixels) {
        let Some(layout) = self.layout else { return };
        let bytes = usize::from(layout.bpp.div_ceil(8));
        let black = pixel(&layout, Colour::BLACK);
        for row in 0..layout.height as usize {
            let start = row * layout.pitch as usize;
            for column in 0..layout.width as usize {
                pixels.store(start + column * bytes, black, bytes);
            }
        }
    }
}

/// A colour as this screen has it.
fn pixel(layout: &Framebuffer, colour: Colour) -> u32 {
    let PixelFormat::Rgb(red, green, blue) = layout.format else { return 0 };
    let part = |level: u8, channel: Channel| {
        let wide = u64::from(level) << 8 | u64::from(level);
        let kept = (wide >> 16u32.saturating_sub(channel.bits.into())) as u32;
        kept.checked_shl(channel.shift.into()).unwrap_or(0)
    };
    let [r, g, b] = colour.rgb();
    part(r, red) | part(g, green) | part(b, blue)
}

fn draw_cell(
    layout: &Framebuffer,
    (column, row): (usize, usize),
    cell: Cell,
    pixels: &mut impl Pixels,
) {
    let bytes = usize::from(layout.bpp.div_ceil(8));
    let colours = [pixel(layout, cell.paper()), pixel(layout, cell.ink())];
    for (line, &bits) in glyph(cell.character()).iter().enumerate() {
        let mut at = (row * GLYPH_HEIGHT as usize + line) * layout.pitch as usize
            + column * GLYPH_WIDTH as usize * bytes;
        for bit in (0..8).rev() {
            pixels.store(at, colours[usize::from(bits >> bit & 1)], bytes);
            at += bytes;
        }
    }
}
