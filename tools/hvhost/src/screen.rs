//! The screen: a framebuffer in guest memory, which the Linux boot protocol tells the kernel of, and
//! the text that can be read on it.

use crate::boot::linux64::BootParams;
use crate::memory::Memory;
use crate::stats::Counters;
use ::terminal::glyph;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Pixels of a row, and rows.
const SIZE: (u16, u16) = (1024, 768);
/// Of a pixel: blue first, the last is not used.
const PIXEL_BYTES: u16 = 4;
const PITCH: u16 = SIZE.0 * PIXEL_BYTES;
/// Pixels of a character.
const CELL: (usize, usize) = (8, 16);

/// Its memory, in the 32-bit hole: first address and bytes.
pub const REGION: (u64, u64) = (0xe000_0000, PITCH as u64 * SIZE.1 as u64);
/// How often texts are looked for on it.
const LOOK: Duration = Duration::from_millis(500);

/// Offsets of `screen_info` in `boot_params` (Linux `include/uapi/linux/screen_info.h`).
mod offset {
    pub const VIDEO_TYPE: usize = 0x0f;
    pub const WIDTH: usize = 0x12;
    pub const HEIGHT: usize = 0x14;
    pub const DEPTH: usize = 0x16;
    pub const BASE: usize = 0x18;
    pub const BYTES: usize = 0x1c;
    pub const PITCH: usize = 0x24;
    /// Bits and lowest bit of red, green, blue and the rest.
    pub const CHANNELS: usize = 0x26;
}

/// A linear framebuffer, as of VESA.
const VIDEO_TYPE_VLFB: u8 = 0x23;

/// Has the kernel find the screen, if the machine has one.
pub fn describe(memory: &Memory, params: &mut BootParams) {
    if !is_there(memory) {
        return;
    }
    params.put(offset::VIDEO_TYPE, &[VIDEO_TYPE_VLFB]);
    for (at, value) in [
        (offset::WIDTH, SIZE.0),
        (offset::HEIGHT, SIZE.1),
        (offset::DEPTH, 8 * PIXEL_BYTES),
        (offset::PITCH, PITCH),
    ] {
        params.put(at, &value.to_le_bytes());
    }
    params.put(offset::BASE, &(REGION.0 as u32).to_le_bytes());
    params.put(offset::BYTES, &(REGION.1 as u32).to_le_bytes());
    params.put(offset::CHANNELS, &[8, 16, 8, 8, 8, 0, 8, 24]);
}

fn is_there(memory: &Memory) -> bool {
    memory.find_region(GuestAddress(REGION.0)).is_some()
}

/// The screen of a machine.
pub struct Screen {
    memory: Memory,
}

impl Screen {
    /// That of a machine with this memory.
    #[must_use]
    pub fn of(memory: &Memory) -> Option<Self> {
        is_there(memory).then(|| Self { memory: memory.clone() })
    }

    /// What is on it, without the lines that are empty.
    ///
    /// # Errors
    /// Never for memory that is there.
    pub fn text(&self) -> Result<String> {
        let mut pixels = vec![0; REGION.1 as usize];
        self.memory.read_slice(&mut pixels, GuestAddress(REGION.0)).context("the screen")?;
        let (width, height) = (usize::from(SIZE.0), usize::from(SIZE.1));
        let is_lit = |x: usize, y: usize| {
            let at = (y * width + x) * usize::from(PIXEL_BYTES);
            pixels.get(at..at + 3).is_some_and(|pixel| pixel.iter().any(|&colour| colour > 0x7f))
        };
        let text = read(width, height, is_lit);
        Ok(text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"))
    }

    /// Notes when each of `markers` is first on it.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn watch(self, mut markers: Vec<String>, counters: Arc<Counters>) -> Result<()> {
        let look = move || {
            while !markers.is_empty() {
                thread::sleep(LOOK);
                let Ok(text) = self.text() else { return };
                for seen in markers.extract_if(.., |marker| text.contains(marker.as_str())) {
                    counters.marker(&seen);
                }
            }
        };
        thread::Builder::new().name("screen".into()).spawn(look)?;
        Ok(())
    }
}

/// The text of a picture of the shim's console: characters of its font in light on dark, a line for
/// each row, without the blanks at its end. What is none of them is U+FFFD.
pub fn read(width: usize, height: usize, is_lit: impl Fn(usize, usize) -> bool) -> String {
    let letters: HashMap<&[u8], char> = (' '..='~').map(|letter| (glyph(letter), letter)).collect();
    let mut text = String::new();
    for top in (0..height / CELL.1).map(|row| row * CELL.1) {
        for left in (0..width / CELL.0).map(|column| column * CELL.0) {
            let line =
                |y| (0..CELL.0).fold(0u8, |bits, x| bits << 1 | u8::from(is_lit(left + x, y)));
            let shape: Vec<u8> = (top..top + CELL.1).map(line).collect();
            text.push(letters.get(&shape[..]).copied().unwrap_or('\u{fffd}'));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{allocate, allocate_with};
    use std::time::Instant;

    /// Writes a line at the top left, white on black.
    fn write(memory: &Memory, line: &str) {
        for (column, letter) in line.chars().enumerate() {
            for (y, bits) in glyph(letter).iter().enumerate() {
                for x in (0..8).filter(|x| bits >> (7 - x) & 1 != 0) {
                    let at = (y * usize::from(SIZE.0) + column * 8 + x) * 4;
                    memory.write_slice(&[0xff; 4], GuestAddress(REGION.0 + at as u64)).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let memory = allocate_with(64 << 20, Some(REGION)).unwrap();
        assert_eq!(Screen::of(&memory).unwrap().text().unwrap(), "");
        write(&memory, "a {line}");
        assert_eq!(Screen::of(&memory).unwrap().text().unwrap(), "a {line}");
        let counters = Arc::new(Counters::new(Instant::now()));
        let seen = counters.watch_markers();
        let markers = ["line", "other"].map(String::from).to_vec();
        Screen::of(&memory).unwrap().watch(markers, counters).unwrap();
        assert_eq!(seen.recv().unwrap(), "line");
        assert!(seen.try_recv().is_err());
    }

    #[test]
    fn the_kernel_is_told() {
        let memory = allocate(64 << 20).unwrap();
        let mut params = BootParams::default();
        describe(&memory, &mut params);
        assert_eq!(params.page(), [0; 4096]);
        assert!(Screen::of(&memory).is_none());
        describe(&allocate_with(4 << 30, Some(REGION)).unwrap(), &mut params);
        let read = |at, bytes: usize| (at == 0x7000).then(|| params.page().get(..bytes)).flatten();
        let screen = boot_abi::linux(&read, 0x7000).framebuffer.unwrap();
        assert_eq!((screen.address, screen.pitch), (REGION.0, PITCH.into()));
        assert_eq!((screen.width, screen.height, screen.bpp), (1024, 768, 32));
    }
}
