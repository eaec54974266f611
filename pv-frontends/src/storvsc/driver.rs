//! The driver of all storage controllers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, OfferChannel, UserDefined};
use spin::RwLock;

use super::controller::Controller;
use super::machine::{Machine, PACKET_OVERHEAD_BYTES};
use super::queue::Queue;
use super::scan::Bounds;
use super::unit::{Unit, UnitAddress};
use crate::blkback::{IoError, IoResult, Tag};
use crate::vmbus::{Channel, Driver, Event, Hypervisor, OpenError, OpenParams, Received, VmBus};

/// How often a controller's channel is opened again after it broke.
const MAX_REOPENS: u8 = 3;

/// Who wants to know of units and their requests. Called on any virtual processor, with none of
/// this driver's locks held; [`Unit::submit`] and [`Unit::commit`] may be called from all of it,
/// what opens, closes or reads channels from none.
pub trait Sink: Send + Sync + 'static {
    /// A unit is there.
    fn added(&self, unit: &Arc<Unit>);
    /// [`Unit::info`] changed: its size, or whether it may be written to.
    fn changed(&self, unit: &Arc<Unit>);
    /// A unit is gone, and so are its requests: each was completed, or fails with its channel,
    /// which the host has let go. Before that it takes no more.
    fn removed(&self, unit: &Arc<Unit>);
    /// A request ended.
    fn completed(&self, unit: &Arc<Unit>, tag: Tag, result: IoResult);
    /// After completions, and when there is room again after a `Busy`.
    fn settled(&self, unit: &Arc<Unit>);
}

impl<T: Sink> Sink for Arc<T> {
    fn added(&self, unit: &Arc<Unit>) {
        T::added(self, unit);
    }
    fn changed(&self, unit: &Arc<Unit>) {
        T::changed(self, unit);
    }
    fn removed(&self, unit: &Arc<Unit>) {
        T::removed(self, unit);
    }
    fn completed(&self, unit: &Arc<Unit>, tag: Tag, result: IoResult) {
        T::completed(self, unit, tag, result);
    }
    fn settled(&self, unit: &Arc<Unit>) {
        T::settled(self, unit);
    }
}

/// What controllers may use. In pages, a channel takes `outgoing_pages + incoming_pages + 2`, and
/// one for each 128 requests, two of its own among them; on the heap, for each request about 120
/// bytes and 8 for each page of `max_transfer_bytes`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data pages of rings towards the host.
    pub outgoing_pages: u32,
    /// Data pages of rings from the host.
    pub incoming_pages: u32,
    /// Requests a channel takes at once.
    pub requests: u16,
    /// Most bytes of a request; hosts may allow less.
    pub max_transfer_bytes: u32,
    /// Virtual processors that channels are bound to, in turn; not empty.
    pub vps: Vec<u32>,
    /// Most sub-channels of a controller.
    pub max_sub_channels: u16,
}

impl Default for Config {
    /// One processor; 64 requests of up to 256 KiB.
    fn default() -> Self {
        Self {
            outgoing_pages: 8,
            incoming_pages: 2,
            requests: 64,
            max_transfer_bytes: 256 << 10,
            vps: alloc::vec![0],
            max_sub_channels: 0,
        }
    }
}

impl Config {
    /// Pages of a request of the largest size that begins anywhere in a page.
    fn max_segments(&self) -> usize {
        let room = self.outgoing_pages as usize * PAGE_SIZE / 2;
        let fits = room.saturating_sub(PACKET_OVERHEAD_BYTES as usize) / 8;
        (self.max_transfer_bytes as usize / PAGE_SIZE + 1).min(fits)
    }

    fn bounds(&self) -> Bounds {
        let segments = self.max_segments();
        let bytes = (segments.saturating_sub(1) * PAGE_SIZE).max(PAGE_SIZE);
        Bounds {
            max_transfer_bytes: self.max_transfer_bytes.min(bytes as u32),
            max_segments: u16::try_from(segments).unwrap_or(u16::MAX),
            depth: self.requests,
        }
    }

