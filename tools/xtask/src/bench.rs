//! Benchmarks.

/// Runs the benchmark the first word names.
pub fn run(rest: Vec<String>) -> anyhow::Result<()> {
    anyhow::bail!("no benchmark is called {:?}", rest.first().map_or("", String::as_str))
}
