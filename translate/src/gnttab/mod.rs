//! Grant tables (`xen/common/grant_table.c`), versions 1 and 2.
//!
//! The table is memory of the guest's: an array of entries in which it names frames and who may
//! use them. Backends in the shim ([`access`], [`map_page`], [`release`]) pin an entry as Xen
//! does, so that the guest sees in it that its page is in use, and then read or write the frame
//! where it is: nothing is mapped and nothing copied. What an entry says is read once, with the
//! update that pins it, and checked on that copy.
//!
//! [`table`](self) parts: `table` holds the frames and the version, `active` who has pinned what,
//! `map` and `copy` what the guest may do with its own grants. Domain 0 exists and grants nothing.
//!
//! Lock order: the map track, then the table (read for everything but growth, version and swap),
//! then one entry. None is held over a call that reaches another processor.

mod active;
mod copy;
mod map;
mod op;
mod pinned;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

use core::mem::offset_of;

use spin::{Mutex, RwLock};
use xen_abi::grant_table::{
    GNTTABOP_ARG_SHIFT, GnttabCacheFlush, GnttabCopy, GnttabMapGrantRef, GnttabOp,
    GnttabSwapGrantRef, GnttabTransfer, GnttabUnmapGrantRef, GrantStatus, STATUS_PER_PAGE,
    V1_ENTRIES_PER_PAGE, V2_ENTRIES_PER_PAGE,
};
use xen_abi::{Errno, GuestVa, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Ctx;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::Platform;
use crate::regs::CpuRegs;
use crate::time::handle_okay;

pub use active::{Access, Grants, access, map_page, open, release};
pub use pinned::PinnedFrames;
pub use transfer::transfer_to_guest;

/// Frames of entries a table may have (`gnttab_max_frames`, 64 by default).
pub const MAX_FRAMES: usize = 64;
/// Status frames that 64 frames of version 2 entries need.
pub const MAX_STATUS_FRAMES: usize = MAX_FRAMES * V2_ENTRIES_PER_PAGE / STATUS_PER_PAGE;
/// Frames worth giving to [`GrantTable::set_pool`].
pub const MAX_POOL: usize = MAX_FRAMES + MAX_STATUS_FRAMES;
/// Bytes [`GrantTable::set_pool`] allocates for [`MAX_POOL`] frames.
pub const BOOKKEEPING_BYTES: usize =
    MAX_FRAMES * V1_ENTRIES_PER_PAGE * active::ACTIVE_BYTES + MAX_POOL * map::BYTES_PER_FRAME;
/// Elements one entry into ring 0 works on; the rest is a continuation.
const BATCH: u32 = 256;
/// As above, for operations that copy a page each.
const COPY_BATCH: u32 = 32;

/// The domain's grant table.
#[derive(Debug)]
pub struct GrantTable {
    table: RwLock<table::Table>,
    maps: Mutex<map::MapTrack>,
}

impl Default for GrantTable {
    fn default() -> Self {
        Self::new()
    }
}

impl GrantTable {
    /// No frames: the guest cannot set up a table.
    #[must_use]
    pub const fn new() -> Self {
        Self { table: RwLock::new(table::Table::new()), maps: Mutex::new(map::MapTrack::new()) }
    }

    /// Gives the frames tables are made of, at most [`MAX_POOL`]; `plat.frame` reaches their
    /// contents and `plat.may_map` allows the guest to map them. Of each 9 frames 8 become
    /// frames of entries and one a status frame. The guest starts with one frame. Allocates what
    /// the bookkeeping needs, at most [`BOOKKEEPING_BYTES`].
    pub fn set_pool<P: Platform>(&self, plat: &P, pool: &[Mfn]) {
        *self.maps.lock() = map::MapTrack::with_room(pool.len());
        self.table.write().set_pool(plat, pool);
    }
}

/// An element of an operation's array.
trait Element: FromBytes + IntoBytes + Immutable {
    /// Where its status is, if no other field is written back.
    const STATUS: Option<usize>;
    fn status(&self) -> GrantStatus;
}

macro_rules! elements {
    ($($type:ty: $status:expr;)*) => {
        $(impl Element for $type {
            const STATUS: Option<usize> = $status;
            fn status(&self) -> GrantStatus {
                self.status
            }
        })*
    };
}
elements! {
    GnttabMapGrantRef: None;
    GnttabUnmapGrantRef: Some(offset_of!(GnttabUnmapGrantRef, status));
    GnttabTransfer: Some(offset_of!(GnttabTransfer, status));
    GnttabCopy: Some(offset_of!(GnttabCopy, status));
    GnttabSwapGrantRef: Some(offset_of!(GnttabSwapGrantRef, status));
}

/// The part of an array that one entry into ring 0 works on.
struct Batch {
    at: GuestVa,
    /// Elements to do now, and to do later.
    now: u32,
    later: u32,
}

impl Batch {
    fn of(regs: &CpuRegs, most: u32) -> Result<Self, Errno> {
        let (at, count) = (regs.rsi, regs.rdx as u32);
        if !handle_okay(at) {
            return Err(Errno::EFAULT);
        }
        let now = count.min(most);
        Ok(Self { at: GuestVa(at), now, later: count - now })
    }

    /// Done; what is left becomes a continuation.
    fn end(self, regs: &mut CpuRegs, element: usize) -> HcResult {
        if self.later == 0 {
            return ret(0);
        }
        regs.rsi = regs.rsi.wrapping_add(u64::from(self.now) * element as u64);
        regs.rdx = self.later.into();
        Ok(Outcome::Continue)
    }
}

fn read<P: Platform, T: Element>(cx: &Ctx<'_, P>, at: GuestVa) -> Result<T, Errno> {
    cx.plat.read_guest(at).map_err(efault)
}

/// Writes an element back as Xen does: all of it, or its status.
fn write_back<P: Platform, T: Element>(cx: &Ctx<'_, P>, at: GuestVa, op: &T) -> Result<(), Errno> {
    match T::STATUS {
        None => cx.plat.write_guest(at, op),
        Some(offset) => cx.plat.write_guest(at.add(offset as u64), &op.status()),
    }
    .map_err(efault)
}

/// Runs an operation over the guest's array.
fn each<P: Platform, T: Element>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    most: u32,
    one: impl Fn(&mut Ctx<'_, P>, &mut T),
) -> HcResult {
    let batch = Batch::of(regs, most)?;
    for index in 0..u64::from(batch.now) {
        let at = batch.at.add(index * size_of::<T>() as u64);
        let mut op: T = read(cx, at)?;
        one(cx, &mut op);
        write_back(cx, at, &op)?;
    }
    batch.end(regs, size_of::<T>())
}

/// `grant_table_op(cmd, uop, count)`.
///
/// # Errors
/// Xen's.
pub fn grant_table_op<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    let (cmd, at, count) = (regs.rdi as u32, GuestVa(regs.rsi), regs.rdx as u32);
    let op = GnttabOp(cmd & ((1 << GNTTABOP_ARG_SHIFT) - 1));
    if count.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    // State of a continuation, which only a cache flush has.
    if cmd >> GNTTABOP_ARG_SHIFT != 0 && op != GnttabOp::CACHE_FLUSH {
        return Err(Errno::EINVAL);
    }
    match op {
        GnttabOp::SETUP_TABLE => op::setup_table(cx, at, count),
        GnttabOp::QUERY_SIZE => op::query_size(cx, at, count),
        GnttabOp::SET_VERSION => op::set_version(cx, at),
        GnttabOp::GET_STATUS_FRAMES => op::get_status_frames(cx, at, count),
        GnttabOp::GET_VERSION => op::get_version(cx, at),
        GnttabOp::MAP_GRANT_REF => each(cx, regs, BATCH, map::map_grant_ref),
        GnttabOp::UNMAP_GRANT_REF => map::unmap(cx, regs, false),
        GnttabOp::UNMAP_AND_REPLACE => map::unmap(cx, regs, true),
        GnttabOp::TRANSFER => each(cx, regs, BATCH, transfer::transfer),
        GnttabOp::COPY => each(cx, regs, COPY_BATCH, copy::copy),
        GnttabOp::SWAP_GRANT_REF => each(cx, regs, BATCH, |cx, op: &mut GnttabSwapGrantRef| {
            op.status = op::swap_grant_ref(cx, op.ref_a, op.ref_b);
        }),
        GnttabOp::CACHE_FLUSH => {
            let batch = Batch::of(regs, BATCH)?;
            for index in 0..u64::from(batch.now) {
                let at = batch.at.add(index * size_of::<GnttabCacheFlush>() as u64);
                op::cache_flush(cx, &cx.plat.read_guest(at).map_err(efault)?)?;
            }
            batch.end(regs, size_of::<GnttabCacheFlush>())
        }
        _ => Err(Errno::ENOSYS),
    }
}
