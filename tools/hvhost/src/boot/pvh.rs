//! The PVH door: 32-bit entry with `hvm_start_info` in EBX
//! (`xen/include/public/arch-x86/hvm/start_info.h`).

use super::elf::Image;
use super::{COMMAND_LINE, Entry, GDT, Machine, Payload, place_blocks, write_command_line};
use anyhow::{Context, Result};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x6100;
const MODULES: u64 = 0x6400;
const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`, version 1.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
struct MapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Loads an ELF kernel whose note names `entry`.
///
/// # Errors
/// Kernel or modules do not fit.
pub fn load(machine: &Machine, payload: &Payload, image: &Image, entry: u64) -> Result<Entry> {
    let kernel_end = image.load(machine)?;
    let placed = place_blocks(machine, &payload.modules, kernel_end, u64::MAX, true)?;
    write_command_line(machine.memory, &payload.command_line)?;
    let put = |bytes: &[u8], at: u64| {
        machine.memory.write_slice(bytes, GuestAddress(at)).context("cannot place hvm_start_info")
    };
    let map: Vec<MapEntry> = machine
        .map
        .iter()
        .map(|r| MapEntry { addr: r.start, size: r.len, kind: r.kind as u32, reserved: 0 })
        .collect();
    put(map.as_slice().as_bytes(), MEMORY_MAP)?;
    let modules: Vec<Module> = placed
        .iter()
        .map(|(paddr, size)| Module { paddr: *paddr, size: *size, cmdline_paddr: 0, reserved: 0 })
        .collect();
    put(modules.as_slice().as_bytes(), MODULES)?;
    let info = StartInfo {
        magic: MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::try_from(modules.len())?,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: machine.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len())?,
        reserved: 0,
    };
    put(info.as_bytes(), START_INFO)?;
    // Null, 32-bit code, data, task state: as the descriptors in the registers.
    put([0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x8b00_0000_0067].as_bytes(), GDT)?;
    Ok(Entry::Protected32 { rip: entry, rbx: START_INFO })
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{elf64, machine, memory};
    use super::super::load as load_any;
    use super::*;
    use crate::options::Door;

    fn payload(modules: usize) -> Payload {
        Payload {
            kernel: elf64(0x20_0000, b"kernel", 0x3000, Some(0x20_0040)),
            modules: (0..modules).map(|n| vec![n as u8 + 1; 100]).collect(),
            command_line: "console=ttyS0".into(),
        }
    }

    #[test]
    fn start_info_tells_all() {
        let (memory, map) = memory();
        let machine = machine(&memory, &map);
        let entry = load_any(&machine, &payload(2), Door::Auto).unwrap();
        assert_eq!(entry, Entry::Protected32 { rip: 0x20_0040, rbx: 0x6000 });
        let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!((word(0x6000), word(0x6004), word(0x600c)), (MAGIC, 1, 2));
        assert_eq!((long(0x6018), long(0x6020)), (COMMAND_LINE, 0xe_0000));
        assert_eq!(word(0x6030) as usize, map.len());
        let memmap = long(0x6028);
        assert_eq!((long(memmap), long(memmap + 8), word(memmap + 16)), (0, 0x9_fc00, 1));
        let modules = long(0x6010);
        assert_eq!((long(modules), long(modules + 8)), ((64 << 20) - 0x2000, 100));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(long(modules + 32))).unwrap(), 2);
        let mut text = [0u8; 14];
        memory.read_slice(&mut text, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
    }

    #[test]
    fn no_modules_no_list() {
        let (memory, map) = memory();
        load_any(&machine(&memory, &map), &payload(0), Door::Pvh).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x6010)).unwrap(), 0);
    }

    #[test]
    fn a_kernel_without_the_note_is_refused() {
        let (memory, map) = memory();
        let mut payload = payload(0);
        payload.kernel = elf64(0x20_0000, b"kernel", 0x3000, None);
        let error = load_any(&machine(&memory, &map), &payload, Door::Pvh).unwrap_err();
        assert!(error.to_string().contains("PVH"), "{error}");
    }
}
