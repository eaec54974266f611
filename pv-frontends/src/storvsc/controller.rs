//! A controller: its channels, its units.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use hv_abi::Guid;
use hv_abi::storvsc::{Header, Operation, Version};
use hv_abi::vmbus::packet::PacketType;
use hv_abi::vmbus::{ChannelId, OfferChannel};
use spin::{Mutex, RwLock};

use super::command::control;
use super::driver::Sink;
use super::machine::{Found, Machine, Send};
use super::queue::{Owner, Queue, Repeat, TIMEOUT_NS};
use super::result::{Answer, Outcome, asks_for_scan, moves_blocks};
use super::scan::Seen;
use super::unit::{Request, Unit};
use crate::blkback::{Io, IoError, IoResult, Submitted, Tag};
use crate::vmbus::{
    Channel, External, Hypervisor, OutPacket, Packet, PageSpan, PagedRing, Received, SendError,
    VmBus,
};

/// Packets handled in one go.
const BUDGET: u32 = 64;
/// Until a packet of the controller's own that found no room is tried again.
const RETRY_NS: u64 = 10_000_000;
/// Until the next scan where one has left a known unit in doubt.
const RESCAN_NS: u64 = 10_000_000_000;
/// No time.
const NEVER: u64 = u64::MAX;

/// A controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub offer: OfferChannel,
    pub machine: Mutex<Machine>,
    version: AtomicU16,
    /// The initialization is over: requests may be sent.
    ready: AtomicBool,
    /// The host refused the conversation: the channel is closed for good.
    pub refused: AtomicBool,
    /// A scan is over: what it found is to be compared with what is known.
    scanned: AtomicBool,
    /// The primary channel's first; then those of sub-channels.
    queues: RwLock<Vec<Arc<Queue>>>,
    /// A request went by another channel than its vCPU's since the last commit.
    strayed: AtomicBool,
    units: RwLock<Vec<Arc<Unit>>>,
    /// Units that are gone though the host has requests of theirs: until it answers, or lets the
    /// channel go, it may read and write their pages.
    leaving: Mutex<Vec<Arc<Unit>>>,
    /// When the bus was reset for the requests that are late now; [`NEVER`]: it was not.
    reset_at_ns: AtomicU64,
    /// The primary channel is gone for good; the controller goes with the last of the others.
    pub gone: AtomicBool,
    /// How often the channel was opened again.
    pub reopened: AtomicU8,
    /// Answers to nothing, and packets that are none.
    pub bogus: AtomicU64,
}

/// A request ended. [`Sink::settled`] is due after that, not before: another processor may call it at
/// once, and then nobody does for this request.
fn complete<S: Sink>(sink: &S, unit: &Arc<Unit>, tag: Tag, result: IoResult) {
    sink.completed(unit, tag, result);
    unit.unsettle();
}

impl Controller {
    pub(super) fn new(offer: OfferChannel, machine: Machine) -> Self {
        Self {
            offer,
            version: AtomicU16::new(machine.version.0),
            machine: Mutex::new(machine),
            ready: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            scanned: AtomicBool::new(false),
            queues: RwLock::new(Vec::new()),
            strayed: AtomicBool::new(false),
            units: RwLock::new(Vec::new()),
            leaving: Mutex::new(Vec::new()),
            reset_at_ns: AtomicU64::new(NEVER),
            gone: AtomicBool::new(false),
            reopened: AtomicU8::new(0),
            bogus: AtomicU64::new(0),
        }
    }

    pub(super) const fn instance(&self) -> Guid {
        self.offer.interface_instance
    }

    fn version(&self) -> Version {
        Version(self.version.load(Ordering::Relaxed))
    }

    pub(super) fn queue(&self, id: ChannelId) -> Option<Arc<Queue>> {
        self.queues.read().iter().find(|queue| queue.channel.id() == id).cloned()
    }

    pub(super) fn primary(&self) -> Option<Arc<Queue>> {
        self.queue(self.offer.channel_id)
    }

    /// Channels that are open.
    pub(super) fn channels(&self) -> Vec<ChannelId> {
        self.queues.read().iter().map(|queue| queue.channel.id()).collect()
    }

    pub(super) fn add_queue(&self, queue: Queue) {
        let mut queues = self.queues.write();
        let at = if queue.channel.id() == self.offer.channel_id { 0 } else { queues.len() };
        queues.insert(at, Arc::new(queue));
    }

