//! Requests next to each other on the disk, handed to the device as one.
//!
//! Frontends cut what they are asked for: Linux's at 32 pages, whatever is offered. Requests that
//! follow each other in the ring and on the disk are put together again, as far as one submission
//! takes them. They wait in a [`Run`] for each other, never for anything else; when it has gone to
//! the device they are a chain of slots ([`Slot::next`](super::Slot)), of which the first has the
//! tag. If the device fails it, nobody knows whose part failed: each request is then submitted
//! alone, and answered with what becomes of that.

use translate::gnttab;
use translate::platform::Platform;
use xen_abi::PAGE_SIZE;
use xen_abi::io::blkif::{BlkifOp, BlkifStatus, MAX_SEGMENTS_PER_REQUEST, SECTOR_BYTES};

use super::pool::NONE;
use super::{Queue, status_of};
use crate::blkback::{BlockDevice, DeviceInfo, Env, Io, Operation, Segment, Submitted};

/// Reads and writes with a device that keep it busy.
const BUSY: u16 = 4;

/// Requests that go to the device together; their segments are the first of the queue's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// First and last of the chain of slots.
    head: u16,
    tail: u16,
    write: bool,
    sector: u64,
    sectors: u64,
    pub(super) nr_segments: u16,
    /// Sectors and segments of the last request.
    last_sectors: u64,
    last_segments: u16,
}

/// A request that has been taken, with its pages pinned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) slot: u16,
    pub(super) write: bool,
    pub(super) sector: u64,
    pub(super) sectors: u64,
    /// Its segments are those behind the run's.
    pub(super) nr_segments: u16,
}

impl Run {
    const fn new(taken: &Taken) -> Self {
        Self {
            head: taken.slot,
            tail: taken.slot,
            write: taken.write,
            sector: taken.sector,
            sectors: taken.sectors,
            nr_segments: taken.nr_segments,
            last_sectors: taken.sectors,
            last_segments: taken.nr_segments,
        }
    }

    const fn is_before(&self, taken: &Taken) -> bool {
        self.write == taken.write && self.sector + self.sectors == taken.sector
    }
}

/// Whether nothing is missing between pieces, where the device wants it so.
fn is_gapless(info: &DeviceInfo, segments: &[Segment]) -> bool {
    !info.no_gaps
        || segments.windows(2).all(|pair| match pair {
            [before, behind] => !is_gap(before, behind),
            _ => true,
        })
}

/// Whether a piece does not go on where the page before ends.
pub(super) fn is_gap(before: &Segment, behind: &Segment) -> bool {
    behind.offset != 0 || u64::from(before.offset) + u64::from(before.len) != PAGE_SIZE
}

impl Queue {
    /// Whether so much fits into one submission, and its segments into the run's share of the
    /// queue's, which is what one request may have. A device may take one more, for data that begins
    /// in the middle of a page, or many, if it takes more than it did when the vbd was made: a run of
    /// those would leave too little room for what is behind it.
    fn fits(&self, info: &DeviceInfo, sectors: u64, segments: u64) -> bool {
        sectors <= u64::from(info.max_transfer_bytes / SECTOR_BYTES)
            && segments <= info.max_segments.min(self.max_segments).into()
    }

    /// Whether a request of so many sectors and segments still fits into a run.
    fn has_room(&self, info: &DeviceInfo, run: &Run, sectors: u64, segments: u16) -> bool {
        let segments = u64::from(run.nr_segments) + u64::from(segments);
        self.fits(info, run.sectors + sectors, segments)
    }

    /// Puts a request into the run, or begins one with it. `false`: it does not fit there.
    pub(super) fn join(&mut self, info: &DeviceInfo, taken: &Taken) -> bool {
        let (first, end) = match &self.run {
            None if self.fits(info, taken.sectors, taken.nr_segments.into()) => {
                (0, taken.nr_segments)
            }
            Some(run)
                if run.is_before(taken)
                    && self.has_room(info, run, taken.sectors, taken.nr_segments) =>
            {
                // With the run's last piece, which it has to go on from.
                (run.nr_segments - 1, run.nr_segments + taken.nr_segments)
            }
            _ => return false,
        };
        let pieces = self.segments.get(usize::from(first)..usize::from(end));
        if !pieces.is_some_and(|pieces| is_gapless(info, pieces)) {
            return false;
        }
        self.largest = self.largest.max(taken.nr_segments);
        let Some(run) = &mut self.run else {
            self.run = Some(Run::new(taken));
            return true;
        };
        if let Some(tail) = self.slots.get_mut(usize::from(run.tail)) {
            tail.next = taken.slot;
        }
        run.tail = taken.slot;
        run.sectors += taken.sectors;
        run.nr_segments = end;
        (run.last_sectors, run.last_segments) = (taken.sectors, taken.nr_segments);
        true
    }

