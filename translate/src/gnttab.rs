//! Grant tables: set-up and queries (`xen/common/grant_table.c`). The data path, backends that
//! read entries, comes with the disks.
//!
//! The guest has nobody to map from: domain 0 exists and grants nothing, other domains do not.
//! The pages of the table come out of a pool the shim sets aside ([`GrantTable::set_pool`]);
//! the guest maps them by frame number, so they must be among the frames it may map.

use core::sync::atomic::{AtomicU16, Ordering};

use arrayvec::ArrayVec;
use spin::Mutex;
use xen_abi::grant_table::{
    BytePage, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTTAB_CACHE_CLEAN, GNTTAB_CACHE_INVAL,
    GNTTABOP_ARG_SHIFT, GnttabCacheFlush, GnttabCopy, GnttabGetStatusFrames, GnttabGetVersion,
    GnttabMapGrantRef, GnttabOp, GnttabQuerySize, GnttabSetVersion, GnttabSetupTable,
    GnttabSwapGrantRef, GnttabTransfer, GnttabUnmapGrantRef, GrantPageV1, GrantPageV2, GrantStatus,
    GrantStatusPage, NR_RESERVED_ENTRIES, STATUS_PER_PAGE, V1_ENTRIES_PER_PAGE,
    V2_ENTRIES_PER_PAGE, gntmap, gtf,
};
use xen_abi::mm::DomId;
use xen_abi::{Errno, GuestVa, MachineAddr, Mfn, PAGE_SIZE};

use crate::Ctx;
use crate::evtchn::{BACKEND_DOMID, GUEST_DOMID, Named, domain_by_any_id};
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;
use crate::time::handle_okay;

/// Frames of entries a table may have (`gnttab_max_frames`, 64 by default).
pub const MAX_FRAMES: usize = 64;
/// Status frames that 64 frames of version 2 entries need.
pub const MAX_STATUS_FRAMES: usize = MAX_FRAMES * V2_ENTRIES_PER_PAGE / STATUS_PER_PAGE;
/// Frames worth giving to [`GrantTable::set_pool`].
pub const MAX_POOL: usize = MAX_FRAMES + MAX_STATUS_FRAMES;
/// Elements one call takes: it runs to its end with interrupts off. Xen cuts longer ones into
/// continuations; with no peers to share with, no guest has a use for them.
const MAX_BATCH: u32 = 1024;

/// The domain's grant table.
#[derive(Debug, Default)]
pub struct GrantTable {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// Frames of entries, all that there can be.
    frames: ArrayVec<Mfn, MAX_FRAMES>,
    /// Status frames of version 2, all that there can be.
    status: ArrayVec<Mfn, MAX_STATUS_FRAMES>,
    /// Frames of entries the guest has.
    nr_frames: u32,
    version: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    const fn new() -> Self {
        Self {
            frames: ArrayVec::new_const(),
            status: ArrayVec::new_const(),
            nr_frames: 0,
            version: 1,
        }
    }

