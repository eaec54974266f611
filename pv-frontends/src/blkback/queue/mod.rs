//! One queue of a vbd: a ring, the requests taken from it, and what became of them.
//!
//! A request is copied out of the ring, checked, and its grants are pinned; from then on it has a
//! slot until its response. Reads and writes go to the device by way of the `run` of their
//! neighbours. A request that is none, or that one submission cannot hold, is `current` while it is
//! being handed over, after the run before it: it may take several submissions (the device's
//! limits), wait for room at the device, or wait for completions (barriers). Nothing more is taken
//! from the ring meanwhile: that is the back pressure, and that is what keeps a barrier in its
//! place.
//!
//! All memory is allocated with the queue.

mod issue;
mod merge;
mod pin;
mod pool;

use alloc::boxed::Box;

use translate::gnttab;
use translate::platform::Platform;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::{BlkifOp, BlkifStatus};
use xen_abi::io::ring::ring_size;
use xen_abi::{Mfn, PAGE_SIZE};

use super::request::{self, ENTRY_WORDS, Layout, Plan, Request, Transfer};
use super::{BlockDevice, DeviceInfo, Env, IoError, IoResult, Kicked, Segment, Tag, tag_of};
use crate::ring::{BackRing, Bogus, MAX_PAGES, Pages};
use issue::{Current, Progress, Step};
use merge::{Run, Taken};
use pool::{NONE, Pool, boxed};

/// Segments there is room for if all requests have as many.
const USUAL_SEGMENTS: u16 = 16;
/// Requests taken from a ring in one go.
const BUDGET: u32 = 64;

/// A request that has been taken and not been answered.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u64,
    operation: BlkifOp,
    status: BlkifStatus,
    /// Submissions that have not completed.
    outstanding: u16,
    /// The grants that are pinned for it: a list in the pool.
    grants: u16,
    /// How they are pinned.
    write_grants: bool,
    busy: bool,
    /// Counts the requests that had this slot: completions of earlier ones are told by it.
    sequence: u32,
    /// First sector of a read or write.
    sector: u64,
    /// The next free slot; of a request, the next that went or goes to the device with it.
    next: u16,
}

const FREE: Slot = Slot {
    id: 0,
    operation: BlkifOp(0),
    status: BlkifStatus::OKAY,
    outstanding: 0,
    grants: NONE,
    write_grants: false,
    busy: false,
    sequence: 0,
    sector: 0,
    next: NONE,
};

/// A queue.
pub(super) struct Queue {
    number: u16,
    /// The vCPU that its completions go to, for the length of a [`Self::run`].
    vcpu: u32,
    /// Its number among all queues of all vbds: see [`super::of_port`].
    port: u16,
    ring: Option<Attached>,
    slots: Box<[Slot]>,
    free: u16,
    in_flight: u16,
    grants: Pool,
    /// Those of `run`, behind them those of `current`; at the end those of a request that goes
    /// alone. There is room for `max_segments` of each, and none has more.
    segments: Box<[Segment]>,
    max_segments: u16,
    run: Option<Run>,
    current: Option<Current>,
    /// Requests to be submitted each for itself: a chain of slots.
    alone: u16,
    /// Segments of the largest read or write of this connection.
    largest: u16,
    /// Reads and writes that are with the device.
    transfers: u16,
    /// Where the last run ended, and whether it was of writes.
    end_of_last: Option<(bool, u64)>,
    /// The device was given something since the last commit.
    uncommitted: bool,
    /// The device answered a flush with "unsupported".
    pub(super) flush_unsupported: bool,
    /// Every request fails.
    device_gone: bool,
}

/// Grants that can be pinned at once.
fn grants_of(requests: u16, max_segments: u16) -> u16 {
    requests.saturating_mul(USUAL_SEGMENTS).max(max_segments.saturating_mul(2))
}

/// A connected ring.
struct Attached {
    ring: BackRing<Pages>,
    layout: Layout,
    grefs: arrayvec::ArrayVec<GrantRef, MAX_PAGES>,
    port: u32,
    /// No more requests are taken: the frontend is gone, or what it says cannot be.
    stopped: bool,
}

