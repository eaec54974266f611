//! PV console ring and console_io.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// The PV console.
#[derive(Debug, Default)]
pub struct Console {}

/// `console_io`.
///
/// # Errors
/// Xen's.
pub fn console_io<P: Platform>(
    _cx: &mut Ctx<'_, P>,
    _cmd: u64,
    _count: u64,
    _buffer: u64,
) -> HcResult {
    Err(Errno::ENOSYS)
}
