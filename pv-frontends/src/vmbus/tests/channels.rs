use super::*;
use core::sync::atomic::Ordering;
use hv_abi::synic::EventFlags;
use hv_abi::vmbus::message::OpenResult;
use hv_abi::vmbus::{ControlMessage, GpadlCreated, GpadlId, GpadlTorndown, NtStatus, Version};
use zerocopy::{FromZeros, IntoBytes};

impl<M: ring::RingMemory> ring::Incoming<M> {
    pub(super) fn max_bytes(&self) -> u32 {
        self.memory().data_bytes()
    }
}

#[test]
fn a_channel_opens_carries_packets_and_closes() {
    let mut bench = Bench::opened();
    let channel = bench.bus.channel(ID).expect("it is open");
    assert_eq!((channel.id(), channel.target_vp(), channel.is_open()), (ID, 3, true));
    let host = bench.server.channels.get_mut(&ID.0).expect("open");
    assert_eq!((host.open.target_vp, host.open.downstream_page_offset), (3, 3));
    assert_eq!((host.incoming.max_bytes(), host.outgoing.memory().clone_len()), (8192, 4096));

    // To the host: one signal for a ring that was empty.
    bench.bus.send(&channel, &packet(1, b"first")).expect("there is room");
    bench.bus.send(&channel, &packet(2, b"second")).expect("there is room");
    assert_eq!(
        bench.fake.inner().signals.drain(..).collect::<Vec<_>>(),
        [channel.offer().connection_id]
    );
    let mut seen = Vec::new();
    host.incoming.receive(9, |packet| seen.push(packet.transaction_id())).expect("sound");
    assert_eq!(seen, [1, 2]);

    // And back, by the event flag.
    assert_eq!(host.outgoing.write(&packet(3, b"answered")), Ok(true));
    let flags = EventFlags::new_zeroed();
    flags.words[0].store(1 << ID.0 | 1 << 9 | 1, Ordering::Relaxed);
    flags.words[31].store(u64::MAX, Ordering::Relaxed);
    bench.bus.on_event_flags(&flags);
    assert_eq!(bench.driver.received(), [(ID, 3, b"answered".to_vec())]);
    assert_eq!(flags.words[0].load(Ordering::Relaxed), 0);
    let never_open = flags.words[31].load(Ordering::Relaxed);
    assert_eq!(never_open, u64::MAX, "nobody's flags are not looked at");

    bench.bus.close(ID).expect("it is open");
    assert!(!channel.is_open());
    assert!(bench.bus.channel(ID).is_none());
    assert_eq!(bench.bus.send(&channel, &packet(4, &[])), Err(SendError::Closed));
    assert_eq!(bench.bus.open(ID, &PARAMS), Err(OpenError::NotClosed));
    bench.run();
    assert_eq!(bench.driver.events(), [Event::Closed(ID)]);
    assert_eq!((bench.fake.pages_in_use(), bench.server.gpadl_count()), (OWN_PAGES, 0));
    assert_eq!(bench.bus.close(ID), Err(CloseError::State));

    bench.bus.open(ID, &PARAMS).expect("again");
    bench.run();
    assert_eq!(bench.driver.events(), [Event::Opened(ID)]);
}

impl PagedRing {
    fn clone_len(&self) -> u32 {
        ring::RingMemory::data_bytes(self)
    }
}

#[test]
fn sizes_of_rings() {
    let mut bench = Bench::connected();
    for (outgoing_pages, incoming_pages) in [(0, 1), (1, 0), (8188, 1), (u32::MAX, u32::MAX)] {
        let params = OpenParams { outgoing_pages, incoming_pages, ..PARAMS };
        assert_eq!(bench.bus.open(ID, &params), Err(OpenError::Size));
    }
    let params = OpenParams { outgoing_pages: 8187, ..PARAMS };
    bench.bus.open(ID, &params).expect("the largest");
    bench.run();
    assert_eq!(bench.driver.events(), [Event::Opened(ID)]);
    assert_eq!(bench.bus.open(ChannelId(99), &PARAMS), Err(OpenError::NoChannel));
}

