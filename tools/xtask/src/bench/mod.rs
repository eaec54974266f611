//! Benchmarks.

mod cost;
mod count;
mod disk;
mod micro;
mod net;
mod smp;

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
    /// Several processors: a parallel compile, and loops beside each other.
    Smp(smp::Smp),
}

/// Runs the benchmark the first word names.
pub fn run(rest: Vec<String>) -> Result<()> {
    pontoon::cleanup::on_signals(|| ())?;
    let words = std::iter::once("cargo xtask bench".to_owned()).chain(rest);
    match Options::try_parse_from(words) {
        Ok(Options::Micro(options)) => micro::run(&options),
        Ok(Options::Disk(options)) => disk::run(&options),
        Ok(Options::Net(options)) => net::run(&options),
        Ok(Options::Smp(options)) => smp::run(&options),
        Err(error) => error.exit(),
    }
}

/// A line `{"name":…,"count":…,"seconds":…}` of the console: how often, and seconds.
fn timing(console: &str, name: &str) -> Option<(f64, f64)> {
    console
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.trim()).ok())
        .find(|line| line["name"] == name)
        .and_then(|line| Some((line["count"].as_f64()?, line["seconds"].as_f64()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found() {
        let console =
            "x\n{\"name\":\"read-4k-1\",\"count\":2000,\"bytes\":4096,\"seconds\":0.5}\r\n";
        assert_eq!(timing(console, "read-4k-1"), Some((2000.0, 0.5)));
        assert_eq!(timing(console, "read-4k-32"), None);
    }
}
