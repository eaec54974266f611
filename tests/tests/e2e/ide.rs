//! Disks of IDE controllers, which have a channel each, as in Generation 1 machines. Natively Linux's
//! driver says whether hvhost's are as it expects them; under the shim they are virtual block devices.

use crate::disk::{bytes, md5};
use crate::{LIMIT, Lab, MEMORY_MIB, ended, in_plain_qemu};
use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine};
use pontoon::outcome::Status;
use pontoon_tests::transcript::Transcript;
use pontoon_tests::{disks, guests, parts};
use std::fs;
use std::path::PathBuf;

const INIT: &str = include_str!("../../e2e/ide-init.sh");
const MODULES: [&str; 2] = ["hv_storvsc", "sd_mod"];
const XEN_MODULES: [&str; 1] = ["xen-blkfront"];

/// The disks: where they are, MiB, and whether they can be written.
const DISKS: [(&str, usize, bool); 4] =
    [("scsi=0:3", 3, true), ("ide=1:0", 2, true), ("ide=0:1", 4, true), ("ide=0:0", 1, false)];

/// A machine with these disks, and their files.
fn machine(
    lab: &mut Lab,
    spec: &str,
    append: &str,
    modules: &[&str],
) -> Result<(Machine, Vec<PathBuf>)> {
    let kernel = lab.kernel(spec)?;
    let scratch = lab.scratch()?;
    let initrd = scratch.join("ide-initrd");
    fs::write(&initrd, guests::with_init(&[INIT], &parts::drivers(&kernel, modules)?)?)?;
    let append = format!("{append} quiet panic=-1 pontoon_disks={}", DISKS.len());
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.stats = true;
    let mut files = Vec::new();
    for (nr, (place, mib, is_writable)) in (0u32..).zip(DISKS) {
        let file = scratch.join(format!("ide-{nr}.img"));
        fs::write(&file, bytes(nr + 10, mib << 20))?;
        let ro = if is_writable { "" } else { ",ro" };
        machine.disks.push(format!("{},{place}{ro}", file.display()));
        files.push(file);
    }
    Ok((machine, files))
}

/// Runs it; what the guest says of each disk: sectors, whether it is read-only, sum, path.
fn seen(lab: &mut Lab, machine: &Machine) -> Result<Vec<(String, Vec<String>)>> {
    let outcome = lab.run(machine, &Input::default(), &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    let (tail, host) = (transcript.tail(), &outcome.errors);
    ensure!(transcript.mark("failed").is_none(), "{tail}\nhost:\n{host}");
    let log = transcript.log.as_ref().context("no kernel log")?;
    let complaints = disks::complaints(log);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
    let stats: serde_json::Value =
        serde_json::from_str(outcome.stats.as_deref().context("no counters")?)?;
    for channel in ["ide0-0", "ide0-1", "ide1-0", "scsi0"] {
        let of = |field: &str| stats["channels"][channel][field].as_u64().unwrap_or(0);
        ensure!(of("requests") > 5 && of("malformed") == 0, "{channel}: {}", stats["channels"]);
    }
    let names = transcript.text.lines().filter_map(|line| line.strip_prefix("@@ disk-"));
    let list = names.filter_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        Some((name.to_owned(), rest.split_whitespace().map(str::to_owned).collect()))
    });
    let list: Vec<(String, Vec<String>)> = list.collect();
    ensure!(list.len() == DISKS.len(), "other disks: {list:?}");
    Ok(list)
}

/// It is disk `nr`, with what is in its file now.
fn is_disk(found: &[String], nr: usize, files: &[PathBuf], is_read_only: bool) -> Result<()> {
    let (place, mib, _) = DISKS[nr];
    let ro = if is_read_only { "1" } else { "0" };
    let wanted = [(mib * 2048).to_string(), ro.into(), md5(&files[nr])?];
    ensure!(found.get(..3) == Some(&wanted[..]), "{place}: {found:?}, not {wanted:?}");
    Ok(())
}

/// Debian's kernel with `hv_storvsc`.
pub fn native(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    let (machine, files) = machine(lab, spec, "console=ttyS0", &MODULES)?;
    let list = seen(lab, &machine)?;
    // Controller and device are in the instance; the device is the target, too.
    let paths = [
        ":0:0:3",
        "/00000001-0000-8899-0000-000000000000/host",
        "/00000000-0001-8899-0000-000000000000/host",
        "/00000000-0000-8899-0000-000000000000/host",
    ];
    for (nr, path) in paths.into_iter().enumerate() {
        let is_it = |found: &&(String, Vec<String>)| {
            found.1.get(3).is_some_and(|device| device.contains(path))
        };
        let (_, found) = list.iter().find(is_it).with_context(|| format!("{path}: {list:?}"))?;
        is_disk(found, nr, &files, !DISKS[nr].2)?;
        let device = found.get(3).map(String::as_str).unwrap_or_default();
        ensure!(nr != 2 || device.ends_with(":0:1:0"), "the target is another: {device}");
    }
    Ok(())
}

/// Without an option IDE's disks come first; with one they are what it says.
pub fn under_shim(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    if in_plain_qemu() {
        return Ok(());
    }
    let chosen = "pontoon.vbd=xvda:ide1:0,xvdb:scsi0:3,xvdc:ide0:0:ro,xvdd:ide0:1:ro";
    for (option, order) in [("", [3, 2, 1, 0]), (chosen, [1, 0, 3, 2])] {
        let append = format!("console=hvc0 {option}");
        let (machine, files) = machine(lab, spec, &append, &XEN_MODULES)?;
        let machine = machine.under_shim(&lab.scratch()?)?;
        let list = seen(lab, &machine)?;
        for (name, nr) in ["xvda", "xvdb", "xvdc", "xvdd"].into_iter().zip(order) {
            let (_, found) = list.iter().find(|(other, _)| other == name).context(name)?;
            let is_read_only = !DISKS[nr].2 || nr == 2 && !option.is_empty();
            is_disk(found, nr, &files, is_read_only).with_context(|| format!("{name} {option}"))?;
        }
    }
    Ok(())
}
