//! What a guest sends: one queue's ring, and the packets taken from it.
//!
//! A packet's slots are copied out of the ring, checked, and its grants are pinned; from then on
//! they are listed until the device has done with the pages. The one packet that is being handed
//! over is `current`: while the device is busy nothing more is taken from the ring, and that is
//! the back pressure.
//!
//! All memory is allocated with the queue: there are never more slots than the ring has entries.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use spin::RwLock;
use translate::gnttab;
use translate::platform::Platform;
use xen_abi::PAGE_SIZE;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::netif::{NetifStatus, NetifTxRequest, NetifTxResponse};
use xen_abi::io::ring::ring_size;

use super::chain::{self, Chain, Fatal, MAX_SLOTS, Taken};
use super::counters::TxCounters;
use super::line::{Line, Port};
use super::offload::Offload;
use super::steering::Steering;
use super::{BouncePage, Env, tag_of};
use crate::net::{NetDevice, NetInfo, Tag, TxEnd, TxFragment, TxPacket, TxRefusal, TxSubmitted};

/// Bytes of an entry.
pub(super) const TX_ENTRY_BYTES: usize = size_of::<NetifTxRequest>();
/// Slots that can be taken and not answered.
const RING_ENTRIES: u16 = ring_size(PAGE_SIZE as usize, TX_ENTRY_BYTES) as u16;
/// Packets taken from a ring in one go.
const BUDGET: u32 = 64;
/// Most packets held back, and for how long while more of them come.
const MAX_HELD: u32 = 16;
const HOLD_NS: u64 = 20_000;
/// Fragments of a packet: one for each slot, one more where a VLAN tag is cut out, and one with
/// headers of our own.
pub(super) const MAX_FRAGMENTS: usize = MAX_SLOTS + 2;

/// No slot, no packet.
const NONE: u16 = u16::MAX;

/// A slot that is not answered.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u16,
    next: u16,
    /// What it pins; empty slots pin nothing.
    gref: Option<GrantRef>,
}

/// A packet that has been taken and not been answered.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// Its slots, a list in order.
    slots: u16,
    /// Extra infos behind the first.
    extras: u16,
    busy: bool,
    with_device: bool,
    /// The page with its headers that is ours.
    bounce: Option<BouncePage>,
    /// Counts the packets that had this place: completions of earlier ones are told by it.
    sequence: u32,
    /// The next free one.
    next: u16,
}

/// The packet that is being handed over; its bytes are in [`TxQueue::fragments`].
#[derive(Clone, Copy)]
struct Current {
    packet: u16,
    offload: Offload,
}

/// Where a packet's bytes are.
pub(super) type Fragments = ArrayVec<TxFragment, MAX_FRAGMENTS>;

/// What a queue needs to go on.
pub(super) struct Below<'a> {
    pub(super) device: &'a dyn NetDevice,
    pub(super) info: &'a NetInfo,
    pub(super) steering: &'a RwLock<Steering>,
}

/// How far [`TxQueue::run`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// The ring is empty, or the device will say when it goes on.
    Waits,
    /// There is more to do at once.
    More,
    /// The device is busy: it calls back. Try once more after having noted it.
    Busy,
    /// Nothing can be believed any more.
    Fatal(Fatal),
}

/// The sending half of a queue.
pub(super) struct TxQueue {
    /// Number of the queue among all vifs': see [`super::tag_of`].
    index: u16,
    /// Queue of the device's.
    device_queue: u32,
    line: Option<Line>,
    slots: Box<[Slot]>,
    packets: Box<[Packet]>,
    free_slot: u16,
    free_packet: u16,
    in_flight: u16,
    current: Option<Current>,
    fragments: Fragments,
    /// Pages for headers that are changed here.
    bounce: Vec<BouncePage>,
    has_bounce: bool,
    uncommitted: bool,
    /// Packets among them that cannot be held back.
    urgent: bool,
    /// Packets that were copied and are held back, and since when.
    held: Option<(u32, u64)>,
    /// Every packet fails.
    device_gone: bool,
    pub(super) counters: TxCounters,
}

fn list<T>(count: u16, make: impl Fn(u16) -> T) -> Option<Box<[T]>> {
    let mut items = Vec::new();
    items.try_reserve_exact(count.into()).ok()?;
    items.extend((0..count).map(|index| make(if index + 1 < count { index + 1 } else { NONE })));
    Some(items.into_boxed_slice())
}

