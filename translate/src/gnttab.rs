//! Grant tables.

/// The domain's grant table.
#[derive(Debug, Default)]
pub struct GrantTable {}
