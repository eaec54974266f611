//! The devices: the host's VMBus below, the guest's backends above.
//!
//! Disks: [`block`]; network cards: [`net`]; the window's [`keyboard`]. Everything runs with interrupts off, on the processor that the host or the guest called: a
//! message or signal of the host's comes by the VMBus interrupt, a request of the guest's by an
//! event channel, time-outs by the processor's timer. At boot, before there is a guest, the same
//! functions are called in a loop.

mod block;
pub mod keyboard;
mod net;
mod search;
mod store;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use hv_abi::synic::MESSAGE_PAYLOAD_BYTES;
use hv_abi::vmbus::OfferChannel;
use hv_abi::vmbus::offer::interface;
use pv_frontends::blkback::Env;
use pv_frontends::netvsc::NetVsc;
use pv_frontends::storvsc::{self, StorVsc};
use pv_frontends::vmbus::{Channel, Driver, Event, Lingering, Received, VmBus};
use spin::Once;
use translate::builder::cmdline::{ConsoleDevice, Options};
use translate::domain::Domain;
use translate::evtchn::{Backend, Here};

use crate::cpu::{Cpu, percpu};
use crate::hv::synic::{self, Taken};
use crate::hv::vmbus::Hv;
use crate::hv::{self, Enlightenments};
use crate::mm::layout::MAX_VCPUS;
use crate::mm::{frames, heap, pool};
use crate::platform::Shim;
use crate::{log, time};

/// Pages for rings and what else the host and the shim share: 14 for a controller, 7 for a keyboard.
/// Network cards add what they take.
pub const POOL_PAGES: u64 = 256;
/// Heap for devices to begin with: some 41 KiB for a channel of a controller, as much for one of a
/// network card. It grows by what they take.
pub const HEAP_BYTES: u64 = 1 << 20;
/// What is to be free of it for disks that come while the guest runs.
const LATER_HEAP_BYTES: usize = 256 << 10;
/// Channels of a controller, each bound to a processor of its own: more do not pay for the memory they
/// take.
const MAX_CHANNELS: u32 = 4;
/// How long the host may take to say what there is, in all.
const BOOT_LIMIT_NS: u64 = 10_000_000_000;
/// How long a host may take to forget this guest before a reset or crash.
const UNLOAD_LIMIT_NS: u64 = 2_000_000_000;
/// Turns of put-off work at a time; what is left is done at the next interrupt.
const TURNS: usize = 4;

static BUS: Once<VmBus<Hv>> = Once::new();
/// The processor whose call is being served, by its number: what drivers are called from does not
/// know of it.
static CURRENT: [AtomicPtr<Cpu>; MAX_VCPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_VCPUS];

/// Whether the host has what VMBus needs.
pub fn possible(hv: &Enlightenments) -> bool {
    hv.synic && hv.hypercall
}

/// The bus. Called only by what the bus has called.
fn bus() -> &'static VmBus<Hv> {
    BUS.wait()
}

/// Runs `f`, in which [`with_env`] finds the processor.
fn on_cpu<R>(cpu: &Cpu, f: impl FnOnce() -> R) -> R {
    let current = &CURRENT[cpu.id as usize];
    let outer = current.swap((&raw const *cpu).cast_mut(), Ordering::Relaxed);
    let result = f();
    current.store(outer, Ordering::Relaxed);
    result
}

/// Runs `f` with what backends need, where there is a domain.
fn with_env<R>(f: impl FnOnce(&Env<'_, Shim<'_>>) -> R) -> Option<R> {
    let id = percpu::current_id();
    let cpu = CURRENT[id as usize].load(Ordering::Relaxed);
    // SAFETY: set by `on_cpu` on this processor, which holds the reference while the call lasts.
    let cpu = unsafe { cpu.as_ref() }?;
    let plat = Shim { cpu };
    Some(f(&Env { dom: crate::guest::domain(), plat: &plat, here: Here::on_id(id) }))
}

