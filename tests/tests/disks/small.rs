//! Small guests: a kernel, its block frontend, and one thing they do to their disks.

use crate::{native, power};
use anyhow::{Context, Result, ensure};
use pontoon::host::Machine;
use pontoon::initramfs::Extra;
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::lab::{Lab, cpus, ended, nothing_new};
use pontoon_tests::transcript::Transcript;
use pontoon_tests::{guests, parts};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const INIT: [&str; 2] =
    [include_str!("../../e2e/fio-lib.sh"), include_str!("../../e2e/xvd-init.sh")];
const MODULES: [&str; 2] = ["xen-blkfront", "ext4"];
const LIMIT: Duration = Duration::from_secs(300);
const MIB: usize = 1 << 20;

type Test = fn(&mut Lab, &str) -> Result<()>;

/// The tests every kernel has.
pub const TESTS: [(&str, Test); 7] = [
    ("fio", fio),
    ("fio-4", fio_on_four),
    ("faults", faults),
    ("plug", plug),
    ("power", power::cuts),
    ("native-1-queue", native::one_queue),
    ("native-8-queues", native::eight_queues),
];

/// A guest whose first process does `test`; disks and limits are the caller's.
pub fn guest(lab: &mut Lab, spec: &str, test: &str) -> Result<Machine> {
    let kernel = Kernel::get(spec)?;
    let initrd = lab.file("xvd-initrd")?;
    let program = fs::read(guests::program("diskwork")?)?;
    let mut extras = parts::drivers(&kernel, &MODULES)?;
    extras.push(Extra { name: "diskwork".into(), data: program });
    fs::write(&initrd, guests::with_init(&INIT, &extras)?)?;
    let append = format!("console=hvc0 quiet panic=-1 pontoon_test={test}");
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.timeout = Some(LIMIT);
    Ok(machine)
}

/// A file of noise.
pub fn noise(lab: &mut Lab, name: &str, bytes: usize) -> Result<PathBuf> {
    let path = lab.file(name)?;
    let mut data = vec![0; bytes];
    fs::File::open("/dev/urandom")?.read_exact(&mut data)?;
    fs::write(&path, data)?;
    Ok(path)
}

/// An empty disk.
pub fn blank(lab: &mut Lab, name: &str, bytes: usize) -> Result<PathBuf> {
    let path = lab.file(name)?;
    fs::File::create(&path)?.set_len(bytes as u64)?;
    Ok(path)
}

/// A disk's option.
pub fn disk(path: &Path, words: &str) -> String {
    format!("{}{words}", path.display())
}

/// The sum of a file's `blocks` blocks of 4096 bytes from `at`.
pub fn sum(path: &Path, at: usize, blocks: usize) -> Result<String> {
    let data = fs::read(path)?;
    let part = data.get(at * 4096..(at + blocks) * 4096).context("behind the end")?;
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, part)?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Boots it; it ran to its end, found nothing wrong, and the kernel survived.
fn good(lab: &mut Lab, machine: &Machine) -> Result<Transcript> {
    Ok(good_and_counted(lab, machine)?.0)
}

/// The same with the host's counters.
fn good_and_counted(lab: &mut Lab, machine: &Machine) -> Result<(Transcript, Option<String>)> {
    let outcome = lab.run(machine, &mut |_| {})?;
    let transcript = ended(&outcome, Status::POWER_OFF)?;
    let failed: Vec<_> = transcript.text.lines().filter(|l| l.contains("@@ failed")).collect();
    let (failed, tail, host) = (failed.join("\n"), transcript.tail(), &outcome.errors);
    ensure!(failed.is_empty(), "{failed}\nconsole:\n{tail}\nhost:\n{host}");
    ensure!(transcript.mark("end").is_some(), "no end:\n{}", transcript.tail());
    let log = transcript.log.as_ref().context("no kernel log")?;
    const TROUBLE: [&str; 5] = ["BUG", "Oops", "WARNING", "Call Trace", "blocked for more than"];
    let bad: Vec<_> =
        log.iter().filter(|line| TROUBLE.iter().any(|word| line.contains(word))).collect();
    ensure!(bad.is_empty(), "the kernel is in trouble:\n{}", log.join("\n"));
    Ok((transcript, outcome.stats))
}

/// What the guest said about `name`, which it must.
pub fn mark<'a>(transcript: &'a Transcript, name: &str) -> Result<&'a str> {
    transcript.mark(name).with_context(|| format!("no @@ {name}:\n{}", transcript.tail()))
}

/// Data written in every size, order and depth are read back as they were.
fn fio(lab: &mut Lab, spec: &str) -> Result<()> {
    fio_on(lab, spec, cpus()?)
}

/// The same on four processors, with a queue for each.
fn fio_on_four(lab: &mut Lab, spec: &str) -> Result<()> {
    fio_on(lab, spec, cpus()?.max(4))
}