#[test]
fn the_host_refuses() {
    let mut bench = Bench::connected();
    bench.server.open_status = NtStatus::UNSUCCESSFUL;
    bench.bus.open(ID, &PARAMS).expect("it is closed");
    bench.run();
    let refused = Event::OpenFailed(ID, OpenError::Refused(NtStatus::UNSUCCESSFUL));
    assert_eq!(bench.driver.events(), [refused]);
    assert_eq!((bench.fake.pages_in_use(), bench.server.gpadl_count()), (OWN_PAGES, 0));

    bench.server.gpadl_status = NtStatus::NO_MEMORY;
    bench.bus.open(ID, &PARAMS).expect("it is closed");
    bench.run();
    let refused = Event::OpenFailed(ID, OpenError::Refused(NtStatus::NO_MEMORY));
    assert_eq!(bench.driver.events(), [refused]);
    assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);
    assert_eq!(bench.bus.channel(ID).map(|_| ()), None);
}

/// The moments in an open's life at which something else may happen.
const STAGES: [MessageType; 2] = [MessageType::GPADL_HEADER, MessageType::OPEN_CHANNEL];

#[test]
fn closing_what_is_being_opened() {
    for stage in STAGES {
        let mut bench = Bench::connected();
        bench.bus.open(ID, &PARAMS).expect("it is closed");
        bench.run_without(stage);
        bench.bus.close(ID).expect("it is being opened");
        bench.answer_ignored();
        assert_eq!(bench.driver.events(), [Event::Closed(ID)], "{stage:?}");
        assert_eq!((bench.fake.pages_in_use(), bench.server.gpadl_count()), (OWN_PAGES, 0));
        assert!(bench.server.channels.is_empty());
    }
}

#[test]
fn an_open_that_is_not_answered_in_time() {
    for stage in STAGES {
        let mut bench = Bench::connected();
        bench.bus.open(ID, &PARAMS).expect("it is closed");
        bench.run_without(stage);
        bench.pass(61 * SECOND);
        assert_eq!(bench.driver.events(), [Event::OpenFailed(ID, OpenError::TimedOut)]);
        assert_eq!(bench.bus.open(ID, &PARAMS), Err(OpenError::NotClosed));
        bench.pass(61 * SECOND);
        assert_eq!(bench.driver.events(), []);
        bench.answer_ignored();
        assert_eq!(bench.driver.events(), [Event::Closed(ID)], "{stage:?}");
        assert_eq!((bench.fake.pages_in_use(), bench.server.gpadl_count()), (OWN_PAGES, 0));
    }
}

#[test]
fn rescinded_at_any_moment() {
    let stages = [None, Some(STAGES[0]), Some(STAGES[1]), Some(MessageType::INVALID)];
    for stage in stages.into_iter().chain([Some(MessageType::GPADL_TEARDOWN)]) {
        let mut bench = match stage {
            Some(MessageType::GPADL_TEARDOWN) => {
                let mut bench = Bench::opened();
                bench.bus.close(ID).expect("it is open");
                bench.run_without(MessageType::GPADL_TEARDOWN);
                bench
            }
            _ => Bench::connected(),
        };
        let mut held = None;
        if let Some(stage) = stage.filter(|stage| *stage != MessageType::GPADL_TEARDOWN) {
            bench.bus.open(ID, &PARAMS).expect("it is closed");
            bench.run_without(stage);
            held = bench.bus.channel(ID);
        }
        bench.driver.events();
        bench.rescind(ID);
        assert_eq!(bench.driver.events(), [Event::Rescinded(ID)], "{stage:?}");
        if let Some(channel) = held {
            assert_eq!(bench.bus.send(&channel, &packet(1, &[])), Err(SendError::Closed));
        }
        bench.run();
        assert_eq!(bench.server.released, [ID.0]);
        assert_eq!(bench.bus.open(ID, &PARAMS), Err(OpenError::NoChannel));
        assert_eq!(bench.bus.close(ID), Err(CloseError::Unknown));
        // The host may be in the rings for a moment still.
        let held_back = if stage.is_some() { 5 } else { 0 };
        assert_eq!(bench.fake.pages_in_use(), OWN_PAGES + held_back);
        bench.pass(2 * SECOND);
        assert_eq!(bench.fake.pages_in_use(), OWN_PAGES);

        // Answers that were on their way find nobody.
        let mut late = OpenResult { channel_id: ID, open_id: 1, ..OpenResult::empty() };
        bench.bus.on_message(late.as_bytes());
        late.status = NtStatus::UNSUCCESSFUL;
        bench.bus.on_message(late.as_bytes());
        assert_eq!(bench.count(Counter::UnknownChannel), 2);
        bench.rescind(ID);
        assert_eq!(bench.count(Counter::UnknownChannel), 3);

        // The number is used again.
        bench.server.offer(ID.0, interface::SCSI, 2, 0);
        bench.server.announce(&bench.bus, ID.0);
        bench.bus.open(ID, &PARAMS).expect("offered again");
        bench.run();
        let events = bench.driver.events();
        assert!(matches!(events[..], [Event::Offered(_), Event::Opened(ID)]), "{events:?}");
    }
}

