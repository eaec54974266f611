//! The network backend: a guest's netfront on one side, a [`NetDevice`] on the other.
//!
//! ```text
//!   guest sends:    slots ──copy──► chain ──check──► pinned pages ──► NetDevice::submit
//!                   slots ◄──────── responses ◄── release ◄───────── Vif::transmitted
//!   guest receives: slots ◄──copy── granted pages ◄── receive buffer ── Vif::receive
//! ```
//!
//! A [`Vif`] is one virtual interface. Each of its queues has two rings, each under its own lock:
//! `tx` is what the guest sends, `rx` what it receives. What is sent is neither mapped nor copied
//! here; what is received is copied once. `bus` is the handshake through xenstore, `ctrl` the control
//! ring, `steering` what both say about where packets go.
//!
//! Who calls what: the event channels [`Vif::kicked`]; the device [`Vif::receive`],
//! [`Vif::transmitted`], after a batch of either [`Vif::settled`], and [`Vif::changed`]; the
//! store's watches [`Vif::frontend_changed`]; a timer [`Vif::tick`]. All on any processor, with
//! interrupts off. Lock order: `bus`, `ctrl`, a `tx`, `steering`; or `bus`, an `rx`; and last what
//! the device, grant tables and event channels have. [`NetDevice`]'s methods are called with some of
//! these held: the device may not hold what they take while it calls up, and calls up from inside
//! none of them.

mod bus;
mod chain;
mod connection;
mod counters;
mod ctrl;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod fill;
mod headers;
mod line;
mod offload;
mod rx;
mod steering;
#[cfg(test)]
mod tests;
mod tx;
mod ways;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use spin::{Mutex, RwLock};
use translate::bits::bits;
use translate::evtchn::Backend;
use translate::platform::{PageWords, Platform};
use xen_abi::Mfn;

use crate::net::{MacAddress, NetDevice, RxFilter, RxPacket, RxVerdict, Tag, TxEnd};
use crate::xenbus::Stores;
use bus::Bus;
use ctrl::Ctrl;
use line::Port;
use rx::{RxQueue, Woken};
use steering::{Choice, Steering};
use tx::{Below, Ran, TxQueue};
use ways::{Direction, Ways};

pub use crate::blkback::{Env, Kicked};
pub use chain::Fatal;
pub use counters::{Counters, RxCounters, TxCounters};

/// Bits of a [`Backend::Net`] index that are the queue's number.
const QUEUE_BITS: u32 = 6;
/// Bits of it that say which of the queue's rings.
const RING_BITS: u32 = 2;
/// Queues a vif may have.
pub const MAX_QUEUES: u16 = 1 << QUEUE_BITS;
/// Vifs there may be.
pub const MAX_VIFS: u16 = 1 << (16 - QUEUE_BITS - RING_BITS);

/// Which rings an event channel is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rings {
    Both,
    Tx,
    Rx,
    Ctrl,
}

/// The vif behind a [`Backend::Net`] index; [`Vif::kicked`] takes the index as it is.
#[must_use]
pub const fn of_port(index: u16) -> u16 {
    index >> (QUEUE_BITS + RING_BITS)
}

const fn port_of(vif: u16, rings: Rings, queue: u16) -> u16 {
    (vif << RING_BITS | rings as u16) << QUEUE_BITS | queue
}

/// The tag of a packet: the queue with this index among all vifs', its place, and which packet
/// had the place.
const fn tag_of(index: u16, sequence: u32, packet: u16) -> Tag {
    Tag((sequence as u64) << 32 | (index as u64) << 16 | packet as u64)
}

/// The vif whose packet a tag names.
#[must_use]
pub const fn of_tag(tag: Tag) -> u16 {
    of_port((tag.0 >> 16) as u16)
}

/// A page of ring 0's own, for headers of packets whose checksum the device does not make.
#[derive(Clone, Copy, Debug)]
pub struct BouncePage {
    /// Its frame.
    pub gpfn: Mfn,
    /// Its contents.
    pub page: &'static PageWords,
}

/// How a vif is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifConfig {
    /// Its number: as in its directories' names, and the guest's order of interfaces.
    pub handle: u32,
    /// Its address, if not the card's.
    pub mac: Option<MacAddress>,
    /// MTU to set, if not what the card has.
    pub mtu: Option<u16>,
    /// Receive everything the switch lets through, not only what is for the address.
    pub promiscuous: bool,
}

/// What a vif may use. Memory is allocated when it is made: about 14 KiB for each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queues offered: one for each vCPU is best, more than the device has are of little use.
    pub queues: u16,
}

impl Limits {
    /// Queues Linux's netback offers at most unless told otherwise.
    pub const USUAL_QUEUES: u16 = 8;

