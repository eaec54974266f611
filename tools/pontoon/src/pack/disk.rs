//! Where disks come from, and how they get into a pack.

use crate::image::Boot;
use crate::image::bytes::{Image, ReadAt};
use crate::image::lvm::{Piece, Pieces};
use crate::import::xva;
use crate::qemu_img::{self, Disk, Format};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Where a disk's bytes are. None of these is written.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a file, or a block device.
    File(Disk),
    /// Parts of a raw file: a logical volume.
    Pieces {
        /// The file.
        image: PathBuf,
        /// The volume's name.
        name: String,
        /// Its parts.
        pieces: Vec<Piece>,
    },
    /// In an XVA archive.
    Chunks(xva::Chunks),
}

impl Source {
    /// For a plan.
    #[must_use]
    pub fn describe(&self) -> String {
        let size = self.size().map(|bytes| format!(", {}", megabytes(bytes))).unwrap_or_default();
        match self {
            Self::File(disk) => format!("{} ({}{size})", disk.path.display(), disk.format.name()),
            Self::Pieces { image, name, .. } => format!("{name} in {}{size}", image.display()),
            Self::Chunks(chunks) => {
                format!("{} in {}{size}", chunks.directory, chunks.archive.display())
            }
        }
    }

    /// Bytes of the disk.
    ///
    /// # Errors
    /// Its file cannot be read as what it is said to be.
    pub fn size(&self) -> Result<u64> {
        match self {
            Self::File(disk) => qemu_img::size(disk),
            Self::Pieces { pieces, .. } => Ok(pieces.iter().map(|piece| piece.len).sum()),
            Self::Chunks(chunks) => Ok(chunks.bytes),
        }
    }

    /// What the disk boots, if that can be told without unpacking it.
    ///
    /// # Errors
    /// It boots nothing.
    pub fn boot(&self, entry: Option<&str>) -> Result<Option<Boot>> {
        match self {
            Self::File(Disk { path, format: Format::Raw | Format::Qcow2 }) => {
                Boot::from_image(path, entry).map(Some)
            }
            Self::Pieces { image, name, pieces } => {
                let whole: Rc<dyn ReadAt> = Rc::new(Image::open(image)?);
                let volume = Rc::new(Pieces::new(whole, pieces.clone()));
                Boot::find(volume, entry).with_context(|| name.clone()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The disk as a file of its own, in `work` if it has to be unpacked. What is unpacked is
    /// known to be what was packed.
    ///
    /// # Errors
    /// It cannot be read, or there is no room.
    pub fn unpacked(&self, work: &Path, what: &str) -> Result<Disk> {
        let unpacked = Disk { path: work.join(format!("{what}.raw")), format: Format::Raw };
        match self {
            Self::File(disk) => return Ok(disk.clone()),
            Self::Pieces { image, pieces, .. } => {
                let whole: Rc<dyn ReadAt> = Rc::new(Image::open(image)?);
                let volume = Pieces::new(whole, pieces.clone());
                copy(&volume, &unpacked.path, what)?;
                same(&volume, &Image::open(&unpacked.path)?, what)?;
            }
            Self::Chunks(chunks) => chunks.unpack(&unpacked.path, what)?,
        }
        Ok(unpacked)
    }
}

/// A size as people say it.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x2_8000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Writes all of `from` into a new file, but for what is zero.
fn copy(from: &dyn ReadAt, to: &Path, what: &str) -> Result<()> {
    let name = || to.display().to_string();
    let file = File::create_new(to).with_context(name)?;
    file.set_len(from.len()).with_context(name)?;
    let bar = qemu_img::bar(from.len(), &format!("unpacking {what}"))?;
    each_chunk(from, |at, data| {
        bar.set_position(at);
        if data.iter().any(|&byte| byte != 0) {
            file.write_all_at(data, at).with_context(name)?;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(())
}

fn same(a: &dyn ReadAt, b: &dyn ReadAt, what: &str) -> Result<()> {
    ensure!(a.len() == b.len(), "{what}: the copy has another size");
    let mut other = vec![0; CHUNK];
    each_chunk(a, |at, data| {
        let other = other.get_mut(..data.len()).context("a chunk")?;
        b.read_at(at, other)?;
        ensure!(data == other, "{what}: the copy differs in the MiB at {at}");
        Ok(())
    })
}

fn each_chunk(from: &dyn ReadAt, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut data = vec![0; CHUNK];
    let mut at = 0;
    while at < from.len() {
        let len = usize::try_from((from.len() - at).min(CHUNK as u64))?;
        let part = data.get_mut(..len).context("a chunk")?;
        from.read_at(at, part)?;
        each(at, part)?;
        at += len as u64;
    }
    Ok(())
}

/// Puts the disk into a pack as the file `to`: a VHDX, or an ISO image as it is. Afterwards it
/// has been compared with its source.
///
/// # Errors
/// It cannot be read or written.
pub fn convert(from: &Disk, to: &Path, cdrom: bool, what: &str) -> Result<()> {
    const SECTOR: u64 = 512;
    let bytes = qemu_img::size(from)?;
    ensure!(bytes > 0, "{what}: {} is empty", from.path.display());
    if cdrom {
        ensure!(from.format == Format::Raw, "{what}: a CD-ROM image that is not raw");
        fs::copy(&from.path, to).with_context(|| to.display().to_string())?;
        let to = Disk { path: to.to_owned(), format: Format::Raw };
        return qemu_img::compare(from, &to, what);
    }
    ensure!(
        bytes.is_multiple_of(SECTOR),
        "{what}: {} has {bytes} bytes, which is no whole number of sectors",
        from.path.display()
    );
    let to = Disk { path: to.to_owned(), format: Format::Vhdx };
    qemu_img::convert(from, &to, &["subformat=dynamic"], what)?;
    ensure!(qemu_img::size(&to)? == bytes, "{what}: the VHDX has another size");
    qemu_img::check(&to)
}
