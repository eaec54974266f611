//! The hypercalls of every page fault, fork and switch of processes, on a path that saves only what
//! a Rust function may change and the ABI lets no call change: the argument registers of a call are
//! not preserved (`xen/include/public/arch-x86/xen-x86_64.h`). Each completes at once; what the
//! plain form of the call does not cover goes the general way, which the stub decides.

use translate::outcome::HcResult;
use translate::{Ctx, cpu, dispatch, mmu};

use crate::cpu::percpu::PerCpu;
use crate::platform::Shim;

#[inline(always)]
unsafe fn call<'a>(pc: *mut PerCpu, f: impl FnOnce(&mut Ctx<'_, Shim<'a>>) -> HcResult) -> i64 {
    // SAFETY: the stub passes the processor's own area, to which nothing else refers on entry.
    dispatch::plain_value(super::with_ctx(unsafe { &mut *pc }, f))
}

/// mmu_update of a plain list.
pub(super) unsafe extern "C" fn mmu_update(list: u64, count: u64, pc: *mut PerCpu) -> i64 {
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| mmu::mmu_update_plain(cx, list, count)) }
}

/// mmuext_op of a plain list.
pub(super) unsafe extern "C" fn mmuext_op(list: u64, count: u64, pc: *mut PerCpu) -> i64 {
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| mmu::mmuext_op_plain(cx, list, count)) }
}

/// stack_switch.
pub(super) unsafe extern "C" fn stack_switch(ss: u64, sp: u64, pc: *mut PerCpu) -> i64 {
    // SAFETY: as in `call`. Who has cut something into pieces is done when others run.
    let own = unsafe { &mut *pc };
    super::come_by(own);
    super::look_again(own);
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| cpu::stack_switch(cx, ss, sp)) }
}

/// set_segment_base.
pub(super) unsafe extern "C" fn set_segment_base(which: u64, base: u64, pc: *mut PerCpu) -> i64 {
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| cpu::set_segment_base(cx, which, base)) }
}
