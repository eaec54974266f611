//! vcpu_op (`xen/include/public/vcpu.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct VcpuOp(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl VcpuOp {
    pub const INITIALISE: Self = Self(0);
    pub const UP: Self = Self(1);
    pub const DOWN: Self = Self(2);
    pub const IS_UP: Self = Self(3);
    pub const GET_RUNSTATE_INFO: Self = Self(4);
    pub const REGISTER_RUNSTATE_MEMORY_AREA: Self = Self(5);
    pub const SET_PERIODIC_TIMER: Self = Self(6);
    pub const STOP_PERIODIC_TIMER: Self = Self(7);
    pub const SET_SINGLESHOT_TIMER: Self = Self(8);
    pub const STOP_SINGLESHOT_TIMER: Self = Self(9);
    pub const REGISTER_VCPU_INFO: Self = Self(10);
    pub const SEND_NMI: Self = Self(11);
    pub const GET_PHYSID: Self = Self(12);
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: Self = Self(13);
}

/// `RUNSTATE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Runstate(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl Runstate {
    pub const RUNNING: Self = Self(0);
    pub const RUNNABLE: Self = Self(1);
    pub const BLOCKED: Self = Self(2);
    pub const OFFLINE: Self = Self(3);
}

/// `XEN_RUNSTATE_UPDATE`: set in `state_entry_time` while the record is written.
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// `struct vcpu_runstate_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuRunstateInfo {
    pub state: Runstate,
    pub pad: u32,
    pub state_entry_time: u64,
    pub time: [u64; 4],
}
const_assert_eq!(size_of::<VcpuRunstateInfo>(), 48);
const_assert_eq!(offset_of!(VcpuRunstateInfo, state_entry_time), 8);

/// `struct vcpu_register_runstate_memory_area` and `struct vcpu_register_time_memory_area`:
/// a guest virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuRegisterMemoryArea {
    pub addr: u64,
}
const_assert_eq!(size_of::<VcpuRegisterMemoryArea>(), 8);

/// `struct vcpu_set_periodic_timer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuSetPeriodicTimer {
    pub period_ns: u64,
}
const_assert_eq!(size_of::<VcpuSetPeriodicTimer>(), 8);

/// `struct vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuSetSingleshotTimer {
    pub timeout_abs_ns: u64,
    pub flags: u32,
    pub pad: u32,
}
const_assert_eq!(size_of::<VcpuSetSingleshotTimer>(), 16);

/// `VCPU_SSHOTTMR_future`: the guest asks for `-ETIME` on a past deadline; Xen 4.17 ignores it.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1;

/// `struct vcpu_register_vcpu_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuRegisterVcpuInfo {
    pub mfn: u64,
    pub offset: u32,
    pub rsvd: u32,
}
const_assert_eq!(size_of::<VcpuRegisterVcpuInfo>(), 16);

/// `struct vcpu_get_physid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuGetPhysid {
    pub phys_id: u64,
}
const_assert_eq!(size_of::<VcpuGetPhysid>(), 8);
