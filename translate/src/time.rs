//! Clocks and timers.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// Per-vCPU time state.
#[derive(Debug, Default)]
pub struct VcpuTime {}

/// `set_timer_op`.
///
/// # Errors
/// Xen's.
pub fn set_timer_op<P: Platform>(_cx: &mut Ctx<'_, P>, _timeout: u64) -> HcResult {
    Err(Errno::ENOSYS)
}
