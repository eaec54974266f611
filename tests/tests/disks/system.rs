//! Whole Debian systems on their own disks.

use crate::small::mark;
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::image;
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::images::{Image, PATIENCE, SUITES, Table};
use pontoon_tests::lab::{Lab, MEMORY_MIB, ended, nothing_new, number};
use pontoon_tests::parts::{self, run};
use pontoon_tests::transcript::Transcript;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What the guests are told to do, the contents of their second disk.
const SCRIPT: &str = include_str!("../../e2e/system.sh");
const LOAD: &str = concat!(include_str!("../../e2e/fio-lib.sh"), include_str!("../../e2e/load.sh"));
const ALLOWED: &str = include_str!("../../e2e/system-allow.txt");
/// A start of a whole system takes a minute on a quiet machine, emulated twice.
const LIMIT: Duration = Duration::from_secs(600);
/// What is copied if nothing is said.
const COPY_MIB: u64 = 128;
/// The least a loaded machine, emulated twice, copies and reads back in a second.
const COPY_MIB_PER_SECOND: u64 = 2;
/// Runs of fio in the script.
const FIO_RUNS: usize = 5;

/// Every suite once, every partition table once.
pub fn images() -> impl Iterator<Item = Image> {
    SUITES.into_iter().zip([Table::Gpt, Table::Mbr]).map(|(suite, table)| Image::new(suite, table))
}

/// A copy of the image; the suites with an MBR are in the format qcow2.
struct System {
    file: PathBuf,
    qcow2: bool,
}

impl System {
    fn new(lab: &mut Lab, image: &Image) -> Result<Self> {
        let file = lab.file("system.img")?;
        if image.table == Table::Mbr {
            let mut convert = Command::new("qemu-img");
            run(convert.args(["convert", "-O", "qcow2"]).arg(image.get()?).arg(&file))?;
            return Ok(Self { file, qcow2: true });
        }
        image.copy(&file)?;
        Ok(Self { file, qcow2: false })
    }

    fn option(&self) -> String {
        format!("{}{}", self.file.display(), if self.qcow2 { ",format=qcow2" } else { "" })
    }

    /// e2fsck finds nothing to say about the first partition, nor QEMU about the image.
    fn check(self) -> Result<()> {
        if self.qcow2 {
            let said = run(Command::new("qemu-img").arg("check").arg(&self.file))?;
            let said = String::from_utf8_lossy(&said).into_owned();
            ensure!(said.contains("No errors were found"), "qemu-img: {said}");
            let raw = self.file.with_extension("raw");
            let mut convert = Command::new("qemu-img");
            run(convert.args(["convert", "-O", "raw"]).arg(&self.file).arg(&raw))?;
            fs::rename(raw, &self.file)?;
        }
        let disk = &self.file;
        let table = run(Command::new("/sbin/sfdisk").arg("--json").arg(disk))?;
        let table: serde_json::Value = serde_json::from_slice(&table)?;
        let start = table["partitiontable"]["partitions"][0]["start"].as_u64();
        let place = format!("{}?offset={}", disk.display(), start.context("no start")? * 512);
        run(Command::new("/sbin/e2fsck").args(["-fn", &place]))?;
        Ok(fs::remove_file(disk)?)
    }
}

/// Boot, work, reboot, the data still there, power-off, a clean file system.
pub fn whole_life(lab: &mut Lab, image: &Image) -> Result<()> {
    let disk = System::new(lab, image)?;
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
    disk.check()
}

