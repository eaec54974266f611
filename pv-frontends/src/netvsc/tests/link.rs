//! Links, settings, sub-channels, and channels that go and come.

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::OffloadParameters;
use hv_abi::netvsc::nvsp::MessageType;
use hv_abi::netvsc::rndis::Status;
use hv_abi::vmbus::gpadl::GpadlTeardown;
use hv_abi::vmbus::{
    ChannelId, ConnectionId, ControlMessage, MessageType as BusMessage, NtStatus,
    Version as BusVersion,
};
use zerocopy::FromBytes;

use super::host::rss_table;
use super::*;
use crate::net::{HASH_KEY_BYTES, HashTypes, Rss, TxRefusal, Unsupported};

#[test]
fn links_go_up_and_down() {
    let mut bench = Bench::ready_with(config(), |host| host.link = false);
    assert!(!bench.nic().info().link);
    let changes = |bench: &Bench| {
        let changed = core::mem::take(&mut *bench.notes.changed.lock());
        changed.iter().map(|info| info.link).collect::<Vec<_>>()
    };
    changes(&bench);
    for (status, wanted) in [
        (Status::MEDIA_CONNECT, &[true][..]),
        (Status::MEDIA_CONNECT, &[]),
        (Status::NETWORK_CHANGE, &[false, true]),
        (Status::MEDIA_DISCONNECT, &[false]),
        // No network to change.
        (Status::NETWORK_CHANGE, &[]),
        (Status::RESET_START, &[]),
    ] {
        bench.host.indicate(&bench.bus, status, &[]);
        bench.run();
        assert_eq!(changes(&bench), wanted, "{status:?}");
    }
    bench.host.indicate(&bench.bus, Status::LINK_SPEED_CHANGE, &250_000_000u32.to_le_bytes());
    bench.run();
    assert_eq!(bench.nic().info().speed_bps, 25_000_000_000);
    assert_eq!(changes(&bench).len(), 1);
    bench.assert_idle();
}

#[test]
fn keep_alives_are_answered() {
    let mut bench = Bench::ready();
    for id in [7, 8] {
        bench.host.keepalive(&bench.bus, id);
        bench.run();
    }
    assert_eq!(bench.host.replies, [7, 8]);
    // Also while something else is on its way.
    bench.host.keepalive(&bench.bus, 9);
    bench.nic().set_filter(RxFilter { promiscuous: true, ..RxFilter::default() }).expect("one");
    bench.run();
    assert_eq!(bench.host.replies, [7, 8, 9]);
    assert_eq!(bench.host.sets.last().expect("set").1, [0x20, 0, 0, 0]);
    bench.assert_idle();
}

#[test]
fn coalescing_is_asked_for() {
    let mut bench = Bench::ready();
    let parameters = |bench: &Bench| {
        let sets = bench.host.sets.iter().rev();
        let value = sets.clone().find(|set| set.0 == Oid::TCP_OFFLOAD_PARAMETERS);
        OffloadParameters::read_from_bytes(&value.expect("it was set").1).expect("whole")
    };
    let first = parameters(&bench);
    assert_eq!((first.rsc_ipv4.0, first.rsc_ipv6.0), (1, 1));
    let sums = [first.tcp_ipv4_checksum.0, first.udp_ipv4_checksum.0, first.tcp_ipv6_checksum.0];
    assert_eq!((sums, first.lso_v2_ipv4.0, first.lso_v2_ipv6.0), ([4; 3], 2, 2));
    bench.nic().set_coalescing(true, false).expect("it can");
    bench.run();
    assert_eq!((parameters(&bench).rsc_ipv4.0, parameters(&bench).rsc_ipv6.0), (2, 1));
    let older = Bench::ready_with(config(), |host| host.newest = Version::V6);
    assert_eq!(older.nic().set_coalescing(true, false), Err(Unsupported::Never));
}

