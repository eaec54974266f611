//! hvhost's network, judged by Linux's own Hyper-V driver, natively, and the shim's, judged by
//! Linux's Xen driver: on a TAP of this machine and on user-mode networking.
//!
//! Chosen by environment variables, which `cargo xtask net` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the guests run; default: bookworm.
//! - `PONTOON_NET_PRESSURE`: seconds under memory pressure.
//! - `PONTOON_CPUS`: processors of guests under the shim; default: 1.
//! - `PONTOON_E2E_SHOW=1`, `PONTOON_E2E_UNDER`: as for the boots, `tests/e2e.rs`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored. Each guest has a host of its own, one
//! after the other. The TAPs need root.

mod debian;
#[path = "../disks/lab.rs"]
#[allow(dead_code, reason = "the disks' tests use all of it")]
mod lab;
mod native;
mod pressure;
mod xen;

use lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};
use pontoon_tests::images::SUITES;
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
        let tests = native::TESTS.into_iter().chain(xen::TESTS).chain(pressure::TESTS);
        let systems = debian::TESTS.into_iter().filter(|_| SUITES.contains(&kernel));
        for (name, test) in tests.chain(systems) {
            let (lab, spec) = (Arc::clone(&lab), kernel.to_owned());
            let run = move || {
                let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
                // A second guest with networks in one emulated machine was seen not to start.
                *lab = Lab::default();
                test(&mut lab, &spec)
                    .or_else(|e| {
                        if !lab.excused {
                            return Err(e);
                        }
                        eprintln!("failed, once more: {e:#}");
                        *lab = Lab::default();
                        test(&mut lab, &spec)
                    })
                    .map_err(|e| Failed::from(format!("{e:#}")))
            };
            let trial = Trial::test(format!("{kernel}/{name}"), run);
            trials.push(trial.with_ignored_flag(ignored));
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