impl TxQueue {
    /// A queue; `None` where there is no memory for it.
    pub(super) fn new(index: u16, bounce: Vec<BouncePage>) -> Option<Self> {
        let packet = |next| Packet {
            slots: NONE,
            extras: 0,
            busy: false,
            with_device: false,
            bounce: None,
            sequence: 0,
            next,
        };
        Some(Self {
            index,
            device_queue: 0,
            line: None,
            slots: list(RING_ENTRIES, |next| Slot { id: 0, next, gref: None })?,
            packets: list(RING_ENTRIES, packet)?,
            free_slot: 0,
            free_packet: 0,
            in_flight: 0,
            current: None,
            fragments: ArrayVec::new_const(),
            has_bounce: !bounce.is_empty(),
            bounce,
            uncommitted: false,
            urgent: false,
            held: None,
            device_gone: false,
            counters: TxCounters::default(),
        })
    }

    pub(super) fn connect(&mut self, line: Line) {
        self.line = Some(line);
    }

    /// The queue of the device's that takes what is sent from the next batch on.
    pub(super) const fn set_device_queue(&mut self, queue: u32) {
        if !self.uncommitted {
            self.device_queue = queue;
        }
    }

    /// Whether nothing of the guest's is at the device.
    pub(super) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Takes nothing more from the ring; what was not handed over never will be.
    pub(super) fn stop<P: Platform>(&mut self, env: &Env<'_, P>) {
        if let Some(line) = &mut self.line {
            line.stopped = true;
        }
        if let Some(current) = self.current.take() {
            self.answer(env, current.packet, NetifStatus::ERROR);
        }
    }

    /// Takes the ring, which nothing of is at the device any more.
    pub(super) fn disconnect(&mut self) -> Option<Line> {
        self.line.take()
    }

    /// The device is gone, and what it had with it: completions that still come mean nothing. What
    /// the frontend still sends until it closes fails.
    pub(super) fn give_up<P: Platform>(&mut self, env: &Env<'_, P>) {
        self.device_gone = true;
        self.current = None;
        for index in 0..RING_ENTRIES {
            if self.packets.get(usize::from(index)).is_some_and(|packet| packet.busy) {
                self.counters.lost += 1;
                self.answer(env, index, NetifStatus::DROPPED);
            }
        }
    }