#[test]
fn queues_are_sub_channels() {
    let mut bench = Bench::ready_with(queues(4), |_| {});
    assert_eq!(bench.nic().info().queues, 4);
    assert_eq!(bench.nic().info().rss_entries, 128);
    let subs = bench.host.sub_channels();
    assert_eq!(subs.len(), 3);
    let rss = |bench: &Bench| {
        let mut sets = bench.host.sets.iter().rev();
        sets.find(|set| set.0 == Oid::GEN_RECEIVE_SCALE_PARAMETERS).expect("it was set").1.clone()
    };
    assert_eq!(rss_table(&rss(&bench))[..6], [0, 1, 2, 3, 0, 1]);
    let types = HashTypes { tcp_v4: true, ..HashTypes::default() };
    let key = [0x5a; HASH_KEY_BYTES];
    bench.nic().set_rss(&Rss { types, key, table: &[3, 1] }).expect("it can");
    bench.run();
    let value = rss(&bench);
    assert_eq!(rss_table(&value)[..4], [3, 1, 3, 1]);
    assert_eq!((&value[8..12], &value[552..]), (&[1, 2, 0, 0][..], &key[..]));
    for table in [&[][..], &[0, 1, 2], &[4], &[0; 256]] {
        let refused = bench.nic().set_rss(&Rss { types, key, table });
        assert_eq!(refused, Err(Unsupported::Values), "{table:?}");
    }
    // Both ways on each.
    let all: Vec<_> = [PRIMARY].into_iter().chain(subs.iter().copied()).collect();
    for (nr, channel) in all.iter().enumerate() {
        let fragments = bench.fragments(&frame(700, nr as u8), &[]);
        let submitted = bench.nic().submit(nr as u32, &plain(&fragments), Tag(nr as u64));
        assert_eq!(submitted, TxSubmitted::Queued);
        bench.nic().commit(nr as u32);
        assert!(bench.host.receive(&bench.bus, *channel, &[(&frame(80, nr as u8), &[])]));
        bench.run();
        assert_eq!(bench.host.sent.last().map(|sent| sent.channel), Some(*channel));
        assert_eq!(bench.ended(), [(nr as u32, nr as u64, TxEnd::Sent)]);
        assert_eq!(bench.got()[0].queue, nr as u32);
    }

    // One goes alone: who waits for it goes on with the first.
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(700, 1), &[]);
    bench.nic().submit(2, &plain(&fragments), Tag(50));
    bench.nic().commit(2);
    bench.run();
    bench.notes.settled.lock().clear();
    bench.host.rescind(&bench.bus, subs[1]);
    bench.run();
    assert_eq!(bench.ended(), [(2, 50, TxEnd::Lost)]);
    assert!(bench.notes.settled.lock().contains(&2));
    assert_eq!(rss_table(&rss(&bench))[..2], [3, 1]);
    bench.host.keep = false;
    bench.nic().submit(2, &plain(&fragments), Tag(51));
    bench.nic().commit(2);
    bench.run();
    assert_eq!(bench.host.sent.last().map(|sent| sent.channel), Some(PRIMARY));
    bench.assert_idle();
}

#[test]
fn sub_channels_that_are_refused_or_never_come() {
    let bench = Bench::ready_with(queues(4), |host| {
        host.refuse.push(MessageType::SUB_CHANNEL);
    });
    assert_eq!(bench.nic().info().queues, 1);

    let mut bench = Bench::new(queues(2), |_| {});
    bench.host.server.ignore.push(BusMessage::GPADL_HEADER);
    bench.run();
    // Its rings, buffers and all: nothing is there yet. One after the other is let through.
    assert!(!bench.driver.is_settled());
    bench.host.server.ignore.clear();
    while let Some(message) = bench.host.server.ignored.pop() {
        bench.host.server.answer(&bench.bus, ConnectionId(0x1234), &message);
    }
    bench.run();
    assert!(bench.driver.is_settled());
    assert_eq!(bench.nic().info().queues, 2);
}

#[test]
fn late_sub_channels_are_told() {
    let mut bench = Bench::new(queues(2), |_| {});
    // The first ring's GPADL and both buffers', then none.
    bench.host.limit = 13;
    bench.run();
    assert!(!bench.driver.is_settled());
    bench.host.server.ignore.push(BusMessage::OPEN_CHANNEL);
    bench.host.limit = usize::MAX;
    // What was not handled is lost: the host took it too long.
    bench.pass(31 * SECOND);
    bench.host.server.ignore.clear();
    let ignored = core::mem::take(&mut bench.host.server.ignored);
    for message in ignored {
        bench.host.server.answer(&bench.bus, ConnectionId(0x1234), &message);
    }
    bench.pass(6 * SECOND);
    bench.pass(6 * SECOND);
    assert!(bench.driver.is_settled());
    assert_eq!(bench.nic().info().queues, 2);
}

