//! Staying with rings that were read.

use core::sync::atomic::Ordering;

use hv_abi::synic::EventFlags;
use zerocopy::FromZeros;

use super::super::linger::MAX_CHANNELS;
use super::*;

fn flags(id: ChannelId) -> EventFlags {
    let flags = EventFlags::new_zeroed();
    flags.words[id.0 as usize / 64].store(1 << (id.0 % 64), Ordering::Relaxed);
    flags
}

impl Bench {
    /// The host sends; whether it would signal.
    fn host_sends(&mut self, number: u64) -> bool {
        let host = self.server.channels.get_mut(&ID.0).expect("open");
        host.outgoing.write(&packet(number, &[])).expect("there is room")
    }

    fn numbers(&self) -> Vec<u64> {
        self.driver.received().iter().map(|(_, number, _)| *number).collect()
    }

    /// Opened, and stayed with after one packet.
    fn lingering() -> (Self, Lingering) {
        let mut bench = Self::opened();
        let mut lingering = Lingering::new();
        assert!(bench.host_sends(1));
        bench.bus.on_event_flags_lingering(&flags(ID), &mut lingering);
        assert_eq!((bench.numbers(), lingering.is_empty()), (vec![1], false));
        (bench, lingering)
    }
}

#[test]
fn the_host_is_silent_until_there_is_nothing_new() {
    let (mut bench, mut lingering) = Bench::lingering();
    for number in [2, 3] {
        assert!(!bench.host_sends(number), "it need not signal");
        bench.bus.linger(&mut lingering);
        assert_eq!((bench.numbers(), lingering.is_empty()), (vec![number], false));
    }
    bench.bus.linger(&mut lingering);
    assert_eq!((bench.numbers(), lingering.is_empty()), (vec![], true));
    assert!(bench.host_sends(4), "it signals again");
    bench.bus.on_signal(ID);
    assert_eq!(bench.numbers(), [4]);
    assert!(bench.host_sends(5), "and again");
}

#[test]
fn what_came_is_read_on_leaving() {
    let (mut bench, mut lingering) = Bench::lingering();
    assert!(!bench.host_sends(2));
    bench.bus.leave(&mut lingering);
    assert_eq!((bench.numbers(), lingering.is_empty()), (vec![2], true));
    assert!(bench.host_sends(3), "it signals again");
}

#[test]
fn what_is_not_read_to_its_end_is_read_again_later() {
    let (mut bench, mut lingering) = Bench::lingering();
    *bench.driver.budget.lock() = Some(2);
    for number in 2..7 {
        assert!(!bench.host_sends(number));
    }
    bench.bus.linger(&mut lingering);
    assert_eq!(bench.numbers(), [2, 3]);
    assert_eq!(bench.bus.next_poll_ns(), 0);
    bench.bus.poll();
    assert_eq!(bench.numbers(), [4, 5]);
    bench.bus.leave(&mut lingering);
    assert_eq!(bench.numbers(), [6]);
    bench.run();
    assert!(bench.host_sends(7), "it signals again");
}

#[test]
fn a_channel_that_closes_is_left() {
    for (reopens, ends) in [(false, false), (true, false), (true, true)] {
        let (mut bench, mut lingering) = Bench::lingering();
        bench.bus.close(ID).expect("it is open");
        bench.run();
        if reopens {
            bench.bus.open(ID, &PARAMS).expect("it is closed");
            bench.run();
            assert!(bench.host_sends(2), "the new ring is not masked");
        }
        let step = if ends { VmBus::leave } else { VmBus::linger };
        step(&bench.bus, &mut lingering);
        let read = if reopens { vec![2] } else { vec![] };
        assert_eq!(bench.numbers(), read);
        bench.bus.leave(&mut lingering);
        assert!(!reopens || bench.host_sends(3), "it signals again");
    }
}

#[test]
fn a_ring_found_corrupt_closes_its_channel() {
    for step in [VmBus::linger, VmBus::leave] {
        let (mut bench, mut lingering) = Bench::lingering();
        let host = &bench.server.channels[&ID.0];
        let word = ring::ControlWord::WriteIndex;
        ring::RingMemory::store(host.outgoing.memory(), word, 5, Ordering::Relaxed);
        step(&bench.bus, &mut lingering);
        bench.run();
        assert_eq!(
            bench.driver.events(),
            [Event::Opened(ID), Event::Broken(ID), Event::Closed(ID)][1..]
        );
        bench.bus.linger(&mut lingering);
        assert!(lingering.is_empty());
    }
}

#[test]
fn channels_there_is_no_room_for_are_read_as_ever() {
    let mut bench = Bench::opened();
    let mut lingering = Lingering((0..MAX_CHANNELS).map(|nr| ChannelId(100 + nr as u32)).collect());
    assert!(bench.host_sends(1));
    bench.bus.on_event_flags_lingering(&flags(ID), &mut lingering);
    assert_eq!(bench.numbers(), [1]);
    assert!(bench.host_sends(2), "it signals again");
    // The others were never open.
    bench.bus.linger(&mut lingering);
    assert!(lingering.is_empty());
}
