//! A Hyper-V-compatible host for one virtual machine on Linux KVM.
//!
//! KVM implements most of the hypervisor's interface itself (hypercall page,
//! reference time, SynIC, synthetic timers, TLB-flush and IPI hypercalls). This
//! program adds what is left: the machine around it (memory map, boot doors,
//! serial ports, IOAPIC, ACPI, clock), the shape of CPUID, the crash MSRs, and
//! counters. The library half holds the types other programs need to start it
//! and to read its results.
//!
//! ```text
//! options ── machine ──┬── memory, boot/{pvh,linux64,bzimage}, acpi
//!                      ├── cpuid, features, msrs, synic   (what the guest sees of Hyper-V)
//!                      ├── vcpu (one thread each) ── ports ── serial, rtc, pm ── ioapic
//!                      ├── vmbus (one thread for each open channel) ──┬── storvsp
//!                      │                                              ├── netvsp ── net
//!                      │                                              └── keyboard
//!                      └── stats, exit
//! ```

pub mod acpi;
pub mod boot;
pub mod control;
pub mod cpuid;
pub mod exit;
pub mod features;
pub mod ioapic;
pub mod keyboard;
pub mod kvm_ext;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod msrs;
pub mod net;
pub mod netvsp;
pub mod options;
mod pace;
pub mod pm;
pub mod ports;
pub mod probe;
pub mod routing;
pub mod rtc;
pub mod screen;
pub mod serial;
pub mod stats;
pub mod storvsp;
pub mod synic;
pub mod terminal;
pub mod trace;
pub mod tsc;
pub mod vcpu;
pub mod vmbus;

pub use exit::{ExitStatus, Outcome};
pub use features::HvFeatures;
pub use options::Options;
