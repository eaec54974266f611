//! The control protocol: a state machine from the guest's messages to actions.
//! No I/O: [`crate::vmbus::Bus`] does what it says.
//!
//! ```text
//! connection   Disconnected ── INITIATE_CONTACT ──> Connected ── UNLOAD ──> Leaving
//!              <── UNLOAD_RESPONSE, once no channel is open ──────────────────┘
//! channel      Closed ── OPEN ──> Open ── CLOSE ──> Closing ── worker ended ──> Closed
//! ```
//! A channel's rings stay mapped until its worker has ended; what the guest asks
//! meanwhile for its memory (GPADL_TEARDOWN, UNLOAD, a new INITIATE_CONTACT) waits
//! for that.

use crate::memory::Memory;
use crate::vmbus::action::{Action, Offer, Opening};
use crate::vmbus::gpadl::{Gpadl, Gpadls, Progress};
use hv_abi::synic::VMBUS_SINT;
use hv_abi::vmbus::message::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenResult, RelidReleased,
    TlConnectRequest, TlConnectResult, VP_INDEX_NO_INTERRUPT,
};
use hv_abi::vmbus::version::{ConnectionState, VersionResponse};
use hv_abi::vmbus::{
    ChannelId, ConnectionId, ControlMessage, GpadlBody, GpadlCreated, GpadlHeader, GpadlId,
    GpadlTeardown, GpadlTorndown, InitiateContact, MAX_CHANNELS, MessageHeader, MessageType,
    NtStatus, OfferChannel, RescindChannelOffer, Version,
};
use std::collections::BTreeMap;
use std::mem::size_of;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Versions spoken.
pub const VERSIONS: [Version; 7] = [
    Version::V3_0,
    Version::V4_0,
    Version::V4_1,
    Version::V5_0,
    Version::V5_1,
    Version::V5_2,
    Version::V5_3,
];

/// Monitor numbers there are.
const MONITORS: u8 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelState {
    Closed,
    Open { ring: GpadlId },
    Closing { ring: GpadlId },
}

#[derive(Debug)]
struct Channel {
    offer: OfferChannel,
    device: usize,
    state: ChannelState,
    /// The guest knows of it.
    told: bool,
    /// It is gone, and the guest has not released its number yet.
    revoked: bool,
    /// The guest was told so.
    rescinded: bool,
    /// Teardown that waits for the worker.
    teardown: Option<GpadlId>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    version: Version,
    port: ConnectionId,
    vp: u32,
    sint: u8,
    offers_sent: bool,
}

/// What follows once no channel is open.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Answer the UNLOAD.
    Unloaded,
    /// Answer an INITIATE_CONTACT.
    Contact(InitiateContact, ConnectionId),
}

#[derive(Clone, Copy, Debug)]
enum Connection {
    Disconnected,
    Connected(Link),
    Leaving(Link, Next),
}

/// The server.
#[derive(Debug)]
pub struct Server {
    memory: Memory,
    vps: u32,
    connection: Connection,
    channels: BTreeMap<ChannelId, Channel>,
    gpadls: Gpadls,
    actions: Vec<Action>,
    malformed: u64,
}

impl Server {
    /// A server for a guest of `vps` processors, without devices.
    #[must_use]
    pub fn new(memory: Memory, vps: u32) -> Self {
        Self {
            memory,
            vps,
            connection: Connection::Disconnected,
            channels: BTreeMap::new(),
            gpadls: Gpadls::default(),
            actions: Vec::new(),
            malformed: 0,
        }
    }

