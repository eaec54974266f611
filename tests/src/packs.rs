//! Packs, as `pontoon pack` makes them, for firmware to start from.

use crate::parts::run;
use anyhow::Result;
use pontoon::artefact::{Artefact, LINUX};
use pontoon::qemu_img::{self, Disk, Format};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The command.
pub const PONTOON: Artefact = Artefact { package: "pontoon", binary: "pontoon", target: LINUX };

/// What a machine starts from: as `--format` has it, and how qemu-img calls it.
pub type Form = (&'static str, Format);

/// For generation 2: the EFI application.
pub const VHDX: Form = ("vhdx", Format::Vhdx);
/// For generation 1: GRUB for BIOS.
pub const VHD: Form = ("vhd", Format::Vhd);
/// For both: GRUB.
pub const ISO: Form = ("iso", Format::Raw);

/// The arguments for a kernel with its initrd and its words.
pub fn kernel<'a>(kernel: &'a Path, initrd: &'a Path, words: &'a str) -> [&'a OsStr; 6] {
    let [kernel, initrd] = [kernel, initrd].map(Path::as_os_str);
    let [k, i, a] = ["--kernel", "--initrd", "--append"].map(OsStr::new);
    [k, kernel, i, initrd, a, words.as_ref()]
}

/// Makes a pack in `dir` of what is to boot; what a machine starts from, made a raw image.
pub fn image(dir: &Path, (form, format): Form, boots: &[&OsStr]) -> Result<PathBuf> {
    let pack = dir.join("pack");
    let mut command = Command::new(PONTOON.find()?);
    command.args(["pack", "--format", form, "--name", "packed"]).args(boots).arg("-o").arg(&pack);
    run(&mut command)?;
    let from = Disk { path: pack.join(format!("packed.{form}")), format };
    let raw = Disk { path: dir.join("boot.raw"), format: Format::Raw };
    qemu_img::convert(&from, &raw, &[], "the pack")?;
    Ok(raw.path)
}
