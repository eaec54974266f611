//! Guest memory and the guest-physical address map.
//!
//! ```text
//! 0x0000_0500  boot structures (GDT, page tables, boot_params or start_info, command line)
//! 0x0009_fc00  end of conventional memory
//! 0x000e_0000  RSDP, ACPI tables
//! 0x0010_0000  RAM: kernel; initrd and modules at the top
//! 0xc000_0000  32-bit hole: 0xe000_0000 the screen, 0xf800_0000 VMBus window, 0xfec0_0000 IOAPIC,
//!              0xfee0_0000 LAPIC, 0xfffb_c000 KVM's own pages
//! 4 GiB        the rest of RAM
//! ```

use anyhow::{Context, Result};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Guest memory of this machine.
pub type Memory = GuestMemoryMmap<()>;

/// Least memory of a machine.
pub const MIN_MEMORY: u64 = 64 << 20;
/// Most memory of a machine.
pub const MAX_MEMORY: u64 = 64 << 30;
/// End of usable conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Where the firmware's read-only area starts: RSDP first, then the tables.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the first MiB.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Start of the 32-bit hole.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the 32-bit hole.
pub const HOLE_END: u64 = 1 << 32;
/// Memory window given to the VMBus device.
pub const VMBUS_WINDOW: (u32, u32) = (0xf800_0000, 0xfbff_ffff);
/// IOAPIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// Page KVM needs for an identity map on some processors.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs for a task state segment on some processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Kind of a range of the memory map; numbers as in E820 and PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable memory.
    Ram = 1,
    /// Not usable.
    Reserved = 2,
}

/// One range of the memory map a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Kind.
    pub kind: RangeKind,
}

/// Backed ranges for `bytes` of memory: below and above the hole.
#[must_use]
pub fn backed_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HOLE_END, bytes - low));
    }
    ranges
}

/// The memory map a guest with `bytes` of memory is told, sorted, without overlap.
#[must_use]
pub fn memory_map(bytes: u64) -> Vec<Range> {
    use RangeKind::{Ram, Reserved};
    let range = |start, end: u64, kind| Range { start, len: end - start, kind };
    let low = bytes.min(HOLE_START);
    let mut map = vec![
        range(0, CONVENTIONAL_END, Ram),
        range(CONVENTIONAL_END, 0xa_0000, Reserved),
        range(ACPI_START, HIGH_MEMORY_START, Reserved),
        range(HIGH_MEMORY_START, low, Ram),
        range(IOAPIC_BASE, HOLE_END, Reserved),
    ];
    if bytes > low {
        map.push(range(HOLE_END, HOLE_END + (bytes - low), Ram));
    }
    map
}

/// Allocates guest memory, zeroed and not yet populated.
///
/// # Errors
/// The host has no address space or memory to give.
pub fn allocate(bytes: u64) -> Result<Memory> {
    allocate_with(bytes, None)
}

/// The same with a range in the 32-bit hole, its start and bytes.
///
/// # Errors
/// As there.
pub fn allocate_with(bytes: u64, in_hole: Option<(u64, u64)>) -> Result<Memory> {
    let mut ranges = backed_ranges(bytes);
    ranges.splice(1..1, in_hole);
    let ranges: Vec<(GuestAddress, usize)> = ranges
        .into_iter()
        .map(|(start, len)| Ok((GuestAddress(start), usize::try_from(len)?)))
        .collect::<Result<_>>()?;
    Memory::from_ranges(&ranges)
        .with_context(|| format!("cannot allocate {} MiB of guest memory", bytes >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_machine_has_no_high_memory() {
        assert_eq!(backed_ranges(64 << 20), [(0, 64 << 20)]);
        assert!(memory_map(64 << 20).iter().all(|r| r.start < HOLE_END));
    }

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(backed_ranges(4 << 30), [(0, 3 << 30), (4 << 30, 1 << 30)]);
        assert_eq!(backed_ranges(3 << 30), [(0, 3 << 30)]);
    }

    proptest! {
        #[test]
        fn map_is_sorted_backed_and_complete(mib in 64u64..=65536) {
            let bytes = mib << 20;
            let map = memory_map(bytes);
            let backed = backed_ranges(bytes);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            let mut ram = 0;
            for r in map.iter().filter(|r| r.kind == RangeKind::Ram) {
                let inside = |(start, len): &(u64, u64)| r.start >= *start && r.start + r.len <= start + len;
                prop_assert!(backed.iter().any(inside));
                ram += r.len;
            }
            // All but the part of the first MiB that is not conventional memory.
            prop_assert_eq!(ram, bytes - (HIGH_MEMORY_START - CONVENTIONAL_END));
            prop_assert_eq!(backed.iter().map(|(_, len)| len).sum::<u64>(), bytes);
        }
    }
}
