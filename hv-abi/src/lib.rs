//! Hyper-V wire types.
#![no_std]
#![forbid(unsafe_code)]
