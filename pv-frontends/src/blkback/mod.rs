//! The block backend: a guest's blkfront on one side, a [`BlockDevice`] on the other.
//!
//! ```text
//!   guest: ring entry ──copy──► request ──check──► pinned pages ──► BlockDevice::submit
//!          ring entry ◄──────── response ◄── release ◄──────────── Vbd::complete
//! ```
//!
//! A [`Vbd`] is one virtual disk. Its queues ([`queue`](self)) are independent of each other, each
//! under its own lock; `bus` is the handshake through xenstore. Data is neither mapped nor
//! copied: the guest's frames go to the device, pinned by their grants until it is done.
//! Persistent grants are therefore not offered: they would save a backend mappings, and cost the
//! frontend a copy of every byte.
//!
//! Who calls what: the event channel [`Vbd::kicked`], the device [`Vbd::complete`] for each
//! completion and [`Vbd::settle`] after the last of a batch, the store's watch on the frontend's
//! `state` [`Vbd::frontend_changed`]. All on any processor, with interrupts off. Lock order:
//! `bus`, then a queue, then what grant tables and event channels have.

mod bus;
mod device;
mod queue;
pub mod request;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use translate::bits::bits;
use translate::domain::Domain;
use translate::evtchn::{self, Backend, Here};
use translate::platform::Platform;
use xen_abi::io::blkif::{
    MAX_INDIRECT_PAGES, MAX_SEGMENTS_PER_REQUEST, SEGMENTS_PER_INDIRECT_PAGE,
};

use crate::ring::MAX_PAGES;
use crate::xenbus::Stores;
use bus::Bus;
use queue::Queue;

pub use device::{
    BlockDevice, DeviceInfo, Discard, Io, IoError, IoResult, Operation, Segment, Submitted, Tag,
};

/// Bits of a [`Backend::Blk`] index that are the queue's number; the rest is the vbd's.
const QUEUE_BITS: u32 = 6;
/// Queues a vbd may have.
pub const MAX_QUEUES: u16 = 1 << QUEUE_BITS;
/// Vbds there may be.
pub const MAX_VBDS: u16 = 1 << (16 - QUEUE_BITS);

/// The vbd and the queue behind a [`Backend::Blk`] index.
#[must_use]
pub const fn of_port(index: u16) -> (u16, u16) {
    (index >> QUEUE_BITS, index & (MAX_QUEUES - 1))
}

/// The [`Backend::Blk`] index of a vbd's queue: what [`of_port`] takes apart.
#[must_use]
pub const fn port_of(vbd: u16, queue: u16) -> u16 {
    vbd << QUEUE_BITS | queue
}

/// The tag of a request of the queue with this index; [`of_tag`] says whose it is.
#[must_use]
pub const fn tag_of(port: u16, sequence: u32, slot: u16) -> Tag {
    Tag((sequence as u64) << 32 | (port as u64) << 16 | slot as u64)
}

/// The vbd and the queue whose request a tag names.
#[must_use]
pub const fn of_tag(tag: Tag) -> (u16, u16) {
    of_port((tag.0 >> 16) as u16)
}

/// Where a call happens.
pub struct Env<'a, P> {
    /// The domain.
    pub dom: &'a Domain,
    /// Ring 0.
    pub plat: &'a P,
    /// This processor's vCPU.
    pub here: Here<'a>,
}

/// What a vbd may use. Memory for it is allocated when the vbd is made: for each queue 168 bytes
/// for each of `requests` (or 16 for each of `max_segments`, if that is more) and 48 for each of
/// `max_segments`, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queues offered: one for each vCPU is best.
    pub queues: u16,
    /// log2 of the pages a ring may have, at most 4.
    pub ring_page_order: u8,
    /// Requests a queue takes at once.
    pub requests: u16,
    /// Segments of an indirect request.
    pub max_segments: u16,
}

impl Limits {
    /// For a guest of so many vCPUs and a device.
    #[must_use]
    pub fn new(nr_vcpus: u32, info: &DeviceInfo) -> Self {
        let pages = (info.max_transfer_bytes / 4096).min(256) as u16;
        let max_segments = pages.min(info.max_segments);
        let queues = nr_vcpus.min(MAX_QUEUES.into()) as u16;
        Self { queues, ring_page_order: 4, requests: info.depth.min(64), max_segments }.clamped()
    }

    /// Bytes of heap that a vbd takes with these, but for what the heap's own books do.
    #[must_use]
    pub fn heap_bytes(self) -> usize {
        let Self { queues, requests, max_segments, .. } = self.clamped();
        usize::from(queues)
            * (size_of::<Mutex<Queue>>() + Queue::heap_bytes(requests, max_segments))
    }

    fn clamped(self) -> Self {
        let most = (MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE) as u16;
        Self {
            queues: self.queues.clamp(1, MAX_QUEUES),
            ring_page_order: self.ring_page_order.min(MAX_PAGES.ilog2() as u8),
            requests: self.requests.clamp(1, 512),
            max_segments: self.max_segments.clamp(MAX_SEGMENTS_PER_REQUEST as u16, most),
        }
    }
}

/// How a vbd is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VbdConfig {
    /// Its number: as in its directories' names ([`crate::vbd::Vdev::number`]).
    pub number: u32,
    /// Refuse writes even where the device takes them.
    pub read_only: bool,
    /// Call it a CD-ROM drive.
    pub cdrom: bool,
}

/// What a notification came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kicked {
    /// There is more to do: call it again soon.
    pub more: bool,
    /// Something was held back: call the backend's `kicked` for the queue when the guest does
    /// anything else than to notify it again, whatever that is.
    pub held: bool,
}