    fn max_frames(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Status frames the guest has: none in version 1.
    fn nr_status_frames(&self) -> u32 {
        if self.version < 2 { 0 } else { status_frames(self.nr_frames) }
    }

    fn nr_entries(&self) -> u32 {
        let per_page = if self.version < 2 { V1_ENTRIES_PER_PAGE } else { V2_ENTRIES_PER_PAGE };
        self.nr_frames * per_page as u32
    }

    fn grow<P: Platform>(&mut self, plat: &P, nr_frames: u32) {
        let old = self.nr_frames as usize;
        let old_status = self.nr_status_frames() as usize;
        self.nr_frames = self.nr_frames.max(nr_frames.min(self.max_frames()));
        clear(plat, self.frames.iter().take(self.nr_frames as usize).skip(old));
        let status = self.nr_status_frames() as usize;
        clear(plat, self.status.iter().take(status).skip(old_status));
    }
}

/// Status frames for a number of frames of version 2 entries.
const fn status_frames(nr_frames: u32) -> u32 {
    (nr_frames * V2_ENTRIES_PER_PAGE as u32).div_ceil(STATUS_PER_PAGE as u32)
}

fn clear<'a, P: Platform>(plat: &P, frames: impl Iterator<Item = &'a Mfn>) {
    for page in frames.filter_map(|mfn| plat.frame(*mfn)) {
        page.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

impl GrantTable {
    /// No frames: the guest cannot set up a table.
    #[must_use]
    pub const fn new() -> Self {
        Self { table: Mutex::new(Table::new()) }
    }

    /// Gives the frames tables are made of, at most [`MAX_POOL`]; `plat.frame` reaches their
    /// contents and `plat.may_map` allows the guest to map them. Of each 9 frames 8 become
    /// frames of entries and one a status frame. The guest starts with one frame.
    pub fn set_pool<P: Platform>(&self, plat: &P, pool: &[Mfn]) {
        let mut table = self.table.lock();
        *table = Table::new();
        let mut nr = pool.len().min(MAX_POOL) as u32;
        while nr > 0 && nr as usize + status_frames(nr) as usize > pool.len() {
            nr -= 1;
        }
        nr = nr.min(MAX_FRAMES as u32);
        let (frames, rest) = pool.split_at(nr as usize);
        table.frames.extend(frames.iter().copied().take(MAX_FRAMES));
        table.status.extend(rest.iter().copied().take(MAX_STATUS_FRAMES));
        table.grow(plat, 1);
    }
}

/// `grant_table_op(cmd, uop, count)`.
///
/// # Errors
/// Xen's.
pub fn grant_table_op<P: Platform>(
    cx: &mut Ctx<'_, P>,
    cmd: u64,
    uop: u64,
    count: u64,
) -> HcResult {
    let (cmd, count) = (cmd as u32, count as u32);
    let op = GnttabOp(cmd & ((1 << GNTTABOP_ARG_SHIFT) - 1));
    if count.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    // State of a continuation, which only a cache flush has.
    if cmd >> GNTTABOP_ARG_SHIFT != 0 && op != GnttabOp::CACHE_FLUSH {
        return Err(Errno::EINVAL);
    }
    let at = GuestVa(uop);
    match op {
        GnttabOp::SETUP_TABLE => setup_table(cx, at, count),
        GnttabOp::QUERY_SIZE => query_size(cx, at, count),
        GnttabOp::SET_VERSION => set_version(cx, at),
        GnttabOp::GET_STATUS_FRAMES => get_status_frames(cx, at, count),
        GnttabOp::GET_VERSION => get_version(cx, at),
        GnttabOp::MAP_GRANT_REF => batch(cx, at, count, map_grant_ref),
        GnttabOp::UNMAP_GRANT_REF | GnttabOp::UNMAP_AND_REPLACE => {
            batch(cx, at, count, |_, op: &mut GnttabUnmapGrantRef| {
                // Nothing is mapped, so no handle is good.
                op.status = GrantStatus::BAD_HANDLE;
                Ok(())
            })
        }
        GnttabOp::TRANSFER => batch(cx, at, count, transfer),
        GnttabOp::COPY => batch(cx, at, count, copy),
        GnttabOp::SWAP_GRANT_REF => batch(cx, at, count, swap_grant_ref),
        GnttabOp::CACHE_FLUSH => batch(cx, at, count, cache_flush),
        _ => Err(Errno::ENOSYS),
    }
}

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

fn setup_table<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa, count: u32) -> HcResult {
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
            let mut table = cx.dom.gnttab.table.lock();
            if op.nr_frames > table.max_frames() {
                GrantStatus::GENERAL_ERROR
            } else {
                table.grow(cx.plat, op.nr_frames);
                let frames = table.frames.get(..op.nr_frames as usize).unwrap_or_default();
                write_frames(cx.plat, op.frame_list, frames)
            }
        }
    };
    let field = at.add(core::mem::offset_of!(GnttabSetupTable, status) as u64);
    cx.plat.write_guest(field, &op.status).map_err(efault)?;
    ret(0)
}

