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
mod native;
mod pressure;
mod xen;

use pontoon_tests::images::SUITES;
use pontoon_tests::lab::Lab;
use pontoon_tests::trials::{Trials, kernels};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Trials::new(Lab::default());
    for kernel in kernels() {
        let tests = native::TESTS.into_iter().chain(xen::TESTS).chain(pressure::TESTS);
        let systems = debian::TESTS.into_iter().filter(|_| SUITES.contains(&kernel.as_str()));
        for (name, test) in tests.chain(systems) {
            let spec = kernel.clone();
            let run = move |lab: &mut Lab| {
                // A second guest with networks in one emulated machine was seen not to start.
                *lab = Lab::default();
                test(lab, &spec)
            };
            trials.add(format!("{kernel}/{name}"), run, Lab::once_more);
        }
    }
    trials.run()
}
