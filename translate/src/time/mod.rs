//! Clocks and timers.
//!
//! System time is nanoseconds since the domain was built. The guest computes it from the TSC
//! with the scale we publish ([`publish`]); the shim uses the same scale for the guest's
//! deadlines ([`scale`]), so neither is ever early by the other's clock.
//!
//! A vCPU has one hardware timer and up to five deadlines: singleshot (also `set_timer_op`),
//! periodic, poll, and the watchdogs it serves. Arming the timer costs a VM exit, so it is
//! armed only for an earlier deadline; a deadline moved later or cancelled leaves the timer, and
//! a spurious interrupt arms it anew. Before a halt, where a spurious interrupt would cost more than
//! the exit it saved, it is made exact, unless the halt will be over sooner ([`before_halt`]).

pub mod rate;
mod runstate;
pub mod scale;
mod skew;
#[cfg(test)]
mod tests;

use core::sync::atomic::{Ordering, fence};

use xen_abi::GuestVa;
use xen_abi::event_channel::Virq;
use xen_abi::mm::HYPERVISOR_VIRT_END;
use xen_abi::shared_info::VcpuTimeInfo;
use xen_abi::vcpu::Runstate;

use crate::Ctx;
use crate::evtchn::{self, Here};
use crate::outcome::{HcResult, ret};
use crate::platform::{Platform, Shutdown, TscScale};
use crate::requests::{self, Request};

pub use runstate::{RunstateClock, SharedRunstate, get_runstate, register_runstate, set_runstate};
pub use scale::{SharedScale, mul_shift, mul_shift_hz, ns_to_tsc, tsc_scale, tsc_to_ns};
pub use skew::Skew;

/// No deadline.
const NEVER: u64 = u64::MAX;
/// `XEN_PVCLOCK_TSC_STABLE_BIT` (`xen.h`).
const PVCLOCK_TSC_STABLE: u8 = 1;
/// From here on an address is the guest kernel's or the hypervisor's.
const USER_END: u64 = 1 << 47;

/// Whether a guest may name this address as an argument at all (Xen's `access_ok`, which looks
/// at the start only: what follows a good start runs into a hole before it gets to the end).
#[inline]
#[must_use]
pub const fn handle_okay(va: u64) -> bool {
    va < USER_END || va >= HYPERVISOR_VIRT_END
}

/// Per-vCPU time state.
#[derive(Debug)]
pub struct VcpuTime {
    singleshot_ns: u64,
    /// 0 = no periodic timer.
    periodic_period_ns: u64,
    periodic_last_ns: u64,
    poll_ns: u64,
    /// What the hardware timer is armed for.
    armed_ns: u64,
    /// Guest virtual address of a second `vcpu_time_info`; 0 = none.
    time_area: u64,
    runstate: RunstateClock,
}

impl Default for VcpuTime {
    fn default() -> Self {
        Self::new()
    }
}

impl VcpuTime {
    /// No timer runs; the vCPU is offline.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            singleshot_ns: NEVER,
            periodic_period_ns: 0,
            periodic_last_ns: 0,
            poll_ns: NEVER,
            armed_ns: NEVER,
            time_area: 0,
            runstate: RunstateClock::new(),
        }
    }

    /// The poll is over.
    pub(crate) fn stop_poll_timer(&mut self) {
        self.poll_ns = NEVER;
    }

    fn periodic_next(&self) -> u64 {
        match self.periodic_period_ns {
            0 => NEVER,
            period => self.periodic_last_ns.saturating_add(period),
        }
    }
}

/// Starts a vCPU's clocks: publishes its pvclock, and the wallclock on vCPU 0. Call it on the
/// vCPU's own processor before the guest runs there.
pub fn init<P: Platform>(cx: &mut Ctx<'_, P>) {
    publish(cx);
    if cx.vcpu.id == 0 {
        publish_wallclock(cx.dom, cx.plat);
    }
    set_runstate(cx, Runstate::RUNNING);
}

/// The scale has changed: this vCPU, and soon every other one, has its pvclock and its timer by the new
/// one.
pub fn scale_changed<P: Platform>(cx: &mut Ctx<'_, P>) {
    follow_scale(cx);
    publish_wallclock(cx.dom, cx.plat);
    for vcpu in (0..).take(cx.dom.vcpus.len()).filter(|vcpu| *vcpu != cx.vcpu.id) {
        requests::ask(cx.dom, cx.plat, vcpu, Request::Clock);
    }
}

/// A vCPU's part of [`scale_changed`]. The deadline is armed anew: the hardware's was reckoned by the
/// old scale.
pub(crate) fn follow_scale<P: Platform>(cx: &mut Ctx<'_, P>) {
    publish(cx);
    cx.vcpu.time.armed_ns = NEVER;
    rearm(cx);
}

