//! The control protocol, as a guest sees it.

use super::*;
use crate::memory::allocate;
use hv_abi::Guid;
use hv_abi::vmbus::GpaRange;
use hv_abi::vmbus::version::{FeatureFlags, TargetInfo};
use proptest::prelude::*;

const PORT: ConnectionId = ConnectionId::MESSAGE_V5;

fn server() -> Server {
    Server::new(allocate(64 << 20).unwrap(), 4)
}

fn offer() -> Offer {
    let message = OfferChannel {
        interface_type: Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
        ..OfferChannel::empty()
    };
    Offer { message, monitored: false }
}

/// Messages to the guest, of type `T`.
fn sent<T: ControlMessage>(actions: &[Action]) -> Vec<T> {
    let parse = |action: &Action| match action {
        Action::Send { message, .. } => T::parse(message),
        _ => None,
    };
    actions.iter().filter_map(parse).collect()
}

fn types(actions: &[Action]) -> Vec<u32> {
    let kind = |action: &Action| match action {
        Action::Send { message, .. } => Some(u32::from_le_bytes(message[..4].try_into().unwrap())),
        _ => None,
    };
    actions.iter().filter_map(kind).collect()
}

fn say(server: &mut Server, message: &(impl IntoBytes + Immutable)) -> Vec<Action> {
    server.message(PORT, message.as_bytes());
    server.take_actions()
}

fn contact(version: Version, vp: u32) -> InitiateContact {
    InitiateContact {
        version,
        target_vp: vp,
        interrupt_page_or_target_info: TargetInfo::new(2, 0, FeatureFlags::empty()).0,
        ..InitiateContact::empty()
    }
}

fn request_offers() -> MessageHeader {
    MessageHeader::new(MessageType::REQUEST_OFFERS)
}

/// A server with one device, whose offer the guest has.
fn connected() -> (Server, ChannelId) {
    let mut s = server();
    let id = s.offer(0, &offer()).unwrap();
    let response = say(&mut s, &contact(Version::V5_3, 0));
    assert_eq!(sent::<VersionResponse>(&response)[0].version_supported, 1);
    assert_eq!(types(&say(&mut s, &request_offers())), [1, 4]);
    (s, id)
}

fn gpadl(channel_id: ChannelId, id: u32, pages: u64) -> Vec<u8> {
    let range = GpaRange { byte_count: pages as u32 * 4096, byte_offset: 0 };
    let header = GpadlHeader {
        channel_id,
        gpadl_id: GpadlId(id),
        range_bytes: 8 + pages as u16 * 8,
        range_count: 1,
        ..GpadlHeader::empty()
    };
    let mut bytes = [header.as_bytes(), range.as_bytes()].concat();
    (0..pages).for_each(|p| bytes.extend((0x100 + p).to_le_bytes()));
    bytes
}

fn open(channel_id: ChannelId, ring: u32) -> OpenChannel {
    OpenChannel {
        channel_id,
        open_id: 9,
        ring_gpadl: GpadlId(ring),
        target_vp: 1,
        downstream_page_offset: 2,
        ..OpenChannel::empty()
    }
}

/// Makes a ring and opens a channel with it.
fn opened(s: &mut Server, id: ChannelId, ring: u32) {
    s.message(PORT, &gpadl(id, ring, 4));
    assert!(sent::<GpadlCreated>(&s.take_actions())[0].status.is_success());
    let actions = say(s, &open(id, ring));
    let Action::Open(opening) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((opening.channel, opening.target_vp, opening.downstream_page), (id, 1, 2));
    assert!(sent::<OpenResult>(&actions)[0].status.is_success());
}

#[test]
fn versions_are_agreed_on() {
    for version in Version::ALL {
        for port in [ConnectionId::MESSAGE, ConnectionId::MESSAGE_V5] {
            let mut s = server();
            s.message(port, contact(version, 3).as_bytes());
            let actions = s.take_actions();
            let Action::Send { vp, sint, .. } = &actions[0] else { panic!() };
            assert_eq!((*vp, *sint), (3, 2));
            let response = sent::<VersionResponse>(&actions)[0];
            let new = version >= Version::V5_0;
            let right_port = new == (port == ConnectionId::MESSAGE_V5);
            let good = VERSIONS.contains(&version) && right_port;
            assert_eq!(response.version_supported != 0, good, "{version} at {port:?}");
            assert_eq!(s.version(), good.then_some(version));
            let expected = if new { 4 } else { version.0 };
            assert_eq!(response.connection_id_or_version, if good { expected } else { 0 });
        }
    }
    let mut s = server();
    assert!(say(&mut s, &contact(Version::V5_3, 4)).is_empty(), "no such processor");
    assert!(say(&mut s, &request_offers()).is_empty(), "not connected");
    assert_eq!(s.malformed(), 2);
}

