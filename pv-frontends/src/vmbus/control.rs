//! Messages from the host.

use core::sync::atomic::Ordering;

use hv_abi::vmbus::message::{ModifyChannelResponse, OpenChannel, OpenResult};
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpadlCreated, GpadlTorndown, MAX_CHANNELS, MAX_MESSAGE_BYTES,
    MessageHeader, MessageType, OfferChannel, RescindChannelOffer, VersionResponse,
};
use zerocopy::FromBytes;

use super::connection::Connection;
use super::gpadl::GpadlState;
use super::state::{ChannelState, Entry, State};
use super::{Counter, Event, Hypervisor, OpenError, VmBus};

/// Bytes of a VERSION_RESPONSE that every host sends.
const VERSION_RESPONSE_MIN: usize = 9;

impl<H: Hypervisor> VmBus<H> {
    /// A message of type 1 came to the VMBus SINT; `payload` is a copy of its `payload_size` bytes.
    /// Messages that make no sense are counted and otherwise ignored.
    pub fn on_message(&self, payload: &[u8]) {
        if self.take_message(payload) {
            self.dispatch();
        }
    }

    /// Whether there may be events now. Its frame, of some KiB, is not to be there while drivers are
    /// called.
    #[inline(never)]
    fn take_message(&self, payload: &[u8]) -> bool {
        // Zeros behind what the host sent: some of its messages grew with time.
        let mut message = [0; MAX_MESSAGE_BYTES];
        let length = payload.len().min(MAX_MESSAGE_BYTES);
        for (to, from) in message.iter_mut().zip(payload) {
            *to = *from;
        }
        let Some(bytes) = message.get(..length) else { return false };
        let Ok((header, _)) = MessageHeader::read_from_prefix(bytes) else {
            self.malformed(MessageType::INVALID);
            return false;
        };
        if header.message_type == MessageType::UNLOAD_RESPONSE {
            // Apart from the state, whose lock a crashed processor may hold.
            self.unloaded.store(true, Ordering::Release);
            return false;
        }
        self.handle(header.message_type, bytes, &message);
        true
    }

    fn handle(&self, message_type: MessageType, bytes: &[u8], zero_filled: &[u8]) {
        let mut state = self.state.lock();
        let s = &mut *state;
        let handled = match message_type {
            MessageType::VERSION_RESPONSE if bytes.len() >= VERSION_RESPONSE_MIN => {
                VersionResponse::parse(zero_filled).map(|m| self.on_version_response(s, &m))
            }
            MessageType::VERSION_RESPONSE => None,
            MessageType::OFFER_CHANNEL => {
                OfferChannel::parse(bytes).map(|offer| self.on_offer(s, &offer))
            }
            MessageType::RESCIND_CHANNEL_OFFER => {
                RescindChannelOffer::parse(bytes).map(|m| self.on_rescind(s, m.channel_id))
            }
            MessageType::ALL_OFFERS_DELIVERED => {
                self.on_delivered(s);
                Some(())
            }
            MessageType::OPEN_CHANNEL_RESULT => {
                OpenResult::parse(bytes).map(|m| self.on_open_result(s, &m))
            }
            MessageType::GPADL_CREATED => {
                GpadlCreated::parse(bytes).map(|m| self.on_gpadl_created(s, &m))
            }
            MessageType::GPADL_TORNDOWN => {
                GpadlTorndown::parse(bytes).map(|m| self.on_gpadl_torndown(s, &m))
            }
            MessageType::MODIFY_CHANNEL_RESPONSE => {
                ModifyChannelResponse::parse(bytes).map(|m| self.on_modified(s, &m))
            }
            other => {
                self.counters.add(&self.hv, Counter::UnknownType, format_args!("{}", other.0));
                Some(())
            }
        };
        if handled.is_none() {
            self.malformed(message_type);
        }
        self.finish(state);
    }

    fn malformed(&self, message_type: MessageType) {
        let what = format_args!("message type {}", message_type.0);
        self.counters.add(&self.hv, Counter::Malformed, what);
    }

