//! The options of `pontoon pack`, and those it shares with `pontoon import`.

use super::build;
use super::disk::Source;
use super::plan::{Boot, Medium, Plan, PlannedDisk};
use crate::bootloader::Loader;
use crate::guest::{Guest, Mac, Nic};
use crate::kernel::{self, Kernel};
use crate::qemu_img::{Disk, Format};
use crate::{cleanup, image, setup};
use anyhow::{Context, Result, bail, ensure};
use pv_frontends::vbd::Vdev;
use std::path::{Path, PathBuf};

/// Options of every command that makes a pack.
#[derive(clap::Args, Clone, Debug)]
pub struct Output {
    /// Directory to make; it must not be there yet.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// What the machine starts from: vhdx (generation 2), vhd (generation 1) or iso.
    #[arg(long, value_enum, default_value = "vhdx")]
    pub format: Medium,
    /// Say what would be made, and make nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Name of the virtual machine and of the guest.
    #[arg(long)]
    pub name: Option<String>,
    /// Memory of the guest: 512M, 1G, …
    #[arg(long, value_parser = crate::options::parse_memory)]
    pub memory: Option<u64>,
    /// Processors.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,
    /// A kernel instead of the guest's own.
    #[arg(long)]
    pub kernel: Option<String>,
    /// An initrd instead of the guest's own.
    #[arg(long)]
    pub initrd: Option<PathBuf>,
    /// Words behind the kernel's command line.
    #[arg(long, allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Entry of the first disk's boot menu: its number, title or id.
    #[arg(long, value_name = "N|TITLE", conflicts_with = "kernel")]
    pub entry: Option<String>,
    /// A boot loader as the guest, which boots the kernel its disk's own menu has at each start.
    #[arg(
        long,
        value_enum,
        value_name = "LOADER",
        conflicts_with_all = ["kernel", "initrd", "append", "entry"]
    )]
    pub bootloader: Option<Loader>,
}

/// Options of `pontoon pack`.
#[derive(clap::Args, Debug)]
pub struct Pack {
    #[command(flatten)]
    output: Output,
    /// A disk of the guest's: NAME=FILE[,ro][,cdrom][,format=raw|qcow2|vhd|vhdx|vmdk]; NAME is what
    /// the guest sees, as xvda; may be repeated. Without --kernel the first one's is taken.
    #[arg(long, value_name = "NAME=FILE[,…]")]
    disk: Vec<String>,
    /// A network card by its address: MAC[,mtu=N]; may be repeated.
    #[arg(long, value_name = "MAC[,…]")]
    net: Vec<String>,
}

impl Pack {
    /// Makes the pack.
    ///
    /// # Errors
    /// What is wrong with the options or their files.
    pub fn run(&self) -> Result<()> {
        let mut disks = Vec::new();
        for text in &self.disk {
            disks.push(disk(text).with_context(|| format!("--disk {text}"))?);
        }
        let mut nics = Vec::new();
        for (number, text) in (0..).zip(&self.net) {
            nics.push(nic(text, number).with_context(|| format!("--net {text}"))?);
        }
        ensure!(
            self.output.kernel.is_some() || !disks.is_empty(),
            "neither --kernel nor --disk: there is nothing to boot"
        );
        let guest =
            Guest { name: "guest".into(), memory_mib: 1024, cpus: 1, nics, ..Guest::default() };
        let boot = Boot::Disk { entry: None, append: None, initrd: None };
        self.output.make(Plan { guest, boot, disks, left_out: Vec::new() })
    }
}

fn disk(text: &str) -> Result<PlannedDisk> {
    let (name, rest) = text.split_once('=').context("NAME=FILE was expected")?;
    let vdev = Vdev::parse(name);
    let vdev = vdev.with_context(|| format!("\"{name}\" is no virtual device: xvda, sda1, …"))?;
    let mut words = rest.split(',');
    let path = PathBuf::from(words.next().unwrap_or_default());
    let (mut read_only, mut cdrom, mut format) = (false, false, None);
    for word in words {
        match word {
            "ro" => read_only = true,
            "cdrom" => (read_only, cdrom) = (true, true),
            _ => match word.strip_prefix("format=") {
                Some(name) => format = Some(format_named(name)?),
                None => bail!("\"{word}\": ro, cdrom or format= was expected"),
            },
        }
    }
    let format = format.map_or_else(|| guess(&path), Ok)?;
    let source = Some(Source::File(Disk { path, format }));
    Ok(PlannedDisk { vdev, read_only, cdrom, source })
}

/// The format of that name.
pub fn format_named(name: &str) -> Result<Format> {
    let all = [Format::Raw, Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vmdk];
    let is = |format: &Format| format.name() == name || (name == "vhd" && *format == Format::Vhd);
    let found = all.into_iter().find(is);
    found.with_context(|| format!("format={name}: raw, qcow2, vhd, vhdx or vmdk was expected"))
}

