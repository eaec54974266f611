//! The bundle: kernel, initrd and command line in the one payload slot that the
//! Linux boot protocol has.

use crate::cpio::Archive;
use std::io;

/// Data of kernel and initrd lie on page boundaries, so that the shim can hand
/// their pages over without moving them.
const PAGE: u64 = 4096;

/// Makes a bundle.
pub fn bundle(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> io::Result<Vec<u8>> {
    let size = kernel.len() + initrd.map_or(0, <[u8]>::len) + 5 * 4096;
    let mut archive = Archive::new(Vec::with_capacity(size));
    archive.dir("pontoon")?;
    archive.file("pontoon/cmdline", 0o444, cmdline.as_bytes())?;
    archive.aligned_file("pontoon/.pad", "pontoon/kernel", PAGE, kernel)?;
    if let Some(initrd) = initrd {
        archive.aligned_file("pontoon/.pad", "pontoon/initrd", PAGE, initrd)?;
    }
    archive.finish()
}
