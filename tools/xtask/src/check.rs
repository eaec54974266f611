//! `check` and `size`.

use crate::command::{cargo, cargo_command, run as run_command, workspace};
use anyhow::{Context, Result, ensure};
use pontoon::artefact::{BARE, SHIM, UEFI};
use std::fs;

/// Formatting, lints, documents.
pub fn run() -> Result<()> {
    pontoon::setup::for_testing()?;
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--exclude",
        "shim",
        "--exclude",
        "tiny-guests",
        "--exclude",
        "pontoon-efi",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    cargo(&[
        "clippy",
        "--quiet",
        "--profile",
        "ring0",
        "--package",
        "shim",
        "--package",
        "tiny-guests",
        "--target",
        BARE,
        "--",
        "-D",
        "warnings",
    ])?;
    cargo(&[
        "clippy",
        "--quiet",
        "--profile",
        "ring0",
        "--package",
        "pontoon-efi",
        "--target",
        UEFI,
        "--",
        "-D",
        "warnings",
    ])?;
    run_command(
        cargo_command(&[
            "doc",
            "--quiet",
            "--no-deps",
            "--workspace",
            "--exclude",
            "shim",
            "--exclude",
            "tiny-guests",
            "--exclude",
            "pontoon-efi",
        ])?
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    dependencies_are_explained()
}

/// Every dependency has its line in docs/dependencies.md.
fn dependencies_are_explained() -> Result<()> {
    let root = workspace()?;
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let text =
        fs::read_to_string(root.join("docs/dependencies.md")).context("docs/dependencies.md")?;
    let section =
        manifest.split("[workspace.dependencies]").nth(1).context("no workspace dependencies")?;
    let section = section.split("\n[").next().unwrap_or_default();
    for line in section.lines().filter(|l| !l.contains("path =") && !l.starts_with('#')) {
        if let Some((name, _)) = line.split_once(" = ") {
            ensure!(
                text.contains(&format!("`{name}`")),
                "docs/dependencies.md does not say what {name} is for"
            );
        }
    }
    Ok(())
}

/// Size of the shim's image, by loadable segment.
pub fn size() -> Result<()> {
    pontoon::setup::for_testing()?;
    let path = SHIM.find()?;
    let elf = fs::read(&path)?;
    let (file, memory) = loadable(&elf).context("the shim is no ELF file")?;
    println!("{}: {} KiB to load, {} KiB of memory", path.display(), file / 1024, memory / 1024);
    Ok(())
}

/// Bytes of file and of memory in an ELF file's loadable segments.
fn loadable(elf: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let half =
        |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    let table = usize::try_from(word(0x20)?).ok()?;
    let (size, count) = (half(0x36)?, half(0x38)?);
    let mut sums = (0, 0);
    for index in 0..count {
        let at = table + index * size;
        if elf.get(at..at + 4)? == [1, 0, 0, 0] {
            sums = (sums.0 + word(at + 0x20)?, sums.1 + word(at + 0x28)?);
        }
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_summed() {
        let mut elf = vec![0; 0x40 + 2 * 56];
        elf[0x20] = 0x40;
        elf[0x36] = 56;
        elf[0x38] = 2;
        elf[0x40] = 1;
        elf[0x40 + 0x20] = 5;
        elf[0x40 + 0x28] = 9;
        assert_eq!(loadable(&elf), Some((5, 9)));
        assert_eq!(loadable(&elf[..0x50]), None);
    }
}
