//! LVM2 physical volumes: which logical volumes are on one, and where.
//!
//! A label in one of the first four sectors leads to the metadata area, a ring of bytes in which
//! the newest text description of the volume group lies (lvm2: `lib/format_text/layout.h`,
//! `format-text.c`). Only what one physical volume has by itself is read: linear volumes.

use super::bytes::{ReadAt, le32, le64, peek};
use super::lvm_text::{Node, parse};
use anyhow::{Context, Result, bail, ensure};
use std::io;
use std::rc::Rc;

const SECTOR: u64 = 512;
/// The label is in one of the first so many sectors.
const LABEL_SECTORS: u64 = 4;
/// Metadata areas are a MiB as a rule; nobody has such texts.
const MAX_TEXT: u64 = 16 << 20;
/// What checksums start from (`INITIAL_CRC`).
const INITIAL_CRC: u32 = 0xf597_a6cf;
const MDA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Bytes of the metadata area's header, in front of the ring.
const MDA_HEADER: u64 = 512;

/// A volume group as one physical volume tells it.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its logical volumes that can be seen, in the order of the text.
    pub volumes: Vec<Logical>,
}

/// A logical volume.
#[derive(Clone, Debug)]
pub struct Logical {
    /// Its name.
    pub name: String,
    /// Where its bytes are on the physical volume, or why they are not all there.
    pub pieces: Result<Vec<Piece>, String>,
}

/// Bytes in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset on the physical volume.
    pub start: u64,
    /// How many.
    pub len: u64,
}

impl Group {
    /// Reads the label and the metadata of the physical volume `pv`.
    ///
    /// # Errors
    /// It has none, or what there is makes no sense.
    pub fn read(pv: &dyn ReadAt) -> Result<Self> {
        let (id, areas) = label(pv)?;
        let mut why = None;
        for (at, size) in areas {
            match text(pv, at, size).and_then(|text| Self::from_text(&text, &id, pv.len())) {
                Ok(group) => return Ok(group),
                // The other copy of the metadata may be whole.
                Err(error) => why = why.or(Some(error)),
            }
        }
        Err(why.unwrap_or_else(|| anyhow::anyhow!("the LVM volume has no metadata on it")))
    }

    /// Reads metadata that describe the physical volume with the identity `id`, of `pv_len` bytes.
    ///
    /// # Errors
    /// They make no sense, or do not describe it.
    pub fn from_text(text: &[u8], id: &str, pv_len: u64) -> Result<Self> {
        let root = parse(text).context("LVM's metadata")?;
        let (name, group) = root
            .sections()
            .find(|(_, group)| group.get("extent_size").is_some())
            .context("LVM's metadata describe no volume group")?;
        let extent = group.number("extent_size").filter(|size| *size > 0);
        let extent = extent.and_then(|size| size.checked_mul(SECTOR)).context("no extent size")?;
        let pvs = group.get("physical_volumes").context("LVM's metadata name no volumes")?;
        let is_this = |pv: &Node| pv.text("id").is_some_and(|text| text.replace('-', "") == id);
        let (this, pv) = pvs
            .sections()
            .find(|(_, pv)| is_this(pv))
            .context("LVM's metadata do not know the volume they are on")?;
        let start = pv.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR));
        let place = Extents { pv: this, start: start.context("no pe_start")?, extent, pv_len };
        let mut volumes = Vec::new();
        for (name, lv) in group.get("logical_volumes").into_iter().flat_map(Node::sections) {
            // Parts of mirrors, pools and the like are hidden.
            if lv.list("status").contains(&"VISIBLE") {
                let pieces = place.pieces(lv).map_err(|e| format!("{e:#}"));
                volumes.push(Logical { name: name.to_owned(), pieces });
            }
        }
        Ok(Self { name: name.to_owned(), volumes })
    }
}

