//! The machine is moved to a host whose TSC is faster (hvhost's `move`): the guest's clock goes on at the
//! rate of this machine's, and not before.

use anyhow::{Context, Result, ensure};
use pontoon::host::Input;
use pontoon::outcome::Status;
use std::time::{Duration, Instant};

use crate::{Lab, Transcript, ended, in_plain_qemu, log_is_clean};

/// The new rate in percent of the old one. A slower TSC needs a processor that scales it.
const FASTER: u64 = 150;
/// What a line may take to get here, and a busy machine to run the guest.
const LATE: Duration = Duration::from_millis(700);

/// Where the host emulates the old rate and says so; where it states the new one; where the shim has to
/// measure it.
pub fn moves(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    if in_plain_qemu() {
        return Ok(());
    }
    for (without, cpus) in
        [("", 2), ("reenlightenment,ref-tsc", 1), ("reenlightenment,ref-tsc,frequencies", 1)]
    {
        moved(lab, spec, without, cpus).with_context(|| format!("without {without:?}"))?;
    }
    Ok(())
}

fn moved(lab: &mut Lab, spec: &str, without: &str, cpus: u32) -> Result<()> {
    let append = "console=hvc0 quiet panic=-1 pontoon_test=clock pontoon.log=info";
    let mut machine = lab.machine(spec, append, true)?;
    machine.without = without.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
    machine.cpus = cpus;
    machine.more = vec!["--at".into(), format!("@@ move-now=move {FASTER}")];
    let (mut text, mut seen) = (Vec::new(), Vec::new());
    let outcome = lab.run(&machine, &Input::default(), &mut |bytes| {
        text.extend_from_slice(bytes);
        let next = format!("@@ clock-{} ", seen.len() + 1);
        if text.windows(next.len()).any(|window| window == next.as_bytes()) {
            seen.push(Instant::now());
        }
    })?;
    let mut transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    let tail = || format!("{}\nhost:\n{}", transcript.tail(), outcome.errors);
    let guest = |n: usize| -> Result<f64> {
        let mark = transcript.mark(&format!("clock-{n}")).with_context(tail)?;
        mark.parse().with_context(|| mark.to_owned())
    };
    ensure!(seen.len() == 4, "{} of 4 lines were seen:\n{}", seen.len(), tail());
    ensure!(outcome.errors.contains(&format!("move {FASTER}: ok")), "no move:\n{}", tail());
    for (from, to) in [(1, 2), (2, 3), (3, 4)] {
        let here = seen[to - 1].duration_since(seen[from - 1]).as_secs_f64();
        let there = guest(to)? - guest(from)?;
        // Until it is noticed, the clock may be too fast for a second.
        let too_fast = if (from, to) == (2, 3) { FASTER as f64 / 100.0 - 1.0 } else { 0.0 };
        let (least, most) = (here - LATE.as_secs_f64(), here + LATE.as_secs_f64() + too_fast);
        ensure!((least..=most).contains(&there), "{from} to {to}: {there} s for {here} s");
    }
    let said = if without.is_empty() {
        transcript.text.contains("moved to a host of another TSC rate")
    } else {
        let changes: Vec<_> = transcript.text.lines().filter_map(change).collect();
        let (first, last) = changes.first().zip(changes.last()).with_context(tail)?;
        let wanted = first.1 * FASTER / 100;
        last.0.abs_diff(wanted) < wanted / 50
    };
    ensure!(
        said,
        "the shim does not say the right thing:\n{}\nhost:\n{}",
        transcript.text,
        outcome.errors
    );
    // Linux compares its clock with the TSC, and says so when they part.
    if let Some(log) = transcript.log.as_mut().filter(|_| !without.is_empty()) {
        log.retain(|line| !line.contains("clocksource"));
    }
    log_is_clean(lab, spec, &transcript)
}

/// The rates in kHz, now and before, of a line that tells of them.
fn change(line: &str) -> Option<(u64, u64)> {
    let (is, was) = line.split_once("TSC at ")?.1.split_once(" kHz, before at ")?;
    Some((is.parse().ok()?, was.strip_suffix(" kHz")?.parse().ok()?))
}
