//! qcow2 images, by the `imago` crate.
//!
//! What is not flushed may be in imago's memory only, as on a disk with a write cache;
//! [`Medium::sync`] writes it out and has the host's own disk confirm it.

use crate::storvsp::io::Transfer;
use crate::storvsp::medium::Medium;
use crate::storvsp::options::{Direct, DiskOptions};
use anyhow::{Context, Result, bail, ensure};
use imago::file::File as StorageFile;
use imago::qcow2::Qcow2 as Driver;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, Storage,
    StorageOpenOptions,
};
use std::fmt::{self, Debug, Formatter};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use vm_memory::VolatileSlice;

/// An open image.
pub struct Qcow2 {
    /// Reads and writes go on at once; discarding takes mappings away under them.
    image: RwLock<FormatAccess<StorageFile>>,
    direct: bool,
    read_only: bool,
    discard: bool,
}

impl Qcow2 {
    /// Opens the image; with the bytes of the disk in it.
    ///
    /// # Errors
    /// One line that says why it cannot be used.
    pub fn open(options: &DiskOptions) -> Result<(Self, u64)> {
        let header = Header::read(&options.file)?;
        header.can_be_used(options)?;
        let (image, direct) = match options.direct {
            Direct::On => (open(options, true).context("with direct=on")?, true),
            Direct::Auto if !options.volatile => match open(options, true) {
                Ok(image) => (image, true),
                Err(_) => (open(options, false)?, false),
            },
            Direct::Auto | Direct::Off => (open(options, false)?, false),
        };
        let size = image.size();
        let me = Self {
            image: RwLock::new(image),
            direct,
            read_only: options.read_only,
            // Older images have no mark for clusters of zeros.
            discard: !options.read_only && header.version >= 3,
        };
        Ok((me, size))
    }

    fn image(&self) -> RwLockReadGuard<'_, FormatAccess<StorageFile>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Qcow2 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.image().inner())
    }
}

fn open(options: &DiskOptions, direct: bool) -> io::Result<FormatAccess<StorageFile>> {
    let how = StorageOpenOptions::new().direct(direct);
    // Opened here: what the image opens goes by the gate.
    let file = how.clone().filename(&options.file).write(!options.read_only);
    let image = Driver::<StorageFile>::builder(StorageFile::open(file)?)
        .write(!options.read_only)
        .storage_open_options(how);
    let image = if options.backing {
        image.open(PermissiveImplicitOpenGate::default())
    } else {
        image.open(DenyImplicitOpenGate::default())
    };
    Ok(FormatAccess::new(image?))
}

impl Medium for Qcow2 {
    fn is_direct(&self) -> bool {
        self.direct
    }

    fn can_discard(&self) -> bool {
        self.discard
    }

    /// Never: imago takes references, and the guest may change its memory meanwhile.
    fn in_place(&self, _: Transfer, _: u64, _: &[VolatileSlice<'_>]) -> Option<io::Result<()>> {
        None
    }

    fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.image().read(data, at)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.image().write(data, at)
    }

    fn zero(&self, at: u64, bytes: u64) -> io::Result<bool> {
        match self.image().write_zeroes(at, bytes) {
            Ok(()) => Ok(true),
            // Version 2.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        image.discard_to_zero(at, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let image = self.image();
        image.flush()?;
        image.sync()
    }
}

/// What is looked at before imago is asked (`docs/interop/qcow2.rst` of QEMU).
#[derive(Debug)]
struct Header {
    version: u32,
    encrypted: bool,
    backing: bool,
    snapshots: u32,
}

impl Header {
    fn read(path: &Path) -> Result<Self> {
        let mut bytes = [0u8; 72];
        let file = File::open(path)?;
        file.read_exact_at(&mut bytes, 0).context("it is too short for qcow2")?;
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            word.map_or(0, u32::from_be_bytes)
        };
        ensure!(bytes.starts_with(b"QFI\xfb"), "it is no qcow2 image");
        Ok(Self {
            version: word(4),
            backing: (word(8), word(12)) != (0, 0),
            encrypted: word(32) != 0,
            snapshots: word(60),
        })
    }

    fn can_be_used(&self, options: &DiskOptions) -> Result<()> {
        if self.encrypted {
            bail!("it is encrypted");
        }
        if self.backing && !options.backing {
            bail!("it has a backing file, which is opened only with backing=on");
        }
        if self.snapshots != 0 && !options.read_only {
            bail!("it has {} internal snapshots: delete them, or give ro", self.snapshots);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
