//! Grant tables.

use xen_abi::Errno;

use crate::Ctx;
use crate::outcome::HcResult;
use crate::platform::Platform;

/// The domain's grant table.
#[derive(Debug, Default)]
pub struct GrantTable {}

/// `grant_table_op`.
///
/// # Errors
/// Xen's.
pub fn grant_table_op<P: Platform>(
    _cx: &mut Ctx<'_, P>,
    _cmd: u64,
    _uop: u64,
    _count: u64,
) -> HcResult {
    Err(Errno::ENOSYS)
}
