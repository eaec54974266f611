//! A disk in a file or block device.

use crate::storvsp::cache::WriteCache;
use crate::storvsp::fault::{Fault, Kind, Op};
use crate::storvsp::io::{Aligned, Transfer, transfer};
use crate::storvsp::options::{Direct, DiskOptions, Format};
use anyhow::{Context, Result, bail, ensure};
use hv_abi::Guid;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use vm_memory::VolatileSlice;

/// Most bytes written at once where a block is repeated.
const REPEAT_BYTES: u64 = 256 << 10;
const FOOTER_BYTES: u64 = 512;

/// Alignment that transfers around the page cache need.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    memory: usize,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// `Some`: around the page cache.
    direct: Option<Alignment>,
    /// What was not flushed is to be lost at a kill.
    cache: Option<WriteCache>,
    sectors: u64,
    sector_bytes: u32,
    read_only: bool,
    dvd: bool,
    /// Holes can be punched.
    discard: bool,
    id: Guid,
    faults: Vec<Fault>,
}

impl Disk {
    /// Opens the file; `place` is where the disk will be.
    ///
    /// # Errors
    /// One line that says why it cannot be used.
    pub fn open(options: &DiskOptions, place: (u32, u8), faults: &[Fault]) -> Result<Self> {
        let name = options.file.display().to_string();
        Self::open_named(options, place, faults).with_context(|| format!("disk {name}"))
    }

    fn open_named(options: &DiskOptions, place: (u32, u8), faults: &[Fault]) -> Result<Self> {
        let plain = open_file(&options.file, options.read_only, 0)?;
        let kind = plain.metadata()?.file_type();
        ensure!(kind.is_file() || kind.is_block_device(), "neither a file nor a block device");
        let size = data_size(&plain, options.format)?;
        let sector = u64::from(options.sector_bytes);
        ensure!(size != 0, "it is empty");
        ensure!(size.is_multiple_of(sector), "its size is not a multiple of {sector} bytes");
        let (file, direct) = choose_cache(plain, options)?;
        let discard = !options.read_only && can_discard(&file, kind.is_block_device(), size);
        let id = options.id.unwrap_or_else(|| identity(&options.file, place));
        let here = |f: &&Fault| f.scsi.is_none_or(|at| at == place);
        Ok(Self {
            file,
            direct,
            cache: options.volatile.then(|| WriteCache::new(options.sector_bytes)),
            sectors: size / sector,
            sector_bytes: options.sector_bytes,
            read_only: options.read_only,
            dvd: options.dvd,
            discard,
            id,
            faults: faults.iter().filter(here).cloned().collect(),
        })
    }

    /// Number of sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Logical sector size.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Whether the guest must not write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a DVD.
    #[must_use]
    pub fn is_dvd(&self) -> bool {
        self.dvd
    }

    /// Whether space can be given back.
    #[must_use]
    pub fn can_unmap(&self) -> bool {
        self.discard
    }

    /// Whether transfers go around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Identity.
    #[must_use]
    pub fn id(&self) -> Guid {
        self.id
    }

    /// Lets faults happen; how many of `count` sectors are to be transferred.
    fn strike(&self, op: Op, first: u64, count: u64) -> io::Result<u64> {
        let mut transferred = count;
        for fault in &self.faults {
            match fault.strikes(op, first, count) {
                Some(Kind::Error) => return Err(io::Error::other("fault on purpose")),
                Some(Kind::Delay(time)) => thread::sleep(time),
                Some(Kind::Short) => transferred = count / 2,
                None => {}
            }
        }
        Ok(transferred)
    }

