//! memory_op: the guest's reservation, its memory map, the M2P.
//!
//! Frames come and go one by one: extents of a higher order would have to be contiguous, which a
//! balloon's leftovers are not. An exchange gives the same frames back where that satisfies it.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::memory::{
    AddToPhysmap, E820Entry, MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT, MachphysMapping, MachphysMfnList,
    MemoryDomain, MemoryExchange, MemoryMap, MemoryReservation, RemoveFromPhysmap,
    XENMEMF_ADDRESS_BITS_MASK, XENMEMF_POPULATE_ON_DEMAND, XenMem,
};
use xen_abi::mm::{DomId, HYPERVISOR_VIRT_START};
use xen_abi::{Errno, GuestVa, Mfn, Pfn};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Ctx;
use crate::evtchn::{Named, domain_by_any_id};
use crate::gnttab::PinnedFrames;
use crate::mmu;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::Platform;
use crate::regs::CpuRegs;

/// Frames taken in one go, or one extent; the rest is a continuation.
const BATCH: u64 = 128;
/// Largest extent of an unprivileged domain (`CONFIG_DOMU_MAX_ORDER`).
const MAX_ORDER: u32 = 9;
/// First address behind the M2P's window (`MACH2PHYS_VIRT_END`).
const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// `XENMEMF_vnode`.
const XENMEMF_VNODE: u32 = 1 << 18;
/// `XENMEMF_exact_node_request`.
const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
/// `XENMAPSPACE_gmfn_range`.
const XENMAPSPACE_GMFN_RANGE: u16 = 3;
/// `XENMAPSPACE_gmfn_foreign`.
const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;

/// `memory_op(cmd, arg)`; bits from [`MEMOP_EXTENT_SHIFT`] on are a continuation's progress.
///
/// # Errors
/// Xen's. The reservation operations have none: they return how many extents they did.
pub fn memory_op<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    let (cmd, arg) = (regs.rdi, GuestVa(regs.rsi));
    let op = XenMem((cmd & MEMOP_CMD_MASK) as u32);
    let start = cmd >> MEMOP_EXTENT_SHIFT;
    match op {
        XenMem::INCREASE_RESERVATION | XenMem::DECREASE_RESERVATION | XenMem::POPULATE_PHYSMAP => {
            Ok(reservation(cx, regs, op, start, arg))
        }
        XenMem::ADD_TO_PHYSMAP => add_to_physmap(cx, start, arg),
        XenMem::ADD_TO_PHYSMAP_BATCH => add_to_physmap_batch(cx, start, arg),
        XenMem::ACCESS_OP => named_at(cx, arg, 2).and_then(remote_only),
        XenMem::ACQUIRE_RESOURCE => acquire_resource(cx, arg),
        _ if start != 0 => Err(if is_common(op) { Errno::EINVAL } else { Errno::ENOSYS }),
        XenMem::EXCHANGE => exchange(cx, arg),
        XenMem::MAXIMUM_RAM_PAGE => ret(cx.plat.max_mfn().0.cast_signed()),
        XenMem::CURRENT_RESERVATION | XenMem::MAXIMUM_RESERVATION | XenMem::MAXIMUM_GPFN => {
            statistics(cx, op, arg)
        }
        XenMem::REMOVE_FROM_PHYSMAP => {
            let remove: RemoveFromPhysmap = cx.plat.read_guest(arg).map_err(efault)?;
            domain_by_any_id(remove.domid)?;
            Err(Errno::EACCES)
        }
        XenMem::CLAIM_PAGES => claim_pages(cx, arg),
        XenMem::GET_VNUMAINFO => vnuma(cx, arg),
        XenMem::RESERVED_DEVICE_MEMORY_MAP => reserved_device_memory(cx, arg),
        XenMem::MEMORY_MAP => memory_map(cx, arg),
        XenMem::MACHINE_MEMORY_MAP => Err(Errno::EPERM),
        XenMem::SET_MEMORY_MAP => Err(Errno::EPERM),
        XenMem::MACHPHYS_MAPPING => {
            let window = MachphysMapping {
                v_start: HYPERVISOR_VIRT_START,
                v_end: MACH2PHYS_VIRT_END,
                max_mfn: (MACH2PHYS_VIRT_END - HYPERVISOR_VIRT_START) / 8 - 1,
            };
            answer(cx, arg, &window)
        }
        XenMem::MACHPHYS_MFN_LIST => machphys_mfn_list(cx, arg),
        XenMem::MACHPHYS_COMPAT_MFN_LIST => Err(Errno::EOPNOTSUPP),
        XenMem::SET_POD_TARGET | XenMem::GET_POD_TARGET => {
            named_at(cx, arg, 32)?;
            Err(Errno::EINVAL)
        }
        XenMem::GET_SHARING_FREED_PAGES | XenMem::GET_SHARING_SHARED_PAGES => ret(0),
        _ => Err(Errno::ENOSYS),
    }
}

