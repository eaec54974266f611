use super::*;
use hv_abi::HvStatus;
use hv_abi::vmbus::version::ConnectionState;
use hv_abi::vmbus::{
    ConnectionId, ControlMessage, InitiateContact, MessageHeader, Version, VersionResponse,
};
use zerocopy::IntoBytes;

#[test]
fn versions_are_proposed_from_the_newest() {
    for version in [Version::V5_3, Version::V5_2, Version::V5_0, Version::V4_1, Version::V3_0] {
        let mut bench = Bench::new();
        bench.server.version = version;
        bench.bus.connect();
        bench.run();
        assert_eq!(bench.bus.version(), Some(version));
        assert_eq!(bench.driver.events(), [Event::Connected(version), Event::OffersDelivered]);
        let proposed = &bench.server.proposed;
        assert!(proposed.is_sorted_by(|a, b| a.0 > b.0), "{proposed:?}");
        for (version, to) in proposed {
            let expected = if *version >= Version::V5_0 { 4 } else { 1 };
            assert_eq!(to.0, expected, "{version}");
        }
    }
}

#[test]
fn a_host_without_a_common_version() {
    let mut bench = Bench::new();
    bench.server.version = Version::V2_4;
    bench.bus.connect();
    bench.run();
    assert_eq!(bench.server.proposed.len(), 7);
    assert_eq!(bench.driver.events(), [Event::Disconnected]);
    assert_eq!(bench.bus.version(), None);
    assert_eq!(bench.bus.next_poll_ns(), u64::MAX);
    // It may be tried again.
    bench.server.version = Version::V4_0;
    bench.bus.connect();
    bench.run();
    assert_eq!(bench.bus.version(), Some(Version::V4_0));
}

#[test]
fn hosts_of_old_know_only_the_first_connection() {
    let mut bench = Bench::new();
    bench.fake.inner().connections = vec![1];
    bench.server.version = Version::V4_1;
    bench.bus.connect();
    bench.run();
    assert_eq!(bench.bus.version(), Some(Version::V4_1));
    assert_eq!(bench.server.proposed.len(), 1, "5.x had nowhere to go");
}

#[test]
fn no_vmbus_at_all() {
    let mut bench = Bench::new();
    bench.fake.inner().connections = vec![9];
    bench.bus.connect();
    bench.run();
    assert_eq!(bench.driver.events(), [Event::Disconnected]);
    assert_eq!(bench.bus.next_poll_ns(), u64::MAX);
}

#[test]
fn what_the_proposal_says() {
    for (version, third_is_page) in [(Version::V5_3, false), (Version::V4_1, true)] {
        let mut bench = Bench::new();
        bench.fake.inner().vp_index = 5;
        bench.server.version = version;
        bench.server.ignore.push(MessageType::INITIATE_CONTACT);
        bench.bus.connect();
        bench.run();
        let unsupported = VersionResponse::empty();
        while bench.server.ignored.len() < 10 {
            let message = bench.server.ignored.pop().expect("a proposal");
            let contact = InitiateContact::parse(&message).expect("whole");
            if contact.version > version {
                bench.bus.on_message(unsupported.as_bytes());
                bench.run();
                continue;
            }
            assert_eq!(contact.target_vp, 5);
            let third = contact.interrupt_page_or_target_info;
            if third_is_page {
                assert!(bench.fake.page::<hv_abi::vmbus::InterruptPage>(third >> 12).is_some());
            } else {
                assert_eq!((contact.target_info().sint(), third), (2, 2));
            }
            for page in [contact.parent_to_child_monitor_page, contact.child_to_parent_monitor_page]
            {
                assert!(bench.fake.page::<hv_abi::vmbus::MonitorPage>(page >> 12).is_some());
            }
            break;
        }
    }
}

#[test]
fn a_host_that_does_not_answer() {
    let mut bench = Bench::new();
    bench.bus.connect();
    bench.run_without(MessageType::INITIATE_CONTACT);
    bench.pass(9 * SECOND);
    assert_eq!(bench.driver.events(), []);
    bench.pass(2 * SECOND);
    assert_eq!(bench.driver.events(), [Event::Disconnected]);
    assert_eq!(bench.count(Counter::TimedOut), 1);
    // Its late answer is nobody's.
    bench.answer_ignored();
    assert_eq!(bench.bus.version(), None);
    assert_eq!(bench.count(Counter::Unexpected), 1);
}

#[test]
fn a_host_that_supports_the_version_but_fails() {
    for (connection_state, id) in [(1, 5), (0, 0), (0, 0x100_0000)] {
        let bench = Bench::new();
        bench.bus.connect();
        let response = VersionResponse {
            version_supported: 1,
            connection_state: ConnectionState(connection_state),
            connection_id_or_version: id,
            ..VersionResponse::empty()
        };
        bench.bus.on_message(response.as_bytes());
        assert_eq!(bench.driver.events(), [Event::Disconnected]);
        assert_eq!(bench.bus.version(), None);
    }
}

