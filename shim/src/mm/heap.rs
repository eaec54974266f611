//! Two heaps. The resident one holds what lives as long as the domain and has no fixed place: what is
//! known of devices, and their queues. Until the guest gets its memory it grows as it is asked to.
//! The boot heap is the domain builder's (decompression, ELF); it lies in memory the guest gets.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use linked_list_allocator::Heap;
use spin::Mutex;

use super::{frames, phys_to_virt};

/// Most pieces the resident heap can be made of.
const MOST_PIECES: usize = 64;
/// Least bytes it grows by when it is full.
const GROWTH: usize = 256 << 10;

/// The resident heap's pieces.
struct Resident(ArrayVec<Heap, MOST_PIECES>);

impl Resident {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.0.iter_mut().find_map(|piece| piece.allocate_first_fit(layout).ok())
    }

    fn free(&self) -> usize {
        self.0.iter().map(Heap::free).sum()
    }

    /// Takes frames from below the shim's. Whether there were any.
    fn grow(&mut self, bytes: usize) -> bool {
        let Some(pages) = bytes.checked_next_multiple_of(4096).filter(|_| !self.0.is_full()) else {
            return false;
        };
        let Some(start) = frames::alloc_below(pages as u64 / 4096) else { return false };
        // SAFETY: frames of the shim's that nobody else gets, in the direct map, for good.
        self.0.push(unsafe { Heap::new(phys_to_virt(start), pages) });
        true
    }

    /// The piece a block lies in.
    fn piece_of(&mut self, block: *mut u8) -> Option<&mut Heap> {
        self.0.iter_mut().find(|piece| (piece.bottom()..piece.top()).contains(&block))
    }
}

struct Heaps {
    resident: Mutex<Resident>,
    boot: Mutex<Heap>,
    use_boot: AtomicBool,
}

#[global_allocator]
static HEAPS: Heaps = Heaps {
    resident: Mutex::new(Resident(ArrayVec::new_const())),
    boot: Mutex::new(Heap::empty()),
    use_boot: AtomicBool::new(false),
};

/// Sets up the resident heap.
///
/// # Safety
/// The memory must be mapped, unused and never used for anything else.
pub unsafe fn init_resident(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    HEAPS.resident.lock().0.push(unsafe { Heap::new(start, bytes) });
}

/// Bytes of the resident heap that nobody has, perhaps in several pieces.
pub fn free_bytes() -> usize {
    HEAPS.resident.lock().free()
}

/// Sees that so many bytes are free, before the guest gets its memory: later there is no more. Whether
/// they are.
pub fn reserve(bytes: usize) -> bool {
    let mut resident = HEAPS.resident.lock();
    let missing = bytes.saturating_sub(resident.free());
    missing == 0 || resident.grow(missing.max(GROWTH))
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
        let block = if self.use_boot.load(Ordering::Relaxed) {
            self.boot.lock().allocate_first_fit(layout).ok()
        } else {
            let mut resident = self.resident.lock();
            resident.allocate(layout).or_else(|| {
                // Twice the block, for what a heap's own books take.
                let bytes = layout.size().checked_add(layout.align())?.checked_mul(2)?;
                resident.grow(bytes.max(GROWTH)).then(|| resident.allocate(layout))?
            })
        };
        block.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block_ptr) = NonNull::new(block) else { return };
        if let Some(piece) = self.resident.lock().piece_of(block) {
            // SAFETY: the block came from this heap with this layout.
            unsafe { piece.deallocate(block_ptr, layout) };
            return;
        }
        // SAFETY: as above.
        unsafe { self.boot.lock().deallocate(block_ptr, layout) };
    }
}