    fn open_params(&self, sub_channel_index: u16) -> OpenParams {
        let vp = self.vps.get(usize::from(sub_channel_index) % self.vps.len().max(1));
        OpenParams {
            outgoing_pages: self.outgoing_pages,
            incoming_pages: self.incoming_pages,
            target_vp: vp.copied().unwrap_or_default(),
            user_data: UserDefined::ZERO,
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct StorVsc<S> {
    sink: S,
    config: Config,
    controllers: RwLock<Vec<Arc<Controller>>>,
}

impl<S: Sink> StorVsc<S> {
    /// A driver that tells `sink`.
    #[must_use]
    pub const fn new(sink: S, config: Config) -> Self {
        Self { sink, config, controllers: RwLock::new(Vec::new()) }
    }

    /// Who is told.
    pub const fn sink(&self) -> &S {
        &self.sink
    }

    /// Whether every controller that was offered so far is initialized and scanned, or cannot be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.controllers.read().iter().all(|controller| controller.machine.lock().is_settled())
    }

    /// Packets of the host's that made no sense.
    #[must_use]
    pub fn bogus(&self) -> u64 {
        let controllers = self.controllers.read();
        controllers.iter().map(|controller| controller.bogus.load(Ordering::Relaxed)).sum()
    }

    /// The controller a channel belongs to.
    fn controller(&self, id: ChannelId) -> Option<Arc<Controller>> {
        let controllers = self.controllers.read();
        let has = |controller: &&Arc<Controller>| {
            let is_its = controller.offer.channel_id == id;
            is_its && !controller.gone.load(Ordering::Relaxed) || controller.queue(id).is_some()
        };
        controllers.iter().find(has).cloned()
    }

    fn by_instance(&self, offer: &OfferChannel) -> Option<Arc<Controller>> {
        let controllers = self.controllers.read();
        let is_it = |controller: &&Arc<Controller>| {
            controller.instance() == offer.interface_instance
                && !controller.gone.load(Ordering::Relaxed)
        };
        controllers.iter().find(is_it).cloned()
    }

    fn offered<H: Hypervisor>(&self, bus: &VmBus<H>, offer: &OfferChannel) {
        if offer.sub_channel_index == 0 {
            let Some(page) = bus.hypervisor().allocate() else {
                bus.hypervisor().log(format_args!("storvsc: no memory"));
                return;
            };
            let only = ide_unit(offer);
            let bounds = self.config.bounds();
            let machine = Machine::new(page, only, self.config.max_sub_channels, bounds);
            let controller = Arc::new(Controller::new(*offer, machine));
            self.controllers.write().push(controller);
        } else if self.by_instance(offer).is_none() {
            return;
        }
        self.open(bus, offer);
    }

    fn open<H: Hypervisor>(&self, bus: &VmBus<H>, offer: &OfferChannel) {
        let params = self.config.open_params(offer.sub_channel_index);
        if let Err(error) = bus.open(offer.channel_id, &params) {
            self.not_opened(bus, offer.channel_id, error);
        }
    }

    fn not_opened<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId, error: OpenError) {
        bus.hypervisor().log(format_args!("storvsc: channel {} does not open: {error:?}", id.0));
        if let Some(controller) = self.controller(id) {
            controller.machine.lock().fail();
            controller.remove_units(&self.sink);
        }
    }

    fn opened<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(channel) = bus.channel(id) else { return };
        let Some(controller) = self.by_instance(channel.offer()) else { return };
        let is_primary = controller.offer.channel_id == id;
        if !is_primary && controller.primary().is_none() {
            // The primary one closed meanwhile; its sub-channels go with it.
            let _ = bus.close(id);
            return;
        }
        let (requests, spans) = (self.config.requests, self.config.max_segments());
        let Some(queue) = Queue::new(bus.hypervisor(), channel, requests, spans) else {
            bus.hypervisor().log(format_args!("storvsc: no memory"));
            let _ = bus.close(id);
            return;
        };
        controller.add_queue(queue);
        if is_primary {
            controller.machine.lock().start();
            controller.go_on(bus, &self.sink);
        }
    }

