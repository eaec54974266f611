//! A host's end of the protocol, as far as a test needs it: it answers what the guest posts.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hv_abi::Guid;
use hv_abi::vmbus::gpadl::{GpadlTeardown, GpadlTorndown};
use hv_abi::vmbus::message::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenResult, RelidReleased,
};
use hv_abi::vmbus::{
    ChannelId, ConnectionId, ControlMessage, GpaRange, GpadlBody, GpadlCreated, GpadlHeader,
    GpadlId, InitiateContact, MessageHeader, MessageType, NtStatus, OfferChannel, RingControl,
    Version, VersionResponse,
};
use translate::platform::PageWords;
use zerocopy::{FromBytes, IntoBytes};

use super::Fake;
use crate::vmbus::VmBus;
use crate::vmbus::ring::{Incoming, Outgoing, PagedRing};

/// The host's ends of an open channel's rings.
#[derive(Debug)]
pub struct HostChannel {
    /// Towards the guest.
    pub outgoing: Outgoing<PagedRing>,
    /// From the guest.
    pub incoming: Incoming<PagedRing>,
    /// What the guest asked for.
    pub open: OpenChannel,
}

#[derive(Debug, Default)]
struct Gpadl {
    words: Vec<u64>,
    total: usize,
    channel: u32,
}

/// The host.
#[derive(Debug)]
pub struct Server {
    /// Ring 0 of its guest.
    pub fake: Fake,
    /// Newest version it speaks.
    pub version: Version,
    /// Connection for messages from 5.0 on.
    pub message_connection: u32,
    /// What it offers.
    pub offers: BTreeMap<u32, OfferChannel>,
    /// Channels that are open.
    pub channels: BTreeMap<u32, HostChannel>,
    /// Messages of these types are left unanswered, in [`Self::ignored`].
    pub ignore: Vec<MessageType>,
    /// Them.
    pub ignored: Vec<Vec<u8>>,
    /// Answer to OPENCHANNEL.
    pub open_status: NtStatus,
    /// Answer to GPADL_HEADER.
    pub gpadl_status: NtStatus,
    /// Versions proposed, and where.
    pub proposed: Vec<(Version, ConnectionId)>,
    /// Channels given back.
    pub released: Vec<u32>,
    gpadls: BTreeMap<u32, Gpadl>,
}

impl Server {
    /// A host of a guest.
    #[must_use]
    pub fn new(fake: Fake) -> Self {
        Self {
            fake,
            version: Version::V5_3,
            message_connection: 0x1234,
            offers: BTreeMap::new(),
            channels: BTreeMap::new(),
            ignore: Vec::new(),
            ignored: Vec::new(),
            open_status: NtStatus::SUCCESS,
            gpadl_status: NtStatus::SUCCESS,
            proposed: Vec::new(),
            released: Vec::new(),
            gpadls: BTreeMap::new(),
        }
    }

    /// Adds an offer, before the guest asks or for [`Self::announce`].
    pub fn offer(&mut self, id: u32, interface_type: Guid, instance: u8, sub_channel_index: u16) {
        let offer = OfferChannel {
            interface_type,
            interface_instance: Guid([instance; 16]),
            sub_channel_index,
            channel_id: ChannelId(id),
            is_dedicated_interrupt: 1,
            connection_id: ConnectionId::of_channel(ChannelId(id), 0, 2),
            ..OfferChannel::empty()
        };
        self.offers.insert(id, offer);
    }

    /// Tells the guest of an offer.
    pub fn announce(&self, bus: &VmBus<Fake>, id: u32) {
        bus.on_message(self.offers[&id].as_bytes());
    }

    /// Answers until nothing is left to answer or to poll for now.
    pub fn run(&mut self, bus: &VmBus<Fake>) {
        for _ in 0..10_000 {
            let next = self.fake.inner().posted.pop_front();
            match next {
                Some((to, message)) => self.answer(bus, to, &message),
                None if bus.next_poll_ns() <= self.fake.inner().now_ns => bus.poll(),
                None => return,
            }
        }
        panic!("the guest and the host go on and on");
    }

