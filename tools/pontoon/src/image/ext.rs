//! ext2, ext3 and ext4, without their journals: as a boot loader sees them.
//!
//! Layout: Linux, Documentation/filesystems/ext4. Directories are read as lists,
//! which their index blocks allow for.

use super::bytes::{ReadAt, le16, le32, peek};
use super::fs::{FileSystem, Kind, check_len};
use anyhow::{Context, Result, bail, ensure};
use std::rc::Rc;

/// Features without which the rest cannot be understood, and that are: file
/// types in directories, recovery, meta block groups, extents, 64 bits, multiple
/// mount protection, flexible groups, values in inodes, checksum seeds, large
/// directories, inline data, encryption, case folding.
const UNDERSTOOD: u32 = 0x3_e7d6;
const META_BG: u32 = 0x10;
const SIXTY_FOUR_BIT: u32 = 0x80;
/// Of the features that matter for writing only.
const SPARSE_SUPER: u32 = 0x1;

const ROOT_INODE: u32 = 2;
/// Inode flags.
const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

const EXTENT_MAGIC: u16 = 0xf30a;
const MAX_EXTENT_DEPTH: u16 = 5;
const XATTR_MAGIC: u32 = 0xea02_0000;
const XATTR_SYSTEM: u8 = 7;
/// Directories are not longer than this.
const MAX_DIR_BYTES: u64 = 64 << 20;
const MAX_LINK_BYTES: u64 = 4096;
/// Blocks an inode's map may take; a file of gigabytes has fewer.
const MAX_MAP_BLOCKS: u32 = 10_000;

/// A file system of the ext family.
pub struct Ext {
    part: Rc<dyn ReadAt>,
    block_bytes: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
    inode_bytes: usize,
    descriptor_bytes: u64,
    /// The first block of descriptors that lies in its own group.
    first_meta: Option<u64>,
    sparse: bool,
    uuid: String,
    label: String,
}

struct Inode {
    raw: Vec<u8>,
    len: u64,
    flags: u32,
}

/// Blocks of a file that lie one behind the other; a hole is not in any.
#[derive(Clone, Copy)]
struct Run {
    logical: u64,
    physical: u64,
    count: u64,
}

impl Ext {
    /// Opens the file system in `part`.
    pub fn open(part: Rc<dyn ReadAt>) -> Result<Self> {
        let superblock: [u8; 1024] =
            peek(&*part, 1024).context("ext2/3/4, but its superblock cannot be read")?;
        Self::of(part, &superblock).context("ext2/3/4, but it cannot be read")
    }