    /// The channel is closed, or gone: its requests fail.
    pub(super) fn remove_queue<H: Hypervisor, S: Sink>(
        &self,
        bus: &VmBus<H>,
        sink: &S,
        id: ChannelId,
        error: IoError,
    ) {
        let queue = {
            let mut queues = self.queues.write();
            let at = queues.iter().position(|queue| queue.channel.id() == id);
            at.map(|at| queues.remove(at))
        };
        if id == self.offer.channel_id {
            self.ready.store(false, Ordering::Release);
            self.machine.lock().stop();
            self.reset_at_ns.store(NEVER, Ordering::Relaxed);
        }
        let Some(queue) = queue else { return };
        self.give_up(sink, queue.drain(), error);
        queue.free(bus);
        self.settle(sink);
    }

    /// Requests end that the host does not have any more.
    fn give_up<S: Sink>(&self, sink: &S, owners: Vec<Owner>, error: IoError) {
        for owner in owners {
            if let Owner::Unit(unit, tag) = owner {
                complete(sink, &unit, tag, Err(error));
            }
        }
    }

    pub(super) fn unit(&self, nr: usize) -> Option<Arc<Unit>> {
        self.units.read().get(nr).cloned()
    }

    /// All units are gone; those with requests on a channel that the host has not let go yet are
    /// reported when it has.
    pub(super) fn remove_units<S: Sink>(&self, sink: &S) {
        let mut units = core::mem::take(&mut *self.units.write());
        units.iter().for_each(|unit| unit.set_gone());
        self.leaving.lock().append(&mut units);
        self.take_leave(sink);
    }

    /// Lets those go on that wait for room, or whose requests ended.
    fn settle<S: Sink>(&self, sink: &S) {
        let mut nr = 0;
        // No lock while the sink is called.
        while let Some(unit) = self.unit(nr) {
            if unit.take_unsettled() {
                sink.settled(&unit);
            }
            nr += 1;
        }
        self.take_leave(sink);
    }

    /// Lets those units go whose last requests have ended.
    fn take_leave<S: Sink>(&self, sink: &S) {
        let is_used = |unit: &Arc<Unit>| self.queues.read().iter().any(|q| q.has_requests_of(unit));
        let leaving = self.leaving.lock().clone();
        for unit in leaving {
            if is_used(&unit) {
                if unit.take_unsettled() {
                    sink.settled(&unit);
                }
                continue;
            }
            let known = {
                let mut leaving = self.leaving.lock();
                let at = leaving.iter().position(|other| Arc::ptr_eq(other, &unit));
                at.map(|at| leaving.swap_remove(at))
            };
            // Another processor may have been quicker.
            if known.is_some() {
                sink.removed(&unit);
            }
        }
    }

