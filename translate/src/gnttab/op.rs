//! Set-up, queries, versions, and what changes entries as such.

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use xen_abi::grant_table::{
    GNTTAB_CACHE_CLEAN, GNTTAB_CACHE_INVAL, GnttabCacheFlush, GnttabGetStatusFrames,
    GnttabGetVersion, GnttabQuerySize, GnttabSetVersion, GnttabSetupTable, GrantRef, GrantStatus,
};
use xen_abi::mm::DomId;
use xen_abi::{Errno, GuestVa, MachineAddr, Mfn, PAGE_SIZE};

use super::active::Active;
use crate::Ctx;
use crate::evtchn::{Named, domain_by_any_id};
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;
use crate::time::handle_okay;

/// What a domain a guest names means for a query: its own, or a status.
fn own(dom: DomId) -> Result<(), GrantStatus> {
    match domain_by_any_id(dom) {
        Ok(Named::Own) => Ok(()),
        Ok(Named::Backend) => Err(GrantStatus::PERMISSION_DENIED),
        Err(_) => Err(GrantStatus::BAD_DOMAIN),
    }
}

/// Writes frame numbers to a guest's list.
fn write_frames<P: Platform>(plat: &P, list: u64, frames: &[Mfn]) -> GrantStatus {
    let mut status = GrantStatus::OKAY;
    for (index, mfn) in (0u64..).zip(frames) {
        if plat.write_guest(GuestVa(list).add(index * 8), &mfn.0).is_err() {
            status = GrantStatus::BAD_VIRT_ADDR;
        }
    }
    status
}

pub(super) fn setup_table<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa, count: u32) -> HcResult {
    if count != 1 {
        return Err(Errno::EINVAL);
    }
    let mut op: GnttabSetupTable = cx.plat.read_guest(at).map_err(efault)?;
    if !handle_okay(op.frame_list) {
        return Err(Errno::EFAULT);
    }
    op.status = match own(op.dom) {
        Err(status) => status,
        Ok(()) => {
            let mut table = cx.dom.gnttab.table.write();
            if op.nr_frames > table.max_frames() {
                GrantStatus::GENERAL_ERROR
            } else {
                table.grow(op.nr_frames);
                let frames = table.frames.get(..op.nr_frames as usize).unwrap_or_default();
                write_frames(cx.plat, op.frame_list, frames)
            }
        }
    };
    let field = at.add(offset_of!(GnttabSetupTable, status) as u64);
    cx.plat.write_guest(field, &op.status).map_err(efault)?;
    ret(0)
}

pub(super) fn query_size<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa, count: u32) -> HcResult {
    if count != 1 {
        return Err(Errno::EINVAL);
    }
    let mut op: GnttabQuerySize = cx.plat.read_guest(at).map_err(efault)?;
    op.status = match own(op.dom) {
        Err(status) => status,
        Ok(()) => {
            let table = cx.dom.gnttab.table.read();
            op.nr_frames = table.nr_frames;
            op.max_nr_frames = table.max_frames();
            GrantStatus::OKAY
        }
    };
    cx.plat.write_guest(at, &op).map_err(efault)?;
    ret(0)
}

pub(super) fn get_version<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let mut op: GnttabGetVersion = cx.plat.read_guest(at).map_err(efault)?;
    if domain_by_any_id(op.dom)? != Named::Own {
        return Err(Errno::EPERM);
    }
    op.version = cx.dom.gnttab.table.read().version;
    let field = at.add(offset_of!(GnttabGetVersion, version) as u64);
    cx.plat.write_guest(field, &op.version).map_err(efault)?;
    ret(0)
}

pub(super) fn get_status_frames<P: Platform>(
    cx: &mut Ctx<'_, P>,
    at: GuestVa,
    count: u32,
) -> HcResult {
    if count != 1 {
        return Err(Errno::EINVAL);
    }
    let mut op: GnttabGetStatusFrames = cx.plat.read_guest(at).map_err(efault)?;
    if !handle_okay(op.frame_list) {
        return Err(Errno::EFAULT);
    }
    op.status = match own(op.dom) {
        Err(status) => status,
        Ok(()) => {
            let table = cx.dom.gnttab.table.read();
            if op.nr_frames > table.nr_status_frames() {
                GrantStatus::GENERAL_ERROR
            } else {
                let frames = table.status.get(..op.nr_frames as usize).unwrap_or_default();
                write_frames(cx.plat, op.frame_list, frames)
            }
        }
    };
    let field = at.add(offset_of!(GnttabGetStatusFrames, status) as u64);
    cx.plat.write_guest(field, &op.status).map_err(efault)?;
    ret(0)
}

pub(super) fn set_version<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let mut op: GnttabSetVersion = cx.plat.read_guest(at).map_err(efault)?;
    let result = {
        let mut table = cx.dom.gnttab.table.write();
        let result = table.set_version(op.version);
        op.version = table.version;
        result
    };
    cx.plat.write_guest(at, &op).map_err(efault)?;
    result?;
    ret(0)
}

/// Exchanges two entries that nobody uses.
pub(super) fn swap_grant_ref<P: Platform>(
    cx: &mut Ctx<'_, P>,
    a: GrantRef,
    b: GrantRef,
) -> GrantStatus {
    let table = cx.dom.gnttab.table.write();
    let shared = |gref| table.shared(gref);
    let (Some(shared_a), Some(shared_b)) = (shared(a), shared(b)) else {
        return GrantStatus::BAD_GNTREF;
    };
    if a == b {
        return GrantStatus::OKAY;
    }
    let pinned = |gref: GrantRef| table.active.get(gref.0 as usize).is_some_and(Active::is_pinned);
    if pinned(a) || pinned(b) {
        return GrantStatus::EAGAIN;
    }
    let swap = |a: &core::sync::atomic::AtomicU64, b: &core::sync::atomic::AtomicU64| {
        b.store(a.swap(b.load(Ordering::Relaxed), Ordering::Relaxed), Ordering::Relaxed);
    };
    if let (Some(v2_a), Some(v2_b)) = (shared_a.v2, shared_b.v2) {
        swap(v2_a.frame, v2_b.frame);
        let of = |shared: &super::table::Shared| {
            let (word, shift) = shared.in_use();
            (word.load(Ordering::Relaxed) >> shift) as u16
        };
        let (status_a, status_b) = (of(&shared_a), of(&shared_b));
        for (shared, status) in [(shared_a, status_b), (shared_b, status_a)] {
            let (word, shift) = shared.in_use();
            word.fetch_and(!(0xffff << shift), Ordering::Relaxed);
            word.fetch_or(u64::from(status) << shift, Ordering::Relaxed);
        }
    }
    swap(shared_a.head, shared_b.head);
    GrantStatus::OKAY
}

pub(super) fn cache_flush<P: Platform>(
    cx: &Ctx<'_, P>,
    op: &GnttabCacheFlush,
) -> Result<(), Errno> {
    let (offset, length) = (u64::from(op.offset), u64::from(op.length));
    let known = GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL;
    // As in Xen, naming the page by reference is caught here, before "not supported".
    if offset >= PAGE_SIZE || offset + length > PAGE_SIZE || op.op & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if length == 0 || op.op == 0 {
        return Ok(());
    }
    let mfn = MachineAddr(op.a).mfn();
    if mfn >= cx.plat.max_mfn() {
        return Err(Errno::EINVAL);
    }
    cx.plat.frame(mfn).ok_or(Errno::EPERM)?;
    // Dropping lines without writing them back is nothing x86 offers; and writing back changes
    // nothing in a VM whose devices are coherent.
    if op.op == GNTTAB_CACHE_INVAL { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}
