//! The bus: its state, and what drivers ask of it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hv_abi::vmbus::gpadl::GpadlTeardown;
use hv_abi::vmbus::message::{ModifyChannel, RelidReleased};
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpadlId, NtStatus, RingControl, UserDefined, Version,
};
use spin::{Mutex, RwLock};
use translate::platform::PageWords;

use super::channel::RingPair;
use super::connection::{Connection, Pages};
use super::gpadl::{Gpadl, GpadlState, MAX_PAGES, Sending};
use super::outbox::Outbox;
use super::ring::{Incoming, Outgoing, PagedRing, RingError};
use super::state::{ChannelSet, ChannelState, Rings, State};
use super::{Channel, Counter, Counters, Driver, Event, Hypervisor, Shared};

/// How long the host may take for each answer to an open.
const OPEN_TIMEOUT_NS: u64 = 60_000_000_000;
/// How long pages of a rescinded channel are kept: the host may be in the middle of a ring still.
const LIMBO_NS: u64 = 1_000_000_000;

/// What [`VmBus::open`] is told.
#[derive(Clone, Copy, Debug)]
pub struct OpenParams {
    /// Data pages of the ring towards the host.
    pub outgoing_pages: u32,
    /// Data pages of the ring from the host.
    pub incoming_pages: u32,
    /// Virtual processor the host's signals are to come to.
    pub target_vp: u32,
    /// For the device.
    pub user_data: UserDefined,
}

/// Why a channel did not open, or a GPADL was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is no such channel (any more).
    NoChannel,
    /// It is open, being opened or being closed.
    NotClosed,
    /// A ring is empty, or both have too many pages.
    Size,
    /// No memory.
    NoMemory,
    /// The host refused.
    Refused(NtStatus),
    /// The host did not answer.
    TimedOut,
}

/// Why a request about a channel or GPADL was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseError {
    /// There is none of this number.
    Unknown,
    /// Not in this state.
    State,
    /// The protocol version has no such message.
    Version,
}

/// The VMBus client.
pub struct VmBus<H: Hypervisor> {
    pub(super) hv: H,
    pub(super) drivers: Box<[Arc<dyn Driver<H>>]>,
    pub(super) state: Mutex<State>,
    /// Open channels, by number.
    pub(super) open: RwLock<Vec<Arc<Channel>>>,
    /// Words of event flags that channels were opened in.
    pub(super) flag_words: AtomicUsize,
    /// Where messages go; 0 while there is nowhere. Apart from the state, so that a crash finds it
    /// whatever lock is held.
    pub(super) message_connection: AtomicU32,
    /// The host answered UNLOAD.
    pub(super) unloaded: AtomicBool,
    pub(super) dispatching: AtomicBool,
    /// Channels to be read again.
    again: ChannelSet,
    /// Channels whose rings are corrupt.
    pub(super) corrupt: ChannelSet,
    /// When [`Self::poll`] has something to do.
    next_poll_ns: AtomicU64,
    pub(super) counters: Counters,
}

