//! `bench disk`: a disk on hvhost, by the kernel's own Hyper-V drivers and by its
//! Xen drivers under the shim. Times in an emulator say little about silicon; how
//! often a request leaves the guest carries over.

use anyhow::{Context, Result, bail, ensure};
use hvhost::stats::Report;
use pontoon::artefact::{Artefact, LINUX};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::{Kernel, read_module};
use pontoon::outcome::{Outcome, Status};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const PROGRAM: Artefact = Artefact { package: "guests", binary: "diskbench", target: LINUX };
/// The program's phases, in its order.
const PHASES: [&str; 12] = [
    "read-4k-1",
    "read-4k-32",
    "write-4k-1",
    "write-4k-32",
    "read-64k-1",
    "read-64k-32",
    "write-64k-1",
    "write-64k-32",
    "read-1m-1",
    "read-1m-32",
    "write-1m-1",
    "write-1m-32",
];
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
    /// Only boot the guest under the shim, for a profiler; no table.
    #[arg(long)]
    shim_only: bool,
    /// Times each side is booted; the best of each line counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a phase cost; the last four per request.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Cost {
    per_second: f64,
    exits: f64,
    halts: f64,
    signals: f64,
    interrupts: f64,
}

/// Measures natively and under the shim, and prints both beside each other.
pub fn run(options: &Disk) -> Result<()> {
    for name in &options.phases {
        ensure!(PHASES.contains(&name.as_str()), "no phase {name}; there are {PHASES:?}");
    }
    let chosen =
        |name: &&str| options.phases.is_empty() || options.phases.iter().any(|n| n == name);
    let phases: Vec<&str> = PHASES.into_iter().filter(chosen).collect();
    let kernel = Kernel::get(&options.kernel)?;
    let (mut host, why) = Host::choose(Under::Auto, MEMORY_MIB)?;
    eprintln!("bench: {why}");
    if options.shim_only {
        for (name, cost) in phases.iter().zip(measure(&mut host, &kernel, &phases, false)?) {
            println!("{name}: {cost:?}");
        }
        return Ok(());
    }
    let mut sides = [None, None];
    for round in 1..=options.rounds {
        for (side, native) in sides.iter_mut().zip([true, false]) {
            let name = if native { "native" } else { "shim" };
            eprintln!("bench: {} {name}, {round} of {} …", kernel.release, options.rounds);
            let costs = measure(&mut host, &kernel, &phases, native).context(name)?;
            *side = Some(match side.take() {
                Some(before) => best(before, costs),
                None => costs,
            });
        }
    }
    let [Some(native), Some(shim)] = sides else { bail!("no rounds") };
    print_table(&kernel.release, &phases, &native, &shim);
    if let Some(path) = &options.json {
        let lines: Vec<_> = phases
            .iter()
            .zip(native.iter().zip(&shim))
            .map(|(name, (native, shim))| serde_json::json!({"name": name, "native": native, "shim": shim}))
            .collect();
        let report = serde_json::json!({
            "benchmark": "disk", "kernel": kernel.release, "package_version": kernel.version, "lines": lines,
        });
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The quicker of each pair: a loaded machine makes slow, never quick.
fn best(a: Vec<Cost>, b: Vec<Cost>) -> Vec<Cost> {
    a.into_iter().zip(b).map(|(a, b)| if a.per_second >= b.per_second { a } else { b }).collect()
}

fn init(modules: &str, disk: &str, phases: &[&str]) -> String {
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

fn initrd(kernel: &Kernel, native: bool, phases: &[&str]) -> Result<Vec<u8>> {
    let (drivers, disk): (&[&str], _) = if native {
        (&["crct10dif_generic", "hv_vmbus", "hv_storvsc", "sd_mod"], "sda")
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

fn measure(host: &mut Host, kernel: &Kernel, phases: &[&str], native: bool) -> Result<Vec<Cost>> {
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
    machine.disks = vec![image.display().to_string()];
    for name in phases {
        for end in ["begin", "end"] {
            machine.more.extend(["--at".into(), format!("@@ {name} {end}=counters")]);
        }
    }
    let machine = if native { machine } else { machine.under_shim(dir.path())? };
    let outcome = host.run(&machine, &Input::default(), &mut |_| {})?;
    costs(&outcome, phases)
}

/// A line `{"name":…,"count":…,"seconds":…}` of the console: requests and seconds.
fn timing(console: &str, name: &str) -> Option<(f64, f64)> {
    console
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.trim()).ok())
        .find(|line| line["name"] == name)
        .and_then(|line| Some((line["count"].as_f64()?, line["seconds"].as_f64()?)))
}

fn costs(outcome: &Outcome, phases: &[&str]) -> Result<Vec<Cost>> {
    let console = outcome.console_text();
    ensure!(
        outcome.status == Status::POWER_OFF && console.contains("diskbench: done"),
        "ended with {:?}:\n{}\n{}",
        outcome.status,
        console.lines().rev().take(8).collect::<Vec<_>>().join("\n"),
        outcome.errors.lines().filter(|l| !l.contains(ANSWER)).collect::<Vec<_>>().join("\n"),
    );
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
            })
        })
        .collect()
}

fn print_table(release: &str, phases: &[&str], native: &[Cost], shim: &[Cost]) {
    println!("Linux {release} on hvhost; exits, signals and interrupts per request:");
    println!(
        "{:13}{:>10}{:>10}{:>7} |{:>9}{:>9} |{:>9}{:>9} |{:>9}{:>9}",
        "", "native/s", "shim/s", "ratio", "exits", "shim", "signals", "shim", "interr.", "shim"
    );
    for (name, (n, s)) in phases.iter().zip(native.iter().zip(shim)) {
        println!(
            "{name:13}{:>10.0}{:>10.0}{:>7.2} |{:>9.3}{:>9.3} |{:>9.3}{:>9.3} |{:>9.3}{:>9.3}",
            n.per_second,
            s.per_second,
            s.per_second / n.per_second,
            n.exits,
            s.exits,
            n.signals,
            s.signals,
            n.interrupts,
            s.interrupts
        );
    }
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
        assert!(costs(&outcome, &["read-4k-1"]).is_err());
    }
}
