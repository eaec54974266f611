//! sched_op.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// What a blocked vCPU waits for.
#[derive(Debug, Default)]
pub struct Wait {}

/// `sched_op`.
///
/// # Errors
/// Xen's.
pub fn sched_op<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}

/// `sched_op_compat`.
///
/// # Errors
/// Xen's.
pub fn sched_op_compat<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}

/// Whether the blocked vCPU may go on, and with which return value.
pub fn wake_check<P: Platform>(_cx: &mut Ctx<'_, P>) -> Option<i64> {
    Some(0)
}
