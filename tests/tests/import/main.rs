//! Guests of Xen's, imported and booted: what the pack has is what they run on, and what they find
//! is what they had. Disks by name, size, and every byte; network cards by address.
//!
//! Chosen by environment variables, which `cargo xtask import` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the guests run; default: bookworm.
//! - `PONTOON_E2E_SHOW=1`, `PONTOON_E2E_UNDER`: as for the boots, `tests/e2e.rs`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored. Each guest has a host of its own, and as many
//! run at once as there are processors.

mod firmware;
mod packed;
mod sources;

use pontoon_tests::lab::Lab;
use pontoon_tests::trials::{Trials, kernels};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Trials::<Lab>::beside_each_other();
    for kernel in kernels() {
        for (name, source) in sources::SOURCES {
            let spec = kernel.clone();
            let run = move |lab: &mut Lab| {
                // A second guest with networks in one emulated machine was seen not to start.
                *lab = Lab::default();
                sources::imported(lab, &spec, source)
            };
            trials.add(format!("{kernel}/{name}"), run, Lab::once_more);
        }
        for (name, form) in firmware::FORMS {
            let spec = kernel.clone();
            let run = move |lab: &mut Lab| {
                // The emulated machine of an import only takes memory now.
                *lab = Lab::default();
                firmware::started(&spec, form)
            };
            trials.add(format!("{kernel}/{name}"), run, |_| false);
        }
        for (name, form) in firmware::LOADERS {
            let run = move |lab: &mut Lab| {
                *lab = Lab::default();
                firmware::asks(form)
            };
            trials.add(format!("{kernel}/{name}"), run, |_| false);
        }
    }
    trials.run()
}