/// Whether Xen's common code handles an operation: there progress where none can be is `EINVAL`;
/// elsewhere the whole number is unknown.
const fn is_common(op: XenMem) -> bool {
    matches!(
        op,
        XenMem::EXCHANGE
            | XenMem::MAXIMUM_RAM_PAGE
            | XenMem::CURRENT_RESERVATION
            | XenMem::MAXIMUM_RESERVATION
            | XenMem::MAXIMUM_GPFN
            | XenMem::REMOVE_FROM_PHYSMAP
            | XenMem::CLAIM_PAGES
            | XenMem::GET_VNUMAINFO
            | XenMem::RESERVED_DEVICE_MEMORY_MAP
    )
}

/// Writes a result structure.
fn answer<P: Platform, T: IntoBytes + Immutable>(
    cx: &Ctx<'_, P>,
    to: GuestVa,
    value: &T,
) -> HcResult {
    cx.plat.write_guest(to, value).map_err(efault)?;
    ret(0)
}

/// The domain named at an offset in an argument.
fn named_at<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa, offset: u64) -> Result<Named, Errno> {
    let domid: DomId = cx.plat.read_guest(arg.add(offset)).map_err(efault)?;
    domain_by_any_id(domid)
}

/// For operations on others only: not on oneself, and a guest may do none on others.
fn remote_only(_: Named) -> HcResult {
    Err(Errno::EPERM)
}

/// For operations a guest may do on itself.
fn own_only(named: Named) -> Result<(), Errno> {
    if named == Named::Own { Ok(()) } else { Err(Errno::EPERM) }
}

/// increase_reservation, decrease_reservation and populate_physmap. Whatever is wrong, the answer
/// is how many extents are done.
fn reservation<P: Platform>(
    cx: &Ctx<'_, P>,
    regs: &mut CpuRegs,
    op: XenMem,
    start: u64,
    arg: GuestVa,
) -> Outcome {
    let nothing = Outcome::Return(start.cast_signed());
    let Ok(reservation) = cx.plat.read_guest::<MemoryReservation>(arg) else { return nothing };
    let count = reservation.nr_extents;
    // A continuation must be able to say how far it got.
    if count > u64::from(u32::MAX >> MEMOP_EXTENT_SHIFT) || start >= count {
        return nothing;
    }
    if domain_by_any_id(reservation.domid) != Ok(Named::Own) || !flags_ok(&reservation) {
        return nothing;
    }
    let most = BATCH.checked_shr(reservation.extent_order).unwrap_or(0).max(1);
    let end = count.min(start.saturating_add(most));
    let pinned = (op == XenMem::DECREASE_RESERVATION).then(|| PinnedFrames::now(cx.dom));
    let mut done = start;
    while done < end && one_extent(cx, op, &reservation, done, pinned.as_ref()).is_some() {
        done += 1;
    }
    if done == end && end < count {
        regs.rdi = u64::from(op.0) | done << MEMOP_EXTENT_SHIFT;
        return Outcome::Continue;
    }
    Outcome::Return(done.cast_signed())
}

