//! What a boot loader tells, in one form for all doors.

use arrayvec::ArrayVec;

use crate::bytes::until_nul;
use crate::{Reader, memory_type};

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Ordinary RAM (type 1), as opposed to everything else.
    pub ram: bool,
}

/// A file the loader put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Where a colour is in a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Lowest bit.
    pub shift: u8,
    /// Bits.
    pub bits: u8,
}

/// How a pixel or character is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb(Channel, Channel, Channel),
    /// Characters and their attributes, two bytes each, as VGA has them.
    Text,
}

/// A screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// Physical address of the first row.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch: u32,
    /// Pixels, or characters, of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bits of a pixel.
    pub bpp: u8,
    /// Their meaning.
    pub format: PixelFormat,
}

impl Framebuffer {
    /// Bytes it takes, if it makes sense.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        const MOST: u32 = 1 << 15;
        let sensible = self.address != 0
            && (1..=MOST).contains(&self.width)
            && (1..=MOST).contains(&self.height)
            && matches!(self.bpp, 15 | 16 | 24 | 32)
            && u64::from(self.width) * u64::from(self.bpp.div_ceil(8)) <= u64::from(self.pitch);
        let bytes = u64::from(self.pitch) * u64::from(self.height);
        (sensible && self.address.checked_add(bytes).is_some()).then_some(bytes)
    }
}

/// Most entries of a memory map that are kept; neighbours of one kind are joined.
pub const MAX_REGIONS: usize = 128;
/// Longest command line.
pub const MAX_CMDLINE: usize = 4096;
/// Most modules that are kept.
pub const MAX_MODULES: usize = 4;

/// The loader's information.
#[derive(Debug, Default)]
pub struct BootInfo {
    /// Which door: for the log.
    pub door: &'static str,
    /// The memory map as given.
    pub regions: ArrayVec<Region, MAX_REGIONS>,
    /// Entries of the memory map beyond that.
    pub lost_regions: u32,
    /// Command line: the one there is, or the shim's own.
    pub cmdline: ArrayVec<u8, MAX_CMDLINE>,
    /// The kernel's command line where it has one of its own; then only the shim's words count in
    /// `cmdline`.
    pub kernel_cmdline: Option<ArrayVec<u8, MAX_CMDLINE>>,
    /// Payload: one bundle, or kernel and initrd.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// Modules beyond that.
    pub lost_modules: u32,
    /// Physical address of ACPI's root, if the loader says.
    pub rsdp: Option<u64>,
    /// The screen, if the loader says.
    pub framebuffer: Option<Framebuffer>,
}

impl BootInfo {
    pub(crate) fn by(door: &'static str) -> Self {
        Self { door, ..Self::default() }
    }

    pub(crate) fn add_region(&mut self, start: u64, bytes: u64, kind: u32) {
        let region =
            Region { start, end: start.saturating_add(bytes), ram: kind == memory_type::RAM };
        if region.end <= region.start {
            return;
        }
        match self.regions.last_mut() {
            Some(last) if last.end == region.start && last.ram == region.ram => {
                last.end = region.end;
            }
            _ => {
                if self.regions.try_push(region).is_err() {
                    self.lost_regions += 1;
                }
            }
        }
    }

    pub(crate) fn add_module(&mut self, start: u64, len: u64) {
        if self.modules.try_push(Module { start, len }).is_err() {
            self.lost_modules += 1;
        }
    }
}

/// A string that ends with a NUL, cut at [`MAX_CMDLINE`]; empty at address 0.
pub fn string(read: &Reader<'_>, address: u64) -> ArrayVec<u8, MAX_CMDLINE> {
    let mut text = ArrayVec::new();
    if address == 0 {
        return text;
    }
    for offset in 0..MAX_CMDLINE as u64 {
        let byte = address.checked_add(offset).and_then(|at| read(at, 1)?.first().copied());
        match byte {
            None | Some(0) => break,
            Some(byte) => text.push(byte),
        }
    }
    text
}

/// Text that is in memory already, up to its NUL, cut at [`MAX_CMDLINE`].
pub fn line(text: &[u8]) -> ArrayVec<u8, MAX_CMDLINE> {
    until_nul(text).iter().copied().take(MAX_CMDLINE).collect()
}
