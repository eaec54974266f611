//! `import`: guests of Xen's, imported and booted.

use crate::command::boot_tests;
use anyhow::Result;

/// Options of `import`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Kernels of the guests: Debian suites, separated by commas [default: bookworm].
    #[arg(long, value_name = "SUITES")]
    pub kernel: Option<String>,
    /// Where to run: auto, kvm or nested.
    #[arg(long, value_name = "PLACE")]
    pub under: Option<String>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Runs `tests/tests/import`.
pub fn import(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_E2E_UNDER", options.under.clone()),
    ];
    boot_tests("import", variables, options.filter.as_deref())
}
