//! The 2-level ABI: a pending and a mask bit per port in `shared_info`, a selector bit per 64
//! ports and an upcall bit in `vcpu_info`.
//!
//! The order is the protocol: pending bit, mask test, selector bit, upcall bit. The guest
//! goes the other way (upcall, selector, pending). Every write is a locked instruction, which
//! orders it against the reads around it.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Here, check_pollers, tell, with_info};
use crate::domain::Domain;
use crate::platform::Platform;

/// The word and the bit of a port in an array of the shared page.
#[inline]
fn locate(array: &[AtomicU64; 64], port: u32) -> Option<(&AtomicU64, u64)> {
    array.get((port / 64) as usize).map(|word| (word, 1 << (port % 64)))
}

#[inline]
pub(super) fn set_pending<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    port: u32,
    vcpu: u32,
) {
    let Some((pending, bit)) = locate(&dom.shared_info.evtchn_pending, port) else { return };
    let Some((mask, _)) = locate(&dom.shared_info.evtchn_mask, port) else { return };
    if pending.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return;
    }
    if mask.load(Ordering::SeqCst) & bit == 0 {
        select(dom, plat, here, port, vcpu);
    }
    check_pollers(dom, plat, here, port);
}

/// Sets the selector bit of an unmasked pending port and, if it was clear, the upcall bit.
#[inline]
fn select<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, port: u32, vcpu: u32) {
    let sel = 1u64 << (port / 64 % 64);
    let newly = with_info(dom, here, vcpu, |info| {
        info.evtchn_pending_sel.fetch_or(sel, Ordering::SeqCst) & sel == 0
            && info.evtchn_upcall_pending.swap(1, Ordering::SeqCst) == 0
    });
    if newly == Some(true) {
        tell(dom, plat, here, vcpu);
    }
}

/// Unmasks a port; a pending one is delivered.
pub(super) fn unmask<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, port: u32, vcpu: u32) {
    let Some((mask, bit)) = locate(&dom.shared_info.evtchn_mask, port) else { return };
    if mask.fetch_and(!bit, Ordering::SeqCst) & bit != 0 && is_pending(dom, port) {
        select(dom, plat, here, port, vcpu);
    }
}

pub(super) fn clear_pending(dom: &Domain, port: u32) {
    if let Some((pending, bit)) = locate(&dom.shared_info.evtchn_pending, port) {
        pending.fetch_and(!bit, Ordering::SeqCst);
    }
}

pub(super) fn is_pending(dom: &Domain, port: u32) -> bool {
    locate(&dom.shared_info.evtchn_pending, port)
        .is_some_and(|(pending, bit)| pending.load(Ordering::SeqCst) & bit != 0)
}
