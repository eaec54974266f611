//! The options of `pontoon import`.

use super::bare::{self, Wanted};
use super::host::Host;
use super::xl::{self, Reading};
use super::{Kind, MAX_TEXT, kind, ovf, xva};
use crate::pack::options::{Output, format_named};
use crate::pack::plan::Plan;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// Options of `pontoon import`.
#[derive(clap::Args, Debug)]
pub struct Import {
    /// What describes the guest: a configuration of xl or xm, an XVA archive, an OVF description,
    /// or a disk, a partition or an LVM volume in a file.
    source: PathBuf,
    #[command(flatten)]
    output: Output,
    /// A file that stands for a path of the old host's; may be repeated.
    #[arg(long, value_name = "PATH=FILE")]
    map: Vec<String>,
    /// An image with the old host's LVM volumes: `phy:/dev/VG/LV` is looked for in it; may be
    /// repeated.
    #[arg(long, value_name = "IMAGE")]
    lvm: Vec<PathBuf>,
    /// A volume of an LVM image that is a disk of the guest's, as vg0/root=xvda1; may be repeated.
    #[arg(long, value_name = "VG/LV=NAME")]
    lv: Vec<String>,
    /// What the guest sees a single disk as [default: xvda; xvda1 for a partition].
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// The format of a single disk's file, if not what it looks like: raw, qcow2, vhd, vhdx, vmdk.
    #[arg(long, value_name = "FORMAT")]
    disk_format: Option<String>,
    /// A network card for a single disk's guest, by its address; may be repeated.
    #[arg(long, value_name = "MAC")]
    net: Vec<String>,
    /// Leave out what is unknown in a configuration instead of refusing it.
    #[arg(long)]
    ignore_unknown: bool,
    /// Try an HVM or PVH guest as PV guest.
    #[arg(long)]
    as_pv: bool,
}

impl Import {
    /// Imports it.
    ///
    /// # Errors
    /// What is wrong with the options, or with what is to be imported.
    pub fn run(&self) -> Result<()> {
        let plan = self.plan()?;
        self.output.make(plan)
    }

    fn plan(&self) -> Result<Plan> {
        let kind = kind(&self.source)?;
        let only = |set: bool, option: &str, of: Kind, what: &str| {
            ensure!(
                !set || kind == of,
                "{option} is for {what}, which {} is not",
                self.source.display()
            );
            Ok(())
        };
        only(!self.map.is_empty(), "--map", Kind::Xl, "configurations")?;
        only(!self.lvm.is_empty(), "--lvm", Kind::Xl, "configurations")?;
        only(self.ignore_unknown, "--ignore-unknown", Kind::Xl, "configurations")?;
        only(!self.lv.is_empty(), "--lv", Kind::Disk, "images")?;
        only(self.device.is_some(), "--device", Kind::Disk, "images")?;
        only(self.disk_format.is_some(), "--disk-format", Kind::Disk, "images")?;
        only(!self.net.is_empty(), "--net", Kind::Disk, "images")?;
        match kind {
            Kind::Xl => self.xl(),
            Kind::Xva => xva::plan(&self.source, self.as_pv),
            Kind::Ovf => ovf::plan(&self.source, self.as_pv),
            Kind::Disk => {
                let format = self.disk_format.as_deref().map(format_named).transpose()?;
                let wanted = Wanted {
                    device: self.device.clone(),
                    volumes: self.lv.clone(),
                    format,
                    nets: self.net.clone(),
                };
                bare::plan(&self.source, &wanted)
            }
        }
    }

    fn xl(&self) -> Result<Plan> {
        let name = || self.source.display().to_string();
        let host = Host::new(&self.map, &self.lvm, &self.source)?;
        let file = std::fs::read(&self.source).with_context(name)?;
        ensure!(file.len() as u64 <= MAX_TEXT, "{} is too long for a configuration", name());
        let reading = Reading { ignores_unknown: self.ignore_unknown, as_pv: self.as_pv };
        xl::plan(&file, &host, reading).with_context(name)
    }
}
