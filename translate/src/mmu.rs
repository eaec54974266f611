//! mmu_update, update_va_mapping, mmuext_op.

/// The vCPU's page-table roots.
#[derive(Debug, Default)]
pub struct VcpuMmu {}
