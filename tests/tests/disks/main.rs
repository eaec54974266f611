//! Disks under the shim: Debian systems on theirs, data under load, power cuts, errors,
//! disks that come and go.
//!
//! Chosen by environment variables, which `cargo xtask disks` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the small guests run; default:
//!   bookworm.
//! - `PONTOON_DISKS_CUTS`: power cuts; default: 3.
//! - `PONTOON_DISKS_COPY_MIB`: size of the file the systems copy; default: 128.
//! - `PONTOON_CPUS`: processors of guests under the shim; default: 1.
//! - `PONTOON_E2E_SHOW=1`, `PONTOON_E2E_UNDER`: as for the boots, `tests/e2e.rs`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored. One host runs all guests, one after
//! the other.

mod lab;
mod native;
mod power;
mod small;
mod system;

use lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

type Test = Box<dyn Fn(&mut Lab) -> anyhow::Result<()> + Send>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut tests: Vec<(String, Test)> = Vec::new();
    for image in system::images() {
        let name = format!("{}-{:?}", image.suite, image.table).to_lowercase();
        let same = image.clone();
        tests.push((format!("{name}/system"), Box::new(move |l| system::whole_life(l, &same))));
        tests.push((format!("{name}/load"), Box::new(move |lab| system::load(lab, &image))));
    }
    let kernels = std::env::var("PONTOON_E2E_KERNELS").unwrap_or_else(|_| "bookworm".into());
    for kernel in kernels.split(',') {
        for (name, test) in small::TESTS {
            let spec = kernel.to_owned();
            tests.push((format!("{kernel}/{name}"), Box::new(move |lab| test(lab, &spec))));
        }
    }
    let lab = Arc::new(Mutex::new(Lab::default()));
    let ignored = std::env::var_os("PONTOON_E2E").is_none();
    let trials = tests.into_iter().map(|(name, test)| {
        let lab = Arc::clone(&lab);
        let run = move || {
            let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
            test(&mut lab)
                .or_else(|e| {
                    if !lab.excused {
                        return Err(e);
                    }
                    eprintln!("failed, once more: {e:#}");
                    *lab = Lab::default();
                    test(&mut lab)
                })
                .map_err(|e| Failed::from(format!("{e:#}")))
        };
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    let trials = trials.collect();
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
