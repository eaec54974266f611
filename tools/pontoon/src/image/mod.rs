//! The kernel and initrd inside a guest's disk image, found by its boot loader's
//! configuration, as Xen's pygrub finds them.
//!
//! From the bottom up:
//! - [`bytes`], [`qcow2`]: reading an image, which is never written;
//! - [`partition`], [`mod@format`]: partitions, and what they hold; [`lvm`]: logical volumes;
//! - [`fs`]: the file systems ext2/3/4 ([`ext`]) and FAT ([`fat`]);
//! - [`disk`]: files across the volumes of a disk;
//! - [`menu`]: boot menus, from [`grub`], [`legacy`], [`syslinux`], [`bls`];
//! - [`find`]: which of them an image has.
//!
//! An image may hold anything: all of this reads bytes nobody vouches for.

pub mod bls;
pub mod bytes;
pub mod disk;
mod ext;
#[cfg(test)]
mod fake;
mod fat;
mod find;
pub mod format;
pub mod fs;
pub mod grub;
pub mod legacy;
pub mod lvm;
mod lvm_text;
pub mod menu;
pub mod partition;
mod qcow2;
pub mod syslinux;
mod version;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use bytes::{Image, ReadAt};
use disk::Disk;
use menu::Named;
use qcow2::Qcow2;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Kernels are not longer than this.
const MAX_KERNEL: u64 = 512 << 20;
/// Neither are initrds.
const MAX_INITRD: u64 = 2 << 30;

/// What an image boots.
#[derive(Debug)]
pub struct Boot {
    /// The kernel image.
    pub kernel: Vec<u8>,
    /// Its initrds, joined.
    pub initrd: Option<Vec<u8>>,
    /// The entry's command line.
    pub cmdline: String,
    /// The entry's title.
    pub title: String,
    /// What there is to say about the choice, a line each.
    pub notes: Vec<String>,
}

impl Boot {
    /// Finds what the image `path` boots: the menu entry `entry`, by number,
    /// title or id, else the default. Errors name the image.
    pub fn from_image(path: &Path, entry: Option<&str>) -> Result<Self> {
        let open = || -> Result<Rc<dyn ReadAt>> {
            // What looks like one is no more read than any other: nothing else is opened.
            if qcow2::is_one(path) {
                return Ok(Rc::new(Qcow2::open(path)?));
            }
            Ok(Rc::new(Image::open(path)?))
        };
        open()
            .and_then(|image| Self::find(image, entry))
            .with_context(|| path.display().to_string())
    }

    /// The same for an image that is open.
    pub fn find(image: Rc<dyn ReadAt>, entry: Option<&str>) -> Result<Self> {
        let disk = Disk::open(image)?;
        let found = find::menu(&disk)?;
        let chosen = found.menu.choose(entry).with_context(|| found.source.clone())?;
        let recipe = chosen.recipe;
        let read = |named: &Named, limit| -> Result<Vec<u8>> {
            disk.read(&find::file(&disk, found.volume, named)?, limit)
        };
        let entry = || format!("the entry \"{}\" of {}", chosen.title, found.source);
        let kernel = read(&recipe.kernel, MAX_KERNEL).with_context(entry)?;
        let mut initrd = None;
        for named in &recipe.initrds {
            let joined: &mut Vec<u8> = initrd.get_or_insert_default();
            joined.extend(read(named, MAX_INITRD).with_context(entry)?);
            // Archives begin at multiples of four bytes.
            joined.resize(joined.len().next_multiple_of(4), 0);
        }
        let mut notes: Vec<_> = chosen.instead.clone().into_iter().collect();
        let initrds: Vec<_> = recipe.initrds.iter().map(|i| i.path.as_str()).collect();
        let with = if initrds.is_empty() { "no initrd".into() } else { initrds.join(" and ") };
        notes.push(format!(
            "boots \"{}\": {} with {with} ({})",
            chosen.title, recipe.kernel.path, found.source
        ));
        let (cmdline, title) = (recipe.cmdline.clone(), chosen.title.clone());
        Ok(Self { kernel, initrd, cmdline, title, notes })
    }

    /// Writes kernel and initrd to files in `dir`.
    pub fn write_to(&self, dir: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
        let kernel = dir.join("kernel-of-image");
        std::fs::write(&kernel, &self.kernel).with_context(|| kernel.display().to_string())?;
        let Some(data) = &self.initrd else { return Ok((kernel, None)) };
        let initrd = dir.join("initrd-of-image");
        std::fs::write(&initrd, data).with_context(|| initrd.display().to_string())?;
        Ok((kernel, Some(initrd)))
    }
}

/// Kernel, initrd and command line of an image, as files for a host to load.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initrd.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
}

/// Takes what the image `path` boots out of it into `dir`, with the user's
/// `append` behind the entry's command line; says what was taken.
pub fn take(path: &Path, entry: Option<&str>, append: Option<&str>, dir: &Path) -> Result<Files> {
    let boot = Boot::from_image(path, entry)?;
    let append = with_append(&boot.cmdline, append);
    for line in &boot.notes {
        crate::say(format!("{}: {line}", path.display()));
    }
    let (kernel, initrd) = boot.write_to(dir)?;
    Ok(Files { kernel, initrd, append })
}

/// The entry's command line with the user's words behind it.
#[must_use]
pub fn with_append(cmdline: &str, append: Option<&str>) -> String {
    match append {
        Some(more) if !cmdline.is_empty() => format!("{cmdline} {more}"),
        Some(more) => more.to_owned(),
        None => cmdline.to_owned(),
    }
}

/// A hint for a command line that leaves the PV console unused; it is the
/// administrator's, and not changed.
#[must_use]
pub fn console_hint(cmdline: &str) -> Option<String> {
    let mut consoles = cmdline.split_whitespace().filter_map(|w| w.strip_prefix("console="));
    if consoles.clone().any(|c| c.split(',').next() == Some("hvc0")) {
        return None;
    }
    let named = consoles.next().map_or("none".to_owned(), |first| format!("console={first}"));
    Some(format!(
        "the kernel's command line has no console=hvc0 ({named}); --append console=hvc0 shows its console here"
    ))
}