    pub(super) fn unexpected(&self, message_type: MessageType, about: u32) {
        let what = format_args!("message type {} about {about:#x}", message_type.0);
        self.counters.add(&self.hv, Counter::Unexpected, what);
    }

    fn unknown(&self, message_type: MessageType, id: ChannelId) {
        let what = format_args!("message type {} about channel {}", message_type.0, id.0);
        self.counters.add(&self.hv, Counter::UnknownChannel, what);
    }

    fn on_offer(&self, state: &mut State, offer: &OfferChannel) {
        let id = offer.channel_id;
        if !matches!(state.connection, Connection::Connected { .. }) {
            self.unexpected(MessageType::OFFER_CHANNEL, id.0);
            return;
        }
        if id.0 == 0 || id.0 as usize >= MAX_CHANNELS {
            self.malformed(MessageType::OFFER_CHANNEL);
            return;
        }
        // A number is offered again only after it was given back.
        if state.offers.contains_key(&id) {
            self.unexpected(MessageType::OFFER_CHANNEL, id.0);
            return;
        }
        let driver = self.drivers.iter().position(|driver| driver.wants(offer));
        let entry = Entry {
            offer: *offer,
            driver,
            state: ChannelState::Closed,
            rings: None,
            rescinded: false,
            retargeting: None,
        };
        state.offers.insert(id, entry);
        state.event(driver, Event::Offered(*offer));
    }

    fn on_delivered(&self, state: &mut State) {
        match &mut state.connection {
            Connection::Connected { delivered, .. } if !*delivered => {
                *delivered = true;
                state.event_for_all(Event::OffersDelivered);
            }
            _ => self.unexpected(MessageType::ALL_OFFERS_DELIVERED, 0),
        }
    }

    fn on_rescind(&self, state: &mut State, id: ChannelId) {
        let Some(entry) = state.offers.get_mut(&id) else {
            self.unknown(MessageType::RESCIND_CHANNEL_OFFER, id);
            return;
        };
        if entry.rescinded {
            self.unexpected(MessageType::RESCIND_CHANNEL_OFFER, id.0);
            return;
        }
        entry.rescinded = true;
        if let Some(rings) = &entry.rings {
            rings.channel.shut();
        }
        self.unpublish(id);
        let entry_driver = entry.driver;
        // What is not posted yet of its lists would be for nobody.
        for (&gpadl, _) in state.gpadls.iter().filter(|(_, gpadl)| gpadl.channel == id) {
            state.outbox.forget_gpadl(gpadl);
        }
        // Even without a driver: the release follows the event.
        let driver = entry_driver.unwrap_or(usize::MAX);
        state.event(Some(driver), Event::Rescinded(id));
    }

    fn on_gpadl_created(&self, state: &mut State, message: &GpadlCreated) {
        let (id, channel) = (message.gpadl_id, message.channel_id);
        let gpadl = match state.gpadls.get_mut(&id) {
            Some(gpadl) if gpadl.channel == channel && gpadl.state == GpadlState::Creating => gpadl,
            _ => return self.unexpected(MessageType::GPADL_CREATED, id.0),
        };
        gpadl.state = GpadlState::Created;
        let is_ring = gpadl.is_ring;
        if !message.status.is_success() {
            state.gpadls.remove(&id);
            state.outbox.forget_gpadl(id);
        }
        let Some(entry) = state.offers.get_mut(&channel) else { return };
        let driver = entry.driver;
        if entry.rescinded {
            return;
        }
        if !is_ring {
            state.event(driver, Event::GpadlCreated(channel, id, message.status));
            return;
        }
        let ChannelState::MakingGpadl { cancelled } = entry.state else {
            return self.unexpected(MessageType::GPADL_CREATED, id.0);
        };
        if !message.status.is_success() {
            let event = if cancelled {
                Event::Closed(channel)
            } else {
                Event::OpenFailed(channel, OpenError::Refused(message.status))
            };
            self.closed(state, channel, Some(event));
        } else if cancelled {
            state.tear_down(channel, false, Some(Event::Closed(channel)));
        } else {
            Self::post_open(state, channel);
        }
    }

