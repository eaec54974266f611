//! The command: what it says of each file it is given.

use super::{Report, kernel};
use crate::bootloader::Loader;
use crate::guest::Payload;
use crate::image::{self, Boot};
use crate::import::host::Host;
use crate::import::xl::{self, Reading};
use crate::import::{Kind, kind, ovf, xva};
use crate::pack::build::early_payload;
use crate::pack::options::guess;
use crate::pack::plan::{Medium, Plan};
use crate::qemu_img::Format;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Kernels are not longer than this.
const MAX_KERNEL: u64 = 512 << 20;

/// Options of `pontoon doctor`.
#[derive(clap::Args, Debug)]
pub struct Doctor {
    /// Kernels, disk images, configurations of xl or xm, XVA archives, OVF descriptions.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A file that stands for a path of the old host's; may be repeated.
    #[arg(long, value_name = "PATH=FILE")]
    map: Vec<String>,
    /// An image with the old host's LVM volumes; may be repeated.
    #[arg(long, value_name = "IMAGE")]
    lvm: Vec<PathBuf>,
    /// The kernel's initrd.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Entry of a disk's boot menu: its number, title or id.
    #[arg(long, value_name = "N|TITLE")]
    entry: Option<String>,
}

impl Doctor {
    /// Says what there is to say; whether all of them will run.
    ///
    /// # Errors
    /// A file that cannot be read, or an output that cannot be written.
    pub fn run(&self) -> Result<bool> {
        let mut all = true;
        for path in &self.files {
            let report = self.examine(path)?;
            crate::print(&report.text(&path.display().to_string()))?;
            all &= report.obstacle.is_none();
        }
        Ok(all)
    }

    fn examine(&self, path: &Path) -> Result<Report> {
        let name = || path.display().to_string();
        let meta = std::fs::metadata(path).with_context(name)?;
        if meta.is_dir() {
            bail!("{} is a directory", name());
        }
        if meta.len() <= MAX_KERNEL && meta.is_file() {
            let file = std::fs::read(path).with_context(name)?;
            if kernel::is_kernel(&file) {
                let read = |path: &PathBuf| {
                    std::fs::read(path).with_context(|| path.display().to_string())
                };
                let initrd = self.initrd.as_ref().map(read).transpose()?;
                return Ok(kernel::examine(&file, initrd.as_deref()));
            }
        }
        // From here on what is wrong is wrong with the file, not with asking for it.
        let report = kind(path).and_then(|kind| match kind {
            Kind::Disk => self.image(path),
            Kind::Xl => self.configuration(path),
            Kind::Xva => Ok(planned(&xva::plan(path, true)?)),
            Kind::Ovf => Ok(planned(&ovf::plan(path, true)?)),
        });
        Ok(report.unwrap_or_else(|error| Report::obstacle(format!("{error:#}"))))
    }

    fn image(&self, path: &Path) -> Result<Report> {
        let mut report = Report::default();
        match guess(path)? {
            Format::Raw | Format::Qcow2 => {}
            Format::Vhd
                if image::bytes::Image::open(path)
                    .is_ok_and(|i| image::format::fixed_vhd(&i).is_some()) => {}
            other => {
                report.fact(format!(
                    "a disk in {} format: what it boots is known once it is imported",
                    other.name()
                ));
                return Ok(report);
            }
        }
        let boot = Boot::from_image(path, self.entry.as_deref())?;
        report.add(payload(&Payload {
            kernel: boot.kernel,
            initrd: boot.initrd,
            cmdline: boot.cmdline,
            notes: boot.notes,
        }));
        report.fact("as a disk it becomes a VHDX, xvda of the guest unless --disk or --device says otherwise");
        Ok(report)
    }

    fn configuration(&self, path: &Path) -> Result<Report> {
        let host = Host::new(&self.map, &self.lvm, path)?;
        let reading = Reading { ignores_unknown: false, as_pv: false };
        Ok(planned(&xl::plan(&std::fs::read(path)?, &host, reading)?))
    }
}

/// What becomes of a guest, and whether it runs.
fn planned(plan: &Plan) -> Report {
    let mut report = Report::default();
    match plan.text(Medium::Vhdx) {
        Ok(text) => text.lines().for_each(|line| report.fact(line.trim_start())),
        Err(error) => report.obstacle = Some(format!("{error:#}")),
    }
    let words = plan.places(Medium::Vhdx).and_then(|places| plan.guest.words(&places));
    if let Err(error) = words {
        report.obstacle = Some(format!("{error:#}"));
        return report;
    }
    match early_payload(plan) {
        Ok(Some(found)) => report.add(payload(&found)),
        Ok(None) => report.warn("its kernel is found once its disks are unpacked"),
        Err(error) => report.add(Report::obstacle(format!("{error:#}"))),
    }
    report
}

/// What is booted: the kernel, and what its command line will find.
fn payload(payload: &Payload) -> Report {
    let mut report = Report { facts: payload.notes.clone(), ..Report::default() };
    report.add(kernel::examine(&payload.kernel, payload.initrd.as_deref()));
    report.fact(format!("command line: {}", payload.cmdline));
    if let Err(error) = payload.check() {
        report.obstacle = report.obstacle.take().or(Some(error.to_string()));
    }
    if let Some(hint) = image::console_hint(&payload.cmdline) {
        report.warn(hint);
    }
    if let Some(why) = Loader::Pvgrub2.obstacle(&payload.kernel) {
        report.warn(why);
    }
    let root = payload
        .cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("root="))
        .next_back();
    if let Some(root) =
        root.filter(|root| ["/dev/vd", "/dev/nvme"].iter().any(|d| root.starts_with(d)))
    {
        report.warn(format!(
            "its root is {root}: Xen's disks are not called so; --append root=/dev/xvda1"
        ));
    }
    report
}
