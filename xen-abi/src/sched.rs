//! sched_op (`xen/include/public/sched.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::mm::DomId;

/// `SCHEDOP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct SchedOp(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl SchedOp {
    pub const YIELD: Self = Self(0);
    pub const BLOCK: Self = Self(1);
    pub const SHUTDOWN: Self = Self(2);
    pub const POLL: Self = Self(3);
    pub const REMOTE_SHUTDOWN: Self = Self(4);
    pub const SHUTDOWN_CODE: Self = Self(5);
    pub const WATCHDOG: Self = Self(6);
    pub const PIN_OVERRIDE: Self = Self(7);
}

/// `SHUTDOWN_*`: why a domain ends. Xen keeps the low 8 bits of what the guest gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ShutdownReason(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl ShutdownReason {
    pub const POWEROFF: Self = Self(0);
    pub const REBOOT: Self = Self(1);
    pub const SUSPEND: Self = Self(2);
    pub const CRASH: Self = Self(3);
    pub const WATCHDOG: Self = Self(4);
    pub const SOFT_RESET: Self = Self(5);
    /// `SHUTDOWN_MAX`.
    pub const MAX: Self = Self(5);
}

/// `struct sched_shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SchedShutdown {
    pub reason: ShutdownReason,
}
const_assert_eq!(size_of::<SchedShutdown>(), 4);

/// `struct sched_poll`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SchedPoll {
    /// Guest address of the ports.
    pub ports: u64,
    pub nr_ports: u32,
    pub pad: u32,
    /// Absolute system time in nanoseconds; 0 is none.
    pub timeout: u64,
}
const_assert_eq!(size_of::<SchedPoll>(), 24);
const_assert_eq!(offset_of!(SchedPoll, timeout), 16);

/// `struct sched_remote_shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SchedRemoteShutdown {
    pub domain_id: DomId,
    pub pad: u16,
    pub reason: ShutdownReason,
}
const_assert_eq!(size_of::<SchedRemoteShutdown>(), 8);

/// `struct sched_watchdog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SchedWatchdog {
    /// 0: a new one; else which to poke.
    pub id: u32,
    /// Seconds; 0 stops it.
    pub timeout: u32,
}
const_assert_eq!(size_of::<SchedWatchdog>(), 8);

/// `struct sched_pin_override`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SchedPinOverride {
    pub pcpu: i32,
}
const_assert_eq!(size_of::<SchedPinOverride>(), 4);