/// How a frontend wants a queue connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Connection {
    pub(super) grefs: arrayvec::ArrayVec<GrantRef, MAX_PAGES>,
    pub(super) port: u32,
}

impl Queue {
    /// [`Self::run`]s that take all the requests the largest ring holds.
    pub(super) const PASSES: u32 =
        ring_size(MAX_PAGES * PAGE_SIZE as usize, 4 * ENTRY_WORDS) / BUDGET;

    /// A queue for so many requests at once, of so many segments each at most; `None` where there is
    /// no memory for it.
    pub(super) fn new(port: u16, requests: u16, max_segments: u16) -> Option<Self> {
        let requests = requests.clamp(1, NONE - 1);
        let mut slots = boxed(FREE, requests.into())?;
        for (slot, next) in slots.iter_mut().zip(1..requests) {
            slot.next = next;
        }
        let nothing = Segment { gpfn: Mfn(0), offset: 0, len: 0 };
        let grants = grants_of(requests, max_segments);
        Some(Self {
            number: super::of_port(port).1,
            vcpu: 0,
            port,
            ring: None,
            slots,
            free: 0,
            in_flight: 0,
            grants: Pool::new(grants)?,
            segments: boxed(nothing, usize::from(max_segments) * 3)?,
            max_segments,
            run: None,
            current: None,
            alone: NONE,
            largest: 0,
            transfers: 0,
            end_of_last: None,
            uncommitted: false,
            flush_unsupported: false,
            device_gone: false,
        })
    }

    /// Bytes of heap a queue takes.
    pub(super) fn heap_bytes(requests: u16, max_segments: u16) -> usize {
        usize::from(requests) * size_of::<Slot>()
            + Pool::heap_bytes(grants_of(requests, max_segments))
            + usize::from(max_segments) * 3 * size_of::<Segment>()
    }

    pub(super) fn port(&self) -> Option<u32> {
        self.ring.as_ref().map(|ring| ring.port)
    }

