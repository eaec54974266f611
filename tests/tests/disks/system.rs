//! Whole Debian systems on their own disks.

use crate::lab::{Lab, MEMORY_MIB, ended, nothing_new};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::image;
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::images::{HOSTNAME, Image, PASSWORD, SUITES, Table};
use pontoon_tests::parts::run;
use pontoon_tests::transcript::Transcript;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What the guests are told to do, the contents of their second disk.
const SCRIPT: &str = include_str!("../../e2e/system.sh");
const ALLOWED: &str = include_str!("../../e2e/system-allow.txt");
/// A start of a whole system takes a minute on a quiet machine, emulated twice.
const LIMIT: Duration = Duration::from_secs(600);

/// Every suite once, every partition table once.
pub fn images() -> impl Iterator<Item = Image> {
    SUITES.into_iter().zip([Table::Gpt, Table::Mbr]).map(|(suite, table)| Image::new(suite, table))
}

/// Boot, work, reboot, the data still there, power-off, a clean file system.
pub fn whole_life(lab: &mut Lab, image: &Image) -> Result<()> {
    let disk = lab.file("system.img")?;
    image.copy(&disk)?;
    let first = life(lab, image, &disk, "first", Status::RESET)?;
    says(&first, "state", "running")?;
    says(&first, "units", "")?;
    says(&first, "reached", "active")?;
    says(&first, "root", "/dev/xvda1 ext4")?;
    worked(&first)?;
    let second = life(lab, image, &disk, "second", Status::POWER_OFF)?;
    says(&second, "state", "running")?;
    worked(&second)?;
    let kernel = Kernel::get(&image.suite)?;
    for transcript in [&first, &second] {
        nothing_new(transcript, &kernel, ALLOWED)?;
    }
    is_clean(&disk)?;
    Ok(fs::remove_file(disk)?)
}

/// One start of the system, from its own boot menu to its end.
fn life(lab: &mut Lab, image: &Image, disk: &Path, which: &str, end: Status) -> Result<Transcript> {
    let dir = tempfile::tempdir()?;
    let files = image::take(disk, None, Some("panic=-1"), dir.path())?;
    let script = dir.path().join("script");
    let mut text = SCRIPT.as_bytes().to_vec();
    // Kernels look for partition tables in the first sectors.
    text.resize(128 << 10, b'\n');
    fs::write(&script, text)?;
    let mut machine = Machine::new(&files.kernel, files.initrd.as_deref(), &files.append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![disk.display().to_string(), format!("{},ro", script.display())];
    let input = Input::default();
    let command = format!("sh /dev/xvdb {which}");
    let mut dialogue = Dialogue::new(
        &input,
        &[
            (&format!("{HOSTNAME} login: "), "root"),
            ("Password: ", PASSWORD),
            (&format!("root@{HOSTNAME}:~# "), &command),
        ],
    );
    let outcome = lab.run_with(&machine, &input, &mut |bytes| dialogue.hear(bytes))?;
    let name = format!("{} {which}", image.suite);
    if let Some(text) = dialogue.waits_for() {
        let tail = Transcript::of(&outcome).tail();
        anyhow::bail!("{name}: {:?} did not come:\n{tail}", text);
    }
    ended(&outcome, end).context(name)
}

fn says(transcript: &Transcript, name: &str, wanted: &str) -> Result<()> {
    let is = transcript.mark(name);
    ensure!(is == Some(wanted), "@@ {name} {is:?}, not {wanted:?}:\n{}", transcript.tail());
    Ok(())
}

/// The data are as they were written, before and after free space was given back.
fn worked(transcript: &Transcript) -> Result<()> {
    says(transcript, "data", "/root/data: OK")?;
    says(transcript, "data-after-trim", "/root/data: OK")?;
    let trimmed = transcript.mark("trimmed").unwrap_or_default();
    ensure!(trimmed.contains("bytes) trimmed") && !trimmed.contains("(0 bytes"), "{trimmed}");
    Ok(())
}

/// e2fsck finds nothing to say about the first partition.
fn is_clean(disk: &Path) -> Result<()> {
    let table = run(Command::new("/sbin/sfdisk").arg("--json").arg(disk))?;
    let table: serde_json::Value = serde_json::from_slice(&table)?;
    let start = table["partitiontable"]["partitions"][0]["start"].as_u64().context("no start")?;
    let place = format!("{}?offset={}", disk.display(), start * 512);
    run(Command::new("/sbin/e2fsck").args(["-fn", &place])).map(drop)
}
