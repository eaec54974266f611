//! Hyper-V wire types: what a guest and a Hyper-V-compatible host share, as the
//! Hypervisor Top-Level Functional Specification (TLFS, version 6.0b and its
//! later online edition) lays it out. Types, constants and accessors only.
//!
//! Structures both sides change at any moment hold atomics and implement
//! [`SharedView`]; every other structure is copied in and out. Codes the other
//! side chooses are newtypes with constants, never closed enums.
#![no_std]
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod crash;
pub mod guest_os_id;
pub mod guid;
pub mod hypercall;
pub mod keyboard;
pub mod msr;
pub mod netvsc;
pub mod nt_status;
pub mod reference_tsc;
pub mod scsi;
pub mod status;
pub mod storvsc;
pub mod synic;
pub mod timer;
pub mod vmbus;
pub mod vp;

pub use guid::Guid;
pub use nt_status::NtStatus;
pub use status::HvStatus;

/// Bytes in a page of the hypervisor's ABI.
pub const PAGE_SIZE: usize = 4096;

/// A structure that lives in memory both sides write at will: it has only
/// atomic fields (or padding made of them), so a shared reference to it is
/// always valid. Every type that implements it is defined in this crate.
pub trait SharedView: zerocopy::FromBytes + zerocopy::KnownLayout + Sync + 'static {}

/// A page of anything.
impl SharedView for [core::sync::atomic::AtomicU64; PAGE_SIZE / 8] {}
