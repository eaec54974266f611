//! Privileged instructions.

/// Control registers as the guest sees them.
#[derive(Debug, Default)]
pub struct ControlRegs {}
