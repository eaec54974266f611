//! Pages that change hands.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::grant_table::{GnttabTransfer, GrantRef, GrantStatus, gtf};
use xen_abi::mm::DomId;
use xen_abi::{Mfn, Pfn};

use super::table::{Shared, Table};
use crate::Ctx;
use crate::domain::Domain;
use crate::evtchn::{BACKEND_DOMID, GUEST_DOMID};
use crate::mmu;
use crate::platform::{PageWords, Platform};

/// Attempts at an entry the guest keeps changing, as Xen makes.
const ATTEMPTS: u32 = 5;

/// Commits an entry that waits for a page from `from` (`gnttab_prepare_for_transfer`): from here
/// on the guest may not take it back. The frame number it holds is the one the page gets in the
/// guest.
fn commit(shared: &Shared, from: DomId) -> Result<(), GrantStatus> {
    let mut word = shared.head.load(Ordering::Relaxed);
    for _ in 0..ATTEMPTS {
        if word as u16 != gtf::ACCEPT_TRANSFER || (word >> 16) as u16 != from.0 {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let new = word | u64::from(gtf::TRANSFER_COMMITTED);
        match shared.head.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Ok(()),
            Err(now) => word = now,
        }
    }
    Err(GrantStatus::GENERAL_ERROR)
}

/// The frame number in a committed entry, exchanged for the page's frame; then the entry is
/// complete.
fn complete(shared: &Shared, mfn: Mfn) -> Pfn {
    let replace = |word: &AtomicU64, mask: u64, value: u64| {
        let mut old = word.load(Ordering::Relaxed);
        while let Err(now) = word.compare_exchange_weak(
            old,
            old & !mask | value,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            old = now;
        }
        old
    };
    let pfn = match shared.v2 {
        None => replace(shared.head, 0xffff_ffff << 32, mfn.0 << 32) >> 32,
        Some(v2) => v2.frame.swap(mfn.0, Ordering::Relaxed),
    };
    // What the page holds, and its number, come before the flag that says so.
    shared.head.fetch_or(gtf::TRANSFER_COMPLETED.into(), Ordering::Release);
    Pfn(pfn)
}

/// Whether an entry can name a frame.
const fn fits(table: &Table, mfn: Mfn) -> bool {
    table.version >= 2 || mfn.0 >> 32 == 0
}

/// `GNTTABOP_transfer`. A page for domain 0, which waits for none, and one that goes wrong stay
/// with their owner; Xen would have taken them by then.
pub(super) fn transfer<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabTransfer) {
    let mfn = Mfn(op.mfn);
    op.status = if cx.plat.is_ram(mfn) {
        let give = || match op.domid {
            GUEST_DOMID => {
                to_own(cx, mfn, op.ref_).map_or_else(|status| status, |()| GrantStatus::OKAY)
            }
            BACKEND_DOMID => GrantStatus::GENERAL_ERROR,
            _ => GrantStatus::BAD_DOMAIN,
        };
        mmu::unless_loaded(cx, mfn, give).unwrap_or(GrantStatus::GENERAL_ERROR)
    } else {
        GrantStatus::BAD_PAGE
    };
}

/// The guest gives itself a page, under another number.
fn to_own<P: Platform>(cx: &Ctx<'_, P>, mfn: Mfn, gref: GrantRef) -> Result<(), GrantStatus> {
    let table = cx.dom.gnttab.table.read();
    let shared = table.shared(gref).ok_or(GrantStatus::GENERAL_ERROR)?;
    if !fits(&table, mfn) {
        return Err(GrantStatus::ADDRESS_TOO_BIG);
    }
    commit(&shared, GUEST_DOMID)?;
    cx.plat.set_m2p(mfn, complete(&shared, mfn));
    Ok(())
}

/// A backend gives the guest a page for an entry that waits for one: a frame the guest gave up
/// comes back, filled by `fill`. So netback hands packets to frontends that flip pages.
///
/// # Errors
/// `GENERAL_ERROR`: the entry does not wait for a page of domain 0's, or the guest has all the
/// memory it may have; `ADDRESS_TOO_BIG`: the entry cannot name the frame.
pub fn transfer_to_guest<P: Platform>(
    dom: &Domain,
    plat: &P,
    gref: GrantRef,
    fill: impl FnOnce(&PageWords),
) -> Result<Mfn, GrantStatus> {
    let table = dom.gnttab.table.read();
    let shared = table.shared(gref).ok_or(GrantStatus::GENERAL_ERROR)?;
    let room = |pages: u64| (pages < dom.max_pages).then(|| pages + 1);
    if dom.nr_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    let result = give(plat, &table, &shared, fill);
    if result.is_err() {
        dom.nr_pages.fetch_sub(1, Ordering::Relaxed);
    }
    result
}

fn give<P: Platform>(
    plat: &P,
    table: &Table,
    shared: &Shared,
    fill: impl FnOnce(&PageWords),
) -> Result<Mfn, GrantStatus> {
    let mfn = plat.acquire_frame(Pfn(0)).ok_or(GrantStatus::GENERAL_ERROR)?;
    let refused = if fits(table, mfn) {
        commit(shared, BACKEND_DOMID).err()
    } else {
        Some(GrantStatus::ADDRESS_TOO_BIG)
    };
    if let Some(status) = refused {
        plat.release_frame(mfn);
        return Err(status);
    }
    if let Some(words) = plat.frame(mfn) {
        fill(words);
    }
    plat.set_m2p(mfn, complete(shared, mfn));
    Ok(mfn)
}
