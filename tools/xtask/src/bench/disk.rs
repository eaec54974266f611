//! `bench disk`: a disk on hvhost, by the kernel's own Hyper-V drivers and by its
//! Xen drivers under the shim. Times in an emulator say little about silicon; how
//! often a request leaves the guest carries over.

use super::count::Counter;
use anyhow::{Context, Result, bail, ensure};
use hvhost::stats::Report;
use hvhost::trace::TraceReport;
use pontoon::artefact::{Artefact, LINUX};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::{Kernel, read_module};
use pontoon::outcome::{Outcome, Status};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PROGRAM: Artefact = Artefact { package: "guests", binary: "diskbench", target: LINUX };
const DISK_BYTES: u64 = 256 << 20;
const MEMORY_MIB: u64 = 512;
const LIMIT: Duration = Duration::from_secs(900);
/// What follows a command of `--at` on hvhost's standard error.
const ANSWER: &str = "hvhost: counters: ok ";

/// Options of `bench disk`.
#[derive(clap::Args)]
pub struct Disk {
    /// Debian kernel to measure: a suite, or suite:release.
    #[arg(long, default_value = "bookworm")]
    kernel: String,
    /// Phases to run, separated by commas [default: all].
    #[arg(long, value_delimiter = ',')]
    phases: Vec<String>,
    /// Count the instructions in the shim, too: one more boot, under emulation.
    #[arg(long)]
    instructions: bool,
    /// Write where those instructions were, as addresses and numbers, all phases together; nothing
    /// else is measured.
    #[arg(long)]
    profile: Option<PathBuf>,
    /// Count VM exits by reason; slows each a little.
    #[arg(long)]
    trace: bool,
    /// Times each side is booted; the best of each line counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Let the disk take so many transfers of 8 KiB a second, and no more [default: as many as can
    /// be].
    #[arg(long, value_name = "N")]
    iops: Option<u32>,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a phase cost; all but the first per request.
#[derive(Clone, Debug, serde::Serialize)]
struct Cost {
    per_second: f64,
    exits: f64,
    halts: f64,
    signals: f64,
    interrupts: f64,
    /// In the shim; none natively.
    instructions: Option<f64>,
    /// Exits by reason, if they were traced.
    reasons: BTreeMap<String, f64>,
}

/// Measures natively and under the shim, and prints both beside each other.
pub fn run(options: &Disk) -> Result<()> {
    let phases = chosen(options)?;
    let kernel = Kernel::get(&options.kernel)?;
    if options.profile.is_some() {
        for (name, count) in phases.iter().zip(instructions(options, &kernel, &phases)?) {
            println!("{name}: {count:.0} instructions a request");
        }
        return Ok(());
    }
    let (mut host, why) = Host::choose(Under::Auto, MEMORY_MIB)?;
    eprintln!("bench: {why}");
    let mut sides = [None, None];
    for round in 1..=options.rounds {
        for (side, native) in sides.iter_mut().zip([true, false]) {
            let name = if native { "native" } else { "shim" };
            eprintln!("bench: {} {name}, {round} of {} …", kernel.release, options.rounds);
            let costs = measure(&mut host, &kernel, options, &phases, native).context(name)?;
            *side = Some(match side.take() {
                Some(before) => best(before, costs),
                None => costs,
            });
        }
    }
    let [Some(native), Some(mut shim)] = sides else { bail!("no rounds") };
    drop(host);
    if options.instructions {
        let counts = instructions(options, &kernel, &phases)?;
        for (cost, count) in shim.iter_mut().zip(counts) {
            cost.instructions = Some(count);
        }
    }
    let pace = options.iops.map(|iops| format!(", {iops} x 8 KiB/s")).unwrap_or_default();
    print_table(&format!("{}{pace}", kernel.release), &phases, &native, &shim);
    if let Some(path) = &options.json {
        let lines: Vec<_> = phases
            .iter()
            .zip(native.iter().zip(&shim))
            .map(|(name, (native, shim))| serde_json::json!({"name": name, "native": native, "shim": shim}))
            .collect();
        let report = serde_json::json!({
            "benchmark": "disk", "kernel": kernel.release, "package_version": kernel.version,
            "iops": options.iops, "lines": lines,
        });
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The phases asked for, in the program's order, which it says itself.
fn chosen(options: &Disk) -> Result<Vec<String>> {
    let list = Command::new(PROGRAM.find()?).output().context("diskbench cannot be run")?;
    let all: Vec<String> = String::from_utf8(list.stdout)?.lines().map(str::to_owned).collect();
    for name in &options.phases {
        ensure!(all.contains(name), "no phase {name}; there are {all:?}");
    }
    let wanted = |name: &String| options.phases.is_empty() || options.phases.contains(name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Boots the guest under the shim once more, in an emulation that counts; instructions in the shim
/// per request.
fn instructions(options: &Disk, kernel: &Kernel, phases: &[String]) -> Result<Vec<f64>> {
    eprintln!("bench: {} shim, counting instructions …", kernel.release);
    let counter = Counter::new()?;
    let session = counter.start(MEMORY_MIB, options.profile.as_deref())?;
    let mut host = Host::Nested(Box::new(session));
    let outcome = boot(&mut host, kernel, options, phases, false)?;
    let console = outcome.console_text();
    check(&outcome)?;
    let counts = counter.counts()?;
    ensure!(counts.len() == phases.len(), "{} counts for {} phases", counts.len(), phases.len());
    phases
        .iter()
        .zip(counts)
        .map(|(name, count)| {
            let (requests, _) =
                timing(&console, name).with_context(|| format!("no time for {name}"))?;
            Ok(count as f64 / requests)
        })
        .collect()
}

/// The quicker of each pair: a loaded machine makes slow, never quick.
fn best(a: Vec<Cost>, b: Vec<Cost>) -> Vec<Cost> {
    a.into_iter().zip(b).map(|(a, b)| if a.per_second >= b.per_second { a } else { b }).collect()
}

fn init(modules: &str, disk: &str, phases: &[String]) -> String {
    format!(
        "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in {modules}; do insmod /modules/$module || echo insmod $module failed; done
n=0; while [ ! -b /dev/{disk} ] && [ $n -lt 20 ]; do sleep 1; n=$((n + 1)); done
echo none > /sys/block/{disk}/queue/scheduler
/diskbench /dev/{disk} {}
poweroff -f
",
        phases.join(" ")
    )
}

fn initrd(kernel: &Kernel, native: bool, phases: &[String]) -> Result<Vec<u8>> {
    let (drivers, disk): (&[&str], _) = if native {
        (&["crct10dif_generic", "hv_storvsc", "sd_mod"], "sda")
    } else {
        (&["xen-blkfront"], "xvda")
    };
    let mut extras = vec![Extra { name: "diskbench".into(), data: fs::read(PROGRAM.find()?)? }];
    let mut list = Vec::new();
    for module in kernel.modules(drivers)? {
        let file = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{}.ko", file.split(".ko").next().unwrap_or_default());
        extras.push(Extra { name: format!("modules/{name}"), data: read_module(&module)? });
        list.push(name);
    }
    initramfs::build(&init(&list.join(" "), disk, phases), &extras)
}

fn measure(
    host: &mut Host,
    kernel: &Kernel,
    options: &Disk,
    phases: &[String],
    native: bool,
) -> Result<Vec<Cost>> {
    costs(&boot(host, kernel, options, phases, native)?, phases)
}

fn boot(
    host: &mut Host,
    kernel: &Kernel,
    options: &Disk,
    phases: &[String],
    native: bool,
) -> Result<Outcome> {
    let dir = Scratch::new()?;
    let image = dir.path().join("disk.img");
    fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let initrd_path = dir.path().join("initrd");
    fs::write(&initrd_path, initrd(kernel, native, phases)?)?;
    let console = if native { "ttyS0" } else { "hvc0" };
    let append = format!("console={console} quiet panic=-1");
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd_path), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    let iops = options.iops.map(|iops| format!(",iops={iops}")).unwrap_or_default();
    machine.disks = vec![format!("{}{iops}", image.display())];
    for name in phases {
        for end in ["begin", "end"] {
            machine.more.extend(["--at".into(), format!("@@ {name} {end}=counters")]);
        }
    }
    if options.trace {
        machine.more.push("--trace".into());
        machine.stats = true;
    }
    let machine = if native { machine } else { machine.under_shim(dir.path())? };
    host.run(&machine, &Input::default(), &mut |_| {})
}

/// A line `{"name":…,"count":…,"seconds":…}` of the console: requests and seconds.
fn timing(console: &str, name: &str) -> Option<(f64, f64)> {
    console
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.trim()).ok())
        .find(|line| line["name"] == name)
        .and_then(|line| Some((line["count"].as_f64()?, line["seconds"].as_f64()?)))
}

/// Whether the guest did all it was to do.
fn check(outcome: &Outcome) -> Result<()> {
    let console = outcome.console_text();
    ensure!(
        outcome.status == Status::POWER_OFF && console.contains("diskbench: done"),
        "ended with {:?}:\n{}\n{}",
        outcome.status,
        console.lines().rev().take(8).collect::<Vec<_>>().join("\n"),
        outcome.errors.lines().filter(|l| !l.contains(ANSWER)).collect::<Vec<_>>().join("\n"),
    );
    Ok(())
}

fn costs(outcome: &Outcome, phases: &[String]) -> Result<Vec<Cost>> {
    check(outcome)?;
    let console = outcome.console_text();
    let reports: Vec<Report> = outcome
        .errors
        .lines()
        .filter_map(|line| line.split_once(ANSWER))
        .map(|(_, json)| serde_json::from_str(json.trim()).context("hvhost's counters"))
        .collect::<Result<_>>()?;
    ensure!(
        reports.len() == phases.len() * 2,
        "{} counts for {} phases",
        reports.len(),
        phases.len()
    );
    phases
        .iter()
        .zip(reports.chunks_exact(2))
        .map(|(name, pair)| {
            let (count, seconds) =
                timing(&console, name).with_context(|| format!("no time for {name}"))?;
            let difference = |of: fn(&Report) -> u64| (of(&pair[1]) - of(&pair[0])) as f64 / count;
            Ok(Cost {
                per_second: count / seconds,
                exits: difference(|r| r.kvm.total.get("exits").copied().unwrap_or(0)),
                halts: difference(|r| r.kvm.total.get("halt_exits").copied().unwrap_or(0)),
                signals: difference(|r| r.channels.values().map(|c| c.host_signals).sum()),
                interrupts: difference(|r| r.channels.values().map(|c| c.interrupts).sum()),
                instructions: None,
                reasons: reasons(&pair[0], &pair[1], count),
            })
        })
        .collect()
}

/// Exits by reason per request; MSR accesses and hypercalls by their numbers.
fn reasons(begin: &Report, end: &Report, count: f64) -> BTreeMap<String, f64> {
    let all = |report: &Report| -> BTreeMap<String, u64> {
        let Some(TraceReport { exits, hypercalls, msrs, .. }) = &report.trace else {
            return BTreeMap::new();
        };
        let calls = hypercalls.iter().map(|(code, count)| (format!("call {code}"), *count));
        let msrs = msrs.iter().map(|(msr, c)| (format!("msr {msr}"), c.reads + c.writes));
        exits.iter().map(|(name, count)| (name.clone(), *count)).chain(calls).chain(msrs).collect()
    };
    let before = all(begin);
    let since = |name: &str, now: u64| now - before.get(name).copied().unwrap_or(0);
    let per_request = |(name, now): (String, u64)| {
        let cost = since(&name, now) as f64 / count;
        (name, cost)
    };
    all(end).into_iter().map(per_request).filter(|(_, cost)| *cost >= 0.001).collect()
}

fn print_reasons(phases: &[String], native: &[Cost], shim: &[Cost]) {
    for (name, (native, shim)) in phases.iter().zip(native.iter().zip(shim)) {
        let mut names: Vec<&String> = native.reasons.keys().chain(shim.reasons.keys()).collect();
        names.sort();
        names.dedup();
        for reason in names {
            let of = |cost: &Cost| cost.reasons.get(reason).copied().unwrap_or(0.0);
            println!("{name:13}{reason:20}{:>9.3}{:>9.3}", of(native), of(shim));
        }
    }
}

fn print_table(release: &str, phases: &[String], native: &[Cost], shim: &[Cost]) {
    println!("Linux {release} on hvhost; exits, signals and interrupts per request:");
    println!(
        "{:13}{:>10}{:>10}{:>7} |{:>9}{:>9} |{:>9}{:>9} |{:>9}{:>9} |{:>9}",
        "",
        "native/s",
        "shim/s",
        "ratio",
        "exits",
        "shim",
        "signals",
        "shim",
        "interr.",
        "shim",
        "instr."
    );
    for (name, (n, s)) in phases.iter().zip(native.iter().zip(shim)) {
        println!(
            "{name:13}{:>10.0}{:>10.0}{:>7.2} |{:>9.3}{:>9.3} |{:>9.3}{:>9.3} |{:>9.3}{:>9.3} |{:>9}",
            n.per_second,
            s.per_second,
            s.per_second / n.per_second,
            n.exits,
            s.exits,
            n.signals,
            s.signals,
            n.interrupts,
            s.interrupts,
            s.instructions.map_or_else(String::new, |count| format!("{count:.0}")),
        );
    }
    print_reasons(phases, native, shim);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found() {
        let console =
            "x\n{\"name\":\"read-4k-1\",\"count\":2000,\"bytes\":4096,\"seconds\":0.5}\r\n";
        assert_eq!(timing(console, "read-4k-1"), Some((2000.0, 0.5)));
        assert_eq!(timing(console, "read-4k-32"), None);
    }

    #[test]
    fn a_guest_that_says_nothing_is_no_result() {
        let outcome = Outcome {
            status: Status::POWER_OFF,
            console: Vec::new(),
            errors: String::new(),
            stats: None,
            wall: Duration::ZERO,
        };
        assert!(costs(&outcome, &["read-4k-1".into()]).is_err());
    }
}
