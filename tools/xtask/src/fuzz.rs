//! `fuzz`: the targets of tests/fuzz under libFuzzer, guided by coverage.
//!
//! One program has all targets. It is built with what cargo-fuzz would pass but for the
//! sanitizers, which need a nightly compiler, and which find little where there is no unsafe code.

use crate::command::{cargo_command, run as run_command, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

/// Options of `fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Targets [default: all].
    targets: Vec<String>,
    /// Seconds for each target [default: 60].
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Where libFuzzer's choices start [default: elsewhere each time].
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Targets at once [default: one for each processor].
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Afterwards replace the kept corpus by the smallest one that reaches as far.
    #[arg(long)]
    merge: bool,
}

/// What libFuzzer wants of the compiler.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // One table of counters for each crate.
    "-Ccodegen-units=1",
];

/// The flags are for the program, not for what runs while it is built; cargo keeps them apart
/// where a target is named.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// One run of an input, at most.
const TIMEOUT_SECONDS: u32 = 10;
/// Memory of a run, at most.
const RSS_MIB: u32 = 1024;
/// A kept corpus, at most: it is a starting point, not an archive.
const CORPUS_BYTES: u64 = 200 << 10;
/// Lines of a failed run's output that are shown.
const TAIL: usize = 30;
/// The seed of test runs: what they find they find again, and a change is not failed for what was
/// there before. Other seeds are for those who look for faults.
const TEST_SEED: u32 = 1;

/// A target, as the program lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: String,
    max_len: u32,
    is_required: bool,
}

/// The program, and where it works.
struct Fuzzer {
    program: PathBuf,
    seed: Option<u32>,
    /// Inputs found, logs.
    work: PathBuf,
    /// Inputs that failed.
    artifacts: PathBuf,
    /// Inputs kept.
    corpus: PathBuf,
}

/// Runs targets.
pub fn run(options: &Options) -> Result<()> {
    let fuzzer = Fuzzer::build(options.seed)?;
    let mut targets = fuzzer.targets()?;
    for name in &options.targets {
        ensure!(targets.iter().any(|t| t.name == *name), "no target is named {name}");
    }
    targets.retain(|t| options.targets.is_empty() || options.targets.contains(&t.name));
    let seconds = options.seconds.unwrap_or(60);
    fuzzer.all(targets.iter().map(|target| (target.clone(), seconds)), options.jobs)?;
    if options.merge {
        targets.iter().try_for_each(|target| fuzzer.merge(target))?;
    }
    Ok(())
}

/// What every test run does: a minute of the targets that are required, a few seconds of the rest.
pub fn for_test() -> Result<()> {
    let fuzzer = Fuzzer::build(Some(TEST_SEED))?;
    let targets = fuzzer.targets()?.into_iter();
    fuzzer.all(targets.map(|t| if t.is_required { (t, 60) } else { (t, 10) }), None)
}

impl Fuzzer {
    fn build(seed: Option<u32>) -> Result<Self> {
        pontoon::setup::for_testing()?;
        let root = workspace()?;
        let target_dir = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target_dir = root.join(target_dir.unwrap_or_else(|| "target".into()));
        let build_dir = target_dir.join("fuzz");
        let args =
            ["build", "--package", "pontoon-fuzz", "--bins", "--profile", "fuzz", "--target", HOST];
        run_command(
            cargo_command(&args)?
                .env("CARGO_TARGET_DIR", &build_dir)
                .env_remove("RUSTFLAGS")
                .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")),
        )?;
        let fuzzer = Self {
            program: build_dir.join(HOST).join("fuzz/pontoon-fuzz"),
            seed,
            work: build_dir.join("work"),
            artifacts: target_dir.join("fuzz-artifacts"),
            corpus: root.join("tests/fuzz/corpus"),
        };
        fs::create_dir_all(&fuzzer.artifacts)?;
        Ok(fuzzer)
    }