    /// What there is to do, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Messages dropped because they made no sense.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Version agreed on.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self.connection {
            Connection::Connected(link) => Some(link.version),
            _ => None,
        }
    }

    /// Whether the guest may post to this connection.
    #[must_use]
    pub fn is_message_connection(id: ConnectionId) -> bool {
        id == ConnectionId::MESSAGE || id == ConnectionId::MESSAGE_V5
    }

    /// Whether `id` is the event connection of a channel.
    #[must_use]
    pub fn is_event_connection(&self, id: ConnectionId) -> bool {
        self.channels.values().any(|channel| channel.offer.connection_id == id)
    }

    /// A GPADL of a channel.
    #[must_use]
    pub fn gpadl(&self, channel: ChannelId, id: GpadlId) -> Option<Arc<Gpadl>> {
        self.gpadls.get(channel, id)
    }

    /// Offers a device; its channel. `None`: all numbers are taken.
    pub fn offer(&mut self, device: usize, offer: &Offer) -> Option<ChannelId> {
        let free = |id: &u32| !self.channels.contains_key(&ChannelId(*id));
        let id = ChannelId((1..MAX_CHANNELS as u32).find(free)?);
        let taken = |m: u8| self.channels.values().any(|c| c.offer.monitor() == Some(m));
        let monitor = if offer.monitored { (0..MONITORS).find(|m| !taken(*m)) } else { None };
        let message = OfferChannel {
            header: MessageHeader::new(MessageType::OFFER_CHANNEL),
            channel_id: id,
            connection_id: ConnectionId::of_channel(id, 0, VMBUS_SINT),
            is_dedicated_interrupt: 1,
            monitor_id: monitor.unwrap_or(0),
            monitor_allocated: u8::from(monitor.is_some()),
            ..offer.message
        };
        let channel = Channel {
            offer: message,
            device,
            state: ChannelState::Closed,
            told: false,
            revoked: false,
            rescinded: false,
            teardown: None,
        };
        self.channels.insert(id, channel);
        self.tell_all();
        Some(id)
    }

    /// Offers sub-channels 1 to `count` of a primary channel, those that are not
    /// there yet; `false`: it is no open primary channel.
    pub fn offer_sub_channels(&mut self, primary: ChannelId, count: u16) -> bool {
        let Some(channel) = self.channels.get(&primary) else { return false };
        let (mut message, device) = (channel.offer, channel.device);
        let open = matches!(channel.state, ChannelState::Open { .. });
        if !open || channel.revoked || message.sub_channel_index != 0 {
            return false;
        }
        let monitored = message.monitor().is_some();
        for index in 1..=count {
            let there = |c: &Channel| {
                c.device == device && c.offer.sub_channel_index == index && !c.revoked
            };
            if self.channels.values().any(there) {
                continue;
            }
            message.sub_channel_index = index;
            if self.offer(device, &Offer { message, monitored }).is_none() {
                return false;
            }
        }
        true
    }

    fn link(&self) -> Option<Link> {
        match self.connection {
            Connection::Connected(link) | Connection::Leaving(link, _) => Some(link),
            Connection::Disconnected => None,
        }
    }

    fn send(&mut self, message: &(impl IntoBytes + Immutable)) {
        if let Some(Link { vp, sint, .. }) = self.link() {
            self.actions.push(Action::Send { vp, sint, message: message.as_bytes().to_vec() });
        }
    }

    /// Tells the guest of a channel, once the guest is done with one of the same name
    /// that was revoked.
    fn tell(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get(&id) else { return };
        let (offer, told) = (channel.offer, channel.told);
        let lingers = |c: &Channel| {
            c.revoked
                && c.offer.interface_instance == offer.interface_instance
                && c.offer.interface_type == offer.interface_type
                && c.offer.sub_channel_index == offer.sub_channel_index
        };
        if told || self.channels.values().any(lingers) {
            return;
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.told = true;
        }
        self.send(&offer);
    }

    /// Tells the guest of all channels it can be told of, once it has asked.
    fn tell_all(&mut self) {
        let Connection::Connected(Link { offers_sent: true, .. }) = self.connection else { return };
        let ids: Vec<_> =
            self.channels.iter().filter(|(_, c)| !c.revoked).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.tell(id));
    }

    /// A message of the guest's, posted to `port`.
    pub fn message(&mut self, port: ConnectionId, bytes: &[u8]) {
        if self.handle(port, bytes).is_none() {
            self.malformed += 1;
        }
    }

    /// `None`: the message is too short, of an unknown type, or out of place.
    fn handle(&mut self, port: ConnectionId, bytes: &[u8]) -> Option<()> {
        let (header, _) = MessageHeader::read_from_prefix(bytes).ok()?;
        if header.message_type == MessageType::INITIATE_CONTACT {
            return self.initiate_contact(InitiateContact::parse(bytes)?, port);
        }
        let Connection::Connected(link) = self.connection else { return None };
        if port != link.port {
            return None;
        }
        match header.message_type {
            MessageType::REQUEST_OFFERS => self.request_offers(link),
            MessageType::OPEN_CHANNEL => self.open(&OpenChannel::parse(bytes)?, link),
            MessageType::CLOSE_CHANNEL => self.close(CloseChannel::parse(bytes)?.channel_id),
            MessageType::GPADL_HEADER => {
                let header = GpadlHeader::parse(bytes)?;
                self.known(header.channel_id)?;
                let list = bytes.get(size_of::<GpadlHeader>()..)?;
                let progress = self.gpadls.begin(&header, list, &self.memory);
                self.gpadl_progress(header.gpadl_id, progress)
            }
            MessageType::GPADL_BODY => {
                let id = GpadlBody::parse(bytes)?.gpadl_id;
                let list = bytes.get(size_of::<GpadlBody>()..)?;
                let progress = self.gpadls.more(id, list, &self.memory)?;
                self.gpadl_progress(id, progress)
            }
            MessageType::GPADL_TEARDOWN => self.gpadl_teardown(&GpadlTeardown::parse(bytes)?),
            MessageType::RELID_RELEASED => self.released(RelidReleased::parse(bytes)?.channel_id),
            MessageType::UNLOAD => {
                self.leave(link, Next::Unloaded);
                Some(())
            }
            MessageType::MODIFY_CHANNEL if link.version >= Version::V4_1 => {
                self.modify(&ModifyChannel::parse(bytes)?, link)
            }
            MessageType::TL_CONNECT_REQUEST if link.version >= Version::V4_0 => {
                self.connect_socket(&TlConnectRequest::parse(bytes)?, link)
            }
            _ => None,
        }
    }

    fn known(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(&id).filter(|channel| channel.told)
    }

    fn initiate_contact(&mut self, contact: InitiateContact, port: ConnectionId) -> Option<()> {
        if contact.target_vp >= self.vps {
            return None;
        }
        match self.connection {
            Connection::Disconnected => self.contact(&contact, port),
            // A guest that starts anew without leaving, such as a crash kernel.
            Connection::Connected(link) | Connection::Leaving(link, _) => {
                self.leave(link, Next::Contact(contact, port));
            }
        }
        Some(())
    }

    fn contact(&mut self, contact: &InitiateContact, port: ConnectionId) {
        let version = contact.version;
        let has_info = version >= Version::V5_0;
        let wanted_port = if has_info { ConnectionId::MESSAGE_V5 } else { ConnectionId::MESSAGE };
        let info = contact.target_info();
        let (sint, vtl) = if has_info { (info.sint(), info.vtl()) } else { (VMBUS_SINT, 0) };
        let supported = VERSIONS.contains(&version) && port == wanted_port && vtl == 0;
        // Where not even the SINT makes sense, the answer goes to the usual one.
        let sint = if (1..16).contains(&sint) { sint } else { VMBUS_SINT };
        let value = match (supported, has_info) {
            (true, true) => wanted_port.0,
            (true, false) => version.0,
            (false, _) => 0,
        };
        let response = VersionResponse {
            version_supported: u8::from(supported),
            connection_state: ConnectionState::SUCCESSFUL,
            connection_id_or_version: value,
            ..VersionResponse::empty()
        };
        let link =
            Link { version, port: wanted_port, vp: contact.target_vp, sint, offers_sent: false };
        self.connection = Connection::Connected(link);
        self.send(&response);
        if supported {
            let page = contact.child_to_parent_monitor_page;
            self.actions.push(Action::Monitor((page != 0).then_some(page)));
        } else {
            self.connection = Connection::Disconnected;
        }
    }

    fn request_offers(&mut self, link: Link) -> Option<()> {
        if link.offers_sent {
            return None;
        }
        self.connection = Connection::Connected(Link { offers_sent: true, ..link });
        self.tell_all();
        self.send(&MessageHeader::new(MessageType::ALL_OFFERS_DELIVERED));
        Some(())
    }

    fn open(&mut self, open: &OpenChannel, link: Link) -> Option<()> {
        let (vps, id) = (self.vps, open.channel_id);
        let ring = self.gpadls.get(id, open.ring_gpadl);
        let channel = self.known(id)?;
        let good_vp = open.target_vp < vps || open.target_vp == VP_INDEX_NO_INTERRUPT;
        let can = channel.state == ChannelState::Closed && !channel.revoked && good_vp;
        let downstream_page = open.downstream_page_offset as usize;
        match ring.filter(|_| can) {
            Some(ring) => {
                channel.state = ChannelState::Open { ring: open.ring_gpadl };
                let opening = Opening {
                    channel: id,
                    device: channel.device,
                    sub_channel: channel.offer.sub_channel_index,
                    connection: channel.offer.connection_id,
                    target_vp: open.target_vp,
                    sint: link.sint,
                    monitor: channel.offer.monitor(),
                    ring,
                    downstream_page,
                };
                self.actions.push(Action::Open(opening));
            }
            None => self.open_result(id, open.open_id, false),
        }
        // The answer follows the worker's start, in the order of the actions.
        if let Some(Action::Open(_)) = self.actions.last() {
            self.open_result(id, open.open_id, true);
        }
        Some(())
    }

    fn open_result(&mut self, channel_id: ChannelId, open_id: u32, good: bool) {
        let status = if good { NtStatus::SUCCESS } else { NtStatus::INVALID_PARAMETER };
        self.send(&OpenResult { channel_id, open_id, status, ..OpenResult::empty() });
    }

    /// The worker of a channel could not be started: its answer, the first of
    /// `later`, becomes a refusal.
    pub fn not_opened(&mut self, id: ChannelId, later: &mut [Action]) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.state = ChannelState::Closed;
        }
        if let Some(Action::Send { message, .. }) = later.first_mut()
            && let Some(mut result) = OpenResult::parse(message)
        {
            result.status = NtStatus::INVALID_PARAMETER;
            *message = result.as_bytes().to_vec();
        }
    }

    fn close(&mut self, id: ChannelId) -> Option<()> {
        let channel = self.known(id)?;
        match channel.state {
            ChannelState::Open { ring } => {
                channel.state = ChannelState::Closing { ring };
                self.actions.push(Action::Close(id));
                Some(())
            }
            // A revoked channel is closed by both sides.
            ChannelState::Closing { .. } | ChannelState::Closed => channel.revoked.then_some(()),
        }
    }

    /// A channel's worker has ended after [`Action::Close`].
    pub fn closed(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.state = ChannelState::Closed;
        let (teardown, device) = (channel.teardown.take(), channel.device);
        let primary = channel.offer.sub_channel_index == 0;
        let revoked = channel.revoked;
        if let Some(gpadl_id) = teardown
            && self.gpadls.tear_down(id, gpadl_id)
        {
            self.send(&GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() });
        }
        if revoked {
            self.rescind(id);
            self.tell_all();
        }
        if let Connection::Leaving(link, next) = self.connection {
            self.left(link, next);
        } else if primary {
            // Sub-channels live as long as their primary is open.
            let subs: Vec<_> = self
                .channels
                .iter()
                .filter(|(_, c)| c.device == device && c.offer.sub_channel_index != 0)
                .map(|(id, _)| *id)
                .collect();
            subs.into_iter().for_each(|id| self.revoke_channel(id));
        }
    }

    fn gpadl_progress(&mut self, gpadl_id: GpadlId, progress: Progress) -> Option<()> {
        let Progress::Done(channel_id, good) = progress else { return Some(()) };
        let status = if good { NtStatus::SUCCESS } else { NtStatus::INVALID_PARAMETER };
        self.send(&GpadlCreated { channel_id, gpadl_id, status, ..GpadlCreated::empty() });
        Some(())
    }

    fn gpadl_teardown(&mut self, message: &GpadlTeardown) -> Option<()> {
        let (id, gpadl_id) = (message.channel_id, message.gpadl_id);
        match self.known(id)?.state {
            // The rings of an open channel are not given back.
            ChannelState::Open { ring } if ring == gpadl_id => return None,
            ChannelState::Closing { ring } if ring == gpadl_id => {
                self.known(id)?.teardown = Some(gpadl_id);
                return Some(());
            }
            _ => {}
        }
        if !self.gpadls.tear_down(id, gpadl_id) {
            return None;
        }
        self.send(&GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() });
        Some(())
    }

    fn released(&mut self, id: ChannelId) -> Option<()> {
        let channel = self.known(id)?;
        if !channel.revoked {
            return None;
        }
        channel.told = false;
        self.withdrawn_is_released(id);
        self.gpadls.clear(Some(id));
        if self.channels.get(&id)?.state == ChannelState::Closed {
            self.channels.remove(&id);
        }
        // One of the same name may have waited for this.
        self.tell_all();
        Some(())
    }

    fn modify(&mut self, modify: &ModifyChannel, link: Link) -> Option<()> {
        let (vps, target_vp, channel_id) = (self.vps, modify.target_vp, modify.channel_id);
        let channel = self.known(channel_id)?;
        let open = matches!(channel.state, ChannelState::Open { .. });
        let good = open && (target_vp < vps || target_vp == VP_INDEX_NO_INTERRUPT);
        if good {
            self.actions.push(Action::Retarget(channel_id, target_vp));
        }
        if link.version >= Version::V5_3 {
            let status = if good { NtStatus::SUCCESS } else { NtStatus::INVALID_PARAMETER };
            let response = ModifyChannelResponse::empty();
            self.send(&ModifyChannelResponse { channel_id, status, ..response });
        }
        good.then_some(())
    }

    /// There is nobody to connect to.
    fn connect_socket(&mut self, request: &TlConnectRequest, link: Link) -> Option<()> {
        if link.version >= Version::V4_1 {
            self.send(&TlConnectResult {
                endpoint_id: request.endpoint_id,
                service_id: request.service_id,
                status: NtStatus::CONNECTION_REFUSED,
                ..TlConnectResult::empty()
            });
        }
        Some(())
    }

    /// The guest leaves: all channels are closed first.
    fn leave(&mut self, link: Link, next: Next) {
        self.connection = Connection::Leaving(link, next);
        for (id, channel) in &mut self.channels {
            if let ChannelState::Open { ring } = channel.state {
                channel.state = ChannelState::Closing { ring };
                self.actions.push(Action::Close(*id));
            }
        }
        self.left(link, next);
    }

    fn left(&mut self, link: Link, next: Next) {
        if self.channels.values().any(|c| c.state != ChannelState::Closed) {
            return;
        }
        self.gpadls.clear(None);
        // Sub-channels and what was revoked are not offered again.
        self.channels.retain(|_, c| !c.revoked && c.offer.sub_channel_index == 0);
        for channel in self.channels.values_mut() {
            channel.told = false;
            channel.teardown = None;
        }
        self.actions.push(Action::Monitor(None));
        match next {
            Next::Unloaded => {
                self.connection = Connection::Leaving(link, next);
                self.send(&MessageHeader::new(MessageType::UNLOAD_RESPONSE));
                self.connection = Connection::Disconnected;
            }
            Next::Contact(contact, port) => {
                self.connection = Connection::Disconnected;
                self.contact(&contact, port);
            }
        }
    }
}

#[path = "withdraw.rs"]
mod withdraw;

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
