//! Multiboot2 (specification 2.0): an image's header, and the information a loader leaves.

mod header;
mod info;
mod writer;

pub use header::{Header, Relocatable};
pub use info::multiboot2;
pub use writer::Writer;

/// What EAX holds at entry.
pub const BOOTLOADER_MAGIC: u32 = 0x36d7_6289;
/// First word of an image's header.
pub const HEADER_MAGIC: u32 = 0xe852_50d6;
/// Architecture of the header: 32-bit protected mode of x86.
pub const ARCHITECTURE_I386: u32 = 0;
/// The header begins within this much of the file ...
pub const HEADER_SEARCH: usize = 32768;
/// ... at a multiple of this; tags begin at multiples of it, too.
pub const ALIGN: usize = 8;

/// Tags of the header.
pub mod header_tag {
    /// The last one.
    pub const END: u16 = 0;
    /// Where to enter, in 32-bit protected mode.
    pub const ENTRY: u16 = 3;
    /// Whether there must be a console, and of what kinds.
    pub const CONSOLE: u16 = 4;
    /// What framebuffer is wanted.
    pub const FRAMEBUFFER: u16 = 5;
    /// Modules are to be page-aligned.
    pub const MODULE_ALIGN: u16 = 6;
    /// Where to enter in 64-bit mode.
    pub const ENTRY_EFI64: u16 = 9;
    /// The image may be put elsewhere.
    pub const RELOCATABLE: u16 = 10;
    /// Flag: a loader that does not know the tag may go on.
    pub const OPTIONAL: u16 = 1;
    /// Console flag: VGA text is understood.
    pub const CONSOLE_EGA_TEXT: u32 = 1 << 1;
    /// Preference of [`RELOCATABLE`]: the lowest address possible.
    pub const PREFER_LOW: u32 = 1;
}

/// Tags of the loader's information.
pub mod tag {
    /// The last one.
    pub const END: u32 = 0;
    /// Command line.
    pub const CMDLINE: u32 = 1;
    /// A module.
    pub const MODULE: u32 = 3;
    /// Memory map.
    pub const MEMORY_MAP: u32 = 6;
    /// The screen.
    pub const FRAMEBUFFER: u32 = 8;
    /// A copy of the RSDP of ACPI 1.0.
    pub const ACPI_OLD: u32 = 14;
    /// A copy of the RSDP of later versions.
    pub const ACPI_NEW: u32 = 15;
    /// Framebuffer with red, green and blue.
    pub const FRAMEBUFFER_RGB: u8 = 1;
    /// Framebuffer of VGA text.
    pub const FRAMEBUFFER_TEXT: u8 = 2;
}
