//! Raw files, block devices, and VHDs of fixed size, which are raw with a footer.

use crate::storvsp::io::{Aligned, Transfer, transfer};
use crate::storvsp::medium::Medium;
use crate::storvsp::options::{Direct, DiskOptions, Format};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use vm_memory::VolatileSlice;

const FOOTER_BYTES: u64 = 512;
const CONVERT: &str = "convert it to raw or qcow2";

/// Alignment that transfers around the page cache need.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    memory: usize,
}

/// A file whose bytes are the disk's.
#[derive(Debug)]
pub struct Raw {
    file: File,
    /// `Some`: around the page cache.
    direct: Option<Alignment>,
    read_only: bool,
    discard: bool,
}

impl Raw {
    /// Opens the file; with the bytes of the disk in it.
    ///
    /// # Errors
    /// One line that says why it cannot be used.
    pub fn open(options: &DiskOptions) -> Result<(Self, u64)> {
        let plain = open_file(&options.file, options.read_only, 0)?;
        let kind = plain.metadata()?.file_type();
        ensure!(kind.is_file() || kind.is_block_device(), "neither a file nor a block device");
        let size = data_size(&plain, options.format)?;
        let (file, direct) = choose_cache(plain, options)?;
        let discard = !options.read_only && can_discard(&file, kind.is_block_device(), size);
        Ok((Self { file, direct, read_only: options.read_only, discard }, size))
    }

    fn allocate(&self, flags: FallocateFlags, at: u64, bytes: u64) -> rustix::io::Result<()> {
        fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, at, bytes)
    }
}

impl Medium for Raw {
    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    fn can_discard(&self) -> bool {
        self.discard
    }

    fn in_place(
        &self,
        kind: Transfer,
        at: u64,
        pieces: &[VolatileSlice<'_>],
    ) -> Option<io::Result<()>> {
        let aligned = self.direct.is_none_or(|alignment| {
            let fits = |n: usize| n.is_multiple_of(alignment.memory);
            pieces.iter().all(|p| fits(p.ptr_guard().as_ptr() as usize) && fits(p.len()))
        });
        aligned.then(|| transfer(&self.file, kind, at, pieces))
    }

    fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, at)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, at)
    }

    fn zero(&self, at: u64, bytes: u64) -> io::Result<bool> {
        Ok(self.allocate(FallocateFlags::ZERO_RANGE, at, bytes).is_ok())
    }

    fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        match self.allocate(FallocateFlags::PUNCH_HOLE, at, bytes) {
            // What cannot be given back in these pieces stays.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

fn open_file(path: &Path, read_only: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// Bytes of the disk in a file.
fn data_size(file: &File, format: Format) -> Result<u64> {
    // Works for block devices, too.
    let mut end = file;
    let size = end.seek(SeekFrom::End(0))?;
    let mut start = [0u8; 8];
    end.seek(SeekFrom::Start(0))?;
    let read = end.read(&mut start)?;
    let start = start.get(..read).unwrap_or_default();
    let footer = vhd_footer(file, size);
    match format {
        Format::Raw | Format::Qcow2 => Ok(size),
        Format::Vhd => match footer {
            Some((2, bytes)) if bytes <= size - FOOTER_BYTES => Ok(bytes),
            Some((2, _)) => bail!("the VHD's footer names more bytes than the file has"),
            Some(_) => bail!("only VHDs of fixed size can be used; convert it to raw"),
            None => bail!("not a VHD"),
        },
        Format::Guess => {
            let (what, hint) = match start {
                [b'Q', b'F', b'I', 0xfb, ..] => ("qcow2", "give format=qcow2"),
                b"vhdxfile" => ("VHDX", CONVERT),
                b"conectix" => ("dynamic VHD", CONVERT),
                b"KDMV\x01\0\0\0" => ("VMDK", CONVERT),
                _ if footer.is_some() => ("VHD", "give format=vhd"),
                _ => return Ok(size),
            };
            bail!("looks like a {what} image: {hint}, or give format=raw if it is none")
        }
    }
}

/// Type and size a VHD's footer names.
fn vhd_footer(file: &File, size: u64) -> Option<(u32, u64)> {
    let mut footer = [0u8; FOOTER_BYTES as usize];
    file.read_exact_at(&mut footer, size.checked_sub(FOOTER_BYTES)?).ok()?;
    let bytes = u64::from_be_bytes(footer.get(48..56)?.try_into().ok()?);
    let kind = u32::from_be_bytes(footer.get(60..64)?.try_into().ok()?);
    footer.starts_with(b"conectix").then_some((kind, bytes))
}

/// Opens the file around the page cache where that is wanted and possible.
fn choose_cache(plain: File, options: &DiskOptions) -> Result<(File, Option<Alignment>)> {
    if options.direct == Direct::Off || options.volatile {
        return Ok((plain, None));
    }
    let tried = open_file(&options.file, options.read_only, libc::O_DIRECT)
        .and_then(|file| alignment(&file, options.sector_bytes).map(|a| (file, a)));
    match tried {
        Ok((file, alignment)) => Ok((file, Some(alignment))),
        Err(error) if options.direct == Direct::On => {
            Err(error).context("direct=on is not possible here")
        }
        Err(_) => Ok((plain, None)),
    }
}

/// Finds out what transfers must be aligned to by trying; an error where sectors
/// are too small for it.
fn alignment(file: &File, sector_bytes: u32) -> io::Result<Alignment> {
    let mut buffer = Aligned::zeroed(8192);
    let whole = buffer.as_mut_slice();
    let sector = usize::try_from(sector_bytes).map_err(io::Error::other)?;
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for memory in [512, 4096] {
        let Some(part) = whole.get_mut(memory..memory + sector) else { continue };
        match file.read_exact_at(part, 0) {
            Ok(()) => return Ok(Alignment { memory }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether holes can be punched. Behind its end nothing of a file is lost by
/// trying; block devices are taken at their word later.
fn can_discard(file: &File, block_device: bool, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    block_device || fallocate(file, flags, size.next_multiple_of(4096), 4096).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn short_files_have_no_footer() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"conectix").unwrap();
        assert_eq!(vhd_footer(&file, 8), None);
    }
}
