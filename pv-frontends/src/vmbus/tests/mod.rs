//! The client against a host of plain memory.

mod any;
mod channels;
mod connection;
mod linger;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, MessageType, OfferChannel, UserDefined};
use spin::Mutex;

use super::fake::{Fake, Server};
use super::*;

/// Writes down what it is told, and reads all there is.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
    received: Mutex<Vec<(ChannelId, u64, Vec<u8>)>>,
    budget: Mutex<Option<u32>>,
}

impl Recorder {
    fn events(&self) -> Vec<Event> {
        core::mem::take(&mut *self.events.lock())
    }

    fn received(&self) -> Vec<(ChannelId, u64, Vec<u8>)> {
        core::mem::take(&mut *self.received.lock())
    }
}

impl Driver<Fake> for Recorder {
    fn wants(&self, offer: &OfferChannel) -> bool {
        offer.interface_type == interface::SCSI
    }

    fn on_event(&self, _: &VmBus<Fake>, event: &Event) {
        self.events.lock().push(*event);
    }

    fn on_signal(&self, bus: &VmBus<Fake>, channel: &Channel) -> Received {
        let budget = self.budget.lock().unwrap_or(1000);
        bus.receive(channel, budget, |packet| {
            let mut payload = vec![0; packet.payload_bytes()];
            packet.copy_payload(0, &mut payload);
            self.received.lock().push((channel.id(), packet.transaction_id(), payload));
        })
    }
}

const ID: ChannelId = ChannelId(7);
const PARAMS: OpenParams =
    OpenParams { outgoing_pages: 2, incoming_pages: 1, target_vp: 3, user_data: UserDefined::ZERO };

struct Bench {
    fake: Fake,
    server: Server,
    driver: Arc<Recorder>,
    bus: VmBus<Fake>,
}

impl Bench {
    fn new() -> Self {
        let fake = Fake::default();
        let driver = Arc::new(Recorder::default());
        let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
        let bus = VmBus::new(fake.clone(), drivers);
        Self { server: Server::new(fake.clone()), fake, driver, bus }
    }

    /// Connected, with one SCSI controller offered.
    fn connected() -> Self {
        let mut bench = Self::new();
        bench.server.offer(ID.0, interface::SCSI, 1, 0);
        bench.bus.connect();
        bench.run();
        assert!(matches!(
            bench.driver.events()[..],
            [Event::Connected(_), Event::Offered(_), Event::OffersDelivered]
        ));
        bench
    }

    /// … and opened.
    fn opened() -> Self {
        let mut bench = Self::connected();
        bench.bus.open(ID, &PARAMS).expect("it is closed");
        bench.run();
        assert_eq!(bench.driver.events(), [Event::Opened(ID)]);
        bench
    }

    fn run(&mut self) {
        self.server.run(&self.bus);
    }

    /// Runs with messages of a type left unanswered.
    fn run_without(&mut self, ignored: MessageType) {
        self.server.ignore.push(ignored);
        self.run();
        self.server.ignore.clear();
    }

    /// Answers what was left unanswered.
    fn answer_ignored(&mut self) {
        for message in core::mem::take(&mut self.server.ignored) {
            let to = hv_abi::vmbus::ConnectionId(self.server.message_connection);
            self.server.answer(&self.bus, to, &message);
        }
        self.run();
    }

    fn rescind(&mut self, id: ChannelId) {
        use hv_abi::vmbus::{ControlMessage, RescindChannelOffer};
        use zerocopy::IntoBytes;
        self.server.offers.remove(&id.0);
        self.server.channels.remove(&id.0);
        let rescind = RescindChannelOffer { channel_id: id, ..RescindChannelOffer::empty() };
        self.bus.on_message(rescind.as_bytes());
    }

    /// Time passes, and what is due is done.
    fn pass(&mut self, ns: u64) {
        self.fake.advance(ns);
        self.run();
    }

    fn count(&self, counter: Counter) -> u64 {
        self.bus.counters().get(counter)
    }
}

/// A packet without anything but its number and payload.
fn packet(transaction_id: u64, payload: &[u8]) -> OutPacket<'_> {
    OutPacket {
        transaction_id,
        is_completion: false,
        completion_wanted: false,
        external: External::None,
        payload,
    }
}

const SECOND: u64 = 1_000_000_000;
/// Pages of the connection itself.
const OWN_PAGES: usize = 3;