    /// The host knows the rings: open the channel.
    fn post_open(state: &mut State, id: ChannelId) {
        let open_id = state.new_open_id();
        let Some(entry) = state.offers.get_mut(&id) else { return };
        let Some(rings) = &entry.rings else { return };
        entry.state = ChannelState::Opening { open_id, cancelled: false };
        let open = OpenChannel {
            channel_id: id,
            open_id,
            ring_gpadl: rings.gpadl,
            target_vp: rings.channel.target_vp(),
            downstream_page_offset: rings.downstream_page,
            user_data: rings.user_data,
            ..OpenChannel::empty()
        };
        state.outbox.push(&open);
    }

    fn on_open_result(&self, state: &mut State, message: &OpenResult) {
        let id = message.channel_id;
        let Some(entry) = state.offers.get_mut(&id) else {
            return self.unknown(MessageType::OPEN_CHANNEL_RESULT, id);
        };
        let cancelled = match entry.state {
            ChannelState::Opening { open_id, cancelled }
                if open_id == message.open_id && !entry.rescinded =>
            {
                cancelled
            }
            _ => return self.unexpected(MessageType::OPEN_CHANNEL_RESULT, id.0),
        };
        let driver = entry.driver;
        if !message.status.is_success() {
            let event = if cancelled {
                Event::Closed(id)
            } else {
                Event::OpenFailed(id, OpenError::Refused(message.status))
            };
            if let Some(rings) = &entry.rings {
                rings.channel.shut();
            }
            state.tear_down(id, false, Some(event));
            return;
        }
        if cancelled {
            if let Some(rings) = &entry.rings {
                rings.channel.shut();
            }
            state.tear_down(id, true, Some(Event::Closed(id)));
            return;
        }
        entry.state = ChannelState::Open;
        if let Some(rings) = &entry.rings {
            rings.channel.set_open(true);
            self.publish(&rings.channel);
        }
        state.event(driver, Event::Opened(id));
    }

    fn on_gpadl_torndown(&self, state: &mut State, message: &GpadlTorndown) {
        let id = message.gpadl_id;
        let gpadl = match state.gpadls.get(&id) {
            Some(gpadl) if gpadl.state == GpadlState::TearingDown => *gpadl,
            _ => return self.unexpected(MessageType::GPADL_TORNDOWN, id.0),
        };
        state.gpadls.remove(&id);
        let Some(entry) = state.offers.get(&gpadl.channel) else { return };
        if entry.rescinded {
            return;
        }
        if !gpadl.is_ring {
            let driver = entry.driver;
            state.event(driver, Event::GpadlTorndown(gpadl.channel, id));
            return;
        }
        if let ChannelState::TearingDown(event) = entry.state {
            self.closed(state, gpadl.channel, event);
        }
    }

    /// The host has let the rings go.
    fn closed(&self, state: &mut State, id: ChannelId, event: Option<Event>) {
        let Some(entry) = state.offers.get_mut(&id) else { return };
        entry.state = ChannelState::Closed;
        let driver = entry.driver;
        if let Some(rings) = entry.rings.take() {
            rings.channel.shut();
            rings.gpfns.iter().for_each(|&gpfn| self.hv.free(gpfn));
        }
        if let Some(event) = event {
            state.event(driver, event);
        }
    }

    fn on_modified(&self, state: &mut State, message: &ModifyChannelResponse) {
        let id = message.channel_id;
        let Some(entry) = state.offers.get_mut(&id) else {
            return self.unknown(MessageType::MODIFY_CHANNEL_RESPONSE, id);
        };
        let Some(vp) = entry.retargeting.take() else {
            return self.unexpected(MessageType::MODIFY_CHANNEL_RESPONSE, id.0);
        };
        let driver = entry.driver;
        if message.status.is_success()
            && let Some(rings) = &entry.rings
        {
            rings.channel.set_target_vp(vp);
        }
        if !entry.rescinded {
            state.event(driver, Event::Retargeted(id, message.status));
        }
    }
}
