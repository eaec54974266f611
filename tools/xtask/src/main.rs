//! `cargo xtask`: what a developer runs.

mod bench;
mod check;
mod command;
mod disks;
mod doors;
mod fuzz;
mod import;
mod load;
mod net;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pontoon::artefact;
use pontoon::kernel::{Kernel, is_suite};
use pontoon_tests::images::{Image, Table};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks")]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Install what building and testing needs (Debian packages, a Rust target).
    Setup,
    /// Build everything: tools, host, shim, guest programs.
    Build,
    /// Formatting, lints and generated documents.
    Check,
    /// Every test: host tests of all crates, then end-to-end boots.
    Test(test::Options),
    /// End-to-end boots only.
    E2e(test::E2e),
    /// Guests with disks only: Debian's own systems, load, power cuts, errors, hot plug.
    Disks(disks::Options),
    /// Guests whose processors are all busy: load, processors that go and come, clocks.
    Load(load::Options),
    /// Guests on hvhost's network adapters only.
    Net(net::Options),
    /// Guests of Xen's, imported from each source and booted.
    Import(import::Options),
    /// Boots through firmware and boot loaders only.
    Doors(doors::Options),
    /// Benchmarks; `bench micro` is the yardstick.
    Bench {
        /// The benchmark and its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Size of the shim's image.
    Size,
    /// Fuzz targets, guided by coverage, from the kept corpus.
    Fuzz(fuzz::Options),
    /// Build disk images of Debian systems; print where they are (docs/images.md).
    Image {
        /// Test the images the tests use instead.
        #[arg(long)]
        check: bool,
        /// Boot them under the shim, under real Xen, and under the shim again instead.
        #[arg(long, conflicts_with = "check")]
        xen: bool,
        /// Suites.
        #[arg(default_values_t = pontoon_tests::images::SUITES.map(str::to_owned))]
        suites: Vec<String>,
        /// With an MBR instead of a GPT.
        #[arg(long)]
        mbr: bool,
        /// Size; the file is sparse.
        #[arg(long, value_name = "MIB", default_value_t = 2048)]
        size: u64,
        /// Further packages, separated by commas.
        #[arg(long, value_delimiter = ',')]
        packages: Vec<String>,
    },
    /// Record what kernels say under real Xen (tests/e2e/xen-logs).
    XenLogs {
        /// What the guest does meanwhile (see tests/e2e/init.sh).
        #[arg(long, default_value = "stress")]
        test: String,
        /// Suites; default: all that are tested.
        kernels: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Commands) -> Result<()> {
    match command {
        Commands::Setup => pontoon::setup::for_testing(),
        Commands::Build => build(),
        Commands::Check => check::run(),
        Commands::Test(options) => test::run(&options),
        Commands::E2e(options) => test::e2e(&options),
        Commands::Disks(options) => disks::disks(&options),
        Commands::Load(options) => load::load(&options),
        Commands::Net(options) => net::net(&options),
        Commands::Import(options) => import::import(&options),
        Commands::Doors(options) => doors::doors(&options),
        Commands::Bench { rest } => {
            pontoon::setup::for_testing()?;
            bench::run(rest)
        }
        Commands::Size => check::size(),
        Commands::Fuzz(options) => fuzz::run(&options),
        Commands::Image { check: true, .. } => test::images("images"),
        Commands::Image { xen: true, .. } => test::images("xen"),
        Commands::Image { suites, mbr, size, packages, .. } => {
            let table = if mbr { Table::Mbr } else { Table::Gpt };
            for suite in suites {
                let packages = packages.clone();
                let image = Image { size_mib: size, packages, ..Image::new(&suite, table) };
                println!("{}", image.get()?.display());
            }
            Ok(())
        }
        Commands::XenLogs { test, kernels } => xen_logs(&test, &kernels),
    }
}

fn build() -> Result<()> {
    pontoon::setup::for_testing()?;
    command::cargo(&["build", "--release", "--package", "pontoon"])?;
    for artefact in [artefact::HVHOST, artefact::AGENT, artefact::SHIM, artefact::EFI] {
        println!("{}", artefact.find()?.display());
    }
    println!("{}", pontoon_tests::guests::program("stress")?.display());
    println!("{}", pontoon_tests::guests::program("micro")?.display());
    Ok(())
}

fn xen_logs(test: &str, kernels: &[String]) -> Result<()> {
    pontoon::setup::for_testing()?;
    let all = pontoon_tests::KERNELS.map(str::to_owned);
    let kernels = if kernels.is_empty() { &all[..] } else { kernels };
    for spec in kernels {
        anyhow::ensure!(is_suite(spec), "\"{spec}\" names no Debian suite");
        let path = pontoon_tests::reference::record_into_repository(&Kernel::get(spec)?, test)?;
        println!("{}", path.display());
    }
    Ok(())
}
