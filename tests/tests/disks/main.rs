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
//! Without `PONTOON_E2E=1` the tests are ignored. They run beside each other, each on a host that runs
//! the guests of other tests before and after.

mod native;
mod power;
mod small;
mod system;

use pontoon_tests::lab::Lab;
use pontoon_tests::trials::{Trials, kernels};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Trials::<Lab>::beside_each_other();
    let again = Lab::once_more;
    for image in system::images() {
        let name = format!("{}-{:?}", image.suite, image.table).to_lowercase();
        let same = image.clone();
        trials.add(format!("{name}/system"), move |lab| system::whole_life(lab, &same), again);
        trials.add(format!("{name}/load"), move |lab| system::load(lab, &image), again);
    }
    for kernel in kernels() {
        for (name, test) in small::TESTS {
            let spec = kernel.clone();
            trials.add(format!("{kernel}/{name}"), move |lab| test(lab, &spec), again);
        }
    }
    trials.run()
}
