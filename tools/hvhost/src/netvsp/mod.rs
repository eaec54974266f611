//! Networking: network adapters on VMBus (`hv_abi::netvsc`).
//!
//! ```text
//! ring ── nic: NVSP, workers ──┬── control, oid: RNDIS's questions and answers
//!                              ├── packet: frames in RNDIS packets ── net::Backend
//!                              └── buffers, lane, rss <── nic's receiving thread ──┘
//! ```
//! Each channel has a worker thread. It sends what its guest puts into the channel, and
//! brings it what the receiving thread has put into the channel's lane.

pub mod buffers;
pub mod control;
pub mod counters;
pub mod lane;
pub mod network;
pub mod nic;
pub mod oid;
pub mod packet;
pub mod rss;
mod serve;

pub use counters::{NicCounters, NicReport};
pub use network::Network;
pub use nic::Nic;
