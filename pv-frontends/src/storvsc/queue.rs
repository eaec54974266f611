//! The requests of one channel.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use hv_abi::PAGE_SIZE;
use hv_abi::scsi::{Opcode, UnmapDescriptor, UnmapHeader};
use hv_abi::storvsc::Version;
use spin::Mutex;
use translate::platform::PageWords;
use xen_abi::Mfn;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, transmute};

use super::command::{Cdb, Direction, Payload, execute};
use super::unit::{Request, Unit, UnitAddress};
use crate::blkback::{Io, Segment, Tag};
use crate::vmbus::{Channel, External, Hypervisor, OutPacket, PageSpan, SendError, Shared, VmBus};

/// Bytes of UNMAP's parameter data with one range.
pub(super) const UNMAP_BYTES: usize = size_of::<UnmapHeader>() + size_of::<UnmapDescriptor>();
/// Room for it in a page; no range crosses a page.
const UNMAP_ROOM: usize = 32;
/// Slots that no unit's request gets: one for the controller's conversation, one for a reset, which
/// is needed most when the host answers none of the others.
const OWN_SLOTS: u16 = 2;
/// How long a request may take.
pub(super) const TIMEOUT_NS: u64 = 180_000_000_000;
/// Until a request the device was too busy for is sent again, at first; then twice that, and so on.
const BUSY_WAIT_NS: u64 = 10_000_000;
/// As above, for one the host gave up on.
const ABORTED_WAIT_NS: u64 = 100_000_000;
/// No wait is longer.
const MAX_WAIT_NS: u64 = 1_000_000_000;
/// How long a device may be too busy for a scan's command; the next scan asks again.
const SCAN_BUSY_NS: u64 = 2_000_000_000;
/// How often a request is sent in all; those the device was too busy for do not count.
const MAX_TRIES: u8 = 8;

/// A request's memory: one range of a packet, whose frames are in the slot's share of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    /// First byte, in the first frame.
    offset: u32,
    bytes: u32,
    frames: usize,
}

impl Range {
    /// Writes the frames of pieces that make one range: all but the first begin at their page's first
    /// byte, all but the last end at its last. `None` where they do not, have no room, or are
    /// beyond 52 bits of address, which no processor has.
    fn of(segments: &[Segment], to: &mut [u64]) -> Option<Self> {
        const PAGE: u32 = PAGE_SIZE as u32;
        let to = to.get_mut(..segments.len())?;
        let first = segments.first()?;
        let offset = u32::from(first.offset);
        let (mut wrong, mut at) = (offset >= PAGE, offset);
        for (segment, to) in segments.iter().zip(to) {
            // From where the one before ended; that must be a page's end, but for the first.
            let joins = u32::from(segment.offset) == at;
            let end = at + u32::from(segment.len);
            wrong |= !joins || end == at || end > PAGE || segment.gpfn.0 >= 1 << 40;
            at = if end == PAGE { 0 } else { PAGE };
            *to = segment.gpfn.0;
        }
        let whole = (segments.len() - 1) as u32 * PAGE;
        let last = segments.last()?;
        let end = whole + u32::from(last.offset) + u32::from(last.len);
        (!wrong).then(|| Self { offset, bytes: end - offset, frames: segments.len() })
    }
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// The controller's own command: a scan's.
    Own,
    /// The controller's own packet: initialization.
    Control,
    /// A RESET_BUS after a request was late.
    Reset,
    /// A unit's.
    Unit(Arc<Unit>, Tag),
}

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The device only had news.
    News,
    Busy,
    Aborted,
}

/// A request the host has, or will be sent again.
#[derive(Debug)]
struct Pending {
    owner: Owner,
    address: UnitAddress,
    cdb: Cdb,
    direction: Direction,
    range: Range,
    /// Answers that do for another try.
    tries: u8,
    /// How long it waited last.
    wait_ns: u64,
    /// Until when the device may be too busy for it; 0: it was not yet.
    busy_until_ns: u64,
    /// Waits to be sent again; the host does not have it.
    is_waiting: bool,
    /// It was late before.
    is_late: bool,
    /// When it is late, or is to be sent again.
    at_ns: u64,
}

