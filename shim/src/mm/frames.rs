//! The shim's own page frames: one physically contiguous region reserved at boot, handed out
//! upwards and never taken back. What it hands out is zeroed. Until the guest gets its memory the
//! region can grow downwards, for devices the host turns out to have.

use core::ops::Range;

use spin::Mutex;

struct Region {
    /// Where it begins now, at first, and at the lowest.
    start: u64,
    first: u64,
    floor: u64,
    next: u64,
    end: u64,
}

static REGION: Mutex<Region> = Mutex::new(Region { start: 0, first: 0, floor: 0, next: 0, end: 0 });

/// Gives the allocator its region, and how far down it may grow; bytes, page aligned.
pub fn init(region: Range<u64>, floor: u64) {
    let Range { start, end } = region;
    let floor = floor.next_multiple_of(4096).min(start);
    *REGION.lock() = Region { start, first: start, floor, next: start, end };
}

/// `pages` contiguous frames whose address is a multiple of `align` bytes, zeroed; `None` when the
/// region is used up (it was sized for all the shim needs, so that is a bug or a strange machine).
pub fn alloc(pages: u64, align: u64) -> Option<u64> {
    let mut region = REGION.lock();
    let address = region.next.next_multiple_of(align.max(4096));
    let end = address.checked_add(pages * 4096)?;
    if end > region.end {
        return None;
    }
    region.next = end;
    drop(region);
    // SAFETY: the frames are RAM in the region, which is the allocator's alone, and not given out.
    unsafe { super::phys_to_virt(address).write_bytes(0, (pages * 4096) as usize) };
    Some(address)
}

/// `pages` contiguous frames from below the region, which grows by them; not zeroed. `None` where
/// they are not free, or the guest has its memory.
pub fn alloc_below(pages: u64) -> Option<u64> {
    let mut region = REGION.lock();
    let start = region.start.checked_sub(pages.checked_mul(4096)?)?;
    if start < region.floor {
        return None;
    }
    region.start = start;
    Some(start)
}

/// Bytes the region has grown by.
pub fn added_bytes() -> u64 {
    let region = REGION.lock();
    region.first - region.start
}

/// Takes what is left of the region away, for the guest; what remains the shim's.
pub fn take_rest() -> Range<u64> {
    let mut region = REGION.lock();
    region.end = region.next;
    region.floor = region.start;
    region.start..region.end
}
