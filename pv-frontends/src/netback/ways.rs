//! Which of the device's queues goes with which of the frontend's.
//!
//! Queue `n` of the device interrupts vCPU `n`; which vCPU hears of a frontend's queue is the guest's
//! choice, and Linux spreads its event channels without a thought of the queues' numbers. Queues whose
//! two ends meet on one vCPU go together, so that no other has to be interrupted; the others are
//! spread evenly. While nothing is known of vCPUs, queue `n` goes with queue `n`.

use core::sync::atomic::{AtomicU8, Ordering};

use spin::Mutex;
use translate::domain::MAX_VCPUS;

use super::MAX_QUEUES;

const MAX: usize = MAX_QUEUES as usize;
/// No vCPU and no queue.
const UNKNOWN: u8 = u8::MAX;
const _: () = assert!(MAX < UNKNOWN as usize);
const _: () = assert!(MAX_VCPUS < UNKNOWN as usize);

/// Which way packets go, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest.
    Tx,
    /// To the guest.
    Rx,
}

/// One direction.
struct Way {
    /// The vCPU that hears of the frontend's queue.
    vcpus: [AtomicU8; MAX],
    /// Where it goes: by the number of the sending side's queue, that of the other's.
    to: [AtomicU8; MAX],
}

impl Way {
    const fn new() -> Self {
        let unknown = [const { AtomicU8::new(UNKNOWN) }; MAX];
        Self { vcpus: unknown, to: [const { AtomicU8::new(0) }; MAX] }
    }
}

struct Sizes {
    queues: usize,
    device_queues: usize,
}

/// Both directions.
pub(super) struct Ways {
    tx: Way,
    rx: Way,
    /// Held while anything changes.
    sizes: Mutex<Sizes>,
}

impl Ways {
    pub(super) const fn new() -> Self {
        Self {
            tx: Way::new(),
            rx: Way::new(),
            sizes: Mutex::new(Sizes { queues: 1, device_queues: 1 }),
        }
    }

    /// The queue of the device's that sends what comes by this queue of the frontend's.
    pub(super) fn device_queue(&self, queue: u16) -> u32 {
        to(&self.tx, queue.into()).into()
    }

    /// The queue of the frontend's that gets what comes by this queue of the device's.
    pub(super) fn queue(&self, device_queue: u32) -> u16 {
        to(&self.rx, device_queue as usize % MAX).into()
    }

    /// So many queues there are.
    pub(super) fn resize(&self, queues: u16, device_queues: u32) {
        let mut sizes = self.sizes.lock();
        sizes.queues = usize::from(queues).clamp(1, MAX);
        sizes.device_queues = (device_queues as usize).clamp(1, MAX);
        self.choose(Direction::Tx, &sizes);
        self.choose(Direction::Rx, &sizes);
    }

    /// A vCPU hears of a queue of the frontend's.
    pub(super) fn heard(&self, direction: Direction, queue: u16, vcpu: u32) {
        let way = self.way(direction);
        let (Some(known), Ok(vcpu)) = (way.vcpus.get(usize::from(queue)), u8::try_from(vcpu))
        else {
            return;
        };
        if known.load(Ordering::Relaxed) != vcpu {
            let sizes = self.sizes.lock();
            known.store(vcpu, Ordering::Relaxed);
            self.choose(direction, &sizes);
        }
    }

    const fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Tx => &self.tx,
            Direction::Rx => &self.rx,
        }
    }

    fn choose(&self, direction: Direction, sizes: &Sizes) {
        let way = self.way(direction);
        let hears = |queue: usize, vcpu: usize| {
            way.vcpus
                .get(queue)
                .is_some_and(|known| usize::from(known.load(Ordering::Relaxed)) == vcpu)
        };
        let Sizes { queues, device_queues } = *sizes;
        match direction {
            Direction::Tx => assign(&way.to, queues, device_queues, hears),
            Direction::Rx => {
                assign(&way.to, device_queues, queues, |device_queue, queue| {
                    hears(queue, device_queue)
                });
            }
        }
    }
}

fn to(way: &Way, from: usize) -> u8 {
    way.to.get(from).map_or(0, |to| to.load(Ordering::Relaxed))
}

