//! What a hypercall leads to.

use xen_abi::Errno;

use crate::platform::Fault;

/// What the entry path does after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Return this value in RAX.
    Return(i64),
    /// The handler stored its progress in the argument registers; run the call again
    /// (RIP moves back over the 2-byte SYSCALL) after events have been looked at.
    Continue,
    /// The handler replaced the guest's registers (iret); touch nothing.
    Replaced,
    /// The vCPU waits; `sched::wake_check` says when it is over and with what value.
    Block,
}

/// A handler's result.
pub type HcResult = Result<Outcome, Errno>;

impl From<Fault> for Outcome {
    fn from(_: Fault) -> Self {
        Self::Return(Errno::EFAULT.to_ret())
    }
}

/// `?` on a guest-memory access gives `EFAULT`.
pub fn efault(_: Fault) -> Errno {
    Errno::EFAULT
}

/// Success with a value.
///
/// # Errors
/// None: the type is the handlers'.
pub const fn ret(value: i64) -> HcResult {
    Ok(Outcome::Return(value))
}
