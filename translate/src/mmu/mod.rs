//! Page tables: mmu_update, update_va_mapping, mmuext_op.
//!
//! The guest's page tables are the ones the processor walks, and they stay writable for the
//! guest: nothing is validated, pinned or counted. An update is a store of an entry, checked for
//! the two things that could take ring 0 down with the guest: that a present entry points at a
//! frame the guest may map, and that the hypervisor's slots of an L4 stay as they are. Both need
//! no bookkeeping: an L4 is known by what the hypervisor put into its slot 256; no entry of the
//! guest's equals it, because it points at a frame the guest may not map.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use xen_abi::mm::{
    DomId, FIRST_XEN_SLOT, HYPERVISOR_VIRT_START, LAST_XEN_SLOT, MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED, MmuUpdate, UVMF_FLUSHTYPE_MASK, UVMF_INVLPG, UVMF_TLB_FLUSH, pte,
};
use xen_abi::{Errno, GuestVa, MachineAddr, Mfn, Pfn};
use zerocopy::IntoBytes;

use crate::Ctx;
use crate::debugreg::address_ok;
use crate::evtchn::{GUEST_DOMID, Named, domain_by_any_id};
use crate::lazy::Tables;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::{GuestMemory, PageWords, Platform};
use crate::regs::CpuRegs;

mod ext;
pub(crate) mod flush;
mod root;
#[cfg(test)]
mod tests;

pub use ext::{mmuext_op, mmuext_op_plain};
pub use flush::Flushes;
pub use root::{Roots, Taken};
pub(crate) use root::{load_l4, unless_loaded};

/// Requests taken in one go; the rest is a continuation.
const BATCH: u32 = 512;
/// Requests or operations of a list that is done in one go and without a count.
pub const PLAIN_LIST: u32 = 64;

/// The vCPU's page-table roots.
#[derive(Debug, Default)]
pub struct VcpuMmu {
    /// The L4 in use; kernel and user share it.
    pub l4: u64,
    /// The L4 the guest means for user mode (`MMUEXT_NEW_USER_BASEPTR`), 0 = none.
    pub user_l4: u64,
    /// TLB flushes of a multicall that wait.
    pub flushes: Flushes,
}

/// Whether `index` is one of the hypervisor's slots and `words` an L4 that has them.
#[inline(always)]
pub(crate) fn is_hole_slot<M: GuestMemory>(plat: &M, words: &PageWords, index: usize) -> bool {
    (FIRST_XEN_SLOT..=LAST_XEN_SLOT).contains(&index)
        && plat.is_hole_entry(words[FIRST_XEN_SLOT].load(Relaxed))
}

/// `INVALID_MFN` as an entry can hold it.
const INVALID: u64 = pte::ADDR >> 12;

/// The frame an entry points at.
#[inline]
const fn frame_of(entry: u64) -> Mfn {
    Mfn((entry & pte::ADDR) >> 12)
}

/// Whether an entry may stand in a page table of the guest.
#[inline]
fn check_entry<M: GuestMemory>(plat: &M, entry: u64) -> Result<(), Errno> {
    if entry & pte::P == 0 {
        return Ok(());
    }
    let mfn = frame_of(entry);
    if !plat.may_map(mfn) {
        return Err(unmappable(plat, mfn));
    }
    if entry & pte::PS != 0 { check_large(plat, mfn) } else { Ok(()) }
}

/// Xen's error for a frame that is not the guest's: `INVALID_MFN`, MMIO and holes, or someone
/// else's RAM.
#[cold]
fn unmappable<M: GuestMemory>(plat: &M, mfn: Mfn) -> Errno {
    match mfn {
        Mfn(INVALID) => Errno::EINVAL,
        _ if mfn >= plat.max_mfn() => Errno::EPERM,
        _ => Errno::EBUSY,
    }
}

/// Bit 7 is PAT in an L1 and page size above it, and a store does not know the table's level. An
/// entry that could be a large page is taken if all of it is the guest's.
#[cold]
fn check_large<M: GuestMemory>(plat: &M, mfn: Mfn) -> Result<(), Errno> {
    // Bit 12 is PAT in a large page; the other bits below its size must be zero.
    let first = mfn.0 & !1;
    if !first.is_multiple_of(512) {
        return Ok(());
    }
    if first.is_multiple_of(512 * 512) || !(first..first + 512).all(|mfn| plat.may_map(Mfn(mfn))) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Whose pages an update may map.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The guest's.
    Own,
    /// Only I/O memory: a guest has none, so nothing.
    Io,
    /// Those of a domain that is none of the guest's business.
    Foreign,
}

