//! `bench micro` is the project's yardstick: what kernel operations
//! cost in guest instructions, natively, under real Xen and under the shim, by
//! the same program on the same kernel on the same emulated processor.

use anyhow::{Context, Result, bail, ensure};
use pontoon::artefact::{Artefact, LINUX, workspace};
use pontoon::cleanup::Scratch;
use pontoon::host::{Input, Machine};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon::qemu::Qemu;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MICRO: Artefact = Artefact { package: "guests", binary: "micro", target: LINUX };

/// What a line may cost, as a multiple of native. Real Xen must cost more on
/// every line.
const BARS: &[(&str, f64)] = &[
    ("getpid", 1.15),
    ("page_fault", 1.22),
    ("munmap_page", 1.08),
    ("fork_exit", 1.38),
    ("vfork_exec", 1.27),
    ("pipe_round_trip", 1.28),
];

/// The kernel's own randomness goes, so that the figures repeat.
const APPEND: &str = "panic=-1 quiet nokaslr norandmaps";
const MEMORY_MIB: u64 = 1024;
const LIMIT: Duration = Duration::from_secs(600);

const INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
/micro
poweroff -f
";

/// Options of `bench micro`.
#[derive(clap::Args)]
pub struct Micro {
    /// Debian kernel to measure: a suite, or suite:release.
    #[arg(long, default_value = "bookworm")]
    kernel: String,
    /// Fail if a line is above its bar or real Xen is ahead of it.
    #[arg(long)]
    check: bool,
    /// Where to measure.
    #[arg(long, value_delimiter = ',', default_value = "native,xen,shim")]
    on: Vec<Place>,
    /// Write the figures here (default: target/bench-micro-KERNEL.json).
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Place {
    /// Without a hypervisor.
    Native,
    /// As PV dom0 of Xen 4.17.
    Xen,
    /// Under the shim.
    Shim,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Xen => "xen",
            Self::Shim => "shim",
        }
    }
}

/// Figures of one place, in the order they were printed.
type Figures = Vec<(String, f64)>;

/// Boots the kernel in all places and prints the table.
pub fn run(options: &Micro) -> Result<()> {
    let kernel = Kernel::get(&options.kernel)?;
    let dir = Scratch::new()?;
    let initrd = dir.path().join("initrd");
    let data = fs::read(MICRO.find()?)?;
    fs::write(&initrd, initramfs::build(INIT, &[Extra { name: "micro".into(), data }])?)?;
    let mut all = BTreeMap::new();
    for &place in &options.on {
        eprintln!("bench: {} {} …", kernel.release, place.name());
        let outcome = boot(place, &kernel, &initrd, dir.path())?;
        let figures = figures(&outcome).with_context(|| format!("{} run", place.name()))?;
        eprintln!("bench: {} in {:.0} s", place.name(), outcome.wall.as_secs_f64());
        all.insert(place, figures);
    }
    print_table(&kernel.release, &all);
    let path = match &options.json {
        Some(path) => path.clone(),
        None => workspace()
            .unwrap_or_default()
            .join(format!("target/bench-micro-{}.json", options.kernel)),
    };
    write_json(&path, &kernel, &all)?;
    let misses = misses(&all);
    for miss in &misses {
        eprintln!("bench: {miss}");
    }
    ensure!(!options.check || misses.is_empty(), "{} lines miss their bar", misses.len());
    Ok(())
}

/// Deterministic to the instruction: virtual time, a fixed date, fixed seeds.
fn counting_qemu() -> Qemu {
    let more = ["-rtc", "base=2024-01-01,clock=vm", "-seed", "1"];
    Qemu { icount: true, more: more.map(str::to_owned).to_vec(), ..Qemu::default() }
}

fn boot(place: Place, kernel: &Kernel, initrd: &Path, dir: &Path) -> Result<Outcome> {
    let console = if place == Place::Native { "ttyS0" } else { "hvc0" };
    let append = format!("console={console} {APPEND}");
    let mut machine = Machine::new(&kernel.vmlinux()?, Some(initrd), &append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    let qemu = counting_qemu();
    match place {
        Place::Native => qemu.run(&machine, &Input::default(), &mut |_| {}),
        Place::Xen => pontoon::xen::run(&machine, &qemu, true, &mut |_| {}),
        Place::Shim => qemu.run(&machine.under_shim(dir)?, &Input::default(), &mut |_| {}),
    }
}

/// The lines `{"name":…,"per_op":…}` of a console.
fn figures(outcome: &Outcome) -> Result<Figures> {
    let text = outcome.console_text();
    let tail = || {
        text.lines()
            .rev()
            .take(5)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
    };
    ensure!(outcome.status == Status::POWER_OFF, "ended with {:?}:\n{}", outcome.status, tail());
    ensure!(text.contains("micro: done"), "did not finish:\n{}", tail());
    let mut figures = parse(&text);
    let clock =
        figures.iter().position(|(name, _)| name == "tsc_mhz").map(|at| figures.remove(at).1);
    // Else the figures would not be instructions.
    match clock {
        Some(mhz) if (mhz - 1000.0).abs() < 20.0 => Ok(figures),
        other => bail!("the TSC runs at {other:?} MHz instead of 1000"),
    }
}

fn parse(text: &str) -> Figures {
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.trim()).ok())
        .filter_map(|value| Some((value["name"].as_str()?.to_owned(), value["per_op"].as_f64()?)))
        .collect()
}