/// fio with checksums on the system's own disk, and a large file copied to another and
/// read back: gigabytes, if asked for.
pub fn load(lab: &mut Lab, image: &Image) -> Result<()> {
    let mib = number("PONTOON_DISKS_COPY_MIB", COPY_MIB)?;
    let disk = System::new(lab, image)?;
    let [tools, source, copy] = ["tools.img", "source.img", "copy.img"].map(|name| lab.file(name));
    let (tools, source, copy) = (tools?, source?, copy?);
    parts::program_disk(&tools, "/usr/bin/fio")?;
    let mut noise = File::open("/dev/urandom")?.take(mib << 20);
    io::copy(&mut noise, &mut File::create(&source)?)?;
    parts::ext4(&copy, mib * 17 / 16 + 64, None)?;
    let expected = md5(&source)?;
    let boot = Boot {
        script: LOAD,
        command: "sh /dev/xvdb",
        disks: vec![
            format!("{},ro", tools.display()),
            format!("{},ro", source.display()),
            copy.display().to_string(),
        ],
        limit: LIMIT + Duration::from_secs(mib / COPY_MIB_PER_SECOND),
    };
    let transcript = start(lab, &disk, &boot, Status::POWER_OFF)
        .with_context(|| format!("{} load", image.suite))?;
    let lines = || transcript.text.lines();
    let failed: Vec<_> = lines().filter(|l| l.starts_with("@@ failed")).collect();
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), transcript.tail());
    says(&transcript, "state", "running")?;
    let runs = lines().filter(|l| l.starts_with("@@ fio")).count();
    ensure!(runs == FIO_RUNS, "{runs} runs of fio:\n{}", transcript.tail());
    trimmed(&transcript)?;
    says(&transcript, "copy", &expected)?;
    eprintln!("copy of {mib} MiB: {}", mark(&transcript, "seconds")?);
    nothing_new(&transcript, &Kernel::get(&image.suite)?, ALLOWED)?;
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(&copy))?;
    for file in [source, copy] {
        fs::remove_file(file)?;
    }
    disk.check()
}

fn md5(path: &Path) -> Result<String> {
    let out = String::from_utf8(run(Command::new("md5sum").arg(path))?)?;
    Ok(out.split(' ').next().unwrap_or_default().to_owned())
}

/// What a start of the system is for.
struct Boot<'a> {
    /// Contents of the second disk.
    script: &'a str,
    /// Typed once root is in.
    command: &'a str,
    /// Disks behind the second.
    disks: Vec<String>,
    limit: Duration,
}

fn life(
    lab: &mut Lab,
    image: &Image,
    disk: &System,
    which: &str,
    end: Status,
) -> Result<Transcript> {
    let command = format!("sh /dev/xvdb {which}");
    let boot = Boot { script: SCRIPT, command: &command, disks: Vec::new(), limit: LIMIT };
    start(lab, disk, &boot, end).with_context(|| format!("{} {which}", image.suite))
}

/// One start of the system, from its own boot menu to its end.
fn start(lab: &mut Lab, disk: &System, boot: &Boot<'_>, end: Status) -> Result<Transcript> {
    let dir = tempfile::tempdir()?;
    let append = format!("panic=-1 {PATIENCE}");
    let files = image::take(&disk.file, None, Some(&append), dir.path())?;
    let script = dir.path().join("script");
    parts::script_disk(&script, boot.script)?;
    let mut machine = Machine::new(&files.kernel, files.initrd.as_deref(), &files.append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(boot.limit);
    machine.disks = vec![disk.option(), format!("{},ro", script.display())];
    machine.disks.extend_from_slice(&boot.disks);
    let input = Input::default();
    let mut dialogue = Dialogue::login(&input, boot.command);
    let outcome = lab.run_with(&machine, &input, &mut |bytes| dialogue.hear(bytes))?;
    let transcript = ended(&outcome, end)?;
    let waits = dialogue.waits_for();
    ensure!(waits.is_none(), "{waits:?} did not come:\n{}", transcript.tail());
    Ok(transcript)
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
    trimmed(transcript)
}

/// Free space was given back.
fn trimmed(transcript: &Transcript) -> Result<()> {
    let trimmed = transcript.mark("trimmed").unwrap_or_default();
    ensure!(trimmed.contains("bytes) trimmed") && !trimmed.contains("(0 bytes"), "{trimmed}");
    Ok(())
}
