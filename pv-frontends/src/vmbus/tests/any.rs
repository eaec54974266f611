//! Any host.

use super::*;
use hv_abi::vmbus::message::{ModifyChannelResponse, OpenResult};
use hv_abi::vmbus::{
    ControlMessage, GpadlCreated, GpadlId, GpadlTorndown, NtStatus, RescindChannelOffer,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Raw(Vec<u8>),
    Open(u32),
    Close(u32),
    Retarget(u32),
    Gpadl(u32, usize),
    Teardown(u32),
    Offer(u32),
    Rescind(u32),
    OpenResult(u32, u32, bool),
    GpadlCreated(u32, u32, bool),
    GpadlTorndown(u32),
    Modified(u32, bool),
    /// The sane host answers this many messages.
    Sane(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1..6_u32;
    let gpadl = || 0x1_0001..0x1_0008_u32;
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..250).prop_map(Step::Raw),
        1 => (0..32u8, prop::collection::vec(any::<u8>(), 7..60))
            .prop_map(|(t, b)| Step::Raw([&[t, 0, 0, 0][..], &b].concat())),
        4 => id().prop_map(Step::Open),
        2 => id().prop_map(Step::Close),
        1 => id().prop_map(Step::Retarget),
        1 => (id(), 1..100usize).prop_map(|(i, n)| Step::Gpadl(i, n)),
        1 => gpadl().prop_map(Step::Teardown),
        2 => id().prop_map(Step::Offer),
        2 => id().prop_map(Step::Rescind),
        2 => (id(), 1..4u32, any::<bool>()).prop_map(|(i, o, s)| Step::OpenResult(i, o, s)),
        2 => (id(), gpadl(), any::<bool>()).prop_map(|(i, g, s)| Step::GpadlCreated(i, g, s)),
        2 => gpadl().prop_map(Step::GpadlTorndown),
        1 => (id(), any::<bool>()).prop_map(|(i, s)| Step::Modified(i, s)),
        6 => (0..6usize).prop_map(Step::Sane),
        1 => (0..90 * SECOND).prop_map(Step::Pass),
    ]
}

const fn status(good: bool) -> NtStatus {
    if good { NtStatus::SUCCESS } else { NtStatus::UNSUCCESSFUL }
}

proptest! {
    /// A host that says anything at any time: no panic, no page freed twice, no page lost once
    /// every channel is rescinded, and events that make sense in their order.
    #[test]
    fn any_host_is_survived(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::connected();
        bench.server.offers.clear();
        for step in steps {
            take(&mut bench, &step);
        }
        // The end: everything is taken back.
        for id in 1..8 {
            bench.rescind(ChannelId(id));
        }
        bench.fake.inner().posted.clear();
        bench.bus.poll();
        bench.fake.advance(200 * SECOND);
        bench.bus.poll();
        bench.bus.poll();
        prop_assert!(bench.fake.pages_in_use() == OWN_PAGES);
        sensible(&bench.driver.events());
    }
}

fn take(bench: &mut Bench, step: &Step) {
    let bus = &bench.bus;
    match *step {
        Step::Raw(ref bytes) => bus.on_message(bytes),
        Step::Open(id) => drop(bus.open(ChannelId(id), &PARAMS)),
        Step::Close(id) => drop(bus.close(ChannelId(id))),
        Step::Retarget(id) => drop(bus.retarget(ChannelId(id), 1)),
        Step::Gpadl(id, pages) => drop(bus.create_gpadl(ChannelId(id), &vec![1; pages])),
        Step::Teardown(id) => drop(bus.teardown_gpadl(GpadlId(id))),
        Step::Offer(id) => {
            bench.server.offer(id, interface::SCSI, 1, 0);
            bench.server.announce(bus, id);
        }
        Step::Rescind(id) => {
            let rescind =
                RescindChannelOffer { channel_id: ChannelId(id), ..RescindChannelOffer::empty() };
            bus.on_message(rescind.as_bytes());
        }
        Step::OpenResult(id, open_id, good) => {
            let (channel_id, status) = (ChannelId(id), status(good));
            bus.on_message(
                OpenResult { channel_id, open_id, status, ..OpenResult::empty() }.as_bytes(),
            );
        }
        Step::GpadlCreated(id, gpadl, good) => {
            let (channel_id, gpadl_id, status) = (ChannelId(id), GpadlId(gpadl), status(good));
            let created = GpadlCreated { channel_id, gpadl_id, status, ..GpadlCreated::empty() };
            bus.on_message(created.as_bytes());
        }
        Step::GpadlTorndown(gpadl) => {
            let gpadl_id = GpadlId(gpadl);
            bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
        }
        Step::Modified(id, good) => {
            let (channel_id, status) = (ChannelId(id), status(good));
            let answer =
                ModifyChannelResponse { channel_id, status, ..ModifyChannelResponse::empty() };
            bus.on_message(answer.as_bytes());
        }
        Step::Sane(count) => sane(bench, count),
        Step::Pass(ns) => {
            bench.fake.advance(ns);
            bus.poll();
        }
    }
    bench.bus.poll();
    let channel = bench.bus.channel(ChannelId(1));
    if let Some(channel) = channel {
        bench.bus.send(&channel, &packet(1, &[0; 50])).map_or_else(
            |error| assert!(matches!(error, SendError::Full | SendError::Closed)),
            |()| (),
        );
    }
}

/// Answers as a sane host would that forgot everything it did.
fn sane(bench: &mut Bench, count: usize) {
    use hv_abi::vmbus::GpadlHeader;
    use hv_abi::vmbus::gpadl::GpadlTeardown;
    use hv_abi::vmbus::message::OpenChannel;
    for _ in 0..count {
        let Some((_, message)) = bench.fake.inner().posted.pop_front() else { return };
        if let Some(m) = GpadlHeader::parse(&message) {
            take(bench, &Step::GpadlCreated(m.channel_id.0, m.gpadl_id.0, true));
        } else if let Some(m) = OpenChannel::parse(&message) {
            take(bench, &Step::OpenResult(m.channel_id.0, m.open_id, true));
        } else if let Some(m) = GpadlTeardown::parse(&message) {
            take(bench, &Step::GpadlTorndown(m.gpadl_id.0));
        }
    }
}

/// What a driver may rely on.
fn sensible(events: &[Event]) {
    use alloc::collections::BTreeMap;
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Known {
        Closed,
        Open,
        Late,
    }
    let mut known: BTreeMap<ChannelId, Known> = BTreeMap::from([(ID, Known::Closed)]);
    for event in events {
        let state = |id: &ChannelId| *known.get(id).unwrap_or_else(|| panic!("{event:?}"));
        match event {
            Event::Offered(offer) => {
                assert!(known.insert(offer.channel_id, Known::Closed).is_none(), "{event:?}");
            }
            Event::Opened(id) => {
                assert_eq!(state(id), Known::Closed);
                known.insert(*id, Known::Open);
            }
            Event::OpenFailed(id, error) => {
                assert_eq!(state(id), Known::Closed);
                if *error == OpenError::TimedOut {
                    known.insert(*id, Known::Late);
                }
            }
            Event::Broken(id) => assert_eq!(state(id), Known::Open),
            Event::Closed(id) => {
                state(id);
                known.insert(*id, Known::Closed);
            }
            Event::Rescinded(id) => drop(known.remove(id).expect("it was offered")),
            Event::Retargeted(id, _)
            | Event::GpadlCreated(id, ..)
            | Event::GpadlTorndown(id, _) => drop(state(id)),
            Event::Connected(_) | Event::OffersDelivered | Event::Disconnected => {}
        }
    }
}
