//! Guests of Xen's, imported and booted: what the pack has is what they run on, and what they find
//! is what they had. Disks by name, size, and every byte; network cards by address.
//!
//! Chosen by environment variables, which `cargo xtask import` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the guests run; default: bookworm.
//! - `PONTOON_E2E_SHOW=1`, `PONTOON_E2E_UNDER`: as for the boots, `tests/e2e.rs`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored. Each guest has a host of its own, one after the
//! other.

mod firmware;
#[path = "../disks/lab.rs"]
#[allow(dead_code, reason = "the disks' tests use all of it")]
mod lab;
mod packed;
mod sources;

use lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lab = Arc::new(Mutex::new(Lab::default()));
    let ignored = std::env::var_os("PONTOON_E2E").is_none();
    let kernels = std::env::var("PONTOON_E2E_KERNELS").unwrap_or_else(|_| "bookworm".into());
    let mut trials = Vec::new();
    for kernel in kernels.split(',') {
        for (name, source) in sources::SOURCES {
            let (lab, spec) = (Arc::clone(&lab), kernel.to_owned());
            let run = move || {
                let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
                // A second guest with networks in one emulated machine was seen not to start.
                *lab = Lab::default();
                sources::imported(&mut lab, &spec, source)
                    .or_else(|e| {
                        if !lab.excused {
                            return Err(e);
                        }
                        eprintln!("failed, once more: {e:#}");
                        *lab = Lab::default();
                        sources::imported(&mut lab, &spec, source)
                    })
                    .map_err(|e| Failed::from(format!("{e:#}")))
            };
            trials.push(Trial::test(format!("{kernel}/{name}"), run).with_ignored_flag(ignored));
        }
        for (name, form) in firmware::FORMS {
            let (lab, spec) = (Arc::clone(&lab), kernel.to_owned());
            let run = move || {
                // One machine at a time.
                *lab.lock().unwrap_or_else(PoisonError::into_inner) = Lab::default();
                firmware::started(&spec, form).map_err(|e| Failed::from(format!("{e:#}")))
            };
            trials.push(Trial::test(format!("{kernel}/{name}"), run).with_ignored_flag(ignored));
        }
    }
    if !ignored
        && !arguments.list
        && let Err(e) = pontoon::cleanup::on_signals(|| ())
    {
        eprintln!("signals: {e:#}");
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The host ends with the lab; `exit` would leave it running.
    drop(lab);
    conclusion.exit_code()
}
