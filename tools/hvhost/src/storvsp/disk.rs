//! A disk in a file or block device.

use crate::pace::Pace;
use crate::storvsp::cache::WriteCache;
use crate::storvsp::fault::{Fault, Kind, Op};
use crate::storvsp::io::{Aligned, Transfer};
use crate::storvsp::medium::Medium;
use crate::storvsp::options::{DiskOptions, Format, Place};
use crate::storvsp::qcow2::Qcow2;
use crate::storvsp::raw::Raw;
use anyhow::{Context, Result, ensure};
use hv_abi::Guid;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::VolatileSlice;

/// Most bytes written at once where a block is repeated.
const REPEAT_BYTES: u64 = 256 << 10;
/// What counts as one I/O of a disk that takes its time (`MaximumIOPS`).
const PACE_BYTES: u64 = 8 << 10;

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    medium: Box<dyn Medium>,
    /// What was not flushed is to be lost at a kill.
    cache: Option<WriteCache>,
    sectors: u64,
    sector_bytes: u32,
    read_only: bool,
    dvd: bool,
    id: Guid,
    faults: Vec<Fault>,
    pace: Option<Pace>,
}

impl Disk {
    /// Opens the file; `place` is where the disk will be.
    ///
    /// # Errors
    /// One line that says why it cannot be used.
    pub fn open(options: &DiskOptions, place: impl Into<Place>, faults: &[Fault]) -> Result<Self> {
        let name = options.file.display().to_string();
        Self::open_named(options, place.into(), faults).with_context(|| format!("disk {name}"))
    }

    fn open_named(options: &DiskOptions, place: Place, faults: &[Fault]) -> Result<Self> {
        let (medium, size): (Box<dyn Medium>, u64) = if options.format == Format::Qcow2 {
            let (image, size) = Qcow2::open(options)?;
            (Box::new(image), size)
        } else {
            let (raw, size) = Raw::open(options)?;
            (Box::new(raw), size)
        };
        let sector = u64::from(options.sector_bytes);
        ensure!(size != 0, "it is empty");
        ensure!(size.is_multiple_of(sector), "its size is not a multiple of {sector} bytes");
        let id = options.id.unwrap_or_else(|| identity(&options.file, place));
        let here = |f: &&Fault| f.scsi.is_none_or(|at| Place::from(at) == place);
        Ok(Self {
            medium,
            cache: options.volatile.then(|| WriteCache::new(options.sector_bytes)),
            sectors: size / sector,
            sector_bytes: options.sector_bytes,
            read_only: options.read_only,
            dvd: options.dvd,
            id,
            faults: faults.iter().filter(here).cloned().collect(),
            pace: options.iops.map(|iops| Pace::new(iops, Duration::ZERO)),
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
        !self.read_only && self.medium.can_discard()
    }

    /// Whether transfers go around the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.medium.is_direct()
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
        let begin = Instant::now();
        let count = self.strike(op, first, count)?;
        let (at, bytes) = (self.offset(first), self.offset(count));
        let pieces = pieces(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let in_place = match self.cache {
            None => self.medium.in_place(kind, at, &pieces),
            Some(_) => None,
        };
        in_place.unwrap_or_else(|| self.bounce(kind, first, bytes, &pieces))?;
        if let Some(pace) = &self.pace {
            pace.wait(begin, bytes.div_ceil(PACE_BYTES));
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
            (Some(cache), Transfer::Read) => cache.read(&*self.medium, first, whole)?,
            (Some(cache), Transfer::Write) => cache.write(&*self.medium, first, whole)?,
            (None, Transfer::Read) => self.medium.read(self.offset(first), whole)?,
            (None, Transfer::Write) => self.medium.write(self.offset(first), whole)?,
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
        if block.iter().all(|b| *b == 0) && self.medium.zero(at, bytes)? {
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
            self.medium.write(at + done, whole.get(..now).unwrap_or_default())?;
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
        if count == 0 || !self.can_unmap() {
            return Ok(());
        }
        self.write_out(first, count)?;
        self.medium.discard(self.offset(first), self.offset(count))
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
        self.medium.sync()
    }

    /// The file has what the cache had.
    fn write_out(&self, first: u64, count: u64) -> io::Result<()> {
        let sectors = first..first.saturating_add(count);
        self.cache.as_ref().map_or(Ok(()), |cache| cache.write_out(&*self.medium, sectors))
    }

    fn offset(&self, sectors: u64) -> u64 {
        sectors * u64::from(self.sector_bytes)
    }
}

/// An identity that is the same for the same file at the same place (FNV-1a),
/// formed as a random GUID.
fn identity(path: &Path, place: Place) -> Guid {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let place = match place {
        Place::Ide(controller, device) => format!("ide{controller}\0{device}"),
        Place::Scsi(controller, lun) => format!("{controller}\0{lun}"),
    };
    let text = format!("{}\0{place}", path.display());
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
            ("q", b"QFI\xfb0000", "format=qcow2"),
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
    fn around_the_page_cache_where_that_works() {
        // /tmp may be in memory, where it may not work.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let raw = file(&dir, "raw", &vec![0; 1 << 16]);
        let image = dir.path().join("image").display().to_string() + ",format=qcow2";
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", image.split(',').next().unwrap(), "1M"])
            .status();
        assert!(made.unwrap().success());
        for disk in [raw, image] {
            let direct = |words: &str| open(&format!("{disk}{words}")).map(|d| d.is_direct());
            let possible = direct(",direct=on").unwrap_or(false);
            assert_eq!(direct("").unwrap(), possible, "{disk}");
            assert!(!direct(",direct=off").unwrap() && !direct(",cache=volatile").unwrap());
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
        let of = |place| identity(Path::new("/x"), place);
        let a = of(Place::Scsi(0, 0));
        assert!(a != of(Place::Scsi(0, 1)) && a != of(Place::Ide(0, 0)));
        assert_eq!(a, of(Place::Scsi(0, 0)));
        assert_eq!((a.0[7] >> 4, a.0[8] >> 6), (4, 2));
    }
}