/// `get_pg_owner`: whom a `foreigndom` argument names. The caller must use `DOMID_SELF` for
/// itself.
fn page_owner(domid: u16) -> Result<Owner, Errno> {
    match DomId(domid) {
        DomId::SELF => Ok(Owner::Own),
        DomId::IO => Ok(Owner::Io),
        DomId::XEN => Ok(Owner::Foreign),
        GUEST_DOMID => Err(Errno::ESRCH),
        other => domain_by_any_id(other).map(|_| Owner::Foreign),
    }
}

/// Both halves of mmu_update's `foreigndom`.
fn owners(foreigndom: u32) -> Result<Owner, Errno> {
    if foreigndom == DomId::SELF.0.into() {
        return Ok(Owner::Own);
    }
    let tables = foreigndom >> 16;
    let tables_foreign = match tables.checked_sub(1) {
        None => false,
        // Not DOMID_SELF here: the id is looked up as it is.
        Some(id) if id == u32::from(DomId::SELF.0) => return Err(Errno::ESRCH),
        Some(id) => {
            let id = u16::try_from(id).map_err(|_| Errno::ESRCH)?;
            domain_by_any_id(DomId(id))? == Named::Backend
        }
    };
    let pages = page_owner(foreigndom as u16)?;
    Ok(if tables_foreign { Owner::Foreign } else { pages })
}