#[test]
fn another_mtu_begins_anew() {
    let mut bench = Bench::ready_with(queues(2), |_| {});
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    bench.nic().submit(1, &plain(&fragments), Tag(5));
    bench.nic().commit(1);
    bench.run();
    for wrong in [0, 67, 9001, u32::MAX] {
        assert_eq!(bench.nic().set_mtu(wrong), Err(Unsupported::Values));
    }
    bench.nic().set_mtu(1500).expect("nothing changes");
    bench.run();
    assert_eq!(bench.count(Counter::Sessions), 1);
    bench.host.told.clear();
    (bench.host.keep, bench.host.section_bytes) = (false, 9344);
    bench.nic().set_mtu(9000).expect("it can");
    // Before the host hears that it is closed.
    bench.bus.poll();
    bench.run();
    // The second queue's channel is taken back as the first closes.
    for id in bench.host.sub_channels() {
        assert!(id > 100, "{id}");
    }
    assert!(bench.driver.is_settled());
    assert_eq!(bench.ended(), [(1, 5, TxEnd::Lost)]);
    let revoked = bench.host.told.iter().position(|kind| *kind == 103).expect("it was");
    assert_eq!(bench.host.told[revoked..revoked + 3], [103, 106, 1]);
    assert_eq!(bench.host.config.expect("sent").mtu, 9014);
    assert_eq!(bench.nic().info().mtu, 9000);
    assert_eq!(bench.count(Counter::Sessions), 2);
    // The filter is the host's again, and packets go.
    assert_eq!(bench.host.sets.last().expect("set").1, [9, 0, 0, 0]);
    let (big, more) = (frame(3000, 1), frame(9014, 2));
    let mut fragments = bench.fragments(&big, &[]);
    assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(6)), TxSubmitted::Queued);
    fragments.clear();
    bench.nic().commit(0);
    assert!(bench.host.receive(&bench.bus, PRIMARY, &[(&more, &[])]));
    bench.run();
    assert_eq!(bench.host.sent.last().map(|sent| sent.bytes.len()), Some(3000));
    assert_eq!(bench.got()[0].bytes, more);
    bench.assert_idle();
}

#[test]
fn sub_channels_end_before_the_card_begins_anew() {
    let mut bench = Bench::ready_with(queues(2), |_| {});
    let sub = ChannelId(bench.host.sub_channels()[0]);
    bench.host.server.ignore.push(BusMessage::GPADL_TEARDOWN);
    bench.nic().set_mtu(4000).expect("it can");
    bench.run();
    let answer = |bench: &mut Bench, of_sub: bool| {
        bench.host.server.ignore.clear();
        let ignored = core::mem::take(&mut bench.host.server.ignored);
        for message in ignored {
            let teardown = GpadlTeardown::parse(&message).expect("it is one");
            if (teardown.channel_id == sub) == of_sub {
                bench.host.server.answer(&bench.bus, ConnectionId(0x1234), &message);
            } else {
                bench.host.server.ignored.push(message);
            }
        }
        bench.run();
    };
    answer(&mut bench, false);
    assert_eq!(bench.count(Counter::Sessions), 1);
    answer(&mut bench, true);
    assert!(bench.driver.is_settled());
    assert_eq!((bench.count(Counter::Sessions), bench.nic().info().mtu), (2, 4000));
}

#[test]
fn old_buses_take_buffers_back_before_they_close() {
    for version in [BusVersion::V3_0, BusVersion::V4_0] {
        let mut bench = Bench::ready_with(config(), |host| host.server.version = version);
        let before = bench.fake.pages_in_use();
        bench.nic().set_mtu(4000).expect("it can");
        bench.run();
        assert!(bench.driver.is_settled());
        assert_eq!(bench.nic().info().mtu, 4000);
        assert_eq!(bench.host.server.gpadl_count(), 3);
        bench.pass(2 * SECOND);
        assert_eq!(bench.fake.pages_in_use(), before);
    }
}

