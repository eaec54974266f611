//! Benchmarks.

mod cost;
mod count;
mod disk;
mod micro;
mod net;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask bench")]
enum Options {
    /// Kernel operations in guest instructions.
    Micro(micro::Micro),
    /// A disk: requests a second, and what each costs in VM exits, signals and interrupts.
    Disk(disk::Disk),
    /// A network card: what it carries, and what a packet costs in VM exits, signals and interrupts.
    Net(net::Net),
}

/// Runs the benchmark the first word names.
pub fn run(rest: Vec<String>) -> Result<()> {
    let words = std::iter::once("cargo xtask bench".to_owned()).chain(rest);
    match Options::try_parse_from(words) {
        Ok(Options::Micro(options)) => micro::run(&options),
        Ok(Options::Disk(options)) => disk::run(&options),
        Ok(Options::Net(options)) => net::run(&options),
        Err(error) => error.exit(),
    }
}
