//! Whether and how a kernel, a disk image or a configuration will run.
//!
//! - [`kernel`]: what a kernel says of itself, judged by the shim's own loader;
//! - [`initrd`]: what is in an initrd;
//! - [`options`]: the command, and what it says of images and configurations.

pub mod initrd;
pub mod kernel;
pub mod options;

use std::fmt::Write as _;

/// What there is to say about something.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Facts, a line each.
    pub facts: Vec<String>,
    /// What will work, but perhaps not as it was.
    pub warnings: Vec<String>,
    /// Why it will not run.
    pub obstacle: Option<String>,
}

impl Report {
    /// A report of an obstacle only.
    #[must_use]
    pub fn obstacle(why: impl Into<String>) -> Self {
        Self { obstacle: Some(why.into()), ..Self::default() }
    }

    fn fact(&mut self, text: impl Into<String>) {
        self.facts.push(text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// All of another's, behind this one's own.
    fn add(&mut self, other: Self) {
        self.facts.extend(other.facts);
        self.warnings.extend(other.warnings);
        self.obstacle = self.obstacle.take().or(other.obstacle);
    }

    /// For people; the last line is the verdict.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        let mut out = format!("{name}\n");
        for fact in &self.facts {
            // A string takes any text.
            let _ = writeln!(out, "  {fact}");
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "  note: {warning}");
        }
        let _ = match &self.obstacle {
            None => writeln!(out, "  it will run"),
            Some(why) => writeln!(out, "  it will not run: {why}"),
        };
        out
    }
}
