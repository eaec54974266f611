//! The hypercalls of every page fault, fork and switch of processes, on a path that saves only what
//! a Rust function may change. Each completes at once and changes no register but RAX; what the
//! plain form of the call does not cover goes the general way, which the stub decides.

use translate::outcome::{HcResult, Outcome};
use translate::{Ctx, cpu, mmu};

use crate::cpu::percpu::PerCpu;
use crate::platform::Shim;

/// The value in RAX.
#[inline(always)]
fn value(result: HcResult) -> i64 {
    match result {
        Ok(Outcome::Return(value)) => value,
        // None of the calls here has another outcome.
        Ok(_) => 0,
        Err(errno) => errno.to_ret(),
    }
}

#[inline(always)]
unsafe fn call<'a>(pc: *mut PerCpu, f: impl FnOnce(&mut Ctx<'_, Shim<'a>>) -> HcResult) -> i64 {
    // SAFETY: the stub passes the processor's own area, to which nothing else refers on entry.
    value(super::with_ctx(unsafe { &mut *pc }, f))
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
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| cpu::stack_switch(cx, ss, sp)) }
}

/// set_segment_base.
pub(super) unsafe extern "C" fn set_segment_base(which: u64, base: u64, pc: *mut PerCpu) -> i64 {
    // SAFETY: see `call`.
    unsafe { call(pc, |cx| cpu::set_segment_base(cx, which, base)) }
}
