//! TLB flushes put off while a processor is halted ("lazy TLB").
//!
//! A halted processor uses nothing of the guest's, so what its TLB has may be stale until it goes on. But it
//! must not have pointers to a table that the guest makes a page of data: with such a one, in its
//! paging-structure caches, it may set accessed bits there on its own account. Who frees a table takes it
//! out of the one above first, by mmu_update, as Xen has it. Those are counted ([`Tables`]), and a
//! flush is put off only where all of the TLB was emptied since the last.
//!
//! ```text
//! who flushes                            who halts
//! (changed entries, counted)             HALTED
//! OWES, if HALTED: done                  halts; an interrupt
//! else flushes there and waits           takes both: flushes all if OWES
//! ```
//! The two are bits of one word: either the flush sees the processor awake, or the processor sees what it
//! owes before it uses anything of the guest's.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::mm::pte;

use crate::shootdown::Word;

/// The processor is halted.
const HALTED: u64 = 1;
/// It must flush before it goes on.
const OWES: u64 = 2;

/// How often the guest has taken something out of its tables by mmu_update: no fewer than tables.
#[derive(Debug)]
pub struct Tables(AtomicU64);

impl Tables {
    /// Never.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An mmu_update has stored an entry in the place of another: after what it took out, if anything, a table
    /// may be free.
    #[inline(always)]
    pub(crate) fn replaced(&self, old: u64, new: u64) {
        if old & pte::P != 0 && (old ^ new) & (pte::P | pte::ADDR) != 0 {
            self.unhooked();
        }
    }

    /// Once more.
    #[cold]
    pub(crate) fn unhooked(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How often.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// A processor's part.
#[derive(Debug, Default)]
pub struct Lazy<W> {
    /// [`HALTED`], [`OWES`].
    state: W,
    /// [`Tables::count`] before its TLB was last emptied.
    emptied: W,
}

impl Lazy<AtomicU64> {
    /// Awake.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), emptied: AtomicU64::new(0) }
    }
}

impl<W: Word> Lazy<W> {
    /// The processor is about to halt, and uses nothing of the guest's until it has called [`Self::wake`].
    #[inline]
    pub fn halt(&self) {
        self.state.store_release(HALTED);
    }

    /// It goes on. Whether it must empty its TLB first.
    #[inline]
    pub fn wake(&self) -> bool {
        // Somebody that found it awake may have left the other bit.
        self.state.take() == HALTED | OWES
    }

    /// Its TLB was emptied, when the tables' count was no less than this.
    #[inline]
    pub fn emptied(&self, count: u64) {
        self.emptied.store_release(count);
    }

    /// Leaves a flush to the processor where it can do it later. `count` is the tables', read after the changes
    /// that the flush is for.
    pub fn put_off(&self, count: u64) -> bool {
        self.state.load() & HALTED != 0
            && self.emptied.load() == count
            && self.state.set(OWES) & HALTED != 0
    }
}
