//! Disk images in other formats, by qemu-img: converted, compared, described.

use crate::cleanup::Reaper;
use crate::image::bytes::{Image, ReadAt};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a file holds a disk, by qemu-img's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Its bytes as they are.
    Raw,
    /// qcow2.
    Qcow2,
    /// VHD, also called VPC.
    Vhd,
    /// VHDX.
    Vhdx,
    /// VMDK.
    Vmdk,
}

impl Format {
    /// As qemu-img calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }
}

/// A disk in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// How it holds the disk.
    pub format: Format,
}

impl Disk {
    /// The file, said so that it can be nothing but a file: an absolute path is neither an
    /// option nor, with a colon in it, a protocol.
    fn arg(&self) -> Result<PathBuf> {
        Ok(std::path::absolute(&self.path)?)
    }
}

/// Bytes of the disk.
///
/// # Errors
/// The file is not of its format, or names another file, which is not opened.
pub fn size(disk: &Disk) -> Result<u64> {
    if disk.format == Format::Raw {
        // qemu-img rounds up to whole sectors.
        let image = Image::open(&disk.path).with_context(|| disk.path.display().to_string())?;
        return Ok(image.len());
    }
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json", "-f", disk.format.name()]).arg(disk.arg()?);
    let info: serde_json::Value = serde_json::from_slice(&run(&mut command, &disk.path)?)?;
    for name in ["backing-filename", "full-backing-filename"] {
        if let Some(other) = info[name].as_str() {
            bail!(
                "{} is a part only: the rest is in {other}; make one file of them",
                disk.path.display()
            );
        }
    }
    let data = &info["format-specific"]["data"];
    ensure!(data["data-file"].is_null(), "{} has its data in another file", disk.path.display());
    if let Some(extents) = data["extents"].as_array() {
        let file = |extent: &serde_json::Value| extent["filename"].as_str().map(str::to_owned);
        let files: Vec<String> = extents.iter().filter_map(file).collect();
        ensure!(
            files.iter().all(|other| Path::new(other.trim_start_matches("file:")).file_name()
                == disk.path.file_name()),
            "{} has its data in other files",
            disk.path.display()
        );
    }
    info["virtual-size"].as_u64().context("qemu-img named no size")
}

/// Writes the disk `from` to a new file, and compares the two.
///
/// # Errors
/// Either cannot be read or written, or they differ.
pub fn convert(from: &Disk, to: &Disk, options: &[&str], what: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-f", from.format.name(), "-O", to.format.name()]);
    if !options.is_empty() {
        command.args(["-o", &options.join(",")]);
    }
    command.arg(from.arg()?).arg(to.arg()?);
    with_progress(&mut command, &format!("converting {what}"), &to.path)?;
    compare(from, to, what)
}

/// Compares two disks, byte for byte.
///
/// # Errors
/// They differ, or cannot be read.
pub fn compare(a: &Disk, b: &Disk, what: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-p", "-f", a.format.name(), "-F", b.format.name()]);
    command.arg(a.arg()?).arg(b.arg()?);
    with_progress(&mut command, &format!("comparing {what}"), &b.path)
}

/// Whether the file's tables are sound.
///
/// # Errors
/// They are not.
pub fn check(disk: &Disk) -> Result<()> {
    let mut command = Command::new("qemu-img");
    run(command.args(["check", "-q", "-f", disk.format.name()]).arg(disk.arg()?), &disk.path)
        .map(drop)
}

/// Runs it to its end; what it printed.
fn run(command: &mut Command, about: &Path) -> Result<Vec<u8>> {
    let out = command.stdin(Stdio::null()).output().context("qemu-img cannot be run")?;
    ensure!(out.status.success(), "{}", why(&out.stdout, &out.stderr, about));
    Ok(out.stdout)
}

/// qemu-img's reason in a line.
fn why(stdout: &[u8], stderr: &[u8], about: &Path) -> String {
    let text = [stderr, stdout].concat();
    let text = String::from_utf8_lossy(&text).replace('\r', "\n");
    let said = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('('));
    let first = said.into_iter().next().unwrap_or("no reason given");
    let first = first.strip_prefix("qemu-img: ").unwrap_or(first);
    format!("{}: {first}", about.display())
}

/// Runs it with a bar, if someone watches.
fn with_progress(command: &mut Command, what: &str, about: &Path) -> Result<()> {
    let bar = bar(100, what)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reaper = Reaper::spawn(command)?;
    let (mut said, mut buffer) = (Vec::new(), [0; 256]);
    if let Some(mut out) = reaper.child().stdout.take() {
        while let Ok(count @ 1..) = out.read(&mut buffer) {
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if let Some(percent) = percent(&said) {
                bar.set_position(percent);
            }
            // Only its end matters: the last percentage, or the reason.
            let old = said.len().saturating_sub(4096);
            said.drain(..old);
        }
    }
    let mut errors = Vec::new();
    if let Some(mut err) = reaper.child().stderr.take() {
        err.read_to_end(&mut errors)?;
    }
    let status = reaper.child().wait()?;
    bar.finish_and_clear();
    ensure!(status.success(), "{}", why(&said, &errors, about));
    Ok(())
}

/// A bar for `len` units, which is hidden where nobody watches.
pub fn bar(len: u64, what: &str) -> Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("pontoon: {msg} [{bar:30}] {percent}% {eta}")?;
    Ok(ProgressBar::new(len).with_style(style.progress_chars("=> ")).with_message(what.to_owned()))
}

/// The last of `    (12.34/100%)`.
fn percent(said: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(said).ok()?;
    let (before, _) = text.rsplit_once("/100%)")?;
    before.rsplit_once('(')?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        assert_eq!(percent(b"    (0.00/100%)\r    (12.34/100%)\r"), Some(12));
        assert_eq!(percent(b"    (100.00/100%)\r    (1"), Some(100));
        assert_eq!(percent(b""), None);
        assert_eq!(percent(b"/100%)"), None);
    }

    fn disk(dir: &tempfile::TempDir, name: &str, format: Format) -> Disk {
        Disk { path: dir.path().join(name), format }
    }

    #[test]
    fn disks_are_converted_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let raw = disk(&dir, "nbd:raw", Format::Raw);
        let data: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 9) as u8).collect();
        std::fs::write(&raw.path, &data).unwrap();
        let vhdx = disk(&dir, "a.vhdx", Format::Vhdx);
        convert(&raw, &vhdx, &["subformat=dynamic"], "a").unwrap();
        assert_eq!(size(&vhdx).unwrap(), 3 << 20);
        check(&vhdx).unwrap();
        let mut other = data;
        other[1 << 20] ^= 1;
        std::fs::write(&raw.path, &other).unwrap();
        let error = compare(&raw, &vhdx, "a").unwrap_err().to_string();
        assert!(error.contains("mismatch at offset 1048576"), "{error}");
        let error = size(&Disk { format: Format::Qcow2, ..raw }).unwrap_err().to_string();
        assert!(error.contains("qcow2") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn images_that_name_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let raw = disk(&dir, "raw", Format::Raw);
        std::fs::write(&raw.path, vec![0; 1 << 20]).unwrap();
        let overlay = disk(&dir, "overlay", Format::Qcow2);
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&raw.path)
            .arg(&overlay.path);
        run(&mut command, &overlay.path).unwrap();
        assert!(size(&overlay).unwrap_err().to_string().contains("a part only"));
    }
}