/// `construct_memop_from_reservation`'s checks.
const fn flags_ok(reservation: &MemoryReservation) -> bool {
    let flags = reservation.mem_flags;
    let address_bits = flags & XENMEMF_ADDRESS_BITS_MASK;
    let exact_node = flags & XENMEMF_EXACT_NODE_REQUEST != 0
        && flags & XENMEMF_VNODE == 0
        && flags >> 8 & 0xff != 0;
    (address_bits == 0 || address_bits > 12) && !exact_node
}

/// Does extent number `index`; `None` where it cannot be done.
fn one_extent<P: Platform>(
    cx: &Ctx<'_, P>,
    op: XenMem,
    reservation: &MemoryReservation,
    index: u64,
    pinned: Option<&PinnedFrames>,
) -> Option<()> {
    if reservation.extent_order > MAX_ORDER {
        return None;
    }
    let null = reservation.extent_start == 0;
    let at = GuestVa(reservation.extent_start).add(index * 8);
    match op {
        XenMem::DECREASE_RESERVATION => {
            let first: u64 = cx.plat.read_guest(at).ok()?;
            (0..1u64 << reservation.extent_order)
                .try_for_each(|frame| release(cx, pinned?, Mfn(first.checked_add(frame)?)))
        }
        _ if reservation.extent_order != 0 => None,
        XenMem::POPULATE_PHYSMAP => {
            let pfn: u64 = cx.plat.read_guest(at).ok()?;
            if reservation.mem_flags & XENMEMF_POPULATE_ON_DEMAND != 0 {
                return None;
            }
            let mfn = acquire(cx, Pfn(pfn))?;
            cx.plat.write_guest(at, &mfn.0).ok()
        }
        _ => {
            let mfn = acquire(cx, Pfn(u64::MAX))?;
            if null { Some(()) } else { cx.plat.write_guest(at, &mfn.0).ok() }
        }
    }
}

/// Takes a frame from the guest, unless ring 0 would fall with it.
fn release<P: Platform>(cx: &Ctx<'_, P>, pinned: &PinnedFrames, mfn: Mfn) -> Option<()> {
    if pinned.has(cx.dom, mfn) {
        return None;
    }
    mmu::unless_loaded(cx, mfn, || cx.plat.release_frame(mfn)).filter(|&released| released)?;
    cx.dom.nr_pages.fetch_sub(1, Relaxed);
    Some(())
}

/// Gives the guest a frame, within its maximum.
fn acquire<P: Platform>(cx: &Ctx<'_, P>, pfn: Pfn) -> Option<Mfn> {
    let within = |pages| (pages < cx.dom.max_pages).then_some(pages + 1);
    cx.dom.nr_pages.fetch_update(Relaxed, Relaxed, within).ok()?;
    let mfn = cx.plat.acquire_frame(pfn);
    if mfn.is_none() {
        cx.dom.nr_pages.fetch_sub(1, Relaxed);
    }
    mfn
}

/// `XENMEM_exchange`. Single frames, and extents of a higher order given for single ones, are
/// exchanged for themselves under their new `pfn`s; to make an extent of single frames is
/// `ENOMEM`, unless they happen to be one.
fn exchange<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let mut exchange: MemoryExchange = cx.plat.read_guest(arg).map_err(efault)?;
    let result = exchange_extents(cx, &mut exchange);
    let counter = arg.add(core::mem::offset_of!(MemoryExchange, nr_exchanged) as u64);
    cx.plat.write_guest(counter, &exchange.nr_exchanged).map_err(efault)?;
    result?;
    ret(0)
}

/// Extents of an exchange done in one go, in frames. What is left is reported as `ENOMEM`, which
/// a guest must expect of this operation anyway.
const EXCHANGE_FRAMES: u64 = 1 << MAX_ORDER;