#[test]
fn offers_that_cannot_be() {
    let mut bench = Bench::connected();
    bench.server.announce(&bench.bus, ID.0);
    assert_eq!(bench.count(Counter::Unexpected), 1, "it was not given back");
    for id in [0, 2048, u32::MAX] {
        bench.server.offer(id, interface::SCSI, 1, 0);
        bench.server.announce(&bench.bus, id);
    }
    assert_eq!(bench.count(Counter::Malformed), 3);
    let whole = bench.server.offers[&ID.0];
    bench.bus.on_message(&whole.as_bytes()[..195]);
    assert_eq!(bench.count(Counter::Malformed), 4);
    assert_eq!(bench.driver.events(), []);
    // Nobody wants it: rescinded, it is given back all the same.
    bench.server.offer(9, interface::NETWORK, 1, 0);
    bench.server.announce(&bench.bus, 9);
    assert_eq!(bench.bus.open(ChannelId(9), &PARAMS), Err(OpenError::NoChannel));
    bench.rescind(ChannelId(9));
    bench.run();
    assert_eq!((bench.driver.events(), &bench.server.released[..]), (vec![], &[9][..]));
}

#[test]
fn sub_channels_are_offers_of_the_same_instance() {
    let mut bench = Bench::opened();
    for index in 1..4_u16 {
        let id = 100 + u32::from(index);
        bench.server.offer(id, interface::SCSI, 1, index);
        bench.server.announce(&bench.bus, id);
        let params = OpenParams { target_vp: u32::from(index), ..PARAMS };
        bench.bus.open(ChannelId(id), &params).expect("offered");
    }
    bench.run();
    assert_eq!(bench.driver.events().len(), 6);
    for index in 1..4 {
        assert_eq!(bench.server.channels[&(100 + index)].open.target_vp, index);
    }
}

#[test]
fn retargeting() {
    for (version, answered) in
        [(Version::V5_3, true), (Version::V5_2, false), (Version::V4_1, false)]
    {
        let mut bench = Bench::new();
        bench.server.version = version;
        bench.server.offer(ID.0, interface::SCSI, 1, 0);
        bench.bus.connect();
        bench.run();
        assert_eq!(bench.bus.retarget(ID, 1), Err(CloseError::State));
        bench.bus.open(ID, &PARAMS).expect("it is closed");
        bench.run();
        bench.driver.events();
        let channel = bench.bus.channel(ID).expect("it is open");
        bench.bus.retarget(ID, 1).expect("it is open");
        assert_eq!(channel.target_vp(), if answered { 3 } else { 1 });
        if answered {
            assert_eq!(bench.bus.retarget(ID, 2), Err(CloseError::State));
        }
        bench.run();
        assert_eq!(bench.driver.events(), [Event::Retargeted(ID, NtStatus::SUCCESS)]);
        assert_eq!((channel.target_vp(), bench.server.channels[&ID.0].open.target_vp), (1, 1));
    }
    let mut bench = Bench::new();
    bench.server.version = Version::V4_0;
    bench.bus.connect();
    bench.run();
    assert_eq!(bench.bus.retarget(ID, 1), Err(CloseError::Version));
}

