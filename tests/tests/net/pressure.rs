//! Disk and network at once, in a guest whose memory is swapped out and in.

use crate::native::{Run, Test, mark, on_tap, place, prepared};
use anyhow::{Context, Result, ensure};
use pontoon::host::Machine;
use pontoon_tests::lab::{Lab, number};
use pontoon_tests::net::{self, Network};
use std::fs::File;
use std::time::Duration;

/// The native one, for comparison.
pub const TESTS: [(&str, Test); 1] = [("pressure", native)];

/// Seconds of it, unless told otherwise, and most milliseconds to stand still in them.
const SECONDS: u64 = 20;
const MOST_MS: u64 = 100;
/// Beside the seconds.
const LIMIT: Duration = Duration::from_secs(600);
const MEMORY_MIB: u64 = 256;

fn native(lab: &mut Lab, spec: &str) -> Result<()> {
    let machine = prepared(lab, spec, "pressure", net::initramfs, "ttyS0")?;
    // What it is good for is seen, and is Linux's own.
    under_pressure(lab, machine, Lab::run_as_is).map(drop)
}

/// Runs a guest that does `pressure`; what stood still for too long.
pub fn under_pressure(lab: &mut Lab, mut machine: Machine, run: Run) -> Result<Vec<String>> {
    let seconds = number("PONTOON_NET_PRESSURE", SECONDS)?;
    let network = Network::new()?;
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT + Duration::from_secs(seconds));
    machine.append.push_str(&format!(" pontoon_seconds={seconds}{}", place(&network)));
    machine.nets.push(format!("tap,ifname={}", network.ifname).parse()?);
    for (name, mib) in [("flows.img", 128), ("swap.img", 512)] {
        let path = lab.file(name)?;
        File::create(&path)?.set_len(mib << 20)?;
        machine.disks.push(path.display().to_string());
    }
    let (transcript, _) = on_tap(lab, &machine, &network, run)?;
    ensure!(mark(&transcript, "swapped")?.parse::<u64>()? > 1000, "there was no pressure");
    let mut late = Vec::new();
    for name in ["disk-read", "disk-write", "net-down", "net-up"] {
        let said = mark(&transcript, name)?;
        let (stall, steps) = said.split_once(' ').context("two numbers")?;
        eprintln!("{name}: {steps} steps, {stall} ms without one at most");
        if stall.parse::<u64>()? > MOST_MS || steps.parse::<u64>()? < seconds {
            late.push(format!("{name}: {said}"));
        }
    }
    Ok(late)
}