    /// Whether no request is unanswered.
    pub(super) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Pins the ring's pages and looks at them. The event channel is the caller's.
    pub(super) fn connect<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        connection: &Connection,
        layout: Layout,
    ) -> Result<(), Bogus> {
        let mut pages = Pages::default();
        let mut pinned = 0;
        for gref in &connection.grefs {
            let Ok(mfn) = gnttab::map_page(env.dom, env.plat, *gref, true) else { break };
            pinned += 1;
            let Some(page) = env.plat.view(mfn.base()) else { break };
            pages.0.push(page);
        }
        let bytes = connection.grefs.len() * PAGE_SIZE as usize;
        let complete = pages.0.len() == connection.grefs.len();
        let ring = if complete {
            BackRing::attach(pages, bytes, layout.entry_bytes())
        } else {
            Err(Bogus)
        };
        match ring {
            Ok(ring) => {
                let (grefs, port) = (connection.grefs.clone(), connection.port);
                self.ring = Some(Attached { ring, layout, grefs, port, stopped: false });
                (self.largest, self.end_of_last) = (0, None);
                Ok(())
            }
            Err(bogus) => {
                for gref in connection.grefs.iter().take(pinned) {
                    gnttab::release(env.dom, *gref, true);
                }
                Err(bogus)
            }
        }
    }

    /// Takes nothing more from the ring.
    pub(super) fn stop<P: Platform>(&mut self, env: &Env<'_, P>) {
        if let Some(ring) = &mut self.ring {
            ring.stopped = true;
        }
        // What was not handed over never will be; what was, completes.
        self.drop_waiting(env);
        if let Some(current) = self.current.take() {
            if let Some(slot) = self.slots.get_mut(usize::from(current.slot)) {
                slot.status = BlkifStatus::ERROR;
            }
            self.answer_if_complete(env, current.slot);
        }
    }

    /// Lets go of the ring's pages; only when idle. Returns its port.
    pub(super) fn disconnect<P: Platform>(&mut self, env: &Env<'_, P>) -> Option<u32> {
        let ring = self.ring.take()?;
        for gref in &ring.grefs {
            gnttab::release(env.dom, *gref, true);
        }
        Some(ring.port)
    }

    /// Fails what is at the device, which is gone: completions that still come mean nothing. What
    /// is in the ring, and what comes until the frontend closes, fails too: Linux waits for an
    /// answer to every request before it lets a disk go.
    pub(super) fn give_up<P: Platform>(&mut self, env: &Env<'_, P>) {
        self.device_gone = true;
        (self.run, self.current, self.alone, self.transfers) = (None, None, NONE, 0);
        for index in 0..self.slots.len() {
            if self.slots.get(index).is_some_and(|slot| slot.busy) {
                self.answer(env, index as u16, BlkifStatus::ERROR);
            }
        }
    }

    /// The tag of the request in a slot.
    fn tag(&self, index: u16) -> Tag {
        let sequence = self.slots.get(usize::from(index)).map_or(0, |slot| slot.sequence);
        tag_of(self.port, sequence, index)
    }

    /// Takes what is in the ring and hands it to the device, as far as both go. With `hold`, a run
    /// that is likely to go on stays here; one of a stream also without, while the device has enough
    /// to do.
    pub(super) fn run<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        device: &dyn BlockDevice,
        info: &DeviceInfo,
        hold: bool,
    ) -> Kicked {
        if let Some(state) = self.port().and_then(|port| env.dom.evtchn.state(port)) {
            self.vcpu = state.vcpu();
        }
        let mut more = false;
        let mut budget = BUDGET;
        loop {
            if !self.submit_alone(env, device) || self.advance(env, device, info) == Progress::Waits
            {
                break;
            }
            if budget == 0 {
                more = true;
                break;
            }
            budget -= 1;
            match self.take_one(env, info) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Bogus) => {
                    env.plat.log(format_args!("vbd queue {}: ring indices cannot be", self.number));
                    self.stop(env);
                    break;
                }
            }
        }
        let held = (hold || self.is_busy_with_stream()) && self.is_worth_holding(info);
        if !held && self.flush_run(env, device) {
            // What the device refused as a whole.
            self.submit_alone(env, device);
        }
        if core::mem::take(&mut self.uncommitted) {
            device.commit(self.vcpu);
        }
        Kicked { more, held }
    }

    /// The device has accepted a part of a request, which is the first of its chain.
    fn accepted(&mut self, index: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        slot.outstanding += 1;
        self.transfers += u16::from(is_transfer(slot.operation));
        self.uncommitted = true;
    }

    /// Whether something waits for the device to take it.
    pub(super) fn waits(&self) -> bool {
        self.run.is_some() || self.current.is_some() || self.alone != NONE
    }

    /// Shows the frontend what was answered. Whether it is to be told.
    pub(super) fn push(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| ring.ring.push())
    }

    /// Takes the next request, if there is one and room for it.
    fn take_one<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        info: &DeviceInfo,
    ) -> Result<bool, Bogus> {
        let Some(attached) = self.ring.as_mut().filter(|ring| !ring.stopped) else {
            return Ok(false);
        };
        let room = self.free != NONE && self.grants.left() >= self.max_segments;
        if !room || !attached.ring.sleep()? {
            return Ok(false);
        }
        let mut entry = [0; ENTRY_WORDS];
        attached.ring.take(&mut entry);
        let request = attached.layout.parse(&entry);
        if self.device_gone {
            self.respond(request.id, request.operation, BlkifStatus::ERROR);
            return Ok(true);
        }
        match request::plan(&request, info, self.max_segments) {
            Plan::Answer(status) => self.respond(request.id, request.operation, status),
            Plan::Discard { sectors, secure } => {
                let slot = self.claim(&request, false);
                self.current = Some(Current {
                    slot,
                    step: Step::Discard { left: sectors, secure },
                    sector: request.sector,
                    ..Current::new(slot)
                });
            }
            Plan::Transfer(transfer) => self.begin(env, info, &request, transfer),
        }
        Ok(true)
    }

    /// Takes a free slot; there is one.
    fn claim(&mut self, request: &Request, write_grants: bool) -> u16 {
        let index = self.free;
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            self.free = slot.next;
            *slot = Slot {
                id: request.id,
                operation: request.operation,
                write_grants,
                busy: true,
                sector: request.sector,
                sequence: slot.sequence.wrapping_add(1),
                ..FREE
            };
            self.in_flight += 1;
        }
        index
    }

    /// Pins a transfer's pages and puts it into the run, or makes it the current request.
    fn begin<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        info: &DeviceInfo,
        request: &Request,
        transfer: Transfer,
    ) {
        let index = self.claim(request, !transfer.write);
        let Transfer { write, nr_segments, .. } = transfer;
        let first = self.run.map_or(0, |run| run.nr_segments);
        let sectors = self.pin(env, info, request, (index, first), nr_segments);
        let good =
            |sectors: &u64| *sectors == 0 || request::check_range(info, request.sector, *sectors);
        let Some(sectors) = sectors.filter(good) else {
            self.answer(env, index, BlkifStatus::ERROR);
            return;
        };
        let flush = transfer.flush && info.flush;
        let step = match (transfer.barrier, flush) {
            (true, _) => Step::Drain,
            (false, true) => Step::FlushBefore,
            (false, false) => Step::Data,
        };
        let taken = Taken { slot: index, write, sector: request.sector, sectors, nr_segments };
        let plain = step == Step::Data && nr_segments > 0;
        if plain && self.join(info, &taken) {
            return;
        }
        self.current = Some(Current {
            step,
            write,
            ordered: transfer.barrier || transfer.flush && nr_segments > 0,
            flush,
            next: if nr_segments > 0 { first } else { 0 },
            end: if nr_segments > 0 { first + nr_segments } else { 0 },
            sector: request.sector,
            plain: plain.then_some(taken),
            ..Current::new(index)
        });
    }

    /// A submission completed. Stale ones are ignored.
    pub(super) fn complete<P: Platform>(&mut self, env: &Env<'_, P>, tag: Tag, result: IoResult) {
        let index = tag.0 as u16;
        if self.tag(index) != tag {
            return;
        }
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        if !slot.busy || slot.outstanding == 0 {
            return;
        }
        slot.outstanding -= 1;
        self.transfers = self.transfers.saturating_sub(is_transfer(slot.operation).into());
        if let Err(error) = result {
            if slot.next != NONE {
                self.part(index);
                return;
            }
            slot.status = status_of(error);
            self.flush_unsupported |= error == IoError::Unsupported
                && matches!(slot.operation, BlkifOp::FLUSH_DISKCACHE | BlkifOp::WRITE_BARRIER);
        }
        if self.current.is_none_or(|current| current.slot != index) {
            self.answer_if_complete(env, index);
        }
    }

    /// Answers a request that is complete, and those that went with it.
    fn answer_if_complete<P: Platform>(&mut self, env: &Env<'_, P>, index: u16) {
        let slot = self.slots.get(usize::from(index)).copied();
        let Some(Slot { outstanding: 0, status, mut next, .. }) = slot else { return };
        self.answer(env, index, status);
        while let Some(slot) = self.slots.get(usize::from(next)).copied() {
            self.answer(env, next, status);
            next = slot.next;
        }
    }

    /// Lets go of a request's pages, frees its slot and answers it.
    fn answer<P: Platform>(&mut self, env: &Env<'_, P>, index: u16, status: BlkifStatus) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        let grants = gnttab::open(env.dom);
        while let Some(pinned) = self.grants.pop(&mut slot.grants) {
            grants.release(pinned.gref, slot.write_grants);
        }
        drop(grants);
        let (id, operation) = (slot.id, slot.operation);
        *slot = Slot { next: self.free, sequence: slot.sequence, ..FREE };
        self.free = index;
        self.in_flight -= 1;
        self.respond(id, operation, status);
    }

    fn respond(&mut self, id: u64, operation: BlkifOp, status: BlkifStatus) {
        if let Some(attached) = &mut self.ring {
            let (words, count) = attached.layout.response((id, operation), status);
            attached.ring.put(words.get(..count).unwrap_or_default());
        }
    }
}

fn is_transfer(operation: BlkifOp) -> bool {
    matches!(operation, BlkifOp::READ | BlkifOp::WRITE)
}

const fn status_of(error: IoError) -> BlkifStatus {
    match error {
        IoError::Unsupported => BlkifStatus::EOPNOTSUPP,
        IoError::Io | IoError::NoSpace | IoError::Removed => BlkifStatus::ERROR,
    }
}
