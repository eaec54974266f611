//! Where downloads and unpacked kernels are kept.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// `$XDG_CACHE_HOME/pontoon`, else `.cache` in the workspace, else
/// `~/.cache/pontoon`; created if missing.
pub fn dir() -> Result<PathBuf> {
    let from_env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = from_env("XDG_CACHE_HOME")
        .map(|d| d.join("pontoon"))
        .or_else(|| crate::artefact::workspace().map(|w| w.join(".cache")))
        .or_else(|| from_env("HOME").map(|h| h.join(".cache/pontoon")))
        .context("no place for a cache: set XDG_CACHE_HOME")?;
    fs::create_dir_all(&dir)
        .with_context(|| format!("cannot create the cache {}", dir.display()))?;
    Ok(dir)
}

/// Holds a named lock of the cache until dropped, so that two commands do not
/// fetch the same thing at once.
pub struct Lock {
    _file: File,
}

/// Takes the lock `name`, waiting for it.
pub fn lock(name: &str) -> Result<Lock> {
    let path = dir()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(Lock { _file: file })
}

/// Fills a directory of the cache in one step: `fill` works in a temporary
/// neighbour which then gets its name, so an interrupted command leaves nothing
/// half done. A directory that is there already is taken as it is.
pub fn filled(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let parent = target.parent().context("a cache entry has a parent")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    fill(work.path())?;
    let work = work.keep();
    match fs::rename(&work, target) {
        Ok(()) => Ok(()),
        // Somebody else was quicker.
        Err(_) if target.exists() => Ok(fs::remove_dir_all(&work)?),
        Err(e) => Err(e).with_context(|| target.display().to_string()),
    }
}
