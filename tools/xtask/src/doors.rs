//! `doors`.

use crate::command::boot_tests;
use anyhow::Result;

/// Options of `doors`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Kernels: Debian suites, separated by commas [default: bookworm].
    #[arg(long, value_name = "SUITES")]
    kernel: Option<String>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Boots through firmware and boot loaders.
pub fn doors(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let variables = [("PONTOON_E2E_KERNELS", options.kernel.clone())];
    boot_tests("doors", variables, options.filter.as_deref())
}
