//! Domain-wide state, shared by all vCPUs.
//!
//! Lock order (take left before right): `gnttab` -> `evtchn` -> `VcpuShared::info` -> `console`.

use core::sync::atomic::{AtomicBool, AtomicU64};

use spin::Mutex;
use xen_abi::shared_info::{SharedInfo, VcpuInfo};

use crate::console::Console;
use crate::evtchn::EventChannels;
use crate::gnttab::GrantTable;
use crate::version::Identity;

/// vCPUs a domain may have.
pub const MAX_VCPUS: usize = 64;

/// What other vCPUs may touch of a vCPU.
#[derive(Debug)]
pub struct VcpuShared {
    /// Where this vCPU's `vcpu_info` is; `None` until it has one (ids >= 32 before registration).
    pub info: Mutex<Option<&'static VcpuInfo>>,
    /// Running or startable (VCPUOP_up); false = VCPUOP_is_up answers 0.
    pub online: AtomicBool,
    /// Set while the vCPU is in SCHEDOP_block or SCHEDOP_poll: an event must kick it.
    pub blocked: AtomicBool,
}

/// The one guest.
#[derive(Debug)]
pub struct Domain {
    /// The `shared_info` page.
    pub shared_info: &'static SharedInfo,
    /// Machine address of `shared_info`.
    pub shared_info_at: xen_abi::MachineAddr,
    /// Frames the guest has now.
    pub nr_pages: AtomicU64,
    /// Frames it may have.
    pub max_pages: u64,
    /// VM assists switched on, by VMASST_TYPE bit.
    pub vm_assist: AtomicU64,
    /// Number of vCPUs.
    pub nr_vcpus: u32,
    /// The vCPUs; entries from `nr_vcpus` on are unused.
    pub vcpus: [VcpuShared; MAX_VCPUS],
    /// Event channels.
    pub evtchn: EventChannels,
    /// Grant table.
    pub gnttab: GrantTable,
    /// PV console.
    pub console: Console,
    /// Version strings, features, UUID.
    pub identity: Identity,
}