#[test]
fn offers_come_once_and_later_ones_at_once() {
    let (mut s, id) = connected();
    assert!(say(&mut s, &request_offers()).is_empty());
    let second = s.offer(1, &offer()).unwrap();
    let offers = sent::<OfferChannel>(&s.take_actions());
    assert_eq!((offers.len(), offers[0].channel_id), (1, second));
    assert_ne!(second, id);
    assert_eq!(offers[0].connection_id.0, 0x2000 | second.0);
    assert!(offers[0].has_dedicated_interrupt());
    assert!(s.is_event_connection(offers[0].connection_id));
}

#[test]
fn closing_waits_for_the_worker() {
    let (mut s, id) = connected();
    opened(&mut s, id, 7);
    let teardown = GpadlTeardown { channel_id: id, gpadl_id: GpadlId(7), ..GpadlTeardown::empty() };
    assert!(say(&mut s, &teardown).is_empty(), "in use");
    let close = CloseChannel { channel_id: id, ..CloseChannel::empty() };
    assert!(matches!(say(&mut s, &close)[..], [Action::Close(c)] if c == id));
    assert!(say(&mut s, &teardown).is_empty(), "the worker still has it");
    assert!(say(&mut s, &close).is_empty(), "twice");
    s.closed(id);
    assert_eq!(sent::<GpadlTorndown>(&s.take_actions())[0].gpadl_id, GpadlId(7));
    // And again.
    opened(&mut s, id, 7);
}

#[test]
fn openings_that_are_refused() {
    let (mut s, id) = connected();
    let status = |actions: &[Action]| sent::<OpenResult>(actions)[0].status;
    assert!(!status(&say(&mut s, &open(id, 1))).is_success(), "no such GPADL");
    assert!(say(&mut s, &open(ChannelId(99), 1)).is_empty());
    s.message(PORT, &gpadl(id, 1, 4));
    s.take_actions();
    let wrong_vp = OpenChannel { target_vp: 4, ..open(id, 1) };
    assert!(!status(&say(&mut s, &wrong_vp)).is_success());
    let mut actions = say(&mut s, &open(id, 1));
    s.not_opened(id, &mut actions[1..]);
    assert!(!status(&actions).is_success());
    assert!(status(&say(&mut s, &open(id, 1))).is_success(), "after a failure");
    assert!(!status(&say(&mut s, &open(id, 1))).is_success(), "twice");
}

#[test]
fn unload_and_new_contact_close_everything() {
    for again in [false, true] {
        let (mut s, id) = connected();
        opened(&mut s, id, 7);
        let actions = if again {
            s.message(ConnectionId::MESSAGE, contact(Version::V4_0, 1).as_bytes());
            s.take_actions()
        } else {
            say(&mut s, &MessageHeader::new(MessageType::UNLOAD))
        };
        assert!(matches!(actions[..], [Action::Close(_)]), "{actions:?}");
        assert!(say(&mut s, &request_offers()).is_empty(), "leaving");
        s.closed(id);
        let actions = s.take_actions();
        assert_eq!(types(&actions), [if again { 15 } else { 17 }]);
        assert_eq!(s.version(), again.then_some(Version::V4_0));
        assert!(s.gpadl(id, GpadlId(7)).is_none());
        if again {
            s.message(ConnectionId::MESSAGE, request_offers().as_bytes());
            assert_eq!(types(&s.take_actions()), [1, 4], "offered anew");
        }
    }
}

#[test]
fn revoked_channels_are_rescinded_when_closed() {
    let (mut s, id) = connected();
    opened(&mut s, id, 7);
    s.revoke(0);
    assert!(matches!(s.take_actions()[..], [Action::Close(c)] if c == id));
    s.closed(id);
    let actions = s.take_actions();
    assert_eq!(sent::<RescindChannelOffer>(&actions)[0].channel_id, id);
    assert!(!sent::<OpenResult>(&say(&mut s, &open(id, 7)))[0].status.is_success());
    let close = CloseChannel { channel_id: id, ..CloseChannel::empty() };
    let malformed = s.malformed();
    say(&mut s, &close);
    assert_eq!(s.malformed(), malformed, "guests close what was rescinded");
    let next = s.offer(1, &offer()).unwrap();
    assert_ne!(next, id, "the number is still the guest's");
    assert!(s.take_actions().is_empty(), "so is the name");
    let actions = say(&mut s, &RelidReleased { channel_id: id, ..RelidReleased::empty() });
    assert_eq!(sent::<OfferChannel>(&actions)[0].channel_id, next);
    assert_eq!(s.offer(2, &offer()), Some(id));
    // One the guest never saw just goes.
    let mut s = server();
    s.offer(0, &offer()).unwrap();
    s.revoke(0);
    assert!(s.take_actions().is_empty());
    assert_eq!(s.offer(0, &offer()), Some(ChannelId(1)));
}