/// Carries out one request.
#[inline(always)]
fn update<M: GuestMemory>(plat: &M, tables: &Tables, request: MmuUpdate) -> Result<(), Errno> {
    let command = request.ptr & 7;
    let at = MachineAddr(request.ptr - command);
    match command {
        MMU_NORMAL_PT_UPDATE | MMU_PT_UPDATE_PRESERVE_AD | MMU_PT_UPDATE_NO_TRANSLATE => {
            let words = plat.frame(at.mfn()).ok_or(Errno::EINVAL)?;
            let index = (at.offset() / 8) as usize & 511;
            if is_hole_slot(plat, words, index) {
                return Err(Errno::EINVAL);
            }
            check_entry(plat, request.val)?;
            let entry = &words[index];
            if command == MMU_PT_UPDATE_PRESERVE_AD {
                store_preserving_ad(tables, entry, request.val);
            } else {
                store(tables, entry, request.val);
            }
            Ok(())
        }
        MMU_MACHPHYS_UPDATE => {
            let known = plat.set_m2p(at.mfn(), Pfn(request.val));
            if known { Ok(()) } else { Err(Errno::EINVAL) }
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Stores an entry.
#[inline(always)]
fn store(tables: &Tables, entry: &AtomicU64, value: u64) {
    let old = entry.load(Relaxed);
    entry.store(value, Relaxed);
    tables.replaced(old, value);
}

/// Stores an entry and keeps the accessed and dirty bits the old one has, against processors that
/// set them meanwhile.
#[inline]
fn store_preserving_ad(tables: &Tables, entry: &AtomicU64, value: u64) {
    let mut old = entry.load(Relaxed);
    while let Err(now) =
        entry.compare_exchange_weak(old, value | old & (pte::A | pte::D), Relaxed, Relaxed)
    {
        old = now;
    }
    tables.replaced(old, value);
}

/// A request that names another owner: `DOMID_IO` may still remove mappings.
#[cold]
fn update_foreign<P: Platform>(
    cx: &Ctx<'_, P>,
    request: MmuUpdate,
    owner: Owner,
) -> Result<(), Errno> {
    match request.ptr & 7 {
        4.. => Err(Errno::ENOSYS),
        MMU_MACHPHYS_UPDATE if owner == Owner::Io => Err(Errno::EINVAL),
        _ if owner == Owner::Io && request.val & pte::P == 0 => {
            update(cx.plat, &cx.dom.tables, request)
        }
        _ => Err(Errno::EPERM),
    }
}

/// mmu_update of a plain list: at most [`PLAIN_LIST`] requests, the guest's own tables and pages,
/// no report of how many were done.
///
/// # Errors
/// As [`mmu_update`].
#[inline(always)]
pub fn mmu_update_plain<P: Platform>(cx: &mut Ctx<'_, P>, list: u64, count: u64) -> HcResult {
    // Most lists have one entry: without a loop nothing has to be kept across anything.
    if count as u32 == 1 {
        let [ptr, val] = cx.plat.read_words(GuestVa(list)).map_err(efault)?;
        if store_plain(cx.plat, &cx.dom.tables, ptr, val) {
            return ret(0);
        }
    }
    mmu_update_loop(cx, list, count as u32)
}

/// Stores the commonest kind of entry: a normal update of the guest's own table, outside the
/// hypervisor's slots, of an entry that is not present or maps a small page of the guest's RAM.
/// `false`: it is another kind, and nothing has changed.
#[inline(always)]
fn store_plain<M: GuestMemory>(plat: &M, tables: &Tables, ptr: u64, val: u64) -> bool {
    if ptr & 7 != MMU_NORMAL_PT_UPDATE {
        return false;
    }
    let Some(words) = plat.ram_frame(Mfn(ptr >> 12)) else { return false };
    let index = (ptr >> 3) as usize & 511;
    if is_hole_slot(plat, words, index) || !is_plain(plat, val) {
        return false;
    }
    store(tables, &words[index], val);
    true
}

/// Whether an entry is not present or maps a small page of the guest's RAM.
#[inline(always)]
fn is_plain<M: GuestMemory>(plat: &M, entry: u64) -> bool {
    entry & pte::P == 0 || entry & pte::PS == 0 && plat.is_ram(frame_of(entry))
}

/// A plain list of any entries.
#[inline(never)]
fn mmu_update_loop<P: Platform>(cx: &mut Ctx<'_, P>, list: u64, count: u32) -> HcResult {
    let mut at = list;
    for _ in 0..count {
        let [ptr, val] = cx.plat.read_words(GuestVa(at)).map_err(efault)?;
        if !store_plain(cx.plat, &cx.dom.tables, ptr, val) {
            update(cx.plat, &cx.dom.tables, MmuUpdate { ptr, val })?;
        }
        at = at.wrapping_add(size_of::<MmuUpdate>() as u64);
    }
    ret(0)
}

/// Whether the arguments from the second on are those of the usual list: short, nobody wants to
/// know how many were done, for the guest itself.
#[inline(always)]
pub(crate) const fn is_plain_list(count: u64, done_out: u64, foreigndom: u64) -> bool {
    done_out == 0 && foreigndom as u32 == DomId::SELF.0 as u32 && count as u32 <= PLAIN_LIST
}

/// `mmu_update(requests, count, done_out, foreigndom)`.
///
/// # Errors
/// Xen's; requests before the bad one are done, and counted in `*done_out`.
pub fn mmu_update<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    let mut batch = Batch::begin(cx, regs, regs.rsi as u32, BATCH);
    let mut result = Ok(());
    match owners(regs.r10 as u32) {
        Err(error) => result = Err(error),
        Ok(owner) => {
            while result.is_ok() && batch.more() {
                result = match cx.plat.read_guest::<MmuUpdate>(GuestVa(regs.rdi)) {
                    Ok(request) if owner == Owner::Own => update(cx.plat, &cx.dom.tables, request),
                    Ok(request) => update_foreign(cx, request, owner),
                    Err(fault) => Err(efault(fault)),
                };
                if result.is_ok() {
                    batch.done_one(regs, size_of::<MmuUpdate>());
                }
            }
        }
    }
    batch.end(cx, regs, result)
}

/// The part of a list of requests one entry into ring 0 works on.
struct Batch {
    /// Requests in the list.
    count: u32,
    /// Requests to do now.
    limit: u32,
    /// Requests done now.
    done: u32,
    /// Requests done before a continuation.
    before: u32,
}

impl Batch {
    fn begin<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs, count: u32, most: u32) -> Self {
        let mut before = 0;
        if count & MMU_UPDATE_PREEMPTED != 0 && regs.rdx != 0 {
            before = cx.plat.read_guest(GuestVa(regs.rdx)).unwrap_or(0);
        }
        let count = count & !MMU_UPDATE_PREEMPTED;
        Self { count, limit: count.min(most), done: 0, before }
    }

    const fn more(&self) -> bool {
        self.done < self.limit
    }

    /// Counts a request and moves the list pointer behind it.
    const fn done_one(&mut self, regs: &mut CpuRegs, size: usize) {
        self.done += 1;
        regs.rdi = regs.rdi.wrapping_add(size as u64);
    }

    /// Reports progress; what is left becomes a continuation.
    fn end<P: Platform>(
        self,
        cx: &Ctx<'_, P>,
        regs: &mut CpuRegs,
        result: Result<(), Errno>,
    ) -> HcResult {
        if regs.rdx != 0 {
            let done = self.before.wrapping_add(self.done);
            let _ = cx.plat.copy_to_guest(GuestVa(regs.rdx), done.as_bytes());
        }
        result?;
        if self.done < self.count {
            regs.rsi = u64::from((self.count - self.done) | MMU_UPDATE_PREEMPTED);
            return Ok(Outcome::Continue);
        }
        ret(0)
    }
}

/// Finds the L1 entry that maps a guest address, in tables that `frame` gives. Of tables that map
/// themselves the L1 may be an L4, and the entry one of the hypervisor's: there is none then.
#[inline(always)]
fn walk<M: GuestMemory>(
    plat: &M,
    frame: impl Fn(Mfn) -> Option<&'static PageWords>,
    l4: Mfn,
    va: u64,
) -> Option<&'static AtomicU64> {
    let (words, index) = (l1_of(frame, l4, va)?, (va >> 12) as usize & 511);
    if is_hole_slot(plat, words, index) { None } else { Some(&words[index]) }
}

