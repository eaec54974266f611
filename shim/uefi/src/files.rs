//! The volume the application was started from.

use alloc::vec::Vec;

use uefi::boot::{self, MemoryType, ScopedProtocol};
use uefi::proto::media::file::{Directory, File, FileAttribute, FileInfo, FileMode, RegularFile};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CString16, Status};

use crate::Failure;
use crate::memory::Pages;

/// The guest's kernel.
pub const KERNEL: &str = "\\pontoon\\kernel";
/// Its initrd.
pub const INITRD: &str = "\\pontoon\\initrd";
/// Its command line.
pub const CMDLINE: &str = "\\pontoon\\cmdline";
/// The shim's words.
pub const CONFIG: &str = "\\pontoon\\config";

/// Most bytes of a text.
const MAX_TEXT: usize = 4096;
/// Most bytes of a file: everything has to fit below 4 GiB.
const MAX_FILE: u64 = 2 << 30;
/// Bytes read at once: some firmware takes no more.
const PIECE: usize = 1 << 20;

/// A volume's files.
pub struct Volume {
    root: Directory,
    // Behind what was opened from it.
    _volume: ScopedProtocol<SimpleFileSystem>,
}

impl Volume {
    /// Opens it.
    pub fn open() -> Result<Self, Failure> {
        let failed =
            |e: uefi::Error| Failure::Firmware("the volume this was started from", e.status());
        let mut volume = boot::get_image_file_system(boot::image_handle()).map_err(failed)?;
        let root = volume.open_volume().map_err(failed)?;
        Ok(Self { root, _volume: volume })
    }

    /// Opens a file; with its size.
    fn file(&mut self, name: &'static str) -> Result<(RegularFile, u64), Failure> {
        let failed = |e: uefi::Error| Failure::File(name, e.status());
        let path = CString16::try_from(name).map_err(|_| Failure::File(name, Status::ABORTED))?;
        let mut handle =
            self.root.open(&path, FileMode::Read, FileAttribute::empty()).map_err(failed)?;
        let bytes = handle.get_boxed_info::<FileInfo>().map_err(failed)?.file_size();
        let file = handle.into_regular_file().ok_or(Failure::BadFile(name, "is a directory"))?;
        Ok((file, bytes))
    }

    /// Loads a file that must be there.
    pub fn load(&mut self, name: &'static str) -> Result<Pages, Failure> {
        let (mut file, bytes) = self.file(name)?;
        let len = usize::try_from(bytes).ok().filter(|_| (1..=MAX_FILE).contains(&bytes));
        let why = if bytes == 0 { "is empty" } else { "is too large" };
        let len = len.ok_or(Failure::BadFile(name, why))?;
        let mut pages = Pages::new(name, len, MemoryType::LOADER_DATA)?;
        read(&mut file, name, pages.bytes_mut())?;
        Ok(pages)
    }

    /// Loads a file that need not be there.
    pub fn load_optional(&mut self, name: &'static str) -> Result<Option<Pages>, Failure> {
        match self.load(name) {
            Ok(pages) => Ok(Some(pages)),
            Err(Failure::File(_, Status::NOT_FOUND)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads a short text; empty if there is none.
    pub fn text(&mut self, name: &'static str) -> Result<Vec<u8>, Failure> {
        let (mut file, bytes) = match self.file(name) {
            Ok(found) => found,
            Err(Failure::File(_, Status::NOT_FOUND)) => return Ok(Vec::new()),
            Err(failure) => return Err(failure),
        };
        let len = usize::try_from(bytes).ok().filter(|&len| len <= MAX_TEXT);
        let mut text = alloc::vec![0; len.ok_or(Failure::BadFile(name, "is too long"))?];
        read(&mut file, name, &mut text)?;
        Ok(text)
    }
}

fn read(file: &mut RegularFile, name: &'static str, into: &mut [u8]) -> Result<(), Failure> {
    for mut piece in into.chunks_mut(PIECE) {
        while !piece.is_empty() {
            let count = file.read(piece).map_err(|e| Failure::File(name, e.status()))?;
            if count == 0 {
                return Err(Failure::BadFile(name, "is shorter than its directory says"));
            }
            piece = piece.split_at_mut(count).1;
        }
    }
    Ok(())
}
