//! sched_op.

/// What a blocked vCPU waits for.
#[derive(Debug, Default)]
pub struct Wait {}