    fn targets(&self) -> Result<Vec<Target>> {
        let out = Command::new(&self.program).output().context("the fuzz targets cannot be run")?;
        let list = String::from_utf8(out.stdout)?;
        let targets: Option<Vec<_>> = list.lines().map(target).collect();
        targets.filter(|list| !list.is_empty()).context("the fuzz targets list themselves wrongly")
    }

    /// Runs all, so many at once; the first failure is the result, after the rest has run.
    fn all(&self, targets: impl Iterator<Item = (Target, u64)>, jobs: Option<usize>) -> Result<()> {
        let waiting: Mutex<VecDeque<_>> = Mutex::new(targets.collect());
        let failed = Mutex::new(Vec::new());
        let processors = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..jobs.unwrap_or(processors).max(1) {
                scope.spawn(|| {
                    loop {
                        let next = waiting.lock().expect("no worker panics").pop_front();
                        let Some((target, seconds)) = next else { return };
                        match self.one(&target, seconds) {
                            Ok(line) => println!("fuzz: {line}"),
                            Err(error) => {
                                eprintln!("fuzz: {}: {error:#}", target.name);
                                failed.lock().expect("no worker panics").push(target.name);
                            }
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().expect("no worker panics");
        ensure!(failed.is_empty(), "fuzz targets failed: {}", failed.join(", "));
        Ok(())
    }

    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PONTOON_FUZZ", &target.name).stdin(Stdio::null());
        command
    }

    fn work(&self, target: &Target) -> PathBuf {
        self.work.join(&target.name)
    }

    /// Inputs a run starts from.
    fn starts(&self, target: &Target) -> Result<[PathBuf; 2]> {
        let kept = self.corpus.join(&target.name);
        fs::create_dir_all(&kept)?;
        Ok([kept, self.work(target).join("seeds")])
    }

    /// Runs a target; the line that tells of it.
    fn one(&self, target: &Target, seconds: u64) -> Result<String> {
        let work = self.work(target);
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        let (found, log) = (work.join("found"), work.join("log"));
        fs::create_dir_all(&found)?;
        let setup = self.command(target).env("PONTOON_FUZZ_SETUP", &work).output()?;
        ensure!(setup.status.success(), "no seeds: {}", String::from_utf8_lossy(&setup.stderr));
        let artifact = format!("{}/{}-", self.artifacts.display(), target.name);
        let status = self
            .command(target)
            .arg(&found)
            .args(self.starts(target)?)
            .arg(format!("-max_total_time={seconds}"))
            // 0 is any.
            .arg(format!("-seed={}", self.seed.unwrap_or(0)))
            .arg(format!("-max_len={}", target.max_len))
            .arg(format!("-timeout={TIMEOUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={RSS_MIB}"))
            .arg(format!("-dict={}", work.join("dictionary").display()))
            .arg(format!("-artifact_prefix={artifact}"))
            .arg("-print_final_stats=1")
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .status()?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if !status.success() {
            bail!("{status}\n{}", failure(target, &text));
        }
        let summary = Summary::of(&text)
            .with_context(|| format!("libFuzzer ended without a summary: {}", log.display()))?;
        Ok(format!("{:<11} {summary} in {seconds} s", target.name))
    }

    /// Makes the kept corpus anew out of itself, the seeds and what the last run found. Where
    /// that is too much, the largest inputs are left out.
    fn merge(&self, target: &Target) -> Result<()> {
        let work = self.work(target);
        let fresh = work.join("merged");
        fs::create_dir_all(&fresh)?;
        let starts = self.starts(target)?;
        let status = self
            .command(target)
            .arg("-set_cover_merge=1")
            .arg(format!("-max_len={}", target.max_len))
            .arg(format!("-rss_limit_mb={RSS_MIB}"))
            .arg(&fresh)
            .args(&starts)
            .arg(work.join("found"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(work.join("merge-log"))?)
            .status()?;
        ensure!(status.success(), "{}: merging failed: {status}", target.name);
        let [kept, _] = starts;
        fs::remove_dir_all(&kept)?;
        fs::create_dir_all(&kept)?;
        let mut inputs = Vec::new();
        for entry in fs::read_dir(&fresh)? {
            let entry = entry?;
            inputs.push((entry.metadata()?.len(), entry.file_name()));
        }
        inputs.sort();
        let (mut files, mut bytes) = (0, 0);
        for (size, name) in &inputs {
            if bytes + size > CORPUS_BYTES {
                break;
            }
            fs::copy(fresh.join(name), kept.join(name))?;
            (files, bytes) = (files + 1, bytes + size);
        }
        let (all, kib) = (inputs.len(), bytes >> 10);
        println!("fuzz: {:<11} kept {files} inputs of {all}, {kib} KiB", target.name);
        Ok(())
    }
}

/// What a failed run says: the panic and what follows, or its last lines, and how to repeat it.
fn failure(target: &Target, log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let from = panic.unwrap_or(lines.len().saturating_sub(TAIL));
    let mut text = lines[from..].iter().take(TAIL).copied().collect::<Vec<_>>().join("\n");
    let written = "Test unit written to ";
    if let Some(path) = lines.iter().find_map(|line| line.split_once(written)) {
        let path = Path::new(path.1.trim()).display().to_string();
        let name = &target.name;
        text.push_str(&format!(
            "\nthe input: {path}\nagain: cargo run -p pontoon-fuzz -- {name} {path}"
        ));
    }
    text
}

/// A line of the program's list.
fn target(line: &str) -> Option<Target> {
    let mut words = line.split(' ');
    Some(Target {
        name: words.next()?.to_owned(),
        max_len: words.next()?.parse().ok()?,
        is_required: words.next()? == "1",
    })
}

/// The end of libFuzzer's report.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    runs: u64,
    per_second: u64,
    edges: u64,
    inputs: String,
}

impl Summary {
    fn of(log: &str) -> Option<Self> {
        let last = log.lines().rev().find(|line| line.contains(" cov: "))?;
        let after = |text: &str, word: &str| {
            let (_, rest) = text.split_once(word)?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        Some(Self {
            runs: after(log, "stat::number_of_executed_units:")?.parse().ok()?,
            per_second: after(log, "stat::average_exec_per_sec:")?.parse().ok()?,
            edges: after(last, " cov: ")?.parse().ok()?,
            inputs: after(last, " corp: ")?,
        })
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, per_second, edges, inputs } = self;
        write!(f, "{runs} runs, {per_second}/s, {edges} edges, inputs {inputs}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Seed: 1\n\
        #2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #4096\tDONE   cov: 345 ft: 1200 corp: 77/1289b lim: 40 exec/s: 2048 rss: 40Mb\n\
        Done 4096 runs in 2 second(s)\n\
        stat::number_of_executed_units: 4096\n\
        stat::average_exec_per_sec:     2048\n";

    #[test]
    fn reports_are_read() {
        let inputs = "77/1289b".to_owned();
        let summary = Summary { runs: 4096, per_second: 2048, edges: 345, inputs };
        assert_eq!(Summary::of(LOG), Some(summary));
        assert_eq!(Summary::of("no libFuzzer"), None);
        let xenstore = Target { name: "xenstore".into(), max_len: 4096, is_required: true };
        assert_eq!(target("xenstore 4096 1"), Some(xenstore.clone()));
        assert_eq!(target("xenstore"), None);
        let log = "panicked at x\nartifact_prefix='a'; Test unit written to a/xenstore-crash-1\n";
        let log = format!("{LOG}{log}{}", "a line of its trace\n".repeat(TAIL));
        let failure = failure(&xenstore, &log);
        assert!(failure.starts_with("panicked at x"));
        assert!(
            failure.ends_with("again: cargo run -p pontoon-fuzz -- xenstore a/xenstore-crash-1")
        );
    }
}
