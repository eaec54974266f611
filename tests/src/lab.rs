//! What tests of guests with disks, networks and load share.

use crate::transcript::Transcript;
use crate::trials::{choose_host, shown};
use crate::{log, reference};
use anyhow::{Context, Result, bail, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use std::path::PathBuf;
use std::str::FromStr;

/// Memory of the largest guest.
pub const MEMORY_MIB: u64 = 1024;

/// The number that an environment variable gives.
pub fn number<T>(variable: &str, default: T) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

/// Processors guests under the shim have at least.
pub fn cpus() -> Result<u32> {
    number("PONTOON_CPUS", 1)
}

/// The place guests run in, and one for files; made when first needed.
#[derive(Default)]
pub struct Lab {
    host: Option<Host>,
    scratch: Option<Scratch>,
    /// The last guest ended as docs/testing.md says guests on emulated hosts now and
    /// then do, which is no verdict; every other failure is one.
    excused: bool,
}

impl Lab {
    /// Whether a test that failed is no verdict; then the next one finds a new place.
    pub fn once_more(&mut self) -> bool {
        let excused = self.excused;
        if excused {
            *self = Self::default();
        }
        excused
    }

    /// A file for this run of the tests.
    pub fn file(&mut self, name: &str) -> Result<PathBuf> {
        if self.scratch.is_none() {
            self.scratch = Some(Scratch::new()?);
        }
        Ok(self.scratch.as_ref().context("scratch")?.path().join(name))
    }

    /// Runs a guest under the shim.
    pub fn run(&mut self, machine: &Machine, output: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        self.run_with(machine, &Input::default(), output)
    }

    /// As [`Self::run`], with a keyboard.
    pub fn run_with(
        &mut self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        let dir = self.file("")?;
        let mut machine = machine.under_shim(&dir)?;
        machine.cpus = machine.cpus.max(cpus()?);
        let outcome = self.run_as_is(&machine, input, output);
        if let Some(bundle) = &machine.initrd {
            std::fs::remove_file(bundle)?;
        }
        outcome
    }

    /// As [`Self::run_with`], with the machine's own kernel in ring 0.
    pub fn run_as_is(
        &mut self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        let mut output = shown(output);
        let outcome = self.host().and_then(|host| host.run(machine, input, &mut output));
        // No second try here: the guest's disks are no longer as they were.
        if outcome.is_err() {
            self.host = None;
        }
        self.excused = outcome.as_ref().map_or(true, |o| o.status == Status::TRIPLE_FAULT);
        outcome
    }

    fn host(&mut self) -> Result<&mut Host> {
        if self.host.is_none() {
            self.host = Some(choose_host(MEMORY_MIB, false)?);
        }
        self.host.as_mut().context("a host")
    }
}

/// The guest ended as it should; what it said.
pub fn ended(outcome: &Outcome, wanted: Status) -> Result<Transcript> {
    let transcript = Transcript::of(outcome);
    if outcome.status != wanted {
        let (is, should) = (outcome.status.text(), wanted.text());
        bail!(
            "ended by {is}, not by {should}; console:\n{}\nhost:\n{}",
            transcript.tail(),
            outcome.errors
        );
    }
    Ok(transcript)
}

/// The kernel said nothing that `kernel` does not say under real Xen either, or that is
/// among `more`.
pub fn nothing_new(transcript: &Transcript, kernel: &Kernel, more: &str) -> Result<()> {
    let log = transcript.log.as_ref().context("no kernel log")?;
    let reference = reference::xen_log(kernel, "stress")?;
    let list = format!("{}\n{more}", include_str!("../e2e/dmesg-allow.txt"));
    let allowed = log::parse_allow_list(&list).map_err(anyhow::Error::msg)?;
    let bad = log::unexplained(log, &reference, &allowed);
    ensure!(bad.is_empty(), "the kernel says what it does not under Xen:\n{}", bad.join("\n"));
    Ok(())
}
