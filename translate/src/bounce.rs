//! Exceptions, events and callbacks delivered to the guest with the frames Xen builds.

/// Virtual NMI state.
#[derive(Debug, Default)]
pub struct NmiState {
    /// One waits to be delivered.
    pub pending: bool,
    /// The guest is inside its handler (until iret).
    pub masked: bool,
}