    /// Reads or writes `count` sectors from `first`, which the caller has checked;
    /// `pieces` gives that many sectors of memory. How many sectors it were.
    ///
    /// # Errors
    /// The system's, or a fault on purpose.
    pub fn transfer<'a>(
        &self,
        kind: Transfer,
        first: u64,
        count: u64,
        pieces: impl FnOnce(u64) -> Option<Vec<VolatileSlice<'a>>>,
    ) -> io::Result<u64> {
        let op = if kind == Transfer::Read { Op::Read } else { Op::Write };
        let count = self.strike(op, first, count)?;
        let (at, bytes) = (self.offset(first), self.offset(count));
        let pieces = pieces(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let aligned = self.direct.is_none_or(|alignment| {
            let fits = |n: usize| n.is_multiple_of(alignment.memory);
            pieces.iter().all(|p| fits(p.ptr_guard().as_ptr() as usize) && fits(p.len()))
        });
        if aligned && self.cache.is_none() {
            transfer(&self.file, kind, at, &pieces)?;
        } else {
            self.bounce(kind, first, bytes, &pieces)?;
        }
        Ok(count)
    }

    /// Transfers by way of a buffer that is aligned.
    fn bounce(
        &self,
        kind: Transfer,
        first: u64,
        bytes: u64,
        pieces: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        let mut buffer = Aligned::zeroed(usize::try_from(bytes).map_err(io::Error::other)?);
        let whole = buffer.as_mut_slice();
        let each = |whole: &mut [u8], f: &dyn Fn(&mut [u8], &VolatileSlice<'_>)| {
            let mut done = 0;
            for piece in pieces {
                if let Some(part) = whole.get_mut(done..done + piece.len()) {
                    f(part, piece);
                }
                done += piece.len();
            }
        };
        if kind == Transfer::Write {
            each(whole, &|part, piece| {
                piece.copy_to(part);
            });
        }
        match (&self.cache, kind) {
            (Some(cache), Transfer::Read) => cache.read(&self.file, first, whole)?,
            (Some(cache), Transfer::Write) => cache.write(&self.file, first, whole)?,
            (None, _) => {
                let piece = VolatileSlice::from(&mut *whole);
                transfer(&self.file, kind, self.offset(first), &[piece])?;
            }
        }
        if kind == Transfer::Read {
            each(whole, &|part, piece| piece.copy_from(part));
        }
        Ok(())
    }

    /// Writes one block over and over.
    ///
    /// # Errors
    /// The system's, or a fault on purpose.
    pub fn write_same(&self, first: u64, count: u64, block: &[u8]) -> io::Result<()> {
        let count = self.strike(Op::Write, first, count)?;
        self.write_out(first, count)?;
        let (at, bytes) = (self.offset(first), self.offset(count));
        if block.iter().all(|b| *b == 0)
            && fallocate(
                &self.file,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                at,
                bytes,
            )
            .is_ok()
        {
            return Ok(());
        }
        let chunk = bytes.min(REPEAT_BYTES);
        let mut buffer = Aligned::zeroed(usize::try_from(chunk).map_err(io::Error::other)?);
        let whole = buffer.as_mut_slice();
        for part in whole.chunks_exact_mut(block.len().max(1)) {
            part.copy_from_slice(block);
        }
        let mut done = 0;
        while done < bytes {
            let now = usize::try_from(chunk.min(bytes - done)).map_err(io::Error::other)?;
            let part = whole.get_mut(..now).unwrap_or_default();
            transfer(&self.file, Transfer::Write, at + done, &[VolatileSlice::from(part)])?;
            done += now as u64;
        }
        Ok(())
    }

    /// Gives the space of sectors back; they read as zeros where it works, and are
    /// left alone where it does not.
    ///
    /// # Errors
    /// The system's, or a fault on purpose.
    pub fn unmap(&self, first: u64, count: u64) -> io::Result<()> {
        let count = self.strike(Op::Unmap, first, count)?;
        if count == 0 || !self.discard {
            return Ok(());
        }
        self.write_out(first, count)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, self.offset(first), self.offset(count)) {
            // What cannot be given back in these pieces stays.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All that was written is on the medium.
    ///
    /// # Errors
    /// The system's, or a fault on purpose.
    pub fn flush(&self) -> io::Result<()> {
        self.strike(Op::Flush, 0, 0)?;
        self.settle()
    }

    /// As [`Self::flush`], for the end of the machine.
    ///
    /// # Errors
    /// The system's.
    pub fn settle(&self) -> io::Result<()> {
        self.write_out(0, u64::MAX)?;
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// The file has what the cache had.
    fn write_out(&self, first: u64, count: u64) -> io::Result<()> {
        let sectors = first..first.saturating_add(count);
        self.cache.as_ref().map_or(Ok(()), |cache| cache.write_out(&self.file, sectors))
    }

    fn offset(&self, sectors: u64) -> u64 {
        sectors * u64::from(self.sector_bytes)
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
        Format::Raw => Ok(size),
        Format::Vhd => match footer {
            Some((2, bytes)) if bytes <= size - FOOTER_BYTES => Ok(bytes),
            Some((2, _)) => bail!("the VHD's footer names more bytes than the file has"),
            Some(_) => bail!("only VHDs of fixed size can be used; convert it to raw"),
            None => bail!("not a VHD"),
        },
        Format::Guess => {
            let what = match start {
                [b'Q', b'F', b'I', 0xfb, ..] => "qcow2",
                b"vhdxfile" => "VHDX",
                b"conectix" => "dynamic VHD",
                b"KDMV\x01\0\0\0" => "VMDK",
                _ if footer.is_some() => "VHD",
                _ => return Ok(size),
            };
            let hint = if what == "VHD" { "give format=vhd" } else { "convert it to raw" };
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

/// An identity that is the same for the same file at the same place (FNV-1a),
/// formed as a random GUID.
fn identity(path: &Path, place: (u32, u8)) -> Guid {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let text = format!("{}\0{}\0{}", path.display(), place.0, place.1);
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
    });
    let mut bytes = hash.to_le_bytes();
    let [.., version, variant, _, _, _, _, _, _, _] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Guid(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(text: &str) -> Result<Disk> {
        Disk::open(&text.parse()?, (0, 0), &[])
    }

    fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> String {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    #[test]
    fn sizes_and_formats() {
        let dir = tempfile::tempdir().unwrap();
        let raw = file(&dir, "raw", &[0; 8192]);
        assert_eq!(open(&raw).unwrap().sectors(), 16);
        assert_eq!(open(&format!("{raw},sector=4096")).unwrap().sectors(), 2);
        let dvd = open(&format!("{raw},dvd")).unwrap();
        assert_eq!((dvd.sectors(), dvd.is_read_only(), dvd.can_unmap()), (4, true, false));
        for (name, bytes, what) in [
            ("odd", &[0; 700][..], "multiple"),
            ("empty", &[], "empty"),
            ("q", b"QFI\xfb0000", "qcow2"),
            ("x", b"vhdxfile", "VHDX"),
        ] {
            let error = format!("{:#}", open(&file(&dir, name, bytes)).unwrap_err());
            assert!(error.contains(what) && !error.contains('\n'), "{error}");
        }
        assert!(open("/nonexistent").is_err());
        assert!(open(&dir.path().display().to_string()).is_err());
        let mut vhd = vec![0u8; 4096 + 512];
        vhd[4096..4104].copy_from_slice(b"conectix");
        vhd[4096 + 48..4096 + 56].copy_from_slice(&4096u64.to_be_bytes());
        vhd[4096 + 63] = 2;
        let path = file(&dir, "vhd", &vhd);
        assert!(format!("{:#}", open(&path).unwrap_err()).contains("format=vhd"));
        assert_eq!(open(&format!("{path},format=vhd")).unwrap().sectors(), 8);
        assert_eq!(open(&format!("{path},format=raw")).unwrap().sectors(), 9);
        assert!(open(&format!("{raw},format=vhd")).is_err());
    }

    #[test]
    fn transfers_with_and_without_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        for direct in ["", ",direct=off", ",cache=volatile"] {
            let path = file(&dir, "disk", &vec![0; 1 << 16]);
            let disk = open(&format!("{path}{direct}")).unwrap();
            // An odd address, so that direct transfers need the buffer.
            let mut data: Vec<u8> = (0..3 * 512 + 1).map(|n| n as u8).collect();
            let expected = data[1..].to_vec();
            let piece = VolatileSlice::from(&mut data[1..]);
            let done = disk.transfer(Transfer::Write, 5, 3, |n| {
                assert_eq!(n, 1536);
                Some(vec![piece])
            });
            assert_eq!(done.unwrap(), 3);
            let mut back = vec![0u8; 1536];
            let piece = VolatileSlice::from(&mut back[..]);
            disk.transfer(Transfer::Read, 5, 3, |_| Some(vec![piece])).unwrap();
            assert_eq!(back, expected);
            disk.write_same(8, 16, &[7; 512]).unwrap();
            disk.flush().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes[5 * 512..8 * 512], expected);
            assert!(bytes[8 * 512..24 * 512].iter().all(|b| *b == 7));
            disk.write_same(8, 16, &[0; 512]).unwrap();
            disk.unmap(0, 8).unwrap();
            disk.settle().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes[8 * 512..24 * 512].iter().all(|b| *b == 0));
            if disk.can_unmap() {
                assert!(bytes[..4096].iter().all(|b| *b == 0));
            }
            assert_eq!(bytes.len(), 1 << 16);
        }
    }

    #[test]
    fn faults_strike() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "disk", &[1; 8192]);
        let fault: Fault = "sectors=3,error,times=1".parse().unwrap();
        let elsewhere: Fault = "scsi=1:1,error".parse().unwrap();
        let disk = Disk::open(&path.parse().unwrap(), (0, 0), &[fault, elsewhere]).unwrap();
        let mut back = [0u8; 512];
        let piece = VolatileSlice::from(&mut back[..]);
        let read = |at| disk.transfer(Transfer::Read, at, 1, |_| Some(vec![piece]));
        assert!(read(2).is_ok() && read(3).is_err() && read(3).is_ok());
    }

    #[test]
    fn identity_depends_on_file_and_place() {
        let (a, b) = (identity(Path::new("/x"), (0, 0)), identity(Path::new("/x"), (0, 1)));
        assert_ne!(a, b);
        assert_eq!(a, identity(Path::new("/x"), (0, 0)));
        assert_eq!((a.0[7] >> 4, a.0[8] >> 6), (4, 2));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"conectix").unwrap();
        assert_eq!(vhd_footer(&file, 8), None);
    }
}