#[test]
fn a_card_that_is_offered_again_stays_the_same() {
    let mut bench = Bench::ready();
    let card = bench.card();
    bench.host.keep = true;
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    bench.nic().submit(0, &plain(&fragments), Tag(5));
    bench.nic().commit(0);
    bench.run();
    bench.host.rescind(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(bench.ended(), [(0, 5, TxEnd::Lost)]);
    assert_eq!(bench.notes.changed.lock().last().map(|info| info.link), Some(false));
    assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(6)), TxSubmitted::Busy);
    bench.notes.settled.lock().clear();
    bench.pass(SECOND);
    bench.host.keep = false;
    bench.host.primary = 6;
    bench.host.server.offer(6, interface::NETWORK, 1, 0);
    bench.host.server.announce(&bench.bus, 6);
    bench.run();
    assert!(bench.driver.is_settled());
    assert!(Arc::ptr_eq(&card, &bench.card()));
    assert_eq!(bench.notes.changed.lock().last().map(|info| info.link), Some(true));
    assert!(bench.notes.settled.lock().contains(&0));
    assert_eq!(bench.host.sets.last().expect("set").1, [9, 0, 0, 0]);
    assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(6)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.ended(), [(0, 6, TxEnd::Sent)]);
    assert_eq!((card.number(), *bench.notes.removed.lock()), (0, 0));
    bench.assert_idle();
}

#[test]
fn a_card_that_is_offered_again_at_once_waits_for_its_memory() {
    let mut bench = Bench::ready();
    let card = bench.card();
    bench.host.keep = true;
    let offer = |bench: &mut Bench, id| {
        bench.host.primary = id;
        bench.host.server.offer(id, interface::NETWORK, 1, 0);
        bench.host.server.announce(&bench.bus, id);
        bench.run();
    };
    // There is no more than it had.
    bench.fake.inner().free_pages = 0;
    bench.host.rescind(&bench.bus, PRIMARY);
    bench.run();
    offer(&mut bench, 6);
    assert!(!bench.driver.is_settled());
    // Taken back while it waits: nothing remembers it.
    bench.host.rescind(&bench.bus, 6);
    bench.run();
    offer(&mut bench, 7);
    assert_eq!(bench.notes.changed.lock().last().map(|info| info.link), Some(false));
    bench.pass(2 * SECOND);
    assert!(bench.driver.is_settled());
    assert!(Arc::ptr_eq(&card, &bench.card()));
    assert_eq!(bench.notes.changed.lock().last().map(|info| info.link), Some(true));
    assert_eq!(*bench.notes.removed.lock(), 0);
    // Another one finds none, and is not waited for for ever.
    bench.host.server.offer(9, interface::NETWORK, 2, 0);
    bench.host.server.announce(&bench.bus, 9);
    bench.run();
    assert!(!bench.driver.is_settled());
    bench.pass(4 * SECOND);
    assert!(bench.driver.is_settled());
    assert_eq!(bench.driver.cards().len(), 1);
    assert!(bench.fake.inner().log.iter().any(|line| line.ends_with("no memory")));
}

#[test]
fn a_card_that_is_not_is_gone() {
    let mut bench = Bench::new(config(), |host| {
        host.server.offers.clear();
    });
    bench.run();
    let before = bench.fake.pages_in_use();
    bench.host.server.offer(PRIMARY, interface::NETWORK, 1, 0);
    bench.host.server.announce(&bench.bus, PRIMARY);
    bench.run();
    let nic = bench.nic();
    bench.host.rescind(&bench.bus, PRIMARY);
    bench.run();
    assert_eq!(*bench.notes.removed.lock(), 0);
    bench.pass(4 * SECOND);
    assert_eq!(*bench.notes.removed.lock(), 1);
    assert!(bench.driver.cards().is_empty());
    assert_eq!(bench.fake.pages_in_use(), before);
    let fragments = bench.fragments(&frame(60, 1), &[]);
    let submitted = nic.submit(0, &plain(&fragments), Tag(6));
    assert_eq!(submitted, TxSubmitted::Refused(TxRefusal::Removed));
    assert_eq!(nic.set_mtu(1400), Err(Unsupported::Removed));
}

#[test]
fn a_rescind_at_any_moment() {
    for limit in 0..24 {
        let mut bench = Bench::new(queues(2), |host| host.server.offers.clear());
        bench.run();
        let before = bench.fake.pages_in_use();
        bench.host.server.offer(PRIMARY, interface::NETWORK, 1, 0);
        bench.host.server.announce(&bench.bus, PRIMARY);
        bench.host.limit = limit;
        bench.run();
        let subs = bench.host.sub_channels();
        bench.host.rescind(&bench.bus, PRIMARY);
        for id in subs {
            bench.host.rescind(&bench.bus, id);
        }
        bench.host.server.offers.clear();
        bench.run();
        bench.pass(5 * SECOND);
        assert!(bench.driver.cards().is_empty(), "{limit}");
        assert_eq!(bench.fake.pages_in_use(), before, "{limit}");
        // And another.
        (bench.host.limit, bench.host.primary) = (usize::MAX, 7);
        bench.host.server.offer(7, interface::NETWORK, 2, 0);
        bench.host.next_sub_channel = 200;
        bench.host.instance = 2;
        bench.host.server.announce(&bench.bus, 7);
        bench.run();
        assert!(bench.driver.is_settled(), "{limit}");
        assert_eq!(bench.nic().info().queues, 2);
        bench.assert_idle();
    }
}