    /// For a guest of so many vCPUs.
    #[must_use]
    pub fn new(nr_vcpus: u32) -> Self {
        Self { queues: nr_vcpus.clamp(1, Self::USUAL_QUEUES.into()) as u16 }
    }
}

struct Queue {
    tx: Mutex<TxQueue>,
    rx: Mutex<RxQueue>,
}

/// What the device is to receive.
struct Reception {
    connected: bool,
    /// Queues without slots for too long.
    stalled: u64,
    set: RxFilter,
}

/// A virtual network interface.
pub struct Vif<D> {
    index: u16,
    config: VifConfig,
    device: D,
    queues: Box<[Queue]>,
    /// Queues that are connected.
    connected: AtomicU16,
    ways: Ways,
    ctrl: Mutex<Ctrl>,
    steering: RwLock<Steering>,
    /// [`Steering::matters`].
    steered: AtomicBool,
    reception: Mutex<Reception>,
    bus: Mutex<Bus>,
    /// Queues that have something for the frontend, or for the device: a bit each.
    tx_unsettled: AtomicU64,
    rx_unsettled: AtomicU64,
    tx_busy: AtomicU64,
    /// When [`Self::tick`] is due; [`NEVER`].
    deadline: AtomicU64,
    /// The handshake goes on at the next [`Self::settled`].
    closing: AtomicBool,
    /// The frontend did what none does.
    broken: AtomicBool,
    no_frontend: AtomicU64,
    filtered: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl<D: NetDevice> Vif<D> {
    /// A vif that nobody has seen yet. `index` is its own among all, below [`MAX_VIFS`]. Allocates
    /// all it will need; `None` where there is no memory for it. Without `bounce` pages packets are
    /// refused whose checksum the device does not make.
    #[must_use]
    pub fn new(
        index: u16,
        config: VifConfig,
        limits: Limits,
        device: D,
        bounce: &[BouncePage],
    ) -> Option<Self> {
        let nr_queues = limits.queues.clamp(1, MAX_QUEUES);
        let mut queues = Vec::new();
        queues.try_reserve_exact(nr_queues.into()).ok()?;
        for number in 0..nr_queues {
            let pages = bounce.iter().skip(number.into()).step_by(nr_queues.into());
            let mut own = Vec::new();
            own.try_reserve_exact(pages.len()).ok()?;
            own.extend(pages);
            let tx = TxQueue::new(port_of(index, Rings::Tx, number), own)?;
            queues.push(Queue { tx: Mutex::new(tx), rx: Mutex::new(RxQueue::new()) });
        }
        Some(Self {
            index,
            config,
            device,
            queues: queues.into_boxed_slice(),
            connected: AtomicU16::new(0),
            ways: Ways::new(),
            ctrl: Mutex::new(Ctrl::new()),
            steering: RwLock::new(Steering::NONE),
            steered: AtomicBool::new(false),
            reception: Mutex::new(Reception {
                connected: false,
                stalled: 0,
                set: RxFilter::default(),
            }),
            bus: Mutex::new(Bus::new()),
            tx_unsettled: AtomicU64::new(0),
            rx_unsettled: AtomicU64::new(0),
            tx_busy: AtomicU64::new(0),
            deadline: AtomicU64::new(NEVER),
            closing: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            no_frontend: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
        })
    }

    /// The device below.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Its own index among all vifs.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Its number.
    pub const fn handle(&self) -> u32 {
        self.config.handle
    }

    /// Its address.
    pub fn mac(&self) -> MacAddress {
        self.config.mac.unwrap_or(self.device.info().mac)
    }

    const fn backend(&self, rings: Rings, queue: u16) -> Backend {
        Backend::Net(port_of(self.index, rings, queue))
    }

    /// What happened since it was made.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for queue in &self.queues {
            sum.tx.add(&queue.tx.lock().counters);
            sum.rx.add(&queue.rx.lock().counters);
        }
        sum.rx.no_frontend += self.no_frontend.load(Ordering::Relaxed);
        sum.rx.filtered += self.filtered.load(Ordering::Relaxed);
        sum
    }

    /// The guest notified the port with this [`Backend::Net`] index. Whether there is more to do:
    /// call it again soon. Where [`Self::is_unsettled`] is so afterwards, [`Self::settled`] is due.
    pub fn kicked<P: Platform>(&self, env: &Env<'_, P>, index: u16) -> bool {
        self.notified(env, index, false).more
    }

    /// As [`Self::kicked`], but small packets may stay here for those that the next notification
    /// brings: see [`Kicked::held`]. For frontends that notify after each.
    pub fn kicked_holding<P: Platform>(&self, env: &Env<'_, P>, index: u16) -> Kicked {
        self.notified(env, index, true)
    }

    fn notified<P: Platform>(&self, env: &Env<'_, P>, index: u16, hold: bool) -> Kicked {
        let number = index & (MAX_QUEUES - 1);
        let rings = index >> QUEUE_BITS & ((1 << RING_BITS) - 1);
        if rings == Rings::Ctrl as u16 {
            return Kicked { more: self.run_ctrl(env), held: false };
        }
        let Some(queue) = self.queues.get(usize::from(number)) else { return Kicked::default() };
        if rings != Rings::Tx as u16 {
            self.look(env, number, queue);
        }
        if rings == Rings::Rx as u16 {
            return Kicked::default();
        }
        self.take_tx(env, number, queue, hold)
    }

    /// Goes on with what the guest sends by a queue, and shows it what was sent. Whether there is
    /// more to do.
    fn run_tx<P: Platform>(&self, env: &Env<'_, P>, number: u16, queue: &Queue) -> bool {
        self.take_tx(env, number, queue, false).more
    }

    /// [`Self::run_tx`], which with `hold` may hold something back.
    fn take_tx<P: Platform>(
        &self,
        env: &Env<'_, P>,
        number: u16,
        queue: &Queue,
        hold: bool,
    ) -> Kicked {
        let info = self.device.info();
        let below = Below { device: &self.device, info: &info, steering: &self.steering };
        let (ran, held, port) = {
            let mut tx = queue.tx.lock();
            tx.set_device_queue(self.ways.device_queue(number));
            let mut ran = tx.run(env, &below, hold);
            if ran == Ran::Busy {
                // Whoever is called back from now on sees it; if that was before, this finds room.
                self.tx_busy.fetch_or(1 << number, Ordering::SeqCst);
                ran = tx.run(env, &below, false);
            }
            (ran, tx.holds(), tx.push())
        };
        if let Some(port) = port {
            self.notify(env, Direction::Tx, number, port);
        }
        if let Ran::Fatal(fatal) = ran {
            self.fail(env, fatal);
        }
        Kicked { more: ran == Ran::More, held }
    }

    fn notify<P: Platform>(&self, env: &Env<'_, P>, direction: Direction, number: u16, port: Port) {
        port.notify(env);
        if let Some(vcpu) = port.vcpu(env) {
            self.ways.heard(direction, number, vcpu);
        }
    }

    /// Looks for slots that packets wait for.
    fn look<P: Platform>(&self, env: &Env<'_, P>, number: u16, queue: &Queue) {
        let woken = queue.rx.lock().look();
        self.wake(env, number, woken);
    }

    fn wake<P: Platform>(&self, env: &Env<'_, P>, number: u16, woken: Result<Woken, Fatal>) {
        let woken = match woken {
            Ok(woken) => woken,
            Err(fatal) => {
                self.fail(env, fatal);
                let queue = self.queues.get(usize::from(number));
                queue.map_or(Woken::default(), |queue| queue.rx.lock().stop())
            }
        };
        self.act_on(number, woken);
    }

    /// Lets the device go on whose queues wait no longer, and receive what it is to.
    fn act_on(&self, number: u16, woken: Woken) {
        if woken.queues != 0 {
            let queues = self.device.info().queues;
            for bit in bits(woken.queues) {
                for queue in (bit..queues).step_by(u64::BITS as usize) {
                    self.device.resume(queue);
                }
            }
        }
        if let Some(stalled) = woken.stall {
            self.reception(|reception| {
                reception.stalled &= !(1 << number);
                reception.stalled |= u64::from(stalled) << number;
            });
        }
    }

    /// Changes what the device is to receive.
    fn reception(&self, change: impl FnOnce(&mut Reception)) {
        let mut reception = self.reception.lock();
        change(&mut reception);
        let open = reception.connected && reception.stalled == 0;
        let filter = RxFilter {
            directed: open,
            broadcast: open,
            all_multicast: open,
            promiscuous: open && self.config.promiscuous,
        };
        // A device that is gone has nothing to receive.
        if filter != reception.set && self.device.set_filter(filter).is_ok() {
            reception.set = filter;
        }
    }

    fn run_ctrl<P: Platform>(&self, env: &Env<'_, P>) -> bool {
        let queues = self.connected.load(Ordering::Acquire);
        let (ran, port) = {
            let mut ctrl = self.ctrl.lock();
            let ran = ctrl.run(env, &self.steering, queues);
            if ran.as_ref().is_ok_and(|ran| ran.changed) {
                self.steer(queues, true);
            }
            (ran, ctrl.push())
        };
        if let Some(port) = port {
            port.notify(env);
        }
        ran.map_or_else(
            |fatal| {
                self.fail(env, fatal);
                false
            },
            |ran| ran.more,
        )
    }

    /// What is said of steering changed. `hash`: also what the device has to know of it.
    fn steer(&self, queues: u16, hash: bool) {
        let steering = self.steering.read();
        self.steered.store(steering.matters(), Ordering::Release);
        if hash {
            ctrl::spread(&self.device, &self.device.info(), &steering.hash, queues);
        }
    }

    /// The frontend did what none does: nothing more is read of it, and it is asked to close.
    fn fail<P: Platform>(&self, env: &Env<'_, P>, fatal: Fatal) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            env.plat.log(format_args!("vif {}: closed: {fatal:?}", self.config.handle));
        }
        self.connected.store(0, Ordering::Release);
        self.closing.store(true, Ordering::Release);
    }

    /// A packet came by a queue of the device's. The frontend sees it at [`Self::settled`].
    pub fn receive<P: Platform>(
        &self,
        env: &Env<'_, P>,
        device_queue: u32,
        packet: &RxPacket<'_>,
    ) -> RxVerdict {
        let queues = self.connected.load(Ordering::Acquire);
        if queues == 0 {
            self.no_frontend.fetch_add(1, Ordering::Relaxed);
            return RxVerdict::Done;
        }
        let mut choice = Choice::To(None, None);
        if self.steered.load(Ordering::Acquire) {
            choice = self.steering.read().choose(packet, queues);
        }
        let Choice::To(number, hash) = choice else {
            self.filtered.fetch_add(1, Ordering::Relaxed);
            return RxVerdict::Done;
        };
        let number = number.unwrap_or_else(|| self.ways.queue(device_queue));
        let Some(queue) = self.queues.get(usize::from(number)) else { return RxVerdict::Done };
        let verdict = {
            let mut rx = queue.rx.lock();
            let verdict = rx.receive(env, packet, hash, device_queue);
            if verdict == Ok(RxVerdict::Wait) {
                self.deadline.fetch_min(rx.deadline().unwrap_or(NEVER), Ordering::AcqRel);
            }
            verdict
        };
        let bit = 1 << number;
        if self.rx_unsettled.load(Ordering::Relaxed) & bit == 0 {
            self.rx_unsettled.fetch_or(bit, Ordering::AcqRel);
        }
        match verdict {
            Ok(verdict) => verdict,
            Err(fatal) => {
                self.wake(env, number, Err(fatal));
                RxVerdict::Done
            }
        }
    }

    /// A packet's way ended that the device had queued. The frontend sees it at [`Self::settled`].
    pub fn transmitted<P: Platform>(&self, env: &Env<'_, P>, tag: Tag, end: TxEnd) {
        let number = (tag.0 >> 16) as u16 & (MAX_QUEUES - 1);
        if let Some(queue) = self.queues.get(usize::from(number)) {
            queue.tx.lock().transmitted(env, tag, end);
            self.tx_unsettled.fetch_or(1 << number, Ordering::AcqRel);
        }
    }

    /// The last of a batch was delivered, or the device takes packets again: shows the frontend what
    /// there is, and goes on with what it sends. Whether there is more to do.
    pub fn settled<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) -> bool {
        // Not asked for first: a swap of zeros costs as much as one of something.
        let take = |set: &AtomicU64| match set.load(Ordering::Acquire) {
            0 => 0,
            _ => set.swap(0, Ordering::SeqCst),
        };
        let mut more = false;
        for number in bits(take(&self.tx_unsettled) | take(&self.tx_busy)) {
            if let Some(queue) = self.queues.get(number as usize)
                && self.run_tx(env, number as u16, queue)
            {
                self.tx_unsettled.fetch_or(1 << number, Ordering::AcqRel);
                more = true;
            }
        }
        for number in bits(take(&self.rx_unsettled)) {
            let port = self.queues.get(number as usize).and_then(|queue| queue.rx.lock().push());
            if let Some(port) = port {
                self.notify(env, Direction::Rx, number as u16, port);
            }
        }
        if self.closing.load(Ordering::Acquire) {
            self.frontend_changed(env, stores);
        }
        more
    }

    /// Whether [`Self::settled`] is due.
    pub fn is_unsettled(&self) -> bool {
        let unsettled = |set: &AtomicU64| set.load(Ordering::Acquire) != 0;
        unsettled(&self.tx_unsettled)
            || unsettled(&self.rx_unsettled)
            || self.broken.load(Ordering::Acquire) && self.closing.load(Ordering::Acquire)
    }

    /// When [`Self::tick`] is due, as system time.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(Ordering::Acquire)).filter(|deadline| *deadline != NEVER)
    }

    /// [`Self::deadline`] has passed; called earlier it does nothing wrong.
    pub fn tick<P: Platform>(&self, env: &Env<'_, P>) {
        let now = env.plat.now_ns();
        self.deadline.store(NEVER, Ordering::Release);
        for (number, queue) in (0..).zip(&self.queues) {
            let woken = {
                let mut rx = queue.rx.lock();
                let woken = rx.tick(now);
                self.deadline.fetch_min(rx.deadline().unwrap_or(NEVER), Ordering::AcqRel);
                woken
            };
            self.wake(env, number, woken);
        }
    }
}
