//! What kernels say under real Xen.
//!
//! The logs of the kernels current when they were recorded are files of the
//! repository (`tests/e2e/xen-logs`), which saves their boots; for a kernel
//! that is newer than the files, real Xen is run.

use crate::guests;
use crate::transcript::Transcript;
use anyhow::{Context, Result, bail};
use pontoon::cleanup::Scratch;
use pontoon::host::Machine;
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon::qemu::Qemu;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Xen in emulation takes its time.
const LIMIT: Duration = Duration::from_secs(600);

/// The kernel log (warning level and above) of `kernel` under real Xen, running
/// the same test as `test` names.
pub fn xen_log(kernel: &Kernel, test: &str) -> Result<Vec<String>> {
    let file = format!("{}_{}_{test}.txt", kernel.release, kernel.version);
    let recorded = recorded_dir().join(&file);
    let cached = pontoon::cache::dir()?.join("xen-logs").join(&file);
    for path in [&recorded, &cached] {
        if let Ok(text) = fs::read_to_string(path) {
            return Ok(text.lines().map(str::to_owned).collect());
        }
    }
    let log = record(kernel, test)?;
    save(&cached, &log)?;
    Ok(log)
}

/// Runs real Xen and puts the log among the repository's files.
pub fn record_into_repository(kernel: &Kernel, test: &str) -> Result<PathBuf> {
    let log = record(kernel, test)?;
    let path = recorded_dir().join(format!("{}_{}_{test}.txt", kernel.release, kernel.version));
    save(&path, &log)?;
    Ok(path)
}

fn recorded_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/xen-logs")
}

fn save(path: &Path, log: &[String]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut text = log.join("\n");
    text.push('\n');
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn record(kernel: &Kernel, test: &str) -> Result<Vec<String>> {
    let dir = Scratch::new()?;
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, guests::initramfs(if test == "stress" { &["stress"] } else { &[] })?)?;
    let append = format!("console=hvc0 quiet panic=-1 pontoon_test={test}");
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.timeout = Some(LIMIT);
    let outcome = pontoon::xen::run(&machine, &Qemu::default(), true, &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    match transcript.log {
        Some(log) if outcome.status == Status::POWER_OFF => Ok(log),
        _ => bail!(
            "{} under real Xen: {}, console ends:\n{}",
            kernel.release,
            outcome.status.text(),
            transcript.tail()
        ),
    }
}