#[test]
fn sub_channels_follow_their_primary() {
    let (mut s, id) = connected();
    assert!(!s.offer_sub_channels(id, 2), "not open");
    opened(&mut s, id, 7);
    assert!(s.offer_sub_channels(id, 2));
    let offers = sent::<OfferChannel>(&s.take_actions());
    assert_eq!(offers.iter().map(|o| o.sub_channel_index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(offers[0].interface_instance, offers[1].interface_instance);
    assert!(s.offer_sub_channels(id, 3));
    assert_eq!(sent::<OfferChannel>(&s.take_actions()).len(), 1, "only the third is new");
    let sub = offers[0].channel_id;
    opened(&mut s, sub, 8);
    say(&mut s, &CloseChannel { channel_id: id, ..CloseChannel::empty() });
    s.closed(id);
    let actions = s.take_actions();
    assert_eq!(sent::<RescindChannelOffer>(&actions).len(), 2, "the open one is closed first");
    assert!(actions.iter().any(|a| matches!(a, Action::Close(c) if *c == sub)));
    s.closed(sub);
    assert_eq!(sent::<RescindChannelOffer>(&s.take_actions())[0].channel_id, sub);
}

#[test]
fn targets_are_modified() {
    let (mut s, id) = connected();
    let modify = |target_vp| ModifyChannel { channel_id: id, target_vp, ..ModifyChannel::empty() };
    let good = |actions: &[Action]| sent::<ModifyChannelResponse>(actions)[0].status.is_success();
    assert!(!good(&say(&mut s, &modify(0))), "closed");
    opened(&mut s, id, 7);
    let actions = say(&mut s, &modify(3));
    assert!(good(&actions));
    assert!(matches!(actions[0], Action::Retarget(c, 3) if c == id));
    assert!(!good(&say(&mut s, &modify(4))));
    assert!(good(&say(&mut s, &modify(VP_INDEX_NO_INTERRUPT))));
}

#[test]
fn sockets_are_refused() {
    let (mut s, _) = connected();
    let guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    let request = TlConnectRequest { service_id: guid, ..TlConnectRequest::empty() };
    let result = sent::<TlConnectResult>(&say(&mut s, &request))[0];
    assert_eq!((result.service_id, result.status), (guid, NtStatus::CONNECTION_REFUSED));
}

#[test]
fn monitor_numbers_are_given_out_once() {
    let mut s = server();
    let monitored = Offer { monitored: true, ..offer() };
    for device in 0..3 {
        s.offer(device, &monitored).unwrap();
    }
    say(&mut s, &contact(Version::V5_3, 0));
    let offers = sent::<OfferChannel>(&say(&mut s, &request_offers()));
    assert_eq!(
        offers.iter().map(OfferChannel::monitor).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2)]
    );
}

proptest! {
    /// Whatever a guest posts, in whatever order, the server stays consistent and
    /// answers the one who behaves.
    #[test]
    fn any_messages(
        messages in proptest::collection::vec(
            (0u32..30, proptest::collection::vec(0u8..8, 0..60), any::<bool>()), 0..60),
    ) {
        let (mut s, id) = connected();
        s.offer(1, &offer()).unwrap();
        for (kind, body, close) in messages {
            let mut bytes = [kind.to_le_bytes(), [0; 4]].concat();
            bytes.extend(body);
            s.message(PORT, &bytes);
            for action in s.take_actions() {
                if let Action::Close(channel) = action {
                    s.closed(channel);
                }
            }
            if close {
                s.closed(id);
            }
        }
        s.message(ConnectionId::MESSAGE, contact(Version::V4_1, 0).as_bytes());
        for action in s.take_actions() {
            if let Action::Close(channel) = action {
                s.closed(channel);
            }
        }
        prop_assert_eq!(s.version(), Some(Version::V4_1));
    }
}
