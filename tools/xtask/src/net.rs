//! `net`: guests on hvhost's network adapters.

use crate::command::{cargo_command, run};
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
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Runs `tests/tests/net`.
pub fn net(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let mut command =
        cargo_command(&["test", "--package", "pontoon-tests", "--test", "net", "--"])?;
    command.env("PONTOON_E2E", "1");
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_E2E_UNDER", options.under.clone()),
    ];
    command.envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))));
    command.args(&options.filter);
    run(&mut command)
}
