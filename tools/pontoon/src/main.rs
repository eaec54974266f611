//! `pontoon`: run, pack, import and examine Xen PV guests for Hyper-V.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use hvhost::net::NetOptions;
use pontoon::bootloader::Loader;
use pontoon::cleanup::{self, Scratch};
use pontoon::doctor::options::Doctor;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::image::{self, Files};
use pontoon::import::options::Import;
use pontoon::kernel::{self, Kernel};
use pontoon::options::parse_memory;
use pontoon::outcome::Status;
use pontoon::pack::options::Pack;
use pontoon::{initramfs, say, setup, tty};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "pontoon", version, about = "Run Xen PV guests on Hyper-V")]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Boot a kernel as PV guest of the shim; its console is this terminal.
    ///
    /// The exit status is the guest's outcome: 0 power-off, 3 reset, 4 triple
    /// fault, 5 crash; 6 when its time was over, 1 when it could not be started.
    /// Ctrl-A x leaves a guest.
    Boot(Box<Boot>),
    /// Make a guest into a directory that a Hyper-V host runs: a disk to start from, the guest's
    /// disks as VHDX, a PowerShell script.
    Pack(Box<Pack>),
    /// Import a guest of Xen's (xl.cfg, XVA, OVF, disk, partition, LVM volume) into such a
    /// directory.
    Import(Box<Import>),
    /// Say whether and how kernels, disk images and configurations will run; the exit status is 1
    /// if one of them will not.
    Doctor(Doctor),
}

#[derive(clap::Args)]
struct Boot {
    /// Kernel image, or a Debian suite whose current kernel to fetch
    /// [default: what the first disk boots; without disks, this machine's suite].
    #[arg(long)]
    kernel: Option<String>,
    /// Initrd [default: a small one with a shell].
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// The kernel's command line; for a disk's own kernel, words behind its own.
    #[arg(long, allow_hyphen_values = true)]
    append: Option<String>,
    /// Memory: 512M, 1G, …
    #[arg(long, default_value = "1G", value_parser = parse_memory)]
    memory: u64,
    /// Processors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// A disk: FILE[,ro][,format=raw|qcow2|vhd][,sector=4096][,scsi=C:L][,dvd][,direct=on|off];
    /// may be repeated.
    #[arg(long, value_name = "FILE[,…]")]
    disk: Vec<String>,
    /// A network: user[,hostfwd=tcp:2222-:22], tap,ifname=NAME or socket,path=PATH, then
    /// [,mac=…][,mtu=9000][,queues=N]; may be repeated.
    #[arg(long, value_name = "BACKEND[,…]")]
    net: Vec<NetOptions>,
    /// Entry of the first disk's boot menu: its number, title or id
    /// [default: the menu's].
    #[arg(long, value_name = "N|TITLE", conflicts_with = "kernel", requires = "disk")]
    entry: Option<String>,
    /// Let a boot loader inside the guest choose: it reads the menu on the guest's disks.
    #[arg(
        long,
        value_enum,
        value_name = "LOADER",
        requires = "disk",
        conflicts_with_all = ["kernel", "initrd", "append", "entry", "native"]
    )]
    bootloader: Option<Loader>,
    /// Boot the kernel itself, without the shim.
    #[arg(long)]
    native: bool,
    /// Where to run it.
    #[arg(long, value_enum, default_value_t = Where::Auto)]
    under: Where,
    /// Save the host's counters as JSON.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Hyper-V features the host is to withhold, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    hv_without: Vec<String>,
    /// End the guest after this many seconds.
    #[arg(long, value_name = "SECS")]
    timeout: Option<u64>,
    /// How much the shim says (its `pontoon.log=`).
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// With --under qemu: wait for a debugger on this TCP port.
    #[arg(long, value_name = "PORT")]
    gdb: Option<u16>,
    /// With --under qemu: count instructions instead of time.
    #[arg(long)]
    icount: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    /// On KVM where it has Hyper-V's interfaces, else nested.
    Auto,
    /// On this machine's KVM.
    Kvm,
    /// On the KVM of an emulated machine.
    Nested,
    /// In plain QEMU, without Hyper-V.
    Qemu,
}

