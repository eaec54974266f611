//! All processors busy under the shim: hackbench, stress-ng, a parallel compile, processors that go and
//! come meanwhile; and a hunt for clocks that go back between processors.
//!
//! Chosen by environment variables, which `cargo xtask load` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the guests run; default: bookworm.
//! - `PONTOON_LOAD_SECONDS`: how long the programs without an end of their own run; default: 24.
//! - `PONTOON_CPUS`: processors; default: 4.
//! - `PONTOON_E2E_SHOW=1`, `PONTOON_E2E_UNDER`: as for the boots, `tests/e2e.rs`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored. One host runs all guests, one after the other.

use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::lab::{Lab, MEMORY_MIB, ended, number};
use pontoon_tests::transcript::Transcript;
use pontoon_tests::trials::{Trials, kernels};
use pontoon_tests::{load, log};
use std::process::ExitCode;
use std::time::Duration;

type Test = fn(&mut Lab, &str) -> Result<()>;
const TESTS: [(&str, Test); 4] = [
    ("load", under_load),
    ("clocks", clocks),
    ("native-load", natively_under_load),
    ("native-clocks", native_clocks),
];

/// Beside the seconds: what has an end of its own takes minutes, emulated twice on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);
/// Runs of programs in the script.
const RUNS: usize = 13;
const CLOCKS: [&str; 4] = ["monotonic", "raw", "boottime", "tsc"];
/// Fewest readings of each clock in a second.
const READINGS: u64 = 1000;

fn main() -> ExitCode {
    let mut trials = Trials::new(Lab::default());
    for kernel in kernels() {
        for (name, test) in TESTS {
            let spec = kernel.clone();
            trials.add(format!("{kernel}/{name}"), move |lab| test(lab, &spec), Lab::once_more);
        }
    }
    trials.run()
}

/// Where a guest's kernel runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Shim,
    Native,
}

/// What a guest said that did `test`, and how long it was to take.
fn run(lab: &mut Lab, spec: &str, test: &str, place: Place, disk: Option<&str>) -> Result<Guest> {
    let kernel = Kernel::get(spec)?;
    let initrd = lab.file("load-initrd")?;
    std::fs::write(&initrd, load::initramfs(&kernel, place == Place::Native)?)?;
    let seconds = number("PONTOON_LOAD_SECONDS", 24)?;
    let console = if place == Place::Native { "ttyS0" } else { "hvc0" };
    let append =
        format!("console={console} quiet panic=-1 pontoon_test={test} pontoon_seconds={seconds}");
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.cpus = number("PONTOON_CPUS", 4)?;
    machine.timeout = Some(LIMIT + Duration::from_secs(2 * u64::from(seconds)));
    machine.disks.extend(disk.map(|path| format!("{path},ro")));
    let outcome = match place {
        Place::Shim => lab.run(&machine, &mut |_| {})?,
        Place::Native => lab.run_as_is(&machine, &Input::default(), &mut |_| {})?,
    };
    let transcript = ended(&outcome, Status::POWER_OFF)?;
    let failed: Vec<_> = transcript.text.lines().filter(|l| l.contains("@@ failed")).collect();
    ensure!(failed.is_empty(), "{}\nconsole:\n{}", failed.join("\n"), transcript.tail());
    ensure!(transcript.mark("end").is_some(), "no end:\n{}", transcript.tail());
    let cpus = machine.cpus.to_string();
    ensure!(transcript.mark("cpus") == Some(&cpus), "processors: {:?}", transcript.mark("cpus"));
    Ok(Guest { transcript, seconds })
}

struct Guest {
    transcript: Transcript,
    seconds: u32,
}

impl Guest {
    /// What it said about `name`, which it must.
    fn mark(&self, name: &str) -> Result<&str> {
        let tail = || format!("no @@ {name}:\n{}", self.transcript.tail());
        self.transcript.mark(name).with_context(tail)
    }

    fn log(&self) -> Result<&[String]> {
        self.transcript.log.as_deref().context("no kernel log")
    }
}

/// Everything runs, and compiles to what it compiles to here. The guest's own words.
fn loaded(lab: &mut Lab, spec: &str, place: Place) -> Result<Guest> {
    let image = lab.file("load.img")?;
    let expected = load::disk(&image)?;
    let guest = run(lab, spec, "load", place, Some(&image.display().to_string()))?;
    for name in ["parallel", "alone"] {
        let sum = guest.mark(name)?;
        ensure!(sum == expected, "objects of {name}: {sum}, here {expected}");
    }
    ensure!(guest.mark("alone-on")? == "1", "not alone");
    let runs: Vec<_> =
        guest.transcript.text.lines().filter_map(|l| l.strip_prefix("@@ ran ")).collect();
    ensure!(runs.len() == RUNS, "{} of {RUNS} runs:\n{}", runs.len(), guest.transcript.tail());
    let turns: Vec<_> =
        guest.transcript.text.lines().filter_map(|l| l.strip_prefix("@@ turns ")).collect();
    eprintln!("seconds: {}; processors went and came: {}", runs.join(", "), turns.join(", "));
    for turn in &turns {
        let count = turn.split(' ').nth(1).and_then(|n| n.parse::<u32>().ok());
        ensure!(count > Some(0), "no processor went and came: {turn}");
    }
    ensure!(turns.len() == 2, "turns: {turns:?}");
    let stolen: u64 = guest.mark("stolen")?.parse()?;
    eprintln!("ticks stolen while everything was busy: {stolen}");
    // Emulated machines have this one's processors.
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    if place == Place::Shim && here < number("PONTOON_CPUS", 4)? as usize {
        ensure!(stolen > 0, "{here} processors for more, and nothing stolen");
    }
    Ok(guest)
}

fn under_load(lab: &mut Lab, spec: &str) -> Result<()> {
    let guest = loaded(lab, spec, Place::Shim)?;
    let complaints = load::complaints(guest.log()?);
    if complaints.is_empty() {
        return Ok(());
    }
    // Only what the same kernel does not say without the shim counts.
    let native = loaded(lab, spec, Place::Native).context("natively, to compare with")?;
    let complaints: Vec<_> = complaints.into_iter().map(str::to_owned).collect();
    let bad = log::unexplained(&complaints, native.log()?, &[]);
    ensure!(bad.is_empty(), "the kernel complains:\n{}", bad.join("\n"));
    Ok(())
}

fn natively_under_load(lab: &mut Lab, spec: &str) -> Result<()> {
    let guest = loaded(lab, spec, Place::Native)?;
    for line in load::complaints(guest.log()?) {
        eprintln!("natively: {line}");
    }
    Ok(())
}

fn clocks(lab: &mut Lab, spec: &str) -> Result<()> {
    hunted(lab, spec, Place::Shim)
}

fn native_clocks(lab: &mut Lab, spec: &str) -> Result<()> {
    hunted(lab, spec, Place::Native)
}

/// No clock goes back between processors.
fn hunted(lab: &mut Lab, spec: &str, place: Place) -> Result<()> {
    let guest = run(lab, spec, "clocks", place, None)?;
    for name in CLOCKS {
        let said = guest.mark(&format!("clock-{name}"))?;
        let mut numbers = said.split(' ').map(|number| number.parse::<u64>().unwrap_or(u64::MAX));
        let (readings, back) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1));
        eprintln!("{name}: {said} (readings, steps back, the worst)");
        ensure!(readings >= READINGS * u64::from(guest.seconds), "{name} was hardly read: {said}");
        ensure!(back == 0, "{name} went back: {said}");
    }
    Ok(())
}
