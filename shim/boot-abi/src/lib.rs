//! What boot loaders hand over, read into one form: Linux's 64-bit boot protocol, PVH, Multiboot2;
//! and what a loader has to know of the image.
//!
//! Everything here comes from a loader's memory and is foreign: addresses are looked at only through
//! a [`Reader`], which decides what may be read, lists are bounded, and what is damaged counts as
//! absent.
#![no_std]
#![forbid(unsafe_code)]

mod bytes;
pub mod elf;
mod info;
mod linux;
pub mod multiboot2;
mod pvh;

pub use info::{
    BootInfo, Channel, Framebuffer, MAX_CMDLINE, MAX_MODULES, MAX_REGIONS, Module, PixelFormat,
    Region,
};
pub use linux::linux;
pub use pvh::pvh;

/// Reads physical memory: so many bytes at an address, or `None` where there is nothing to read.
pub type Reader<'a> = dyn Fn(u64, usize) -> Option<&'a [u8]> + 'a;

/// Kinds of memory, as E820, PVH and Multiboot2 number them alike.
pub mod memory_type {
    /// Ordinary RAM.
    pub const RAM: u32 = 1;
    /// Not to be used.
    pub const RESERVED: u32 = 2;
    /// ACPI tables: RAM once they have been read.
    pub const ACPI: u32 = 3;
    /// Firmware's, kept over sleep.
    pub const NVS: u32 = 4;
    /// Defective.
    pub const UNUSABLE: u32 = 5;
}

#[cfg(test)]
mod tests;
