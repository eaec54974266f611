//! Heap for the boot phase. The domain builder (decompression, ELF) allocates; nothing does once
//! the guest runs. What has to outlive the boot comes from the small resident part, the rest
//! lies in memory the guest gets.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use linked_list_allocator::Heap;
use spin::Mutex;

struct Heaps {
    resident: Mutex<Heap>,
    boot: Mutex<Heap>,
    use_boot: AtomicBool,
}

#[global_allocator]
static HEAPS: Heaps = Heaps {
    resident: Mutex::new(Heap::empty()),
    boot: Mutex::new(Heap::empty()),
    use_boot: AtomicBool::new(false),
};

/// Sets up the resident heap.
///
/// # Safety
/// The memory must be mapped, unused and never used for anything else.
pub unsafe fn init_resident(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { HEAPS.resident.lock().init(start, bytes) };
}

/// Bytes of the resident heap that nobody has, perhaps in several pieces.
pub fn free_bytes() -> usize {
    HEAPS.resident.lock().free()
}

/// Sets up the boot heap; allocations come from it until [`close_boot`].
///
/// # Safety
/// The memory must be mapped and unused until [`close_boot`].
pub unsafe fn open_boot(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { HEAPS.boot.lock().init(start, bytes) };
    HEAPS.use_boot.store(true, Ordering::Relaxed);
}

/// Ends the boot heap: all that was allocated on it must be gone. Returns the bytes still in use.
pub fn close_boot() -> usize {
    HEAPS.use_boot.store(false, Ordering::Relaxed);
    let mut boot = HEAPS.boot.lock();
    let used = boot.used();
    *boot = Heap::empty();
    used
}

// SAFETY: both heaps hand out disjoint memory of their regions; a block goes back to the heap whose
// region it lies in.
unsafe impl GlobalAlloc for Heaps {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let heap = if self.use_boot.load(Ordering::Relaxed) { &self.boot } else { &self.resident };
        heap.lock().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block_ptr) = NonNull::new(block) else { return };
        let mut resident = self.resident.lock();
        let in_resident = (resident.bottom()..resident.top()).contains(&block);
        if in_resident {
            // SAFETY: the block came from this heap with this layout.
            unsafe { resident.deallocate(block_ptr, layout) };
        } else {
            drop(resident);
            // SAFETY: as above.
            unsafe { self.boot.lock().deallocate(block_ptr, layout) };
        }
    }
}
