//! Signals other than the hypercall: monitor pages, and the interrupt page of versions below 2.4.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// Groups in a monitor page.
pub const MONITOR_GROUPS: usize = 4;
/// Triggers in a group. Monitor id `n` is trigger `n % 32` of group `n / 32`.
pub const MONITOR_TRIGGERS: usize = 32;

/// `union hv_monitor_trigger_group`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MonitorTriggerGroup {
    /// The sender sets the trigger's bit; the hypervisor takes it within the latency and signals.
    pub pending: AtomicU32,
    /// Set by the receiver.
    pub armed: AtomicU32,
}
const_assert_eq!(size_of::<MonitorTriggerGroup>(), 8);

/// `struct hv_monitor_parameter`: the event that a trigger signals.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MonitorParameter {
    /// Connection.
    pub connection_id: AtomicU32,
    /// Event flag.
    pub flag_number: AtomicU16,
    /// Zero.
    pub reserved: AtomicU16,
}
const_assert_eq!(size_of::<MonitorParameter>(), 8);

/// `struct hv_monitor_page` (TLFS 11.11.3, `drivers/hv/hyperv_vmbus.h`).
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MonitorPage {
    /// Bit `n`: group `n` is enabled.
    pub trigger_state: AtomicU32,
    /// Zero.
    pub reserved1: AtomicU32,
    /// Triggers.
    pub trigger_group: [MonitorTriggerGroup; MONITOR_GROUPS],
    /// Zero.
    pub reserved2: [AtomicU64; 3],
    /// Of the hypervisor.
    pub next_check_time: [[AtomicU32; MONITOR_TRIGGERS]; MONITOR_GROUPS],
    /// How long a trigger may wait, 100 ns.
    pub latency_100ns: [[AtomicU16; MONITOR_TRIGGERS]; MONITOR_GROUPS],
    /// Zero.
    pub reserved3: [AtomicU64; 32],
    /// What triggers signal.
    pub parameter: [[MonitorParameter; MONITOR_TRIGGERS]; MONITOR_GROUPS],
    /// Zero.
    pub reserved4: [AtomicU64; 248],
}
const_assert_eq!(size_of::<MonitorPage>(), crate::PAGE_SIZE);
const_assert_eq!(offset_of!(MonitorPage, trigger_group), 8);
const_assert_eq!(offset_of!(MonitorPage, next_check_time), 0x40);
const_assert_eq!(offset_of!(MonitorPage, latency_100ns), 0x240);
const_assert_eq!(offset_of!(MonitorPage, parameter), 0x440);
const_assert_eq!(offset_of!(MonitorPage, reserved4), 0x840);
impl SharedView for MonitorPage {}

/// The interrupt page of versions below 2.4: one bit for each channel and direction.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct InterruptPage {
    /// Set by the host, cleared by the guest.
    pub host_to_guest: [AtomicU64; 256],
    /// Set by the guest, cleared by the host.
    pub guest_to_host: [AtomicU64; 256],
}
const_assert_eq!(size_of::<InterruptPage>(), crate::PAGE_SIZE);
const_assert_eq!(offset_of!(InterruptPage, guest_to_host), 2048);
impl SharedView for InterruptPage {}