    /// Answers one message.
    ///
    /// # Panics
    /// When the guest breaks the protocol.
    pub fn answer(&mut self, bus: &VmBus<Fake>, to: ConnectionId, message: &[u8]) {
        let (header, _) = MessageHeader::read_from_prefix(message).expect("a header");
        if self.ignore.contains(&header.message_type) {
            self.ignored.push(message.to_vec());
            return;
        }
        if header.message_type != MessageType::INITIATE_CONTACT {
            let connection =
                if self.version >= Version::V5_0 { self.message_connection } else { 1 };
            assert_eq!(to.0, connection);
        }
        match header.message_type {
            MessageType::INITIATE_CONTACT => self.contact(bus, to, message),
            MessageType::REQUEST_OFFERS => {
                for offer in self.offers.values() {
                    bus.on_message(offer.as_bytes());
                }
                bus.on_message(MessageHeader::new(MessageType::ALL_OFFERS_DELIVERED).as_bytes());
            }
            MessageType::GPADL_HEADER => {
                let header = GpadlHeader::parse(message).expect("whole");
                assert_eq!(header.range_count, 1);
                let gpadl = Gpadl {
                    total: usize::from(header.range_bytes) / 8,
                    channel: header.channel_id.0,
                    ..Gpadl::default()
                };
                assert!(self.gpadls.insert(header.gpadl_id.0, gpadl).is_none());
                self.gpadl_words(bus, header.gpadl_id, &message[size_of::<GpadlHeader>()..]);
            }
            MessageType::GPADL_BODY => {
                let body = GpadlBody::parse(message).expect("whole");
                self.gpadl_words(bus, body.gpadl_id, &message[size_of::<GpadlBody>()..]);
            }
            MessageType::GPADL_TEARDOWN => {
                let teardown = GpadlTeardown::parse(message).expect("whole");
                let gpadl = self.gpadls.remove(&teardown.gpadl_id.0).expect("it exists");
                assert_eq!(gpadl.channel, teardown.channel_id.0);
                let gpadl_id = teardown.gpadl_id;
                bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
            }
            MessageType::OPEN_CHANNEL => self.open(bus, message),
            MessageType::CLOSE_CHANNEL => {
                let close = CloseChannel::parse(message).expect("whole");
                let id = close.channel_id.0;
                // Another processor may close what is being taken back at this moment.
                let was_open = self.channels.remove(&id).is_some();
                assert!(was_open || !self.offers.contains_key(&id), "it is open");
            }
            MessageType::RELID_RELEASED => {
                let released = RelidReleased::parse(message).expect("whole");
                self.released.push(released.channel_id.0);
                self.gpadls.retain(|_, gpadl| gpadl.channel != released.channel_id.0);
            }
            MessageType::MODIFY_CHANNEL => {
                let modify = ModifyChannel::parse(message).expect("whole");
                let channel_id = modify.channel_id;
                self.channels.get_mut(&channel_id.0).expect("open").open.target_vp =
                    modify.target_vp;
                if self.version >= Version::V5_3 {
                    let answer =
                        ModifyChannelResponse { channel_id, ..ModifyChannelResponse::empty() };
                    bus.on_message(answer.as_bytes());
                }
            }
            other => panic!("the guest posted a message of type {other:?}"),
        }
    }

    fn contact(&mut self, bus: &VmBus<Fake>, to: ConnectionId, message: &[u8]) {
        let contact = InitiateContact::parse(message).expect("whole");
        self.proposed.push((contact.version, to));
        let supported = contact.version <= self.version;
        let response = VersionResponse {
            version_supported: u8::from(supported),
            connection_id_or_version: if contact.version >= Version::V5_0 {
                self.message_connection
            } else {
                contact.version.0
            },
            ..VersionResponse::empty()
        };
        bus.on_message(response.as_bytes());
    }

    fn gpadl_words(&mut self, bus: &VmBus<Fake>, id: GpadlId, bytes: &[u8]) {
        let gpadl = self.gpadls.get_mut(&id.0).expect("a body follows its header");
        let words = bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().expect("words")));
        gpadl.words.extend(words);
        assert!(gpadl.words.len() <= gpadl.total);
        if gpadl.words.len() == gpadl.total {
            let range: GpaRange = zerocopy::transmute!(gpadl.words[0]);
            assert_eq!((range.pages() as usize, range.byte_offset), (gpadl.total - 1, 0));
            let created = GpadlCreated {
                channel_id: ChannelId(gpadl.channel),
                gpadl_id: id,
                status: self.gpadl_status,
                ..GpadlCreated::empty()
            };
            if !self.gpadl_status.is_success() {
                self.gpadls.remove(&id.0);
            }
            bus.on_message(created.as_bytes());
        }
    }

    /// Page frame numbers of a GPADL.
    #[must_use]
    pub fn gpadl_pages(&self, id: GpadlId) -> Vec<u64> {
        self.gpadls[&id.0].words[1..].to_vec()
    }

    /// How many GPADLs there are.
    #[must_use]
    pub fn gpadl_count(&self) -> usize {
        self.gpadls.len()
    }

    fn open(&mut self, bus: &VmBus<Fake>, message: &[u8]) {
        let open = OpenChannel::parse(message).expect("whole");
        let id = open.channel_id;
        if self.open_status.is_success() {
            let pages = self.gpadl_pages(open.ring_gpadl);
            let (first, second) = pages.split_at(open.downstream_page_offset as usize);
            let channel = HostChannel {
                outgoing: Outgoing::new(self.ring(second)).expect("a ring"),
                incoming: Incoming::new(self.ring(first)).expect("a ring"),
                open,
            };
            assert!(self.channels.insert(id.0, channel).is_none());
        }
        let result = OpenResult {
            channel_id: id,
            open_id: open.open_id,
            status: self.open_status,
            ..OpenResult::empty()
        };
        bus.on_message(result.as_bytes());
    }

    fn ring(&self, gpfns: &[u64]) -> PagedRing {
        let control = self.fake.page::<RingControl>(gpfns[0]).expect("a control page");
        let data = gpfns[1..].iter().map(|&gpfn| self.fake.page::<PageWords>(gpfn).expect("data"));
        PagedRing::new(control, data.collect::<Box<[_]>>())
    }
}
