//! The translation core: what a Xen PV guest asks for, in terms of a small
//! [`platform::Platform`]. Safe, `no_std`, and tested on the host.
//!
//! Ring 0 saves the guest's registers ([`regs::CpuRegs`]), makes a [`Ctx`] and calls
//! [`dispatch::hypercall`], [`bounce`] or [`emulate`]; before it returns to the guest it
//! calls [`bounce::exit_to_guest`]. Nothing here blocks, spins on another vCPU or allocates
//! (the builder, which runs once before the guest, allocates).
#![no_std]
// Tests' stand-in for ring 0 has one unsafe block; the crate itself has none.
#![cfg_attr(not(any(test, feature = "fake")), forbid(unsafe_code))]
extern crate alloc;
#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod bits;
pub mod bounce;
pub mod builder;
pub mod callback;
pub mod console;
pub mod cpu;
pub mod debugreg;
pub mod descriptor;
pub mod dispatch;
pub mod domain;
pub mod emulate;
pub mod evtchn;
pub mod gnttab;
pub mod iret;
pub mod lazy;
pub mod memory;
pub mod mmu;
pub mod multicall;
pub mod outcome;
pub mod physdev;
pub mod platform;
pub mod privileged;
pub mod regs;
pub mod requests;
pub mod sched;
pub mod shootdown;
pub mod time;
pub mod trap_table;
pub mod vcpu;
pub mod vcpu_op;
pub mod vcpu_start;
pub mod version;
pub mod xenstore;

#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(test)]
mod fuzz;

use platform::Platform;

/// What every handler works on.
pub struct Ctx<'a, P: Platform> {
    /// The domain, shared by all vCPUs.
    pub dom: &'a domain::Domain,
    /// The calling vCPU.
    pub vcpu: &'a mut vcpu::Vcpu,
    /// Ring 0.
    pub plat: &'a P,
}
