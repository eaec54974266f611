//! vcpu_op (`xen/common/domain.c`, `xen/arch/x86/domain.c`).
//!
//! Every operation names a vCPU. One that does not exist is `ENOENT`. The calling vCPU's state
//! is at hand; that of another one is its own processor's, which is asked to change it
//! ([`crate::requests`]), except for what Xen allows on the calling vCPU only.

use core::sync::atomic::Ordering;

use xen_abi::arch::VcpuGuestContext;
use xen_abi::shared_info::VcpuInfo;
use xen_abi::vcpu::{
    VcpuOp, VcpuRegisterMemoryArea, VcpuRegisterVcpuInfo, VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
};
use xen_abi::{Errno, GuestVa, MachineAddr, Mfn, PAGE_SIZE};

use crate::Ctx;
use crate::domain::VcpuShared;
use crate::evtchn::{self, Here};
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;
use crate::requests::{self, Request};
use crate::time::{self, handle_okay};
use crate::vcpu_start;

/// Shortest period of a periodic timer (Xen: 1 ms).
const MIN_PERIOD_NS: u64 = 1_000_000;
/// Longest (`STIME_DELTA_MAX`).
const MAX_PERIOD_NS: u64 = u64::MAX >> 2;

/// `vcpu_op(cmd, vcpuid, arg)`.
///
/// # Errors
/// Xen's.
pub fn vcpu_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, vcpuid: u64, arg: u64) -> HcResult {
    let id = vcpuid as u32;
    let at = GuestVa(arg);
    let target = cx.dom.vcpus.get(id as usize).filter(|_| id < cx.dom.nr_vcpus);
    let target = target.ok_or(Errno::ENOENT)?;
    let cmd = VcpuOp(cmd as u32);
    if cmd == VcpuOp::IS_UP {
        return ret(target.online.load(Ordering::Relaxed).into());
    }
    if id != cx.vcpu.id {
        return other_vcpu(cx, target, cmd, id, at);
    }
    match cmd {
        VcpuOp::SET_SINGLESHOT_TIMER => {
            let op: VcpuSetSingleshotTimer = cx.plat.read_guest(at).map_err(efault)?;
            // A deadline that is past raises the event at once. VCPU_SSHOTTMR_future asks for an
            // error instead, which Xen 4.17 no longer gives. With the top bit set a deadline is
            // negative to Xen's timers: long past.
            let deadline = op.timeout_abs_ns;
            time::set_singleshot(cx, if deadline.cast_signed() < 0 { 0 } else { deadline });
            ret(0)
        }
        VcpuOp::STOP_SINGLESHOT_TIMER => {
            time::stop_singleshot(cx);
            ret(0)
        }
        VcpuOp::SET_PERIODIC_TIMER => {
            let period_ns = period(cx, at)?;
            time::set_periodic(cx, period_ns);
            ret(0)
        }
        VcpuOp::STOP_PERIODIC_TIMER => {
            time::set_periodic(cx, 0);
            ret(0)
        }
        VcpuOp::INITIALISE => {
            // The context is read first, and the caller runs already.
            cx.plat.copy_from_guest(&mut [0], at).map_err(efault)?;
            let last = at.add(size_of::<VcpuGuestContext>() as u64 - 1);
            cx.plat.copy_from_guest(&mut [0], last).map_err(efault)?;
            Err(Errno::EEXIST)
        }
        // It is.
        VcpuOp::UP => ret(0),
        VcpuOp::DOWN => vcpu_start::down(cx, id),
        VcpuOp::GET_RUNSTATE_INFO => {
            let info = time::get_runstate(cx);
            cx.plat.write_guest(at, &info).map_err(efault)?;
            ret(0)
        }
        VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA => {
            let area = memory_area(cx, at)?;
            time::register_runstate(cx, area);
            ret(0)
        }
        VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area = memory_area(cx, at)?;
            time::register_time_area(cx, area);
            ret(0)
        }
        VcpuOp::REGISTER_VCPU_INFO => {
            let op: VcpuRegisterVcpuInfo = cx.plat.read_guest(at).map_err(efault)?;
            let new = register_vcpu_info(cx, target, id, &op)?;
            cx.vcpu.entry.info = new;
            mark_all(cx, id, new);
            time::publish(cx);
            ret(0)
        }
        VcpuOp::SEND_NMI => {
            if arg != 0 {
                return Err(Errno::EINVAL);
            }
            crate::bounce::raise_nmi(cx);
            ret(0)
        }
        // Only for a hardware domain pinned to its processors.
        VcpuOp::GET_PHYSID => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// An operation on a vCPU that is not the caller.
fn other_vcpu<P: Platform>(
    cx: &mut Ctx<'_, P>,
    target: &VcpuShared,
    cmd: VcpuOp,
    id: u32,
    at: GuestVa,
) -> HcResult {
    let request = match cmd {
        VcpuOp::INITIALISE => return vcpu_start::initialise(cx, id, at),
        VcpuOp::UP => return vcpu_start::up(cx, id),
        VcpuOp::DOWN => return vcpu_start::down(cx, id),
        VcpuOp::GET_RUNSTATE_INFO => {
            let info = target.runstate.read(cx.plat.now_ns());
            cx.plat.write_guest(at, &info).map_err(efault)?;
            return ret(0);
        }
        VcpuOp::REGISTER_VCPU_INFO => {
            let op: VcpuRegisterVcpuInfo = cx.plat.read_guest(at).map_err(efault)?;
            if target.online.load(Ordering::SeqCst) {
                return Err(Errno::EINVAL);
            }
            let new = register_vcpu_info(cx, target, id, &op)?;
            mark_all(cx, id, new);
            Request::Info
        }
        VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA => Request::RunstateArea(memory_area(cx, at)?),
        VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA => Request::TimeArea(memory_area(cx, at)?),
        VcpuOp::SET_PERIODIC_TIMER => Request::Period(period(cx, at)?),
        VcpuOp::STOP_PERIODIC_TIMER => Request::Period(0),
        VcpuOp::SEND_NMI if at.0 == 0 => Request::Nmi,
        // Not a vCPU of one's own.
        VcpuOp::SEND_NMI
        | VcpuOp::SET_SINGLESHOT_TIMER
        | VcpuOp::STOP_SINGLESHOT_TIMER
        | VcpuOp::GET_PHYSID => return Err(Errno::EINVAL),
        _ => return Err(Errno::ENOSYS),
    };
    requests::ask(cx.dom, cx.plat, id, request);
    ret(0)
}

/// Reads the period of a periodic timer.
fn period<P: Platform>(cx: &Ctx<'_, P>, at: GuestVa) -> Result<u64, Errno> {
    let op: VcpuSetPeriodicTimer = cx.plat.read_guest(at).map_err(efault)?;
    let allowed = (MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&op.period_ns);
    if allowed { Ok(op.period_ns) } else { Err(Errno::EINVAL) }
}

/// Reads a `vcpu_register_*_memory_area`: an address the guest may name.
fn memory_area<P: Platform>(cx: &Ctx<'_, P>, at: GuestVa) -> Result<u64, Errno> {
    let op: VcpuRegisterMemoryArea = cx.plat.read_guest(at).map_err(efault)?;
    if handle_okay(op.addr) { Ok(op.addr) } else { Err(Errno::EFAULT) }
}

/// `VCPUOP_register_vcpu_info`, once per vCPU (`map_vcpu_info`); returns the new place.
fn register_vcpu_info<P: Platform>(
    cx: &Ctx<'_, P>,
    target: &VcpuShared,
    id: u32,
    op: &VcpuRegisterVcpuInfo,
) -> Result<&'static VcpuInfo, Errno> {
    let size = size_of::<VcpuInfo>() as u64;
    let offset = u64::from(op.offset);
    if offset > PAGE_SIZE - size || offset % align_of::<VcpuInfo>() as u64 != 0 {
        return Err(Errno::ENXIO);
    }
    // Senders on other processors hold this lock while they set bits.
    let mut info = target.info.lock();
    // Registered before: it is no longer the one in `shared_info`, or there never was one there.
    let first = cx.dom.shared_info.vcpu_info.get(id as usize);
    let is_first = |info: &VcpuInfo| first.is_some_and(|first| core::ptr::eq(first, info));
    if info.is_some_and(|info| !is_first(info)) || op.mfn > u64::MAX / PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let at = MachineAddr(Mfn(op.mfn).base().0 | offset);
    let new: &'static VcpuInfo = cx.plat.view(at).ok_or(Errno::EINVAL)?;
    match *info {
        Some(old) => copy_info(old, new),
        None => clear_info(new),
    }
    *info = Some(new);
    Ok(new)
}

