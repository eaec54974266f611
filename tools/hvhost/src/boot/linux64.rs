//! The Linux 64-bit boot protocol for ELF kernels loaded at their physical
//! addresses: entered in 64-bit mode with `boot_params` in RSI
//! (Linux `Documentation/arch/x86/boot.rst`, `zero-page.rst`).

use super::elf::Image;
use super::{COMMAND_LINE, Entry, GDT, Machine, Payload, place_blocks, write_command_line};
use crate::screen;
use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

/// Where `boot_params` is.
pub const BOOT_PARAMS: u64 = 0x2000;
const PAGE_TABLES: u64 = 0x9000;

/// Offsets in `boot_params`.
pub mod offset {
    #![allow(missing_docs, reason = "names are the protocol's own")]
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_HEADER: usize = 0x1f1;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820_TABLE: usize = 0x2d0;
}

/// Loader type "undefined".
const LOADER_UNDEFINED: u8 = 0xff;
const PROTOCOL_VERSION: u16 = 0x020f;

/// The zero page while it is filled.
pub struct BootParams {
    bytes: Vec<u8>,
}

impl Default for BootParams {
    fn default() -> Self {
        Self { bytes: vec![0; 4096] }
    }
}

impl BootParams {
    /// Stores bytes; what lies outside the page is dropped.
    pub fn put(&mut self, offset: usize, value: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    }

    /// The page so far.
    #[must_use]
    pub fn page(&self) -> &[u8] {
        &self.bytes
    }

    fn put32(&mut self, offset: usize, value: u64) {
        self.put(offset, &(value as u32).to_le_bytes());
    }

