//! Which L4 each processor uses, and frames that none may use.
//!
//! An L4 gets the hypervisor's slots when it is loaded, and must keep them while it is: ring 0 is
//! mapped by them. So a frame that is to be overwritten as a whole, or taken from the guest, must be
//! nobody's L4, nor become one meanwhile:
//!
//! ```text
//! who loads an L4                      who takes a frame (one at a time)
//! says that it is on it                says which frame it takes
//! is it being taken? waits             is anybody on it? leaves it alone
//! stores the slots, loads CR3          overwrites it, or gives it up; takes none any more
//! ```
//! All of it in one order for all processors: one of the two sees the other. Who waits for a frame holds
//! no lock, and who takes one waits for nobody.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

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
    cx.vcpu.mmu.l4 == mfn.0 || cx.dom.vcpus.iter().any(|vcpu| vcpu.l4.load(SeqCst) == mfn.0)
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
    let old = note(cx, mfn);
    if cx.dom.taken.frame.load(SeqCst) == mfn.0 {
        wait(cx, mfn);
    }
    cx.plat.load_cr3(mfn) || stay(cx, old)
}

/// Says that the processor is on a frame; what it was on by what was said before.
#[inline(always)]
fn note<P: Platform>(cx: &mut Ctx<'_, P>, mfn: Mfn) -> u64 {
    if let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) {
        shared.l4.store(mfn.0, SeqCst);
        // Whatever is loaded now, the TLB is emptied before the processor halts.
        shared.lazy.emptied(cx.dom.tables.count());
    }
    core::mem::replace(&mut cx.vcpu.mmu.l4, mfn.0)
}

#[cold]
#[inline(never)]
fn wait<P: Platform>(cx: &Ctx<'_, P>, mfn: Mfn) {
    // A guest may name the frame that stands for none.
    while mfn.0 != NONE && cx.dom.taken.frame.load(SeqCst) == mfn.0 {
        core::hint::spin_loop();
    }
}

/// The processor stays on the L4 it is on.
#[cold]
#[inline(never)]
fn stay<P: Platform>(cx: &mut Ctx<'_, P>, old: u64) -> bool {
    note(cx, Mfn(old));
    // A number that no frame has may have looked as if it were on none: flushes passed it over.
    cx.plat.flush_tlb_local();
    false
}