/// The L1 table that maps a linear address, if there is one.
#[inline(always)]
pub(crate) fn l1_of(
    frame: impl Fn(Mfn) -> Option<&'static PageWords>,
    l4: Mfn,
    va: u64,
) -> Option<&'static PageWords> {
    let mut table = frame(l4)?;
    for shift in [39, 30, 21] {
        let entry = table[(va >> shift) as usize & 511].load(Relaxed);
        if entry & (pte::P | pte::PS) != pte::P {
            return None;
        }
        table = frame(frame_of(entry))?;
    }
    Some(table)
}

/// `update_va_mapping(va, entry, flags)`.
///
/// # Errors
/// `EINVAL`: no L1 there; and what mmu_update gives for a bad entry.
pub fn update_va_mapping<P: Platform>(
    cx: &mut Ctx<'_, P>,
    va: u64,
    entry: u64,
    flags: u64,
) -> HcResult {
    let l4 = Mfn(cx.vcpu.mmu.l4);
    let slot = address_ok(va).then(|| walk(cx.plat, |mfn| cx.plat.frame(mfn), l4, va)).flatten();
    let slot = slot.ok_or(Errno::EINVAL)?;
    check_entry(cx.plat, entry)?;
    slot.store(keep_writable(va, entry), Relaxed);
    flush::for_update(cx, va, flags)?;
    ret(0)
}

/// update_va_mapping of the commonest kind, which comes in long lists: pages of page tables go
/// read-only and back. An entry of the guest's RAM, in tables there, and a flush of this processor
/// at most. `false`: it is another kind, and nothing has changed.
#[inline(always)]
pub(crate) fn update_va_mapping_plain<P: Platform>(
    cx: &Ctx<'_, P>,
    va: u64,
    entry: u64,
    flags: u64,
) -> bool {
    if flags & !UVMF_FLUSHTYPE_MASK != 0 || !address_ok(va) || !is_plain(cx.plat, entry) {
        return false;
    }
    let l4 = Mfn(cx.vcpu.mmu.l4);
    let Some(slot) = walk(cx.plat, |mfn| cx.plat.ram_frame(mfn), l4, va) else { return false };
    slot.store(keep_writable(va, entry), Relaxed);
    match flags {
        UVMF_TLB_FLUSH => cx.plat.flush_tlb_local(),
        UVMF_INVLPG => cx.plat.invlpg_local(GuestVa(va)),
        _ => {}
    }
    true
}

/// PV kernels make their page tables, GDT and LDT read-only through this call before they may use
/// them, and nothing else in the kernel's half. Here they need not be: leaving them writable
/// saves the fault of every later plain store.
#[inline]
const fn keep_writable(va: u64, entry: u64) -> u64 {
    if entry & pte::P != 0 && va >= HYPERVISOR_VIRT_START { entry | pte::RW } else { entry }
}

/// `update_va_mapping_otherdomain(va, entry, flags, domid)`: with `DOMID_SELF` as above.
///
/// # Errors
/// `ESRCH`: no such domain; `EPERM`: not the guest's business.
pub fn update_va_mapping_otherdomain<P: Platform>(
    cx: &mut Ctx<'_, P>,
    va: u64,
    entry: u64,
    flags: u64,
    domid: u64,
) -> HcResult {
    match page_owner(domid as u16)? {
        Owner::Own => update_va_mapping(cx, va, entry, flags),
        Owner::Io if entry & pte::P == 0 => update_va_mapping(cx, va, entry, flags),
        Owner::Io | Owner::Foreign => Err(Errno::EPERM),
    }
}