impl Pending {
    fn new(
        owner: Owner,
        address: UnitAddress,
        cdb: Cdb,
        direction: Direction,
        range: Range,
    ) -> Self {
        Self {
            owner,
            address,
            cdb,
            direction,
            range,
            tries: 0,
            wait_ns: 0,
            busy_until_ns: 0,
            is_waiting: false,
            is_late: false,
            at_ns: 0,
        }
    }

    /// Has it wait to be sent again; `false`: that was often, or long, enough.
    fn repeat(&mut self, why: Repeat, now: u64) -> bool {
        let patience_ns = match &self.owner {
            Owner::Control | Owner::Reset => return false,
            Owner::Unit(..) if self.is_orphan() => return false,
            Owner::Unit(..) => TIMEOUT_NS,
            Owner::Own => SCAN_BUSY_NS,
        };
        if why == Repeat::Busy {
            if self.busy_until_ns == 0 {
                self.busy_until_ns = now.saturating_add(patience_ns);
            }
            if now >= self.busy_until_ns {
                return false;
            }
        } else {
            self.tries += 1;
            if self.tries >= MAX_TRIES {
                return false;
            }
        }
        self.wait_ns = match why {
            Repeat::News => 0,
            Repeat::Busy => (self.wait_ns * 2).clamp(BUSY_WAIT_NS, MAX_WAIT_NS),
            Repeat::Aborted => (self.wait_ns * 2).clamp(ABORTED_WAIT_NS, MAX_WAIT_NS),
        };
        self.is_waiting = true;
        self.at_ns = now.saturating_add(self.wait_ns);
        true
    }

    /// Its unit is gone, and another may be in the same place.
    fn is_orphan(&self) -> bool {
        matches!(&self.owner, Owner::Unit(unit, _) if !unit.is_present())
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Goes up with each use, so that an answer to an earlier one is told apart.
    generation: u32,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    frames: Box<[u64]>,
}

/// A request that ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub owner: Owner,
    pub opcode: Opcode,
}

/// What is to be done about requests that take long.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Requests that are late, and as late again, since the last look.
    pub late: usize,
    /// The host has requests that were late at an earlier look.
    pub were_late: bool,
    /// Requests that waited to be sent again when their unit went: they ended.
    pub orphans: Vec<Owner>,
    /// When to look again.
    pub next_ns: Option<u64>,
}

/// One channel and its requests.
#[derive(Debug)]
pub(super) struct Queue {
    pub channel: Arc<Channel>,
    slots: Mutex<Slots>,
    max_frames: usize,
    /// For UNMAP's parameters: a share of a page for each slot.
    unmap: Box<[Shared<PageWords>]>,
    /// A packet was written and the host not signalled.
    owed: AtomicBool,
}

impl Queue {
    /// A queue of `requests` requests of units of up to `max_frames` pages; `None` without memory.
    pub(super) fn new<H: Hypervisor>(
        hv: &H,
        channel: Arc<Channel>,
        requests: u16,
        max_frames: usize,
    ) -> Option<Self> {
        let last = requests.saturating_add(OWN_SLOTS - 1);
        let count = usize::from(last) + 1;
        let slots = Slots {
            slots: list(count, |_| Slot::default())?.into_boxed_slice(),
            free: list(count, |nr| last - nr as u16)?,
            frames: list(count * max_frames, |_| 0)?.into_boxed_slice(),
        };
        let pages = (count * UNMAP_ROOM).div_ceil(PAGE_SIZE);
        let mut unmap: Vec<Shared<PageWords>> = Vec::new();
        unmap.try_reserve_exact(pages).ok()?;
        for _ in 0..pages {
            match hv.allocate() {
                Some(page) => unmap.push(page),
                None => {
                    unmap.iter().for_each(|page| hv.free(page.gpfn));
                    return None;
                }
            }
        }
        Some(Self {
            channel,
            slots: Mutex::new(slots),
            max_frames,
            unmap: unmap.into_boxed_slice(),
            owed: AtomicBool::new(false),
        })
    }

