//! What is to become of a guest.

use super::disk::Source;
use crate::guest::{Guest, Place};
use anyhow::{Result, ensure};
use pv_frontends::vbd::Vdev;
use std::fmt::Write as _;
use std::path::PathBuf;

/// LUNs of a SCSI controller of Hyper-V's.
const LUNS: usize = 64;

/// What a machine starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Medium {
    /// A VHDX with an EFI system partition, for a machine of generation 2.
    Vhdx,
    /// A VHD with GRUB, for a machine of generation 1.
    Vhd,
    /// An ISO image with GRUB, for a machine of generation 2.
    Iso,
}

impl Medium {
    /// Of the virtual machine.
    #[must_use]
    pub const fn generation(self) -> u32 {
        match self {
            Self::Vhd => 1,
            Self::Vhdx | Self::Iso => 2,
        }
    }

    /// Of the medium's file.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Iso => "iso",
        }
    }

    /// The first LUN of the SCSI controller that is the guest's: generation 2 has nothing else
    /// to start from.
    const fn first_lun(self) -> u8 {
        match self {
            Self::Vhd => 0,
            Self::Vhdx | Self::Iso => 1,
        }
    }
}

/// Where the guest's kernel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// In files.
    Files {
        /// The kernel.
        kernel: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
        /// Its command line.
        cmdline: String,
    },
    /// On the first disk, found by its boot loader's menu.
    Disk {
        /// The menu's entry, if not its default.
        entry: Option<String>,
        /// Words behind the entry's own.
        append: Option<String>,
        /// An initrd instead of the entry's.
        initrd: Option<PathBuf>,
    },
}

/// A disk of the guest's.
#[derive(Clone, Debug)]
pub struct PlannedDisk {
    /// What the guest sees it as.
    pub vdev: Vdev,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD-ROM drive.
    pub cdrom: bool,
    /// Where its bytes are; `None` for a drive without a medium.
    pub source: Option<Source>,
}

/// What is to become of a guest.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// Where its kernel is.
    pub boot: Boot,
    /// Its disks, the one it boots from first.
    pub disks: Vec<PlannedDisk>,
    /// What its old host had and the new one will not, and why.
    pub left_out: Vec<String>,
}

impl Plan {
    /// The name of its files.
    #[must_use]
    pub fn stem(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let stem: String = self.guest.name.chars().map(plain).collect();
        // Names Windows keeps for devices, with any extension.
        let first = stem.split('.').next().unwrap_or_default().to_ascii_uppercase();
        let is_device = matches!(first.as_str(), "CON" | "PRN" | "AUX" | "NUL")
            || (first.len() == 4 && (first.starts_with("COM") || first.starts_with("LPT")));
        if is_device || stem.starts_with(['.', '-']) { format!("vm-{stem}") } else { stem }
    }

    /// The place of each disk in a machine that starts from `medium`.
    ///
    /// # Errors
    /// There are more than it can have.
    pub fn places(&self, medium: Medium) -> Result<Vec<Place>> {
        let first = medium.first_lun();
        let most = LUNS - usize::from(first);
        ensure!(
            self.disks.len() <= most,
            "the guest has {} disks; the machine has room for {most}",
            self.disks.len()
        );
        if medium == Medium::Vhd
            && let Some(dvd) = self.disks.iter().find(|disk| disk.cdrom)
        {
            anyhow::bail!(
                "{} is a CD-ROM drive, which machines of generation 1 have on IDE only: take --format vhdx",
                dvd.vdev.name()
            );
        }
        let place = |(lun, disk): (u8, &PlannedDisk)| Place {
            vdev: disk.vdev,
            lun,
            read_only: disk.read_only,
            cdrom: disk.cdrom,
        };
        Ok((first..).zip(&self.disks).map(place).collect())
    }

    /// The file of a disk in the pack.
    #[must_use]
    pub fn disk_file(&self, disk: &PlannedDisk) -> Option<String> {
        disk.source.as_ref()?;
        let extension = if disk.cdrom { "iso" } else { "vhdx" };
        Some(format!("{}-{}.{extension}", self.stem(), disk.vdev.name()))
    }

    /// The plan, a line for each of its parts.
    ///
    /// # Errors
    /// The machine cannot have these disks.
    pub fn text(&self, medium: Medium) -> Result<String> {
        let mut out = String::new();
        let guest = &self.guest;
        let plural = if guest.cpus == 1 { "" } else { "s" };
        let online = guest.online.map(|n| format!(", {n} of them online")).unwrap_or_default();
        let (name, memory) = (&guest.name, guest.memory_mib);
        writeln!(out, "{name}: {memory} MiB, {} processor{plural}{online}", guest.cpus)?;
        match &self.boot {
            Boot::Files { kernel, initrd, cmdline } => {
                writeln!(out, "  boots  {}", kernel.display())?;
                if let Some(initrd) = initrd {
                    writeln!(out, "  initrd {}", initrd.display())?;
                }
                writeln!(out, "  words  {cmdline}")?;
            }
            Boot::Disk { entry, append, .. } => {
                let entry = entry.as_ref().map_or("the default".into(), |e| format!("\"{e}\""));
                let append = append.as_ref().map(|a| format!(", and \"{a}\"")).unwrap_or_default();
                writeln!(out, "  boots  {entry} of its first disk's menu{append}")?;
            }
        }
        let generation = medium.generation();
        let file = format!("{}.{}", self.stem(), medium.extension());
        writeln!(out, "  starts from {file}, in a machine of generation {generation}")?;
        for (disk, place) in self.disks.iter().zip(self.places(medium)?) {
            let (name, lun) = (disk.vdev.name(), place.lun);
            let kind = match (disk.cdrom, disk.read_only) {
                (true, _) => ", CD-ROM",
                (_, true) => ", read only",
                _ => "",
            };
            let source = disk.source.as_ref().map_or("no medium".into(), Source::describe);
            let file = self.disk_file(disk).map(|file| format!(" -> {file}")).unwrap_or_default();
            writeln!(out, "  {name:6} {source}{file}, SCSI 0:{lun}{kind}")?;
        }
        for nic in &guest.nics {
            let network = nic.network.as_ref().map(|n| format!(", was on {n}")).unwrap_or_default();
            let mtu = nic.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
            writeln!(out, "  vif{:<3} {}{mtu}{network}", nic.number, nic.mac)?;
        }
        for note in &self.left_out {
            writeln!(out, "  not carried over: {note}")?;
        }
        Ok(out)
    }
}
