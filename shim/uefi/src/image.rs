//! The shim, in the application and in memory.

use boot_abi::elf;
use boot_abi::multiboot2::Header;
use uefi::boot::{self, MemoryAttribute, MemoryType};
use uefi::proto::security::MemoryProtection;

use crate::Failure;
use crate::memory::Pages;

/// The shim's ELF file.
static FILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.elf"));

/// Loads the shim; the address of its 64-bit entry.
pub fn load() -> Result<u32, Failure> {
    let damaged = || Failure::Image("its shim is damaged");
    if FILE.is_empty() {
        return Err(Failure::Image("it was built without the shim (cargo xtask build makes both)"));
    }
    let (Some(segments), Some(header)) = (elf::segments(FILE), Header::find(FILE)) else {
        return Err(damaged());
    };
    let first = segments.iter().map(|s| s.address).min().unwrap_or_default();
    let end = segments.iter().map(|s| s.address + s.bytes).max().unwrap_or_default();
    let (Some(entry), Some(place)) = (header.entry_efi64, header.relocatable) else {
        return Err(damaged());
    };
    if place.align > 4096 {
        return Err(damaged());
    }
    let mut pages =
        Pages::new("memory for the shim", (end - first) as usize, MemoryType::LOADER_CODE)?;
    let memory = pages.bytes_mut();
    for segment in &segments {
        let at = (segment.address - first) as usize;
        memory[at..at + segment.content.len()].copy_from_slice(segment.content);
    }
    allow_execution(&pages);
    Ok(u32::try_from(u64::from(entry) - first).map_err(|_| damaged())? + pages.address())
}

/// Newer firmware makes no memory both writable and executable unless it is asked to; older firmware
/// has nothing to ask, and no need.
fn allow_execution(pages: &Pages) {
    let Ok(handle) = boot::get_handle_for_protocol::<MemoryProtection>() else { return };
    let Ok(protection) = boot::open_protocol_exclusive::<MemoryProtection>(handle) else { return };
    let range = u64::from(pages.address())..u64::from(pages.end()).next_multiple_of(4096);
    let forbidden = MemoryAttribute::EXECUTE_PROTECT | MemoryAttribute::READ_ONLY;
    // A firmware that refuses has protected nothing there.
    let _ = protection.clear_memory_attributes(range, forbidden);
}
