//! sched_op: yield, block, poll, shutdown, watchdog (`xen/common/sched/core.c`).
//!
//! A call that waits returns [`Outcome::Block`]; ring 0 then halts until [`wake_check`] has an
//! answer. Waking is what Xen's `vcpu_unblock` does: an upcall bit that goes on, an NMI, a port
//! a poll waits for, the poll's timeout.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use xen_abi::event_channel::EvtchnPort;
use xen_abi::mm::DomId;
use xen_abi::sched::{
    SchedOp, SchedPoll, SchedRemoteShutdown, SchedShutdown, SchedWatchdog, ShutdownReason,
};
use xen_abi::shared_info::VcpuInfo;
use xen_abi::vcpu::Runstate;
use xen_abi::{Errno, GuestVa};

use crate::Ctx;
use crate::bits::bits;
use crate::domain::{MAX_VCPUS, VcpuShared};
use crate::evtchn::{self, GUEST_DOMID};
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::{Platform, Shutdown};
use crate::{time, vcpu_start};

/// `NR_DOMAIN_WATCHDOG_TIMERS`.
pub const NR_WATCHDOGS: usize = 2;
/// Ports one poll may name ("fairly arbitrary", says Xen).
const MAX_POLL_PORTS: u32 = 128;
/// A poll waits for any port.
const ANY_PORT: u32 = 0;

/// What a blocked vCPU waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: it runs.
    #[default]
    No,
    /// An upcall (`SCHEDOP_block`).
    Event,
    /// A port or a timeout (`SCHEDOP_poll`).
    Poll,
    /// To be up again (`VCPUOP_down`).
    Down,
}

/// A watchdog of the domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watchdog {
    /// The vCPU whose timer serves it: the one that set it last.
    pub vcpu: u32,
    /// When it fires (system time); `None` = free.
    pub deadline_ns: Option<u64>,
}

/// What the vCPUs share of the scheduler's state.
#[derive(Debug)]
pub struct DomainSched {
    /// vCPUs in `SCHEDOP_poll`, by id.
    poll_mask: AtomicU64,
    /// The port each polls, or [`ANY_PORT`].
    poll_port: [AtomicU32; MAX_VCPUS],
    watchdogs: Mutex<[Watchdog; NR_WATCHDOGS]>,
    /// Any watchdog was ever set: spares timers the lock where nobody uses them.
    watchdogs_used: AtomicBool,
    /// First reason given by `SCHEDOP_shutdown_code`, plus 1; 0 = none.
    shutdown_code: AtomicU32,
}

impl Default for DomainSched {
    fn default() -> Self {
        Self::new()
    }
}

impl DomainSched {
    /// Nobody polls, no watchdog runs.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            poll_mask: AtomicU64::new(0),
            poll_port: [const { AtomicU32::new(ANY_PORT) }; MAX_VCPUS],
            watchdogs: Mutex::new([Watchdog { vcpu: 0, deadline_ns: None }; NR_WATCHDOGS]),
            watchdogs_used: AtomicBool::new(false),
            shutdown_code: AtomicU32::new(0),
        }
    }

    /// The vCPUs that poll.
    #[inline]
    pub(crate) fn pollers(&self) -> u64 {
        self.poll_mask.load(Ordering::SeqCst)
    }

    /// Ends the polls that wait for `port` and calls `woken` for each (`evtchn_check_pollers`).
    pub(crate) fn wake_pollers(&self, port: u32, mut woken: impl FnMut(u32)) {
        for vcpu in bits(self.pollers()) {
            let polled =
                self.poll_port.get(vcpu as usize).map_or(ANY_PORT, |p| p.load(Ordering::SeqCst));
            if (polled == ANY_PORT || polled == port) && self.end_poll(vcpu) {
                woken(vcpu);
            }
        }
    }

    /// Ends a vCPU's poll; whether it was polling.
    #[inline]
    pub(crate) fn end_poll(&self, vcpu: u32) -> bool {
        let Some(bit) = 1u64.checked_shl(vcpu) else { return false };
        self.pollers() & bit != 0 && self.poll_mask.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    fn begin_poll(&self, vcpu: u32) {
        if let Some(port) = self.poll_port.get(vcpu as usize) {
            port.store(ANY_PORT, Ordering::SeqCst);
            self.poll_mask.fetch_or(1u64.checked_shl(vcpu).unwrap_or(0), Ordering::SeqCst);
        }
    }

    fn polls(&self, vcpu: u32) -> bool {
        self.pollers() & 1u64.checked_shl(vcpu).unwrap_or(0) != 0
    }

    /// When the next watchdog that `vcpu` serves fires.
    pub(crate) fn watchdog_deadline(&self, vcpu: u32) -> Option<u64> {
        if !self.watchdogs_used.load(Ordering::Relaxed) {
            return None;
        }
        let watchdogs = self.watchdogs.lock();
        watchdogs.iter().filter(|dog| dog.vcpu == vcpu).filter_map(|dog| dog.deadline_ns).min()
    }
}