/// A virtual block device.
pub struct Vbd<D> {
    index: u16,
    config: VbdConfig,
    limits: Limits,
    device: D,
    queues: Box<[Mutex<Queue>]>,
    bus: Mutex<Bus>,
    /// The frontend is gone or going, and requests are still at the device: when the last has
    /// come back, the handshake goes on.
    closing: AtomicBool,
    /// Queues that have completions that were not shown to the frontend, or wait for the device; a
    /// bit for each.
    unsettled: AtomicU64,
    /// A queue's device answered a flush with "unsupported".
    unsupported: AtomicBool,
}

impl<D: BlockDevice> Vbd<D> {
    /// A vbd that nobody has seen yet. `index` is its own among all, below [`MAX_VBDS`]. Allocates
    /// all it will need; `None` where there is no memory for it.
    #[must_use]
    pub fn new(index: u16, config: VbdConfig, limits: Limits, device: D) -> Option<Self> {
        let limits = limits.clamped();
        let mut queues = Vec::new();
        queues.try_reserve_exact(limits.queues.into()).ok()?;
        for number in 0..limits.queues {
            let port = port_of(index, number);
            queues.push(Mutex::new(Queue::new(port, limits.requests, limits.max_segments)?));
        }
        Some(Self {
            index,
            config,
            limits,
            device,
            queues: queues.into_boxed_slice(),
            bus: Mutex::new(Bus::new()),
            closing: AtomicBool::new(false),
            unsettled: AtomicU64::new(0),
            unsupported: AtomicBool::new(false),
        })
    }

    /// The device below.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Its own index among all vbds.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Its number.
    pub const fn number(&self) -> u32 {
        self.config.number
    }

    /// What the guest is shown of the device.
    fn info(&self) -> DeviceInfo {
        let info = self.device.info();
        let read_only = info.read_only || self.config.read_only;
        DeviceInfo { read_only, cdrom: info.cdrom || self.config.cdrom, ..info }
    }

    const fn backend(&self, queue: u16) -> Backend {
        Backend::Blk(port_of(self.index, queue))
    }

    /// The guest notified a queue. Whether there is more to do: call it again soon.
    pub fn kicked<P: Platform>(&self, env: &Env<'_, P>, queue: u16) -> bool {
        match self.queues.get(usize::from(queue)) {
            Some(slot) => self.run(env, queue, slot, false).more,
            None => false,
        }
    }

    /// As [`Self::kicked`], but a request that the next notification is likely to continue may stay
    /// here for it: see [`Kicked::held`]. For frontends that notify after each of the pieces they
    /// have cut something into.
    pub fn kicked_holding<P: Platform>(&self, env: &Env<'_, P>, queue: u16) -> Kicked {
        match self.queues.get(usize::from(queue)) {
            Some(slot) => self.run(env, queue, slot, true),
            None => Kicked::default(),
        }
    }

    fn run<P: Platform>(
        &self,
        env: &Env<'_, P>,
        number: u16,
        queue: &Mutex<Queue>,
        hold: bool,
    ) -> Kicked {
        let info = self.info();
        let (kicked, port) = {
            let mut queue = queue.lock();
            let mut kicked = queue.run(env, &self.device, &info, hold);
            if queue.waits() {
                self.unsettle(number);
                if !kicked.held {
                    // The device was busy. Had it room again before that was noted, nobody would
                    // come back for what waits.
                    kicked = queue.run(env, &self.device, &info, hold);
                }
            }
            self.take_unsupported(&mut queue);
            (kicked, if queue.push() { queue.port() } else { None })
        };
        if let Some(port) = port {
            evtchn::notify(env.dom, env.plat, env.here, port, self.backend(number));
        }
        kicked
    }

    /// A request completed. The frontend sees it at [`Self::settle`].
    pub fn complete<P: Platform>(&self, env: &Env<'_, P>, tag: Tag, result: IoResult) {
        let (_, number) = of_tag(tag);
        if let Some(queue) = self.queues.get(usize::from(number)) {
            let mut queue = queue.lock();
            queue.complete(env, tag, result);
            self.take_unsupported(&mut queue);
            self.unsettle(number);
        }
    }

    /// [`Self::settle`] has something to do for a queue.
    fn unsettle(&self, number: u16) {
        self.unsettled.fetch_or(1 << number, Ordering::Release);
    }

    fn take_unsupported(&self, queue: &mut Queue) {
        if queue.flush_unsupported {
            queue.flush_unsupported = false;
            self.unsupported.store(true, Ordering::Release);
        }
    }

    /// The last of a batch of completions was delivered, or the device takes requests again: shows
    /// the frontend its responses, and goes on with its requests. Whether there is more to do.
    pub fn settle<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) -> bool {
        let mut more = false;
        for number in bits(self.unsettled.swap(0, Ordering::AcqRel)) {
            let number = number as u16;
            if let Some(queue) = self.queues.get(usize::from(number))
                && self.run(env, number, queue, false).more
            {
                self.unsettle(number);
                more = true;
            }
        }
        if self.closing.load(Ordering::Acquire) {
            self.frontend_changed(env, stores);
        }
        if self.unsupported.load(Ordering::Relaxed) {
            self.report_unsupported(stores);
        }
        more
    }

    /// Whether completions wait for [`Self::settle`].
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) != 0
    }

    /// Goes on with all queues: the device was busy and is no longer. Whether there is more to do.
    pub fn resume<P: Platform>(&self, env: &Env<'_, P>) -> bool {
        let mut more = false;
        for (number, queue) in (0..).zip(&self.queues) {
            more |= self.run(env, number, queue, false).more;
        }
        more
    }
}
