//! The driver of all network cards.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;
use core::sync::atomic::{AtomicU32, Ordering};

use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, OfferChannel};
use spin::{Mutex, RwLock};

use super::Sink;
use super::card::Card;
use super::config::Config;
use super::machine::Memory;
use super::slots::Pages;
use crate::net::{NetDevice, NetInfo, Rss, RxFilter, Tag, TxPacket, TxSubmitted, Unsupported};
use crate::vmbus::{Channel, Driver, Event, Hypervisor, OpenError, Received, VmBus};

/// How long an offer waits for memory: what a card had that went is free a second later.
const MEMORY_LIMIT_NS: u64 = 3_000_000_000;
/// Until it is looked for again.
const MEMORY_RETRY_NS: u64 = 100_000_000;

/// The driver.
#[derive(Debug)]
pub struct NetVsc<S> {
    sink: S,
    config: Arc<Config>,
    cards: RwLock<Vec<Arc<Card>>>,
    /// Offers there is no memory for, and until when they wait for it.
    waiting: Mutex<Vec<(OfferChannel, u64)>>,
    next_number: AtomicU32,
}

impl<S: Sink<Arc<Card>>> NetVsc<S> {
    /// A driver that tells `sink`.
    #[must_use]
    pub fn new(sink: S, config: Config) -> Self {
        Self {
            sink,
            config: Arc::new(config),
            cards: RwLock::new(Vec::new()),
            waiting: Mutex::new(Vec::new()),
            next_number: AtomicU32::new(0),
        }
    }

    /// Who is told.
    pub const fn sink(&self) -> &S {
        &self.sink
    }

    /// The cards there are, known to the sink or not yet.
    #[must_use]
    pub fn cards(&self) -> Vec<Arc<Card>> {
        self.cards.read().clone()
    }

    /// Whether every card that was offered so far is known, or cannot be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.waiting.lock().is_empty() && self.cards.read().iter().all(|card| card.is_settled())
    }

    /// The card a channel belongs to.
    fn card(&self, id: ChannelId) -> Option<Arc<Card>> {
        let cards = self.cards.read();
        let has = |card: &&Arc<Card>| card.channel_id() == id || card.queue(id).is_some();
        cards.iter().find(has).cloned()
    }

    fn by_instance(&self, offer: &OfferChannel) -> Option<Arc<Card>> {
        let cards = self.cards.read();
        cards.iter().find(|card| card.instance() == offer.interface_instance).cloned()
    }

    fn offered<H: Hypervisor>(&self, bus: &VmBus<H>, offer: &OfferChannel) {
        if offer.sub_channel_index > 0 {
            let card = self.by_instance(offer);
            if card.is_some_and(|card| card.wants_channel(offer.sub_channel_index)) {
                let params = self.config.open_params(offer.sub_channel_index);
                if let Err(error) = bus.open(offer.channel_id, &params) {
                    self.sub_channel_failed(bus, offer.channel_id, error);
                }
            }
            return;
        }
        let hv = bus.hypervisor();
        match self.memory(hv) {
            Some(memory) => self.begin(bus, offer, memory),
            None => {
                let until = hv.now_ns().saturating_add(MEMORY_LIMIT_NS);
                self.waiting.lock().push((*offer, until));
                bus.poll_at(0);
            }
        }
    }

    /// Goes on with offers that wait for memory. When to come back.
    fn retry<H: Hypervisor>(&self, bus: &VmBus<H>) -> Option<u64> {
        let hv = bus.hypervisor();
        loop {
            let (offer, memory) = {
                let mut waiting = self.waiting.lock();
                let &(offer, until) = waiting.first()?;
                let now_ns = hv.now_ns();
                let memory = self.memory(hv);
                if memory.is_none() && now_ns < until {
                    return Some(now_ns.saturating_add(MEMORY_RETRY_NS));
                }
                waiting.remove(0);
                (offer, memory)
            };
            match memory {
                Some(memory) => self.begin(bus, &offer, memory),
                None => hv.log(format_args!("netvsc {}: no memory", offer.interface_instance)),
            }
        }
    }

    fn begin<H: Hypervisor>(&self, bus: &VmBus<H>, offer: &OfferChannel, memory: Memory) {
        let card = match self.by_instance(offer).filter(|card| card.is_away()) {
            Some(card) => {
                card.adopt(offer, memory);
                card
            }
            None => {
                let number = self.next_number.fetch_add(1, Ordering::Relaxed);
                let card = Card::new(number, offer, Arc::clone(&self.config), memory);
                let card = Arc::new(card);
                self.cards.write().push(Arc::clone(&card));
                card
            }
        };
        card.go_on(bus, &self.sink);
    }

    fn memory<H: Hypervisor>(&self, hv: &H) -> Option<Memory> {
        let free = |pages: &Pages| pages.gpfns().iter().for_each(|gpfn| hv.free(*gpfn));
        let receive = Pages::allocate(hv, self.config.receive_pages())?;
        let Some(send) = Pages::allocate(hv, self.config.send_pages()) else {
            free(&receive);
            return None;
        };
        let Some(page) = hv.allocate() else {
            free(&receive);
            free(&send);
            return None;
        };
        Some(Memory { receive: Arc::new(receive), send: Arc::new(send), page })
    }

    fn sub_channel_failed<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId, error: OpenError) {
        bus.hypervisor().log(format_args!("netvsc: sub-channel {} stays shut: {error:?}", id.0));
    }

    fn opened<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(channel) = bus.channel(id) else { return };
        let Some(card) = self.by_instance(channel.offer()) else { return };
        if !card.opened(bus, channel) {
            let _ = bus.close(id);
        }
        card.go_on(bus, &self.sink);
    }

    fn not_opened<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId, error: OpenError) {
        match self.card(id) {
            Some(card) => {
                // After a time-out it is closed first, and that is told.
                card.not_opened(error != OpenError::TimedOut);
                card.go_on(bus, &self.sink);
            }
            None => self.sub_channel_failed(bus, id, error),
        }
    }

    fn closed<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        let Some(card) = self.card(id) else { return };
        let is_primary = card.channel_id() == id;
        if is_primary {
            card.closed();
        }
        card.remove_queue(bus, &self.sink, id);
        if is_primary {
            card.close_channels(bus, false);
        }
        card.go_on(bus, &self.sink);
    }

    fn rescinded<H: Hypervisor>(&self, bus: &VmBus<H>, id: ChannelId) {
        self.waiting.lock().retain(|(offer, _)| offer.channel_id != id);
        let Some(card) = self.card(id) else { return };
        if card.channel_id() == id {
            card.rescinded(bus, &self.sink);
        } else {
            card.remove_queue(bus, &self.sink, id);
        }
        card.go_on(bus, &self.sink);
        self.forget(&card);
    }

    /// Lets a card go that is gone.
    fn forget(&self, card: &Arc<Card>) {
        if card.is_gone() {
            self.cards.write().retain(|other| !Arc::ptr_eq(other, card));
        }
    }
}