/// `sched_op(cmd, arg)`.
///
/// # Errors
/// Xen's.
pub fn sched_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    let arg = GuestVa(arg);
    match SchedOp(cmd as u32) {
        SchedOp::YIELD => {
            cx.plat.yield_hint();
            ret(0)
        }
        SchedOp::BLOCK => block(cx),
        SchedOp::SHUTDOWN => {
            let op: SchedShutdown = cx.plat.read_guest(arg).map_err(efault)?;
            shutdown(cx, op.reason)
        }
        SchedOp::POLL => {
            let op: SchedPoll = cx.plat.read_guest(arg).map_err(efault)?;
            poll(cx, &op)
        }
        SchedOp::REMOTE_SHUTDOWN => {
            let op: SchedRemoteShutdown = cx.plat.read_guest(arg).map_err(efault)?;
            // By id only: DOMID_SELF is nobody here. No guest may shut down even itself so.
            match op.domain_id {
                GUEST_DOMID | DomId(0) => Err(Errno::EPERM),
                _ => Err(Errno::ESRCH),
            }
        }
        SchedOp::SHUTDOWN_CODE => {
            let op: SchedShutdown = cx.plat.read_guest(arg).map_err(efault)?;
            let code = (op.reason.0 & 0xff) + 1;
            let first = &cx.dom.sched.shutdown_code;
            // The first code stays; the shutdown that follows uses it.
            let _ = first.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
            ret(0)
        }
        SchedOp::WATCHDOG => {
            let op: SchedWatchdog = cx.plat.read_guest(arg).map_err(efault)?;
            watchdog(cx, op.id, op.timeout)
        }
        SchedOp::PIN_OVERRIDE => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// `sched_op_compat(cmd, arg)`: the shutdown reason in the register.
///
/// # Errors
/// Xen's.
pub fn sched_op_compat<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    match SchedOp(cmd as u32) {
        SchedOp::YIELD | SchedOp::BLOCK => sched_op(cx, cmd, 0),
        SchedOp::SHUTDOWN => shutdown(cx, ShutdownReason(arg as u32)),
        _ => Err(Errno::ENOSYS),
    }
}

fn upcall_pending(info: &VcpuInfo) -> bool {
    info.evtchn_upcall_pending.load(Ordering::SeqCst) != 0
}

/// Events wait and are not masked (`local_events_need_delivery`).
fn events_need_delivery(info: &VcpuInfo) -> bool {
    upcall_pending(info) && info.evtchn_upcall_mask.load(Ordering::SeqCst) == 0
}

/// An NMI waits, and no other is being handled.
fn nmi_due<P: Platform>(cx: &Ctx<'_, P>) -> bool {
    cx.vcpu.nmi.pending && !cx.vcpu.nmi.masked
}

/// The vCPU waits from now on.
fn wait<P: Platform>(cx: &mut Ctx<'_, P>, wait: Wait) -> HcResult {
    cx.vcpu.wait = wait;
    if let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) {
        shared.blocked.store(true, Ordering::SeqCst);
    }
    time::set_runstate(cx, Runstate::BLOCKED);
    Ok(Outcome::Block)
}

/// `SCHEDOP_block`: unmasks upcalls and waits for one.
fn block<P: Platform>(cx: &mut Ctx<'_, P>) -> HcResult {
    let info = cx.vcpu.entry.info;
    info.evtchn_upcall_mask.store(0, Ordering::SeqCst);
    if upcall_pending(info) || nmi_due(cx) {
        return ret(0);
    }
    wait(cx, Wait::Event)
}

/// `SCHEDOP_poll`.
fn poll<P: Platform>(cx: &mut Ctx<'_, P>, op: &SchedPoll) -> HcResult {
    if op.nr_ports > MAX_POLL_PORTS {
        return Err(Errno::EINVAL);
    }
    if !time::handle_okay(op.ports) {
        return Err(Errno::EFAULT);
    }
    let id = cx.vcpu.id;
    // First the flag, then the look at the ports: whoever sets a bit later sees the flag.
    cx.dom.sched.begin_poll(id);
    match poll_ready(cx, op) {
        Ok(false) => {}
        done => {
            cx.dom.sched.end_poll(id);
            return done.map(|_| Outcome::Return(0));
        }
    }
    if op.timeout != 0 {
        time::set_poll_timer(cx, op.timeout);
    }
    wait(cx, Wait::Poll)
}

/// Whether the poll is over before it began.
fn poll_ready<P: Platform>(cx: &mut Ctx<'_, P>, op: &SchedPoll) -> Result<bool, Errno> {
    if events_need_delivery(cx.vcpu.entry.info) || nmi_due(cx) {
        return Ok(true);
    }
    let mut port = EvtchnPort(0);
    for index in 0..u64::from(op.nr_ports) {
        port = cx.plat.read_guest(GuestVa(op.ports).add(index * 4)).map_err(efault)?;
        if evtchn::poll(cx.dom, cx.plat, port.0)? {
            return Ok(true);
        }
    }
    if op.nr_ports == 1
        && let Some(polled) = cx.dom.sched.poll_port.get(cx.vcpu.id as usize)
    {
        polled.store(port.0, Ordering::SeqCst);
    }
    Ok(false)
}

