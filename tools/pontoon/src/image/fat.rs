//! FAT12, FAT16 and FAT32 with long names, as /boot and EFI partitions have it.
//!
//! Layout: boot sector with the parameter block, the allocation tables, the root
//! directory (a cluster chain in FAT32), clusters from number 2 on (Microsoft's
//! "FAT: General Overview of On-Disk Format", 1.03).

use super::bytes::{ReadAt, le16, le32, peek};
use super::fs::{FileSystem, Kind, check_len};
use anyhow::{Context, Result, bail, ensure};
use std::rc::Rc;

/// Bytes of a directory entry.
const ENTRY: usize = 32;
/// Directories have at most 65536 entries.
const MAX_DIR_BYTES: u64 = 65536 * ENTRY as u64;
/// Attributes of an entry: a volume's label, a directory, a piece of a long name.
const ATTR_LABEL: u8 = 0x08;
const ATTR_DIR: u8 = 0x10;
const ATTR_LONG: u8 = 0x0f;

/// Widths of the table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// A FAT file system.
pub struct Fat {
    part: Rc<dyn ReadAt>,
    width: Width,
    table_at: u64,
    root_at: u64,
    root_bytes: u64,
    root_cluster: u32,
    data_at: u64,
    cluster_bytes: u64,
    clusters: u32,
    serial: u32,
}

/// A name in a directory.
struct Entry {
    name: String,
    short: String,
    attributes: u8,
    cluster: u32,
    bytes: u32,
}

impl Fat {
    /// Opens the file system in `part`.
    pub fn open(part: Rc<dyn ReadAt>) -> Result<Self> {
        let boot: [u8; 512] = peek(&*part, 0).context("FAT, but its boot sector cannot be read")?;
        let sector = u64::from(le16(&boot, 11));
        let cluster_bytes = sector * u64::from(boot[13]);
        let fat16_sectors = u64::from(le16(&boot, 22));
        let fat_sectors = if fat16_sectors == 0 { le32(&boot, 36).into() } else { fat16_sectors };
        let total = u64::from(le16(&boot, 19)).max(le32(&boot, 32).into());
        let table_at = u64::from(le16(&boot, 14)) * sector;
        let root_at = table_at + u64::from(boot[16]) * fat_sectors * sector;
        let root_bytes = u64::from(le16(&boot, 17)) * ENTRY as u64;
        ensure!(sector != 0 && cluster_bytes != 0, "FAT, but without a cluster size");
        let data_at = root_at + root_bytes.next_multiple_of(sector);
        let clusters = (total * sector).checked_sub(data_at).map(|bytes| bytes / cluster_bytes);
        let clusters = clusters.and_then(|n| u32::try_from(n).ok());
        let clusters = clusters.filter(|&n| n < 0x0fff_fff0).context("FAT, but of odd sizes")?;
        let width = match clusters {
            _ if fat16_sectors == 0 => Width::Bits32,
            ..4085 => Width::Bits12,
            _ => Width::Bits16,
        };
        let serial_at = if width == Width::Bits32 { 67 } else { 39 };
        Ok(Self {
            part,
            width,
            table_at,
            root_at,
            root_bytes,
            root_cluster: le32(&boot, 44),
            data_at,
            cluster_bytes,
            clusters,
            serial: le32(&boot, serial_at),
        })
    }

