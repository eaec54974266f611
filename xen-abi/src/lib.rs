//! Xen PV wire types: everything a 64-bit PV guest and its hypervisor share,
//! as `xen/include/public` lays it out. Types and constants only.
//!
//! Structures a guest may change at any moment hold atomics and implement
//! [`SharedView`]; every other structure is copied in and out.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod arch;
pub mod callback;
pub mod cpuid;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypercall;
pub mod io;
pub mod memory;
pub mod mm;
pub mod nmi;
pub mod physdev;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod vcpu;
pub mod version;

pub use addr::{GuestVa, MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
pub use errno::Errno;

/// A structure that lives in memory both sides write at will: it has only
/// atomic fields (or padding made of them), so a shared reference to it is
/// always valid. Every type that implements it is defined in this crate.
pub trait SharedView: zerocopy::FromBytes + zerocopy::KnownLayout + Sync + 'static {}