#[test]
fn a_short_version_response_is_enough() {
    let mut bench = Bench::new();
    bench.server.version = Version::V3_0;
    bench.bus.connect();
    bench.run_without(MessageType::INITIATE_CONTACT);
    let mut response = VersionResponse::empty();
    for _ in 0..6 {
        bench.bus.on_message(&response.as_bytes()[..9]);
    }
    response.version_supported = 1;
    bench.bus.on_message(&response.as_bytes()[..8]);
    assert_eq!(bench.count(Counter::Malformed), 1);
    bench.bus.on_message(&response.as_bytes()[..9]);
    assert_eq!(bench.bus.version(), Some(Version::V3_0));
}

#[test]
fn refused_messages_are_posted_again() {
    let mut bench = Bench::connected();
    bench.fake.inner().refuse.extend([
        HvStatus::INSUFFICIENT_BUFFERS,
        HvStatus::INSUFFICIENT_MEMORY,
        HvStatus::INVALID_CONNECTION_ID,
    ]);
    let large = OpenParams { outgoing_pages: 300, ..PARAMS };
    bench.bus.open(ID, &large).expect("it is closed");
    let mut waits = Vec::new();
    while bench.driver.events() != [Event::Opened(ID)] {
        bench.run();
        let next = bench.bus.next_poll_ns();
        let now = bench.fake.inner().now_ns;
        if next < now + SECOND {
            waits.push(next - now);
            bench.fake.advance(next - now);
        }
        assert!(waits.len() < 10);
    }
    assert_eq!(waits, [100_000, 200_000, 400_000]);
    assert_eq!(bench.count(Counter::PostRetry), 3);
    assert_eq!(bench.server.channels[&ID.0].incoming.max_bytes(), 300 * 4096);
}

#[test]
fn a_host_that_takes_nothing_any_more() {
    for status in [HvStatus::INSUFFICIENT_BUFFERS, HvStatus::ACCESS_DENIED] {
        let mut bench = Bench::connected();
        bench.fake.inner().refuse = vec![status; 10_000].into();
        bench.bus.open(ID, &PARAMS).expect("it is closed");
        for _ in 0..2000 {
            bench.pass(SECOND / 10);
        }
        let events = bench.driver.events();
        assert!(events.contains(&Event::Disconnected), "{status:?} {events:?}");
        let tries = 10_000 - bench.fake.inner().refuse.len();
        assert!(tries < 700, "{tries}");
    }
}

#[test]
fn nothing_is_allocated_that_is_not_there() {
    for pages in 0..OWN_PAGES + 5 {
        let mut bench = Bench::new();
        bench.fake.inner().free_pages = pages;
        bench.server.offer(ID.0, interface::SCSI, 1, 0);
        bench.bus.connect();
        bench.run();
        if pages < OWN_PAGES {
            assert_eq!(bench.driver.events(), [Event::Disconnected]);
            assert_eq!(bench.fake.pages_in_use(), 0);
        } else {
            let opened = bench.bus.open(ID, &PARAMS);
            let enough = pages == OWN_PAGES + 5;
            assert_eq!(opened, if enough { Ok(()) } else { Err(OpenError::NoMemory) });
            assert_eq!(bench.fake.pages_in_use(), if enough { pages } else { OWN_PAGES });
        }
    }
}

#[test]
fn unload_waits_for_its_answer() {
    let bench = Bench::connected();
    let other = MessageHeader::new(MessageType::ALL_OFFERS_DELIVERED).as_bytes().to_vec();
    let answer = MessageHeader::new(MessageType::UNLOAD_RESPONSE).as_bytes().to_vec();
    bench.fake.inner().refuse.extend([HvStatus::INSUFFICIENT_BUFFERS; 3]);
    bench.fake.inner().messages.extend([vec![], vec![1, 2, 3], other, answer]);
    // Whatever lock a crashed processor holds.
    let _state = bench.bus.state.lock();
    let _open = bench.bus.open.write();
    assert!(bench.bus.unload(SECOND));
    let posted = bench.fake.inner().posted.pop_back().expect("it was posted");
    assert_eq!(posted.0, ConnectionId(0x1234));
    assert_eq!(posted.1, MessageHeader::new(MessageType::UNLOAD).as_bytes());
    assert!(bench.bus.unload(SECOND), "once is enough");
    assert!(bench.fake.inner().posted.is_empty());
}

#[test]
fn unload_is_bounded() {
    let bench = Bench::connected();
    assert!(!bench.bus.unload(SECOND));
    let bench = Bench::connected();
    bench.fake.inner().refuse = vec![HvStatus::INSUFFICIENT_BUFFERS; 100_000].into();
    assert!(!bench.bus.unload(SECOND / 100));
    let bench = Bench::connected();
    bench.fake.inner().refuse = vec![HvStatus::ACCESS_DENIED].into();
    assert!(!bench.bus.unload(SECOND));
    // Before any connection there is nobody to tell.
    assert!(Bench::new().bus.unload(SECOND));
    assert!(Bench::new().fake.inner().posted.is_empty());
}

#[test]
fn unload_may_be_answered_on_another_processor() {
    let bench = Bench::connected();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while bench.fake.inner().posted.is_empty() {
                std::thread::yield_now();
            }
            bench.bus.on_message(MessageHeader::new(MessageType::UNLOAD_RESPONSE).as_bytes());
        });
        assert!(bench.bus.unload(u64::MAX));
    });
}
