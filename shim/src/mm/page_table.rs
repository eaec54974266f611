//! The shim's part of the address space: built once, shared by every L4 through two slots.

use super::layout::{M2P_L4_SLOT, SHIM_L4_SLOT};
use super::{frames, phys_to_virt};

/// Page-table entry bits.
#[allow(missing_docs, reason = "names are the manuals' own")]
pub mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const PCD: u64 = 1 << 4;
    pub const PWT: u64 = 1 << 3;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const NX: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Present, accessed and dirty: the processor never has to write to the shim's tables.
    pub const RO: u64 = PRESENT | ACCESSED | DIRTY | NX;
    pub const RW: u64 = RO | WRITE;
    pub const RX: u64 = PRESENT | ACCESSED | DIRTY;
    pub const DEVICE: u64 = RW | PCD | PWT;
    /// Entry 4 of [`XEN_PAT`](crate::cpu::XEN_PAT), write combining; until that is loaded it is as
    /// RAM. In 4 KiB pages only: larger ones have the bit elsewhere.
    pub const WRITE_COMBINING: u64 = RW | 1 << 7;
    /// A table: everything allowed, the leaf decides.
    pub const TABLE: u64 = PRESENT | WRITE | ACCESSED;
}

/// Out of frames for page tables.
#[derive(Debug)]
pub struct NoFrames;

/// The two L3 tables.
pub struct ShimTables {
    m2p_l3: u64,
    shim_l3: u64,
    /// Whether the processor has 1 GiB pages.
    huge: bool,
}

fn table(address: u64) -> &'static mut [u64; 512] {
    // SAFETY: `address` is a frame `frames::alloc` gave to this module as a table; only this
    // module refers to it, one entry at a time (no two references are held at once).
    unsafe { &mut *phys_to_virt(address).cast::<[u64; 512]>() }
}

impl ShimTables {
    /// Empty tables.
    pub fn new(huge: bool) -> Result<Self, NoFrames> {
        let m2p_l3 = frames::alloc(1, 4096).ok_or(NoFrames)?;
        let shim_l3 = frames::alloc(1, 4096).ok_or(NoFrames)?;
        Ok(Self { m2p_l3, shim_l3, huge })
    }

    /// The entries of slots 256 and 257.
    pub fn l4_entries(&self) -> [u64; 2] {
        [self.m2p_l3 | pte::TABLE, self.shim_l3 | pte::TABLE]
    }

    fn next(entry: &mut u64) -> Result<u64, NoFrames> {
        if *entry & pte::PRESENT == 0 {
            *entry = frames::alloc(1, 4096).ok_or(NoFrames)? | pte::TABLE;
        }
        Ok(*entry & pte::ADDRESS)
    }

    /// Maps `len` bytes (page multiple) at `va` to `pa`, with the largest pages that fit when
    /// `large` is set.
    pub fn map(
        &mut self,
        va: u64,
        pa: u64,
        len: u64,
        flags: u64,
        large: bool,
    ) -> Result<(), NoFrames> {
        let (mut va, mut pa, end) = (va, pa, va + len);
        while va < end {
            let l3 = match (va >> 39 & 511) as usize {
                M2P_L4_SLOT => self.m2p_l3,
                SHIM_L4_SLOT => self.shim_l3,
                _ => unreachable!("the shim maps only its own slots"),
            };
            let fits = |size: u64| large && (va | pa) & (size - 1) == 0 && end - va >= size;
            let l3_entry = &mut table(l3)[(va >> 30 & 511) as usize];
            let step = if self.huge && fits(1 << 30) {
                *l3_entry = pa | flags | pte::LARGE;
                1 << 30
            } else {
                let l2_entry = &mut table(Self::next(l3_entry)?)[(va >> 21 & 511) as usize];
                if fits(1 << 21) {
                    *l2_entry = pa | flags | pte::LARGE;
                    1 << 21
                } else {
                    table(Self::next(l2_entry)?)[(va >> 12 & 511) as usize] = pa | flags;
                    1 << 12
                }
            };
            va += step;
            pa += step;
        }
        Ok(())
    }

    /// The entry that maps the 4 KiB page at `va`, which must be mapped by 4 KiB pages: for
    /// windows whose content changes while the guest runs.
    pub fn leaf(&self, va: u64) -> Option<*mut u64> {
        let mut address = self.shim_l3;
        for shift in [30, 21] {
            let entry = table(address)[(va >> shift & 511) as usize];
            if entry & pte::PRESENT == 0 || entry & pte::LARGE != 0 {
                return None;
            }
            address = entry & pte::ADDRESS;
        }
        Some(&raw mut table(address)[(va >> 12 & 511) as usize])
    }
}
