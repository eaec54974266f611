//! VMBus client and the PV backends.
#![no_std]
#![forbid(unsafe_code)]

pub mod blkback;
pub mod xenbus;
