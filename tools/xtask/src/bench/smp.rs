//! `bench smp`: a parallel compile and loops of several threads, natively and under the shim on the same
//! hvhost, and the loops in plain QEMU beside real Xen. Of the first it says how often each leaves the
//! guest, and why: interrupts to other processors, TLB flushes.

use super::cost;
use anyhow::{Context, Result, ensure};
use pontoon::artefact::{Artefact, LINUX};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::Kernel;
use pontoon::outcome::Outcome;
use pontoon::qemu::Qemu;
use pontoon_tests::load;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PROGRAM: Artefact = Artefact { package: "guests", binary: "scale", target: LINUX };
const MEMORY_MIB: u64 = 1024;
const LIMIT: Duration = Duration::from_secs(1200);
/// The phase that is no loop of the program's; it counts files.
const COMPILE: &str = "compile";
/// In plain QEMU.
const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
/scale $(sed 's/.*pontoon_scale=//; s/,/ /g' /proc/cmdline)
poweroff -f
";

/// Options of `bench smp`.
#[derive(clap::Args)]
pub struct Smp {
    /// Debian kernel to measure: a suite, or suite:release.
    #[arg(long, default_value = "bookworm")]
    kernel: String,
    /// Phases to run, separated by commas [default: all].
    #[arg(long, value_delimiter = ',')]
    phases: Vec<String>,
    /// Processors.
    #[arg(long, default_value_t = 4, value_name = "N")]
    cpus: u32,
    /// Length of a loop.
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u32,
    /// Times each side is booted; the best of each line counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The loops in plain QEMU, natively, under real Xen and under the shim, instead.
    #[arg(long)]
    xen: bool,
    /// Write the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Measures and prints what there is to compare beside each other.
pub fn run(options: &Smp) -> Result<()> {
    let phases = chosen(options)?;
    let kernel = Kernel::get(&options.kernel)?;
    if options.xen {
        return beside_xen(options, &kernel, &phases);
    }
    let (mut host, why) = Host::choose(Under::Auto, MEMORY_MIB)?;
    eprintln!("bench: {why}");
    let dir = Scratch::new()?;
    let disk = dir.path().join("disk.img");
    load::disk(&disk)?;
    let both = cost::compare(&phases, options.rounds, |native| {
        let outcome = boot(&mut host, &kernel, options, &phases, &disk, native)?;
        let console = finished(&outcome)?;
        cost::costs(&outcome, &phases, |name| {
            super::timing(&console, name).with_context(|| format!("no time for {name}"))
        })
    })?;
    both.print(&format!("Linux {} on hvhost, {} processors", kernel.release, options.cpus), "turn");
    if let Some(path) = &options.json {
        let about = serde_json::json!({
            "benchmark": "smp", "kernel": kernel.release, "package_version": kernel.version,
            "cpus": options.cpus,
        });
        both.write(path, about)?;
    }
    Ok(())
}

/// The console of a guest that did all it was to do.
fn finished(outcome: &Outcome) -> Result<String> {
    cost::check(outcome, "scale: done")?;
    Ok(outcome.console_text())
}

/// The phases asked for, in order: the compile first.
fn chosen(options: &Smp) -> Result<Vec<String>> {
    let list = Command::new(PROGRAM.find()?).output().context("scale cannot be run")?;
    let loops = String::from_utf8(list.stdout)?;
    let compile = (!options.xen).then_some(COMPILE);
    let all: Vec<&str> = compile.into_iter().chain(loops.lines()).collect();
    for name in &options.phases {
        ensure!(all.contains(&name.as_str()), "no phase {name}; there are {all:?}");
    }
    let wanted = |name: &str| options.phases.is_empty() || options.phases.iter().any(|p| p == name);
    Ok(all.into_iter().filter(|name| wanted(name)).map(str::to_owned).collect())
}

fn boot(
    host: &mut Host,
    kernel: &Kernel,
    options: &Smp,
    phases: &[String],
    disk: &Path,
    native: bool,
) -> Result<Outcome> {
    let dir = Scratch::new()?;
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, load::initramfs(kernel, native)?)?;
    let (console, loops) = (if native { "ttyS0" } else { "hvc0" }, phases.join(","));
    let append = format!(
        "console={console} quiet panic=-1 pontoon_test=scale pontoon_seconds={} \
         pontoon_phases={loops}",
        options.seconds
    );
    let mut machine = Machine::new(&kernel.vmlinuz()?, Some(&initrd), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.cpus = options.cpus;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![format!("{},ro", disk.display())];
    cost::count_phases(&mut machine, phases, true);
    let machine = if native { machine } else { machine.under_shim(dir.path())? };
    host.run(&machine, &Input::default(), &mut |_| {})
}

/// The loops where real Xen runs, too.
fn beside_xen(options: &Smp, kernel: &Kernel, phases: &[String]) -> Result<()> {
    let dir = Scratch::new()?;
    let initrd = dir.path().join("initrd");
    let extra = Extra { name: "scale".into(), data: fs::read(PROGRAM.find()?)? };
    fs::write(&initrd, initramfs::build(INIT, &[extra])?)?;
    let qemu = Qemu::default();
    let loops = phases.join(",");
    let boot = |place: &str| -> Result<String> {
        eprintln!("bench: {place} …");
        let console = if place == "native" { "ttyS0" } else { "hvc0" };
        let append =
            format!("console={console} quiet panic=-1 pontoon_scale={},{loops}", options.seconds);
        let mut machine = Machine::new(&kernel.vmlinux()?, Some(&initrd), &append);
        machine.memory_mib = MEMORY_MIB;
        machine.cpus = options.cpus;
        machine.timeout = Some(LIMIT);
        let outcome = match place {
            "xen" => pontoon::xen::run(&machine, &qemu, true, &mut |_| {}),
            "shim" => qemu.run(&machine.under_shim(dir.path())?, &Input::default(), &mut |_| {}),
            _ => qemu.run(&machine, &Input::default(), &mut |_| {}),
        };
        finished(&outcome?).with_context(|| place.to_owned())
    };
    let places = ["native", "xen", "shim"];
    let consoles = places.iter().map(|place| boot(place)).collect::<Result<Vec<_>>>()?;
    println!(
        "Linux {} in plain QEMU, {} processors; turns a second:",
        kernel.release, options.cpus
    );
    println!("{:13}{:>10}{:>10}{:>10}", "", "native", "xen", "shim");
    let mut lines = Vec::new();
    for name in phases {
        let rates = consoles.iter().map(|console| {
            let (count, seconds) = super::timing(console, name).context("no time")?;
            Ok(count / seconds)
        });
        let rates = rates.collect::<Result<Vec<f64>>>().with_context(|| name.clone())?;
        println!("{name:13}{:>10.0}{:>10.0}{:>10.0}", rates[0], rates[1], rates[2]);
        lines.push(serde_json::json!({"name": name, "places": places, "per_second": rates}));
    }
    if let Some(path) = &options.json {
        let report = serde_json::json!({
            "benchmark": "smp-xen", "kernel": kernel.release, "cpus": options.cpus, "lines": lines,
        });
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}
