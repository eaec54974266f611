//! set_trap_table.

/// The guest's handlers.
#[derive(Debug, Default)]
pub struct TrapTable {}