/// The volume's identity, and where its metadata areas are.
fn label(pv: &dyn ReadAt) -> Result<(String, Vec<(u64, u64)>)> {
    for sector in 0..LABEL_SECTORS {
        let Some(bytes) = peek::<512>(pv, sector * SECTOR) else { break };
        if !bytes.starts_with(b"LABELONE") || bytes.get(24..32) != Some(b"LVM2 001") {
            continue;
        }
        let sum = crc(bytes.get(20..).unwrap_or_default());
        ensure!(le32(&bytes, 16) == sum, "the LVM label's checksum is wrong");
        let header = le32(&bytes, 20) as usize;
        let id = bytes.get(header..header + 32).context("the LVM label is cut short")?;
        let id = String::from_utf8_lossy(id).into_owned();
        // Two lists of (offset, size), each ended by zeros: of data, of metadata.
        let mut at = header + 40;
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            loop {
                ensure!(at + 16 <= bytes.len(), "the LVM label is cut short");
                let (offset, size) = (le64(&bytes, at), le64(&bytes, at + 8));
                at += 16;
                if offset == 0 {
                    break;
                }
                list.push((offset, size));
            }
        }
        let [_, areas] = lists;
        return Ok((id, areas));
    }
    bail!("no LVM label")
}

/// The newest text in the metadata area at `at`.
fn text(pv: &dyn ReadAt, at: u64, size: u64) -> Result<Vec<u8>> {
    let header: [u8; 512] = peek(pv, at).context("LVM's metadata are behind the image's end")?;
    ensure!(
        header.get(4..20) == Some(MDA_MAGIC)
            && le32(&header, 0) == crc(header.get(4..).unwrap_or_default()),
        "LVM's metadata area has no valid header"
    );
    let (offset, len, sum) = (le64(&header, 40), le64(&header, 48), le32(&header, 56));
    ensure!(offset != 0 && len != 0, "LVM's metadata are empty");
    let fits = offset >= MDA_HEADER && offset < size && len <= size.saturating_sub(MDA_HEADER);
    ensure!(fits && len <= MAX_TEXT, "LVM's metadata are not within their area");
    let mut text = vec![0; usize::try_from(len)?];
    // The text goes on at the ring's beginning.
    let first = usize::try_from((size - offset).min(len))?;
    let (head, tail) = text.split_at_mut(first);
    let from = |offset: u64| at.checked_add(offset).context("LVM's metadata are beyond all bounds");
    pv.read_at(from(offset)?, head).context("LVM's metadata")?;
    pv.read_at(from(MDA_HEADER)?, tail).context("LVM's metadata")?;
    ensure!(crc(&text) == sum, "the checksum of LVM's metadata is wrong");
    Ok(text)
}

/// The extents of a physical volume.
struct Extents<'a> {
    pv: &'a str,
    start: u64,
    extent: u64,
    pv_len: u64,
}

impl Extents<'_> {
    fn pieces(&self, lv: &Node) -> Result<Vec<Piece>> {
        let mut segments = Vec::new();
        for (name, segment) in lv.sections().filter(|(name, _)| name.starts_with("segment")) {
            let begin =
                segment.number("start_extent").with_context(|| format!("{name}: no start"))?;
            segments.push((begin, segment));
        }
        segments.sort_by_key(|(begin, _)| *begin);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut next = 0;
        for (begin, segment) in segments {
            ensure!(begin == next, "its segments leave a gap");
            let count = segment.number("extent_count").context("a segment has no length")?;
            next = begin.checked_add(count).context("a segment has no end")?;
            let piece = self.piece(segment, count)?;
            match pieces.last_mut() {
                Some(last) if last.start.checked_add(last.len) == Some(piece.start) => {
                    last.len += piece.len;
                }
                _ => pieces.push(piece),
            }
        }
        ensure!(!pieces.is_empty(), "it has no segments");
        Ok(pieces)
    }

    fn piece(&self, segment: &Node, count: u64) -> Result<Piece> {
        let kind = segment.text("type").unwrap_or("none");
        ensure!(kind == "striped", "it is of type {kind}; linear volumes are read");
        let stripes = segment.number("stripe_count").unwrap_or(0);
        ensure!(stripes == 1, "it is striped over {stripes} volumes; linear volumes are read");
        let list = segment.get("stripes").map(Node::items).unwrap_or_default();
        let [Node::Text(pv), Node::Number(first)] = list else {
            bail!("its stripes make no sense")
        };
        ensure!(pv == self.pv, "a part of it is on {pv}, another physical volume");
        let start = first.checked_mul(self.extent).and_then(|at| at.checked_add(self.start));
        let len = count.checked_mul(self.extent);
        let inside = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        match (start, len, inside) {
            (Some(start), Some(len), Some(end)) if end <= self.pv_len => Ok(Piece { start, len }),
            _ => bail!("it reaches behind the end of the physical volume"),
        }
    }
}