    fn closed<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(controller) = self.controller(id) else { return };
        controller.remove_queue(bus, &self.sink, id, IoError::Io);
        if controller.offer.channel_id != id || controller.gone.load(Ordering::Relaxed) {
            self.forget(bus, &controller);
            return;
        }
        controller.close_channels(bus);
        let is_refused = controller.refused.load(Ordering::Acquire);
        if !is_refused && controller.reopened.fetch_add(1, Ordering::Relaxed) < MAX_REOPENS {
            self.open(bus, &controller.offer);
        } else {
            controller.machine.lock().fail();
            controller.remove_units(&self.sink);
        }
    }

    fn rescinded<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(controller) = self.controller(id) else { return };
        if controller.offer.channel_id == id {
            // First nobody submits any more, then what there was fails.
            for nr in 0.. {
                let Some(unit) = controller.unit(nr) else { break };
                unit.set_gone();
            }
        }
        let error = if controller.offer.channel_id == id { IoError::Removed } else { IoError::Io };
        controller.remove_queue(bus, &self.sink, id, error);
        if controller.offer.channel_id == id {
            controller.gone.store(true, Ordering::Relaxed);
            controller.remove_units(&self.sink);
        }
        self.forget(bus, &controller);
    }

    /// Forgets a controller that is gone, with the last of its channels.
    fn forget<H: Hypervisor>(&self, bus: &VmBus<H>, controller: &Arc<Controller>) {
        if !controller.gone.load(Ordering::Relaxed) || !controller.channels().is_empty() {
            return;
        }
        let mut controllers = self.controllers.write();
        let at = controllers.iter().position(|other| Arc::ptr_eq(other, controller));
        let known = at.map(|at| controllers.remove(at)).is_some();
        drop(controllers);
        if known {
            controller.free_page(bus);
        }
    }
}

/// The unit of an IDE port; `None` for SCSI controllers. The path is 0, as Linux has it: hosts do not
/// look at it.
fn ide_unit(offer: &OfferChannel) -> Option<UnitAddress> {
    let port = super::ide_port(offer)?;
    Some(UnitAddress { path: 0, target: port.device as u8, lun: 0 })
}

impl<H: Hypervisor, S: Sink> Driver<H> for StorVsc<S> {
    fn wants(&self, offer: &OfferChannel) -> bool {
        matches!(offer.interface_type, interface::SCSI | interface::IDE)
    }

    fn on_event(&self, bus: &VmBus<H>, event: &Event) {
        match event {
            Event::Offered(offer) => self.offered(bus, offer),
            Event::Opened(id) => self.opened(bus, *id),
            Event::OpenFailed(id, error) => self.not_opened(bus, *id, *error),
            Event::Broken(id) => {
                if let Some(controller) = self.controller(*id)
                    && controller.offer.channel_id == *id
                {
                    controller.close_channels(bus);
                }
            }
            Event::Closed(id) => self.closed(bus, *id),
            Event::Rescinded(id) => self.rescinded(bus, *id),
            Event::Connected(_)
            | Event::OffersDelivered
            | Event::Disconnected
            | Event::GpadlCreated(..)
            | Event::GpadlTorndown(..)
            | Event::Retargeted(..) => {}
        }
    }

    fn on_signal(&self, bus: &VmBus<H>, channel: &Channel) -> Received {
        match self.controller(channel.id()) {
            Some(controller) => controller.on_signal(bus, &self.sink, channel),
            None => Received::All,
        }
    }

    fn poll(&self, bus: &VmBus<H>) -> Option<u64> {
        let (mut nr, mut next): (usize, Option<u64>) = (0, None);
        while let Some(controller) = { self.controllers.read().get(nr).cloned() } {
            next = next.into_iter().chain(controller.look(bus, &self.sink)).min();
            nr += 1;
        }
        next
    }
}