/// Connects to VMBus and waits until the host's devices are known.
pub fn start(options: &Options<'_>, vcpus: u32) {
    let Some(pages) = frames::alloc(POOL_PAGES, 4096) else {
        log!(Error, "no memory for VMBus");
        return;
    };
    // SAFETY: the shim's own frames, for good.
    unsafe { pool::add(pages >> 12, POOL_PAGES) };
    block::start(options.vbd);
    net::start(options.vif, options.net_spare, vcpus);
    let progress = Arc::new(Progress::default());
    let vps = hv::vp::indices(vcpus);
    let others = vcpus.min(MAX_CHANNELS).saturating_sub(1) as u16;
    let config = storvsc::Config { vps, max_sub_channels: others, ..Default::default() };
    let storage = Arc::new(StorVsc::new(block::Units, config));
    let network = Arc::new(NetVsc::new(net::Cards, net::config(vcpus)));
    let mut drivers: Vec<Arc<dyn Driver<Hv>>> =
        vec![Arc::clone(&progress) as _, Arc::clone(&storage) as _, Arc::clone(&network) as _];
    if options.console != ConsoleDevice::None {
        drivers.push(keyboard::start());
    }
    let bus = BUS.call_once(|| VmBus::new(Hv, drivers.into_boxed_slice()));
    bus.connect();
    let is_known =
        || progress.done.load(Ordering::Relaxed) && storage.is_settled() && network.is_settled();
    if !run_until(is_known) {
        log!(Warn, "the host has not said what disks and network cards there are");
    }
    net::set_aside();
    if !heap::reserve(block::heap_bytes(vcpus) + net::heap_bytes() + LATER_HEAP_BYTES) {
        log!(Error, "no memory for the queues of all disks and network cards");
    }
}

/// Shows the guest its disks and network cards, those that the options name.
pub fn attach(dom: &'static Domain, plat: &Shim<'_>, options: &Options<'_>) {
    if BUS.get().is_none() {
        if !options.vbd.is_empty() {
            log!(Error, "pontoon.vbd names disks, but there is no VMBus");
        }
        if !options.vif.is_empty() {
            log!(Error, "pontoon.vif names network cards, but there is no VMBus");
        }
        return;
    }
    on_cpu(plat.cpu, || {
        let env = Env { dom, plat, here: Here::NOWHERE };
        net::attach(&env);
        block::attach(&env);
        if !run_until(|| !block::is_searching()) {
            log!(Warn, "the host does not let partitions be read");
        }
    });
    block::missing(|entry| log!(Error, "{}: the host has no such disk", entry.vdev.name()));
}

/// Serves the host, without interrupts, until it is so, or for too long.
fn run_until(done: impl Fn() -> bool) -> bool {
    let Some(bus) = BUS.get() else { return false };
    let begin = time::now_ns();
    while !done() {
        if time::now_ns() - begin > BOOT_LIMIT_NS {
            return false;
        }
        take_message(0);
        // Other processors do not serve devices yet.
        for flags in (0..synic::cpus()).filter_map(synic::event_flags) {
            bus.on_event_flags(flags);
        }
        turns(bus);
        core::hint::spin_loop();
    }
    true
}

/// Sees how far the connection is.
#[derive(Default)]
struct Progress {
    /// All that was there at first is known, or there is no bus.
    done: AtomicBool,
}

