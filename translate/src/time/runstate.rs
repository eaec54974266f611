//! Runstate: how long a vCPU ran, waited for a processor, was blocked or offline.
//!
//! The record is kept up to date lazily: a change of state and a look at it do the sums. Steal
//! time (the host ran something else) turns running into runnable time, so that the four times
//! always add up to the system time since the vCPU began.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use xen_abi::GuestVa;
use xen_abi::hypercall::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
use xen_abi::vcpu::{Runstate, VcpuRunstateInfo, XEN_RUNSTATE_UPDATE};
use zerocopy::IntoBytes;

use crate::Ctx;
use crate::platform::Platform;

/// Reading the host's steal counter may cost a VM exit; a vCPU looks this often at most.
const STEAL_PERIOD_NS: u64 = 10_000_000_000;
/// ... and not before it ran this long, which is the most that can have been stolen unseen: an idle
/// vCPU does not look.
const STEAL_RUNNING_NS: u64 = 1_000_000_000;
/// What waits are taken to last until there were some.
const UNKNOWN_WAIT_NS: u64 = 1_000_000_000;

/// The record and where the guest wants its copy.
#[derive(Clone, Copy, Debug)]
pub struct RunstateClock {
    pub(super) info: VcpuRunstateInfo,
    /// Guest virtual address of the copy; 0 = none.
    area: u64,
    stolen_seen_ns: u64,
    stolen_sampled_at_ns: u64,
    /// Time spent running when steal time was last looked at.
    running_sampled_ns: u64,
    /// See [`Self::usual_wait_ns`].
    usual_wait_ns: u64,
}

impl RunstateClock {
    /// Offline since system time 0.
    pub(super) const fn new() -> Self {
        Self {
            info: VcpuRunstateInfo {
                state: Runstate::OFFLINE,
                pad: 0,
                state_entry_time: 0,
                time: [0; 4],
            },
            area: 0,
            stolen_seen_ns: 0,
            stolen_sampled_at_ns: 0,
            running_sampled_ns: 0,
            usual_wait_ns: UNKNOWN_WAIT_NS,
        }
    }

    /// How long the vCPU is blocked when it is: the last time, or a long one before that, which counts
    /// for a quarter less after each.
    pub(super) const fn usual_wait_ns(&self) -> u64 {
        self.usual_wait_ns
    }

    /// Adds the time since the last change to the state's sum.
    fn settle(&mut self, now: u64) {
        let info = &mut self.info;
        let elapsed = now.saturating_sub(info.state_entry_time);
        if elapsed > 0 {
            if let Some(time) = info.time.get_mut(info.state.0 as usize) {
                *time = time.wrapping_add(elapsed);
            }
            info.state_entry_time = now;
        }
    }

    /// Takes steal time out of running into runnable.
    fn steal(&mut self, stolen_ns: u64, now: u64) {
        self.settle(now);
        self.stolen_sampled_at_ns = now;
        let [running, runnable, ..] = &mut self.info.time;
        let moved = stolen_ns.saturating_sub(self.stolen_seen_ns).min(*running);
        // What was stolen of a moment that counts as blocked is of no interest to the guest.
        self.stolen_seen_ns = stolen_ns;
        *running -= moved;
        *runnable = runnable.wrapping_add(moved);
        self.running_sampled_ns = *running;
    }

    /// Whether to look at steal time again.
    fn steal_is_due(&self, now: u64) -> bool {
        let [mut running, ..] = self.info.time;
        if self.info.state == Runstate::RUNNING {
            running = running.wrapping_add(now.saturating_sub(self.info.state_entry_time));
        }
        self.area != 0
            && now.saturating_sub(self.stolen_sampled_at_ns) >= STEAL_PERIOD_NS
            && running.saturating_sub(self.running_sampled_ns) >= STEAL_RUNNING_NS
    }
}

/// What other vCPUs see of a vCPU's runstate. Its own processor writes it.
#[derive(Debug)]
pub struct SharedRunstate {
    /// Odd while the rest is written.
    version: AtomicU32,
    state: AtomicU32,
    entered_ns: AtomicU64,
    time: [AtomicU64; 4],
}

