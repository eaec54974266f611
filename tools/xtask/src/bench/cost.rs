//! What something costs natively and under the shim: rates, and what leaves the guest, by hvhost's
//! counters at the beginning and end of each phase.

use anyhow::{Context, Result, ensure};
use hvhost::stats::Report;
use hvhost::trace::TraceReport;
use pontoon::host::Machine;
use pontoon::outcome::{Outcome, Status};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What follows a command of `--at` on hvhost's standard error.
const ANSWER: &str = "hvhost: counters: ok ";

/// What a phase cost; all but the first per unit: a request, a packet.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Cost {
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

/// Both sides of each phase.
pub struct Comparison<'a> {
    phases: &'a [String],
    native: Vec<Cost>,
    shim: Vec<Cost>,
}

/// Has the counters printed as each phase begins and ends, which its guest says: `@@ NAME begin`.
pub fn count_phases(machine: &mut Machine, phases: &[String], trace: bool) {
    for name in phases {
        for end in ["begin", "end"] {
            machine.more.extend(["--at".into(), format!("@@ {name} {end}=counters")]);
        }
    }
    if trace {
        machine.more.push("--trace".into());
        machine.stats = true;
    }
}

/// Whether the guest powered off, having said `end`.
pub fn check(outcome: &Outcome, end: &str) -> Result<()> {
    let console = outcome.console_text();
    ensure!(
        outcome.status == Status::POWER_OFF && console.contains(end),
        "ended with {:?}:\n{}\n{}",
        outcome.status,
        console.lines().rev().take(8).collect::<Vec<_>>().join("\n"),
        outcome.errors.lines().filter(|l| !l.contains(ANSWER)).collect::<Vec<_>>().join("\n"),
    );
    Ok(())
}

/// The costs of all phases; `measured` gives a phase's units and seconds.
pub fn costs(
    outcome: &Outcome,
    phases: &[String],
    measured: impl Fn(&str) -> Result<(f64, f64)>,
) -> Result<Vec<Cost>> {
    let reports: Vec<Report> = outcome
        .errors
        .lines()
        .filter_map(|line| line.split_once(ANSWER))
        .map(|(_, json)| serde_json::from_str(json.trim()).context("hvhost's counters"))
        .collect::<Result<_>>()?;
    let (found, wanted) = (reports.len(), phases.len() * 2);
    ensure!(found == wanted, "{found} counts for {} phases", phases.len());
    let pairs = phases.iter().zip(reports.chunks_exact(2));
    pairs
        .map(|(name, pair)| {
            let (count, seconds) = measured(name).with_context(|| name.clone())?;
            ensure!(count > 0.0 && seconds > 0.0, "{name}: {count} in {seconds} s");
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

/// Exits by reason per unit; MSR accesses and hypercalls by their numbers.
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
    let per_unit = |(name, now): (String, u64)| {
        let cost = since(&name, now) as f64 / count;
        (name, cost)
    };
    all(end).into_iter().map(per_unit).filter(|(_, cost)| *cost >= 0.001).collect()
}

/// The quicker of each pair: a loaded machine makes slow, never quick.
fn best(a: Vec<Cost>, b: Vec<Cost>) -> Vec<Cost> {
    a.into_iter().zip(b).map(|(a, b)| if a.per_second >= b.per_second { a } else { b }).collect()
}

/// Runs `measure` so many times natively and under the shim, by turns; the best of each phase.
pub fn compare<'a>(
    phases: &'a [String],
    rounds: u32,
    mut measure: impl FnMut(bool) -> Result<Vec<Cost>>,
) -> Result<Comparison<'a>> {
    let mut sides = [None, None];
    for round in 1..=rounds.max(1) {
        for (side, native) in sides.iter_mut().zip([true, false]) {
            let name = if native { "native" } else { "shim" };
            eprintln!("bench: {name}, {round} of {rounds} …");
            let costs = measure(native).context(name)?;
            *side = Some(match side.take() {
                Some(before) => best(before, costs),
                None => costs,
            });
        }
    }
    let [native, shim] = sides.map(Option::unwrap_or_default);
    Ok(Comparison { phases, native, shim })
}

impl Comparison<'_> {
    /// What was counted in the shim, for each phase.
    pub fn add_instructions(&mut self, counts: Vec<f64>) {
        for (cost, count) in self.shim.iter_mut().zip(counts) {
            cost.instructions = Some(count);
        }
    }

    fn lines(&self) -> impl Iterator<Item = (&String, &Cost, &Cost)> {
        self.phases.iter().zip(&self.native).zip(&self.shim).map(|((name, n), s)| (name, n, s))
    }

    /// The table, for people.
    pub fn print(&self, title: &str, unit: &str) {
        println!("{title}; exits, signals and interrupts per {unit}:");
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
        for (name, n, s) in self.lines() {
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
        self.print_reasons();
    }

    fn print_reasons(&self) {
        for (name, native, shim) in self.lines() {
            let mut names: Vec<&String> =
                native.reasons.keys().chain(shim.reasons.keys()).collect();
            names.sort();
            names.dedup();
            for reason in names {
                let of = |cost: &Cost| cost.reasons.get(reason).copied().unwrap_or(0.0);
                println!("{name:13}{reason:20}{:>9.3}{:>9.3}", of(native), of(shim));
            }
        }
    }

    /// The figures, for programs, beside what `about` says of them.
    pub fn write(&self, path: &Path, about: serde_json::Value) -> Result<()> {
        let lines: Vec<_> = self
            .lines()
            .map(|(name, native, shim)| serde_json::json!({"name": name, "native": native, "shim": shim}))
            .collect();
        let mut report = about;
        report["lines"] = lines.into();
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_guest_that_says_nothing_is_no_result() {
        let outcome = Outcome {
            status: Status::POWER_OFF,
            console: Vec::new(),
            errors: String::new(),
            stats: None,
            wall: Duration::ZERO,
        };
        assert!(check(&outcome, "done").is_err());
        assert!(costs(&outcome, &["read-4k-1".into()], |_| Ok((1.0, 1.0))).is_err());
    }
}
