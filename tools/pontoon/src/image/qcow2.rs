//! qcow2 images, by the `imago` crate, for reading only.

use super::bytes::ReadAt;
use anyhow::{Context, Result};
use imago::file::File as StorageFile;
use imago::qcow2::Qcow2 as Driver;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Whether the file at `path` begins as qcow2 images do.
pub fn is_one(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, 0).is_ok())
        && magic == *b"QFI\xfb"
}

/// An open image. Files it names, such as a backing file, are not opened.
pub struct Qcow2 {
    image: FormatAccess<StorageFile>,
}

impl Qcow2 {
    /// Opens `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = StorageFile::open(StorageOpenOptions::new().filename(path))?;
        let image = Driver::<StorageFile>::builder(file).open(DenyImplicitOpenGate::default());
        let image = image.context("as a qcow2 image")?;
        Ok(Self { image: FormatAccess::new(image) })
    }
}

impl ReadAt for Qcow2 {
    fn len(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        // imago reads zeros behind the end.
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.image.read(to, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn qemu_img(args: &[&str]) {
        let done = Command::new("qemu-img").args(args).output();
        let done = done.expect("qemu-img is missing: cargo xtask setup");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    #[test]
    fn images_are_read_and_named_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (raw, image, packed, overlay) = (at("raw"), at("image"), at("packed"), at("overlay"));
        let data: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 8) as u8).collect();
        std::fs::write(&raw, &data).unwrap();
        assert!(!is_one(Path::new(&raw)));
        qemu_img(&["convert", "-O", "qcow2", &raw, &image]);
        qemu_img(&["convert", "-c", "-O", "qcow2", &raw, &packed]);
        for path in [&image, &packed] {
            assert!(is_one(Path::new(path)));
            let image = Qcow2::open(Path::new(path)).unwrap();
            let mut all = vec![0; data.len()];
            assert_eq!(image.len(), data.len() as u64);
            image.read_at(0, &mut all).unwrap();
            assert!(all == data);
            let mut two = [0; 2];
            image.read_at(image.len() - 2, &mut two).unwrap();
            assert_eq!(two, [0xff; 2]);
            assert!(image.read_at(image.len() - 1, &mut two).is_err());
            assert!(image.read_at(u64::MAX, &mut two).is_err());
        }
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &raw, &overlay]);
        assert!(Qcow2::open(Path::new(&overlay)).is_err());
    }
}
