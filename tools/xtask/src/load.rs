//! `load`: guests whose processors are all busy.

use crate::command::boot_tests;
use anyhow::Result;

/// Options of `load`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Kernels of the guests: Debian suites, separated by commas [default: bookworm].
    #[arg(long, value_name = "SUITES")]
    pub kernel: Option<String>,
    /// How long what has no end of its own runs [default: 24].
    #[arg(long, value_name = "N")]
    pub seconds: Option<u32>,
    /// Processors [default: 4].
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Where to run: auto, kvm or nested.
    #[arg(long, value_name = "PLACE")]
    pub under: Option<String>,
    /// Not tests whose name contains this.
    #[arg(long, value_name = "WORD")]
    pub skip: Vec<String>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Runs `tests/tests/load`.
pub fn load(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_LOAD_SECONDS", options.seconds.map(|seconds| seconds.to_string())),
        ("PONTOON_CPUS", options.cpus.map(|cpus| cpus.to_string())),
        ("PONTOON_E2E_UNDER", options.under.clone()),
    ];
    let skip = options.skip.iter().flat_map(|word| ["--skip", word]);
    boot_tests("load", variables, skip.chain(options.filter.as_deref()))
}