/// Pieces of something, one behind the other.
pub struct Pieces {
    whole: Rc<dyn ReadAt>,
    pieces: Vec<Piece>,
    len: u64,
}

impl Pieces {
    /// `pieces` of `whole`.
    #[must_use]
    pub fn new(whole: Rc<dyn ReadAt>, pieces: Vec<Piece>) -> Self {
        let len = pieces.iter().map(|piece| piece.len).sum();
        Self { whole, pieces, len }
    }
}

impl ReadAt for Pieces {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let (mut skip, mut to) = (offset, to);
        for piece in &self.pieces {
            if to.is_empty() {
                return Ok(());
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let here = usize::try_from(piece.len - skip).unwrap_or(usize::MAX).min(to.len());
            let (now, later) = to.split_at_mut(here);
            self.whole.read_at(piece.start + skip, now)?;
            (skip, to) = (0, later);
        }
        if to.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// LVM's checksum: CRC-32 from another beginning, and without the end.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(INITIAL_CRC, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A physical volume with `text` as its metadata, and `data` at its first extent.
    pub(crate) fn volume(text: &str, data: &[u8]) -> Vec<u8> {
        const MDA: usize = 4096;
        const MDA_LEN: usize = (1 << 20) - MDA;
        let mut image = vec![0; 1 << 20];
        let mut label = vec![0; 512];
        label[..8].copy_from_slice(b"LABELONE");
        label[8] = 1;
        label[20] = 32;
        label[24..32].copy_from_slice(b"LVM2 001");
        label[32..64].copy_from_slice(ID.as_bytes());
        label[72..80].copy_from_slice(&(1u64 << 20).to_le_bytes());
        label[104..112].copy_from_slice(&(MDA as u64).to_le_bytes());
        label[112..120].copy_from_slice(&(MDA_LEN as u64).to_le_bytes());
        let sum = crc(&label[20..]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        image[512..1024].copy_from_slice(&label);
        let mut header = vec![0; 512];
        header[4..20].copy_from_slice(MDA_MAGIC);
        header[20] = 1;
        header[24..32].copy_from_slice(&(MDA as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(MDA_LEN as u64).to_le_bytes());
        // Half of it in front of the ring's end, half at its beginning.
        let at = MDA_LEN - text.len() / 2;
        header[40..48].copy_from_slice(&(at as u64).to_le_bytes());
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        header[56..60].copy_from_slice(&crc(text.as_bytes()).to_le_bytes());
        let sum = crc(&header[4..]);
        header[..4].copy_from_slice(&sum.to_le_bytes());
        image[MDA..MDA + 512].copy_from_slice(&header);
        let (head, tail) = text.as_bytes().split_at(MDA_LEN - at);
        image[MDA + at..MDA + MDA_LEN].copy_from_slice(head);
        image[MDA + 512..MDA + 512 + tail.len()].copy_from_slice(tail);
        image.extend_from_slice(data);
        image
    }

    const ID: &str = "AbCdEf0123456789abcdefABCDEF0123";

    /// A volume's name, type, and segments: how many extents, and the first one's place.
    type Sketch<'a> = (&'a str, &'a str, &'a [(u64, u64)]);

    /// A group `vg0` of extents of 4 KiB with these volumes.
    pub(crate) fn metadata(volumes: &[Sketch<'_>]) -> String {
        let mut text = "# made by hand\ncontents = \"Text Format Volume Group\"\nversion = 1\n\
            description = \"a \\\"test\\\" {\"\ncreation_time = 1700000000\nvg0 {\nid = \"x\"\nseqno = 3\n\
            status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nextent_size = 8 # 4 KiB\n\
            physical_volumes {\npv0 {\nid = \"AbCdEf-0123-4567-89ab-cdef-ABCD-EF0123\"\ndevice = \"/dev/sda2\"\n\
            pe_start = 2048\npe_count = 100\n}\n}\nlogical_volumes {\n".to_owned();
        for (name, kind, segments) in volumes {
            text += &format!(
                "{name} {{\nid = \"y\"\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = {}\n",
                segments.len()
            );
            let mut start = 0;
            for (number, (count, first)) in (1..).zip(*segments) {
                text += &format!(
                    "segment{number} {{\nstart_extent = {start}\nextent_count = {count}\ntype = \"{kind}\"\n\
                     stripe_count = 1\nstripes = [\n\"pv0\", {first}\n]\n}}\n"
                );
                start += count;
            }
            text += "}\n";
        }
        text + "}\n}\n"
    }

    #[test]
    fn linear_volumes_are_found() {
        let data: Vec<u8> = (0..4u8).flat_map(|n| vec![n; 4096]).collect();
        let text = metadata(&[
            ("root", "striped", &[(1, 2), (1, 3), (1, 0)]),
            ("thin", "thin", &[(1, 1)]),
            ("far", "striped", &[(1, 4)]),
        ]);
        let image = volume(&text, &data);
        let group = Group::read(&image).unwrap();
        assert_eq!(group.name, "vg0");
        let names: Vec<_> = group.volumes.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["root", "thin", "far"]);
        let pieces = group.volumes[0].pieces.clone().unwrap();
        // Neighbours are one.
        assert_eq!(pieces.len(), 2);
        let lv = Pieces::new(Rc::new(image), pieces);
        let mut read = vec![0; 12288];
        lv.read_at(0, &mut read).unwrap();
        assert_eq!((lv.len(), read[0], read[4096], read[8192]), (12288, 2, 3, 0));
        let mut over = [9; 4];
        lv.read_at(8190, &mut over).unwrap();
        assert_eq!(over, [3, 3, 0, 0]);
        assert!(lv.read_at(12286, &mut over).is_err());
        assert!(lv.read_at(u64::MAX, &mut over).is_err());
        let why = |index: usize| group.volumes[index].pieces.clone().unwrap_err();
        assert!(why(1).contains("type thin") && why(2).contains("behind the end"));
    }

    #[test]
    fn damage_is_told() {
        let good = volume(&metadata(&[("root", "striped", &[(1, 0)])]), &[0; 4096]);
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = good.clone();
            change(&mut image);
            Group::read(&image).unwrap_err().to_string()
        };
        assert!(error(&|i| i[512] = 0).contains("no LVM label"));
        assert!(error(&|i| i[600] ^= 1).contains("label's checksum"));
        assert!(error(&|i| i[4100] ^= 1).contains("no valid header"));
        assert!(error(&|i| i[4096 + 512] ^= 1).contains("checksum of LVM's metadata"));
        assert!(error(&|i| i.truncate(2048)).contains("behind the image's end"));
        let other = volume(&metadata(&[]).replace("AbCdEf-0", "AbCdEf-9"), &[]);
        assert!(Group::read(&other).unwrap_err().to_string().contains("do not know"));
    }
}