    /// Gives its pages back; the channel is closed, or gone.
    pub(super) fn free<H: Hypervisor>(&self, bus: &VmBus<H>) {
        bus.free_later(self.unmap.iter().map(|page| page.gpfn).collect());
    }

    /// Sends a unit's request.
    pub(super) fn submit<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        unit: &Arc<Unit>,
        io: &Io<'_>,
        request: &Request,
        tag: Tag,
    ) -> Result<(), SendError> {
        if io.segments.len() > self.max_frames {
            return Err(SendError::TooLarge);
        }
        let mut slots = self.slots.lock();
        // Under the lock: after `has_requests_of` a unit that is gone gets no more.
        if !unit.is_present() {
            return Err(SendError::Closed);
        }
        let free = slots.free.last().filter(|_| slots.free.len() > usize::from(OWN_SLOTS));
        let Some(nr) = free.copied() else { return Err(SendError::Full) };
        let share = slots.frames.get_mut(self.share(nr)).unwrap_or_default();
        let range = match request.unmap {
            Some((lba, blocks)) => self.put_unmap(nr, lba, blocks, share),
            None if io.segments.is_empty() => Some(Range::default()),
            None => Range::of(io.segments, share),
        };
        let range = range.ok_or(SendError::BadSpan)?;
        let owner = Owner::Unit(Arc::clone(unit), tag);
        let (cdb, direction) = (request.cdb, request.direction);
        let pending = Pending::new(owner, unit.address(), cdb, direction, range);
        self.start(bus, version, &mut slots, nr, pending)
    }

    /// Sends one of the controller's own commands, with data in one page.
    pub(super) fn submit_own<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        address: UnitAddress,
        cdb: Cdb,
        page: Option<(u64, u32)>,
    ) -> Result<(), SendError> {
        let mut slots = self.slots.lock();
        let Some(nr) = slots.free.last().copied() else { return Err(SendError::Full) };
        let mut range = Range::default();
        if let Some((gpfn, bytes)) = page {
            let segment = Segment { gpfn: Mfn(gpfn), offset: 0, len: bytes as u16 };
            let share = slots.frames.get_mut(self.share(nr)).unwrap_or_default();
            range = Range::of(&[segment], share).ok_or(SendError::BadSpan)?;
        }
        let direction = if range.frames == 0 { Direction::None } else { Direction::In };
        let pending = Pending::new(Owner::Own, address, cdb, direction, range);
        self.start(bus, version, &mut slots, nr, pending)
    }

    /// Sends a packet that is no SCSI command.
    pub(super) fn submit_control<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        owner: Owner,
        payload: &Payload,
    ) -> Result<(), SendError> {
        let mut slots = self.slots.lock();
        let Some(nr) = slots.free.last().copied() else { return Err(SendError::Full) };
        let generation = next_generation(&slots, nr);
        self.write(bus, transaction(nr, generation), External::None, payload)?;
        let at_ns = bus.hypervisor().now_ns().saturating_add(TIMEOUT_NS);
        bus.deadline_at(at_ns);
        let address = UnitAddress { path: 0, target: 0, lun: 0 };
        let cdb = Cdb::test_unit_ready();
        let pending = Pending::new(owner, address, cdb, Direction::None, Range::default());
        let pending = Pending { at_ns, ..pending };
        occupy(&mut slots, nr, generation, pending);
        Ok(())
    }

    /// A slot's place in the table of frames.
    fn share(&self, nr: u16) -> core::ops::Range<usize> {
        let first = usize::from(nr) * self.max_frames;
        first..first + self.max_frames
    }

    fn start<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        slots: &mut Slots,
        nr: u16,
        mut pending: Pending,
    ) -> Result<(), SendError> {
        let generation = next_generation(slots, nr);
        self.send(bus, version, slots, nr, generation, &mut pending)?;
        occupy(slots, nr, generation, pending);
        Ok(())
    }

    fn send<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        slots: &Slots,
        nr: u16,
        generation: u32,
        pending: &mut Pending,
    ) -> Result<(), SendError> {
        let Pending { address, cdb, direction, range, .. } = pending;
        let Range { offset, bytes, frames } = *range;
        let payload = execute(version, *address, cdb, *direction, bytes);
        let external = match slots.frames.get(self.share(nr)).and_then(|all| all.get(..frames)) {
            None | Some([]) => External::None,
            Some(gpfns) => External::Frames { offset, bytes, gpfns },
        };
        self.write(bus, transaction(nr, generation), external, &payload)?;
        (pending.is_waiting, pending.is_late) = (false, false);
        pending.at_ns = bus.hypervisor().now_ns().saturating_add(TIMEOUT_NS);
        bus.deadline_at(pending.at_ns);
        Ok(())
    }

    fn write<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        transaction_id: u64,
        external: External<'_, PageSpan>,
        payload: &Payload,
    ) -> Result<(), SendError> {
        let packet = OutPacket {
            transaction_id,
            is_completion: false,
            completion_wanted: true,
            external,
            payload: payload.0.get(..payload.1).unwrap_or_default(),
        };
        if bus.send_quietly(&self.channel, &packet)? {
            self.owed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Signals the host if a packet was written that it may not have seen.
    pub(super) fn commit<H: Hypervisor>(&self, bus: &VmBus<H>) {
        if self.owed.load(Ordering::Relaxed) && self.owed.swap(false, Ordering::Relaxed) {
            bus.signal(&self.channel);
        }
    }

    /// Takes the request an answer is for; `None`: for none.
    pub(super) fn take(&self, transaction_id: u64) -> Option<Ended> {
        let mut slots = self.slots.lock();
        let nr = slot_of(&slots, transaction_id)?;
        let pending = slots.slots.get_mut(usize::from(nr))?.pending.take()?;
        slots.free.push(nr);
        Some(Ended { owner: pending.owner, opcode: pending.cdb.opcode() })
    }

    /// Bytes that the command an answer is for was to move; `None`: it is for none.
    pub(super) fn data_bytes(&self, transaction_id: u64) -> Option<u32> {
        let slots = self.slots.lock();
        let nr = slot_of(&slots, transaction_id)?;
        let pending = slots.slots.get(usize::from(nr))?.pending.as_ref()?;
        Some(pending.range.bytes)
    }

    /// Sends a request again that was answered: at once, or after a while. `false`: not any more, or
    /// it is none.
    pub(super) fn again<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        transaction_id: u64,
        why: Repeat,
    ) -> bool {
        let mut slots = self.slots.lock();
        let Some(nr) = slot_of(&slots, transaction_id) else { return false };
        let Some(slot) = slots.slots.get_mut(usize::from(nr)) else { return false };
        let Some(mut pending) = slot.pending.take() else { return false };
        let repeats = pending.repeat(why, bus.hypervisor().now_ns());
        if repeats {
            bus.poll_at(pending.at_ns);
            if why == Repeat::News {
                let generation = next_generation(&slots, nr);
                // Where there is no room now, there is when it is looked at again.
                if self.send(bus, version, &slots, nr, generation, &mut pending).is_ok()
                    && let Some(slot) = slots.slots.get_mut(usize::from(nr))
                {
                    slot.generation = generation;
                }
            }
        }
        if let Some(slot) = slots.slots.get_mut(usize::from(nr)) {
            slot.pending = Some(pending);
        }
        repeats
    }

    /// Sends what waits for that, and looks for requests that are late.
    pub(super) fn look<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        version: Version,
        now: u64,
    ) -> Overdue {
        let mut slots = self.slots.lock();
        let mut overdue = Overdue::default();
        for nr in 0..slots.slots.len() as u16 {
            let at = usize::from(nr);
            let Some(mut pending) = slots.slots.get_mut(at).and_then(|s| s.pending.take()) else {
                continue;
            };
            if pending.is_waiting && pending.is_orphan() {
                slots.free.push(nr);
                overdue.orphans.push(pending.owner);
                continue;
            }
            overdue.were_late |= pending.is_late;
            if pending.at_ns <= now {
                if pending.is_waiting {
                    let generation = next_generation(&slots, nr);
                    match self.send(bus, version, &slots, nr, generation, &mut pending) {
                        Ok(()) => {
                            if let Some(slot) = slots.slots.get_mut(at) {
                                slot.generation = generation;
                            }
                        }
                        Err(_) => pending.at_ns = now.saturating_add(BUSY_WAIT_NS),
                    }
                } else {
                    overdue.late += 1;
                    pending.is_late = true;
                    pending.at_ns = now.saturating_add(TIMEOUT_NS);
                }
            }
            overdue.next_ns =
                Some(overdue.next_ns.map_or(pending.at_ns, |ns| ns.min(pending.at_ns)));
            if let Some(slot) = slots.slots.get_mut(at) {
                slot.pending = Some(pending);
            }
        }
        drop(slots);
        self.commit(bus);
        overdue
    }

    /// Takes all requests; the host does not have them any more.
    pub(super) fn drain(&self) -> Vec<Owner> {
        let mut slots = self.slots.lock();
        let mut owners = Vec::new();
        for nr in 0..slots.slots.len() as u16 {
            let taken = slots.slots.get_mut(usize::from(nr)).and_then(|slot| slot.pending.take());
            if let Some(pending) = taken {
                slots.free.push(nr);
                owners.push(pending.owner);
            }
        }
        owners
    }

    /// Whether a unit has requests here.
    pub(super) fn has_requests_of(&self, unit: &Arc<Unit>) -> bool {
        let is_its = |slot: &Slot| match &slot.pending {
            Some(Pending { owner: Owner::Unit(owner, _), .. }) => Arc::ptr_eq(owner, unit),
            _ => false,
        };
        self.slots.lock().slots.iter().any(is_its)
    }

    /// Writes UNMAP's parameters into a slot's share of the pages.
    fn put_unmap(&self, nr: u16, lba: u64, blocks: u32, share: &mut [u64]) -> Option<Range> {
        let header = UnmapHeader {
            data_length: U16::new(UNMAP_BYTES as u16 - 2),
            descriptor_length: U16::new(size_of::<UnmapDescriptor>() as u16),
            ..UnmapHeader::new_zeroed()
        };
        let range = UnmapDescriptor {
            lba: U64::new(lba),
            blocks: U32::new(blocks),
            ..UnmapDescriptor::new_zeroed()
        };
        let first: u64 = transmute!(header);
        let rest: [u64; 2] = transmute!(range);
        let at = usize::from(nr) * UNMAP_ROOM;
        let page = self.unmap.get(at / PAGE_SIZE)?;
        let words = page.view.get(at % PAGE_SIZE / 8..)?;
        for (to, from) in words.iter().zip([first, rest[0], rest[1]]) {
            to.store(from, Ordering::Relaxed);
        }
        let (offset, len) = ((at % PAGE_SIZE) as u16, UNMAP_BYTES as u16);
        Range::of(&[Segment { gpfn: Mfn(page.gpfn), offset, len }], share)
    }
}

