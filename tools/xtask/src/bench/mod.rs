//! Benchmarks.

mod count;
mod disk;
mod micro;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask bench")]
enum Options {
    /// Kernel operations in guest instructions.
    Micro(micro::Micro),
    /// A disk: requests a second, and what each costs in VM exits, signals and interrupts.
    Disk(disk::Disk),
}

/// Runs the benchmark the first word names.
pub fn run(rest: Vec<String>) -> Result<()> {
    let words = std::iter::once("cargo xtask bench".to_owned()).chain(rest);
    match Options::try_parse_from(words) {
        Ok(Options::Micro(options)) => micro::run(&options),
        Ok(Options::Disk(options)) => disk::run(&options),
        Err(error) => error.exit(),
    }
}