fn query_size<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa, count: u32) -> HcResult {
    if count != 1 {
        return Err(Errno::EINVAL);
    }
    let mut op: GnttabQuerySize = cx.plat.read_guest(at).map_err(efault)?;
    op.status = match own(op.dom) {
        Err(status) => status,
        Ok(()) => {
            let table = cx.dom.gnttab.table.lock();
            op.nr_frames = table.nr_frames;
            op.max_nr_frames = table.max_frames();
            GrantStatus::OKAY
        }
    };
    cx.plat.write_guest(at, &op).map_err(efault)?;
    ret(0)
}

fn get_version<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let mut op: GnttabGetVersion = cx.plat.read_guest(at).map_err(efault)?;
    if domain_by_any_id(op.dom)? != Named::Own {
        return Err(Errno::EPERM);
    }
    op.version = cx.dom.gnttab.table.lock().version;
    let field = at.add(core::mem::offset_of!(GnttabGetVersion, version) as u64);
    cx.plat.write_guest(field, &op.version).map_err(efault)?;
    ret(0)
}

fn get_status_frames<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa, count: u32) -> HcResult {
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
            let table = cx.dom.gnttab.table.lock();
            if op.nr_frames > table.nr_status_frames() {
                GrantStatus::GENERAL_ERROR
            } else {
                let frames = table.status.get(..op.nr_frames as usize).unwrap_or_default();
                write_frames(cx.plat, op.frame_list, frames)
            }
        }
    };
    let field = at.add(core::mem::offset_of!(GnttabGetStatusFrames, status) as u64);
    cx.plat.write_guest(field, &op.status).map_err(efault)?;
    ret(0)
}

/// `GNTTABOP_set_version`: all entries but the first 8 are lost.
fn set_version<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let mut op: GnttabSetVersion = cx.plat.read_guest(at).map_err(efault)?;
    let result = {
        let mut table = cx.dom.gnttab.table.lock();
        let result = match op.version {
            version @ (1 | 2) if version == table.version => Ok(()),
            1 => to_version_1(&mut table, cx.plat),
            2 => to_version_2(&mut table, cx.plat),
            _ => Err(Errno::EINVAL),
        };
        op.version = table.version;
        result
    };
    cx.plat.write_guest(at, &op).map_err(efault)?;
    result?;
    ret(0)
}

/// A reserved entry between versions: flags (status included), domain and frame.
type Reserved = [(u16, u16, u64); NR_RESERVED_ENTRIES as usize];

fn first_page<T: xen_abi::SharedView, P: Platform>(table: &Table, plat: &P) -> Option<&'static T> {
    plat.view(table.frames.first()?.base())
}

fn first_status<P: Platform>(table: &Table, plat: &P) -> Option<&'static GrantStatusPage> {
    plat.view(table.status.first()?.base())
}

fn to_version_2<P: Platform>(table: &mut Table, plat: &P) -> Result<(), Errno> {
    if table.status.len() < status_frames(table.nr_frames) as usize {
        return Err(Errno::ENOMEM);
    }
    let mut reserved: Reserved = Default::default();
    if let Some(page) = first_page::<GrantPageV1, _>(table, plat) {
        for (kept, entry) in reserved.iter_mut().zip(&page.entries) {
            *kept = (load(&entry.flags), load(&entry.domid), {
                u64::from(entry.frame.load(Ordering::Relaxed))
            });
        }
    }
    table.version = 2;
    clear(plat, table.frames.iter().take(table.nr_frames as usize));
    clear(plat, table.status.iter().take(table.nr_status_frames() as usize));
    let in_use = gtf::READING | gtf::WRITING;
    if let (Some(page), Some(status)) =
        (first_page::<GrantPageV2, _>(table, plat), first_status(table, plat))
    {
        for ((kept, entry), status) in reserved.iter().zip(&page.entries).zip(&status.status) {
            status.store(kept.0 & in_use, Ordering::Relaxed);
            entry.domid.store(kept.1, Ordering::Relaxed);
            entry.frame.store(kept.2, Ordering::Relaxed);
            entry.flags.store(kept.0 & !in_use, Ordering::Release);
        }
    }
    Ok(())
}

