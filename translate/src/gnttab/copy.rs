//! Copies between pages named by grant or by frame.

use core::sync::atomic::Ordering;

use xen_abi::grant_table::{
    BytePage, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr, GrantRef,
    GrantStatus,
};
use xen_abi::mm::DomId;
use xen_abi::{Mfn, PAGE_SIZE};

use super::active::{Access, Use, pin, usable};
use crate::Ctx;
use crate::evtchn::{GUEST_DOMID, Named, domain_by_any_id};
use crate::platform::{GuestMemory, Platform};

/// Grants domain 0 would have if it granted any: its table has a first frame of version 1.
const BACKEND_ENTRIES: u32 = 512;

/// What a grant of domain 0's gives: none of its entries is valid.
pub(super) const fn backend_grant(gref: GrantRef) -> GrantStatus {
    if gref.0 < BACKEND_ENTRIES { GrantStatus::GENERAL_ERROR } else { GrantStatus::BAD_GNTREF }
}

/// One side of a copy, claimed.
struct Side {
    access: Access,
    /// The grant to release.
    held: Option<GrantRef>,
    write: bool,
}

impl Side {
    const fn grant_use(write: bool) -> Use {
        let pins = if write { pin::HOST_WRITE } else { pin::HOST_READ };
        Use { by: GUEST_DOMID, pins, write, map: false }
    }

    fn claim<P: Platform>(
        cx: &Ctx<'_, P>,
        ptr: &GnttabCopyPtr,
        by_ref: bool,
        write: bool,
    ) -> Result<Self, GrantStatus> {
        if !by_ref {
            usable(cx.dom, cx.plat, Mfn(ptr.u), write)?;
            let access = Access { mfn: Mfn(ptr.u), offset: 0, len: PAGE_SIZE as u16 };
            return Ok(Self { access, held: None, write });
        }
        let gref = GrantRef(ptr.u as u32);
        if domain_by_any_id(ptr.domid) == Ok(Named::Backend) {
            return Err(backend_grant(gref));
        }
        let table = cx.dom.gnttab.table.read();
        let access = table.acquire(cx.dom, cx.plat, gref, Self::grant_use(write))?;
        Ok(Self { access, held: Some(gref), write })
    }

    fn release<P: Platform>(self, cx: &Ctx<'_, P>) {
        if let Some(gref) = self.held {
            let pins = Self::grant_use(self.write).pins;
            cx.dom.gnttab.table.read().unpin(gref, pins, self.write);
        }
    }

    /// Whether `offset..offset + len` is what was claimed.
    const fn covers(&self, offset: u16, len: u16) -> bool {
        let (from, end) = (offset as u32, offset as u32 + len as u32);
        offset >= self.access.offset
            && end <= self.access.offset as u32 + self.access.len as u32
            && from <= PAGE_SIZE as u32
    }
}

/// Whether the caller may name the side's domain so.
fn check_domain(ptr: &GnttabCopyPtr, by_ref: bool) -> Result<(), GrantStatus> {
    if ptr.domid == DomId::SELF {
        return Ok(());
    }
    if !by_ref {
        return Err(GrantStatus::PERMISSION_DENIED);
    }
    domain_by_any_id(ptr.domid).map(|_| ()).map_err(|_| GrantStatus::BAD_DOMAIN)
}

/// `GNTTABOP_copy`.
pub(super) fn copy<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabCopy) {
    op.status = match copy_one(cx, op) {
        Ok(()) => GrantStatus::OKAY,
        Err(status) => status,
    };
}

fn copy_one<P: Platform>(cx: &Ctx<'_, P>, op: &GnttabCopy) -> Result<(), GrantStatus> {
    if op.len == 0 {
        return Ok(());
    }
    let by_ref = (op.flags & GNTCOPY_SOURCE_GREF != 0, op.flags & GNTCOPY_DEST_GREF != 0);
    check_domain(&op.source, by_ref.0)?;
    check_domain(&op.dest, by_ref.1)?;
    let source = Side::claim(cx, &op.source, by_ref.0, false)?;
    let result = Side::claim(cx, &op.dest, by_ref.1, true).and_then(|dest| {
        let result = checked(cx, op, &source, &dest);
        dest.release(cx);
        result
    });
    source.release(cx);
    result
}

fn checked<P: Platform>(
    cx: &Ctx<'_, P>,
    op: &GnttabCopy,
    source: &Side,
    dest: &Side,
) -> Result<(), GrantStatus> {
    let end = |offset: u16| u64::from(offset) + u64::from(op.len);
    if end(op.source.offset) > PAGE_SIZE || end(op.dest.offset) > PAGE_SIZE {
        return Err(GrantStatus::BAD_COPY_ARG);
    }
    if !source.covers(op.source.offset, op.len) || !dest.covers(op.dest.offset, op.len) {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    let from = (source.access.mfn, usize::from(op.source.offset));
    let to = (dest.access.mfn, usize::from(op.dest.offset));
    copy_bytes(cx.plat, from, to, op.len.into()).ok_or(GrantStatus::BAD_PAGE)
}

/// Copies between two frames of the guest; the ranges lie in them.
fn copy_bytes<M: GuestMemory>(
    plat: &M,
    from: (Mfn, usize),
    to: (Mfn, usize),
    len: usize,
) -> Option<()> {
    if (from.1 | to.1 | len).is_multiple_of(8) {
        let (source, dest) = (plat.frame(from.0)?, plat.frame(to.0)?);
        let source = source.iter().skip(from.1 / 8).take(len / 8);
        for (to, from) in dest.iter().skip(to.1 / 8).zip(source) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        return Some(());
    }
    let page = |mfn: Mfn| plat.view::<BytePage>(mfn.base());
    let (source, dest) = (page(from.0)?, page(to.0)?);
    let source = source.bytes.iter().skip(from.1).take(len);
    for (to, from) in dest.bytes.iter().skip(to.1).zip(source) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    Some(())
}