    /// Fills in what does not depend on the kind of kernel, places the initrd
    /// above `floor` and below `limit`, and writes the page.
    ///
    /// # Errors
    /// The initrd does not fit, or there is more than one module.
    pub fn finish(
        mut self,
        machine: &Machine,
        payload: &Payload,
        floor: u64,
        limit: u64,
    ) -> Result<()> {
        ensure!(payload.modules.len() <= 1, "the Linux boot protocol has one slot, the initrd");
        let high = limit == u64::MAX && !machine.openvmm_like;
        let placed = place_blocks(machine, &payload.modules, floor, limit, high)?;
        if let Some((at, size)) = placed.first() {
            self.put32(offset::RAMDISK_IMAGE, *at);
            self.put32(offset::RAMDISK_SIZE, *size);
            self.put32(offset::EXT_RAMDISK_IMAGE, at >> 32);
            self.put32(offset::EXT_RAMDISK_SIZE, size >> 32);
        }
        self.put(offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        self.put32(offset::CMD_LINE_PTR, COMMAND_LINE);
        if !machine.openvmm_like {
            self.put(offset::ACPI_RSDP_ADDR, &machine.rsdp.to_le_bytes());
        }
        screen::describe(machine.memory, &mut self);
        self.put(offset::E820_ENTRIES, &[u8::try_from(machine.map.len())?]);
        for (n, range) in machine.map.iter().enumerate() {
            let at = offset::E820_TABLE + 20 * n;
            self.put(at, &range.start.to_le_bytes());
            self.put(at + 8, &range.len.to_le_bytes());
            self.put32(at + 16, range.kind as u64);
        }
        write_command_line(machine.memory, &payload.command_line)?;
        machine
            .memory
            .write_slice(&self.bytes, GuestAddress(BOOT_PARAMS))
            .context("cannot place boot_params")
    }
}

/// Loads an ELF kernel that is entered at `e_entry`, a physical address.
///
/// # Errors
/// The kernel is not 64-bit, or something does not fit.
pub fn load(machine: &Machine, payload: &Payload, image: &Image) -> Result<Entry> {
    ensure!(image.is_64, "the Linux 64-bit door needs an ELF64 kernel");
    let end = image.load(machine)?;
    let mut params = BootParams::default();
    params.put(offset::BOOT_FLAG, &0xaa55u16.to_le_bytes());
    params.put(offset::HEADER, b"HdrS");
    if !machine.openvmm_like {
        params.put(offset::VERSION, &PROTOCOL_VERSION.to_le_bytes());
    }
    params.put32(offset::KERNEL_ALIGNMENT, 0x100_0000);
    params.finish(machine, payload, end, u64::MAX)?;
    long_mode_entry(machine, image.entry)
}

/// Writes GDT and page tables for an entry at `rip` in 64-bit mode.
///
/// # Errors
/// Never in a machine with memory at all.
pub fn long_mode_entry(machine: &Machine, rip: u64) -> Result<Entry> {
    const CODE64: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    // The protocol wants selectors 0x10 and 0x18; OpenVMM uses 0x08 and 0x10.
    let (gdt, code) = if machine.openvmm_like {
        ([0, CODE64, DATA, 0], 0x08)
    } else {
        ([0, 0, CODE64, DATA], 0x10)
    };
    let put = |bytes: &[u8], at: u64| {
        machine.memory.write_slice(bytes, GuestAddress(at)).context("cannot place page tables")
    };
    put(gdt.as_bytes(), GDT)?;
    // PML4, PDPT, four PDs of 2 MiB pages: 0 to 4 GiB.
    const TABLE: u64 = 0x1000;
    put(&((PAGE_TABLES + TABLE) | 3).to_le_bytes(), PAGE_TABLES)?;
    for gib in 0..4 {
        let pd = PAGE_TABLES + (2 + gib) * TABLE;
        put(&(pd | 3).to_le_bytes(), PAGE_TABLES + TABLE + 8 * gib)?;
        let entries: Vec<u64> = (0..512).map(|n| gib << 30 | n << 21 | 0x83).collect();
        put(entries.as_slice().as_bytes(), pd)?;
    }
    Ok(Entry::Long64 { rip, rsi: BOOT_PARAMS, cr3: PAGE_TABLES, code })
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{elf64, machine, memory};
    use super::super::load as load_any;
    use super::*;
    use crate::options::Door;

    fn payload() -> Payload {
        Payload {
            kernel: elf64(0x20_0000, b"kernel", 0x3000, Some(0x20_0040)),
            modules: vec![vec![9; 5000]],
            command_line: "quiet".into(),
        }
    }

    #[test]
    fn zero_page() {
        let (memory, map) = memory();
        let machine = machine(&memory, &map);
        let entry = load_any(&machine, &payload(), Door::Linux64).unwrap();
        let Entry::Long64 { rip, rsi, cr3, code } = entry else { panic!("{entry:?}") };
        assert_eq!((rip, rsi, code), (0x20_0000, 0x2000, 0x10));
        let word = |at: usize| memory.read_obj::<u32>(GuestAddress(0x2000 + at as u64)).unwrap();
        assert_eq!(word(offset::HEADER), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(word(offset::VERSION) & 0xffff, 0x20f);
        assert_eq!(word(offset::ACPI_RSDP_ADDR), 0xe_0000);
        assert_eq!(word(offset::RAMDISK_IMAGE), (64 << 20) - 0x2000);
        assert_eq!(word(offset::RAMDISK_SIZE), 5000);
        assert_eq!(word(offset::EXT_RAMDISK_IMAGE), 0);
        assert_eq!(u64::from(word(offset::CMD_LINE_PTR)), COMMAND_LINE);
        assert_eq!(word(offset::E820_ENTRIES) & 0xff, map.len() as u32);
        assert_eq!(word(offset::E820_TABLE + 8), 0x9_fc00);
        assert_eq!(word(offset::E820_TABLE + 16), 1);
        // 3 GiB + 2 MiB is mapped to itself.
        let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let pdpt = long(cr3) & !0xfff;
        let pd = long(pdpt + 24) & !0xfff;
        assert_eq!(long(pd + 8), 0xc020_0083);
        assert_eq!(long(GDT + 0x10) >> 53 & 1, 1, "64-bit code");
    }

    #[test]
    fn openvmm_like_entry() {
        let (memory, map) = memory();
        let machine = Machine { openvmm_like: true, ..machine(&memory, &map) };
        let entry = load_any(&machine, &payload(), Door::Linux64).unwrap();
        assert!(matches!(entry, Entry::Long64 { code: 0x08, .. }));
        let word = |at: usize| memory.read_obj::<u32>(GuestAddress(0x2000 + at as u64)).unwrap();
        assert_eq!((word(offset::VERSION) & 0xffff, word(offset::ACPI_RSDP_ADDR)), (0, 0));
    }

    #[test]
    fn one_slot_only() {
        let (memory, map) = memory();
        let mut payload = payload();
        payload.modules.push(vec![1]);
        assert!(load_any(&machine(&memory, &map), &payload, Door::Linux64).is_err());
    }
}
