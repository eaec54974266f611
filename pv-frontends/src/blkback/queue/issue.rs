//! Handing the current request to the device, step by step.

use translate::platform::Platform;
use xen_abi::io::blkif::{BlkifStatus, SECTOR_BYTES};

use super::merge::{Taken, is_gap};
use super::{Queue, status_of};
use crate::blkback::{BlockDevice, DeviceInfo, Env, Io, IoError, Operation, Segment, Submitted};

/// What a request that is being handed over waits for or does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All before it complete.
    Drain,
    /// The device's cache is written back.
    FlushBefore,
    /// Segments from `next` on go to the device.
    Data,
    /// The device's cache is written back, now with the request's own data in it.
    FlushAfter,
    /// A discard, from `sector` on.
    Discard { left: u64, secure: bool },
    /// Nothing more.
    Done,
}

/// The request that is being handed to the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) slot: u16,
    pub(super) step: Step,
    pub(super) write: bool,
    /// Each step waits until the one before has completed.
    pub(super) ordered: bool,
    pub(super) flush: bool,
    /// Of `segments`: the first that is not with the device, and the first behind its own.
    pub(super) next: u16,
    pub(super) end: u16,
    pub(super) sector: u64,
    /// It is a read or write, and can be in a run.
    pub(super) plain: Option<Taken>,
}

impl Current {
    /// A request that does nothing.
    pub(super) const fn new(slot: u16) -> Self {
        Self {
            slot,
            step: Step::Done,
            write: false,
            ordered: false,
            flush: false,
            next: 0,
            end: 0,
            sector: 0,
            plain: None,
        }
    }
}

/// What came of an attempt to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The request is with the device, or answered.
    HandedOver,
    /// It waits for a completion.
    Waits,
}

impl Queue {
    /// Goes on with the current request.
    pub(super) fn advance<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        device: &dyn BlockDevice,
        info: &DeviceInfo,
    ) -> Progress {
        if self.current.is_some() && self.run.is_some() {
            if !self.flush_run(env, device) {
                return Progress::Waits;
            }
            if self.is_now_a_run(info) {
                return Progress::HandedOver;
            }
        }
        while let Some(mut current) = self.current {
            let Some(slot) = self.slots.get(usize::from(current.slot)).copied() else {
                self.current = None;
                break;
            };
            if slot.status != BlkifStatus::OKAY {
                current.step = Step::Done;
            }
            let waits = current.ordered && slot.outstanding > 0;
            let next = match current.step {
                Step::Drain if self.in_flight > 1 => return Progress::Waits,
                _ if waits && current.step != Step::Done => return Progress::Waits,
                Step::Drain => Some(if current.flush { Step::FlushBefore } else { Step::Data }),
                Step::FlushBefore => self.flush(device, &current).then_some(Step::Data),
                Step::Data if current.next < current.end => {
                    self.transfer(device, info, &mut current).then_some(Step::Data)
                }
                Step::Data if current.flush && current.end > 0 => Some(Step::FlushAfter),
                Step::FlushAfter => self.flush(device, &current).then_some(Step::Done),
                Step::Discard { left: 0, .. } | Step::Data => Some(Step::Done),
                Step::Discard { left, secure } => {
                    self.discard(device, info, &mut current, left, secure)
                }
                Step::Done => {
                    // A barrier holds up what is behind it until it has completed.
                    if waits {
                        return Progress::Waits;
                    }
                    self.current = None;
                    self.answer_if_complete(env, current.slot);
                    break;
                }
            };
            match next {
                Some(step) => self.current = Some(Current { step, ..current }),
                None => {
                    self.current = Some(current);
                    return Progress::Waits;
                }
            }
        }
        Progress::HandedOver
    }

    /// Begins a run with the current request, once the one before has gone, if it can be in one.
    fn is_now_a_run(&mut self, info: &DeviceInfo) -> bool {
        let Some(current) = self.current else { return false };
        let Some(taken) = current.plain else { return false };
        // Its segments are behind those of the run that has gone.
        let own = usize::from(current.next)..usize::from(current.end);
        if self.segments.get(own.clone()).is_none() {
            return false;
        }
        self.segments.copy_within(own, 0);
        let joined = self.join(info, &taken);
        self.current = (!joined).then_some(Current { next: 0, end: taken.nr_segments, ..current });
        joined
    }

    /// Submits a part of the current request; `false` where the device is busy.
    fn submit(&mut self, device: &dyn BlockDevice, slot: u16, io: &Io<'_>) -> bool {
        let submitted = device.submit(self.vcpu, io, self.tag(slot));
        self.submitted(slot, submitted, io.operation == Operation::Flush)
    }

    fn submitted(&mut self, slot: u16, submitted: Submitted, is_flush: bool) -> bool {
        match submitted {
            Submitted::Busy => return false,
            Submitted::Accepted => self.accepted(slot),
            Submitted::Failed(error) => {
                if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                    slot.status = status_of(error);
                }
                self.flush_unsupported |= is_flush && error == IoError::Unsupported;
            }
        }
        true
    }

    fn flush(&mut self, device: &dyn BlockDevice, current: &Current) -> bool {
        let io = Io { operation: Operation::Flush, sector: 0, segments: &[] };
        self.submit(device, current.slot, &io)
    }

    /// Submits as many of the segments from `next` on as the device takes in one request.
    fn transfer(
        &mut self,
        device: &dyn BlockDevice,
        info: &DeviceInfo,
        current: &mut Current,
    ) -> bool {
        let range = usize::from(current.next)..usize::from(current.end);
        let left = self.segments.get(range).unwrap_or_default();
        let (count, bytes) = first_part(info, left);
        let operation = if current.write { Operation::Write } else { Operation::Read };
        let part = left.get(..count).unwrap_or_default();
        let io = Io { operation, sector: current.sector, segments: part };
        let submitted = device.submit(self.vcpu, &io, self.tag(current.slot));
        let taken = self.submitted(current.slot, submitted, false);
        if taken {
            current.next += count as u16;
            current.sector += u64::from(bytes / SECTOR_BYTES);
        }
        taken
    }

    fn discard(
        &mut self,
        device: &dyn BlockDevice,
        info: &DeviceInfo,
        current: &mut Current,
        left: u64,
        secure: bool,
    ) -> Option<Step> {
        // Whole logical sectors, whatever their size.
        let most = (info.discard.map_or(0, |discard| discard.max_sectors) & !7).max(8);
        let part = left.min(most);
        let operation = Operation::Discard { sectors: part, secure };
        let io = Io { operation, sector: current.sector, segments: &[] };
        if !self.submit(device, current.slot, &io) {
            return None;
        }
        current.sector += part;
        Some(Step::Discard { left: left - part, secure })
    }
}

/// How many of the segments go into one request of the device, and their bytes: at least one.
fn first_part(info: &DeviceInfo, segments: &[Segment]) -> (usize, u32) {
    let (mut count, mut bytes) = (0, 0);
    let mut before: Option<&Segment> = None;
    for segment in segments.iter().take(info.max_segments.into()) {
        let total = bytes + u32::from(segment.len);
        let gap = info.no_gaps && before.is_some_and(|before| is_gap(before, segment));
        if count > 0 && (total > info.max_transfer_bytes || gap) {
            break;
        }
        (count, bytes, before) = (count + 1, total, Some(segment));
    }
    (count, bytes)
}
