//! `net`: guests on hvhost's network adapters.

use crate::command::boot_tests;
use anyhow::Result;

/// Options of `net`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Kernels of the guests: Debian suites, separated by commas [default: bookworm].
    #[arg(long, value_name = "SUITES")]
    pub kernel: Option<String>,
    /// Where to run: auto, kvm or nested.
    #[arg(long, value_name = "PLACE")]
    pub under: Option<String>,
    /// Seconds of disk and network at once under memory pressure [default: 20].
    #[arg(long, value_name = "N")]
    pub pressure: Option<u64>,
    /// Processors of guests under the shim [default: 1].
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Runs `tests/tests/net`.
pub fn net(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_E2E_UNDER", options.under.clone()),
        ("PONTOON_CPUS", options.cpus.map(|cpus| cpus.to_string())),
        ("PONTOON_NET_PRESSURE", options.pressure.map(|seconds| seconds.to_string())),
    ];
    boot_tests("net", variables, options.filter.as_deref())
}
