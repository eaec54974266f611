//! The devices: the host's VMBus below, the guest's backends above.
//!
//! Everything runs with interrupts off, on the processor that the host or the guest called: a
//! message or signal of the host's comes by the VMBus interrupt, a request of the guest's by an
//! event channel, time-outs by the processor's timer. At boot, before there is a guest, the same
//! functions are called in a loop.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hv_abi::synic::MESSAGE_PAYLOAD_BYTES;
use hv_abi::vmbus::OfferChannel;
use pv_frontends::vmbus::{Channel, Driver, Event, Received, VmBus};
use spin::Once;

use crate::cpu::Cpu;
use crate::hv::Enlightenments;
use crate::hv::synic::{self, Taken};
use crate::hv::vmbus::Hv;
use crate::mm::{frames, pool};
use crate::{log, time};

/// Pages for rings and what else the host and the shim share.
pub const POOL_PAGES: u64 = 512;

/// How long the host may take to say what there is, in all.
const BOOT_LIMIT_NS: u64 = 10_000_000_000;
/// How long a host may take to forget this guest before a reset or crash.
const UNLOAD_LIMIT_NS: u64 = 2_000_000_000;
/// Turns of put-off work at a time; what is left is done at the next interrupt.
const TURNS: usize = 4;

static BUS: Once<VmBus<Hv>> = Once::new();

/// Whether the host has what VMBus needs.
pub fn possible(hv: &Enlightenments) -> bool {
    hv.synic && hv.hypercall
}

/// Connects to VMBus and waits until the host's devices are known.
pub fn start() {
    let Some(pages) = frames::alloc(POOL_PAGES, 4096) else {
        log!(Error, "no memory for VMBus");
        return;
    };
    // SAFETY: the shim's own frames, for good.
    unsafe { pool::init(pages >> 12, POOL_PAGES) };
    let progress = Arc::new(Progress::default());
    let drivers: [Arc<dyn Driver<Hv>>; _] = [Arc::clone(&progress) as _];
    let bus = BUS.call_once(|| VmBus::new(Hv, Box::new(drivers)));
    bus.connect();
    let begin = time::now_ns();
    while !progress.done.load(Ordering::Relaxed) {
        if time::now_ns() - begin > BOOT_LIMIT_NS {
            log!(
                Warn,
                "the host has not said in {} s what devices there are",
                BOOT_LIMIT_NS / 1_000_000_000
            );
            break;
        }
        messages(bus, 0);
        turns(bus);
        core::hint::spin_loop();
    }
}

/// Sees how far the connection is.
#[derive(Default)]
struct Progress {
    /// All that was there at first is known, or there is no bus.
    done: AtomicBool,
}

impl Driver<Hv> for Progress {
    fn wants(&self, _offer: &OfferChannel) -> bool {
        false
    }
    fn on_event(&self, _bus: &VmBus<Hv>, event: &Event) {
        match event {
            Event::OffersDelivered => {}
            Event::Disconnected => log!(Info, "no VMBus"),
            _ => return,
        }
        self.done.store(true, Ordering::Relaxed);
    }
    fn on_signal(&self, _bus: &VmBus<Hv>, _channel: &Channel) -> Received {
        Received::All
    }
}

/// Takes the host's messages.
fn messages(bus: &VmBus<Hv>, cpu: u32) -> bool {
    let mut payload = [0; MESSAGE_PAYLOAD_BYTES];
    match synic::take_message(cpu, &mut payload) {
        Taken::Channel(bytes) => {
            bus.on_message(payload.get(..bytes).unwrap_or_default());
            true
        }
        Taken::Timer | Taken::Other => true,
        Taken::Nothing => false,
    }
}

/// Does what was put off until now. Returns when to be called again.
fn turns(bus: &VmBus<Hv>) -> u64 {
    for _ in 0..TURNS {
        let next = bus.next_poll_ns();
        if next > time::now_ns() {
            return next;
        }
        bus.poll();
    }
    bus.next_poll_ns()
}

/// A VMBus message.
pub fn message(payload: &[u8]) {
    if let Some(bus) = BUS.get() {
        bus.on_message(payload);
    }
}

/// The VMBus interrupt, after its message was taken: signals.
pub fn signals(cpu: &Cpu) {
    let Some(bus) = BUS.get() else { return };
    if let Some(flags) = synic::event_flags(cpu.id) {
        bus.on_event_flags(flags);
    }
}

/// Does what is due and sets the timer for what is not. Called after everything else here.
pub fn settle(cpu: &Cpu) {
    let Some(bus) = BUS.get() else { return };
    let next = turns(bus);
    time::set_device_timer(cpu, (next != u64::MAX).then_some(next));
}

/// Tells the host to forget this guest: before a reset, and when it has crashed.
pub fn unload() {
    if let Some(bus) = BUS.get() {
        bus.unload(UNLOAD_LIMIT_NS);
    }
}
