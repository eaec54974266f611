//! TLB flushes on other vCPUs where the host does not do them: asked for in memory, announced by an
//! interrupt, waited for.
//!
//! ```text
//! asker                                  target
//! what, who has to (waits)               interrupt, or while it waits itself:
//! its bit in each target's `from`        takes all bits of `from`
//! interrupts the targets                 flushes what each asker wants
//! until waits == 0: serves its own       takes its bit out of each asker's `waits`
//! ```
//! Interrupts are off in ring 0, so a vCPU there answers late: when it returns to the guest, or in
//! the loop in which it waits for its own flush. That this ends wants two rules of ring 0:
//!
//! - nobody holds a lock while it waits here, so whoever spins on a lock gets it and goes on;
//! - whoever waits here answers ([`Shootdown::serve`]), so two that wait for each other go on.
//!
//! A target takes the bits before it flushes and lets the asker go after it has: an entry the asker
//! changed before it asked is in no TLB of a target when the wait is over.

use core::ops::Deref;

use crate::bits::bits;

/// One word of the protocol; tests put another kind in its place.
pub trait Word: Default {
    /// Reads.
    fn load(&self) -> u64;
    /// Writes.
    fn store(&self, value: u64);
    /// Writes what may be seen late, but not before what was written before.
    fn store_release(&self, value: u64);
    /// Sets bits; what there was before.
    fn set(&self, bits: u64) -> u64;
    /// Clears bits.
    fn clear(&self, bits: u64);
    /// Reads and writes 0.
    fn take(&self) -> u64;
}

impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::SeqCst)
    }
    fn store(&self, value: u64) {
        self.store(value, core::sync::atomic::Ordering::SeqCst);
    }
    fn store_release(&self, value: u64) {
        self.store(value, core::sync::atomic::Ordering::Release);
    }
    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, core::sync::atomic::Ordering::SeqCst)
    }
    fn clear(&self, bits: u64) {
        self.fetch_and(!bits, core::sync::atomic::Ordering::SeqCst);
    }
    fn take(&self) -> u64 {
        self.swap(0, core::sync::atomic::Ordering::SeqCst)
    }
}

/// A vCPU's part, by its id: what it asks for, and who asks it.
#[derive(Debug, Default)]
pub struct Slot<W> {
    /// The page it wants flushed; [`EVERYTHING`].
    what: W,
    /// Targets that have not flushed yet, by id.
    waits: W,
    /// vCPUs that want this one to flush, by id.
    from: W,
}

/// No page: all of them. It is no page's address.
const EVERYTHING: u64 = u64::MAX;

impl Slot<core::sync::atomic::AtomicU64> {
    /// Nobody wants anything.
    #[must_use]
    pub const fn new() -> Self {
        use core::sync::atomic::AtomicU64;
        Self { what: AtomicU64::new(0), waits: AtomicU64::new(0), from: AtomicU64::new(0) }
    }
}

/// The vCPUs' slots, by id.
#[derive(Debug)]
pub struct Shootdown<S>(pub S);

impl<W: Word, S: Deref<Target = [Slot<W>]>> Shootdown<S> {
    /// `me` wants the targets to flush a page, or everything. The caller interrupts them, then waits
    /// until [`Self::is_done`], and serves meanwhile. It must not ask for anything else before that.
    pub fn ask(&self, me: u32, targets: u64, page: Option<u64>) {
        let Some(own) = self.0.get(me as usize) else { return };
        own.what.store(page.unwrap_or(EVERYTHING));
        own.waits.store(targets);
        for target in bits(targets) {
            match self.0.get(target as usize) {
                Some(slot) => {
                    slot.from.set(1 << me);
                }
                None => own.waits.clear(1 << target),
            }
        }
    }

    /// Whether all targets have flushed.
    #[inline]
    pub fn is_done(&self, me: u32) -> bool {
        self.0.get(me as usize).is_none_or(|own| own.waits.load() == 0)
    }

    /// Targets that have not flushed yet.
    pub fn missing(&self, me: u32) -> u64 {
        self.0.get(me as usize).map_or(0, |own| own.waits.load())
    }

    /// `me` flushes what others want.
    #[inline]
    pub fn serve(&self, me: u32, mut flush: impl FnMut(Option<u64>)) {
        let Some(own) = self.0.get(me as usize) else { return };
        if own.from.load() == 0 {
            return;
        }
        for asker in bits(own.from.take()) {
            let Some(slot) = self.0.get(asker as usize) else { continue };
            let what = slot.what.load();
            flush((what != EVERYTHING).then_some(what));
            slot.waits.clear(1 << me);
        }
    }
}
