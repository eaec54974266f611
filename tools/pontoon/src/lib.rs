//! Running Xen PV guests under the shim, wherever this machine can.
//!
//! The `pontoon` command is a thin front of this library; the tests and the
//! benchmarks call it, too. From the bottom up:
//! - [`apt`], [`kernel`], [`bootloader`]: Debian's kernels and tools, out of its signed packages;
//! - [`cpio`], [`initramfs`], [`bundle`]: the archives a guest starts with;
//! - [`image`]: the kernel inside a guest's disk image;
//! - [`artefact`]: the project's own programs, found or built;
//! - [`kvm`], [`nested`], [`qemu`], [`xen`]: the places a guest can run in;
//! - [`plug`], [`wire`]: disks and networks of guests in the emulated machine;
//! - [`host`]: choosing one of them and running a [`host::Machine`] there;
//! - [`guest`], [`pack`], [`mod@import`]: guests made into what a Hyper-V host runs;
//! - [`qemu_img`]: disk images in other formats;
//! - [`doctor`]: whether something will run.

pub mod apt;
pub mod artefact;
pub mod bootloader;
pub mod bundle;
pub mod cache;
pub mod cleanup;
pub mod cpio;
pub mod doctor;
pub mod guest;
pub mod host;
pub mod image;
pub mod import;
pub mod initramfs;
pub mod kernel;
pub mod kvm;
pub mod nested;
pub mod options;
pub mod outcome;
pub mod pack;
pub mod plug;
pub mod protocol;
pub mod qemu;
pub mod qemu_img;
pub mod setup;
pub mod tty;
pub mod wire;
pub mod xen;

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// Says a line about what is going on, to standard error: standard output
/// belongs to the guest's console.
pub fn say(text: impl AsRef<str>) {
    // Where nobody hears it, there is nobody to tell that either.
    let _ = writeln!(std::io::stderr(), "pontoon: {}", text.as_ref());
}

/// Prints what was asked for. Where its reader has gone away, the command ends, as others do.
///
/// # Errors
/// Those of writing.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => cleanup::unread(),
        done => done.context("standard output"),
    }
}