    /// See [`Unit::submit`]. The channel that interrupts this vCPU takes it, or another that has
    /// room: a frontend may have one vCPU told of all its queues.
    pub(super) fn submit<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        unit: &Arc<Unit>,
        vcpu: u32,
        io: &Io<'_>,
        request: &Request,
        tag: Tag,
    ) -> Submitted {
        let first = vcpu as usize;
        let mut nr = first;
        while let Some(queue) = self.queue_for(nr) {
            match queue.submit(bus, self.version(), unit, io, request, tag) {
                Ok(()) => {
                    if nr != first {
                        self.strayed.store(true, Ordering::Release);
                    }
                    return Submitted::Accepted;
                }
                Err(SendError::Full | SendError::Closed | SendError::Ring(_)) => {}
                Err(SendError::TooLarge | SendError::BadSpan) => {
                    return Submitted::Failed(IoError::Io);
                }
            }
            nr += 1;
            if nr - first >= self.queues.read().len() {
                break;
            }
        }
        unit.unsettle();
        Submitted::Busy
    }

    /// See [`Unit::commit`].
    pub(super) fn commit<H: Hypervisor>(&self, bus: &VmBus<H>, vcpu: u32) {
        if self.strayed.load(Ordering::Relaxed) && self.strayed.swap(false, Ordering::AcqRel) {
            self.queues.read().iter().for_each(|queue| queue.commit(bus));
        } else if let Some(queue) = self.queue_for(vcpu as usize) {
            queue.commit(bus);
        }
    }

    /// A channel, by any number; none while they are being opened.
    fn queue_for(&self, nr: usize) -> Option<Arc<Queue>> {
        // Before the conversation is over, packets of requests would be out of order.
        let queues = self.queues.read();
        queues.get(nr % queues.len().max(1)).filter(|_| self.is_ready()).cloned()
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The host signalled a channel.
    pub(super) fn on_signal<H: Hypervisor, S: Sink>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
        channel: &Channel,
    ) -> Received {
        let Some(queue) = self.queue(channel.id()) else { return Received::All };
        let received = bus.receive(channel, BUDGET, |packet| {
            self.on_packet(bus, sink, &queue, packet);
        });
        self.go_on(bus, sink);
        queue.commit(bus);
        self.settle(sink);
        received
    }

    fn on_packet<H: Hypervisor, S: Sink>(
        &self,
        bus: &VmBus<H>,
        sink: &S,
        queue: &Queue,
        packet: &Packet<'_, PagedRing>,
    ) {
        match packet.packet_type() {
            PacketType::COMPLETION => self.on_completion(bus, sink, queue, packet),
            PacketType::IN_BAND => {
                let operation = packet.payload::<Header>().map(|header| header.operation);
                match operation {
                    // Which unit it is about is not said: look at all.
                    Some(Operation::ENUMERATE_BUS | Operation::REMOVE_DEVICE) => {
                        self.machine.lock().rescan();
                    }
                    _ => self.count_bogus(bus, "a packet"),
                }
                if packet.wants_completion() {
                    let answer = OutPacket::<PageSpan> {
                        transaction_id: packet.transaction_id(),
                        is_completion: true,
                        completion_wanted: false,
                        external: External::None,
                        payload: &[],
                    };
                    // A host that gives no room for it does not get it.
                    let _ = bus.send(&queue.channel, &answer);
                }
            }
            _ => self.count_bogus(bus, "a packet"),
        }
    }

    fn count_bogus<H: Hypervisor>(&self, bus: &VmBus<H>, what: &str) {
        let count = self.bogus.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            bus.hypervisor().log(format_args!("storvsc: {what} that makes no sense ({count})"));
        }
    }

    fn on_completion<H: Hypervisor, S: Sink>(
        &self,
        bus: &VmBus<H>,
        sink: &S,
        queue: &Queue,
        packet: &Packet<'_, PagedRing>,
    ) {
        let id = packet.transaction_id();
        let Some(wanted) = queue.data_bytes(id) else {
            self.count_bogus(bus, "an answer");
            return;
        };
        let answer = Answer::of(packet);
        let outcome = answer.map_or(Outcome::Failed(IoError::Io), |a| a.outcome(wanted));
        if let Outcome::News(news) = outcome
            && asks_for_scan(news)
        {
            self.machine.lock().rescan();
        }
        let why = match outcome {
            Outcome::News(_) => Some(Repeat::News),
            Outcome::Busy => Some(Repeat::Busy),
            Outcome::Aborted => Some(Repeat::Aborted),
            Outcome::Done(_) | Outcome::Failed(_) => None,
        };
        if why.is_some_and(|why| queue.again(bus, self.version(), id, why)) {
            return;
        }
        let Some(ended) = queue.take(id) else { return };
        match ended.owner {
            Owner::Control => {
                let mut machine = self.machine.lock();
                machine.on_control(answer.as_ref());
                self.version.store(machine.version.0, Ordering::Relaxed);
                self.ready.store(machine.is_ready(), Ordering::Release);
                self.refused.fetch_or(machine.has_failed(), Ordering::Release);
            }
            // What it was sent for is answered each by itself, or late again.
            Owner::Reset => {}
            Owner::Own => {
                if self.machine.lock().on_command(outcome) {
                    self.scanned.store(true, Ordering::Release);
                }
            }
            Owner::Unit(unit, tag) => {
                let result: IoResult = match outcome {
                    Outcome::Done(moved) if moves_blocks(ended.opcode) && moved < wanted => {
                        Err(IoError::Io)
                    }
                    Outcome::Done(_) => Ok(()),
                    Outcome::Failed(error) => Err(error),
                    _ if !unit.is_present() => Err(IoError::Removed),
                    Outcome::News(_) | Outcome::Busy | Outcome::Aborted => Err(IoError::Io),
                };
                complete(sink, &unit, tag, result);
            }
        }
    }

    /// Sends what the conversation wants sent, and tells what a scan found.
    pub(super) fn go_on<H: Hypervisor, S: Sink>(self: &Arc<Self>, bus: &VmBus<H>, sink: &S) {
        if self.scanned.swap(false, Ordering::AcqRel) {
            let found = self.machine.lock().take_found();
            // None where the channel was closed since.
            if let Some(found) = found
                && self.compare(sink, &found)
            {
                let at_ns = bus.hypervisor().now_ns().saturating_add(RESCAN_NS);
                self.machine.lock().rescan_at(at_ns);
                bus.poll_at(at_ns);
            }
        }
        if self.refused.load(Ordering::Acquire) {
            self.remove_units(sink);
            self.close_channels(bus);
        }
        self.converse(bus);
    }

    // Apart from what calls the sink, which needs the stack.
    #[inline(never)]
    fn converse<H: Hypervisor>(&self, bus: &VmBus<H>) {
        let Some(queue) = self.primary() else { return };
        let mut machine = self.machine.lock();
        let sent = match machine.to_send() {
            None => return,
            Some(Send::Control(payload)) => queue.submit_control(bus, Owner::Control, &payload),
            Some(Send::Command(address, cdb, room)) => {
                let page = (room > 0).then_some((machine.page_gpfn(), room));
                queue.submit_own(bus, machine.version, address, cdb, page)
            }
        };
        match sent {
            Ok(()) => machine.sent(),
            Err(_) => bus.poll_at(bus.hypervisor().now_ns().saturating_add(RETRY_NS)),
        }
        drop(machine);
        queue.commit(bus);
    }

    /// Compares what a scan found with what is known. `true`: of a unit it could not be told
    /// whether it is still there, and the same.
    fn compare<S: Sink>(self: &Arc<Self>, sink: &S, found: &[Found]) -> bool {
        let known = self.units.read().clone();
        let mut in_doubt = false;
        for unit in &known {
            let at = found.iter().find(|(address, _)| *address == unit.address());
            let old = unit.info();
            let new = match at {
                None | Some((_, Seen::Nothing)) => None,
                // A disk that does not answer for a while is no less there.
                Some((_, Seen::Unknown)) => {
                    in_doubt = true;
                    Some(old)
                }
                Some((_, Seen::Unit(new))) => {
                    in_doubt |= old.is_identified && !new.is_identified;
                    old.updated(*new)
                }
            };
            match new {
                Some(new) if new == old => {}
                Some(new) => {
                    unit.set_info(new);
                    sink.changed(unit);
                }
                // Another disk in the same place is another disk.
                None => {
                    unit.set_gone();
                    self.units.write().retain(|other| !Arc::ptr_eq(other, unit));
                    self.leaving.lock().push(Arc::clone(unit));
                }
            }
        }
        self.take_leave(sink);
        for (address, seen) in found {
            let Seen::Unit(info) = seen else { continue };
            if self.units.read().iter().any(|unit| unit.address() == *address) {
                continue;
            }
            let unit = Arc::new(Unit::new(Arc::clone(self), *address, *info));
            self.units.write().push(Arc::clone(&unit));
            sink.added(&unit);
        }
        in_doubt
    }

    /// Looks after requests that take long. When to look again.
    pub(super) fn look<H: Hypervisor, S: Sink>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
    ) -> Option<u64> {
        let now = bus.hypervisor().now_ns();
        let mut next = self.machine.lock().look(now);
        let (mut late, mut were_late, mut nr) = (0, false, 0);
        while let Some(queue) = { self.queues.read().get(nr).cloned() } {
            let overdue = queue.look(bus, self.version(), now);
            late += overdue.late;
            were_late |= overdue.were_late;
            self.give_up(sink, overdue.orphans, IoError::Removed);
            next = next.into_iter().chain(overdue.next_ns).min();
            nr += 1;
        }
        self.take_leave(sink);
        if !were_late {
            self.reset_at_ns.store(NEVER, Ordering::Relaxed);
        }
        if late > 0 {
            self.escalate(bus, late, now);
        }
        self.go_on(bus, sink);
        next
    }

    /// Requests are late. The pages in them stay the host's until it answers or lets the channel
    /// go: first ask it to give up on all requests; if some are late after as long again, close the
    /// channel.
    fn escalate<H: Hypervisor>(&self, bus: &VmBus<H>, late: usize, now: u64) {
        let reset_at = self.reset_at_ns.load(Ordering::Relaxed);
        let is_first = reset_at == NEVER;
        let closes = !is_first && now.saturating_sub(reset_at) >= TIMEOUT_NS;
        let what = match (is_first, closes) {
            (true, _) => ", resetting the bus",
            (_, true) => ", closing the channel",
            _ => "",
        };
        let instance = self.instance();
        bus.hypervisor().log(format_args!("storvsc {instance}: {late} requests are late{what}"));
        if !is_first && !closes {
            return;
        }
        if is_first && let Some(queue) = self.primary() {
            self.reset_at_ns.store(now, Ordering::Relaxed);
            let reset = control(Operation::RESET_BUS, &());
            if queue.submit_control(bus, Owner::Reset, &reset).is_ok() {
                queue.commit(bus);
                return;
            }
        }
        self.close_channels(bus);
    }

    /// Closes all channels; each one's requests fail when the host has let it go.
    pub(super) fn close_channels<H: Hypervisor>(&self, bus: &VmBus<H>) {
        for id in self.channels() {
            // One that is closing or gone already has its event on the way.
            let _ = bus.close(id);
        }
    }

    /// What it holds of memory is the host's for a moment still.
    pub(super) fn free_page<H: Hypervisor>(&self, bus: &VmBus<H>) {
        bus.free_later(Box::new([self.machine.lock().page_gpfn()]));
    }
}
