//! How a virtual machine's life ends, and the exit status that tells it.

use hv_abi::crash::CRASH_PARAMETERS;
use std::fmt;
use std::process::ExitCode;

/// Exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// The guest powered off.
    pub const POWER_OFF: Self = Self(0);
    /// The host failed: no KVM, a file that cannot be read, an error of KVM's.
    pub const HOST_ERROR: Self = Self(1);
    /// The command line is wrong.
    pub const USAGE: Self = Self(2);
    /// The guest reset itself.
    pub const RESET: Self = Self(3);
    /// A virtual processor met a triple fault.
    pub const TRIPLE_FAULT: Self = Self(4);
    /// The guest reported a crash through the crash MSRs.
    pub const CRASH: Self = Self(5);
    /// The time given by `--timeout` was over.
    pub const TIMEOUT: Self = Self(6);
    /// The user ended it with Ctrl-A x, or a signal did (128 + SIGINT).
    pub const QUIT: Self = Self(130);

    /// What the status means, in a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::POWER_OFF => "power-off",
            Self::HOST_ERROR => "host-error",
            Self::USAGE => "usage",
            Self::RESET => "reset",
            Self::TRIPLE_FAULT => "triple-fault",
            Self::CRASH => "crash",
            Self::TIMEOUT => "timeout",
            Self::QUIT => "quit",
            _ => "signal",
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.0)
    }
}

/// A guest's report through the crash MSRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// P0 to P4.
    pub parameters: [u64; CRASH_PARAMETERS],
    /// The text P3 and P4 described, where the guest gave one.
    pub message: Option<String>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest crash:")?;
        for (n, value) in self.parameters.iter().enumerate() {
            write!(f, " P{n}={value:#x}")?;
        }
        match &self.message {
            Some(text) => write!(f, "\n{}", text.trim_end()),
            None => Ok(()),
        }
    }
}

/// Why the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// ACPI S5.
    PowerOff,
    /// Reset register, keyboard controller pulse or the reset MSR.
    Reset,
    /// Triple fault, with the registers of the virtual processor as text.
    TripleFault(String),
    /// Crash MSRs.
    Crash(CrashReport),
    /// KVM or this program could not go on.
    HostError(String),
    /// `--timeout`.
    Timeout,
    /// Ctrl-A x.
    Quit,
    /// A signal asked the program to end.
    Signal(i32),
}

impl Outcome {
    /// The exit status.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::PowerOff => ExitStatus::POWER_OFF,
            Self::Reset => ExitStatus::RESET,
            Self::TripleFault(_) => ExitStatus::TRIPLE_FAULT,
            Self::Crash(_) => ExitStatus::CRASH,
            Self::HostError(_) => ExitStatus::HOST_ERROR,
            Self::Timeout => ExitStatus::TIMEOUT,
            Self::Quit => ExitStatus::QUIT,
            Self::Signal(number) => ExitStatus(u8::try_from(128 + number).unwrap_or(255)),
        }
    }

    /// What the user should read, if anything.
    #[must_use]
    pub fn report(&self) -> Option<String> {
        match self {
            Self::PowerOff | Self::Reset | Self::Quit => None,
            Self::TripleFault(registers) => Some(format!("triple fault\n{registers}")),
            Self::Crash(report) => Some(report.to_string()),
            Self::HostError(text) => Some(text.clone()),
            Self::Timeout => Some("the guest did not end in time (--timeout)".into()),
            Self::Signal(number) => Some(format!("ended by signal {number}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_documented_ones() {
        assert_eq!(Outcome::PowerOff.status().0, 0);
        assert_eq!(Outcome::HostError(String::new()).status().0, 1);
        assert_eq!(Outcome::Reset.status().0, 3);
        assert_eq!(Outcome::TripleFault(String::new()).status().0, 4);
        assert_eq!(Outcome::Timeout.status().0, 6);
        assert_eq!(Outcome::Signal(15).status().0, 143);
        assert_eq!(Outcome::Signal(15).status().name(), "signal");
    }

    #[test]
    fn crash_report_shows_parameters_and_message() {
        let mut report = CrashReport { parameters: [1, 2, 3, 0x1000, 6], message: None };
        assert_eq!(report.to_string(), "guest crash: P0=0x1 P1=0x2 P2=0x3 P3=0x1000 P4=0x6");
        report.message = Some("panic\n".into());
        assert!(report.to_string().ends_with("P4=0x6\npanic"));
    }
}
