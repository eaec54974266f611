//! VMBus client and the PV backends.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod blkback;
pub mod disk;
pub mod keyboard;
pub mod net;
pub mod netback;
pub mod netvsc;
pub mod ring;
pub mod storvsc;
pub mod vbd;
pub mod vif;
pub mod vmbus;
pub mod xenbus;
