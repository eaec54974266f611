//! Mappings the guest makes of its own grants.
//!
//! Nobody else grants it anything, so a mapping is one more entry of its page tables for a frame
//! it owns. What counts is the bookkeeping: handles, pins, and the flags in the entry.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use xen_abi::grant_table::{GnttabMapGrantRef, GnttabUnmapGrantRef, GrantRef, GrantStatus, gntmap};
use xen_abi::mm::{FIRST_XEN_SLOT, LAST_XEN_SLOT, pte};
use xen_abi::{Errno, MachineAddr, Mfn};

use super::active::{Use, pin};
use super::copy::backend_grant;
use super::{Batch, read, write_back};
use crate::Ctx;
use crate::debugreg::address_ok;
use crate::evtchn::{BACKEND_DOMID, GUEST_DOMID};
use crate::mmu::l1_of;
use crate::outcome::HcResult;
use crate::platform::{Platform, VcpuSet};
use crate::regs::CpuRegs;

/// Handles for each frame of the table.
const HANDLES_PER_FRAME: usize = 16;
/// Bytes the mappings need for each frame of the table.
pub(super) const BYTES_PER_FRAME: usize =
    HANDLES_PER_FRAME * (size_of::<Mapping>() + size_of::<u32>());
/// Mappings removed between two flushes of the TLBs (`GNTTAB_UNMAP_BATCH_SIZE`).
const UNMAP_BATCH: usize = 32;
/// Bit of a mapping's flags that goes into the entry's first available bit
/// (`_GNTMAP_guest_avail0`).
const GUEST_AVAIL0: u32 = 16;
/// Bits of an entry the processor leaves alone.
const PTE_AVAIL: u64 = 7 << 9;

/// A mapping; free where neither side of it is mapped.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    gref: u32,
    flags: u32,
    frame: u64,
}

/// The mappings the guest has, by handle.
#[derive(Debug)]
pub(super) struct MapTrack {
    mappings: Vec<Mapping>,
    /// Handles that are free; the last is used next.
    free: Vec<u32>,
}

impl MapTrack {
    pub(super) const fn new() -> Self {
        Self { mappings: Vec::new(), free: Vec::new() }
    }

    /// Room for the mappings of a table of so many frames.
    pub(super) fn with_room(frames: usize) -> Self {
        let room = frames * HANDLES_PER_FRAME;
        let mut mappings = Vec::with_capacity(room);
        mappings.resize(room, Mapping::default());
        let mut free = Vec::with_capacity(room);
        free.extend((0..room as u32).rev());
        Self { mappings, free }
    }

    /// Handles there are.
    #[cfg(test)]
    pub(super) fn mappings_len(&self) -> usize {
        self.mappings.len()
    }

    fn get(&self, handle: u32) -> Option<Mapping> {
        self.mappings.get(handle as usize).copied().filter(|mapping| mapping.flags != 0)
    }
}

/// Pins a mapping holds, for the sides given.
const fn pins(flags: u32, sides: u32) -> u32 {
    let read_only = flags & gntmap::READONLY != 0;
    let device = if read_only { pin::DEVICE_READ } else { pin::DEVICE_WRITE };
    let host = if read_only { pin::HOST_READ } else { pin::HOST_WRITE };
    (if sides & gntmap::DEVICE_MAP != 0 { device } else { 0 })
        + (if sides & gntmap::HOST_MAP != 0 { host } else { 0 })
}

/// The sides of a mapping.
const SIDES: u32 = gntmap::DEVICE_MAP | gntmap::HOST_MAP;

/// The bits of the entry that maps a grant (`grant_to_pte_flags`).
const fn pte_flags(flags: u32) -> u64 {
    let mut bits = pte::P | pte::A | pte::D;
    if flags & gntmap::READONLY == 0 {
        bits |= pte::RW;
    }
    if flags & gntmap::APPLICATION_MAP != 0 {
        bits |= pte::US;
    }
    bits | ((flags >> GUEST_AVAIL0) as u64) << 9 & PTE_AVAIL
}

