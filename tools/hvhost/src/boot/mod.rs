//! The ways into a kernel. Each puts the payload into guest memory and says in
//! which state the first processor starts.
//!
//! ```text
//! 0x0500  GDT                 0x6000  hvm_start_info, memory map, modules (PVH)
//! 0x2000  boot_params         0x9000  page tables (Linux 64-bit)
//! 0x2_0000 command line
//! ```

pub mod bzimage;
pub mod elf;
pub mod linux64;
pub mod pvh;

use crate::memory::{HIGH_MEMORY_START, HOLE_END, HOLE_START, Memory, Range, RangeKind};
use crate::options::Door;
use anyhow::{Context, Result, bail};
use vm_memory::{Bytes, GuestAddress};

/// Where the GDT is.
pub const GDT: u64 = 0x500;
/// Where the kernel command line is.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes for the command line with its final zero.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
const PAGE: u64 = 0x1000;

/// What is to be booted.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// Kernel image.
    pub kernel: Vec<u8>,
    /// Initrd first, then further modules.
    pub modules: Vec<Vec<u8>>,
    /// Command line.
    pub command_line: String,
}

/// What a door needs to know of the machine.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// Guest memory.
    pub memory: &'a Memory,
    /// Memory map.
    pub map: &'a [Range],
    /// Address of the RSDP.
    pub rsdp: u64,
    /// Entry state as OpenVMM gives it.
    pub openvmm_like: bool,
}

/// State in which the first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, flat segments, paging off.
    Protected32 {
        /// Entry point.
        rip: u64,
        /// RBX.
        rbx: u64,
    },
    /// 64-bit mode, 0 to 4 GiB mapped one to one.
    Long64 {
        /// Entry point.
        rip: u64,
        /// RSI.
        rsi: u64,
        /// Page tables.
        cr3: u64,
        /// Code selector; the data selector is the next.
        code: u16,
    },
}

/// Puts the payload into memory and chooses the entry state.
///
/// # Errors
/// The kernel is of no known kind, does not suit the door, or does not fit.
pub fn load(machine: &Machine, payload: &Payload, door: Door) -> Result<Entry> {
    if payload.command_line.len() >= COMMAND_LINE_MAX {
        bail!("the command line is longer than {} bytes", COMMAND_LINE_MAX - 1);
    }
    if bzimage::is_bzimage(&payload.kernel) {
        return match door {
            Door::Pvh => bail!("a bzImage has no PVH entry; use --door linux64 or an ELF kernel"),
            Door::Auto | Door::Linux64 => bzimage::load(machine, payload),
        };
    }
    let image = elf::Image::parse(&payload.kernel).context("the kernel is no bzImage and")?;
    let pvh = image.pvh_entry().context("the kernel's ELF notes")?;
    match (door, pvh) {
        (Door::Pvh | Door::Auto, Some(entry)) => pvh::load(machine, payload, &image, entry),
        (Door::Pvh, None) => bail!("the kernel has no PVH entry (ELF note Xen 18)"),
        (Door::Linux64 | Door::Auto, _) => linux64::load(machine, payload, &image),
    }
}

/// Writes the command line with its final zero.
fn write_command_line(memory: &Memory, text: &str) -> Result<()> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE)).context("cannot place the command line")
}

/// Puts `blocks` at the top of memory: below 4 GiB and `limit` if they fit there
/// above `floor`, else above 4 GiB where `high` allows it. Returns address and size of each.
fn place_blocks(
    machine: &Machine,
    blocks: &[Vec<u8>],
    floor: u64,
    limit: u64,
    high: bool,
) -> Result<Vec<(u64, u64)>> {
    let size = |block: &Vec<u8>| (block.len() as u64).next_multiple_of(PAGE);
    let total: u64 = blocks.iter().map(size).sum();
    let ram = |from: u64, to: u64| {
        machine
            .map
            .iter()
            .filter(|r| r.kind == RangeKind::Ram && r.start >= from && r.start < to)
            .map(|r| (r.start, r.start + r.len))
            .next_back()
    };
    let fits = |(start, end): (u64, u64), floor: u64| {
        let at = end.checked_sub(total)? & !(PAGE - 1);
        (at >= start.max(floor)).then_some(at)
    };
    let low = ram(HIGH_MEMORY_START, HOLE_START)
        .and_then(|(start, end)| fits((start, end.min(limit) & !(PAGE - 1)), floor));
    let above = || if high { ram(HOLE_END, u64::MAX).and_then(|r| fits(r, 0)) } else { None };
    let Some(mut at) = low.or_else(above) else {
        bail!("initrd and modules ({} KiB) do not fit into memory beside the kernel", total >> 10);
    };
    let mut placed = Vec::with_capacity(blocks.len());
    for block in blocks {
        machine
            .memory
            .write_slice(block, GuestAddress(at))
            .context("cannot place initrd and modules")?;
        placed.push((at, block.len() as u64));
        at += size(block);
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{allocate, memory_map};

    #[test]
    fn blocks_go_to_the_top_of_low_memory() {
        let bytes = 64 << 20;
        let (memory, map) = (allocate(bytes).unwrap(), memory_map(bytes));
        let machine = Machine { memory: &memory, map: &map, rsdp: 0, openvmm_like: false };
        let blocks = [vec![1u8; 5000], vec![2u8; 10]];
        let placed = place_blocks(&machine, &blocks, 1 << 20, u64::MAX, true).unwrap();
        assert_eq!(placed, [(bytes - 0x3000, 5000), (bytes - 0x1000, 10)]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(bytes - 0x1000)).unwrap(), 2);
        let low = place_blocks(&machine, &blocks, 1 << 20, 32 << 20, true).unwrap();
        assert_eq!(low[0].0, (32 << 20) - 0x3000);
        assert!(place_blocks(&machine, &blocks, bytes - 0x2000, u64::MAX, true).is_err());
        assert!(place_blocks(&machine, &[vec![0; 65 << 20]], 0, u64::MAX, true).is_err());
        assert!(place_blocks(&machine, &[], 0, u64::MAX, true).unwrap().is_empty());
    }

    #[test]
    fn blocks_go_above_the_hole_when_they_must() {
        let bytes = 4 << 30;
        let (memory, map) = (allocate(bytes).unwrap(), memory_map(bytes));
        let machine = Machine { memory: &memory, map: &map, rsdp: 0, openvmm_like: false };
        let blocks = [vec![7u8; 10]];
        let placed = place_blocks(&machine, &blocks, HOLE_START, u64::MAX, true).unwrap();
        assert_eq!(placed[0].0, HOLE_END + (1 << 30) - 0x1000);
        assert!(place_blocks(&machine, &blocks, HOLE_START, u64::MAX, false).is_err());
    }

    #[test]
    fn unknown_kernels_are_refused() {
        let bytes = 64 << 20;
        let (memory, map) = (allocate(bytes).unwrap(), memory_map(bytes));
        let machine = Machine { memory: &memory, map: &map, rsdp: 0, openvmm_like: false };
        let payload = Payload { kernel: b"#!/bin/sh\n".to_vec(), ..Payload::default() };
        let error = format!("{:#}", load(&machine, &payload, Door::Auto).unwrap_err());
        assert!(error.contains("ELF"), "{error}");
        let long = Payload { command_line: "x".repeat(COMMAND_LINE_MAX), ..Payload::default() };
        assert!(load(&machine, &long, Door::Auto).is_err());
    }
}