/// Gives each of `items` one of `bins`, none of which gets more than its share: one that fits, if
/// there is one.
fn assign(to: &[AtomicU8; MAX], items: usize, bins: usize, fits: impl Fn(usize, usize) -> bool) {
    let share = items.div_ceil(bins);
    let mut load = [0u8; MAX];
    let mut chosen = [UNKNOWN; MAX];
    for any in [false, true] {
        for (item, choice) in chosen.iter_mut().enumerate().take(items) {
            if *choice != UNKNOWN {
                continue;
            }
            let bins = load.iter_mut().enumerate().take(bins);
            let with_room = bins.filter(|(_, load)| usize::from(**load) < share);
            let good = with_room.filter(|(bin, _)| any || fits(item, *bin));
            if let Some((bin, load)) = good.min_by_key(|(_, load)| **load) {
                *load += 1;
                *choice = bin as u8;
            }
        }
    }
    // Those that are not there yet do not stay without.
    for (item, (to, choice)) in to.iter().zip(chosen).enumerate() {
        let choice = if choice == UNKNOWN { (item % bins) as u8 } else { choice };
        to.store(choice, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn all(ways: &Ways, queues: u16, device_queues: u32) -> (Vec<u32>, Vec<u16>) {
        let tx = (0..queues).map(|queue| ways.device_queue(queue)).collect();
        (tx, (0..device_queues).map(|queue| ways.queue(queue)).collect())
    }

    #[test]
    fn numbers_agree_while_nothing_is_known() {
        let ways = Ways::new();
        ways.resize(4, 4);
        assert_eq!(all(&ways, 4, 4), ([0, 1, 2, 3].into(), [0, 1, 2, 3].into()));
        ways.resize(2, 4);
        assert_eq!(all(&ways, 2, 4), ([0, 1].into(), [0, 1, 0, 1].into()));
        ways.resize(5, 2);
        assert_eq!(all(&ways, 5, 2), ([0, 1, 0, 1, 0].into(), [0, 1].into()));
        // One that opens before it is said.
        assert_eq!(ways.queue(7), 2);
    }

    #[test]
    fn ends_meet_on_one_vcpu() {
        let ways = Ways::new();
        ways.resize(4, 4);
        for (queue, vcpu) in [(0, 3), (1, 0), (2, 1), (3, 2)] {
            ways.heard(Direction::Tx, queue, vcpu);
            ways.heard(Direction::Rx, queue, vcpu);
        }
        assert_eq!(all(&ways, 4, 4), ([3, 0, 1, 2].into(), [1, 2, 3, 0].into()));
        // Directions have event channels of their own: the others share what is left.
        for (queue, vcpu) in [(0, 1), (1, 3), (2, 1), (3, 3)] {
            ways.heard(Direction::Rx, queue, vcpu);
        }
        assert_eq!(all(&ways, 4, 4), ([3, 0, 1, 2].into(), [2, 0, 3, 1].into()));
        // All on a vCPU without a queue of the device's, or none: as ever.
        for queue in 0..4 {
            ways.heard(Direction::Tx, queue, 9);
            ways.heard(Direction::Rx, queue, 70_000);
        }
        assert_eq!(all(&ways, 4, 4).0, [0, 1, 2, 3]);
    }

    #[test]
    fn none_gets_more_than_its_share() {
        let ways = Ways::new();
        for (queues, device_queues) in [(1, 1), (3, 8), (8, 3), (64, 64), (64, 200), (64, 7)] {
            ways.resize(queues, device_queues);
            for queue in 0..queues {
                ways.heard(Direction::Tx, queue, u32::from(queue * 5 % 3));
                ways.heard(Direction::Rx, queue, u32::from(queue * 7 % 5));
            }
            let device_queues = device_queues.min(64);
            let (tx, rx) = all(&ways, queues, device_queues);
            for queue in 0..queues {
                let share = device_queues.div_ceil(queues.into()) as usize;
                assert!(rx.iter().filter(|to| **to == queue).count() <= share);
            }
            for device_queue in 0..device_queues {
                let share = u32::from(queues).div_ceil(device_queues) as usize;
                assert!(tx.iter().filter(|to| **to == device_queue).count() <= share);
            }
            assert!(tx.iter().all(|to| *to < device_queues) && rx.iter().all(|to| *to < queues));
        }
    }
}