    /// Takes what is in the ring and hands it to the device, as far as both go. With `hold`, what
    /// the device has copied may stay there until the next call: [`Self::holds`].
    pub(super) fn run<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        below: &Below<'_>,
        hold: bool,
    ) -> Ran {
        let copied = self.counters.copied;
        let mut budget = BUDGET;
        let ran = loop {
            if self.current.is_some() {
                match self.hand_over(env, below) {
                    Ok(()) => {}
                    Err(ran) => break ran,
                }
            }
            if budget == 0 {
                break Ran::More;
            }
            budget -= 1;
            match self.take_one(env, below) {
                Ok(true) => {}
                Ok(false) => break Ran::Waits,
                Err(fatal) => break Ran::Fatal(fatal),
            }
        };
        let packets = (self.counters.copied - copied) as u32;
        self.held = if hold && ran == Ran::Waits { self.hold(env, packets) } else { None };
        if self.held.is_none() && core::mem::take(&mut self.uncommitted) {
            self.urgent = false;
            below.device.commit(self.device_queue);
        }
        ran
    }

    /// What is held back with so many more packets, if that may be.
    fn hold<P: Platform>(&self, env: &Env<'_, P>, packets: u32) -> Option<(u32, u64)> {
        if !self.uncommitted || self.urgent || self.current.is_some() {
            return None;
        }
        let now = env.plat.now_ns();
        let (before, since) = self.held.unwrap_or((0, now));
        let packets = before + packets;
        (packets < MAX_HELD && now.saturating_sub(since) < HOLD_NS).then_some((packets, since))
    }

    /// Whether packets are held back, and the frontend has not been told of their answers.
    pub(super) const fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Shows the frontend what was answered; the port to notify. While packets are held back it is
    /// not told: Linux's looks for answers when it has sent something.
    pub(super) fn push(&mut self) -> Option<Port> {
        let line = self.line.as_mut()?;
        if self.held.is_some() {
            line.publish();
            return None;
        }
        line.push()
    }

    /// Takes the next packet, if there is one.
    fn take_one<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        below: &Below<'_>,
    ) -> Result<bool, Fatal> {
        let Some(line) = self.line.as_mut().filter(|line| !line.stopped) else {
            return Ok(false);
        };
        let taken = match chain::take(&mut line.ring) {
            Ok(Some(taken)) => taken,
            Ok(None) => return Ok(false),
            Err(fatal) => {
                line.stopped = true;
                return Err(fatal);
            }
        };
        match taken {
            Taken::Packet(chain) => self.begin(env, below, &chain),
            Taken::Bad(chain) => {
                self.counters.bad_chains += 1;
                self.refuse(&chain, NetifStatus::ERROR);
            }
            Taken::Multicast { chain, add, group } => {
                let done = below.steering.write().set_group(add, group);
                self.refuse(&chain, if done { NetifStatus::OKAY } else { NetifStatus::ERROR });
            }
        }
        Ok(true)
    }

    /// Answers a chain that pins nothing.
    fn refuse(&mut self, chain: &Chain, status: NetifStatus) {
        let mut extras = chain.extras;
        for slot in &chain.slots {
            self.respond(slot.id, status, core::mem::take(&mut extras));
        }
    }

    fn respond(&mut self, id: u16, status: NetifStatus, extras: u16) {
        if let Some(line) = &mut self.line {
            line.put(&NetifTxResponse { id, status });
            for _ in 0..extras {
                line.put(&NetifTxResponse { id: 0, status: NetifStatus::NULL });
            }
        }
    }

    /// Pins a packet's pages and makes it the current one.
    fn begin<P: Platform>(&mut self, env: &Env<'_, P>, below: &Below<'_>, chain: &Chain) {
        if self.device_gone {
            self.refuse(chain, NetifStatus::DROPPED);
            return;
        }
        let Some(packet) = self.claim(chain) else {
            self.refuse(chain, NetifStatus::ERROR);
            return;
        };
        if self.pin(env, packet, chain).is_none() {
            self.counters.bad_grants += 1;
            self.answer(env, packet, NetifStatus::ERROR);
            return;
        }
        let offload = match Offload::of(chain, &mut self.fragments, below.info) {
            Ok(offload) => offload,
            Err(refusal) => {
                self.count_refusal(refusal);
                self.answer(env, packet, NetifStatus::ERROR);
                return;
            }
        };
        self.counters.gso_csum_fixup += u64::from(offload.fixup);
        self.current = Some(Current { packet, offload });
    }

    fn count_refusal(&mut self, refusal: TxRefusal) {
        match refusal {
            TxRefusal::Headers => self.counters.bad_headers += 1,
            TxRefusal::Unsupported | TxRefusal::Fragments => self.counters.unsupported += 1,
            TxRefusal::Size => self.counters.refused += 1,
            TxRefusal::Removed => self.counters.lost += 1,
        }
    }

    /// Lists a packet's slots, with nothing pinned.
    fn claim(&mut self, chain: &Chain) -> Option<u16> {
        let index = self.free_packet;
        let packet = self.packets.get_mut(usize::from(index))?;
        let mut head = NONE;
        for wanted in chain.slots.iter().rev() {
            // There are as many as the ring has entries, and each is one that is not answered.
            let slot = self.slots.get_mut(usize::from(self.free_slot))?;
            let at = core::mem::replace(&mut self.free_slot, slot.next);
            *slot = Slot { id: wanted.id, next: core::mem::replace(&mut head, at), gref: None };
        }
        self.free_packet = packet.next;
        *packet = Packet {
            slots: head,
            extras: chain.extras,
            busy: true,
            with_device: false,
            bounce: None,
            sequence: packet.sequence.wrapping_add(1),
            next: NONE,
        };
        self.in_flight += 1;
        Some(index)
    }

    /// Pins a packet's pages, which become the fragments. On failure what is pinned stays so until
    /// the packet is answered.
    fn pin<P: Platform>(&mut self, env: &Env<'_, P>, packet: u16, chain: &Chain) -> Option<()> {
        let grants = gnttab::open(env.dom);
        let mut at = self.packets.get(usize::from(packet))?.slots;
        self.fragments.clear();
        for wanted in &chain.slots {
            let slot = self.slots.get_mut(usize::from(at))?;
            at = slot.next;
            if wanted.size == 0 {
                continue;
            }
            let access = grants.access(env.plat, wanted.gref, false).ok()?;
            slot.gref = Some(wanted.gref);
            let end = u32::from(wanted.offset) + u32::from(wanted.size);
            let granted_end = u32::from(access.offset) + u32::from(access.len);
            if wanted.offset < access.offset || end > granted_end {
                return None;
            }
            let page = env.plat.frame(access.mfn)?;
            let (offset, len) = (wanted.offset, wanted.size);
            self.fragments.try_push(TxFragment { gpfn: access.mfn, page, offset, len }).ok()?;
        }
        Some(())
    }

    /// Hands the current packet to the device.
    fn hand_over<P: Platform>(&mut self, env: &Env<'_, P>, below: &Below<'_>) -> Result<(), Ran> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        if current.offload.wants_sum() {
            let Some(page) = self.bounce.pop() else {
                if self.has_bounce {
                    // All are at the device, and come back.
                    self.current = Some(current);
                    return Err(Ran::Waits);
                }
                self.counters.unsupported += 1;
                self.answer(env, current.packet, NetifStatus::ERROR);
                return Ok(());
            };
            if let Some(packet) = self.packets.get_mut(usize::from(current.packet)) {
                packet.bounce = Some(page);
            }
            current.offload.sum_up(&mut self.fragments, &page);
            self.counters.software_csum += 1;
        }
        let offload = &current.offload;
        let packet = TxPacket {
            fragments: &self.fragments,
            csum: offload.csum,
            gso: offload.gso,
            vlan: offload.vlan,
            hash: offload.hash,
        };
        let (bytes, gso) = (packet.bytes(), packet.gso.is_some());
        let submitted = below.device.submit(self.device_queue, &packet, self.tag(current.packet));
        match submitted {
            TxSubmitted::Busy => {
                self.counters.busy += 1;
                self.current = Some(current);
                return Err(Ran::Busy);
            }
            TxSubmitted::Refused(refusal) => {
                self.count_refusal(refusal);
                self.answer(env, current.packet, NetifStatus::ERROR);
                return Ok(());
            }
            TxSubmitted::Queued => {
                self.urgent = true;
                if let Some(packet) = self.packets.get_mut(usize::from(current.packet)) {
                    packet.with_device = true;
                }
            }
            TxSubmitted::Copied => {
                self.counters.copied += 1;
                self.answer(env, current.packet, NetifStatus::OKAY);
            }
        }
        self.uncommitted = true;
        self.counters.packets += 1;
        self.counters.bytes += u64::from(bytes);
        self.counters.gso += u64::from(gso);
        Ok(())
    }

    /// The tag of a packet.
    fn tag(&self, packet: u16) -> Tag {
        let sequence = self.packets.get(usize::from(packet)).map_or(0, |packet| packet.sequence);
        tag_of(self.index, sequence, packet)
    }

    /// A packet's way ended. Stale tags are ignored.
    pub(super) fn transmitted<P: Platform>(&mut self, env: &Env<'_, P>, tag: Tag, end: TxEnd) {
        let index = tag.0 as u16;
        let packet = self.packets.get(usize::from(index));
        if self.tag(index) != tag || !packet.is_some_and(|packet| packet.busy && packet.with_device)
        {
            return;
        }
        let status = match end {
            TxEnd::Sent => NetifStatus::OKAY,
            TxEnd::Refused => {
                self.counters.refused += 1;
                NetifStatus::ERROR
            }
            TxEnd::Lost => {
                self.counters.lost += 1;
                NetifStatus::DROPPED
            }
        };
        self.answer(env, index, status);
    }

    /// Lets go of a packet's pages, and answers its slots.
    fn answer<P: Platform>(&mut self, env: &Env<'_, P>, index: u16, status: NetifStatus) {
        let Some(packet) = self.packets.get_mut(usize::from(index)) else { return };
        let (mut at, mut extras) = (packet.slots, packet.extras);
        self.bounce.extend(packet.bounce.take());
        (packet.busy, packet.with_device, packet.slots) = (false, false, NONE);
        packet.next = core::mem::replace(&mut self.free_packet, index);
        self.in_flight -= 1;
        let grants = gnttab::open(env.dom);
        while let Some(slot) = self.slots.get_mut(usize::from(at)) {
            let (id, next) = (slot.id, slot.next);
            if let Some(gref) = slot.gref.take() {
                grants.release(gref, false);
            }
            slot.next = core::mem::replace(&mut self.free_slot, at);
            at = next;
            self.respond(id, status, core::mem::take(&mut extras));
        }
    }
}
