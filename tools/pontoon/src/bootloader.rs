//! PvGrub2: GRUB as a PV guest, which boots the guest's own kernel from the guest's own menu.

use crate::apt::Suite;
use crate::cache;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use translate::builder::error::Compression;
use translate::builder::{bzimage, decompress};

/// The suite it is taken from, for its version: GRUB unpacks zstd from 2.14 on.
const SUITE: &str = "forky";
const PACKAGE: &str = "grub-xen-host";
/// The image, with a menu of its own that looks for the guest's on every disk.
const IMAGE: &str = "usr/lib/grub-xen/grub-x86_64-xen.bin";

/// How `grub_zstdio_open` makes room for a reader and its two buffers, in Debian's build of GRUB 2.14
/// (`grub-core/io/zstdio.c`). For the reader it takes the size of a pointer to one, so that the
/// second buffer ends 80 bytes beyond what it was given, in what the heap has there: GRUB then
/// stops with "alloc magic is broken", or worse.
const ALLOCATES: [u8; 22] = [
    0x41, 0xff, 0xd7, // call *%r15: ZSTD_DStreamInSize
    0x48, 0x89, 0x45, 0xc8, // mov %rax, -0x38(%rbp)
    0x41, 0xff, 0xd5, // call *%r13: ZSTD_DStreamOutSize
    0x48, 0x8b, 0x4d, 0xc8, // mov -0x38(%rbp), %rcx
    0x48, 0x8d, 0x7c, 0x01, 0x08, // lea 8(%rcx,%rax), %rdi
    0x41, 0xff, 0xd4, // call *%r12: grub_zalloc
];
/// Where the reader's size is in these.
const SIZE_AT: usize = 18;
/// The reader's size, behind which its first buffer begins.
const READER_BYTES: u8 = 88;

/// A boot loader that runs as the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Loader {
    /// Debian's PvGrub2.
    Pvgrub2,
}

impl Loader {
    /// Its image, fetched if it is not in the cache.
    ///
    /// # Errors
    /// Those of fetching it.
    pub fn image(self) -> Result<PathBuf> {
        match self {
            Self::Pvgrub2 => pvgrub2(),
        }
    }

    /// Why it will not start this kernel, where the kernel's packing is the reason.
    #[must_use]
    pub fn obstacle(self, kernel: &[u8]) -> Option<String> {
        // Its file system layer unpacks the same as its loader of bzImages.
        let packed = bzimage::payload(kernel).ok().filter(|_| bzimage::is_bzimage(kernel));
        let packing = decompress::detect(packed.unwrap_or(kernel))?;
        match packing {
            Compression::Gzip | Compression::Xz | Compression::Lzo | Compression::Zstd => None,
            Compression::Lzma | Compression::Bzip2 | Compression::Lz4 => Some(format!(
                "PvGrub2 does not unpack kernels packed with {packing}; without --bootloader this one is taken from the disk and boots"
            )),
        }
    }
}

/// Debian's PvGrub2 for 64-bit guests.
fn pvgrub2() -> Result<PathBuf> {
    let _lock = cache::lock("kernels")?;
    let suite = Suite::open(SUITE)?;
    let version = suite.version(PACKAGE)?.with_context(|| format!("{SUITE} has no {PACKAGE}"))?;
    let dir = cache::dir()?.join("kernels").join(format!("pvgrub2_{version}"));
    cache::filled(&dir, |work| {
        suite.unpack(PACKAGE, work)?;
        correct_file(&work.join(IMAGE)).with_context(|| format!("{PACKAGE} {version}"))
    })?;
    Ok(dir.join(IMAGE))
}

fn correct_file(path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    let mut image = std::fs::read(path).with_context(name)?;
    if correct(&mut image) {
        std::fs::write(path, image).with_context(name)?;
    }
    Ok(())
}

/// Gives readers of zstd the room they take. Whether that was needed: code that is not exactly the
/// known one, or is there more than once, is left alone.
fn correct(image: &mut [u8]) -> bool {
    let windows = image.windows(ALLOCATES.len()).enumerate();
    let mut places = windows.filter(|(_, code)| *code == ALLOCATES).map(|(at, _)| at);
    let (Some(at), None) = (places.next(), places.next()) else { return false };
    image[at + SIZE_AT] = READER_BYTES;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_corrected_where_it_is_too_small() {
        let mut image = [&[0; 5], &ALLOCATES[..], &[1; 3]].concat();
        assert!(correct(&mut image));
        assert_eq!(image[5..][..SIZE_AT], ALLOCATES[..SIZE_AT]);
        assert_eq!(image[5 + SIZE_AT..], [88, 0x41, 0xff, 0xd4, 1, 1, 1]);
        // Corrected already, as by whoever made it; two that look alike.
        assert!(!correct(&mut image));
        let twice = ALLOCATES.repeat(2);
        let mut image = twice.clone();
        assert!(!correct(&mut image) && image == twice);
    }

    #[test]
    fn kernels_it_cannot_unpack_are_known() {
        let bzimage = |payload: &[u8]| {
            let mut file = vec![0; 1024];
            file[0x1f1] = 1;
            file[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
            file[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
            file.extend(payload);
            file.resize(1032, 0);
            file
        };
        let obstacle = |file: &[u8]| Loader::Pvgrub2.obstacle(file);
        let lz4 = obstacle(&bzimage(b"\x02\x21\x4c\x18")).unwrap();
        assert!(lz4.contains("with lz4"), "{lz4}");
        assert!(obstacle(&bzimage(b"\x5d\0\0")).is_some() && obstacle(b"BZh9").is_some());
        for packed in [&b"\x28\xb5\x2f\xfd"[..], b"\x1f\x8b", b"\xfd7zXZ\0", b"\x89LZO"] {
            assert_eq!(obstacle(&bzimage(packed)), None);
        }
        assert_eq!(obstacle(b"\x7fELF"), None);
        assert_eq!(obstacle(b""), None);
    }
}
