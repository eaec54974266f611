//! mmuext_op.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::mm::{MmuextCmd, MmuextOp};
use xen_abi::{Errno, GuestVa, Mfn};

use super::flush::{self, flush, is_flush, vcpu_set};
use super::{Batch, Owner, load_l4, page_owner, unless_loaded};
use crate::Ctx;
use crate::debugreg::address_ok;
use crate::descriptor;
use crate::outcome::{HcResult, efault, ret};
use crate::platform::{Platform, VcpuSet};
use crate::regs::CpuRegs;

/// Operations taken in one go; the rest is a continuation.
const BATCH: u32 = 64;

/// mmuext_op of a plain list, as [`super::mmu_update_plain`].
///
/// # Errors
/// As [`mmuext_op`].
#[inline(always)]
pub fn mmuext_op_plain<P: Platform>(cx: &mut Ctx<'_, P>, list: u64, count: u64) -> HcResult {
    let mut at = list;
    for _ in 0..count as u32 {
        let [cmd, arg1, arg2] = cx.plat.read_words(GuestVa(at)).map_err(efault)?;
        let mfn = Mfn(arg1);
        match MmuextCmd(cmd as u32) {
            MmuextCmd::NEW_BASEPTR => new_baseptr(cx, mfn)?,
            MmuextCmd::NEW_USER_BASEPTR => new_user_baseptr(cx, mfn)?,
            MmuextCmd::PIN_L1_TABLE | MmuextCmd::UNPIN_TABLE if cx.plat.is_ram(mfn) => {}
            MmuextCmd::INVLPG_LOCAL => cx.plat.invlpg_local(GuestVa(arg1)),
            cmd => operate(cx, MmuextOp { cmd, pad: 0, arg1, arg2 })?,
        }
        at = at.wrapping_add(size_of::<MmuextOp>() as u64);
    }
    ret(0)
}

/// `mmuext_op(operations, count, done_out, foreigndom)`.
///
/// # Errors
/// Xen's; operations before the bad one are done, and counted in `*done_out`.
pub fn mmuext_op<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    match page_owner(regs.r10 as u16)? {
        Owner::Own => {}
        Owner::Io | Owner::Foreign => return Err(Errno::EPERM),
    }
    let mut batch = Batch::begin(cx, regs, regs.rsi as u32, BATCH);
    let mut result = Ok(());
    while result.is_ok() && batch.more() {
        result = match cx.plat.read_guest::<MmuextOp>(GuestVa(regs.rdi)) {
            Ok(op) => operate(cx, op),
            Err(fault) => Err(efault(fault)),
        };
        if result.is_ok() {
            batch.done_one(regs, size_of::<MmuextOp>());
        }
    }
    batch.end(cx, regs, result)
}

/// `MMUEXT_NEW_BASEPTR`.
#[inline(always)]
fn new_baseptr<P: Platform>(cx: &mut Ctx<'_, P>, mfn: Mfn) -> Result<(), Errno> {
    good(load_l4(cx, mfn))
}

/// `MMUEXT_NEW_USER_BASEPTR`.
#[inline(always)]
fn new_user_baseptr<P: Platform>(cx: &mut Ctx<'_, P>, mfn: Mfn) -> Result<(), Errno> {
    good(mfn.0 == 0 || cx.plat.may_map(mfn))?;
    cx.vcpu.mmu.user_l4 = mfn.0;
    Ok(())
}

/// `EINVAL` unless a call about a frame succeeded.
#[inline]
const fn good(done: bool) -> Result<(), Errno> {
    if done { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Carries out one operation.
#[inline(never)]
fn operate<P: Platform>(cx: &mut Ctx<'_, P>, op: MmuextOp) -> Result<(), Errno> {
    let mfn = Mfn(op.arg1);
    let va = GuestVa(op.arg1);
    if !is_flush(op.cmd) {
        flush::send(cx);
    }
    match op.cmd {
        MmuextCmd::NEW_BASEPTR => new_baseptr(cx, mfn)?,
        MmuextCmd::NEW_USER_BASEPTR => new_user_baseptr(cx, mfn)?,
        // Nothing is validated, so nothing is pinned; but an L4 may be loaded from now on.
        MmuextCmd::PIN_L4_TABLE => good(cx.plat.install_hole(mfn))?,
        MmuextCmd::PIN_L1_TABLE
        | MmuextCmd::PIN_L2_TABLE
        | MmuextCmd::PIN_L3_TABLE
        | MmuextCmd::UNPIN_TABLE => good(cx.plat.may_map(mfn))?,
        MmuextCmd::TLB_FLUSH_LOCAL => cx.plat.flush_tlb_local(),
        MmuextCmd::INVLPG_LOCAL => cx.plat.invlpg_local(va),
        MmuextCmd::TLB_FLUSH_MULTI => {
            let set = named(cx, op.arg2)?;
            flush(cx, set, None);
        }
        MmuextCmd::INVLPG_MULTI => {
            let set = named(cx, op.arg2)?;
            if address_ok(va.0) {
                flush(cx, set, Some(va));
            }
        }
        MmuextCmd::TLB_FLUSH_ALL => flush(cx, VcpuSet::All, None),
        MmuextCmd::INVLPG_ALL => {
            if address_ok(va.0) {
                flush(cx, VcpuSet::All, Some(va));
            }
        }
        // A domain without devices of its own may not.
        MmuextCmd::FLUSH_CACHE => return Err(Errno::EACCES),
        MmuextCmd::FLUSH_CACHE_GLOBAL => return Err(Errno::EINVAL),
        MmuextCmd::SET_LDT => descriptor::set_ldt(cx, op.arg1, op.arg2 as u32)?,
        MmuextCmd::CLEAR_PAGE => {
            let words = cx.plat.frame(mfn).ok_or(Errno::EINVAL)?;
            let clear = || words.iter().for_each(|word| word.store(0, Relaxed));
            unless_loaded(cx, mfn, clear).ok_or(Errno::EINVAL)?;
        }
        MmuextCmd::COPY_PAGE => {
            let from = cx.plat.frame(Mfn(op.arg2)).ok_or(Errno::EINVAL)?;
            let words = cx.plat.frame(mfn).ok_or(Errno::EINVAL)?;
            let copy = || {
                words.iter().zip(from).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
            };
            unless_loaded(cx, mfn, copy).ok_or(Errno::EINVAL)?;
        }
        MmuextCmd::MARK_SUPER | MmuextCmd::UNMARK_SUPER => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(())
}

/// The vCPUs a flush names; Xen has one error for all that is wrong with the bitmap.
fn named<P: Platform>(cx: &Ctx<'_, P>, bitmap: u64) -> Result<VcpuSet, Errno> {
    vcpu_set(cx, bitmap).map(VcpuSet::Mask).map_err(|_| Errno::EINVAL)
}
