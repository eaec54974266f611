//! Small initramfs archives around Debian's busybox.

use crate::cpio::Archive;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// First process of the initramfs a user gets when none is named.
const SHELL_INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
hypervisor=$(cat /sys/hypervisor/type 2>/dev/null)
mode=$(cat /sys/hypervisor/guest_type 2>/dev/null)
if [ "$hypervisor" ]; then
	echo "Linux $(uname -r), a $hypervisor guest of type $mode. Leave with 'poweroff', 'reboot' or Ctrl-D."
else
	echo "Linux $(uname -r). Leave with 'poweroff', 'reboot' or Ctrl-D."
fi
# What busybox's own poweroff, reboot and halt send to process 1.
trap 'sync; poweroff -f' USR1 USR2
trap 'sync; reboot -f' TERM
setsid cttyhack sh </dev/console &
wait $!
sync
poweroff -f
sleep 60
"#;

/// Directories of every initramfs.
const DIRS: [&str; 7] = ["bin", "dev", "proc", "sys", "tmp", "root", "etc"];

/// A program or file to put into an initramfs.
pub struct Extra {
    /// Path in the archive, without leading slash; its directories are made.
    pub name: String,
    /// Contents.
    pub data: Vec<u8>,
}

/// Debian's static busybox.
fn busybox() -> Result<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    let found = places.iter().map(PathBuf::from).find(|p| p.exists());
    let path = found.context("busybox is missing (package busybox-static)")?;
    let elf = fs::read(&path)?;
    if !is_static(&elf) {
        bail!("{} is not static: install busybox-static", path.display());
    }
    Ok(path)
}

/// Whether an ELF file asks for no program interpreter.
#[must_use]
pub fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half =
        |at: usize| elf.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let (Some(at), Some(size), Some(count)) = (half(0x20), half(0x36), half(0x38)) else {
        return false;
    };
    elf.starts_with(b"\x7fELF")
        && (0..count)
            .all(|i| elf.get(at + i * size..at + i * size + 4) != Some(&PT_INTERP.to_le_bytes()))
}

/// The initramfs with a shell.
pub fn shell() -> Result<Vec<u8>> {
    build(SHELL_INIT, &[])
}

/// An initramfs of busybox, the script `init`, and `extras`.
pub fn build(init: &str, extras: &[Extra]) -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let list = Command::new(&busybox).arg("--list").output().context("busybox --list")?;
    let mut archive = Archive::new(Vec::new());
    for dir in DIRS {
        archive.dir(dir)?;
    }
    // The kernel opens it before any script runs.
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    archive.file("init", 0o755, init.as_bytes())?;
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?)?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        if applet != "busybox" {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
    }
    let mut made = std::collections::BTreeSet::new();
    for extra in extras {
        // The kernel makes no directory that is not in the archive.
        for (at, _) in extra.name.match_indices('/') {
            let dir = extra.name.get(..at).unwrap_or_default();
            if !DIRS.contains(&dir) && made.insert(dir) {
                archive.dir(dir)?;
            }
        }
        archive.file(&extra.name, 0o755, &extra.data)?;
    }
    archive.finish().context("initramfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_programs_are_told_apart() {
        assert!(!is_static(b""));
        assert!(!is_static(b"\x7fELF"));
        let mut elf = vec![0; 0x80];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[0x20] = 0x40;
        elf[0x36] = 56;
        elf[0x38] = 1;
        elf[0x40] = 1;
        assert!(is_static(&elf));
        elf[0x40] = 3;
        assert!(!is_static(&elf));
    }
}
