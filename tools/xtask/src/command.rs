//! Running programs in the workspace.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The workspace's directory.
pub fn workspace() -> Result<PathBuf> {
    pontoon::artefact::workspace().context("the workspace this was built from is gone")
}

/// A cargo command in the workspace.
pub fn cargo_command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?).args(args);
    Ok(command)
}

/// Runs cargo; its failure is ours.
pub fn cargo(args: &[&str]) -> Result<()> {
    run(&mut cargo_command(args)?)
}

/// Runs the tests of guests in `tests/tests/{test}`: with what of `variables` has a value, and
/// `args`.
pub fn boot_tests<'a>(
    test: &str,
    variables: impl IntoIterator<Item = (&'a str, Option<String>)>,
    args: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let mut command = cargo_command(&["test", "--package", "pontoon-tests", "--test", test, "--"])?;
    command.env("PONTOON_E2E", "1");
    command.envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))));
    run(command.args(args))
}

/// Says what is run, runs it, and makes its failure ours.
pub fn run(command: &mut Command) -> Result<()> {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    // Cargo calls itself by its full path here.
    let short = line.split_once("bin/cargo ").map_or(line.as_str(), |(_, rest)| rest);
    eprintln!("xtask: {short}");
    let status = command.status().with_context(|| format!("{short}: cannot be run"))?;
    if !status.success() {
        bail!("failed: {short}");
    }
    Ok(())
}
