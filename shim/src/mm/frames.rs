//! The shim's own page frames: one physically contiguous region reserved at boot, handed out
//! upwards and never taken back. What it hands out is zeroed.

use spin::Mutex;

struct Region {
    next: u64,
    end: u64,
}

static REGION: Mutex<Region> = Mutex::new(Region { next: 0, end: 0 });

/// Gives the allocator its region; bytes, page aligned.
pub fn init(start: u64, end: u64) {
    *REGION.lock() = Region { next: start, end };
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

/// Takes what is left of the region away, for the guest: (start, end).
pub fn take_rest() -> (u64, u64) {
    let mut region = REGION.lock();
    let rest = (region.next, region.end);
    region.end = region.next;
    rest
}