    /// The cluster behind `cluster` in its chain; `None` at the end.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let entry = |at: u64, bytes: usize| -> Result<u32> {
            let mut word = [0; 4];
            let to = word.get_mut(..bytes).unwrap_or_default();
            self.part.read_at(self.table_at + at, to).context("FAT: the table is cut short")?;
            Ok(u32::from_le_bytes(word))
        };
        let index = u64::from(cluster);
        let next = match self.width {
            Width::Bits12 => (entry(index + index / 2, 2)? >> (4 * (cluster & 1))) & 0xfff,
            Width::Bits16 => entry(index * 2, 2)?,
            Width::Bits32 => entry(index * 4, 4)? & 0x0fff_ffff,
        };
        Ok(self.has(next).then_some(next))
    }

    fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster - 2 < self.clusters
    }

    /// `bytes` bytes of the chain that begins at `cluster`; all of it, up to the
    /// largest directory, if there is no number.
    fn chain(&self, cluster: u32, bytes: Option<usize>) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let wanted = bytes.unwrap_or(usize::try_from(MAX_DIR_BYTES)?);
        let mut at = Some(cluster).filter(|&c| self.has(c));
        // A chain that bites its tail ends where as much was read as is wanted.
        while let Some(cluster) = at.filter(|_| data.len() < wanted) {
            let begin = data.len();
            let count = usize::try_from(self.cluster_bytes)?.min(wanted - begin);
            data.resize(begin + count, 0);
            let from = self.data_at + u64::from(cluster - 2) * self.cluster_bytes;
            let to = data.get_mut(begin..).unwrap_or_default();
            self.part.read_at(from, to).context("FAT: a cluster lies behind the end")?;
            at = self.next(cluster)?;
        }
        ensure!(bytes.is_none_or(|b| b == data.len()), "FAT: a file ends before its length");
        Ok(data)
    }

    fn root(&self) -> Result<Vec<u8>> {
        if self.width == Width::Bits32 {
            return self.chain(self.root_cluster, None);
        }
        let mut data = vec![0; usize::try_from(self.root_bytes)?];
        self.part.read_at(self.root_at, &mut data).context("FAT: the root is cut short")?;
        Ok(data)
    }

    /// The entry `path` names; `None` for the root directory itself.
    fn find(&self, path: &str) -> Result<Option<Option<Entry>>> {
        let mut found = None;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let directory = match &found {
                None => self.root()?,
                Some(Entry { attributes, cluster, .. }) if attributes & ATTR_DIR != 0 => {
                    self.chain(*cluster, None)?
                }
                Some(_) => return Ok(None),
            };
            let same = |other: &str| other.to_lowercase() == name.to_lowercase();
            match entries(&directory).into_iter().find(|e| same(&e.name) || same(&e.short)) {
                Some(entry) => found = Some(entry),
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}

/// The files and directories of a directory's bytes.
fn entries(directory: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long = LongName::default();
    for raw in directory.chunks_exact(ENTRY) {
        let attributes = raw[11];
        match raw[0] {
            0 => break,
            0xe5 => long = LongName::default(),
            _ if attributes & 0x3f == ATTR_LONG => long.add(raw),
            _ if attributes & ATTR_LABEL != 0 => long = LongName::default(),
            _ => {
                let short = short_name(raw);
                let name = std::mem::take(&mut long).finish(raw).unwrap_or_else(|| short.clone());
                let cluster = u32::from(le16(raw, 20)) << 16 | u32::from(le16(raw, 26));
                if !matches!(name.as_str(), "." | "..") {
                    found.push(Entry { name, short, attributes, cluster, bytes: le32(raw, 28) });
                }
            }
        }
    }
    found
}

/// A long name in the making: its last piece comes first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        const PLACES: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
        if raw[0] & 0x40 != 0 {
            self.units.clear();
            self.checksum = raw[13];
        }
        // No name has more than twenty pieces.
        if self.units.len() < 20 * PLACES.len() {
            self.units.splice(0..0, PLACES.map(|at| le16(raw, at)));
        }
    }

    /// The name, if it belongs to the short entry `raw`.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let sum = raw.iter().take(11).fold(0u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        let end = self.units.iter().position(|&u| u == 0).unwrap_or(self.units.len());
        let units = self.units.get(..end).filter(|u| !u.is_empty() && sum == self.checksum)?;
        String::from_utf16(units).ok()
    }
}

fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text: String = bytes.iter().map(|&b| char::from(b)).collect();
        let text = text.trim_end().to_owned();
        if lower { text.to_lowercase() } else { text }
    };
    let base = part(raw.get(..8).unwrap_or_default(), raw[12] & 0x08 != 0);
    let end = part(raw.get(8..11).unwrap_or_default(), raw[12] & 0x10 != 0);
    if end.is_empty() { base } else { format!("{base}.{end}") }
}

impl FileSystem for Fat {
    fn uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff)
    }

    fn label(&self) -> String {
        let root = self.root().unwrap_or_default();
        let label = root
            .chunks_exact(ENTRY)
            .take_while(|raw| raw[0] != 0)
            .find(|raw| raw[0] != 0xe5 && raw[11] & 0x3f == ATTR_LABEL);
        let bytes = label.and_then(|raw| raw.get(..11)).unwrap_or_default();
        String::from_utf8_lossy(bytes).trim_end().to_owned()
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>> {
        Ok(self.find(path)?.map(|entry| match entry {
            Some(e) if e.attributes & ATTR_DIR == 0 => Kind::File(e.bytes.into()),
            _ => Kind::Dir,
        }))
    }

    fn link(&self, path: &str) -> Result<String> {
        bail!("{path}: FAT has no links")
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        match self.find(path)? {
            Some(Some(e)) if e.attributes & ATTR_DIR == 0 => {
                let bytes = check_len(path, e.bytes.into(), limit)?;
                self.chain(e.cluster, Some(bytes)).with_context(|| path.to_owned())
            }
            Some(_) => bail!("{path} is a directory"),
            None => bail!("{path} does not exist"),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        let data = match self.find(path)? {
            Some(None) => self.root()?,
            Some(Some(e)) if e.attributes & ATTR_DIR != 0 => self.chain(e.cluster, None)?,
            _ => bail!("{path} is no directory"),
        };
        Ok(entries(&data).into_iter().map(|e| e.name).collect())
    }
}
