//! Every target over its seeds and its kept inputs, once each.

use std::path::Path;

use libtest_mimic::{Arguments, Failed, Trial};
use pontoon_fuzz::{TARGETS, Target};

fn replay(target: &Target) -> Result<(), Failed> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let seeds = (target.seeds)();
    if seeds.is_empty() || paths.is_empty() {
        return Err("nothing to start from".into());
    }
    seeds.iter().for_each(|seed| (target.run)(seed));
    for path in &paths {
        let data = std::fs::read(path)?;
        if std::panic::catch_unwind(|| (target.run)(&data)).is_err() {
            return Err(format!("failed on {}", path.display()).into());
        }
    }
    Ok(())
}

fn main() {
    let trial = |target: &'static Target| Trial::test(target.name, || replay(target));
    libtest_mimic::run(&Arguments::from_args(), TARGETS.iter().map(trial).collect()).exit();
}