#[test]
fn gpadls_of_drivers() {
    let mut bench = Bench::opened();
    let gpfns: Vec<u64> = (0..1000).map(|nr| nr * 7).collect();
    let id = bench.bus.create_gpadl(ID, &gpfns).expect("offered");
    assert_eq!(bench.bus.teardown_gpadl(id), Err(CloseError::State), "not answered");
    bench.run();
    assert_eq!(bench.driver.events(), [Event::GpadlCreated(ID, id, NtStatus::SUCCESS)]);
    assert_eq!(bench.server.gpadl_pages(id), gpfns);
    bench.bus.teardown_gpadl(id).expect("it is there");
    bench.run();
    assert_eq!(bench.driver.events(), [Event::GpadlTorndown(ID, id)]);
    assert_eq!(bench.bus.teardown_gpadl(id), Err(CloseError::Unknown));
    assert_eq!(bench.bus.create_gpadl(ID, &[]), Err(OpenError::Size));
    assert_eq!(bench.bus.create_gpadl(ID, &vec![0; 8191]), Err(OpenError::Size));
    assert_eq!(bench.bus.create_gpadl(ChannelId(8), &[1]), Err(OpenError::NoChannel));

    // A channel's rings are not a driver's to take back.
    let ring = bench.server.channels[&ID.0].open.ring_gpadl;
    assert_eq!(bench.bus.teardown_gpadl(ring), Err(CloseError::State));

    // Rescinded half-way: the rest is not posted.
    let id = bench.bus.create_gpadl(ID, &vec![1; 8190]).expect("offered");
    bench.rescind(ID);
    bench.driver.events();
    let left = bench.fake.inner().posted.len();
    assert!(left < 40, "one batch, and RELID_RELEASED: {left}");
    assert_eq!(bench.bus.teardown_gpadl(id), Err(CloseError::Unknown));
}

#[test]
fn answers_to_nothing() {
    let bench = Bench::opened();
    let gpadl_id = GpadlId(0xabc);
    let created = GpadlCreated { channel_id: ID, gpadl_id, ..GpadlCreated::empty() };
    bench.bus.on_message(created.as_bytes());
    bench.bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
    let gpadl_id = bench.server.channels[&ID.0].open.ring_gpadl;
    let created = GpadlCreated { channel_id: ID, gpadl_id, ..GpadlCreated::empty() };
    bench.bus.on_message(created.as_bytes());
    bench.bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
    bench.bus.on_message(OpenResult { channel_id: ID, ..OpenResult::empty() }.as_bytes());
    assert_eq!(bench.count(Counter::Unexpected), 5);
    assert!(bench.bus.channel(ID).is_some_and(|channel| channel.is_open()));
    bench.bus.on_message(&[]);
    bench.bus.on_message(&[1; 7]);
    bench.bus.on_message(&[0xff; 500]);
    assert_eq!((bench.count(Counter::Malformed), bench.count(Counter::UnknownType)), (2, 1));
}

#[test]
fn a_corrupt_ring_closes_its_channel() {
    for host_to_guest in [true, false] {
        let mut bench = Bench::opened();
        let channel = bench.bus.channel(ID).expect("it is open");
        let host = &bench.server.channels[&ID.0];
        let word = ring::ControlWord::WriteIndex;
        if host_to_guest {
            ring::RingMemory::store(host.outgoing.memory(), word, 5, Ordering::Relaxed);
            bench.bus.on_signal(ID);
        } else {
            let word = ring::ControlWord::ReadIndex;
            ring::RingMemory::store(host.incoming.memory(), word, 5, Ordering::Relaxed);
            let large = vec![0; 5000];
            bench.bus.send(&channel, &packet(1, &large)).expect("there is room");
            let corrupt = SendError::Ring(ring::RingError::Index(5));
            assert_eq!(bench.bus.send(&channel, &packet(1, &large)), Err(corrupt));
        }
        assert_eq!(bench.bus.send(&channel, &packet(1, &[])), Err(SendError::Closed));
        bench.run();
        assert_eq!(bench.driver.events(), [Event::Broken(ID), Event::Closed(ID)]);
        assert_eq!(bench.count(Counter::RingCorrupt), 1);
        assert_eq!((bench.fake.pages_in_use(), bench.server.gpadl_count()), (OWN_PAGES, 0));
    }
}

