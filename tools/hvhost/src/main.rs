//! The `hvhost` command: see `docs/hvhost.md`.

use clap::Parser;
use hvhost::{ExitStatus, Options, machine, terminal};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let status = if error.use_stderr() { ExitStatus::USAGE } else { ExitStatus::POWER_OFF };
            // Nothing is left to tell if even this cannot be printed.
            let _ = error.print();
            return status.into();
        }
    };
    if let Err(message) = options.validate() {
        eprintln!("hvhost: {message}");
        return ExitStatus::USAGE.into();
    }
    terminal::restore_on_panic();
    match machine::run(&options) {
        Ok(outcome) => {
            terminal::restore();
            if let Some(text) = outcome.report() {
                eprintln!("hvhost: {text}");
            }
            outcome.status().into()
        }
        Err(error) => {
            terminal::restore();
            eprintln!("hvhost: {error:#}");
            ExitStatus::HOST_ERROR.into()
        }
    }
}