impl<H: Hypervisor, S: Sink<Arc<Card>>> Driver<H> for NetVsc<S> {
    fn wants(&self, offer: &OfferChannel) -> bool {
        offer.interface_type == interface::NETWORK
    }

    fn on_event(&self, bus: &VmBus<H>, event: &Event) {
        let tell = |id: ChannelId, change: &dyn Fn(&Card)| {
            if let Some(card) = self.card(id) {
                change(&card);
                card.go_on(bus, &self.sink);
            }
        };
        match *event {
            Event::Offered(offer) => self.offered(bus, &offer),
            Event::Opened(id) => self.opened(bus, id),
            Event::OpenFailed(id, error) => self.not_opened(bus, id, error),
            Event::Closed(id) => self.closed(bus, id),
            Event::Rescinded(id) => self.rescinded(bus, id),
            Event::GpadlCreated(id, gpadl, status) => {
                tell(id, &|card| card.with_machine(|m| m.gpadl_created(gpadl, status)));
            }
            Event::GpadlTorndown(id, _) => {
                tell(id, &|card| card.with_machine(super::machine::Machine::gpadl_torndown));
            }
            // The channel is being closed; that is told, too.
            Event::Broken(_)
            | Event::Connected(_)
            | Event::OffersDelivered
            | Event::Disconnected
            | Event::Retargeted(..) => {}
        }
    }

    fn on_signal(&self, bus: &VmBus<H>, channel: &Channel) -> Received {
        let Some(card) = self.card(channel.id()) else { return Received::All };
        match card.queue(channel.id()) {
            Some(queue) => card.on_signal(bus, &self.sink, &queue),
            None => Received::All,
        }
    }

    fn poll(&self, bus: &VmBus<H>) -> Option<u64> {
        let mut next = self.retry(bus);
        for card in self.cards() {
            next = next.into_iter().chain(card.look(bus, &self.sink)).min();
            self.forget(&card);
        }
        next
    }
}

/// A card as the network backend's device. `B` is how the bus is held: a reference or an `Arc`.
#[derive(Debug)]
pub struct Nic<B> {
    bus: B,
    card: Arc<Card>,
}

impl<B> Nic<B> {
    /// The device of a card.
    #[must_use]
    pub const fn new(bus: B, card: Arc<Card>) -> Self {
        Self { bus, card }
    }

    /// The card.
    pub const fn card(&self) -> &Arc<Card> {
        &self.card
    }
}

impl<H: Hypervisor, B: Deref<Target = VmBus<H>> + Sync> NetDevice for Nic<B> {
    fn info(&self) -> NetInfo {
        self.card.info()
    }

    fn submit(&self, queue: u32, packet: &TxPacket<'_>, tag: Tag) -> TxSubmitted {
        self.card.submit(&self.bus, queue, packet, tag)
    }

    fn commit(&self, queue: u32) {
        self.card.commit(&self.bus, queue);
    }

    fn resume(&self, queue: u32) {
        self.card.resume(&self.bus, queue);
    }

    fn set_filter(&self, filter: RxFilter) -> Result<(), Unsupported> {
        self.card.set_filter(&self.bus, filter)
    }

    fn set_rss(&self, rss: &Rss<'_>) -> Result<(), Unsupported> {
        self.card.set_rss(&self.bus, rss)
    }

    fn set_coalescing(&self, v4: bool, v6: bool) -> Result<(), Unsupported> {
        self.card.set_coalescing(&self.bus, v4, v6)
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), Unsupported> {
        self.card.set_mtu(&self.bus, mtu)
    }
}