impl Default for SharedRunstate {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedRunstate {
    /// Offline since system time 0.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            state: AtomicU32::new(Runstate::OFFLINE.0),
            entered_ns: AtomicU64::new(0),
            time: [const { AtomicU64::new(0) }; 4],
        }
    }

    fn write(&self, info: &VcpuRunstateInfo) {
        let odd = self.version.load(Ordering::Relaxed).wrapping_add(1);
        self.version.store(odd, Ordering::Relaxed);
        fence(Ordering::Release);
        self.state.store(info.state.0, Ordering::Relaxed);
        self.entered_ns.store(info.state_entry_time, Ordering::Relaxed);
        for (to, from) in self.time.iter().zip(info.time) {
            to.store(from, Ordering::Relaxed);
        }
        self.version.store(odd.wrapping_add(1), Ordering::Release);
    }

    /// The record as of now. One that is written again and again is read as it is: nobody waits for
    /// another vCPU.
    pub fn read(&self, now_ns: u64) -> VcpuRunstateInfo {
        const TRIES: u32 = 100;
        let mut info = VcpuRunstateInfo {
            state: Runstate::OFFLINE,
            pad: 0,
            state_entry_time: 0,
            time: [0; 4],
        };
        for _ in 0..TRIES {
            let version = self.version.load(Ordering::Acquire);
            info.state = Runstate(self.state.load(Ordering::Relaxed));
            info.state_entry_time = self.entered_ns.load(Ordering::Relaxed);
            for (to, from) in info.time.iter_mut().zip(&self.time) {
                *to = from.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if version & 1 == 0 && self.version.load(Ordering::Relaxed) == version {
                break;
            }
        }
        let elapsed = now_ns.saturating_sub(info.state_entry_time);
        if let Some(time) = info.time.get_mut(info.state.0 as usize) {
            *time = time.wrapping_add(elapsed);
        }
        info
    }
}

/// Moves to another state and publishes it.
pub fn set_runstate<P: Platform>(cx: &mut Ctx<'_, P>, state: Runstate) {
    let now = cx.plat.now_ns();
    let clock = &mut cx.vcpu.time.runstate;
    if clock.info.state == Runstate::BLOCKED {
        let wait_ns = now.saturating_sub(clock.info.state_entry_time);
        clock.usual_wait_ns = wait_ns.max(clock.usual_wait_ns - clock.usual_wait_ns / 4);
    }
    clock.settle(now);
    clock.info.state = state;
    if let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) {
        shared.runstate.write(&clock.info);
    }
    if clock.area != 0 {
        if clock.steal_is_due(now) {
            clock.steal(cx.plat.stolen_ns(), now);
        }
        publish(cx);
    }
}

/// A vCPU that never blocks has its steal time told, too, if now and then.
pub(super) fn sample<P: Platform>(cx: &mut Ctx<'_, P>, now: u64) {
    let clock = &mut cx.vcpu.time.runstate;
    if clock.steal_is_due(now) {
        clock.steal(cx.plat.stolen_ns(), now);
        publish(cx);
    }
}

/// The record as of now (`VCPUOP_get_runstate_info`). Like Xen it adds the running interval to
/// the sums and leaves the entry time of the state.
pub fn get_runstate<P: Platform>(cx: &mut Ctx<'_, P>) -> VcpuRunstateInfo {
    let now = cx.plat.now_ns();
    let stolen = cx.plat.stolen_ns();
    let clock = &mut cx.vcpu.time.runstate;
    let entered = clock.info.state_entry_time;
    clock.steal(stolen, now);
    VcpuRunstateInfo { state_entry_time: entered, ..clock.info }
}

/// `VCPUOP_register_runstate_memory_area`; the address has been checked.
pub fn register_runstate<P: Platform>(cx: &mut Ctx<'_, P>, area: u64) {
    cx.vcpu.time.runstate.area = area;
    let now = cx.plat.now_ns();
    let stolen = cx.plat.stolen_ns();
    cx.vcpu.time.runstate.steal(stolen, now);
    if area != 0 {
        publish(cx);
    }
}

/// Copies the record to the guest. With the assist the update flag in `state_entry_time`
/// brackets the copy. A fault is the guest's loss.
fn publish<P: Platform>(cx: &Ctx<'_, P>) {
    let clock = &cx.vcpu.time.runstate;
    let at = GuestVa(clock.area);
    let assists = cx.dom.vm_assist.load(Ordering::Relaxed);
    if assists & 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG == 0 {
        let _ = cx.plat.write_guest(at, &clock.info);
        return;
    }
    let mut info = clock.info;
    info.state_entry_time |= XEN_RUNSTATE_UPDATE;
    // The flag is the top bit of the word: its last byte is enough, as Xen writes it.
    let entry_time = at.add(core::mem::offset_of!(VcpuRunstateInfo, state_entry_time) as u64);
    let flag_byte = |info: &VcpuRunstateInfo| info.state_entry_time.to_le_bytes()[7];
    if cx.plat.copy_to_guest(entry_time.add(7), &[flag_byte(&info)]).is_err() {
        return;
    }
    fence(Ordering::SeqCst);
    let _ = cx.plat.copy_to_guest(at, info.as_bytes());
    fence(Ordering::SeqCst);
    info.state_entry_time &= !XEN_RUNSTATE_UPDATE;
    let _ = cx.plat.copy_to_guest(entry_time.add(7), &[flag_byte(&info)]);
}