fn exchange_extents<P: Platform>(
    cx: &Ctx<'_, P>,
    exchange: &mut MemoryExchange,
) -> Result<(), Errno> {
    let (from, to) = (exchange.in_, exchange.out);
    if from.extent_order.max(to.extent_order) > MAX_ORDER {
        return Err(Errno::EPERM);
    }
    let overflows = |r: &MemoryReservation| u64::MAX >> r.extent_order < r.nr_extents;
    if exchange.nr_exchanged > from.nr_extents
        || from.domid != to.domid
        || overflows(&from)
        || overflows(&to)
        || from.nr_extents << from.extent_order != to.nr_extents << to.extent_order
    {
        return Err(Errno::EINVAL);
    }
    own_only(domain_by_any_id(from.domid)?)?;
    let chunk = from.extent_order.max(to.extent_order);
    let (in_chunk, out_chunk) = (chunk - from.extent_order, chunk - to.extent_order);
    let mut frames = 0;
    while exchange.nr_exchanged < from.nr_extents {
        if frames >= EXCHANGE_FRAMES {
            return Err(Errno::ENOMEM);
        }
        let index = exchange.nr_exchanged >> in_chunk;
        let first = chunk_of_frames(cx, &from, index, in_chunk)?;
        if first % (1u64 << to.extent_order) != 0 && to.extent_order != 0 {
            return Err(Errno::ENOMEM);
        }
        for j in 0..1u64 << out_chunk {
            let at = GuestVa(to.extent_start).add(((index << out_chunk) + j).wrapping_mul(8));
            let pfn: u64 = cx.plat.read_guest(at).map_err(efault)?;
            let mfn = first + (j << to.extent_order);
            for k in 0..1u64 << to.extent_order {
                cx.plat.set_m2p(Mfn(mfn + k), Pfn(pfn.wrapping_add(k)));
            }
            cx.plat.write_guest(at, &mfn).map_err(efault)?;
        }
        frames += 1u64 << chunk;
        exchange.nr_exchanged = (exchange.nr_exchanged + (1u64 << in_chunk)).min(from.nr_extents);
    }
    Ok(())
}

/// The first frame of a chunk of input extents, if they are one run of the guest's frames.
fn chunk_of_frames<P: Platform>(
    cx: &Ctx<'_, P>,
    from: &MemoryReservation,
    index: u64,
    in_chunk: u32,
) -> Result<u64, Errno> {
    let mut first = 0;
    for j in 0..1u64 << in_chunk {
        let at = GuestVa(from.extent_start).add(((index << in_chunk) + j).wrapping_mul(8));
        let mfn: u64 = cx.plat.read_guest(at).map_err(efault)?;
        let expected = first + (j << from.extent_order);
        if j == 0 {
            first = mfn;
        } else if mfn != expected {
            return Err(Errno::ENOMEM);
        }
        for k in 0..1u64 << from.extent_order {
            let owned = mfn.checked_add(k).is_some_and(|mfn| cx.plat.m2p(Mfn(mfn)).is_some());
            if !owned {
                return Err(Errno::EINVAL);
            }
        }
    }
    Ok(first)
}

/// current_reservation, maximum_reservation, maximum_gpfn.
fn statistics<P: Platform>(cx: &Ctx<'_, P>, op: XenMem, arg: GuestVa) -> HcResult {
    let domain: MemoryDomain = cx.plat.read_guest(arg).map_err(efault)?;
    own_only(domain_by_any_id(domain.domid)?)?;
    let value = match op {
        XenMem::CURRENT_RESERVATION => cx.dom.nr_pages.load(Relaxed),
        XenMem::MAXIMUM_RESERVATION => cx.dom.max_pages,
        // The guest says how many pfns it has.
        _ => cx.dom.shared_info.arch.max_pfn.load(Relaxed).max(1) - 1,
    };
    ret(value.cast_signed())
}

/// `XENMEM_add_to_physmap`: for guests whose physmap the hypervisor keeps.
fn add_to_physmap<P: Platform>(cx: &Ctx<'_, P>, start: u64, arg: GuestVa) -> HcResult {
    if start > u64::from(u16::MAX) {
        return Err(Errno::EDOM);
    }
    let add: AddToPhysmap = cx.plat.read_guest(arg).map_err(efault)?;
    if add.space == XENMAPSPACE_GMFN_FOREIGN {
        return Err(Errno::ENOSYS);
    }
    own_only(domain_by_any_id(add.domid)?)?;
    Err(Errno::EACCES)
}

