//! Clocks and timers.

/// Per-vCPU time state.
#[derive(Debug, Default)]
pub struct VcpuTime {}
