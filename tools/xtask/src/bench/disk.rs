//! `bench disk`: a disk on hvhost, by the kernel's own Hyper-V drivers and by its
//! Xen drivers under the shim. Times in an emulator say little about silicon; how
//! often a request leaves the guest carries over.

use super::cost;
use super::count::Counter;
use anyhow::{Context, Result, ensure};
use pontoon::artefact::{Artefact, LINUX};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::{Kernel, read_module};
use pontoon::outcome::Outcome;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PROGRAM: Artefact = Artefact { package: "guests", binary: "diskbench", target: LINUX };
const DISK_BYTES: u64 = 256 << 20;
const MEMORY_MIB: u64 = 512;
const LIMIT: Duration = Duration::from_secs(900);

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
    let mut both = cost::compare(&phases, options.rounds, |native| {
        let outcome = boot(&mut host, &kernel, options, &phases, native)?;
        let console = finished(&outcome)?;
        cost::costs(&outcome, &phases, |name| super::timing(&console, name).context("no time"))
    })?;
    drop(host);
    if options.instructions {
        both.add_instructions(instructions(options, &kernel, &phases)?);
    }
    let pace = options.iops.map(|iops| format!(", {iops} x 8 KiB/s")).unwrap_or_default();
    both.print(&format!("Linux {} on hvhost{pace}", kernel.release), "request");
    if let Some(path) = &options.json {
        let about = serde_json::json!({
            "benchmark": "disk", "kernel": kernel.release, "package_version": kernel.version,
            "iops": options.iops,
        });
        both.write(path, about)?;
    }
    Ok(())
}

/// The console of a guest that did all it was to do.
fn finished(outcome: &Outcome) -> Result<String> {
    cost::check(outcome, "diskbench: done")?;
    Ok(outcome.console_text())
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
    let console = finished(&outcome)?;
    let counts = counter.counts()?;
    ensure!(counts.len() == phases.len(), "{} counts for {} phases", counts.len(), phases.len());
    phases
        .iter()
        .zip(counts)
        .map(|(name, count)| {
            let (requests, _) =
                super::timing(&console, name).with_context(|| format!("no time for {name}"))?;
            Ok(count as f64 / requests)
        })
        .collect()
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
    cost::count_phases(&mut machine, phases, options.trace);
    let machine = if native { machine } else { machine.under_shim(dir.path())? };
    host.run(&machine, &Input::default(), &mut |_| {})
}