fn to_version_1<P: Platform>(table: &mut Table, plat: &P) -> Result<(), Errno> {
    let mut reserved: Reserved = Default::default();
    if let (Some(page), Some(status)) =
        (first_page::<GrantPageV2, _>(table, plat), first_status(table, plat))
    {
        for ((kept, entry), status) in reserved.iter_mut().zip(&page.entries).zip(&status.status) {
            let flags = load(&entry.flags);
            let frame = entry.frame.load(Ordering::Relaxed);
            match flags & gtf::TYPE_MASK {
                // Neither form fits into a version 1 entry.
                gtf::TRANSITIVE => return Err(Errno::ERANGE),
                gtf::PERMIT_ACCESS if frame >> 32 != 0 => return Err(Errno::ERANGE),
                gtf::PERMIT_ACCESS => *kept = (flags | load(status), load(&entry.domid), frame),
                _ => {}
            }
        }
    }
    table.version = 1;
    clear(plat, table.frames.iter().take(table.nr_frames as usize));
    if let Some(page) = first_page::<GrantPageV1, _>(table, plat) {
        for (kept, entry) in reserved.iter().zip(&page.entries) {
            entry.domid.store(kept.1, Ordering::Relaxed);
            entry.frame.store(kept.2 as u32, Ordering::Relaxed);
            entry.flags.store(kept.0, Ordering::Release);
        }
    }
    Ok(())
}

fn load(word: &AtomicU16) -> u16 {
    word.load(Ordering::Relaxed)
}

/// Runs an operation over the guest's array, writing each element back.
fn batch<P: Platform, T>(
    cx: &mut Ctx<'_, P>,
    at: GuestVa,
    count: u32,
    mut one: impl FnMut(&mut Ctx<'_, P>, &mut T) -> Result<(), Errno>,
) -> HcResult
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    if !handle_okay(at.0) {
        return Err(Errno::EFAULT);
    }
    if count > MAX_BATCH {
        return Err(Errno::E2BIG);
    }
    for index in 0..u64::from(count) {
        let element = at.add(index * size_of::<T>() as u64);
        let mut op: T = cx.plat.read_guest(element).map_err(efault)?;
        one(cx, &mut op)?;
        cx.plat.write_guest(element, &op).map_err(efault)?;
    }
    ret(0)
}

/// Whether a domain named by id (`DOMID_SELF` is none) is there.
fn exists(dom: DomId) -> bool {
    matches!(dom, GUEST_DOMID | BACKEND_DOMID)
}

fn map_grant_ref<P: Platform>(
    _cx: &mut Ctx<'_, P>,
    op: &mut GnttabMapGrantRef,
) -> Result<(), Errno> {
    op.status = if op.flags & (gntmap::DEVICE_MAP | gntmap::HOST_MAP) == 0 {
        GrantStatus::BAD_GNTREF
    } else if !exists(op.dom) {
        GrantStatus::BAD_DOMAIN
    } else {
        // Domain 0 grants nothing. The guest's own grants could be mapped in Xen; no guest
        // does, and it gets what an entry that does not name it gives.
        GrantStatus::GENERAL_ERROR
    };
    Ok(())
}

fn transfer<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabTransfer) -> Result<(), Errno> {
    let ours = op.mfn <= u64::MAX / PAGE_SIZE && cx.plat.frame(Mfn(op.mfn)).is_some();
    op.status = if !ours {
        GrantStatus::BAD_PAGE
    } else if !exists(op.domid) {
        // Xen has taken the page away by now; we leave it with its owner.
        GrantStatus::BAD_DOMAIN
    } else {
        GrantStatus::GENERAL_ERROR
    };
    Ok(())
}

