//! The programs of `tests/guests` and the initramfs they run in.

use anyhow::{Context, Result};
use pontoon::artefact::{Artefact, BARE, LINUX};
use pontoon::initramfs::{self, Extra};
use std::path::PathBuf;

/// How the first process of every small guest begins.
const FIRST: &str = include_str!("../e2e/first.sh");

/// First process of the guests of boots. `pontoon_test=` on the kernel's command
/// line chooses what it does; lines beginning with `@@` are for the tests.
const INIT: &str = include_str!("../e2e/init.sh");

/// A static Linux program of `tests/guests`, built if need be.
pub fn program(name: &'static str) -> Result<PathBuf> {
    Artefact { package: "guests", binary: name, target: LINUX }.find()
}

/// A kernel of `tests/guests/tiny`, built if need be.
pub fn tiny(name: &'static str) -> Result<PathBuf> {
    Artefact { package: "tiny-guests", binary: name, target: BARE }.find()
}

/// The test initramfs: busybox, the init script, the given programs.
pub fn initramfs(programs: &[&'static str]) -> Result<Vec<u8>> {
    let mut extras = Vec::new();
    for name in programs {
        let path = program(name)?;
        let data = std::fs::read(&path).with_context(|| path.display().to_string())?;
        extras.push(Extra { name: (*name).to_owned(), data });
    }
    with_init(&[INIT], &extras)
}

/// An initramfs of busybox, `extras`, and a first process of `scripts` one after the other, behind
/// `tests/e2e/first.sh`.
pub fn with_init(scripts: &[&str], extras: &[Extra]) -> Result<Vec<u8>> {
    initramfs::build(&[&[FIRST], scripts].concat().concat(), extras)
}
