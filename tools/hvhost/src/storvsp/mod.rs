//! Storage: SCSI controllers on VMBus (`hv_abi::storvsc`), their units in files.
//!
//! ```text
//! ring ── controller: initialization, requests ── command: decode
//!                                   │                  unit: do ── inquiry: tell
//!                                   └── buffer: the guest's pages   disk ── raw, qcow2, cache, fault
//! ```
//! Each channel has a worker thread, which does its commands one after the other;
//! a guest that wants several at once opens sub-channels, as Linux does.

pub mod buffer;
pub mod cache;
pub mod command;
pub mod controller;
pub mod disk;
pub mod fault;
pub mod inquiry;
pub mod io;
pub mod medium;
pub mod options;
pub mod qcow2;
pub mod raw;
pub mod storage;
pub mod unit;

pub use controller::Controller;
pub use disk::Disk;
pub use fault::Fault;
pub use options::DiskOptions;
pub use storage::Storage;
