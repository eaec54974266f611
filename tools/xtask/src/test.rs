//! `test`, `e2e`.

use crate::command::{boot_tests, cargo, cargo_command, run as run_command, workspace};
use crate::{disks, doors, fuzz, import, load, net};
use anyhow::Result;
use std::process::Command;

/// Options of `test`.
#[derive(clap::Args)]
pub struct Options {
    /// Host tests and one boot: a minute.
    #[arg(long)]
    quick: bool,
    /// Boots of every kernel with every host feature withheld in turn: three quarters of an hour.
    #[arg(long, conflicts_with = "quick")]
    matrix: bool,
}

/// Options of `e2e`.
#[derive(clap::Args, Default)]
pub struct E2e {
    /// Kernels: Debian suites, separated by commas [default: all that are tested].
    #[arg(long, value_name = "SUITES")]
    kernel: Option<String>,
    /// Host features to withhold, separated by commas; `each` for one after the
    /// other and all together, `all`; sets are separated by `;`.
    #[arg(long, value_name = "SETS")]
    hv_without: Option<String>,
    /// Where to run: auto, kvm, nested or qemu.
    #[arg(long, value_name = "PLACE")]
    under: Option<String>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// The kernels of `--matrix`: those tested by default, and the last one of bullseye that makes its
/// hypercalls through the hypercall page.
const EVERY_KERNEL: &str = "bullseye:5.10.0-32,bullseye,bookworm,trixie,sid";

/// The kernels of `--matrix` for the small guests with disks.
const DISK_KERNELS: &str = "bullseye,bookworm,trixie,sid";

/// Host tests of all crates, then boots. The boots' summary is the last output.
pub fn run(options: &Options) -> Result<()> {
    pontoon::setup::for_testing()?;
    let bare = ["shim", "tiny-guests", "pontoon-efi"];
    let mut host_tests = vec!["test", "--workspace"];
    host_tests.extend(bare.iter().flat_map(|package| ["--exclude", package]));
    run_command(cargo_command(&host_tests)?.envs(seed()))?;
    if options.quick {
        return boots(&E2e {
            kernel: Some("bookworm".into()),
            filter: Some("stress".into()),
            ..E2e::default()
        });
    }
    fuzz::for_test()?;
    disks::disks(&disks::Options {
        kernel: options.matrix.then(|| DISK_KERNELS.into()),
        cuts: options.matrix.then_some(20),
        copy: options.matrix.then_some(4096),
        // One image and one kernel, and what takes minutes only once, but for the matrix.
        filter: (!options.matrix).then(|| "bookworm".into()),
        skip: if options.matrix { Vec::new() } else { vec!["load".into(), "native-8".into()] },
        ..disks::Options::default()
    })?;
    load::load(&load::Options {
        kernel: options.matrix.then(|| DISK_KERNELS.into()),
        skip: vec!["native".into()],
        ..load::Options::default()
    })?;
    // The others take minutes each.
    net::net(&net::Options {
        kernel: options.matrix.then(|| DISK_KERNELS.into()),
        filter: (!options.matrix).then(|| "user".into()),
        ..net::Options::default()
    })?;
    import::import(&import::Options::default())?;
    doors::doors(&doors::Options::default())?;
    if options.matrix {
        return boots(&E2e {
            kernel: Some(EVERY_KERNEL.into()),
            hv_without: Some("none;each".into()),
            ..E2e::default()
        });
    }
    // The shim's fallbacks for time on one kernel, then everything on the full host; `--matrix` has
    // every feature.
    boots(&E2e {
        kernel: Some("bookworm".into()),
        hv_without: Some("ref-tsc;stimer-direct;stimer;all".into()),
        filter: Some("timers".into()),
        ..E2e::default()
    })?;
    boots(&E2e::default())
}

/// What random inputs of the host tests begin with, if nothing is said: the tree's name in Git. So other
/// inputs are tried with each change, and the same ones wherever the same files are tested.
fn seed() -> Option<(&'static str, String)> {
    const NAME: &str = "PROPTEST_RNG_SEED";
    if std::env::var_os(NAME).is_some() {
        return None;
    }
    let mut git = Command::new("git");
    let said =
        git.args(["rev-parse", "HEAD^{tree}"]).current_dir(workspace().ok()?).output().ok()?;
    let tree = String::from_utf8(said.stdout).ok()?;
    let seed = u64::from_str_radix(tree.get(..16)?, 16).ok()?;
    Some((NAME, seed.to_string()))
}

/// End-to-end boots.
pub fn e2e(options: &E2e) -> Result<()> {
    pontoon::setup::for_testing()?;
    boots(options)
}

/// Disk images: built, read, booted; by which test.
pub fn images(test: &str) -> Result<()> {
    pontoon::setup::for_testing()?;
    // One emulated machine at a time.
    cargo(&[
        "test",
        "--package",
        "pontoon-tests",
        "--test",
        test,
        "--",
        "--include-ignored",
        "--test-threads=1",
    ])
}

fn boots(options: &E2e) -> Result<()> {
    let variables = [
        ("PONTOON_E2E_KERNELS", options.kernel.clone()),
        ("PONTOON_E2E_WITHOUT", options.hv_without.clone()),
        ("PONTOON_E2E_UNDER", options.under.clone()),
    ];
    boot_tests("e2e", variables, options.filter.as_deref())
}
