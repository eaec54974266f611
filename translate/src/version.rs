//! xen_version.

/// What xen_version tells.
#[derive(Debug, Default)]
pub struct Identity {}
