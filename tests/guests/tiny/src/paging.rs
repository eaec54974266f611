//! The guest's own page tables and its pseudo-physical memory.

use crate::StartInfo;
use crate::hypercall;

/// `VIRT_BASE` of the notes.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Reads a word.
///
/// # Safety
/// The address is mapped.
unsafe fn read(address: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { core::ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

/// The pfn of an address in the initial mapping.
pub fn pfn_of(address: u64) -> u64 {
    (address - VIRT_BASE) / PAGE
}

/// The machine frame of `pfn`.
pub fn mfn(info: &StartInfo, pfn: u64) -> u64 {
    assert!(pfn < info.nr_pages, "pfn {pfn:x}");
    // SAFETY: the p2m list has nr_pages entries, mapped.
    unsafe { read(info.mfn_list + pfn * 8) }
}

/// The machine frame behind an address in the initial mapping.
pub fn mfn_of(info: &StartInfo, address: u64) -> u64 {
    mfn(info, pfn_of(address))
}

/// Where the page-table frame `mfn` is mapped.
fn table(info: &StartInfo, frame: u64) -> Option<u64> {
    (0..info.nr_pt_frames)
        .map(|i| info.pt_base + i * PAGE)
        .find(|&address| mfn_of(info, address) == frame)
}

/// Virtual address of the level-1 entry that maps `address`.
pub fn entry_of(info: &StartInfo, address: u64) -> Option<u64> {
    let mut at = info.pt_base;
    for shift in [39, 30, 21] {
        // SAFETY: `at` is a page-table page in the initial mapping.
        let entry = unsafe { read(at + (address >> shift & 0x1ff) * 8) };
        if entry & 1 == 0 {
            return None;
        }
        at = table(info, (entry & FRAME) / PAGE)?;
    }
    Some(at + (address >> 12 & 0x1ff) * 8)
}

/// Machine address of the level-1 entry that maps `address`.
pub fn machine_entry(info: &StartInfo, address: u64) -> Option<u64> {
    let entry = entry_of(info, address)?;
    Some(mfn_of(info, entry) * PAGE + entry % PAGE)
}

/// Maps `address` by writing its level-1 entry.
///
/// # Safety
/// The caller says what `address` maps from now on.
pub unsafe fn set_entry(info: &StartInfo, address: u64, value: u64) -> i64 {
    match machine_entry(info, address) {
        // SAFETY: the caller's contract.
        Some(entry) => unsafe { hypercall::mmu_update(entry, value) },
        None => -22,
    }
}
