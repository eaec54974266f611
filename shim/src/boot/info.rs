//! What a boot loader tells, in one form for all doors.

use arrayvec::ArrayVec;

/// A range of physical memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Ordinary RAM (E820 type 1), as opposed to everything else.
    pub ram: bool,
}

/// A file the loader put into memory.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Most entries of a memory map that are looked at.
pub const MAX_REGIONS: usize = 128;
/// Longest command line.
pub const MAX_CMDLINE: usize = 4096;

/// The loader's information.
#[derive(Debug, Default)]
pub struct BootInfo {
    /// Which door: for the log.
    pub door: &'static str,
    /// The memory map as given.
    pub regions: ArrayVec<Region, MAX_REGIONS>,
    /// Command line.
    pub cmdline: ArrayVec<u8, MAX_CMDLINE>,
    /// Payload: one bundle, or kernel and initrd.
    pub modules: ArrayVec<Module, 4>,
    /// ACPI's root, if the loader says.
    pub rsdp: Option<u64>,
}

/// E820 type of RAM, which PVH uses too.
const E820_RAM: u32 = 1;

impl BootInfo {
    fn add_region(&mut self, start: u64, bytes: u64, kind: u32) {
        let region = Region { start, end: start.saturating_add(bytes), ram: kind == E820_RAM };
        let _ = self.regions.try_push(region);
    }

    /// Copies a zero-terminated string.
    ///
    /// # Safety
    /// `address` must be 0 or the identity-mapped address of readable memory.
    unsafe fn take_cmdline(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        for offset in 0..MAX_CMDLINE as u64 - 1 {
            // SAFETY: the caller's promise; the string ends before memory does.
            let byte = unsafe { ((address + offset) as *const u8).read() };
            if byte == 0 {
                break;
            }
            self.cmdline.push(byte);
        }
    }

    /// Linux boot protocol (Documentation/arch/x86/{boot,zero-page}.rst).
    ///
    /// # Safety
    /// `params` must be the identity-mapped zero page of the loader.
    pub unsafe fn from_linux(params: u64) -> Self {
        const PAGE: usize = 4096;
        // SAFETY: the caller's promise; nothing writes the page now.
        let page = unsafe { core::slice::from_raw_parts(params as *const u8, PAGE) };
        let u32_at =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let wide = |low: usize, high: usize| u64::from(u32_at(low)) | u64::from(u32_at(high)) << 32;
        let mut info = Self { door: "Linux boot protocol", ..Self::default() };
        let entries = usize::from(page[0x1e8]).min(MAX_REGIONS);
        for entry in (0..entries).map(|n| 0x2d0 + n * 20) {
            info.add_region(u64_at(entry), u64_at(entry + 8), u32_at(entry + 16));
        }
        // SAFETY: the loader's address of the command line, or 0.
        unsafe { info.take_cmdline(wide(0x228, 0x0c8)) };
        let module = Module { start: wide(0x218, 0x0c0), len: wide(0x21c, 0x0c4) };
        if module.len != 0 {
            info.modules.push(module);
        }
        info.rsdp = Some(u64_at(0x70)).filter(|&a| a != 0);
        info
    }

    /// PVH (xen/include/public/arch-x86/hvm/start_info.h).
    ///
    /// # Safety
    /// `start_info` must be the identity-mapped hvm_start_info of the loader.
    pub unsafe fn from_pvh(start_info: u64) -> Self {
        const MAGIC: u32 = 0x336e_c578;
        let word = |at: u64| {
            // SAFETY: fields of the loader's structures, 8-byte aligned as the ABI has them.
            unsafe { (at as *const u64).read_unaligned() }
        };
        let mut info = Self { door: "PVH", ..Self::default() };
        if word(start_info) as u32 != MAGIC {
            return info;
        }
        let version = (word(start_info) >> 32) as u32;
        let modules = (word(start_info + 8) >> 32).min(4);
        let module_list = word(start_info + 16);
        for entry in (0..modules).map(|n| module_list + n * 32) {
            info.modules.push(Module { start: word(entry), len: word(entry + 8) });
        }
        // SAFETY: the loader's address of the command line, or 0.
        unsafe { info.take_cmdline(word(start_info + 24)) };
        info.rsdp = Some(word(start_info + 32)).filter(|&a| a != 0);
        if version >= 1 {
            let map = word(start_info + 40);
            let entries = u64::from(word(start_info + 48) as u32).min(MAX_REGIONS as u64);
            for entry in (0..entries).map(|n| map + n * 24) {
                info.add_region(word(entry), word(entry + 8), word(entry + 16) as u32);
            }
        }
        info
    }
}