/// So many values; `None` without memory.
fn list<T>(count: usize, value: impl FnMut(usize) -> T) -> Option<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.extend((0..count).map(value));
    Some(values)
}

/// The number a request goes by.
const fn transaction(nr: u16, generation: u32) -> u64 {
    (generation as u64) << 32 | nr as u64
}

fn next_generation(slots: &Slots, nr: u16) -> u32 {
    slots.slots.get(usize::from(nr)).map_or(0, |slot| slot.generation).wrapping_add(1)
}

/// The slot a number means, if a request the host has is in it.
fn slot_of(slots: &Slots, transaction_id: u64) -> Option<u16> {
    let nr = u16::try_from(transaction_id as u32).ok()?;
    let slot = slots.slots.get(usize::from(nr))?;
    let is_sent = slot.pending.as_ref().is_some_and(|pending| !pending.is_waiting);
    (is_sent && u64::from(slot.generation) == transaction_id >> 32).then_some(nr)
}

/// Puts a request into the slot that was last in the list of free ones.
fn occupy(slots: &mut Slots, nr: u16, generation: u32, pending: Pending) {
    slots.free.pop();
    if let Some(slot) = slots.slots.get_mut(usize::from(nr)) {
        *slot = Slot { generation, pending: Some(pending) };
    }
}
