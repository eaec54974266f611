//! Guest crash reporting: `HV_X64_MSR_CRASH_P0..P4` and `HV_X64_MSR_CRASH_CTL`
//! (TLFS 2.4.6, "Guest Crash Enlightenment").
//!
//! A guest writes the five parameters, then [`CrashCtl::NOTIFY`]. With
//! [`CrashCtl::MESSAGE`] as well, P3 holds the guest-physical address and P4 the
//! length of a text of at most one page. Reading the control MSR tells which
//! of the bits the host supports.

use bitflags::bitflags;

/// Number of crash parameters.
pub const CRASH_PARAMETERS: usize = 5;
/// Longest crash message in bytes.
pub const CRASH_MESSAGE_MAX: usize = crate::PAGE_SIZE;
/// Parameter that holds the message's guest-physical address.
pub const CRASH_MESSAGE_GPA_PARAMETER: usize = 3;
/// Parameter that holds the message's length in bytes.
pub const CRASH_MESSAGE_LEN_PARAMETER: usize = 4;

bitflags! {
    /// `HV_X64_MSR_CRASH_CTL`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CrashCtl: u64 {
        /// No crash dump was written or will be.
        const NO_CRASH_DUMP = 1 << 61;
        /// P3 and P4 describe a message.
        const MESSAGE = 1 << 62;
        /// Tell the host that the guest crashed with the parameters written.
        const NOTIFY = 1 << 63;
    }
}
