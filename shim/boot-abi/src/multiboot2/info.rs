//! The loader's information.

use super::{ALIGN, tag};
use crate::bytes::{u8_at, u32_at, u64_at};
use crate::info::line;
use crate::{BootInfo, Channel, Framebuffer, PixelFormat, Reader};

/// Bytes before the first tag: total size, reserved.
const HEAD: usize = 8;
/// Bytes of a tag's type and size.
const TAG: usize = 8;
/// Information longer than this is taken for damaged.
const MOST: usize = 1 << 20;

/// Reads the information at `address`.
///
/// The kernel is the first module, and its line is what stands behind the file's name. A first
/// word `placeholder`, which menus made for Xen have there, is dropped.
#[must_use]
pub fn multiboot2(read: &Reader<'_>, address: u64) -> BootInfo {
    let mut info = BootInfo::by("Multiboot2");
    info.kernel_cmdline = Some(line(&[]));
    let total = read(address, HEAD).and_then(|head| u32_at(head, 0)).map_or(0, |n| n as usize);
    let Some(all) =
        Some(total).filter(|n| (HEAD..=MOST).contains(n)).and_then(|n| read(address, n))
    else {
        return info;
    };
    let mut at = HEAD;
    while let Some((kind, body)) = next(all, at) {
        if kind == tag::END {
            break;
        }
        // A damaged tag is as good as absent.
        let _ = take(&mut info, kind, body, address + (at + TAG) as u64);
        at = (at + TAG + body.len()).next_multiple_of(ALIGN);
    }
    info
}

/// Type and body of the tag at `at`.
fn next(all: &[u8], at: usize) -> Option<(u32, &[u8])> {
    let bytes = u32_at(all, at + 4)? as usize;
    Some((u32_at(all, at)?, all.get(at + TAG..at.checked_add(bytes)?)?))
}

fn take(info: &mut BootInfo, kind: u32, body: &[u8], address: u64) -> Option<()> {
    match kind {
        tag::CMDLINE => info.cmdline = line(body),
        tag::MODULE => {
            let (start, end) = (u32_at(body, 0)?, u32_at(body, 4)?);
            if info.modules.is_empty() {
                info.kernel_cmdline = Some(line(kernel_words(body.get(8..)?)));
            }
            info.add_module(start.into(), end.checked_sub(start)?.into());
        }
        tag::MEMORY_MAP => {
            const ENTRY: usize = 24;
            let step = u32_at(body, 0)? as usize;
            if step < ENTRY {
                return None;
            }
            for entry in body.get(8..)?.chunks_exact(step) {
                info.add_region(u64_at(entry, 0)?, u64_at(entry, 8)?, u32_at(entry, 16)?);
            }
        }
        tag::FRAMEBUFFER => info.framebuffer = framebuffer(body),
        tag::ACPI_OLD if info.rsdp.is_none() => info.rsdp = Some(address),
        tag::ACPI_NEW => info.rsdp = Some(address),
        _ => {}
    }
    Some(())
}

fn kernel_words(text: &[u8]) -> &[u8] {
    match text.strip_prefix(b"placeholder") {
        Some(rest) if rest.first().is_none_or(|&c| c == 0 || c.is_ascii_whitespace()) => {
            rest.trim_ascii_start()
        }
        _ => text,
    }
}

fn framebuffer(body: &[u8]) -> Option<Framebuffer> {
    /// Where the colours are described.
    const COLOURS: usize = 24;
    let channel = |at| {
        Some(Channel { shift: u8_at(body, COLOURS + at)?, bits: u8_at(body, COLOURS + at + 1)? })
    };
    let format = match u8_at(body, 21)? {
        tag::FRAMEBUFFER_RGB => PixelFormat::Rgb(channel(0)?, channel(2)?, channel(4)?),
        tag::FRAMEBUFFER_TEXT => PixelFormat::Text,
        _ => return None,
    };
    Some(Framebuffer {
        address: u64_at(body, 0)?,
        pitch: u32_at(body, 8)?,
        width: u32_at(body, 12)?,
        height: u32_at(body, 16)?,
        bpp: u8_at(body, 20)?,
        format,
    })
}
