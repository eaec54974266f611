//! What became of a guest.

use std::time::Duration;

/// Exit status of `hvhost` and `pontoon` for the ways a guest can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl Status {
    /// The guest powered itself off.
    pub const POWER_OFF: Self = Self(0);
    /// The host or the guest could not be started.
    pub const FAILED: Self = Self(1);
    /// The guest asked for a reset.
    pub const RESET: Self = Self(3);
    /// The processor gave up on the guest.
    pub const TRIPLE_FAULT: Self = Self(4);
    /// The guest reported a crash.
    pub const CRASH: Self = Self(5);
    /// Its time was over.
    pub const TIMED_OUT: Self = Self(6);

    /// In words.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::POWER_OFF => "power-off".into(),
            Self::RESET => "reset".into(),
            Self::TRIPLE_FAULT => "triple fault".into(),
            Self::CRASH => "crash".into(),
            Self::TIMED_OUT => "out of time".into(),
            Self(other) => format!("failure (status {other})"),
        }
    }
}

/// A guest's end and what it left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// All it wrote to its console.
    pub console: Vec<u8>,
    /// The host program's own words.
    pub errors: String,
    /// The host's counters as JSON, where asked for and available.
    pub stats: Option<String>,
    /// From the start of the host program to its end.
    pub wall: Duration,
}

impl Outcome {
    /// The console as text, carriage returns removed.
    #[must_use]
    pub fn console_text(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }
}
