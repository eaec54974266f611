//! hvhost's storage, judged by Linux's own Hyper-V drivers.

use crate::{LIMIT, Lab, MEMORY_MIB, ended};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::outcome::Status;
use pontoon_tests::disks;
use pontoon_tests::transcript::Transcript;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
/// Where the guest puts the pattern, in bytes.
const PATTERN_AT: usize = 16 * 4096;

/// Bytes that repeat nowhere near.
pub fn bytes(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed;
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 24) as u8
    };
    (0..count).map(|_| step(&mut state)).collect()
}

pub fn md5(path: &Path) -> Result<String> {
    let out = std::process::Command::new("md5sum").arg(path).output().context("md5sum")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// On a host with everything.
pub fn native(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    tried(lab, spec, &[])
}

/// On a host that has no direct timers, whose messages come through the same slot as
/// VMBus's, and no privileges; signals by the monitor page.
pub fn like_openvmm(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    tried(lab, spec, &["--openvmm-like", "--vmbus-monitor"])
}

/// A partition, a file system, data that comes back, holes, a second controller,
/// disks that come and go, and nothing in the kernel's log.
fn tried(lab: &mut Lab, spec: &str, more: &[&str]) -> Result<()> {
    let dir = lab.scratch()?;
    let file = |name: &str, data: &[u8]| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, data)?;
        Ok(path)
    };
    let pattern = bytes(1, 64 << 10);
    let main = file("main.img", &[])?;
    fs::File::options().write(true).open(&main)?.set_len(64 * MIB)?;
    let large = file("large.img", &vec![0xa5; 4 * MIB as usize])?;
    let fixed = file("fixed.img", &bytes(2, MIB as usize))?;
    let dvd = file("dvd.iso", &bytes(3, MIB as usize))?;
    let second = file("second.img", &bytes(5, MIB as usize))?;
    let hot = file("hot.img", &bytes(4, MIB as usize))?;
    let kernel = lab.kernel(spec)?;
    let initrd = dir.join("disk-initrd");
    fs::write(&initrd, disks::initramfs(&kernel, &pattern)?)?;
    let mut machine =
        Machine::new(&kernel.vmlinuz()?, Some(&initrd), "console=ttyS0 quiet panic=-1");
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.cpus = 2;
    machine.stats = true;
    machine.more = more.iter().map(|word| (*word).to_owned()).collect();
    let disk = |path: &Path, words: &str| format!("{}{words}", path.display());
    machine.disks = vec![
        disk(&main, ",scsi=0:0"),
        disk(&large, ",scsi=0:1,sector=4096"),
        disk(&fixed, ",scsi=0:2,ro"),
        disk(&dvd, ",scsi=0:3,dvd"),
        disk(&hot, ",scsi=0:9,ro,detached"),
        disk(&second, ",scsi=1:5,ro"),
    ];
    for (marker, command) in [
        ("@@ hot-add", "disk-attach 0:9"),
        ("@@ hot-remove", "disk-remove 0:9"),
        ("@@ controller-remove", "controller-remove 1"),
        ("@@ controller-add", "controller-add 1"),
    ] {
        machine.more.extend(["--at".into(), format!("{marker}={command}")]);
    }
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::RESET)?;

    let failed: Vec<_> =
        transcript.text.lines().filter(|line| line.starts_with("@@ failed")).collect();
    ensure!(failed.is_empty(), "{}\nconsole:\n{}", failed.join("\n"), transcript.tail());
    let mark = |name: &str| transcript.mark(name).with_context(|| format!("no @@ {name}"));
    ensure!(mark("vendor")? == "Msft", "vendor {}", mark("vendor")?);
    ensure!(mark("sizes")? == "131072 4096 2048 1", "sizes {}", mark("sizes")?);
    ensure!(mark("queues")? == "2 cache write back", "queues {}", mark("queues")?);
    ensure!(mark("discard")? != "0", "no discard");
    for (name, path) in [("fixed", &fixed), ("dvd", &dvd), ("hot", &hot), ("second", &second)] {
        ensure!(mark(name)? == md5(path)?, "{name}: other data than in its file");
    }
    let log = transcript.log.as_ref().context("no kernel log")?;
    let complaints = disks::complaints(log);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));

    let written = fs::read(&large)?;
    let at = PATTERN_AT..PATTERN_AT + pattern.len();
    ensure!(written.get(at) == Some(pattern.as_slice()), "what was written is not in the file");
    let zeros = written.get(MIB as usize..3 * MIB as usize).unwrap_or_default();
    ensure!(zeros.iter().all(|b| *b == 0), "what was discarded is still in the file");
    ensure!(written.get(..4096).is_some_and(|b| b.iter().all(|b| *b == 0xa5)), "too much is gone");
    // 512-byte units: the hole is not allocated, the zeros may be.
    ensure!(fs::metadata(&large)?.blocks() <= 3 * MIB / 512, "nothing was given back");
    counted(outcome.stats.as_deref().context("no counters")?)
}

/// Both channels of the first controller were used, and signals were few.
fn counted(stats: &str) -> Result<()> {
    let stats: serde_json::Value = serde_json::from_str(stats)?;
    for channel in ["scsi0", "scsi0.1"] {
        let of = |field: &str| stats["channels"][channel][field].as_u64().unwrap_or(0);
        let requests = of("requests");
        ensure!(requests > 50, "{channel} served {requests} requests: {}", stats["channels"]);
        ensure!(of("malformed") == 0, "{channel}: {}", stats["channels"]);
        // At most one of each for a request, besides those of the initialization.
        ensure!(of("host_signals") <= requests + 32, "{channel}: {}", stats["channels"]);
        ensure!(of("interrupts") <= requests + 32, "{channel}: {}", stats["channels"]);
    }
    Ok(())
}
