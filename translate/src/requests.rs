//! What other vCPUs ask of a vCPU.
//!
//! A vCPU's state belongs to its own processor. What `vcpu_op` lets another vCPU change of it is
//! written down here and done by the vCPU itself: after the kick that follows, before each halt, and
//! before it runs at all.
//!
//! ```text
//! asker                               the vCPU
//! value, then its bit                 (is up: its flag went on before it looks)
//! is it up? then kick                 takes the bits, then reads their values
//! ```
//! The bit is set before the asker looks whether the vCPU is up, and a vCPU that comes up takes the
//! bits after it was marked up: either the asker sees that it is up and kicks, or the vCPU sees the
//! bit. Two that ask for the same thing at once leave one of the two values.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Ctx;
use crate::domain::Domain;
use crate::platform::Platform;
use crate::{bounce, time, vcpu_start};

/// Something asked of another vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An NMI (`VCPUOP_send_nmi`).
    Nmi,
    /// Where its runstate goes.
    RunstateArea(u64),
    /// Where its pvclock goes.
    TimeArea(u64),
    /// The period of its periodic timer, 0 = none.
    Period(u64),
    /// Its clock, which has another scale.
    Clock,
    /// Its `vcpu_info`, which is elsewhere.
    Info,
}

const NMI: u32 = 1;
const RUNSTATE_AREA: u32 = 2;
const TIME_AREA: u32 = 4;
const PERIOD: u32 = 8;
const CLOCK: u32 = 16;
const INFO: u32 = 32;

/// Requests nobody has seen to yet.
#[derive(Debug, Default)]
pub struct Requests {
    bits: AtomicU32,
    runstate_area: AtomicU64,
    time_area: AtomicU64,
    period_ns: AtomicU64,
}

impl Requests {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bits: AtomicU32::new(0),
            runstate_area: AtomicU64::new(0),
            time_area: AtomicU64::new(0),
            period_ns: AtomicU64::new(0),
        }
    }

    fn write(&self, request: Request) {
        let bit = match request {
            Request::Nmi => NMI,
            Request::RunstateArea(at) => {
                self.runstate_area.store(at, Ordering::Relaxed);
                RUNSTATE_AREA
            }
            Request::TimeArea(at) => {
                self.time_area.store(at, Ordering::Relaxed);
                TIME_AREA
            }
            Request::Period(ns) => {
                self.period_ns.store(ns, Ordering::Relaxed);
                PERIOD
            }
            Request::Clock => CLOCK,
            Request::Info => INFO,
        };
        self.bits.fetch_or(bit, Ordering::SeqCst);
    }
}

/// Asks something of another vCPU. Nothing happens where there is no such vCPU.
pub fn ask<P: Platform>(dom: &Domain, plat: &P, vcpu: u32, request: Request) {
    let Some(shared) = dom.vcpus.get(vcpu as usize) else { return };
    shared.requests.write(request);
    if shared.online.load(Ordering::SeqCst) {
        plat.kick(vcpu);
    }
}

/// Does what was asked of this vCPU.
#[inline]
pub fn take<P: Platform>(cx: &mut Ctx<'_, P>) {
    let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) else { return };
    if shared.requests.bits.load(Ordering::SeqCst) != 0 {
        take_all(cx);
    }
}

#[cold]
fn take_all<P: Platform>(cx: &mut Ctx<'_, P>) {
    let Some(shared) = cx.dom.vcpus.get(cx.vcpu.id as usize) else { return };
    let requests = &shared.requests;
    let bits = requests.bits.swap(0, Ordering::SeqCst);
    if bits & INFO != 0 {
        vcpu_start::follow_info(cx);
    }
    if bits & NMI != 0 {
        bounce::raise_nmi(cx);
    }
    if bits & RUNSTATE_AREA != 0 {
        time::register_runstate(cx, requests.runstate_area.load(Ordering::Relaxed));
    }
    if bits & TIME_AREA != 0 {
        time::register_time_area(cx, requests.time_area.load(Ordering::Relaxed));
    }
    if bits & PERIOD != 0 {
        time::set_periodic(cx, requests.period_ns.load(Ordering::Relaxed));
    }
    if bits & CLOCK != 0 {
        time::follow_scale(cx);
    }
}
