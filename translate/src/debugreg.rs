//! set_debugreg, get_debugreg.

/// The guest's debug registers.
#[derive(Debug, Default)]
pub struct DebugRegs {
    /// DR0-DR7 as the guest sees them.
    pub dr: [u64; 8],
}