/// Publishes the pvclock in `vcpu_info` and in the registered area.
pub fn publish<P: Platform>(cx: &Ctx<'_, P>) {
    let scale = cx.plat.tsc_scale();
    let info = &cx.vcpu.entry.info.time;
    let version = write_pvclock(info, &scale);
    let area = cx.vcpu.time.time_area;
    if area != 0 {
        copy_pvclock(cx.plat, GuestVa(area), version, &scale);
    }
}

/// Writes a pvclock record under its version and returns the new one. The version is odd while
/// the record is written; x86 keeps the order of stores, the fences keep the compiler's.
fn write_pvclock(to: &VcpuTimeInfo, scale: &TscScale) -> u32 {
    let odd = to.version.load(Ordering::Relaxed).wrapping_add(1) | 1;
    to.version.store(odd, Ordering::Relaxed);
    fence(Ordering::Release);
    to.tsc_timestamp.store(scale.tsc_timestamp, Ordering::Relaxed);
    to.system_time.store(scale.system_time_ns, Ordering::Relaxed);
    to.tsc_to_system_mul.store(scale.mul, Ordering::Relaxed);
    to.tsc_shift.store(scale.shift.cast_unsigned(), Ordering::Relaxed);
    to.flags.store(flags(scale), Ordering::Relaxed);
    let even = odd.wrapping_add(1);
    to.version.store(even, Ordering::Release);
    even
}

const fn flags(scale: &TscScale) -> u8 {
    if scale.stable { PVCLOCK_TSC_STABLE } else { 0 }
}

