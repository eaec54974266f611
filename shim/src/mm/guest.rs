//! The guest's frames: who owns which, and access to them.
//!
//! Ownership is the M2P: an entry whose top bit is clear is the guest's frame. The guest reads
//! the M2P at [`M2P_BASE`] through a read-only mapping; the shim writes it through the direct map.
//! Pages the ABI shares (shared_info, grant-table frames) are the shim's, lie in one range, and may
//! be mapped by the guest too.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;
use static_assertions::const_assert;
use translate::platform::PageWords;
use xen_abi::{GuestVa, MachineAddr, Mfn, PAGE_SIZE, Pfn, SharedView};

use super::layout::{
    DIRECT_MAP_BASE, DIRECT_MAP_SIZE, HOLE_END, HOLE_START, M2P_BASE, M2P_L4_SLOT, SHIM_L4_SLOT,
};
use super::phys_to_virt;

static MAX_MFN: AtomicU64 = AtomicU64::new(0);
static M2P_PHYS: AtomicU64 = AtomicU64::new(0);
static SHARED_START: AtomicU64 = AtomicU64::new(0);
static SHARED_END: AtomicU64 = AtomicU64::new(0);

/// First of the frames the guest gave back: a list through their M2P entries, which the guest
/// cannot write.
static RELEASED: Mutex<Option<u64>> = Mutex::new(None);

/// Set in the M2P entry of a frame that is not the guest's; a released frame's entry holds the next
/// of the list besides.
const RELEASED_LINK: u64 = 1 << 63;
const END_OF_LIST: u64 = RELEASED_LINK - 1;

/// Whether an M2P entry is that of a frame of the guest's.
#[inline]
const fn owned(entry: u64) -> bool {
    entry & RELEASED_LINK == 0
}

unsafe extern "C" {
    fn guest_copy(to: *mut u8, from: *const u8, bytes: usize) -> u64;
}

/// Sets up the M2P: `m2p` is its physical address, all entries to become invalid; `shared` the
/// frames the ABI shares.
///
/// # Safety
/// The memory at `m2p` must hold `max_mfn` entries, be the shim's, and be mapped at `M2P_BASE`
/// read-only and in the direct map; the shared frames must be the shim's.
pub unsafe fn init(m2p: u64, max_mfn: u64, shared: core::ops::Range<u64>) {
    // SAFETY: the caller's promise.
    unsafe { phys_to_virt(m2p).write_bytes(0xff, (max_mfn * 8) as usize) };
    M2P_PHYS.store(m2p, Ordering::Relaxed);
    SHARED_START.store(shared.start, Ordering::Relaxed);
    SHARED_END.store(shared.end, Ordering::Relaxed);
    MAX_MFN.store(max_mfn, Ordering::Release);
}

/// The M2P's length.
#[inline]
pub fn max_mfn() -> u64 {
    MAX_MFN.load(Ordering::Relaxed)
}

/// The M2P entry of a frame below `max_mfn`, by its read-only mapping.
#[inline]
fn entry(mfn: u64) -> Option<u64> {
    if mfn >= max_mfn() {
        return None;
    }
    let slot = (M2P_BASE + mfn * 8) as *const AtomicU64;
    // SAFETY: the M2P is mapped at M2P_BASE for all frames below max_mfn, for good.
    Some(unsafe { &*slot }.load(Ordering::Relaxed))
}

fn entry_mut(mfn: u64) -> Option<&'static AtomicU64> {
    if mfn >= max_mfn() {
        return None;
    }
    let slot = phys_to_virt(M2P_PHYS.load(Ordering::Relaxed) + mfn * 8).cast::<AtomicU64>();
    // SAFETY: in the direct map, inside the M2P, aligned; all access to it is atomic.
    Some(unsafe { &*slot })
}

#[inline]
fn is_shared(mfn: u64) -> bool {
    let start = SHARED_START.load(Ordering::Relaxed);
    mfn >= start && mfn < SHARED_END.load(Ordering::Relaxed)
}

/// Whether the guest may map the frame.
#[inline]
pub fn may_map(mfn: Mfn) -> bool {
    is_ram(mfn) || is_shared(mfn.0)
}

/// Whether the frame is the guest's own RAM.
#[inline(always)]
pub fn is_ram(mfn: Mfn) -> bool {
    entry(mfn.0).is_some_and(owned)
}

/// The words of a frame of the guest's own RAM.
#[inline(always)]
pub fn ram_frame(mfn: Mfn) -> Option<&'static PageWords> {
    // SAFETY: as for `frame`.
    is_ram(mfn).then(|| unsafe { &*page(mfn) })
}

/// The words of a frame the guest may map.
#[inline]
pub fn frame(mfn: Mfn) -> Option<&'static PageWords> {
    if !may_map(mfn) {
        return None;
    }
    // SAFETY: guest RAM and shared pages stay mapped in the direct map for good; both sides access
    // them as atomics only (the shim) or at will (the guest, whose writes the shim treats as such).
    Some(unsafe { &*page(mfn) })
}

/// A frame in the direct map; "or" shows the compiler that the address is not zero.
#[inline(always)]
const fn page(mfn: Mfn) -> *const PageWords {
    (DIRECT_MAP_BASE | mfn.0 << 12) as *const PageWords
}
const_assert!(DIRECT_MAP_SIZE <= 1 << 39 && DIRECT_MAP_BASE.is_multiple_of(1 << 39));

