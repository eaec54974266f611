//! VMBus client and the PV backends.
#![no_std]
#![forbid(unsafe_code)]
