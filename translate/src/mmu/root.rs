//! Which L4 each processor uses, and frames that none may use.
//!
//! An L4 gets the hypervisor's slots when it is loaded, and must keep them while it is: ring 0 is
//! mapped by them. So a frame that is to be overwritten as a whole, or taken from the guest, must be
//! nobody's L4, nor become one meanwhile:
//!
//! ```text
//! who loads an L4                      who takes a frame (one at a time)
//! says that it goes to it              says which frame it takes
//! is it being taken? waits             is anybody on it, or going to it? leaves it alone
//! stores the slots, loads CR3          overwrites it, or gives it up; takes none any more
//! says that it is on it
//! ```
//! All of it in one order for all processors: one of the two sees the other. Until CR3 is loaded it is on
//! the one before, too. Who waits for a frame holds
//! no lock, and who takes one waits for nobody.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release, SeqCst},
};

use spin::Mutex;
use xen_abi::Mfn;

use crate::Ctx;
use crate::platform::Platform;

/// No frame.
const NONE: u64 = u64::MAX;

/// The frame that must not become an L4.
#[derive(Debug)]
pub struct Taken {
    one: Mutex<()>,
    frame: AtomicU64,
}

impl Taken {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { one: Mutex::new(()), frame: AtomicU64::new(NONE) }
    }
}

impl Default for Taken {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a processor uses this frame as its L4, or is about to.
#[cold]
fn is_loaded<P: Platform>(cx: &Ctx<'_, P>, mfn: Mfn) -> bool {
    cx.vcpu.mmu.l4 == mfn.0 || cx.dom.vcpus.iter().any(|vcpu| vcpu.roots.may_be(mfn))
}

/// Does something to a frame as a whole, which meanwhile becomes nobody's L4. `None`: it is one.
pub(crate) fn unless_loaded<P: Platform, R>(
    cx: &Ctx<'_, P>,
    mfn: Mfn,
    f: impl FnOnce() -> R,
) -> Option<R> {
    let taken = &cx.dom.taken;
    let _one = taken.one.lock();
    taken.frame.store(mfn.0, SeqCst);
    let done = (!is_loaded(cx, mfn)).then(f);
    taken.frame.store(NONE, SeqCst);
    done
}

/// The vCPU's processor uses this frame as its L4 from now on. `false`: it cannot, and all is as before.
#[inline(always)]
pub(crate) fn load_l4<P: Platform>(cx: &mut Ctx<'_, P>, mfn: Mfn) -> bool {
    let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) else { return false };
    let count = cx.dom.tables.count();
    shared.roots.next.store(mfn.0, SeqCst);
    if cx.dom.taken.frame.load(SeqCst) == mfn.0 {
        wait(cx, mfn);
    }
    if !cx.plat.load_cr3(mfn) {
        shared.roots.stay();
        return false;
    }
    shared.roots.l4.store(mfn.0, Release);
    // The TLB is empty since.
    shared.lazy.emptied(count);
    cx.vcpu.mmu.l4 = mfn.0;
    true
}

#[cold]
#[inline(never)]
fn wait<P: Platform>(cx: &Ctx<'_, P>, mfn: Mfn) {
    // A guest may name the frame that stands for none.
    while mfn.0 != NONE && cx.dom.taken.frame.load(SeqCst) == mfn.0 {
        core::hint::spin_loop();
    }
}

/// The guest's L4 that a vCPU's processor is on.
///
/// Two words: while it goes from one to another, it may be on either. `next` is stored before CR3 is
/// loaded and `l4` after, so whoever reads them the other way round misses neither.
#[derive(Debug)]
pub struct Roots {
    l4: AtomicU64,
    next: AtomicU64,
}

impl Roots {
    /// On none.
    #[must_use]
    pub const fn new() -> Self {
        Self { l4: AtomicU64::new(NONE), next: AtomicU64::new(NONE) }
    }

    /// It is on this one, as it was before there was anybody to ask.
    pub fn begin(&self, l4: Mfn) {
        self.next.store(l4.0, SeqCst);
        self.l4.store(l4.0, SeqCst);
    }

    /// It has left the guest's tables.
    pub(crate) fn leave(&self) {
        self.begin(Mfn(NONE));
    }

    /// It does not go to the next.
    #[cold]
    #[inline(never)]
    fn stay(&self) {
        self.next.store(self.l4.load(Relaxed), SeqCst);
    }

    /// Whether it may be on any of the guest's. One that is not seen here walks the guest's tables later
    /// than what the caller has changed before.
    pub fn any(&self) -> bool {
        self.frames().into_iter().any(|frame| frame != NONE)
    }

    /// Whether it may be on this one.
    pub(crate) fn may_be(&self, mfn: Mfn) -> bool {
        self.frames().contains(&mfn.0)
    }

    /// Those it may be on; [`u64::MAX`]: none.
    pub(crate) fn frames(&self) -> [u64; 2] {
        let next = self.next.load(SeqCst);
        [next, self.l4.load(SeqCst)]
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self::new()
    }
}