/// A shared structure in a frame the guest may map.
pub fn view<T: SharedView>(at: MachineAddr) -> Option<&'static T> {
    let size = size_of::<T>() as u64;
    if at.offset() + size > PAGE_SIZE
        || !at.0.is_multiple_of(align_of::<T>() as u64)
        || !may_map(at.mfn())
    {
        return None;
    }
    let pointer = (DIRECT_MAP_BASE + at.0) as *const T;
    // SAFETY: in bounds of one mapped page, aligned, and T (SharedView) is made of atomics, for
    // which any bytes are valid.
    Some(unsafe { &*pointer })
}

/// The guest frame number of a frame.
pub fn m2p(mfn: Mfn) -> Option<Pfn> {
    entry(mfn.0).filter(|&pfn| owned(pfn)).map(Pfn)
}

/// Sets the guest frame number of a frame the guest owns; the top bit is not the guest's to set. One
/// that another processor takes meanwhile stays in the list it is in then.
pub fn set_m2p(mfn: Mfn, pfn: Pfn) -> bool {
    let Some(slot) = entry_mut(mfn.0) else { return false };
    let new = |old| owned(old).then_some(pfn.0 & !RELEASED_LINK);
    slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, new).is_ok()
}

/// Makes a frame the guest's (boot).
pub fn give(mfn: Mfn, pfn: Pfn) {
    if let Some(slot) = entry_mut(mfn.0) {
        slot.store(pfn.0, Ordering::Relaxed);
    }
}

/// Takes a frame from the guest and keeps it for [`acquire`].
pub fn release(mfn: Mfn) -> bool {
    let Some(slot) = entry_mut(mfn.0) else { return false };
    let mut list = RELEASED.lock();
    let link = RELEASED_LINK | list.unwrap_or(END_OF_LIST);
    let take = |old| owned(old).then_some(link);
    if slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
        return false;
    }
    *list = Some(mfn.0);
    true
}

/// Gives a released frame back, zeroed.
pub fn acquire(pfn: Pfn) -> Option<Mfn> {
    let mut list = RELEASED.lock();
    let mfn = (*list)?;
    let slot = entry_mut(mfn)?;
    let next = slot.load(Ordering::Relaxed) & !RELEASED_LINK;
    *list = (next != END_OF_LIST).then_some(next);
    // SAFETY: a released frame is RAM of no one's; a guest that kept a mapping sees it zeroed.
    unsafe { phys_to_virt(mfn << 12).write_bytes(0, PAGE_SIZE as usize) };
    slot.store(pfn.0 & !RELEASED_LINK, Ordering::Relaxed);
    Some(Mfn(mfn))
}

/// Whether an entry is the first of the hypervisor's.
#[inline(always)]
pub fn is_hole_entry(entry: u64) -> bool {
    entry == crate::boot::shim_l4_entries()[0]
}

/// Stores the hypervisor's slots into an L4.
#[inline]
pub fn install_slots(words: &PageWords) {
    let [m2p, shim] = crate::boot::shim_l4_entries();
    words[M2P_L4_SLOT].store(m2p, Ordering::Relaxed);
    words[SHIM_L4_SLOT].store(shim, Ordering::Relaxed);
}

/// Puts the slots of the L4 in use right again after a copy to where the guest said, which may be
/// that very page: the processor goes on by what it has cached of them until here.
#[inline]
pub(super) fn repair_slots() {
    let page = (DIRECT_MAP_BASE + crate::cpu::current_l4()) as *const PageWords;
    // SAFETY: CR3 holds a frame of RAM, in the direct map, and its words are atomics.
    install_slots(unsafe { &*page });
}

/// Whether a guest range that starts here stays clear of the hole. What starts below it would
/// first have to cross addresses that are not canonical, and faults there.
#[inline(always)]
pub(super) const fn outside_hole(va: GuestVa) -> bool {
    va.0 >> HOLE_SHIFT != HOLE_START >> HOLE_SHIFT
}
const HOLE_SHIFT: u32 = 43;
const_assert!(HOLE_START.is_multiple_of(1 << HOLE_SHIFT));
const_assert!(HOLE_END - HOLE_START == 1 << HOLE_SHIFT);

/// Copies from the guest's address space; `false` on a fault.
#[inline]
pub fn copy_from(to: &mut [u8], from: GuestVa) -> bool {
    // SAFETY: the source is not the shim's memory; a fault there ends the copy by the exception
    // table; the destination is a valid slice.
    outside_hole(from) && unsafe { guest_copy(to.as_mut_ptr(), from.0 as *const u8, to.len()) } == 0
}

/// Copies to the guest's address space; `false` on a fault.
#[inline]
pub fn copy_to(to: GuestVa, from: &[u8]) -> bool {
    if !outside_hole(to) {
        return false;
    }
    // SAFETY: the destination is not the shim's memory (the guest's own memory may also be seen
    // through the direct map, where the shim holds only atomics); faults end the copy.
    let fault = unsafe { guest_copy(to.0 as *mut u8, from.as_ptr(), from.len()) };
    repair_slots();
    fault == 0
}
