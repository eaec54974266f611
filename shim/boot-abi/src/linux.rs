//! Linux's boot protocol (Documentation/arch/x86/{boot,zero-page}.rst).

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::info::string;
use crate::{BootInfo, Channel, Framebuffer, PixelFormat, Reader};

const PAGE: usize = 4096;
/// Offsets in `boot_params`.
mod at {
    pub const VIDEO_TYPE: usize = 0x0f;
    pub const LFB_WIDTH: usize = 0x12;
    pub const LFB_HEIGHT: usize = 0x14;
    pub const LFB_DEPTH: usize = 0x16;
    pub const LFB_BASE: usize = 0x18;
    pub const LFB_PITCH: usize = 0x24;
    pub const RED: usize = 0x26;
    pub const GREEN: usize = 0x28;
    pub const BLUE: usize = 0x2a;
    pub const VIDEO_CAPABILITIES: usize = 0x36;
    pub const LFB_BASE_HIGH: usize = 0x3a;
    pub const RSDP: usize = 0x70;
    pub const INITRD_HIGH: usize = 0xc0;
    pub const INITRD_BYTES_HIGH: usize = 0xc4;
    pub const CMDLINE_HIGH: usize = 0xc8;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const INITRD: usize = 0x218;
    pub const INITRD_BYTES: usize = 0x21c;
    pub const CMDLINE: usize = 0x228;
    pub const E820: usize = 0x2d0;
}
const E820_BYTES: usize = 20;
/// Entries the page has room for.
const MAX_E820: usize = 128;

/// Reads the zero page at `params`.
#[must_use]
pub fn linux(read: &Reader<'_>, params: u64) -> BootInfo {
    let mut info = BootInfo::by("Linux boot protocol");
    let Some(page) = read(params, PAGE) else { return info };
    let word = |at| u32_at(page, at).map_or(0, u64::from);
    let wide = |low, high| word(low) | word(high) << 32;
    let entries = u8_at(page, at::E820_ENTRIES).map_or(0, usize::from).min(MAX_E820);
    for entry in (0..entries).map(|n| at::E820 + n * E820_BYTES) {
        let fields = (u64_at(page, entry), u64_at(page, entry + 8), u32_at(page, entry + 16));
        if let (Some(start), Some(bytes), Some(kind)) = fields {
            info.add_region(start, bytes, kind);
        }
    }
    info.cmdline = string(read, wide(at::CMDLINE, at::CMDLINE_HIGH));
    let bytes = wide(at::INITRD_BYTES, at::INITRD_BYTES_HIGH);
    if bytes != 0 {
        info.add_module(wide(at::INITRD, at::INITRD_HIGH), bytes);
    }
    info.rsdp = u64_at(page, at::RSDP).filter(|&address| address != 0);
    info.framebuffer = framebuffer(page);
    info
}

/// The linear framebuffer of `screen_info`.
fn framebuffer(page: &[u8]) -> Option<Framebuffer> {
    const VESA: u8 = 0x23;
    const EFI: u8 = 0x70;
    const BASE_IS_64_BIT: u32 = 1 << 1;
    if !matches!(u8_at(page, at::VIDEO_TYPE)?, VESA | EFI) {
        return None;
    }
    let channel = |at| Some(Channel { bits: u8_at(page, at)?, shift: u8_at(page, at + 1)? });
    let high = match u32_at(page, at::VIDEO_CAPABILITIES)? & BASE_IS_64_BIT {
        0 => 0,
        _ => u32_at(page, at::LFB_BASE_HIGH)?,
    };
    Some(Framebuffer {
        address: u64::from(high) << 32 | u64::from(u32_at(page, at::LFB_BASE)?),
        pitch: u16_at(page, at::LFB_PITCH)?.into(),
        width: u16_at(page, at::LFB_WIDTH)?.into(),
        height: u16_at(page, at::LFB_HEIGHT)?.into(),
        bpp: u8::try_from(u16_at(page, at::LFB_DEPTH)?).ok()?,
        format: PixelFormat::Rgb(channel(at::RED)?, channel(at::GREEN)?, channel(at::BLUE)?),
    })
}