    fn of(part: Rc<dyn ReadAt>, sb: &[u8; 1024]) -> Result<Self> {
        let incompatible = le32(sb, 0x60);
        let unknown = incompatible & !UNDERSTOOD;
        ensure!(unknown == 0, "it has features unknown here ({unknown:#x})");
        let log_block = le32(sb, 0x18);
        ensure!(log_block <= 6, "its block size makes no sense");
        let block_bytes = 1024 << log_block;
        let wide = incompatible & SIXTY_FOUR_BIT != 0;
        let high = if wide { le32(sb, 0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(le32(sb, 4));
        if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > part.len()) {
            bail!("it is larger than its partition or image: cut short?");
        }
        // The oldest revision has fixed inodes.
        let inode_bytes = if le32(sb, 0x4c) == 0 { 128 } else { usize::from(le16(sb, 0x58)) };
        let descriptor_bytes = if wide { u64::from(le16(sb, 0xfe)) } else { 32 };
        let (blocks_per_group, inodes_per_group) = (le32(sb, 0x20).into(), le32(sb, 0x28));
        ensure!(
            (128..=4096).contains(&inode_bytes)
                && (32..=1024).contains(&descriptor_bytes)
                && blocks_per_group != 0
                && inodes_per_group != 0,
            "its superblock makes no sense"
        );
        let hex: Vec<_> = sb.iter().skip(0x68).take(16).map(|b| format!("{b:02x}")).collect();
        let part_of = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().concat();
        let uuid = [(0, 4), (4, 6), (6, 8), (8, 10), (10, 16)].map(|(a, b)| part_of(a, b));
        let label = sb.iter().skip(0x78).take(16).copied().take_while(|&b| b != 0);
        Ok(Self {
            part,
            block_bytes,
            first_block: le32(sb, 0x14).into(),
            blocks_per_group,
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
            first_meta: (incompatible & META_BG != 0).then(|| le32(sb, 0x104).into()),
            sparse: le32(sb, 0x64) & SPARSE_SUPER != 0,
            uuid: uuid.join("-"),
            label: String::from_utf8_lossy(&label.collect::<Vec<_>>()).into_owned(),
        })
    }

    /// Reads from a block on; what lies behind the end is an error, not a panic.
    fn read_block(&self, block: u64, offset: u64, to: &mut [u8]) -> Result<()> {
        let at = block.checked_mul(self.block_bytes).and_then(|at| at.checked_add(offset));
        self.part.read_at(at.context("a block number makes no sense")?, to)?;
        Ok(())
    }

    /// The block of descriptors that has the one of `group`.
    fn descriptor_block(&self, group: u64) -> u64 {
        let each = self.block_bytes / self.descriptor_bytes;
        let index = group / each;
        if self.first_meta.is_none_or(|first| index < first) {
            // Behind the superblock, which is at byte 1024 whatever the first block is.
            return 1024 / self.block_bytes + 1 + index;
        }
        // Behind the superblock's copy, if the first group of these has one.
        let first = index * each;
        let copy = !self.sparse || is_sparse(first);
        self.first_block + first * self.blocks_per_group + u64::from(copy)
    }

    fn inode(&self, number: u32) -> Result<Inode> {
        let index = number.checked_sub(1).context("inode 0")?;
        let group = u64::from(index / self.inodes_per_group);
        let each = self.block_bytes / self.descriptor_bytes;
        let mut descriptor = [0; 64];
        let bytes = usize::try_from(self.descriptor_bytes.min(64))?;
        let to = descriptor.get_mut(..bytes).unwrap_or_default();
        let offset = group % each * self.descriptor_bytes;
        self.read_block(self.descriptor_block(group), offset, to)?;
        // The upper half is zero where descriptors are short.
        let table = u64::from(le32(&descriptor, 0x28)) << 32 | u64::from(le32(&descriptor, 8));
        let offset = u64::from(index % self.inodes_per_group) * self.inode_bytes as u64;
        let mut raw = vec![0; self.inode_bytes];
        self.read_block(table, offset, &mut raw)?;
        let high = if raw_kind(&raw) == Kind::Special { 0 } else { le32(&raw, 0x6c) };
        let len = u64::from(high) << 32 | u64::from(le32(&raw, 4));
        let flags = le32(&raw, 0x20);
        Ok(Inode { raw, len, flags })
    }

    /// All of an inode's data, of at most `limit` bytes.
    fn data(&self, inode: &Inode, path: &str, limit: u64) -> Result<Vec<u8>> {
        ensure!(inode.flags & ENCRYPTED == 0, "{path} is encrypted");
        let len = check_len(path, inode.len, limit)?;
        // What is told longer than everything there is only costs memory.
        ensure!(inode.len <= self.part.len(), "{path} is longer than its file system");
        let map = inode.raw.get(0x28..0x28 + 60).unwrap_or_default();
        if inode.flags & INLINE != 0 {
            let mut data = map.to_vec();
            data.extend_from_slice(inode.inline_rest());
            data.resize(len, 0);
            return Ok(data);
        }
        if inode.kind() == Kind::Link && len < 60 && inode.flags & EXTENTS == 0 {
            return Ok(map.get(..len).unwrap_or_default().to_vec());
        }
        let blocks = inode.len.div_ceil(self.block_bytes);
        let mut runs = Runs { ext: self, blocks, runs: Vec::new(), read: 0 };
        if inode.flags & EXTENTS != 0 {
            runs.extents(map, MAX_EXTENT_DEPTH + 1)?;
        } else {
            runs.block_map(map)?;
        }
        let mut data = vec![0; len];
        for run in runs.runs {
            let from = run.logical.saturating_mul(self.block_bytes);
            let end = run.count.saturating_mul(self.block_bytes).saturating_add(from);
            let (from, end) = (from.min(inode.len), end.min(inode.len));
            let to = data.get_mut(usize::try_from(from)?..usize::try_from(end)?);
            self.read_block(run.physical, 0, to.unwrap_or_default()).context(path.to_owned())?;
        }
        Ok(data)
    }

    /// Names and inodes in a directory.
    fn entries(&self, inode: &Inode, path: &str) -> Result<Vec<(String, u32)>> {
        ensure!(inode.kind() == Kind::Dir, "{path} is no directory");
        let data = self.data(inode, path, MAX_DIR_BYTES)?;
        let mut entries = Vec::new();
        if inode.flags & INLINE != 0 {
            // Its parent's number comes first; the rest is in a second piece.
            let (first, rest) = data.split_at(data.len().min(60));
            parse_entries(first.get(4..).unwrap_or_default(), &mut entries);
            parse_entries(rest, &mut entries);
        } else {
            let block = usize::try_from(self.block_bytes)?;
            data.chunks(block).for_each(|block| parse_entries(block, &mut entries));
        }
        Ok(entries)
    }

    /// The inode `path` names.
    fn find(&self, path: &str) -> Result<Option<Inode>> {
        let mut inode = self.inode(ROOT_INODE)?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            if inode.kind() != Kind::Dir {
                return Ok(None);
            }
            let entries = self.entries(&inode, path)?;
            match entries.into_iter().find(|(entry, _)| entry == name) {
                Some((_, number)) => inode = self.inode(number)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    fn must_find(&self, path: &str) -> Result<Inode> {
        self.find(path)?.with_context(|| format!("{path} does not exist"))
    }
}

/// Whether a group of a sparse file system holds a copy of the superblock.
fn is_sparse(group: u64) -> bool {
    let power = |base: u64| std::iter::successors(Some(base), move |n| n.checked_mul(base));
    group <= 1
        || [3, 5, 7].iter().any(|&b| power(b).take_while(|&n| n <= group).any(|n| n == group))
}

fn parse_entries(block: &[u8], entries: &mut Vec<(String, u32)>) {
    let mut at = 0;
    while let Some(entry) = block.get(at..).filter(|rest| rest.len() >= 8) {
        // Blocks of 64 KiB have no room for their own size in 16 bits.
        let step = match le16(entry, 4) {
            0 | u16::MAX => 65536,
            step => usize::from(step),
        };
        if step < 8 {
            return;
        }
        let name = entry.get(8..8 + usize::from(entry[6])).unwrap_or_default();
        let name = std::str::from_utf8(name).unwrap_or_default();
        if le32(entry, 0) != 0 && !matches!(name, "" | "." | "..") {
            entries.push((name.to_owned(), le32(entry, 0)));
        }
        at += step;
    }
}

fn raw_kind(raw: &[u8]) -> Kind {
    match le16(raw, 0) >> 12 {
        0x4 => Kind::Dir,
        0x8 => Kind::File(0),
        0xa => Kind::Link,
        _ => Kind::Special,
    }
}

impl Inode {
    fn kind(&self) -> Kind {
        match raw_kind(&self.raw) {
            Kind::File(_) => Kind::File(self.len),
            other => other,
        }
    }

    /// What of inline data does not fit into the block map: the attribute
    /// `system.data` behind the inode's fields.
    fn inline_rest(&self) -> &[u8] {
        let begin = 128 + usize::from(le16(&self.raw, 0x80));
        let body = self.raw.get(begin..).unwrap_or_default();
        if le32(body, 0) != XATTR_MAGIC {
            return &[];
        }
        let values = body.get(4..).unwrap_or_default();
        let mut at = 0;
        while let Some(entry) = values.get(at..).filter(|e| e.len() >= 16 && le32(e, 0) != 0) {
            let name = entry.get(16..16 + usize::from(entry[0])).unwrap_or_default();
            if entry[1] == XATTR_SYSTEM && name == b"data" {
                let from = usize::from(le16(entry, 2));
                let len = usize::try_from(le32(entry, 8)).unwrap_or(0);
                return from.checked_add(len).and_then(|to| values.get(from..to)).unwrap_or(&[]);
            }
            at += (16 + usize::from(entry[0])).next_multiple_of(4);
        }
        &[]
    }
}

/// Runs of a file in the making.
struct Runs<'a> {
    ext: &'a Ext,
    /// Blocks the file has.
    blocks: u64,
    runs: Vec<Run>,
    /// Blocks of the map that were read.
    read: u32,
}

impl Runs<'_> {
    fn add(&mut self, logical: u64, physical: u64, count: u64) {
        if physical == 0 || logical >= self.blocks {
            return;
        }
        let count = count.min(self.blocks - logical);
        match self.runs.last_mut() {
            Some(last)
                if last.logical + last.count == logical
                    && last.physical.checked_add(last.count) == Some(physical) =>
            {
                last.count += count;
            }
            _ => self.runs.push(Run { logical, physical, count }),
        }
    }

    fn map_block(&mut self, block: u64) -> Result<Vec<u8>> {
        self.read += 1;
        ensure!(self.read <= MAX_MAP_BLOCKS, "a file's map is too large");
        let mut node = vec![0; usize::try_from(self.ext.block_bytes)?];
        self.ext.read_block(block, 0, &mut node)?;
        Ok(node)
    }

    /// A node of the extent tree; its depth is less than `below`.
    fn extents(&mut self, node: &[u8], below: u16) -> Result<()> {
        let (count, depth) = (usize::from(le16(node, 2)), le16(node, 6));
        ensure!(le16(node, 0) == EXTENT_MAGIC && depth < below, "a broken extent tree");
        for entry in node.chunks_exact(12).skip(1).take(count) {
            let logical = u64::from(le32(entry, 0));
            if depth > 0 {
                let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let child = self.map_block(child)?;
                self.extents(&child, depth)?;
                continue;
            }
            let count = le16(entry, 4);
            // Longer ones are reserved but not written: zeroes, as holes are.
            if count <= 0x8000 {
                let physical = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                self.add(logical, physical, count.into());
            }
        }
        Ok(())
    }

    /// Twelve blocks, then one, two and three levels of blocks of numbers.
    fn block_map(&mut self, map: &[u8]) -> Result<()> {
        let mut logical = 0;
        for (index, entry) in map.chunks_exact(4).enumerate() {
            let level = u32::try_from(index.saturating_sub(11))?;
            self.indirect(le32(entry, 0), level, &mut logical)?;
        }
        Ok(())
    }

    fn indirect(&mut self, block: u32, level: u32, logical: &mut u64) -> Result<()> {
        let covered = (self.ext.block_bytes / 4).pow(level);
        if *logical >= self.blocks {
            return Ok(());
        }
        if level == 0 || block == 0 {
            self.add(*logical, block.into(), 1);
            *logical += covered;
            return Ok(());
        }
        let node = self.map_block(block.into())?;
        for entry in node.chunks_exact(4) {
            self.indirect(le32(entry, 0), level - 1, logical)?;
        }
        Ok(())
    }
}

impl FileSystem for Ext {
    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn kind(&self, path: &str) -> Result<Option<Kind>> {
        Ok(self.find(path)?.map(|inode| inode.kind()))
    }

    fn link(&self, path: &str) -> Result<String> {
        let target = self.data(&self.must_find(path)?, path, MAX_LINK_BYTES)?;
        String::from_utf8(target).with_context(|| format!("{path} leads to no UTF-8 name"))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let inode = self.must_find(path)?;
        ensure!(matches!(inode.kind(), Kind::File(_)), "{path} is no file");
        self.data(&inode, path, limit)
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        let entries = self.entries(&self.must_find(path)?, path)?;
        Ok(entries.into_iter().map(|(name, _)| name).collect())
    }
}