/// `XENMEM_add_to_physmap_batch`, as above.
fn add_to_physmap_batch<P: Platform>(cx: &Ctx<'_, P>, start: u64, arg: GuestVa) -> HcResult {
    if start > u64::from(u16::MAX) {
        return Err(Errno::EDOM);
    }
    let [domid, space, _]: [u16; 3] = cx.plat.read_guest(arg).map_err(efault)?;
    if space == XENMAPSPACE_GMFN_RANGE {
        return Err(Errno::EOPNOTSUPP);
    }
    own_only(domain_by_any_id(DomId(domid))?)?;
    Err(Errno::EACCES)
}

/// `XENMEM_claim_pages`: for toolstacks.
fn claim_pages<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let claim: MemoryReservation = cx.plat.read_guest(arg).map_err(efault)?;
    let plain = claim.extent_start == 0 && claim.extent_order == 0 && claim.mem_flags == 0;
    // The id must be a domain's own, not DOMID_SELF.
    if !plain || claim.domid == DomId::SELF || domain_by_any_id(claim.domid).is_err() {
        return Err(Errno::EINVAL);
    }
    Err(Errno::EPERM)
}

/// `XENMEM_get_vnumainfo`: there is none.
fn vnuma<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let [domid, pad]: [u16; 2] = cx.plat.read_guest(arg).map_err(efault)?;
    if pad != 0 {
        return Err(Errno::EINVAL);
    }
    own_only(domain_by_any_id(DomId(domid))?)?;
    Err(Errno::EOPNOTSUPP)
}

/// `struct xen_reserved_device_memory_map`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ReservedDeviceMemoryMap {
    flags: u32,
    nr_entries: u32,
    buffer: u64,
    dev: u64,
}

/// `XENMEM_reserved_device_memory_map`: no regions.
fn reserved_device_memory<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let mut map: ReservedDeviceMemoryMap = cx.plat.read_guest(arg).map_err(efault)?;
    if map.flags & !1 != 0 {
        return Err(Errno::EINVAL);
    }
    map.nr_entries = 0;
    answer(cx, arg, &map)
}

/// `struct xen_mem_acquire_resource`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AcquireResource {
    domid: DomId,
    type_: u16,
    id: u32,
    nr_frames: u32,
    pad: u32,
    frame: u64,
    frame_list: u64,
}

/// `XENMEM_acquire_resource`: for toolstacks.
fn acquire_resource<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let acquire: AcquireResource = cx.plat.read_guest(arg).map_err(efault)?;
    let end = acquire.frame.checked_add(acquire.nr_frames.into());
    if acquire.pad != 0 || end.is_none_or(|end| end >> 32 != 0) {
        return Err(Errno::EINVAL);
    }
    domain_by_any_id(acquire.domid).and_then(remote_only)
}

/// `XENMEM_memory_map`: the E820 map the builder made.
fn memory_map<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let mut map: MemoryMap = cx.plat.read_guest(arg).map_err(efault)?;
    let entries: &[E820Entry] = &cx.dom.memory_map;
    let count = entries.len().min(map.nr_entries as usize);
    let entries = entries.get(..count).unwrap_or_default();
    cx.plat.copy_to_guest(GuestVa(map.buffer), entries.as_bytes()).map_err(efault)?;
    map.nr_entries = count as u32;
    answer(cx, arg, &map)
}

/// `XENMEM_machphys_mfn_list`: the M2P is not for mapping by frame, so the list is empty.
fn machphys_mfn_list<P: Platform>(cx: &Ctx<'_, P>, arg: GuestVa) -> HcResult {
    let mut list: MachphysMfnList = cx.plat.read_guest(arg).map_err(efault)?;
    list.nr_extents = 0;
    answer(cx, arg, &list)
}

#[cfg(test)]
mod tests;