fn figure(all: &BTreeMap<Place, Figures>, place: Place, name: &str) -> Option<f64> {
    all.get(&place)?.iter().find(|(found, _)| found == name).map(|(_, value)| *value)
}

fn ratio(all: &BTreeMap<Place, Figures>, place: Place, name: &str) -> Option<f64> {
    Some(figure(all, place, name)? / figure(all, Place::Native, name)?)
}

/// Names of all lines, in order.
fn names(all: &BTreeMap<Place, Figures>) -> Vec<&str> {
    all.values()
        .next()
        .map(|figures| figures.iter().map(|(name, _)| name.as_str()).collect())
        .unwrap_or_default()
}

fn print_table(release: &str, all: &BTreeMap<Place, Figures>) {
    let cell = |value: Option<f64>, digits| {
        value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
    };
    println!("Linux {release}, guest instructions per operation:");
    println!(
        "{:16}{:>10}{:>10}{:>10}{:>13}{:>12}{:>6}",
        "", "native", "Xen", "shim", "shim/native", "Xen/native", "bar"
    );
    for name in names(all) {
        let bar = BARS.iter().find(|(found, _)| *found == name).map(|(_, bar)| *bar);
        println!(
            "{name:16}{:>10}{:>10}{:>10}{:>13}{:>12}{:>6}",
            cell(figure(all, Place::Native, name), 0),
            cell(figure(all, Place::Xen, name), 0),
            cell(figure(all, Place::Shim, name), 0),
            cell(ratio(all, Place::Shim, name), 3),
            cell(ratio(all, Place::Xen, name), 3),
            cell(bar, 2),
        );
    }
}

/// Lines above their bar, and lines where real Xen is not behind.
fn misses(all: &BTreeMap<Place, Figures>) -> Vec<String> {
    let mut misses = Vec::new();
    for name in names(all) {
        let bar = BARS.iter().find(|(found, _)| *found == name).map(|(_, bar)| *bar);
        if let (Some(bar), Some(ratio)) = (bar, ratio(all, Place::Shim, name))
            && ratio > bar
        {
            misses.push(format!("{name}: {ratio:.3} x native is above {bar}"));
        }
        if let (Some(xen), Some(shim)) =
            (figure(all, Place::Xen, name), figure(all, Place::Shim, name))
            && shim >= xen
        {
            misses.push(format!("{name}: {shim:.0} is not ahead of real Xen's {xen:.0}"));
        }
    }
    misses
}

fn write_json(path: &Path, kernel: &Kernel, all: &BTreeMap<Place, Figures>) -> Result<()> {
    let lines: Vec<_> = names(all)
        .into_iter()
        .map(|name| {
            serde_json::json!({
                "name": name,
                "native": figure(all, Place::Native, name),
                "xen": figure(all, Place::Xen, name),
                "shim": figure(all, Place::Shim, name),
            })
        })
        .collect();
    let report = serde_json::json!({
        "benchmark": "micro",
        "unit": "guest instructions per operation",
        "kernel": kernel.release,
        "package_version": kernel.version,
        "lines": lines,
    });
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| path.display().to_string())?;
    println!("written to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(native: f64, xen: f64, shim: f64) -> BTreeMap<Place, Figures> {
        [(Place::Native, native), (Place::Xen, xen), (Place::Shim, shim)]
            .into_iter()
            .map(|(place, value)| (place, vec![("getpid".to_owned(), value)]))
            .collect()
    }

    #[test]
    fn lines_of_a_console_are_found() {
        let text =
            "=== begin\r\n{\"name\":\"getpid\",\"per_op\":309.0}\r\nnoise {\n{\"other\":1}\n";
        assert_eq!(parse(text), [("getpid".to_owned(), 309.0)]);
    }

    #[test]
    fn bars_and_xen_are_held() {
        assert!(misses(&all(100.0, 300.0, 115.0)).is_empty());
        assert_eq!(misses(&all(100.0, 300.0, 116.0)).len(), 1);
        assert_eq!(misses(&all(100.0, 300.0, 301.0)).len(), 2);
    }

    #[test]
    fn places_left_out_are_no_misses() {
        let mut all = all(100.0, 300.0, 500.0);
        all.remove(&Place::Shim);
        assert!(misses(&all).is_empty());
        assert_eq!(names(&all), ["getpid"]);
    }

    #[test]
    fn every_bar_is_above_native() {
        assert!(BARS.iter().all(|(_, bar)| *bar > 1.0));
    }
}
