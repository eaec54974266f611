//! Into the shim.

use core::arch::asm;

use boot_abi::memory_type;
use boot_abi::multiboot2::{BOOTLOADER_MAGIC, Writer};
use uefi::boot::{self, MemoryType};
use uefi::mem::memory_map::MemoryMap;

use crate::memory::Pages;
use crate::{Failure, config, firmware};

/// Bytes for the information: two command lines and two thousand entries of the memory map.
const INFORMATION_BYTES: usize = 64 << 10;

/// Everything but the memory map.
pub struct Ready {
    writer: Writer<'static>,
    /// Address of the information.
    information: u32,
    /// Address of the shim's entry.
    entry: u32,
}

/// Writes what the shim is told.
pub fn prepare(
    entry: u32,
    kernel: &Pages,
    initrd: Option<&Pages>,
    cmdline: &[u8],
    words: &[u8],
) -> Result<Ready, Failure> {
    let pages =
        Pages::new("memory for boot information", INFORMATION_BYTES, MemoryType::LOADER_DATA)?;
    let information = pages.address();
    let mut writer = Writer::new(pages.leak());
    writer.cmdline(words);
    writer.module(kernel.address(), kernel.end(), &config::line(cmdline));
    if let Some(initrd) = initrd {
        writer.module(initrd.address(), initrd.end(), b"");
    }
    if let Some(rsdp) = firmware::rsdp() {
        writer.rsdp(&rsdp);
    }
    if let Some(screen) = firmware::screen() {
        writer.framebuffer(&screen);
    }
    Ok(Ready { writer, information, entry })
}

/// What becomes of a kind of memory without boot services.
fn kind(of: MemoryType) -> u32 {
    match of {
        MemoryType::CONVENTIONAL
        | MemoryType::LOADER_CODE
        | MemoryType::LOADER_DATA
        | MemoryType::BOOT_SERVICES_CODE
        | MemoryType::BOOT_SERVICES_DATA => memory_type::RAM,
        MemoryType::ACPI_RECLAIM => memory_type::ACPI,
        MemoryType::ACPI_NON_VOLATILE => memory_type::NVS,
        MemoryType::UNUSABLE => memory_type::UNUSABLE,
        _ => memory_type::RESERVED,
    }
}

/// Leaves the firmware and enters the shim.
pub fn enter(ready: Ready) -> ! {
    let Ready { mut writer, information, entry } = ready;
    // SAFETY: no protocol is open any more, and nothing is printed or allocated from here on.
    let map = unsafe { boot::exit_boot_services(None) };
    let ranges = map.entries().map(|r| (r.phys_start, r.page_count * 4096, kind(r.ty)));
    writer.memory_map(ranges);
    if writer.finish().is_none() {
        halt();
    }
    // SAFETY: the shim's entry, in the state it describes: 64-bit mode, identity mapped, the
    // information's address in EBX. It does not return.
    unsafe {
        asm!(
            "cli",
            "cld",
            "mov ebx, ecx",
            "jmp rdx",
            in("eax") BOOTLOADER_MAGIC,
            in("ecx") information,
            in("rdx") u64::from(entry),
            options(noreturn),
        )
    }
}

/// There is no console any more to say anything on.
fn halt() -> ! {
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