/// Everything is marked pending in the new place, so that no event raised meanwhile is lost.
fn mark_all<P: Platform>(cx: &Ctx<'_, P>, id: u32, new: &VcpuInfo) {
    new.evtchn_pending_sel.store(u64::MAX, Ordering::SeqCst);
    evtchn::mark_events_pending(cx.dom, cx.plat, Here::on(cx.vcpu), id);
}

/// Copies a `vcpu_info`. Its owner is the caller or does not run, and the lock keeps senders away.
fn copy_info(from: &VcpuInfo, to: &VcpuInfo) {
    const ORDER: Ordering = Ordering::Relaxed;
    to.evtchn_upcall_pending.store(from.evtchn_upcall_pending.load(ORDER), ORDER);
    to.evtchn_upcall_mask.store(from.evtchn_upcall_mask.load(ORDER), ORDER);
    for (to, from) in to.pad.iter().zip(&from.pad) {
        to.store(from.load(ORDER), ORDER);
    }
    to.evtchn_pending_sel.store(from.evtchn_pending_sel.load(ORDER), ORDER);
    to.arch.cr2.store(from.arch.cr2.load(ORDER), ORDER);
    to.arch.pad.store(from.arch.pad.load(ORDER), ORDER);
    let (to, from) = (&to.time, &from.time);
    to.version.store(from.version.load(ORDER), ORDER);
    to.pad0.store(from.pad0.load(ORDER), ORDER);
    to.tsc_timestamp.store(from.tsc_timestamp.load(ORDER), ORDER);
    to.system_time.store(from.system_time.load(ORDER), ORDER);
    to.tsc_to_system_mul.store(from.tsc_to_system_mul.load(ORDER), ORDER);
    to.tsc_shift.store(from.tsc_shift.load(ORDER), ORDER);
    to.flags.store(from.flags.load(ORDER), ORDER);
    for (to, from) in to.pad1.iter().zip(&from.pad1) {
        to.store(from.load(ORDER), ORDER);
    }
}

/// A new `vcpu_info`: all zero, upcalls masked.
fn clear_info(info: &VcpuInfo) {
    const ORDER: Ordering = Ordering::Relaxed;
    info.evtchn_upcall_pending.store(0, ORDER);
    info.evtchn_upcall_mask.store(1, ORDER);
    info.evtchn_pending_sel.store(0, ORDER);
    info.arch.cr2.store(0, ORDER);
    info.time.version.store(0, ORDER);
}

#[cfg(test)]
#[path = "vcpu_op_tests.rs"]
mod tests;
