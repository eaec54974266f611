//! Every target on stable: its kept corpus, its seeds, and seeded mutations of both.

use std::path::Path;

use pontoon_fuzz::{Mutator, TARGETS, Target, seeds};

/// Kept inputs: what once found a bug, and what reaches far.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn exercise(target: &Target) {
    let mut inputs = seeds(target.name);
    inputs.extend(corpus(target.name));
    assert!(!inputs.is_empty(), "{} has no seeds", target.name);
    for input in &inputs {
        (target.run)(input);
    }
    let runs = std::env::var("FUZZ_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(target.runs);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x9e37_79b9);
    let mut mutator = Mutator::new(seed);
    let mut data = Vec::new();
    for run in 0..runs {
        // Mostly from an input, sometimes from the last mutation, so that changes add up.
        if run == 0 || mutator.below(4) != 0 {
            data.clone_from(&inputs[mutator.below(inputs.len())]);
        }
        mutator.mutate(&mut data);
        let outcome = std::panic::catch_unwind(|| (target.run)(&data));
        if outcome.is_err() {
            let file = format!("crash-{}-{run}", target.name);
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
            std::fs::write(&path, &data).unwrap();
            panic!("{} failed in run {run}; the input is {}", target.name, path.display());
        }
    }
}

fn named(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap()
}

#[test]
fn bootmenu() {
    exercise(named("bootmenu"));
}

#[test]
fn bundle() {
    exercise(named("bundle"));
}

#[test]
fn cmdline() {
    exercise(named("cmdline"));
}

#[test]
fn decode() {
    exercise(named("decode"));
}

#[test]
fn decompress() {
    exercise(named("decompress"));
}

#[test]
fn image() {
    exercise(named("image"));
}

#[test]
fn kernel() {
    exercise(named("kernel"));
}

#[test]
fn xenstore() {
    exercise(named("xenstore"));
}

#[test]
fn blkif() {
    exercise(named("blkif"));
}

#[test]
fn partition() {
    exercise(named("partition"));
}

#[test]
fn vbds() {
    exercise(named("vbds"));
}

#[test]
fn storvsc() {
    exercise(named("storvsc"));
}

#[test]
fn vmbus() {
    exercise(named("vmbus"));
}

#[test]
fn vmbus_ring() {
    exercise(named("vmbus_ring"));
}
