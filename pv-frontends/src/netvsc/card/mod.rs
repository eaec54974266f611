//! A card: its channels, its conversation, what it is told and tells.

mod upwards;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hv_abi::Guid;
use hv_abi::netvsc::ndis::RSS_TABLE_ENTRIES;
use hv_abi::vmbus::{ChannelId, OfferChannel, Version};
use spin::{Mutex, RwLock};
use zerocopy::IntoBytes;

use super::Sink;
use super::config::{Config, MIN_MTU};
use super::control;
use super::counters::{Counter, Counters};
use super::machine::{Machine, Memory, News, Todo, Which};
use super::queue::Queue;
use super::slots::Pages;
use super::tx::Session;
use crate::net::{
    MacAddress, NetInfo, Rss, RxFilter, Tag, TxEnd, TxPacket, TxRefusal, TxSubmitted, Unsupported,
};
use crate::vmbus::{Channel, Hypervisor, PageSpan, Received, SendError, VmBus};
use upwards::Upwards;

/// Until a message of the card's own that found no room is tried again.
const RETRY_NS: u64 = 10_000_000;
/// No channel's number: one that went may be another's now.
const NO_CHANNEL: u32 = u32::MAX;
/// Steps of the conversation in one go: more than it has.
const MAX_STEPS: u32 = 64;

/// A network card. It stays the same when its channel is taken back and offered again.
#[derive(Debug)]
pub struct Card {
    number: u32,
    instance: Guid,
    config: Arc<Config>,
    channel_id: AtomicU32,
    machine: Mutex<Machine>,
    /// By index; the first has the card's own channel.
    queues: RwLock<Vec<Option<Arc<Queue>>>>,
    session: RwLock<Option<Arc<Session>>>,
    /// Queues the backend was told of: whoever waits on one that went is to be told, too.
    told_queues: AtomicU32,
    known: AtomicBool,
    gone: AtomicBool,
    /// Of queues that ended, and what belongs to none.
    counters: Counters,
}

impl Card {
    pub(in crate::netvsc) fn new(
        number: u32,
        offer: &OfferChannel,
        config: Arc<Config>,
        memory: Memory,
    ) -> Self {
        let mtu = config.clamp_mtu(config.mtu);
        let queues = (0..config.max_queues.clamp(1, RSS_TABLE_ENTRIES as u16)).map(|_| None);
        Self {
            number,
            instance: offer.interface_instance,
            channel_id: AtomicU32::new(offer.channel_id.0),
            machine: Mutex::new(Machine::new(memory, mtu)),
            queues: RwLock::new(queues.collect()),
            session: RwLock::new(None),
            told_queues: AtomicU32::new(1),
            known: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            counters: Counters::new(),
            config,
        }
    }

    /// Its number, in the order cards were first offered.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The host's name for it; it keeps it when it is offered again.
    #[must_use]
    pub const fn instance(&self) -> Guid {
        self.instance
    }