    /// Whether the run is likely to go on with the frontend's next request: the last one is as large
    /// as its requests get, so it may be a piece of something larger, and one more such fits in.
    pub(super) fn is_worth_holding(&self, info: &DeviceInfo) -> bool {
        self.run.is_some_and(|run| {
            let segments = run.last_segments;
            usize::from(segments) >= MAX_SEGMENTS_PER_REQUEST
                && segments >= self.largest
                && self.has_room(info, &run, run.last_sectors, segments)
        })
    }

    /// Whether the run goes on where the last one ended, and the device has enough to do without
    /// it. A frontend whose ring is full sends a piece for each that is answered; alone, they would
    /// stay pieces for ever.
    pub(super) fn is_busy_with_stream(&self) -> bool {
        let begin = self.run.map(|run| (run.write, run.sector));
        self.transfers >= BUSY && begin.is_some() && begin == self.end_of_last
    }

    /// Hands the run to the device; `false` where that is busy.
    pub(super) fn flush_run<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        device: &dyn BlockDevice,
    ) -> bool {
        let Some(run) = self.run else { return true };
        let pieces = self.segments.get(..usize::from(run.nr_segments)).unwrap_or_default();
        let operation = if run.write { Operation::Write } else { Operation::Read };
        let io = Io { operation, sector: run.sector, segments: pieces };
        match device.submit(self.vcpu, &io, self.tag(run.head)) {
            Submitted::Busy => return false,
            Submitted::Accepted => self.accepted(run.head),
            Submitted::Failed(_) if run.head != run.tail => self.part(run.head),
            Submitted::Failed(error) => self.answer(env, run.head, status_of(error)),
        }
        self.end_of_last = Some((run.write, run.sector + run.sectors));
        self.run = None;
        true
    }

    /// A chain's submission failed: each of its requests is to be submitted alone.
    pub(super) fn part(&mut self, head: u16) {
        let mut tail = head;
        while let Some(slot) = self.slots.get(usize::from(tail)).filter(|slot| slot.next != NONE) {
            tail = slot.next;
        }
        if let Some(slot) = self.slots.get_mut(usize::from(tail)) {
            slot.next = self.alone;
            self.alone = head;
        }
    }

    /// Submits the requests that go alone; `false` where the device is busy.
    pub(super) fn submit_alone<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        device: &dyn BlockDevice,
    ) -> bool {
        while let Some(slot) = self.slots.get(usize::from(self.alone)).copied() {
            let index = self.alone;
            let Some(count) = self.recall(env, index) else {
                self.alone = slot.next;
                self.answer(env, index, BlkifStatus::ERROR);
                continue;
            };
            let (_, pieces) = self.segments.split_at(self.segments.len() - count);
            let is_read = slot.operation == BlkifOp::READ;
            let operation = if is_read { Operation::Read } else { Operation::Write };
            let io = Io { operation, sector: slot.sector, segments: pieces };
            let submitted = device.submit(self.vcpu, &io, self.tag(index));
            if submitted == Submitted::Busy {
                return false;
            }
            self.alone = slot.next;
            if let Some(slot) = self.slots.get_mut(usize::from(index)) {
                slot.next = NONE;
            }
            match submitted {
                Submitted::Failed(error) => self.answer(env, index, status_of(error)),
                _ => self.accepted(index),
            }
        }
        true
    }

    /// A pinned request's segments, as they were when it was taken, at the end of the queue's; how
    /// many.
    fn recall<P: Platform>(&mut self, env: &Env<'_, P>, index: u16) -> Option<usize> {
        let mut at = self.segments.len();
        let mut list = self.slots.get(usize::from(index))?.grants;
        let grants = gnttab::open(env.dom);
        // The list begins with the last.
        while let Some((pinned, next)) = self.grants.get(list) {
            at = at.checked_sub(1)?;
            let (offset, len) = pinned.bytes();
            let gpfn = grants.pinned(pinned.gref)?;
            *self.segments.get_mut(at)? = Segment { gpfn, offset, len };
            list = next;
        }
        Some(self.segments.len() - at)
    }

    /// Drops the run and what goes alone: nothing of it is at the device. They fail.
    pub(super) fn drop_waiting<P: Platform>(&mut self, env: &Env<'_, P>) {
        if let Some(run) = self.run.take() {
            self.part(run.head);
        }
        while let Some(slot) = self.slots.get(usize::from(self.alone)).copied() {
            let index = core::mem::replace(&mut self.alone, slot.next);
            self.answer(env, index, BlkifStatus::ERROR);
        }
    }
}
