//! Initramfs archives of the native disk tests: the storage drivers of a Debian kernel,
//! and this machine's own partitioning and file system programs.

use crate::{guests, parts};
use anyhow::{Context, Result};
use pontoon::initramfs::Extra;
use pontoon::kernel::Kernel;
use std::collections::BTreeSet;
use std::path::Path;

const INIT: &[&str] = &[include_str!("../e2e/native-lib.sh"), include_str!("../e2e/disk-init.sh")];
const FIO_INIT: &[&str] = &[
    include_str!("../e2e/fio-lib.sh"),
    include_str!("../e2e/native-lib.sh"),
    include_str!("../e2e/native-fio-init.sh"),
];

/// Drivers; what they depend on is added.
const MODULES: [&str; 5] = ["hv_storvsc", "sd_mod", "sr_mod", "ext4", "isofs"];

/// Programs busybox has not, or not as well.
const PROGRAMS: [&str; 3] = ["/usr/sbin/sfdisk", "/usr/sbin/mke2fs", "/usr/sbin/blkdiscard"];

/// For everything a disk does; `pattern` is the file of that name in it.
pub fn initramfs(kernel: &Kernel, pattern: &[u8]) -> Result<Vec<u8>> {
    build(kernel, INIT, vec![Extra { name: "pattern".into(), data: pattern.to_vec() }])
}

/// For load on every queue; fio itself is on the first disk, a
/// [`program_disk`](parts::program_disk).
pub fn fio_initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    build(kernel, FIO_INIT, Vec::new())
}

fn build(kernel: &Kernel, init: &[&str], mut extras: Vec<Extra>) -> Result<Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    extras.extend(parts::drivers(kernel, &MODULES)?);
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let name = program.rsplit('/').next().unwrap_or_default();
        // Before busybox's own in the search path.
        extras.push(Extra { name: format!("sbin/{name}"), data: read(Path::new(program))? });
        libraries.extend(parts::libraries_of(program)?);
    }
    for library in libraries {
        let name = library.to_string_lossy().trim_start_matches('/').to_owned();
        extras.push(Extra { name, data: read(&library)? });
    }
    guests::with_init(init, &extras)
}

/// Lines of a kernel log that complain about storage.
#[must_use]
pub fn complaints(log: &[String]) -> Vec<&str> {
    const STORAGE: [&str; 9] =
        ["hv_vmbus", "storvsc", "scsi", "sd ", "sr ", "I/O error", "EXT4", "blk_", "Buffer"];
    log.iter()
        .map(String::as_str)
        .filter(|line| STORAGE.iter().any(|word| line.contains(word)))
        // Linux 5.10 asks that of every machine without a framebuffer.
        .filter(|line| !line.contains("Unexpected framebuffer mmio base of zero"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_storage_complains_about_storage() {
        let log = ["<3>[ 1.0] sd 0:0:0:0: [sda] x", "<4>[ 1.0] PCI: no config space"];
        assert_eq!(complaints(&log.map(str::to_owned)), ["<3>[ 1.0] sd 0:0:0:0: [sda] x"]);
    }
}
