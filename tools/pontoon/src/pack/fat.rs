//! FAT file systems of a few files, by dosfstools and mtools.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;
/// Sectors of a cluster: 4 KiB.
const CLUSTER_SECTORS: &str = "8";
/// FAT32 begins at 65525 clusters: the smallest volume that has so many.
const LEAST_BYTES: u64 = 288 * MIB;
/// Room for other kernels, beside those that are there.
const SPARE_BYTES: u64 = 64 * MIB;

/// Files of a volume: paths without a slash in front, and contents.
pub type Files<'a> = [(&'a str, &'a [u8])];

/// Bytes of a volume for these files, whole MiB.
#[must_use]
pub fn volume_bytes(files: &Files<'_>) -> u64 {
    let data: u64 = files.iter().map(|(_, data)| data.len() as u64).sum();
    (data + data / 64 + SPARE_BYTES).next_multiple_of(MIB).max(LEAST_BYTES)
}

/// Makes the file `path` a FAT32 volume of `bytes` with these files in it; `work` is for files
/// that do not stay.
///
/// # Errors
/// Those of writing.
pub fn create(path: &Path, bytes: u64, files: &Files<'_>, work: &Path) -> Result<()> {
    let file = File::create_new(path).with_context(|| path.display().to_string())?;
    file.set_len(bytes)?;
    let mut command = Command::new("mkfs.vfat");
    command.args(["-F", "32", "-s", CLUSTER_SECTORS, "-n", "PONTOON"]).arg(path);
    run(&mut command)?;
    let tree = work.join("tree");
    let mut tops = BTreeSet::new();
    for (name, data) in files {
        let file = tree.join(name);
        let dir = file.parent().context("a file is in a directory")?;
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        fs::write(&file, data).with_context(|| file.display().to_string())?;
        tops.insert(name.split('/').next().unwrap_or_default());
    }
    let mut command = Command::new("mcopy");
    command.arg("-i").arg(path).arg("-s").args(tops.iter().map(|top| tree.join(top))).arg("::/");
    run(&mut command)?;
    Ok(fs::remove_dir_all(tree)?)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    // The user's settings may have other ideas of what is a disk.
    command.env("MTOOLSRC", "/dev/null").env("MTOOLS_SKIP_CHECK", "1");
    let out = command.stdin(Stdio::null()).output();
    let out = out.with_context(|| format!("{program} cannot be run"))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    let why = errors.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    ensure!(out.status.success(), "{program}: {why}");
    Ok(())
}
