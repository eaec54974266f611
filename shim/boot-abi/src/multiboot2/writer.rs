//! Writing the information, for loaders.

use super::{ALIGN, tag};
use crate::{Framebuffer, PixelFormat};

/// Writes the loader's information into a buffer, tag by tag. Nothing is allocated, so that it
/// works when a firmware's services are gone.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    used: usize,
    overflows: bool,
}

impl<'a> Writer<'a> {
    /// Empty information.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        let mut writer = Self { buffer, used: 0, overflows: false };
        writer.put(&[0; 8]);
        writer
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.used + bytes.len();
        match self.buffer.get_mut(self.used..end) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.used = end;
            }
            None => self.overflows = true,
        }
    }

    /// Overwrites a word.
    fn set(&mut self, at: usize, word: u32) {
        if let Some(place) = self.buffer.get_mut(at..at + 4) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn tag(&mut self, kind: u32, body: impl FnOnce(&mut Self)) {
        let start = self.used;
        self.put(&kind.to_le_bytes());
        self.put(&[0; 4]);
        body(self);
        self.set(start + 4, u32::try_from(self.used - start).unwrap_or(u32::MAX));
        let padding = self.used.next_multiple_of(ALIGN) - self.used;
        self.put([0; ALIGN].get(..padding).unwrap_or_default());
    }

    /// The image's command line.
    pub fn cmdline(&mut self, line: &[u8]) {
        self.tag(tag::CMDLINE, |w| {
            w.put(line);
            w.put(&[0]);
        });
    }

    /// A module: its bytes from `start` up to `end`, and its line.
    pub fn module(&mut self, start: u32, end: u32, line: &[u8]) {
        self.tag(tag::MODULE, |w| {
            w.put(&start.to_le_bytes());
            w.put(&end.to_le_bytes());
            w.put(line);
            w.put(&[0]);
        });
    }

    /// The memory map: start, bytes and kind ([`crate::memory_type`]) of each range. Neighbours of
    /// one kind become one entry.
    pub fn memory_map(&mut self, ranges: impl Iterator<Item = (u64, u64, u32)>) {
        self.tag(tag::MEMORY_MAP, |w| {
            w.put(&24u32.to_le_bytes());
            w.put(&0u32.to_le_bytes());
            let mut last: Option<(u64, u64, u32)> = None;
            for (start, bytes, kind) in ranges {
                match &mut last {
                    Some((at, len, of)) if *of == kind && at.wrapping_add(*len) == start => {
                        *len = len.saturating_add(bytes);
                    }
                    _ => {
                        w.range(last.replace((start, bytes, kind)));
                    }
                }
            }
            w.range(last);
        });
    }

    fn range(&mut self, range: Option<(u64, u64, u32)>) {
        let Some((start, bytes, kind)) = range else { return };
        self.put(&start.to_le_bytes());
        self.put(&bytes.to_le_bytes());
        self.put(&kind.to_le_bytes());
        self.put(&[0; 4]);
    }

    /// A copy of the RSDP: 20 bytes of version 0, more of later ones.
    pub fn rsdp(&mut self, rsdp: &[u8]) {
        const OLD_BYTES: usize = 20;
        let kind = if rsdp.len() > OLD_BYTES { tag::ACPI_NEW } else { tag::ACPI_OLD };
        self.tag(kind, |w| w.put(rsdp));
    }

    /// The screen.
    pub fn framebuffer(&mut self, screen: &Framebuffer) {
        self.tag(tag::FRAMEBUFFER, |w| {
            w.put(&screen.address.to_le_bytes());
            w.put(&screen.pitch.to_le_bytes());
            w.put(&screen.width.to_le_bytes());
            w.put(&screen.height.to_le_bytes());
            match screen.format {
                PixelFormat::Rgb(red, green, blue) => {
                    w.put(&[screen.bpp, tag::FRAMEBUFFER_RGB, 0, 0]);
                    for channel in [red, green, blue] {
                        w.put(&[channel.shift, channel.bits]);
                    }
                }
                PixelFormat::Text => w.put(&[screen.bpp, tag::FRAMEBUFFER_TEXT, 0, 0]),
            }
        });
    }

    /// Ends it: bytes used, or `None` if the buffer was too small.
    #[must_use]
    pub fn finish(mut self) -> Option<usize> {
        self.tag(tag::END, |_| ());
        self.set(0, u32::try_from(self.used).ok()?);
        (!self.overflows).then_some(self.used)
    }
}
