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

/// Debian's PvGrub2 for 64-bit guests.
pub fn pvgrub2() -> Result<PathBuf> {
    let _lock = cache::lock("kernels")?;
    let suite = Suite::open(SUITE)?;
    let version = suite.version(PACKAGE)?.with_context(|| format!("{SUITE} has no {PACKAGE}"))?;
    let dir = cache::dir()?.join("kernels").join(format!("{PACKAGE}_{version}"));
    cache::filled(&dir, |work| suite.unpack(PACKAGE, work))?;
    let image = dir.join(IMAGE);
    anyhow::ensure!(image.exists(), "{PACKAGE} {version} has no {IMAGE}");
    Ok(image)
}
