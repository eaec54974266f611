//! The network cards of a Hyper-V machine.
//!
//! ```text
//! VMBus offer ─> Card: INIT, buffers, RNDIS INITIALIZE, queries, sub-channels ─> Sink::added
//! Nic (NetDevice) ─> Card ─> Queue (one per channel) ─> Tx ─> ring ─> completion ─> transmitted
//!                                                       Rx <─ ring <─ receive buffer ─> receive
//! ```
//!
//! [`NetVsc`] is the VMBus driver of all cards. A [`Card`] keeps its conversation with the host, the
//! settings the backend wants, and its queues; whoever integrates this makes a [`Nic`] of it when
//! the [`Sink`] hears of it. When the host takes the channel back and offers it again, the card stays
//! the same, with the link down meanwhile.
//!
//! Transmission is by the guest's own pages, or by copies of small packets. The pages are the
//! guest's again when the host has answered, or has let the channel go.
//!
//! Lock order: a queue's receiving end, the reading ring, the card's conversation, its queues, a
//! queue's sending end, the writing ring. Of these only the first two are held while the [`Sink`] is
//! called. The bus's own lock comes before the rings: what takes it (opening, closing, GPADLs, pages
//! to be freed) is called with none of these held.

mod card;
mod config;
mod control;
mod counters;
mod cut;
mod driver;
mod facts;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod frame;
mod machine;
mod parse;
mod queue;
mod rx;
mod slots;
#[cfg(test)]
mod tests;
mod tx;

pub use card::Card;
pub use config::Config;
pub use counters::Counter;
pub use driver::{NetVsc, Nic};

use alloc::sync::Arc;

use crate::net::{RxPacket, RxVerdict, Tag, TxEnd};

/// Who wants to know of cards and their packets; `N` names the card. Called on any virtual
/// processor. [`NetDevice`](crate::net::NetDevice)'s methods may be called from all of it.
///
/// `receive` and, after a run of them, `settled` come with the queue's reading end held: for one
/// queue on one processor at a time.
pub trait Sink<N>: Send + Sync + 'static {
    /// A card is there: its address and what it can do are known. It receives nothing before its
    /// filter is set.
    fn added(&self, nic: &N);
    /// [`NetDevice::info`](crate::net::NetDevice::info) changed: link, MTU, queues, offloads.
    fn changed(&self, nic: &N);
    /// A card is gone, and so are its packets: each was completed. No call about it follows.
    fn removed(&self, nic: &N);
    /// A packet came.
    fn receive(&self, nic: &N, queue: u32, packet: &RxPacket<'_>) -> RxVerdict;
    /// A packet's way ended that was queued; its pages are the sender's again.
    fn transmitted(&self, nic: &N, queue: u32, tag: Tag, end: TxEnd);
    /// After a run of `receive` or `transmitted`, and when there is room again after a `Busy`.
    fn settled(&self, nic: &N, queue: u32);
}

impl<N, T: Sink<N>> Sink<N> for Arc<T> {
    fn added(&self, nic: &N) {
        T::added(self, nic);
    }
    fn changed(&self, nic: &N) {
        T::changed(self, nic);
    }
    fn removed(&self, nic: &N) {
        T::removed(self, nic);
    }
    fn receive(&self, nic: &N, queue: u32, packet: &RxPacket<'_>) -> RxVerdict {
        T::receive(self, nic, queue, packet)
    }
    fn transmitted(&self, nic: &N, queue: u32, tag: Tag, end: TxEnd) {
        T::transmitted(self, nic, queue, tag, end);
    }
    fn settled(&self, nic: &N, queue: u32) {
        T::settled(self, nic, queue);
    }
}
