//! Pages that come and go while the guest runs: rings and tables the shim shares with the host.
//! A number is set aside at boot, and more ([`grow`]) for devices the host turns out to have, as
//! long as the guest has not got its memory. Which of them are free is written down beside them,
//! never in them, because the host can write to a page it should have forgotten.

use arrayvec::ArrayVec;
use spin::Mutex;

use super::{frames, phys_to_virt};

/// Most pages a pool can have.
const MOST: usize = 16384;
/// Most pieces it can be made of.
const MOST_RUNS: usize = 64;

/// Contiguous frames.
#[derive(Clone, Copy)]
struct Run {
    /// First page frame.
    first: u64,
    /// Number of the first page in the pool, and how many there are.
    index: usize,
    pages: usize,
}

struct Pool {
    /// By their numbers, without gaps.
    runs: ArrayVec<Run, MOST_RUNS>,
    /// Pages in all, and those that are free.
    pages: usize,
    free: usize,
    /// A bit for each page that is in use, or none.
    used: [u64; MOST / 64],
    /// Word to look at first.
    hint: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    runs: ArrayVec::new_const(),
    pages: 0,
    free: 0,
    used: [u64::MAX; MOST / 64],
    hint: 0,
});

impl Pool {
    /// Whether there is room in the books for so many more.
    fn fits(&self, pages: usize) -> bool {
        !self.runs.is_full() && pages <= MOST - self.pages
    }

    /// Takes over contiguous frames for which there is room.
    fn add(&mut self, first: u64, pages: usize) {
        let index = self.pages;
        self.runs.push(Run { first, index, pages });
        for page in index..index + pages {
            self.used[page / 64] &= !(1 << (page % 64));
        }
        self.pages += pages;
        self.free += pages;
        self.hint = index / 64;
    }

    /// The frame of a page.
    fn frame(&self, page: usize) -> Option<u64> {
        let run =
            self.runs.iter().find(|run| (run.index..run.index + run.pages).contains(&page))?;
        Some(run.first + (page - run.index) as u64)
    }

    /// The page of a frame.
    fn page(&self, frame: u64) -> Option<usize> {
        self.runs.iter().find_map(|run| {
            let at = frame.checked_sub(run.first).filter(|&at| at < run.pages as u64)?;
            Some(run.index + at as usize)
        })
    }
}

/// Gives the pool contiguous frames from `first` on. Whether there was room for them in its books.
///
/// # Safety
/// The frames must be mapped in the direct map and nobody else's, for good.
pub unsafe fn add(first: u64, pages: u64) -> bool {
    let mut pool = POOL.lock();
    let Some(pages) = usize::try_from(pages).ok().filter(|&pages| pool.fits(pages)) else {
        return false;
    };
    pool.add(first, pages);
    true
}

/// Makes the pool larger. Before the guest gets its memory: later there is none. Whether it could be
/// done.
pub fn grow(pages: u64) -> bool {
    let mut pool = POOL.lock();
    let Some(count) = usize::try_from(pages).ok().filter(|&pages| pool.fits(pages)) else {
        return false;
    };
    let Some(start) = frames::alloc_below(pages) else { return false };
    pool.add(start >> 12, count);
    true
}

/// Pages that are free.
pub fn free_pages() -> usize {
    POOL.lock().free
}

/// A page, zeroed: its frame number.
pub fn alloc() -> Option<u64> {
    let mut pool = POOL.lock();
    let words = pool.pages.div_ceil(64);
    let hint = pool.hint;
    let nr = (hint..words).chain(0..hint).find(|&nr| pool.used[nr] != u64::MAX)?;
    let bit = pool.used[nr].trailing_ones();
    let frame = pool.frame(nr * 64 + bit as usize)?;
    pool.used[nr] |= 1 << bit;
    pool.free -= 1;
    pool.hint = nr;
    drop(pool);
    // SAFETY: a page of the pool that is in nobody's hands.
    unsafe { phys_to_virt(frame << 12).write_bytes(0, 4096) };
    Some(frame)
}

/// Takes a page back. What is not a page of the pool in use is refused.
pub fn free(frame: u64) -> bool {
    let mut pool = POOL.lock();
    let Some(page) = pool.page(frame) else { return false };
    let (nr, mask) = (page / 64, 1 << (page % 64));
    if pool.used[nr] & mask == 0 {
        return false;
    }
    pool.used[nr] &= !mask;
    pool.free += 1;
    pool.hint = nr;
    true
}