fn copy<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabCopy) -> Result<(), Errno> {
    let sides =
        [(&op.source, op.flags & GNTCOPY_SOURCE_GREF), (&op.dest, op.flags & GNTCOPY_DEST_GREF)];
    let mut status = GrantStatus::OKAY;
    // First whose pages they are, then which.
    for (side, gref) in sides {
        if status == GrantStatus::OKAY && side.domid != DomId::SELF {
            status = match (gref, domain_by_any_id(side.domid)) {
                (0, _) => GrantStatus::PERMISSION_DENIED,
                (_, Err(_)) => GrantStatus::BAD_DOMAIN,
                _ => GrantStatus::OKAY,
            };
        }
    }
    for (side, gref) in sides {
        if status == GrantStatus::OKAY {
            if gref != 0 {
                status = GrantStatus::BAD_GNTREF;
            } else if side.u > u64::MAX / PAGE_SIZE || cx.plat.frame(Mfn(side.u)).is_none() {
                status = GrantStatus::BAD_PAGE;
            }
        }
    }
    if status == GrantStatus::OKAY {
        status = copy_frames(cx, op);
    }
    op.status = status;
    Ok(())
}

/// Copies between two frames of the guest.
fn copy_frames<P: Platform>(cx: &Ctx<'_, P>, op: &GnttabCopy) -> GrantStatus {
    let end = |offset: u16| u64::from(offset) + u64::from(op.len);
    if end(op.source.offset) > PAGE_SIZE || end(op.dest.offset) > PAGE_SIZE {
        return GrantStatus::BAD_COPY_ARG;
    }
    let page = |frame: u64| cx.plat.view::<BytePage>(Mfn(frame).base());
    let (Some(from), Some(to)) = (page(op.source.u), page(op.dest.u)) else {
        return GrantStatus::BAD_PAGE;
    };
    let from = from.bytes.iter().skip(op.source.offset.into()).take(op.len.into());
    let to = to.bytes.iter().skip(op.dest.offset.into());
    for (to, from) in to.zip(from) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    GrantStatus::OKAY
}

fn swap_grant_ref<P: Platform>(
    cx: &mut Ctx<'_, P>,
    op: &mut GnttabSwapGrantRef,
) -> Result<(), Errno> {
    let table = cx.dom.gnttab.table.lock();
    let entries = table.nr_entries();
    op.status = if op.ref_a.0 >= entries || op.ref_b.0 >= entries {
        GrantStatus::BAD_GNTREF
    } else {
        if op.ref_a != op.ref_b {
            swap_entries(&table, cx.plat, op.ref_a.0, op.ref_b.0);
        }
        GrantStatus::OKAY
    };
    Ok(())
}

/// Exchanges two entries that nobody uses.
fn swap_entries<P: Platform>(table: &Table, plat: &P, a: u32, b: u32) {
    let size = if table.version < 2 { 8 } else { 16 };
    let words = |entry: u32| {
        let byte = entry as usize * size;
        let page = plat.frame(*table.frames.get(byte / PAGE_SIZE as usize)?)?;
        let first = byte % PAGE_SIZE as usize / 8;
        page.get(first..first + size / 8)
    };
    if let (Some(a), Some(b)) = (words(a), words(b)) {
        for (a, b) in a.iter().zip(b) {
            let word = a.load(Ordering::Relaxed);
            a.store(b.load(Ordering::Relaxed), Ordering::Relaxed);
            b.store(word, Ordering::Relaxed);
        }
    }
    if table.version >= 2 {
        let status = |entry: u32| {
            let page = *table.status.get(entry as usize / STATUS_PER_PAGE)?;
            let page: &'static GrantStatusPage = plat.view(page.base())?;
            page.status.get(entry as usize % STATUS_PER_PAGE)
        };
        if let (Some(a), Some(b)) = (status(a), status(b)) {
            let word = load(a);
            a.store(load(b), Ordering::Relaxed);
            b.store(word, Ordering::Relaxed);
        }
    }
}

fn cache_flush<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabCacheFlush) -> Result<(), Errno> {
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

#[cfg(test)]
#[path = "gnttab_tests.rs"]
mod tests;
