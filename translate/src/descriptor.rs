//! The guest's descriptor tables: set_gdt, update_descriptor, LDT.
//!
//! The frames of the GDT are mapped at the front of the vCPU's table; the page behind them is the
//! hypervisor's. A descriptor may be code or data of any kind, or empty; gates and other system
//! descriptors are refused. DPL 0 becomes 1, the ring of the guest kernel.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;
use xen_abi::arch::FIRST_RESERVED_GDT_ENTRY;
use xen_abi::{Errno, GuestVa, MachineAddr, Mfn, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::Ctx;
use crate::debugreg::address_ok;
use crate::mmu;
use crate::outcome::{HcResult, efault, ret};
use crate::platform::{GuestMemory, PageWords, Platform};
use crate::regs::selector::GUEST_GDT_PAGES;

/// Descriptors in a page.
const PER_PAGE: u32 = 512;
/// Entries an LDT may have.
const MAX_LDT_ENTRIES: u32 = 8192;

/// Present.
const P: u64 = 1 << 47;
/// Code or data, not a system descriptor.
const S: u64 = 1 << 44;
/// Privilege level.
const DPL: u64 = 3 << 45;
/// DPL of the guest kernel.
const DPL_1: u64 = 1 << 45;
/// Type.
const TYPE: u64 = 15 << 40;

/// The vCPU's descriptor tables.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// Entries of the GDT.
    pub gdt_entries: u32,
    /// Frames of the GDT.
    pub gdt_frames: ArrayVec<u64, GUEST_GDT_PAGES>,
    /// Linear address of the LDT.
    pub ldt_base: u64,
    /// Entries of the LDT, 0 = none.
    pub ldt_entries: u32,
}

/// Checks a descriptor the guest wants to use and gives it the DPL it can have; `None` where it
/// may not have it.
#[inline]
#[must_use]
pub const fn check_descriptor(descriptor: u64) -> Option<u64> {
    if descriptor & P == 0 {
        return Some(descriptor);
    }
    if descriptor & S != 0 {
        return Some(if descriptor & DPL == 0 { descriptor | DPL_1 } else { descriptor });
    }
    // An empty type always faults.
    if descriptor & TYPE == 0 { Some(descriptor) } else { None }
}

/// Checks a whole page of descriptors and writes the DPLs they can have.
fn check_page(words: &PageWords) -> Result<(), Errno> {
    for word in words {
        let old = word.load(Relaxed);
        let new = check_descriptor(old).ok_or(Errno::EINVAL)?;
        if new != old {
            word.store(new, Relaxed);
        }
    }
    Ok(())
}

/// Checks the frames of a GDT and gives its descriptors the DPLs they can have.
///
/// # Errors
/// As [`load_gdt`].
pub(crate) fn check_gdt<M: GuestMemory>(
    plat: &M,
    frames: &[u64],
    entries: u32,
) -> Result<ArrayVec<Mfn, GUEST_GDT_PAGES>, Errno> {
    if entries > FIRST_RESERVED_GDT_ENTRY {
        return Err(Errno::EINVAL);
    }
    let count = entries.div_ceil(PER_PAGE) as usize;
    let frames = frames.get(..count).ok_or(Errno::EINVAL)?;
    let mut table: ArrayVec<Mfn, GUEST_GDT_PAGES> = ArrayVec::new();
    for &mfn in frames {
        let mfn = Mfn(mfn);
        check_page(plat.frame(mfn).ok_or(Errno::EINVAL)?)?;
        table.try_push(mfn).map_err(|_| Errno::EINVAL)?;
    }
    Ok(table)
}

/// Whether the guest may have an LDT there.
pub(crate) const fn ldt_okay(base: u64, entries: u64) -> bool {
    entries <= MAX_LDT_ENTRIES as u64 && base.is_multiple_of(PAGE_SIZE) && address_ok(base)
}

/// Sets the GDT of the current vCPU from frames in `frames`.
///
/// # Errors
/// `EINVAL`: too many entries, a frame that is not the guest's, or a descriptor it may not have.
pub fn load_gdt<P: Platform>(
    cx: &mut Ctx<'_, P>,
    frames: &[u64],
    entries: u32,
) -> Result<(), Errno> {
    let table = check_gdt(cx.plat, frames, entries)?;
    cx.plat.load_gdt(&table);
    let descriptors = &mut cx.vcpu.descriptors;
    descriptors.gdt_entries = entries;
    descriptors.gdt_frames = table.iter().map(|mfn| mfn.0).collect();
    Ok(())
}

/// `set_gdt`.
///
/// # Errors
/// `EINVAL`, `EFAULT` as Xen.
pub fn set_gdt<P: Platform>(cx: &mut Ctx<'_, P>, frame_list: u64, entries: u64) -> HcResult {
    let entries = entries as u32;
    if entries > FIRST_RESERVED_GDT_ENTRY {
        return Err(Errno::EINVAL);
    }
    let mut frames = [0u64; GUEST_GDT_PAGES];
    let count = entries.div_ceil(PER_PAGE) as usize;
    let list = frames.get_mut(..count).ok_or(Errno::EINVAL)?;
    cx.plat.copy_from_guest(list.as_mut_bytes(), GuestVa(frame_list)).map_err(efault)?;
    load_gdt(cx, &frames, entries)?;
    ret(0)
}

/// `update_descriptor`: writes one descriptor at a machine address.
///
/// # Errors
/// `EINVAL`: the address is not aligned or not the guest's, or it may not have the descriptor.
#[inline]
pub fn update_descriptor<P: Platform>(cx: &mut Ctx<'_, P>, at: u64, descriptor: u64) -> HcResult {
    let descriptor = check_descriptor(descriptor).ok_or(Errno::EINVAL)?;
    let at = MachineAddr(at);
    if !at.0.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let words = cx.plat.frame(at.mfn()).ok_or(Errno::EINVAL)?;
    let index = (at.offset() / 8) as usize & 511;
    if mmu::is_hole_slot(cx.plat, words, index) {
        return Err(Errno::EINVAL);
    }
    words[index].store(descriptor, Relaxed);
    ret(0)
}

/// `MMUEXT_SET_LDT`.
///
/// # Errors
/// `EINVAL`: too many entries, or an address that is not page-aligned or not the guest's.
pub fn set_ldt<P: Platform>(cx: &mut Ctx<'_, P>, base: u64, entries: u32) -> Result<(), Errno> {
    let base = if entries == 0 { 0 } else { base };
    if !ldt_okay(base, entries.into()) {
        return Err(Errno::EINVAL);
    }
    let descriptors = &mut cx.vcpu.descriptors;
    if (descriptors.ldt_base, descriptors.ldt_entries) != (base, entries) {
        (descriptors.ldt_base, descriptors.ldt_entries) = (base, entries);
        cx.plat.load_ldt(GuestVa(base), entries);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