fn fio_on(lab: &mut Lab, spec: &str, cpus: u32) -> Result<()> {
    let tools = lab.file("tools.img")?;
    parts::program_disk(&tools, "/usr/bin/fio")?;
    let data = blank(lab, "data.img", 128 * MIB)?;
    let large = blank(lab, "large.img", 64 * MIB)?;
    let mut machine = guest(lab, spec, "fio")?;
    machine.memory_mib = 1024;
    machine.cpus = cpus;
    machine.stats = true;
    machine.disks = vec![disk(&tools, ",ro"), disk(&data, ""), disk(&large, ",sector=4096")];
    let (transcript, stats) = good_and_counted(lab, &machine)?;
    native::every_channel(&stats.context("no counters")?, cpus)?;
    ensure!(mark(&transcript, "sectors")? == "512 4096", "{}", mark(&transcript, "sectors")?);
    let runs = transcript.text.lines().filter(|l| l.starts_with("@@ fio")).count();
    ensure!(runs == 5, "{runs} runs of fio:\n{}", transcript.tail());
    nothing_new(&transcript, &Kernel::get(spec)?, "")
}

/// Errors of the host reach the program that asked, and nobody else.
fn faults(lab: &mut Lab, spec: &str) -> Result<()> {
    let bystander = lab.file("bystander.img")?;
    parts::ext4(&bystander, 32, None)?;
    let bad = noise(lab, "bad.img", 8 * MIB)?;
    // Blocks 255 and 257 are the same, so that 256 is seen to be the only bad one.
    let mut data = fs::read(&bad)?;
    data.copy_within(255 * 4096..256 * 4096, 257 * 4096);
    fs::write(&bad, data)?;
    let [again, late, short] =
        [(12 * 64, 64), (1024, 8), (20 * 64, 64)].map(|(at, blocks)| sum(&bad, at, blocks));
    let mut machine = guest(lab, spec, "faults")?;
    machine.disks = vec![disk(&bystander, ""), disk(&bad, "")];
    for fault in [
        "op=read,sectors=2048-2055,error",
        "op=write,sectors=4096-4103,error",
        "op=write,sectors=4160-4223,error",
        // Once where it is part of what blkback put together, once alone.
        "op=read,sectors=6200,error,times=2",
        "op=read,sectors=8192,delay=3000,times=1",
        "op=read,sectors=10240-10751,short,times=1",
        "op=write,sectors=12288-12799,short,times=1",
    ] {
        machine.more.extend(["--disk-fault".into(), format!("scsi=0:1,{fault}")]);
    }
    let transcript = good(lab, &machine)?;
    ensure!(mark(&transcript, "again")? == again?, "after an error, other data");
    ensure!(mark(&transcript, "late")? == late?, "late, and other data");
    let took: u64 = mark(&transcript, "took")?.parse()?;
    ensure!((2..30).contains(&took), "a request that is held for 3 s took {took} s");
    let is = mark(&transcript, "short")?;
    ensure!(is == "error" || is == short?, "half a transfer was called good: {is}");
    bystander_is_well(&transcript, &bystander)
}

fn bystander_is_well(transcript: &Transcript, image: &Path) -> Result<()> {
    let rounds: u64 = mark(transcript, "bystander")?.parse()?;
    ensure!(rounds > 0, "the other disk was not used");
    parts::run(Command::new("/sbin/e2fsck").arg("-fn").arg(image)).map(drop)
}

/// A disk comes, is used, goes while it is used, comes again, goes while it is mounted.
fn plug(lab: &mut Lab, spec: &str) -> Result<()> {
    let bystander = lab.file("bystander.img")?;
    parts::ext4(&bystander, 32, None)?;
    let hot = noise(lab, "hot.img", 16 * MIB)?;
    let expected = sum(&hot, 0, 64)?;
    let mut machine = guest(lab, spec, "plug")?;
    machine.disks = vec![disk(&bystander, ""), disk(&hot, ",scsi=0:1,detached")];
    for (marker, command) in [
        ("@@ attach", "disk-attach 0:1"),
        ("@@ remove", "disk-remove 0:1"),
        ("@@ attach-again", "disk-attach 0:1"),
        ("@@ remove-mounted", "disk-remove 0:1"),
    ] {
        machine.more.extend(["--at".into(), format!("{marker}={command}")]);
    }
    let transcript = good(lab, &machine)?;
    ensure!(mark(&transcript, "size")? == "32768", "size {}", mark(&transcript, "size")?);
    for name in ["data", "data-again"] {
        ensure!(mark(&transcript, name)? == expected, "{name}: other data than in the file");
    }
    let users: Vec<_> = transcript.text.lines().filter(|l| l.starts_with("@@ user")).collect();
    ensure!(users.len() == 3 && !users.contains(&"@@ user 0"), "not in use: {users:?}");
    bystander_is_well(&transcript, &bystander)
}