impl Driver<Hv> for Progress {
    fn wants(&self, offer: &OfferChannel) -> bool {
        if offer.interface_type == interface::SCSI && offer.sub_channel_index == 0 {
            block::controller_offered(offer.interface_instance);
        }
        // Cards there is no memory for come here, where nothing is done with them.
        offer.interface_type == interface::NETWORK
            && offer.sub_channel_index == 0
            && !net::card_offered(offer.interface_instance)
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

/// Takes a message of the host's, if there is one: for the next one it interrupts again. Whether it
/// says that a timer expired.
fn take_message(cpu: u32) -> bool {
    if !synic::message_waits(cpu) {
        return false;
    }
    let mut payload = [0; MESSAGE_PAYLOAD_BYTES];
    match synic::take_message(cpu, &mut payload) {
        Taken::Timer => return true,
        Taken::Channel(bytes) => {
            if let Some(bus) = BUS.get() {
                bus.on_message(payload.get(..bytes).unwrap_or_default());
            }
        }
        Taken::Nothing | Taken::Other => {}
    }
    false
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

/// The VMBus interrupt: takes a message. Whether it says that a timer expired.
pub fn message(cpu: &Cpu) -> bool {
    on_cpu(cpu, || take_message(cpu.id))
}

/// The VMBus interrupt, after its message was taken: signals. `true`: the processor stays with their
/// channels; [`linger`] or [`leave`] follows.
pub fn signals(cpu: &Cpu) -> bool {
    let Some(flags) = synic::event_flags(cpu.id) else { return false };
    with_lingering(cpu, |bus, lingering| bus.on_event_flags_lingering(flags, lingering))
}

/// Looks again at the channels the processor stays with. Whether it stays with any.
pub fn linger(cpu: &Cpu) -> bool {
    let stays = with_lingering(cpu, VmBus::linger);
    settle(cpu);
    stays
}

/// Lets the host signal again on the channels the processor stays with.
pub fn leave(cpu: &Cpu) {
    with_lingering(cpu, VmBus::leave);
    settle(cpu);
}

/// Runs `f` with the channels the processor stays with; whether there are any after.
fn with_lingering(cpu: &Cpu, f: impl FnOnce(&VmBus<Hv>, &mut Lingering)) -> bool {
    let Some(bus) = BUS.get() else { return false };
    let mut lingering = cpu.lingering.take();
    on_cpu(cpu, || f(bus, &mut lingering));
    let stays = !lingering.is_empty();
    cpu.lingering.set(lingering);
    stays
}

/// The guest notified a backend: see [`translate::platform::Host::kick_backend`].
pub fn kicked(plat: &Shim<'_>, dom: &Domain, here: Here<'_>, backend: Backend) -> bool {
    if BUS.get().is_none() {
        return false;
    }
    let env = Env { dom, plat, here };
    let more = on_cpu(plat.cpu, || {
        let kicked = match backend {
            Backend::Blk(port) => block::kicked(&env, port),
            Backend::Net(port) => net::kicked(&env, port),
            Backend::Xenstore => return store::changed(&env),
            Backend::Console => return false,
        };
        if kicked.held {
            hold(&env, backend);
        }
        kicked.more
    });
    settle(plat.cpu);
    more
}

/// What a backend's queue holds back waits for the next hypercall that is such a notification, or
/// anything else that brings the processor here.
fn hold(env: &Env<'_, Shim<'_>>, backend: Backend) {
    let cpu = env.plat.cpu;
    cpu.holds_now.set(true);
    if let Some(other) = cpu.held.replace(Some(backend)).filter(|other| *other != backend) {
        release_one(env, other);
    }
}

/// Hands over what was held back on this processor.
pub fn release(cpu: &Cpu) {
    if let Some(backend) = cpu.held.take() {
        on_cpu(cpu, || with_env(|env| release_one(env, backend)));
        settle(cpu);
    }
}

fn release_one(env: &Env<'_, Shim<'_>>, backend: Backend) {
    match backend {
        Backend::Blk(port) => block::release(env, port),
        Backend::Net(port) => net::release(env, port),
        Backend::Xenstore | Backend::Console => {}
    }
}

/// Does what is due and sets the timer for what is not. Called after everything else here.
pub fn settle(cpu: &Cpu) {
    if BUS.get().is_some() {
        time::set_device_timer(cpu, work(cpu));
    }
}

/// [`settle`] after the timer has fired: the guest is about to set its own.
pub fn settle_after_timer(cpu: &Cpu) {
    if BUS.get().is_some() {
        time::set_device_timer_with_the_guests(cpu, work(cpu));
    }
}

/// Does what is due; when there is more.
fn work(cpu: &Cpu) -> Option<u64> {
    let bus = BUS.get()?;
    let next = on_cpu(cpu, || {
        let next = turns(bus);
        if !has_more() {
            return next.min(net::next_ns());
        }
        let more = with_env(again).unwrap_or(false);
        // What that put off.
        let next = turns(bus).min(net::next_ns());
        if more { 0 } else { next }
    });
    (next != u64::MAX).then_some(next)
}

/// Whether [`again`] may have something to do.
fn has_more() -> bool {
    let net_ns = net::next_ns();
    block::has_more()
        || crate::guest::domain().xenstore.internal_pending()
        || net_ns != u64::MAX && net_ns <= time::now_ns()
}

/// Goes on with what backends have not done. Whether there is more.
fn again(env: &Env<'_, Shim<'_>>) -> bool {
    let blocks = block::has_more() && block::again(env);
    let nets = net::next_ns() != u64::MAX && net::again(env);
    let stored = env.dom.xenstore.internal_pending() && store::changed(env);
    blocks || nets || stored
}

/// Logs what devices counted: the guest is about to end.
pub fn report() {
    net::report();
}

/// Tells the host to forget this guest: before a reset, and when it has crashed.
pub fn unload() {
    if let Some(bus) = BUS.get() {
        bus.unload(UNLOAD_LIMIT_NS);
    }
}
