//! physdev.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// `physdev_op`.
///
/// # Errors
/// Xen's.
pub fn physdev_op<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}

/// `physdev_op_compat`.
///
/// # Errors
/// Xen's.
pub fn physdev_op_compat<P: Platform>(_cx: &mut Ctx<'_, P>, _uop: u64) -> HcResult {
    Err(Errno::ENOSYS)
}
