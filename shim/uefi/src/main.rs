//! UEFI application: takes the shim's place before there is a boot loader. It reads what is to be
//! booted from the volume it was started from, puts the shim, which it carries in itself, into
//! memory, and enters it as a Multiboot2 loader would, with boot services gone.
//!
//! ```text
//! \pontoon\kernel     the guest's kernel
//! \pontoon\initrd     its initrd, if there is one
//! \pontoon\cmdline    its command line
//! \pontoon\config     words for the shim
//! ```
//!
//! Whatever is wrong is one line on the firmware's console; then the firmware goes on to its next
//! boot entry.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "firmware's memory: every block says why it holds")]

extern crate alloc;

mod config;
mod enter;
mod files;
mod firmware;
mod image;
mod memory;

use core::fmt::{self, Display};
use core::time::Duration;

use uefi::prelude::*;
use uefi::println;

/// How long a message of failure stays before the firmware goes on.
const READING_TIME: Duration = Duration::from_secs(10);

/// Why there is nothing to boot.
pub enum Failure {
    /// Firmware refused.
    Firmware(&'static str, Status),
    /// Firmware refused something about a file.
    File(&'static str, Status),
    /// A file is wrong.
    BadFile(&'static str, &'static str),
    /// The kernel is none the shim can boot.
    Kernel(translate::builder::BuildError),
    /// The application itself is wrong.
    Image(&'static str),
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware(what, status) => write!(f, "{what}: {status}"),
            Self::File(name, Status::NOT_FOUND) => write!(f, "{name} is not on this volume"),
            Self::File(name, status) => write!(f, "{name} cannot be read: {status}"),
            Self::BadFile(name, why) => write!(f, "{name}: {why}"),
            Self::Kernel(why) => write!(f, "{}: {why}", files::KERNEL),
            Self::Image(why) => write!(f, "this application is incomplete: {why}"),
        }
    }
}

#[entry]
fn main() -> Status {
    match prepare() {
        Ok(ready) => enter::enter(ready),
        Err(failure) => println!("pontoon: {failure}"),
    }
    boot::stall(READING_TIME);
    Status::LOAD_ERROR
}

/// Everything that needs the firmware.
fn prepare() -> Result<enter::Ready, Failure> {
    println!("Pontoon {}", env!("CARGO_PKG_VERSION"));
    if firmware::secure_boot() {
        println!(
            "pontoon: Secure Boot is on and trusts this application; kernel and initrd are not checked"
        );
    }
    let mut volume = files::Volume::open()?;
    let kernel = volume.load(files::KERNEL)?;
    translate::builder::kernel::heap_bytes(kernel.bytes()).map_err(Failure::Kernel)?;
    let initrd = volume.load_optional(files::INITRD)?;
    let cmdline = volume.text(files::CMDLINE)?;
    let words = config::words(&volume.text(files::CONFIG)?, &firmware::load_options());
    let shim = image::load()?;
    enter::prepare(shim, &kernel, initrd.as_ref(), &cmdline, &words)
}
