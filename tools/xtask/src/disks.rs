//! `disks`: guests with disks.

use crate::command::boot_tests;
use anyhow::Result;

/// Options of `disks`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Kernels of the small guests: Debian suites, separated by commas [default: bookworm].
    #[arg(long, value_name = "SUITES")]
    pub kernel: Option<String>,
    /// Power cuts [default: 3].
    #[arg(long, value_name = "N")]
    pub cuts: Option<u32>,
    /// Size of the file that whole systems copy [default: 128].
    #[arg(long, value_name = "MIB")]
    pub copy: Option<u32>,
    /// Where to run: auto, kvm or nested.
    #[arg(long, value_name = "PLACE")]
    pub under: Option<String>,
    /// Not tests whose name contains this.
    #[arg(long, value_name = "WORD")]
    pub skip: Vec<String>,
    /// Processors of guests under the shim [default: 1].
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Runs `tests/tests/disks`.
pub fn disks(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_DISKS_CUTS", options.cuts.map(|cuts| cuts.to_string())),
        ("PONTOON_DISKS_COPY_MIB", options.copy.map(|mib| mib.to_string())),
        ("PONTOON_E2E_UNDER", options.under.clone()),
        ("PONTOON_CPUS", options.cpus.map(|cpus| cpus.to_string())),
    ];
    let skip = options.skip.iter().flat_map(|word| ["--skip", word]);
    boot_tests("disks", variables, skip.chain(options.filter.as_deref()))
}
