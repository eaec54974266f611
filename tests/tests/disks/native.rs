//! hvhost's storage under load, judged by Linux's own Hyper-V drivers: a queue on one
//! processor, a queue for each of eight.

use crate::small::{blank, disk, mark, noise, sum};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::kernel::Kernel;
use pontoon::outcome::Status;
use pontoon_tests::lab::{Lab, MEMORY_MIB, ended};
use pontoon_tests::{disks, parts};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Eight processors take two minutes on a quiet machine with two, emulated twice.
const LIMIT: Duration = Duration::from_secs(900);
const MIB: usize = 1 << 20;
/// Runs of fio in the script.
const RUNS: usize = 4;
/// Fewest requests of each channel of several.
const REQUESTS_MIN: u64 = 100;

/// One processor, one channel.
pub fn one_queue(lab: &mut Lab, spec: &str) -> Result<()> {
    queues(lab, spec, 1)
}

/// Eight of each.
pub fn eight_queues(lab: &mut Lab, spec: &str) -> Result<()> {
    queues(lab, spec, 8)
}

/// A partition, ext4, fio with checksums, a disk that comes and goes meanwhile, what is
/// free given back, and nothing about disks in the kernel's log.
fn queues(lab: &mut Lab, spec: &str, count: u32) -> Result<()> {
    let kernel = Kernel::get(spec)?;
    let [initrd, tools] = [lab.file("native-initrd")?, lab.file("tools.img")?];
    fs::write(&initrd, disks::fio_initramfs(&kernel)?)?;
    parts::program_disk(&tools, "/usr/bin/fio")?;
    let data = blank(lab, "data.img", 128 * MIB)?;
    let hot = noise(lab, "hot.img", MIB)?;
    let expected = sum(&hot, 0, MIB / 4096)?;
    let append = "console=ttyS0 quiet panic=-1";
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), append);
    machine.cpus = count;
    machine.memory_mib = MEMORY_MIB;
    machine.stats = true;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![
        disk(&tools, ",scsi=0:0,ro"),
        disk(&data, ",scsi=0:1"),
        disk(&hot, ",scsi=0:9,ro,detached"),
    ];
    for at in ["@@ hot-add=disk-attach 0:9", "@@ hot-remove=disk-remove 0:9"] {
        machine.more.extend(["--at".into(), at.into()]);
    }
    let outcome = lab.run_as_is(&machine, &Input::default(), &mut |_| {})?;
    let transcript = ended(&outcome, Status::RESET)?;
    let lines = || transcript.text.lines();
    let failed: Vec<_> = lines().filter(|l| l.starts_with("@@ failed")).collect();
    ensure!(failed.is_empty(), "{}\nconsole:\n{}", failed.join("\n"), transcript.tail());
    ensure!(transcript.mark("end").is_some(), "no end:\n{}", transcript.tail());
    for name in ["cpus", "queues"] {
        ensure!(mark(&transcript, name)? == count.to_string(), "{name}: {}", transcript.tail());
    }
    let runs = lines().filter(|l| l.starts_with("@@ fio")).count();
    ensure!(runs == RUNS, "{runs} runs of fio:\n{}", transcript.tail());
    ensure!(mark(&transcript, "hot")? == expected, "other data than in the file");
    // As busybox says it.
    let trimmed = mark(&transcript, "trimmed")?;
    ensure!(trimmed.ends_with("bytes trimmed") && !trimmed.contains(": 0 bytes"), "{trimmed}");
    // Blocks of 512 bytes; all of the disk was discarded in the end.
    ensure!(fs::metadata(&data)?.blocks() < 2 * MIB as u64 / 512, "nothing was given back");
    let log = transcript.log.as_ref().context("no kernel log")?;
    let complaints = disks::complaints(log);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    every_channel(outcome.stats.as_deref().context("no counters")?, count)
}

/// There is a channel for each queue, and each had its share.
pub fn every_channel(stats: &str, count: u32) -> Result<()> {
    let stats: serde_json::Value = serde_json::from_str(stats)?;
    let channels = stats["channels"].as_object().context("no channels")?;
    ensure!(channels.len() == usize::try_from(count)?, "channels: {}", stats["channels"]);
    for (name, channel) in channels {
        let requests = channel["requests"].as_u64().unwrap_or(0);
        ensure!(requests >= REQUESTS_MIN, "{name} had {requests}: {}", stats["channels"]);
        ensure!(channel["malformed"] == 0, "{name}: {channel}");
    }
    Ok(())
}
