//! Memory: the address map, the shim's page tables, and the guest's frames.

pub mod fixmap;
pub mod frames;
pub mod guest;
pub mod heap;
pub mod layout;
pub mod page_table;
pub mod pool;
pub mod words;

use core::sync::atomic::{AtomicU64, Ordering};

/// Where physical address 0 is mapped: 0 (identity) until the shim's own page tables are loaded.
static PHYS_OFFSET: AtomicU64 = AtomicU64::new(0);

/// From now on physical memory is reached through the direct map.
pub fn use_direct_map() {
    PHYS_OFFSET.store(layout::DIRECT_MAP_BASE, Ordering::Relaxed);
}

/// Where a physical address is mapped. Valid for RAM only, and before the direct map is loaded
/// only below 4 GiB.
#[inline]
pub fn phys_to_virt(address: u64) -> *mut u8 {
    (PHYS_OFFSET.load(Ordering::Relaxed).wrapping_add(address)) as *mut u8
}

/// A physical range as bytes.
///
/// # Safety
/// The range must be mapped RAM that nothing writes while the slice lives.
pub unsafe fn phys_bytes(address: u64, len: usize) -> &'static [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(phys_to_virt(address), len) }
}
