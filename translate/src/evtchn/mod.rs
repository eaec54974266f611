//! Event channels, 2-level and FIFO.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// The domain's event channels.
#[derive(Debug, Default)]
pub struct EventChannels {}

/// `event_channel_op`.
///
/// # Errors
/// Xen's.
pub fn event_channel_op<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}

/// `event_channel_op_compat`.
///
/// # Errors
/// Xen's.
pub fn event_channel_op_compat<P: Platform>(_cx: &mut Ctx<'_, P>, _uop: u64) -> HcResult {
    Err(Errno::ENOSYS)
}
