//! Where what a queue reads goes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hv_abi::netvsc::nvsp::Message;

use super::super::Sink;
use super::super::counters::Counter;
use super::super::machine::Machine;
use super::super::queue::{Above, Queue, message_type};
use super::super::rx::Taker;
use super::Card;
use crate::net::{RxPacket, RxVerdict, Tag, TxEnd};

/// A queue's way to its card, and to the sink.
pub(super) struct Upwards<'a, S> {
    pub card: &'a Arc<Card>,
    pub sink: &'a S,
    pub queue: &'a Queue,
    pub now_ns: u64,
}

impl<S: Sink<Arc<Card>>> Taker for Upwards<'_, S> {
    fn receive(&self, packet: &RxPacket<'_>) -> RxVerdict {
        self.sink.receive(self.card, self.queue.index.into(), packet)
    }

    fn control(&self, message: &[u8]) -> bool {
        // Sub-channels have packets only.
        self.queue.index == 0 && self.card.machine.lock().rndis_told(message)
    }

    fn wants_packets(&self) -> bool {
        self.card.known.load(Ordering::Acquire)
    }
}

impl<S: Sink<Arc<Card>>> Above for Upwards<'_, S> {
    fn transmitted(&self, tag: Tag, end: TxEnd) {
        self.sink.transmitted(self.card, self.queue.index.into(), tag, end);
    }

    fn answered(&self, number: u64, message: &Message) {
        let number = u32::try_from(number).ok();
        let mut machine = self.card.machine.lock();
        let config = &self.card.config;
        if !number.is_some_and(|nr| machine.answered(nr, message, config, self.now_ns)) {
            drop(machine);
            self.card.counters.add_shared(Counter::Bogus, 1);
        }
    }

    fn told(&self, message: &[u8]) -> bool {
        let told = Machine::nvsp_told(message_type(message));
        if told == Some(true) {
            self.card.counters.add_shared(Counter::VfRefused, 1);
        }
        told.is_some()
    }

    fn settled(&self) {
        if self.card.known.load(Ordering::Acquire) {
            self.card.settle(self.sink, self.queue.index);
        }
    }
}