#[test]
fn what_is_not_read_to_its_end_is_read_again() {
    let mut bench = Bench::opened();
    *bench.driver.budget.lock() = Some(2);
    let host = bench.server.channels.get_mut(&ID.0).expect("open");
    for id in 0..5 {
        host.outgoing.write(&packet(id, &[])).expect("there is room");
    }
    bench.bus.on_signal(ID);
    assert_eq!(bench.driver.received().len(), 2);
    assert_eq!(bench.bus.next_poll_ns(), 0);
    bench.bus.poll();
    assert_eq!(bench.driver.received().len(), 2);
    bench.bus.poll();
    assert_eq!(bench.driver.received().len(), 1);
    assert_eq!(bench.bus.next_poll_ns(), u64::MAX);
}

#[test]
fn hosts_below_5_may_want_a_bit_beside_the_signal() {
    for (version, dedicated) in [(Version::V4_1, 0), (Version::V4_1, 1), (Version::V5_3, 0)] {
        let mut bench = Bench::new();
        bench.server.version = version;
        bench.server.offer(70, interface::SCSI, 1, 0);
        bench.server.offers.get_mut(&70).expect("offered").is_dedicated_interrupt = dedicated;
        bench.bus.connect();
        bench.run();
        bench.bus.open(ChannelId(70), &PARAMS).expect("offered");
        bench.run();
        let channel = bench.bus.channel(ChannelId(70)).expect("it is open");
        bench.bus.send(&channel, &packet(1, &[])).expect("there is room");
        assert_eq!(bench.fake.inner().signals.len(), 1);
        // The first page the client allocated.
        let page = bench.fake.page::<hv_abi::vmbus::InterruptPage>(0x1000).expect("it is there");
        let expected = if version < Version::V5_0 && dedicated == 0 { 1 << 6 } else { 0 };
        assert_eq!(page.guest_to_host[1].load(Ordering::Relaxed), expected);
    }
}

/// Reads channels it knows.
#[derive(Default)]
struct Late {
    known: Mutex<Vec<ChannelId>>,
    read: Mutex<Vec<u64>>,
    /// The host, and how it is asked to open the channel: it answers while the driver is busy.
    host: Mutex<Option<(Server, Vec<u8>)>>,
}

impl Driver<Fake> for Late {
    fn wants(&self, _: &OfferChannel) -> bool {
        true
    }

    fn on_event(&self, bus: &VmBus<Fake>, event: &Event) {
        if let Event::Opened(id) = *event {
            self.known.lock().push(id);
        }
        if let Some((mut server, open)) = self.host.lock().take() {
            // As on another processor, with a packet at once and before the driver is told.
            server.answer(bus, hv_abi::vmbus::ConnectionId(server.message_connection), &open);
            let host = server.channels.get_mut(&ID.0).expect("open");
            assert_eq!(host.outgoing.write(&packet(5, b"early")), Ok(true));
            bus.on_signal(ID);
            bus.poll();
            assert!(self.known.lock().is_empty());
        }
    }

    fn on_signal(&self, bus: &VmBus<Fake>, channel: &Channel) -> Received {
        if !self.known.lock().contains(&channel.id()) {
            return Received::All;
        }
        bus.receive(channel, 9, |packet| self.read.lock().push(packet.transaction_id()))
    }
}

#[test]
fn what_came_before_the_driver_knew_the_channel_is_read() {
    let fake = Fake::default();
    let driver = Arc::new(Late::default());
    let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
    let bus = VmBus::new(fake.clone(), drivers);
    let mut server = Server::new(fake.clone());
    server.offer(ID.0, interface::SCSI, 1, 0);
    bus.connect();
    server.run(&bus);
    bus.open(ID, &PARAMS).expect("it is closed");
    server.ignore.push(MessageType::OPEN_CHANNEL);
    server.run(&bus);
    server.ignore.clear();
    let open = server.ignored.pop().expect("it was asked");
    server.offer(8, interface::SCSI, 2, 0);
    let offer = server.offers[&8];
    *driver.host.lock() = Some((server, open));
    bus.on_message(offer.as_bytes());
    assert_eq!(*driver.known.lock(), [ID]);
    assert!(bus.next_poll_ns() <= fake.inner().now_ns);
    bus.poll();
    assert_eq!(*driver.read.lock(), [5]);
}
