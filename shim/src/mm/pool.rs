//! Pages that come and go while the guest runs: rings and tables the shim shares with the host.
//! A fixed number is set aside at boot. Which of them are free is written down beside them, never
//! in them, because the host can write to a page it should have forgotten.

use spin::Mutex;

use super::phys_to_virt;

/// Most pages a pool can have.
const MOST: usize = 8192;

struct Pool {
    /// First page frame.
    first: u64,
    pages: usize,
    /// A bit for each page that is in use.
    used: [u64; MOST / 64],
    /// Word to look at first.
    hint: usize,
}

static POOL: Mutex<Pool> =
    Mutex::new(Pool { first: 0, pages: 0, used: [u64::MAX; MOST / 64], hint: 0 });

/// Gives the pool its pages: contiguous frames from `first` on, of which it takes [`MOST`] at most.
///
/// # Safety
/// The frames must be mapped in the direct map and nobody else's, for good.
pub unsafe fn init(first: u64, pages: u64) {
    let mut pool = POOL.lock();
    let pages = usize::try_from(pages).unwrap_or(MOST).min(MOST);
    (pool.first, pool.pages) = (first, pages);
    for (nr, word) in pool.used.iter_mut().enumerate() {
        let here = pages.saturating_sub(nr * 64).min(64) as u32;
        *word = u64::MAX.checked_shl(here).unwrap_or(0);
    }
}

/// A page, zeroed: its frame number.
pub fn alloc() -> Option<u64> {
    let mut pool = POOL.lock();
    let words = pool.pages.div_ceil(64);
    let hint = pool.hint;
    let nr = (hint..words).chain(0..hint).find(|&nr| pool.used[nr] != u64::MAX)?;
    let bit = pool.used[nr].trailing_ones();
    pool.used[nr] |= 1 << bit;
    pool.hint = nr;
    let frame = pool.first + nr as u64 * 64 + u64::from(bit);
    drop(pool);
    // SAFETY: a page of the pool that is in nobody's hands.
    unsafe { phys_to_virt(frame << 12).write_bytes(0, 4096) };
    Some(frame)
}

/// Takes a page back. What is not a page of the pool in use is refused.
pub fn free(frame: u64) -> bool {
    let mut pool = POOL.lock();
    let Some(index) = frame.checked_sub(pool.first).filter(|&i| i < pool.pages as u64) else {
        return false;
    };
    let (nr, mask) = (index as usize / 64, 1 << (index % 64));
    if pool.used[nr] & mask == 0 {
        return false;
    }
    pool.used[nr] &= !mask;
    pool.hint = nr;
    true
}
