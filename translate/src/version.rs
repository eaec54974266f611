//! xen_version.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// What xen_version tells.
#[derive(Debug, Default)]
pub struct Identity {}

/// `xen_version`.
///
/// # Errors
/// Xen's.
pub fn xen_version<P: Platform>(_cx: &mut Ctx<'_, P>, _cmd: u64, _arg: u64) -> HcResult {
    Err(Errno::ENOSYS)
}
