//! PvGrub2: GRUB as a PV guest, which boots the guest's own kernel from the guest's own menu.

use crate::apt::Suite;
use crate::cache;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// The suite it is taken from.
const SUITE: &str = "bookworm";
const PACKAGE: &str = "grub-xen-host";
/// The image, with a menu of its own that looks for the guest's on every disk.
const IMAGE: &str = "usr/lib/grub-xen/grub-x86_64-xen.bin";

/// A boot loader that runs as the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Loader {
    /// Debian's PvGrub2.
    Pvgrub2,
}

impl Loader {
    /// Its image, fetched if it is not in the cache.
    ///
    /// # Errors
    /// Those of fetching it.
    pub fn image(self) -> Result<PathBuf> {
        match self {
            Self::Pvgrub2 => pvgrub2(),
        }
    }
}

/// Debian's PvGrub2 for 64-bit guests.
fn pvgrub2() -> Result<PathBuf> {
    let _lock = cache::lock("kernels")?;
    let suite = Suite::open(SUITE)?;
    let version = suite.version(PACKAGE)?.with_context(|| format!("{SUITE} has no {PACKAGE}"))?;
    let dir = cache::dir()?.join("kernels").join(format!("{PACKAGE}_{version}"));
    cache::filled(&dir, |work| suite.unpack(PACKAGE, work))?;
    let image = dir.join(IMAGE);
    anyhow::ensure!(image.exists(), "{PACKAGE} {version} has no {IMAGE}");
    Ok(image)
}
