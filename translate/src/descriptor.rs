//! set_gdt, update_descriptor, LDT.

/// The vCPU's descriptor tables.
#[derive(Debug, Default)]
pub struct Descriptors {}