/// Copies a pvclock record to a guest virtual address: odd version, the rest, even version. A
/// fault at the first step leaves the old record, which stays true until the scale changes.
fn copy_pvclock<P: Platform>(plat: &P, at: GuestVa, version: u32, scale: &TscScale) {
    let odd = version.wrapping_sub(1).to_le_bytes();
    let mut record = [0; 32];
    for (offset, bytes) in [
        (0, odd.as_slice()),
        (8, &scale.tsc_timestamp.to_le_bytes()),
        (16, &scale.system_time_ns.to_le_bytes()),
        (24, &scale.mul.to_le_bytes()),
        (28, &scale.shift.to_le_bytes()),
        (29, &[flags(scale)]),
    ] {
        record[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    if plat.copy_to_guest(at, &odd).is_err() {
        return;
    }
    fence(Ordering::SeqCst);
    let _ = plat.copy_to_guest(at, &record);
    fence(Ordering::SeqCst);
    let _ = plat.copy_to_guest(at, &version.to_le_bytes());
}

/// Publishes the wall clock at system time 0 in `shared_info`.
pub fn publish_wallclock<P: Platform>(dom: &crate::domain::Domain, plat: &P) {
    let (sec, nsec) = plat.wallclock_base();
    let to = dom.shared_info;
    let odd = to.wc_version.load(Ordering::Relaxed).wrapping_add(1) | 1;
    to.wc_version.store(odd, Ordering::Relaxed);
    fence(Ordering::Release);
    to.wc_sec.store(sec as u32, Ordering::Relaxed);
    to.wc_sec_hi.store((sec >> 32) as u32, Ordering::Relaxed);
    to.wc_nsec.store(nsec, Ordering::Relaxed);
    to.wc_version.store(odd.wrapping_add(1), Ordering::Release);
}

/// `VCPUOP_register_vcpu_time_memory_area`; the address has been checked.
pub fn register_time_area<P: Platform>(cx: &mut Ctx<'_, P>, area: u64) {
    cx.vcpu.time.time_area = area;
    publish(cx);
}

/// `set_timer_op(timeout)`: the singleshot timer, with Xen's way of reading odd timeouts.
///
/// # Errors
/// None.
pub fn set_timer_op<P: Platform>(cx: &mut Ctx<'_, P>, timeout: u64) -> HcResult {
    let now = cx.plat.now_ns();
    let timeout = timeout.cast_signed();
    let ahead = timeout.wrapping_sub(now.cast_signed());
    if timeout == 0 {
        stop_singleshot(cx);
    } else if timeout < 0 || (ahead > 0 && (ahead >> 50) as u32 != 0) {
        // Jiffies wrapped: far future or negative. Xen settles for 100 ms.
        set_singleshot(cx, now.saturating_add(100_000_000));
    } else {
        set_singleshot(cx, timeout.cast_unsigned());
    }
    ret(0)
}

/// Sets the singleshot timer; one that is due fires at once.
pub fn set_singleshot<P: Platform>(cx: &mut Ctx<'_, P>, deadline_ns: u64) {
    cx.vcpu.time.singleshot_ns = deadline_ns;
    rearm(cx);
}

/// Stops the singleshot timer.
pub fn stop_singleshot<P: Platform>(cx: &mut Ctx<'_, P>) {
    // The hardware timer may still run: its interrupt finds nothing due.
    cx.vcpu.time.singleshot_ns = NEVER;
}

/// Sets the periodic timer; 0 stops it. The first tick is due at once unless the last one is
/// less than a period ago (`vcpu_set_periodic_timer`).
pub fn set_periodic<P: Platform>(cx: &mut Ctx<'_, P>, period_ns: u64) {
    cx.vcpu.time.periodic_period_ns = period_ns;
    rearm(cx);
}

/// Sets the timeout of a poll. A timeout with the top bit set is negative to Xen: long past.
pub(crate) fn set_poll_timer<P: Platform>(cx: &mut Ctx<'_, P>, deadline_ns: u64) {
    cx.vcpu.time.poll_ns = if deadline_ns.cast_signed() < 0 { 0 } else { deadline_ns };
    rearm(cx);
}

/// Raises `VIRQ_TIMER` on the current vCPU (`send_timer_event`).
fn send_timer_event<P: Platform>(cx: &Ctx<'_, P>) {
    evtchn::send_virq_from(cx.dom, cx.plat, Here::on(cx.vcpu), cx.vcpu.id, Virq::TIMER);
}

/// The hardware timer of this vCPU fired.
pub fn timer_interrupt<P: Platform>(cx: &mut Ctx<'_, P>) {
    cx.vcpu.time.armed_ns = NEVER;
    rearm(cx);
    let now = cx.plat.now_ns();
    runstate::sample(cx, now);
}

/// The next deadline of the vCPU.
fn next_deadline<P: Platform>(cx: &Ctx<'_, P>) -> u64 {
    let time = &cx.vcpu.time;
    let own = time.singleshot_ns.min(time.poll_ns).min(time.periodic_next());
    own.min(cx.dom.sched.watchdog_deadline(cx.vcpu.id).unwrap_or(NEVER))
}

/// Arms the hardware timer if the next deadline is before the one it is armed for, or fires what
/// is due.
#[inline]
pub(crate) fn rearm<P: Platform>(cx: &mut Ctx<'_, P>) {
    let next = next_deadline(cx);
    // The hardware will not be late: its interrupt comes first and finds its way here.
    if next >= cx.vcpu.time.armed_ns {
        return;
    }
    let now = cx.plat.now_ns();
    let next = if next <= now { fire_due(cx, now) } else { next };
    if next < cx.vcpu.time.armed_ns {
        arm(cx, next);
    }
}

/// Before a halt: fires what is due (which may end the wait) and makes the hardware timer exact. If it
/// is armed for too early, but the wait will be over sooner if it is as the last ones were, it stays so:
/// kernels that wait for a device many times a tick put their timer off before each wait and
/// back after it.
pub(crate) fn before_halt<P: Platform>(cx: &mut Ctx<'_, P>) {
    let mut next = next_deadline(cx);
    let now = cx.plat.now_ns();
    if next <= now {
        next = fire_due(cx, now);
    }
    let VcpuTime { armed_ns, runstate, .. } = &cx.vcpu.time;
    let is_over_sooner = now.saturating_add(runstate.usual_wait_ns()) < *armed_ns;
    if next < *armed_ns || (next > *armed_ns && !is_over_sooner) {
        arm(cx, next);
    }
}

fn arm<P: Platform>(cx: &mut Ctx<'_, P>, deadline_ns: u64) {
    cx.vcpu.time.armed_ns = deadline_ns;
    cx.plat.set_timer((deadline_ns != NEVER).then_some(deadline_ns));
}

/// Fires what is due; the next deadline after that.
fn fire_due<P: Platform>(cx: &mut Ctx<'_, P>, now: u64) -> u64 {
    if cx.dom.sched.watchdog_deadline(cx.vcpu.id).is_some_and(|deadline| deadline <= now) {
        cx.plat.shutdown(Shutdown::Watchdog, None);
    }
    let time = &mut cx.vcpu.time;
    let mut tick = false;
    if time.singleshot_ns <= now {
        time.singleshot_ns = NEVER;
        tick = true;
    }
    if time.periodic_next() <= now {
        time.periodic_last_ns = now;
        tick = true;
    }
    if time.poll_ns <= now {
        time.poll_ns = NEVER;
        cx.dom.sched.end_poll(cx.vcpu.id);
    }
    if tick {
        send_timer_event(cx);
    }
    next_deadline(cx)
}