/// Whether the blocked vCPU may go on, and with which return value. Ring 0 calls it before each
/// halt, interrupts off; on `None` the hardware timer is not later than the next deadline.
pub fn wake_check<P: Platform>(cx: &mut Ctx<'_, P>) -> Option<i64> {
    // One that is down does as it is told when it comes back, on the guest's tables.
    if cx.vcpu.wait != Wait::Down {
        vcpu_start::obey(cx);
    }
    if !wait_over(cx) {
        time::before_halt(cx);
        if !wait_over(cx) {
            return None;
        }
    }
    cancel_wait(cx);
    Some(0)
}

/// Ends the wait a call began, if there is one: the vCPU runs.
pub fn cancel_wait<P: Platform>(cx: &mut Ctx<'_, P>) {
    if cx.vcpu.wait == Wait::No {
        return;
    }
    if cx.vcpu.wait == Wait::Down {
        vcpu_start::come_back(cx);
    }
    cx.vcpu.wait = Wait::No;
    cx.dom.sched.end_poll(cx.vcpu.id);
    cx.vcpu.time.stop_poll_timer();
    if let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) {
        shared.blocked.store(false, Ordering::SeqCst);
    }
    time::set_runstate(cx, Runstate::RUNNING);
}

fn wait_over<P: Platform>(cx: &Ctx<'_, P>) -> bool {
    let is_up = |vcpu: &VcpuShared| vcpu.online.load(Ordering::SeqCst);
    if !cx.dom.vcpus.get(cx.vcpu.id as usize).is_some_and(is_up) {
        return false;
    }
    nmi_due(cx)
        || match cx.vcpu.wait {
            Wait::No | Wait::Down => true,
            Wait::Event => upcall_pending(cx.vcpu.entry.info),
            Wait::Poll => !cx.dom.sched.polls(cx.vcpu.id),
        }
}

/// `SCHEDOP_shutdown`. Xen's toolstack acts on the reason; here ring 0 does.
fn shutdown<P: Platform>(cx: &mut Ctx<'_, P>, reason: ShutdownReason) -> HcResult {
    let code = cx.dom.sched.shutdown_code.load(Ordering::Relaxed);
    let reason = code.checked_sub(1).map_or(ShutdownReason(reason.0 & 0xff), ShutdownReason);
    let why = match reason {
        ShutdownReason::POWEROFF => Shutdown::Poweroff,
        ShutdownReason::REBOOT => Shutdown::Reboot,
        // Nobody can save this domain: it goes on as after a cancelled suspend, which a guest
        // that sets XEN_ELFNOTE_SUSPEND_CANCEL recognises by the 1.
        ShutdownReason::SUSPEND => return ret(1),
        ShutdownReason::CRASH => Shutdown::GuestCrash,
        ShutdownReason::WATCHDOG => Shutdown::Watchdog,
        // A soft reset keeps memory and starts the guest's next kernel at once (kexec). Nothing
        // here can, so the domain restarts.
        ShutdownReason::SOFT_RESET => Shutdown::Reboot,
        // The toolstack destroys a domain with a reason it does not know.
        _ => Shutdown::Poweroff,
    };
    cx.plat.shutdown(why, None)
}

/// `SCHEDOP_watchdog`: id 0 takes a free one and returns its number.
fn watchdog<P: Platform>(cx: &mut Ctx<'_, P>, id: u32, timeout_s: u32) -> HcResult {
    if id as usize > NR_WATCHDOGS {
        return Err(Errno::EINVAL);
    }
    let deadline = cx.plat.now_ns().saturating_add(u64::from(timeout_s) * 1_000_000_000);
    let set = Watchdog { vcpu: cx.vcpu.id, deadline_ns: Some(deadline) };
    cx.dom.sched.watchdogs_used.store(true, Ordering::Relaxed);
    let given = {
        let mut watchdogs = cx.dom.sched.watchdogs.lock();
        match (id as usize).checked_sub(1) {
            None => {
                let free = watchdogs.iter().position(|dog| dog.deadline_ns.is_none());
                let free = free.ok_or(Errno::ENOSPC)?;
                watchdogs[free] = set;
                free as i64 + 1
            }
            Some(index) => {
                let dog = watchdogs.get_mut(index).ok_or(Errno::EINVAL)?;
                if dog.deadline_ns.is_none() {
                    return Err(Errno::EINVAL);
                }
                *dog = if timeout_s == 0 { Watchdog::default() } else { set };
                0
            }
        }
    };
    time::rearm(cx);
    ret(given)
}
