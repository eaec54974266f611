//! The VMBus client, versions 3.0 to 5.3.
//!
//! ```text
//! SINT message ─> VmBus::on_message ─> state ─> events ─> Driver::on_event
//! SINT flags ───> VmBus::on_event_flags ────────────────> Driver::on_signal ─> VmBus::receive
//! timer ────────> VmBus::poll: refused messages again, time-outs, Driver::poll
//!                 VmBus::send ─> ring ─> HvSignalEvent where the host sleeps
//! ```
//!
//! [`VmBus`] keeps what the host offers and carries out what drivers ask: open, close, more
//! GPADLs. Nothing waits: every request ends in an [`Event`]. Sending and receiving take one lock
//! each, of the channel's ring, and allocate nothing.
//!
//! Nothing is called with a lock held that the callee could want, but for the closure that
//! [`VmBus::receive`] is given: it may send, it may not receive on the same channel.
//!
//! Lock order: the state, then a channel's rings, then the table of open channels.

mod channel;
mod client;
mod connection;
mod control;
mod counters;
mod data;
mod dispatch;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod gpadl;
mod linger;
mod outbox;
mod platform;
pub mod ring;
mod state;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use client::{CloseError, OpenError, OpenParams, VmBus};
pub use counters::{Counter, Counters};
pub use dispatch::{Driver, Event};
pub use linger::Lingering;
pub use platform::{Hypervisor, Shared};
pub use ring::{External, OutPacket, Packet, PageSpan, PagedRing, Received, SendError, Span};
