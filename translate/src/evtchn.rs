//! Event channels, 2-level and FIFO.

/// The domain's event channels.
#[derive(Debug, Default)]
pub struct EventChannels {}
