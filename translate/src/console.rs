//! PV console ring and console_io.

/// The PV console.
#[derive(Debug, Default)]
pub struct Console {}