/// The format a file seems to have.
pub fn guess(path: &Path) -> Result<Format> {
    let name = || path.display().to_string();
    let image = image::bytes::Image::open(path).with_context(name)?;
    match image::format::container(&image) {
        None if image::format::fixed_vhd(&image).is_some() => Ok(Format::Vhd),
        None => Ok(Format::Raw),
        Some("qcow2") => Ok(Format::Qcow2),
        Some("VHDX") => Ok(Format::Vhdx),
        Some("VHD (dynamic)") => Ok(Format::Vhd),
        Some("VMDK") => Ok(Format::Vmdk),
        Some(other) => bail!("{}: {other} is not a format that is taken here", name()),
    }
}

fn nic(text: &str, number: u32) -> Result<Nic> {
    let mut words = text.split(',');
    let mac = Mac::parse(words.next().unwrap_or_default())?;
    let mut mtu = None;
    for word in words {
        let value = word.strip_prefix("mtu=").and_then(|mtu| mtu.parse().ok());
        mtu = Some(value.with_context(|| format!("\"{word}\": mtu=N was expected"))?);
    }
    Ok(Nic { number, mac, mtu, network: None })
}

impl Output {
    /// Makes a pack of a plan, with what the options want otherwise; or says what it would be.
    ///
    /// # Errors
    /// Anything that keeps the guest from becoming one.
    pub fn make(&self, mut plan: Plan) -> Result<()> {
        if let Some(name) = &self.name {
            plan.guest.name.clone_from(name);
        }
        plan.guest.memory_mib = self.memory.unwrap_or(plan.guest.memory_mib);
        if let Some(cpus) = self.cpus {
            (plan.guest.cpus, plan.guest.online) = (cpus, None);
        }
        ensure!(
            (1..=64).contains(&plan.guest.cpus),
            "{} processors: 1 to 64 can be had",
            plan.guest.cpus
        );
        ensure!(
            (32..=1 << 20).contains(&plan.guest.memory_mib),
            "{} MiB of memory: 32 MiB to 1 TiB can be had",
            plan.guest.memory_mib
        );
        if let Some(line) = self.not_by_loader(&plan) {
            crate::say(line);
        }
        self.choose_boot(&mut plan.boot)?;
        // Nothing that is wrong here would be right later.
        plan.guest.words(&plan.places(self.format)?)?;
        for disk in &plan.disks {
            if let Some(source) = &disk.source {
                source.size().with_context(|| disk.vdev.name().to_string())?;
            }
        }
        crate::print(&plan.text(self.format)?)?;
        if self.dry_run {
            let Some(payload) = build::early_payload(&plan)? else { return Ok(()) };
            crate::print(&payload.told())?;
            return payload.check().context("the guest's kernel");
        }
        setup::for_packing(self.format)?;
        cleanup::on_signals(|| ())?;
        crate::print(&build::build(&plan, self.format, &self.output)?)?;
        crate::print(&format!(
            "made {}: copy it to the Hyper-V host and run {}.ps1 there\n",
            self.output.display(),
            plan.stem()
        ))
    }

    /// What the boot loader will not boot by default, as far as that can be told yet.
    fn not_by_loader(&self, plan: &Plan) -> Option<String> {
        let loader = self.bootloader?;
        let disk = plan.disks.first()?;
        let found = disk.source.as_ref()?.boot(None).ok()??;
        let why = loader.obstacle(&found.kernel)?;
        Some(format!("{}: \"{}\": {why}", disk.vdev.name(), found.title))
    }

    fn choose_boot(&self, boot: &mut Boot) -> Result<()> {
        if let Some(loader) = self.bootloader {
            // The words for the kernel are its menu's.
            let (kernel, initrd, cmdline) = (loader.image()?, None, String::new());
            *boot = Boot::Files { kernel, initrd, cmdline };
            return Ok(());
        }
        let more = |old: &str| image::with_append(old, self.append.as_deref());
        if let Some(spec) = &self.kernel {
            let cmdline = match boot {
                Boot::Files { cmdline, .. } => more(cmdline),
                Boot::Disk { append, .. } => more(append.as_deref().unwrap_or_default()),
            };
            *boot = Boot::Files { kernel: named(spec)?, initrd: self.initrd.clone(), cmdline };
            return Ok(());
        }
        match boot {
            Boot::Files { initrd, cmdline, .. } => {
                *cmdline = more(cmdline);
                *initrd = self.initrd.clone().or(initrd.take());
            }
            Boot::Disk { entry, append, initrd } => {
                *entry = self.entry.clone().or(entry.take());
                if self.append.is_some() {
                    *append = Some(more(append.as_deref().unwrap_or_default()));
                }
                *initrd = self.initrd.clone().or(initrd.take());
            }
        }
        Ok(())
    }
}

/// A kernel's file, or the kernel of a Debian suite.
fn named(spec: &str) -> Result<PathBuf> {
    if Path::new(spec).is_file() {
        return Ok(spec.into());
    }
    if kernel::is_suite(spec) {
        return Kernel::get(spec)?.vmlinuz();
    }
    bail!("--kernel {spec}: no such file, and no Debian suite of that name is known")
}