    /// Its address.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.machine.lock().facts.mac
    }

    /// How often something happened, on all its queues.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        let queues = self.queues.read();
        let now: u64 = queues.iter().flatten().map(|queue| queue.counters.get(counter)).sum();
        now + self.counters.get(counter)
    }

    pub(in crate::netvsc) fn channel_id(&self) -> ChannelId {
        ChannelId(self.channel_id.load(Ordering::Relaxed))
    }

    pub(in crate::netvsc) fn queue(&self, id: ChannelId) -> Option<Arc<Queue>> {
        self.queues.read().iter().flatten().find(|queue| queue.channel.id() == id).cloned()
    }

    fn primary(&self) -> Option<Arc<Queue>> {
        self.queues.read().first().cloned().flatten()
    }

    pub(in crate::netvsc) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(in crate::netvsc) fn is_settled(&self) -> bool {
        self.machine.lock().is_settled()
    }

    pub(in crate::netvsc) fn is_away(&self) -> bool {
        self.machine.lock().is_away()
    }

    fn log<H: Hypervisor>(&self, bus: &VmBus<H>, text: &str) {
        bus.hypervisor().log(format_args!("netvsc {}: {text}", self.instance));
    }

    /// See [`NetDevice::info`](crate::net::NetDevice::info).
    #[must_use]
    pub fn info(&self) -> NetInfo {
        let machine = self.machine.lock();
        machine.facts.info(&self.config, machine.mtu, machine.queues())
    }

    /// See [`NetDevice::submit`](crate::net::NetDevice::submit).
    pub fn submit<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        queue: u32,
        packet: &TxPacket<'_>,
        tag: Tag,
    ) -> TxSubmitted {
        let queues = self.queues.read();
        match pick(&queues, queue) {
            Some(queue) => queue.submit(bus, packet, tag),
            None if self.gone.load(Ordering::Acquire) => TxSubmitted::Refused(TxRefusal::Removed),
            // Until it is offered or opened again.
            None => TxSubmitted::Busy,
        }
    }

    /// See [`NetDevice::commit`](crate::net::NetDevice::commit).
    pub fn commit<H: Hypervisor>(&self, bus: &VmBus<H>, queue: u32) {
        if let Some(queue) = pick(&self.queues.read(), queue) {
            queue.commit(bus);
        }
    }

    /// See [`NetDevice::resume`](crate::net::NetDevice::resume).
    pub fn resume<H: Hypervisor>(&self, bus: &VmBus<H>, queue: u32) {
        if let Some(queue) = pick(&self.queues.read(), queue) {
            queue.resume(bus);
        }
    }

    /// Changes a setting; the host is told from the next poll on.
    fn set<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        change: impl FnOnce(&mut Machine) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        if self.is_gone() {
            return Err(Unsupported::Removed);
        }
        change(&mut self.machine.lock())?;
        bus.poll_at(0);
        Ok(())
    }

    pub(in crate::netvsc) fn set_filter<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        filter: RxFilter,
    ) -> Result<(), Unsupported> {
        self.set(bus, |machine| {
            machine.settings.filter = filter;
            machine.filter_changed();
            Ok(())
        })
    }

    pub(in crate::netvsc) fn set_rss<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        rss: &Rss<'_>,
    ) -> Result<(), Unsupported> {
        let info = self.info();
        let entries = rss.table.len();
        let is_sane = entries.is_power_of_two()
            && entries <= usize::from(info.rss_entries)
            && rss.table.iter().all(|queue| u32::from(*queue) < info.queues);
        if info.rss_entries == 0 {
            return Err(Unsupported::Never);
        }
        if !is_sane {
            return Err(Unsupported::Values);
        }
        self.set(bus, |machine| {
            machine.settings.set_rss(rss);
            machine.rss_changed();
            Ok(())
        })
    }

    pub(in crate::netvsc) fn set_coalescing<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        v4: bool,
        v6: bool,
    ) -> Result<(), Unsupported> {
        self.set(bus, |machine| {
            let can = machine.facts.coalesce();
            if v4 && !can.0 || v6 && !can.1 {
                return Err(Unsupported::Never);
            }
            if machine.settings.coalesce != (v4, v6) {
                machine.settings.coalesce = (v4, v6);
                machine.offloads_changed();
            }
            Ok(())
        })
    }

    pub(in crate::netvsc) fn set_mtu<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        mtu: u32,
    ) -> Result<(), Unsupported> {
        if mtu < MIN_MTU || mtu > self.config.clamp_mtu(u32::MAX) {
            return Err(Unsupported::Values);
        }
        self.set(bus, |machine| {
            machine.set_mtu(mtu);
            Ok(())
        })
    }
}

#[cfg(any(test, feature = "fake"))]
impl Card {
    /// Slots of packets, messages of the host's, and sections in use.
    #[must_use]
    pub fn in_use(&self) -> (usize, usize, u32) {
        let queues = self.queues.read();
        let of = queues.iter().flatten().map(|queue| queue.in_use());
        let (slots, messages) = of.fold((0, 0), |all, queue| (all.0 + queue.0, all.1 + queue.1));
        let sections = self.session.read().as_ref().map_or(0, |s| s.sections.in_use());
        (slots, messages, sections)
    }
}

/// What the driver does with it.
impl Card {
    /// Offered again.
    pub(in crate::netvsc) fn adopt(&self, offer: &OfferChannel, memory: Memory) {
        self.channel_id.store(offer.channel_id.0, Ordering::Relaxed);
        self.machine.lock().offered(memory);
    }

    /// Whether a sub-channel of this index is of use.
    pub(in crate::netvsc) fn wants_channel(&self, index: u16) -> bool {
        let queues = self.queues.read();
        index > 0 && matches!(queues.get(usize::from(index)), Some(None))
    }