#[test]
fn a_host_that_does_not_answer() {
    let mut bench = Bench::new(config(), |host| host.silent = true);
    bench.run();
    for _ in 0..10 {
        bench.pass(31 * SECOND);
    }
    assert!(bench.driver.is_settled());
    assert!(bench.notes.cards.lock().is_empty());
    let cards = bench.driver.cards();
    assert_eq!((cards[0].count(Counter::Sessions), cards[0].count(Counter::TimedOut)), (4, 4));
    assert_eq!(bench.host.server.gpadl_count(), 0);
}

#[test]
fn a_corrupt_ring_begins_anew() {
    let mut bench = Bench::ready_with(queues(2), |_| {});
    let fragments = bench.fragments(&frame(1000, 1), &[]);
    bench.host.keep = true;
    bench.nic().submit(0, &plain(&fragments), Tag(5));
    bench.nic().commit(0);
    bench.run();
    bench.host.keep = false;
    bench.host.corrupt(&bench.bus, PRIMARY);
    bench.run();
    bench.run();
    assert_eq!(bench.ended(), [(0, 5, TxEnd::Lost)]);
    assert!(bench.driver.is_settled());
    assert_eq!(bench.count(Counter::Sessions), 2);
    assert_eq!(bench.nic().submit(0, &plain(&fragments), Tag(6)), TxSubmitted::Queued);
    bench.nic().commit(0);
    bench.run();
    assert_eq!(bench.ended(), [(0, 6, TxEnd::Sent)]);
    bench.assert_idle();
}

#[test]
fn hosts_that_refuse() {
    for (kind, text) in [
        (MessageType::SEND_RECEIVE_BUFFER, "refuses the receive buffer"),
        (MessageType::INIT, "no version"),
    ] {
        let mut bench = Bench::new(config(), |host| host.refuse.push(kind));
        bench.run();
        assert!(bench.driver.is_settled());
        assert!(bench.notes.cards.lock().is_empty());
        assert!(bench.fake.inner().log.iter().any(|line| line.contains(text)), "{kind:?}");
    }
    let mut bench = Bench::new(config(), |host| host.server.gpadl_status = NtStatus::UNSUCCESSFUL);
    bench.run();
    assert!(bench.driver.is_settled());
    // Offloads that are refused are not used.
    let bench = Bench::new(config(), |host| host.refuse_sets = true);
    let mut bench = bench;
    bench.run();
    assert!(!bench.nic().info().tx.csum_tcp_v4);
}

/// The host may use a channel's number again at once.
#[test]
fn numbers_of_channels_that_went() {
    let mut bench = Bench::ready();
    let bus = Arc::clone(&bench.bus);
    let offer = |bench: &mut Bench, instance| {
        bench.host.server.offer(PRIMARY, interface::NETWORK, instance, 0);
        bench.host.server.announce(&bus, PRIMARY);
        bench.run();
    };
    bench.host.rescind(&bus, PRIMARY);
    bench.run();
    // Its offer waits for memory, and is taken back: what it had is given back once.
    let free = core::mem::take(&mut bench.fake.inner().free_pages);
    offer(&mut bench, 1);
    bench.host.rescind(&bus, PRIMARY);
    bench.run();
    bench.pass(SECOND);
    bench.fake.inner().free_pages += free;
    // Another card comes and goes meanwhile.
    offer(&mut bench, 2);
    assert_eq!(bench.notes.cards.lock().len(), 2);
    bench.host.rescind(&bus, PRIMARY);
    bench.run();
    offer(&mut bench, 1);
    let infos = || bench.notes.cards.lock().iter().map(|card| card.info().link).collect::<Vec<_>>();
    assert_eq!(infos(), [true, false]);
    assert_eq!(*bench.notes.removed.lock(), 0);
    bench.assert_idle();
}