impl<H: Hypervisor> core::fmt::Debug for VmBus<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmBus").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl<H: Hypervisor> VmBus<H> {
    /// A bus that is not connected. Offers go to the first driver that wants them.
    #[must_use]
    pub fn new(hv: H, drivers: Box<[Arc<dyn Driver<H>>]>) -> Self {
        Self {
            hv,
            drivers,
            state: Mutex::new(State {
                connection: Connection::Disconnected,
                pages: None,
                outbox: Outbox::default(),
                events: VecDeque::with_capacity(64),
                offers: BTreeMap::new(),
                gpadls: BTreeMap::new(),
                limbo: VecDeque::new(),
                next_gpadl: 0x1_0000,
                next_open: 0,
            }),
            open: RwLock::new(Vec::new()),
            flag_words: AtomicUsize::new(0),
            message_connection: AtomicU32::new(0),
            unloaded: AtomicBool::new(false),
            dispatching: AtomicBool::new(false),
            again: ChannelSet::new(),
            corrupt: ChannelSet::new(),
            next_poll_ns: AtomicU64::new(u64::MAX),
            counters: Counters::new(),
        }
    }

    /// Ring 0.
    pub const fn hypervisor(&self) -> &H {
        &self.hv
    }

    /// What went wrong so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The version in use, once connected.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.state.lock().version()
    }

    /// An open channel.
    #[must_use]
    pub fn channel(&self, id: ChannelId) -> Option<Arc<Channel>> {
        let open = self.open.read();
        let at = open.binary_search_by_key(&id, |channel| channel.id()).ok()?;
        open.get(at).cloned()
    }

    pub(super) fn publish(&self, channel: &Arc<Channel>) {
        self.flag_words.fetch_max(channel.id().0 as usize / 64 + 1, Ordering::Relaxed);
        let mut open = self.open.write();
        if let Err(at) = open.binary_search_by_key(&channel.id(), |channel| channel.id()) {
            open.insert(at, Arc::clone(channel));
        }
    }

    pub(super) fn unpublish(&self, id: ChannelId) {
        let mut open = self.open.write();
        if let Ok(at) = open.binary_search_by_key(&id, |channel| channel.id()) {
            open.remove(at);
        }
    }

    /// When [`Self::poll`] is to be called next, as [`Hypervisor::now_ns`] counts; `u64::MAX`:
    /// not until something happens. To be looked at after every other call.
    #[must_use]
    pub fn next_poll_ns(&self) -> u64 {
        self.next_poll_ns.load(Ordering::Relaxed)
    }

    /// What is to be done was written down before; see [`Self::poll`].
    pub(crate) fn poll_at(&self, ns: u64) {
        self.next_poll_ns.fetch_min(ns, Ordering::AcqRel);
    }

    /// As [`Self::poll_at`], cheaper, for deadlines that [`Driver::poll`] finds under a lock that
    /// the caller holds now: whoever resets the time looks for them after.
    pub(crate) fn deadline_at(&self, ns: u64) {
        if self.next_poll_ns.load(Ordering::Relaxed) > ns {
            self.poll_at(ns);
        }
    }

    /// Reads a channel again soon.
    pub(super) fn again(&self, id: ChannelId) {
        self.again.insert(id);
        self.poll_at(0);
    }

    /// Does what was put off: events of requests, messages the host had no room for, time-outs,
    /// channels that were not read to their end, [`Driver::poll`].
    pub fn poll(&self) {
        // Acquire, and no plain store: what others wrote down before they set the time is seen below.
        self.next_poll_ns.swap(u64::MAX, Ordering::AcqRel);
        self.check_times();
        self.corrupt.drain(|id| self.close_corrupt(id));
        self.dispatch();
        self.again.drain(|id| self.on_signal(id));
        for driver in &self.drivers {
            if let Some(ns) = driver.poll(self) {
                self.poll_at(ns);
            }
        }
    }

    fn check_times(&self) {
        let now = self.hv.now_ns();
        let mut state = self.state.lock();
        self.check_negotiation(&mut state, now);
        while let Some(&(until, _)) = state.limbo.front() {
            if until > now {
                self.poll_at(until);
                break;
            }
            if let Some((_, gpfns)) = state.limbo.pop_front() {
                gpfns.iter().for_each(|&gpfn| self.hv.free(gpfn));
            }
        }
        let mut late = Vec::new();
        for (&id, entry) in &mut state.offers {
            let Some(rings) = &entry.rings else { continue };
            let cancelled = match &mut entry.state {
                ChannelState::MakingGpadl { cancelled }
                | ChannelState::Opening { cancelled, .. } => cancelled,
                _ => continue,
            };
            if rings.deadline_ns > now {
                self.poll_at(rings.deadline_ns);
            } else if !*cancelled {
                *cancelled = true;
                late.push((entry.driver, id));
            }
        }
        for (driver, id) in late {
            self.counters.add(&self.hv, Counter::TimedOut, format_args!("open of {}", id.0));
            state.event(driver, Event::OpenFailed(id, OpenError::TimedOut));
        }
        self.finish(state);
    }

    pub(super) fn next_event(&self) -> Option<(Option<usize>, Event)> {
        self.state.lock().events.pop_front()
    }

    pub(super) fn has_events(&self) -> bool {
        !self.state.lock().events.is_empty()
    }

    /// Opens a channel: [`Event::Opened`] or [`Event::OpenFailed`] follows.
    ///
    /// # Errors
    /// [`OpenError`]; no event follows.
    pub fn open(&self, id: ChannelId, params: &OpenParams) -> Result<(), OpenError> {
        let mut state = self.state.lock();
        let interrupt_page = state.pages.as_ref().and_then(Pages::interrupt_page);
        let entry = state.offers.get(&id).filter(|e| !e.rescinded).ok_or(OpenError::NoChannel)?;
        if entry.state != ChannelState::Closed {
            return Err(OpenError::NotClosed);
        }
        let driver = entry.driver.ok_or(OpenError::NoChannel)?;
        let offer = entry.offer;
        let (outgoing, incoming) = (params.outgoing_pages as usize, params.incoming_pages as usize);
        if outgoing == 0 || incoming == 0 || outgoing.saturating_add(incoming) > MAX_PAGES - 2 {
            return Err(OpenError::Size);
        }
        let (rings, gpfns) = self.make_rings(outgoing, incoming)?;
        let gpadl = state.new_gpadl();
        let Some(sending) = Sending::new(gpadl, id, gpfns.clone()) else {
            gpfns.iter().for_each(|&gpfn| self.hv.free(gpfn));
            return Err(OpenError::Size);
        };
        let made = Gpadl { channel: id, is_ring: true, state: GpadlState::Creating };
        state.gpadls.insert(gpadl, made);
        state.outbox.push_gpadl(sending);
        let deadline_ns = self.hv.now_ns().saturating_add(OPEN_TIMEOUT_NS);
        self.poll_at(deadline_ns);
        let channel = Channel::new(offer, driver, interrupt_page, params.target_vp, rings);
        if let Some(entry) = state.offers.get_mut(&id) {
            entry.state = ChannelState::MakingGpadl { cancelled: false };
            entry.rings = Some(Rings {
                channel: Arc::new(channel),
                gpadl,
                gpfns,
                downstream_page: params.outgoing_pages + 1,
                user_data: params.user_data,
                deadline_ns,
            });
        }
        self.finish(state);
        Ok(())
    }

    fn make_rings(
        &self,
        outgoing: usize,
        incoming: usize,
    ) -> Result<(RingPair, Box<[u64]>), OpenError> {
        let mut gpfns = Vec::with_capacity(outgoing + incoming + 2);
        let rings = self.ring_memory(outgoing, &mut gpfns).and_then(|out| {
            let memory = self.ring_memory(incoming, &mut gpfns)?;
            Ok((Outgoing::new(out).map_err(size)?, Incoming::new(memory).map_err(size)?))
        });
        match rings {
            Ok(rings) => Ok((rings, gpfns.into_boxed_slice())),
            Err(error) => {
                gpfns.iter().for_each(|&gpfn| self.hv.free(gpfn));
                Err(error)
            }
        }
    }

    fn ring_memory(&self, pages: usize, gpfns: &mut Vec<u64>) -> Result<PagedRing, OpenError> {
        let control: Shared<RingControl> = self.hv.allocate().ok_or(OpenError::NoMemory)?;
        gpfns.push(control.gpfn);
        let mut data = Vec::with_capacity(pages);
        for _ in 0..pages {
            let page: Shared<PageWords> = self.hv.allocate().ok_or(OpenError::NoMemory)?;
            gpfns.push(page.gpfn);
            data.push(page.view);
        }
        Ok(PagedRing::new(control.view, data.into_boxed_slice()))
    }

    /// Closes a channel: [`Event::Closed`] follows. One that is being opened is closed as soon as
    /// the host has answered. The driver takes its GPADLs back first.
    ///
    /// # Errors
    /// [`CloseError`]; no event follows.
    pub fn close(&self, id: ChannelId) -> Result<(), CloseError> {
        let mut state = self.state.lock();
        let entry = state.offers.get_mut(&id).ok_or(CloseError::Unknown)?;
        if entry.rescinded {
            return Err(CloseError::State);
        }
        match &mut entry.state {
            ChannelState::MakingGpadl { cancelled } | ChannelState::Opening { cancelled, .. } => {
                *cancelled = true;
            }
            ChannelState::Open => self.shut(&mut state, id, Event::Closed(id)),
            ChannelState::Closed | ChannelState::TearingDown(_) => return Err(CloseError::State),
        }
        self.finish(state);
        Ok(())
    }

    /// Shuts an open channel and takes its rings back.
    pub(super) fn shut(&self, state: &mut State, id: ChannelId, event: Event) {
        self.unpublish(id);
        if let Some(rings) = state.offers.get(&id).and_then(|entry| entry.rings.as_ref()) {
            rings.channel.shut();
        }
        state.tear_down(id, true, Some(event));
    }

    /// The driver knows that the channel is gone: its pages and its number are given back.
    #[inline(never)]
    pub(super) fn release(&self, id: ChannelId) {
        let mut state = self.state.lock();
        if !state.offers.get(&id).is_some_and(|entry| entry.rescinded) {
            return;
        }
        let Some(entry) = state.offers.remove(&id) else { return };
        if let Some(rings) = entry.rings {
            self.put_in_limbo(&mut state, rings.gpfns);
        }
        state.gpadls.retain(|_, gpadl| gpadl.channel != id);
        state.outbox.push(&RelidReleased { channel_id: id, ..RelidReleased::empty() });
        self.finish(state);
    }

    fn put_in_limbo(&self, state: &mut State, gpfns: Box<[u64]>) {
        let until = self.hv.now_ns().saturating_add(LIMBO_NS);
        state.limbo.push_back((until, gpfns));
        self.poll_at(until);
    }

    /// Gives pages back after a while, which the host of a rescinded channel may still write to.
    pub(crate) fn free_later(&self, gpfns: Box<[u64]>) {
        self.put_in_limbo(&mut self.state.lock(), gpfns);
    }

    /// Makes a driver's pages known to the host, as one buffer, for a channel of its own:
    /// [`Event::GpadlCreated`] follows.
    ///
    /// # Errors
    /// [`OpenError`]; no event follows.
    pub fn create_gpadl(&self, channel: ChannelId, gpfns: &[u64]) -> Result<GpadlId, OpenError> {
        let mut state = self.state.lock();
        let entry = state.offers.get(&channel).filter(|entry| !entry.rescinded);
        entry.ok_or(OpenError::NoChannel)?;
        let id = state.new_gpadl();
        let sending = Sending::new(id, channel, gpfns.into()).ok_or(OpenError::Size)?;
        state.gpadls.insert(id, Gpadl { channel, is_ring: false, state: GpadlState::Creating });
        state.outbox.push_gpadl(sending);
        self.finish(state);
        Ok(id)
    }

    /// Takes a driver's GPADL back: [`Event::GpadlTorndown`] follows.
    ///
    /// # Errors
    /// [`CloseError`]; no event follows.
    pub fn teardown_gpadl(&self, id: GpadlId) -> Result<(), CloseError> {
        let mut state = self.state.lock();
        let gpadl = state.gpadls.get_mut(&id).ok_or(CloseError::Unknown)?;
        if gpadl.is_ring || gpadl.state != GpadlState::Created {
            return Err(CloseError::State);
        }
        gpadl.state = GpadlState::TearingDown;
        let channel_id = gpadl.channel;
        state.outbox.push(&GpadlTeardown { channel_id, gpadl_id: id, ..GpadlTeardown::empty() });
        self.finish(state);
        Ok(())
    }

    /// Asks the host to signal an open channel on another virtual processor (4.1 and later):
    /// [`Event::Retargeted`] follows. Until then, and shortly after, signals may come to either.
    ///
    /// # Errors
    /// [`CloseError`]; no event follows.
    pub fn retarget(&self, id: ChannelId, target_vp: u32) -> Result<(), CloseError> {
        let mut state = self.state.lock();
        let version = state.version().ok_or(CloseError::State)?;
        if version < Version::V4_1 {
            return Err(CloseError::Version);
        }
        let entry = state.offers.get_mut(&id).ok_or(CloseError::Unknown)?;
        if entry.state != ChannelState::Open || entry.rescinded || entry.retargeting.is_some() {
            return Err(CloseError::State);
        }
        let driver = entry.driver;
        if version >= Version::V5_3 {
            entry.retargeting = Some(target_vp);
        } else {
            // Not answered below 5.3.
            if let Some(rings) = &entry.rings {
                rings.channel.set_target_vp(target_vp);
            }
            state.event(driver, Event::Retargeted(id, NtStatus::SUCCESS));
        }
        state.outbox.push(&ModifyChannel { channel_id: id, target_vp, ..ModifyChannel::empty() });
        self.finish(state);
        Ok(())
    }
}

/// Sizes were checked; what is left is that.
fn size(_: RingError) -> OpenError {
    OpenError::Size
}
