//! Children and temporary directories, known in one place so that a command
//! that is interrupted leaves nothing behind.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Ours {
    children: Vec<Pid>,
    dirs: Vec<PathBuf>,
}

static OURS: Mutex<Ours> = Mutex::new(Ours { children: Vec::new(), dirs: Vec::new() });

fn ours() -> MutexGuard<'static, Ours> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills its child on the way out, whatever that way is.
pub struct Reaper {
    child: Child,
    pid: Option<Pid>,
}

impl Reaper {
    /// Takes responsibility for `child`.
    #[must_use]
    pub fn new(child: Child) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        ours().children.extend(pid);
        Self { child, pid }
    }

    /// The child.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Off the list first: once waited for, the number may be somebody else's.
        ours().children.retain(|&pid| Some(pid) != self.pid);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A temporary directory, removed on the way out.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a directory.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("pontoon-")
            .tempdir()
            .context("no temporary directory can be made")?;
        let path = dir.keep();
        ours().dirs.push(path.clone());
        Ok(Self { path })
    }

    /// Makes a directory on the file system that `target` is to be on, beside it.
    ///
    /// # Errors
    /// There is a `target` already, or nowhere to put it.
    pub fn beside(target: &Path) -> Result<Self> {
        let name = target.display();
        anyhow::ensure!(
            std::fs::symlink_metadata(target).is_err(),
            "{name} exists already: nothing is overwritten"
        );
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let dir = tempfile::Builder::new().prefix(".pontoon-").tempdir_in(parent);
        let path =
            dir.with_context(|| format!("nothing can be made in {}", parent.display()))?.keep();
        ours().dirs.push(path.clone());
        Ok(Self { path })
    }

    /// Gives the directory, as it is, the name `target`: from now on it stays.
    ///
    /// # Errors
    /// Those of renaming, or there is something of that name by now; then the directory goes.
    pub fn publish(self, target: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let name = || target.display().to_string();
        // Temporary directories are their owner's alone.
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&self.path, all).with_context(name)?;
        // Of what may be there by now, a directory replaces an empty directory only.
        std::fs::rename(&self.path, target).with_context(name)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        ours().dirs.retain(|d| *d != self.path);
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Ends all children and removes all directories: for a way out that runs no
/// destructors.
pub fn all() {
    let ours = std::mem::take(&mut *ours());
    for pid in ours.children {
        let _ = kill_process(pid, Signal::KILL);
    }
    for dir in ours.dirs {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// From now on, a signal that ends this process cleans up first: `before` is
/// called, then [`all`].
pub fn on_signals(before: impl Fn() + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            before();
            all();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