fn main() -> ExitCode {
    let status = match Cli::parse().command {
        Commands::Boot(boot) => run(&boot),
        Commands::Pack(pack) => pack.run().map(|()| Status(0)),
        Commands::Import(import) => import.run().map(|()| Status(0)),
        Commands::Doctor(doctor) => doctor.run().map(|all| Status(i32::from(!all))),
    };
    match status {
        // Outcomes are small; what is not fits no exit status.
        Ok(Status(status)) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(e) => {
            tty::restore();
            say(format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(boot: &Boot) -> Result<Status> {
    if (boot.gdb.is_some() || boot.icount) && !matches!(boot.under, Where::Qemu) {
        bail!("--gdb and --icount need --under qemu");
    }
    if boot.stats.is_some() && matches!(boot.under, Where::Qemu) {
        bail!("--stats: plain QEMU keeps no counters; leave out --under qemu");
    }
    if !boot.disk.is_empty() && matches!(boot.under, Where::Qemu) {
        bail!("--disk needs Hyper-V's storage, which plain QEMU has not: leave out --under qemu");
    }
    if !boot.net.is_empty() && matches!(boot.under, Where::Qemu) {
        bail!("--net needs Hyper-V's network, which plain QEMU has not: leave out --under qemu");
    }
    for disk in &boot.disk {
        let file = disk.split(',').next().unwrap_or_default();
        std::fs::metadata(file).with_context(|| format!("--disk {file}"))?;
    }
    for file in boot.initrd.iter() {
        std::fs::metadata(file).with_context(|| format!("--initrd {}", file.display()))?;
    }
    setup::for_running()?;
    setup::for_building()?;
    cleanup::on_signals(tty::restore)?;
    let work = Scratch::new()?;
    let machine = describe(boot, work.path())?;
    let under = match boot.under {
        Where::Auto => Under::Auto,
        Where::Kvm => Under::Kvm,
        Where::Nested => Under::Nested,
        Where::Qemu => Under::Qemu,
    };
    let (mut host, why) = Host::choose(under, machine.memory_mib)?;
    if let Host::Qemu(qemu) = &mut host {
        qemu.gdb = boot.gdb;
        qemu.icount = boot.icount;
    }
    say(why);
    let outcome = {
        let _raw = tty::Raw::enter()?;
        let input = Input::default();
        tty::feed(input.clone(), || leave(130));
        let mut stdout = std::io::stdout().lock();
        let mut output = |bytes: &[u8]| {
            // Whoever reads the console may go away before the guest does.
            let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
        };
        host.run(&machine, &input, &mut output)?
    };
    if let (Some(path), Some(stats)) = (&boot.stats, &outcome.stats) {
        std::fs::write(path, stats).with_context(|| format!("--stats {}", path.display()))?;
    }
    say(format!("the guest ended: {}", outcome.status.text()));
    Ok(outcome.status)
}

/// The disk a guest boots from.
fn first_disk(boot: &Boot) -> Option<&Path> {
    let is_dvd = |disk: &&String| disk.split(',').any(|word| word == "dvd");
    let disk = boot.disk.iter().find(|d| !is_dvd(d))?;
    Some(Path::new(disk.split(',').next().unwrap_or_default()))
}

/// The first disk's own kernel, where no other is asked for.
fn from_disk(boot: &Boot, work: &Path) -> Result<Option<Files>> {
    let Some(path) = first_disk(boot).filter(|_| boot.kernel.is_none()) else {
        return Ok(None);
    };
    let mut files = image::take(path, boot.entry.as_deref(), boot.append.as_deref(), work)
        .context("no kernel in the first disk (--kernel boots another)")?;
    files.initrd = boot.initrd.clone().or(files.initrd);
    if let Some(hint) = image::console_hint(&files.append).filter(|_| !boot.native) {
        say(hint);
    }
    Ok(Some(files))
}

/// A kernel named or fetched, with our initrd unless another is named.
fn from_options(boot: &Boot, work: &Path) -> Result<Files> {
    let spec = boot.kernel.clone().unwrap_or_else(kernel::machine_suite);
    let kernel = if Path::new(&spec).is_file() {
        PathBuf::from(&spec)
    } else if kernel::is_suite(&spec) {
        let kernel = Kernel::get(&spec)?;
        say(format!("kernel {} of Debian's package version {}", kernel.release, kernel.version));
        kernel.vmlinuz()?
    } else {
        bail!("--kernel {spec}: no such file, and no Debian suite of that name is known");
    };
    let initrd = match &boot.initrd {
        Some(initrd) => initrd.clone(),
        None => {
            let path = work.join("initrd");
            std::fs::write(&path, initramfs::shell()?)?;
            path
        }
    };
    let console = if boot.native { "console=ttyS0" } else { "console=hvc0" };
    let append = boot.append.clone().unwrap_or_else(|| console.into());
    Ok(Files { kernel, initrd: Some(initrd), append })
}

/// A boot loader; what it will not boot by default is said before it starts.
fn from_loader(boot: &Boot, loader: Loader) -> Result<Files> {
    // A disk that cannot be read here is for the loader to read.
    let default = first_disk(boot).map(|path| (path, image::Boot::from_image(path, None)));
    if let Some((path, Ok(default))) = default
        && let Some(why) = loader.obstacle(&default.kernel)
    {
        say(format!("{}: \"{}\": {why}", path.display(), default.title));
    }
    Ok(Files { kernel: loader.image()?, initrd: None, append: String::new() })
}

/// The guest as the options describe it, with what they leave open filled in.
fn describe(boot: &Boot, work: &Path) -> Result<Machine> {
    let files = match boot.bootloader {
        Some(loader) => from_loader(boot, loader)?,
        None => from_disk(boot, work)?.map_or_else(|| from_options(boot, work), Ok)?,
    };
    let Files { kernel, initrd, mut append } = files;
    if let Some(level) = &boot.log {
        append.push_str(&format!(" pontoon.log={level}"));
    }
    let machine = Machine {
        memory_mib: boot.memory,
        cpus: boot.cpus,
        without: boot.hv_without.clone(),
        disks: boot.disk.clone(),
        nets: boot.net.clone(),
        stats: boot.stats.is_some(),
        timeout: boot.timeout.map(Duration::from_secs),
        show_errors: true,
        ..Machine::new(&kernel, initrd.as_deref(), &append)
    };
    if boot.native { Ok(machine) } else { machine.under_shim(work) }
}

/// Leaves in the middle: the terminal gets its settings back and nothing stays
/// behind.
fn leave(status: i32) {
    tty::restore();
    cleanup::exit(status);
}