/// The L1 entry at a machine address or for a linear one, if the guest may change it.
fn slot<P: Platform>(cx: &Ctx<'_, P>, addr: u64, contains_pte: bool) -> Option<&'static AtomicU64> {
    let (words, index) = if contains_pte {
        let at = MachineAddr(addr);
        let index = addr.is_multiple_of(8).then_some((at.offset() / 8) as usize)?;
        (cx.plat.ram_frame(at.mfn())?, index)
    } else {
        let l4 = Mfn(address_ok(addr).then_some(cx.vcpu.mmu.l4)?);
        (l1_of(|mfn| cx.plat.ram_frame(mfn), l4, addr)?, (addr >> 12) as usize & 511)
    };
    // The hypervisor's slots of an L4 are known by the first: no entry of the guest's may point
    // at what it does.
    let first = words[FIRST_XEN_SLOT].load(Ordering::Relaxed);
    let hole = (FIRST_XEN_SLOT..=LAST_XEN_SLOT).contains(&index)
        && first & pte::P != 0
        && !cx.plat.may_map(Mfn((first & pte::ADDR) >> 12));
    if hole { None } else { words.get(index) }
}

/// `GNTTABOP_map_grant_ref`.
pub(super) fn map_grant_ref<P: Platform>(cx: &mut Ctx<'_, P>, op: &mut GnttabMapGrantRef) {
    op.status = match map_one(cx, op) {
        Ok((handle, frame)) => {
            op.handle = handle;
            op.dev_bus_addr = frame.base().0;
            GrantStatus::OKAY
        }
        Err(status) => status,
    };
}

fn map_one<P: Platform>(
    cx: &Ctx<'_, P>,
    op: &GnttabMapGrantRef,
) -> Result<(u32, Mfn), GrantStatus> {
    let pins = pins(op.flags, op.flags);
    if pins == 0 {
        return Err(GrantStatus::BAD_GNTREF);
    }
    if op.dom != GUEST_DOMID && op.dom != BACKEND_DOMID {
        return Err(GrantStatus::BAD_DOMAIN);
    }
    let mut maps = cx.dom.gnttab.maps.lock();
    let handle = *maps.free.last().ok_or(GrantStatus::NO_SPACE)?;
    if op.dom == BACKEND_DOMID {
        return Err(backend_grant(op.ref_));
    }
    let write = op.flags & gntmap::READONLY == 0;
    let using = Use { by: GUEST_DOMID, pins, write, map: true };
    let table = cx.dom.gnttab.table.read();
    let frame = table.acquire(cx.dom, cx.plat, op.ref_, using)?.mfn;
    if op.flags & gntmap::HOST_MAP != 0 {
        let Some(entry) = slot(cx, op.host_addr, op.flags & gntmap::CONTAINS_PTE != 0) else {
            table.unpin(op.ref_, pins, write);
            return Err(GrantStatus::GENERAL_ERROR);
        };
        entry.store(frame.base().0 | pte_flags(op.flags), Ordering::Relaxed);
    }
    maps.free.pop();
    let mapping = Mapping { gref: op.ref_.0, flags: op.flags, frame: frame.0 };
    if let Some(slot) = maps.mappings.get_mut(handle as usize) {
        *slot = mapping;
    }
    Ok((handle, frame))
}

/// What an unmapping took away, to be unpinned once no TLB holds it.
struct Unmapped {
    gref: GrantRef,
    pins: u32,
    write: bool,
}

/// `GNTTABOP_unmap_grant_ref`, or `GNTTABOP_unmap_and_replace` with the mapping at a second address
/// moved to where the grant was.
pub(super) fn unmap<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    replace: bool,
) -> HcResult {
    let batch = Batch::of(regs, UNMAP_BATCH as u32)?;
    let mut gone = ArrayVec::<Unmapped, UNMAP_BATCH>::new();
    let result = (0..u64::from(batch.now)).try_for_each(|index| -> Result<(), Errno> {
        let at = batch.at.add(index * size_of::<GnttabUnmapGrantRef>() as u64);
        let mut op: GnttabUnmapGrantRef = read(cx, at)?;
        op.status = match unmap_one(cx, &op, replace) {
            Ok(unmapped) => {
                gone.extend(unmapped);
                GrantStatus::OKAY
            }
            Err(status) => status,
        };
        write_back(cx, at, &op)
    });
    if !gone.is_empty() {
        cx.plat.flush_tlb(VcpuSet::All, None);
    }
    let table = cx.dom.gnttab.table.read();
    for unmapped in gone {
        table.unpin(unmapped.gref, unmapped.pins, unmapped.write);
    }
    drop(table);
    result?;
    batch.end(regs, size_of::<GnttabUnmapGrantRef>())
}

fn unmap_one<P: Platform>(
    cx: &Ctx<'_, P>,
    op: &GnttabUnmapGrantRef,
    replace: bool,
) -> Result<Option<Unmapped>, GrantStatus> {
    let (bus_addr, new_addr) = if replace { (0, op.dev_bus_addr) } else { (op.dev_bus_addr, 0) };
    let mut maps = cx.dom.gnttab.maps.lock();
    let mapping = maps.get(op.handle).ok_or(GrantStatus::BAD_HANDLE)?;
    let device = bus_addr != 0 && mapping.flags & gntmap::DEVICE_MAP != 0;
    if device && bus_addr != Mfn(mapping.frame).base().0 {
        return Err(GrantStatus::BAD_DEV_ADDR);
    }
    let mut sides = if device { gntmap::DEVICE_MAP } else { 0 };
    if op.host_addr != 0 && mapping.flags & gntmap::HOST_MAP != 0 {
        unmap_host(cx, op.host_addr, new_addr, &mapping)?;
        sides |= gntmap::HOST_MAP;
    }
    let left = mapping.flags & !sides;
    if let Some(slot) = maps.mappings.get_mut(op.handle as usize) {
        slot.flags = if left & SIDES == 0 { 0 } else { left };
        if slot.flags == 0 {
            maps.free.push(op.handle);
        }
    }
    let write = mapping.flags & gntmap::READONLY == 0;
    let pins = pins(mapping.flags, sides);
    Ok((pins != 0).then_some(Unmapped { gref: GrantRef(mapping.gref), pins, write }))
}

/// Replaces the entry that maps a grant by none or by the one at `new_addr`
/// (`replace_grant_pv_mapping`).
fn unmap_host<P: Platform>(
    cx: &Ctx<'_, P>,
    addr: u64,
    new_addr: u64,
    mapping: &Mapping,
) -> Result<(), GrantStatus> {
    let failed = GrantStatus::GENERAL_ERROR;
    let contains_pte = mapping.flags & gntmap::CONTAINS_PTE != 0;
    let mut new = 0;
    if new_addr != 0 {
        if contains_pte {
            return Err(failed);
        }
        new = slot(cx, new_addr, false).ok_or(failed)?.swap(0, Ordering::Relaxed);
    }
    let entry = slot(cx, addr, contains_pte).ok_or(failed)?;
    let old = entry.load(Ordering::Relaxed);
    let same_frame = (old & pte::ADDR) >> 12 == mapping.frame;
    if !same_frame || (old ^ pte_flags(mapping.flags)) & (pte::P | pte::RW) != 0 {
        return Err(failed);
    }
    entry.store(new, Ordering::Relaxed);
    Ok(())
}