    /// A channel opened; `false`: it is to be closed.
    pub(in crate::netvsc) fn opened<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        channel: Arc<Channel>,
    ) -> bool {
        let is_primary = channel.id() == self.channel_id();
        let index = if is_primary { 0 } else { channel.offer().sub_channel_index };
        if !is_primary && (!self.wants_channel(index) || self.primary().is_none()) {
            return false;
        }
        let buffer = Arc::clone(&self.machine.lock().memory.receive);
        let hv = bus.hypervisor();
        let Some(queue) = Queue::new(hv, index, channel, self.config.slots(), buffer) else {
            self.log(bus, "no memory");
            return false;
        };
        let queue = Arc::new(queue);
        if let Some(place) = self.queues.write().get_mut(usize::from(index)) {
            *place = Some(Arc::clone(&queue));
        }
        if !is_primary {
            // Whoever changes it after this sees the queue.
            queue.set_session(self.session.read().clone());
        }
        // Not under the lock: whoever has the bus's may wait for a ring, and its reader for this.
        let old_bus = bus.version().is_some_and(|version| version < Version::V4_0);
        let mut machine = self.machine.lock();
        if is_primary {
            self.counters.add_shared(Counter::Sessions, 1);
            machine.opened(old_bus);
        }
        machine.queue_changed(index, true);
        true
    }

    /// A channel is closed, or gone: its packets are lost.
    pub(in crate::netvsc) fn remove_queue<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
        id: ChannelId,
    ) {
        let queue = {
            let mut queues = self.queues.write();
            let is_it = |place: &&mut Option<Arc<Queue>>| {
                place.as_ref().is_some_and(|queue| queue.channel.id() == id)
            };
            queues.iter_mut().find(is_it).and_then(Option::take)
        };
        let Some(queue) = queue else { return };
        let tags = queue.end(bus);
        self.counters.absorb(&queue.counters);
        self.machine.lock().queue_changed(queue.index, false);
        if !self.known.load(Ordering::Acquire) {
            return;
        }
        for tag in tags {
            sink.transmitted(self, queue.index.into(), tag, TxEnd::Lost);
        }
        self.settle(sink, queue.index);
    }

    pub(in crate::netvsc) fn closed(&self) {
        *self.session.write() = None;
        self.machine.lock().closed();
    }

    pub(in crate::netvsc) fn not_opened(&self, again: bool) {
        self.machine.lock().not_opened(again);
    }

    /// The channel is gone, and the host takes the others back, too. What it had of memory may still
    /// be written to for a moment.
    pub(in crate::netvsc) fn rescinded<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
    ) {
        let ids: Vec<_> = {
            let queues = self.queues.read();
            queues.iter().flatten().map(|queue| queue.channel.id()).collect()
        };
        for id in ids {
            self.remove_queue(bus, sink, id);
        }
        self.channel_id.store(NO_CHANNEL, Ordering::Relaxed);
        *self.session.write() = None;
        let until = bus.hypervisor().now_ns().saturating_add(self.config.linger_ns);
        let mut machine = self.machine.lock();
        machine.rescinded(until);
        let memory = machine.memory.clone();
        drop(machine);
        memory.receive.free(bus);
        memory.send.free(bus);
        bus.free_later(alloc::boxed::Box::new([memory.page.gpfn]));
    }

    pub(in crate::netvsc) fn with_machine(&self, change: impl FnOnce(&mut Machine)) {
        change(&mut self.machine.lock());
    }

    /// Closes the sub-channels, or all channels.
    pub(in crate::netvsc) fn close_channels<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        with_primary: bool,
    ) {
        let queues: Vec<_> = self.queues.read().iter().flatten().cloned().collect();
        for queue in queues.iter().rev().filter(|queue| with_primary || queue.index > 0) {
            // One that is closing or gone already has its event on the way.
            let _ = bus.close(queue.channel.id());
        }
    }

    /// The host signalled a channel.
    pub(in crate::netvsc) fn on_signal<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
        queue: &Queue,
    ) -> Received {
        let received = queue.run(bus, &Upwards { card: self, sink, queue, now_ns: now(bus) });
        // Sub-channels have no part in the conversation.
        if queue.index == 0 {
            self.go_on(bus, sink);
        }
        received
    }

    /// What was put off, and time-outs. When to look again.
    pub(in crate::netvsc) fn look<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
    ) -> Option<u64> {
        let mut nr = 0;
        while let Some(place) = { self.queues.read().get(nr).cloned() } {
            if let Some(queue) = place.filter(|queue| queue.is_due()) {
                let above = Upwards { card: self, sink, queue: &queue, now_ns: now(bus) };
                if queue.run(bus, &above) == Received::More {
                    queue.resume(bus);
                }
            }
            nr += 1;
        }
        if self.machine.lock().is_late(now(bus)) {
            self.counters.add_shared(Counter::TimedOut, 1);
        }
        self.go_on(bus, sink);
        self.machine.lock().deadline_ns()
    }

    /// Does what the conversation wants done.
    pub(in crate::netvsc) fn go_on<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
    ) {
        for _ in 0..MAX_STEPS {
            let mut machine = self.machine.lock();
            let now_ns = now(bus);
            let todo = machine.next(&self.config, now_ns);
            let sent = match &todo {
                Todo::Nothing => {
                    if machine.is_gone() {
                        self.gone.store(true, Ordering::Release);
                    }
                    if let Some(deadline_ns) = machine.deadline_ns() {
                        bus.deadline_at(deadline_ns);
                    }
                    return;
                }
                Todo::Nvsp { number, message, is_answered } => {
                    let bytes = machine.facts.version.message_bytes();
                    let message = message.as_bytes();
                    let message = message.get(..bytes).unwrap_or_default();
                    self.send(bus, *number, message, None, *is_answered)
                }
                Todo::Rndis { number, bytes } => {
                    let gpfn = machine.memory.page.gpfn;
                    let page = PageSpan { gpfn, offset: 0, bytes: *bytes };
                    let message = control::packet();
                    let message = message.as_bytes();
                    let length = machine.facts.version.message_bytes();
                    let message = message.get(..length).unwrap_or_default();
                    self.send(bus, *number, message, Some(page), true)
                }
                _ => {
                    // Others are called: without the lock.
                    drop(machine);
                    self.carry_out(bus, sink, todo);
                    self.machine.lock().carried_out();
                    continue;
                }
            };
            match sent {
                Ok(()) => machine.sent(&todo, now_ns),
                Err(_) => {
                    machine.not_sent();
                    bus.poll_at(now_ns.saturating_add(RETRY_NS));
                    return;
                }
            }
        }
        bus.poll_at(0);
    }

    fn send<H: Hypervisor>(
        &self,
        bus: &VmBus<H>,
        number: u32,
        message: &[u8],
        page: Option<PageSpan>,
        is_answered: bool,
    ) -> Result<(), SendError> {
        let queue = self.primary().ok_or(SendError::Closed)?;
        queue.send_control(bus, number, message, page, is_answered)
    }

    fn carry_out<H: Hypervisor, S: Sink<Arc<Self>>>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        sink: &S,
        todo: Todo,
    ) {
        match todo {
            Todo::CreateGpadl(which) => {
                let memory = self.machine.lock().memory.clone();
                let pages: &Pages = match which {
                    Which::Receive => &memory.receive,
                    Which::Send => &memory.send,
                };
                if bus.create_gpadl(self.channel_id(), &pages.gpfns()).is_err() {
                    self.machine.lock().gpadl_refused();
                }
            }
            Todo::TeardownGpadl(id) => {
                if bus.teardown_gpadl(id).is_err() {
                    // It is gone already.
                    self.machine.lock().gpadl_torndown();
                }
            }
            Todo::Open => {
                let id = self.channel_id();
                if let Err(error) = bus.open(id, &self.config.open_params(0)) {
                    self.log(bus, "cannot open its channel");
                    bus.hypervisor().log(format_args!("netvsc {}: {error:?}", self.instance));
                    self.machine.lock().not_opened(false);
                }
            }
            Todo::Close => self.close_channels(bus, true),
            Todo::Session(session) => self.set_session(sink, session),
            Todo::Tell(news) => self.tell(sink, news),
            Todo::Log(text) => self.log(bus, text),
            Todo::Nothing | Todo::Nvsp { .. } | Todo::Rndis { .. } => {}
        }
    }

    fn set_session<S: Sink<Arc<Self>>>(self: &Arc<Self>, sink: &S, session: Option<Arc<Session>>) {
        let mut place = self.session.write();
        place.clone_from(&session);
        let queues: Vec<_> = self.queues.read().iter().flatten().cloned().collect();
        for queue in &queues {
            queue.set_session(session.clone());
        }
        drop(place);
        if session.is_some() && self.known.load(Ordering::Acquire) {
            queues.iter().for_each(|queue| self.settle(sink, queue.index));
        }
    }

    fn tell<S: Sink<Arc<Self>>>(self: &Arc<Self>, sink: &S, news: News) {
        let queues = self.info().queues;
        self.told_queues.fetch_max(queues, Ordering::AcqRel);
        match news {
            News::Added => {
                self.known.store(true, Ordering::Release);
                sink.added(self);
            }
            News::Changed => sink.changed(self),
            News::Removed => {
                self.known.store(false, Ordering::Release);
                self.gone.store(true, Ordering::Release);
                sink.removed(self);
            }
        }
        self.machine.lock().told_backend();
    }

    /// A queue goes on; with the first those whose channels went.
    fn settle<S: Sink<Arc<Self>>>(self: &Arc<Self>, sink: &S, index: u16) {
        sink.settled(self, index.into());
        if index == 0 {
            for nr in 1..self.told_queues.load(Ordering::Acquire) {
                let is_its_own = matches!(self.queues.read().get(nr as usize), Some(Some(_)));
                if !is_its_own {
                    sink.settled(self, nr);
                }
            }
        }
    }
}

fn now<H: Hypervisor>(bus: &VmBus<H>) -> u64 {
    bus.hypervisor().now_ns()
}

/// The queue of a number, or the first.
fn pick(queues: &[Option<Arc<Queue>>], nr: u32) -> Option<&Queue> {
    let at = |nr: usize| queues.get(nr).and_then(Option::as_deref);
    at(nr as usize).or_else(|| at(0))
}
