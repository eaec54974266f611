//! Children and temporary directories, known in one place so that a command
//! that is interrupted leaves nothing behind.
//!
//! Whoever leaves by [`exit`] keeps the list's lock to the end: what the rest of
//! the program makes of a child that was killed or a directory that is gone waits
//! at that lock, and neither its error nor its status is ever seen.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
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
    /// Starts a child.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut ours = ours();
        let child = command.spawn().with_context(|| {
            format!("{} cannot be run", command.get_program().to_string_lossy())
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        ours.children.extend(pid);
        Ok(Self { child, pid })
    }

    /// The child.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let mut ours = ours();
        let _ = self.child.kill();
        // Off the list first: once waited for, the number may be somebody else's.
        ours.children.retain(|&pid| Some(pid) != self.pid);
        drop(ours);
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
        Self::made(|| tempfile::Builder::new().prefix("pontoon-").tempdir())
            .context("no temporary directory can be made")
    }

    fn made(make: impl FnOnce() -> io::Result<tempfile::TempDir>) -> io::Result<Self> {
        let mut ours = ours();
        let path = make()?.keep();
        ours.dirs.push(path.clone());
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
        Self::made(|| tempfile::Builder::new().prefix(".pontoon-").tempdir_in(parent))
            .with_context(|| format!("nothing can be made in {}", parent.display()))
    }

    /// Gives the directory, as it is, the name `target`: from now on it stays.
    ///
    /// # Errors
    /// Those of renaming, or there is something of that name by now; then the directory goes.
    pub fn publish(self, target: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let name = || target.display().to_string();
        let _whole = ours();
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
        let mut ours = ours();
        let _ = std::fs::remove_dir_all(&self.path);
        ours.dirs.retain(|d| *d != self.path);
    }
}

/// Ends the process from any thread, with no child and no directory left.
pub fn exit(status: i32) -> ! {
    let _whole = nothing_left();
    std::process::exit(status)
}

/// As [`exit`], by the signal that a program gets whose output nobody reads any more.
pub fn unread() -> ! {
    let _whole = nothing_left();
    // Rust's programs ignore it at first, so that nobody else's pipe ends them.
    let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGPIPE);
    std::process::exit(128 + signal_hook::consts::SIGPIPE)
}

/// Ends all children and removes all directories; with what is returned, no more come.
fn nothing_left() -> MutexGuard<'static, Ours> {
    let mut ours = ours();
    for pid in ours.children.drain(..) {
        let _ = kill_process(pid, Signal::KILL);
    }
    for dir in ours.dirs.drain(..) {
        // Other threads still run, and may make a file in what is being removed.
        for _ in 0..10 {
            if std::fs::remove_dir_all(&dir).is_ok() {
                break;
            }
        }
    }
    ours
}

/// From now on, a signal that ends this process cleans up first: `before` is
/// called, then [`exit`].
pub fn on_signals(before: impl Fn() + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            before();
            exit(128 + signal);
        }
    });
    Ok(())
}
