//! vcpu_op.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// `vcpu_op`.
///
/// # Errors
/// Xen's.
pub fn vcpu_op<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _vcpuid: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}
