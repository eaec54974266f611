//! Partition tables: MBR with logical partitions, and GPT.
//!
//! MBR: a table of four in the first sector; logical partitions are a list of
//! further tables inside an extended one. GPT: UEFI 2.10, chapter 5.3.

use super::bytes::{ReadAt, le16, le32, le64, peek};

/// A partition of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on; the first logical one of an MBR has 5.
    pub number: u32,
    /// Where it begins.
    pub start_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// Marked as the one to boot from.
    pub active: bool,
}

/// Kinds of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// MBR, also called DOS.
    Mbr,
    /// GPT.
    Gpt,
}

/// Sector sizes disks have.
const SECTORS: [u64; 2] = [512, 4096];
/// Where the table of an MBR lies in its sector.
const MBR_TABLE: usize = 446;
/// MBR types of extended partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// MBR type of the entry that keeps others' hands off a GPT.
const PROTECTIVE: u8 = 0xee;
/// Logical partitions that are followed; nobody has so many.
const MAX_LOGICAL: u32 = 128;
/// A GPT's entries take 16 KiB as a rule.
const MAX_GPT_BYTES: u64 = 1 << 20;

/// The partitions of `disk` in order of their numbers, or `None` if it has no
/// table. `known` says whether something recognisable begins at an offset: an
/// MBR does not tell its sector size otherwise.
#[must_use]
pub fn partitions(
    disk: &dyn ReadAt,
    known: &dyn Fn(&Partition) -> bool,
) -> Option<(Table, Vec<Partition>)> {
    if let Some(partitions) = gpt(disk) {
        return Some((Table::Gpt, partitions));
    }
    let tables = SECTORS.map(|sector| mbr(disk, sector));
    let recognised = tables.iter().flatten().find(|table| table.iter().any(known));
    let table = recognised.or(tables.iter().flatten().next())?;
    Some((Table::Mbr, table.clone()))
}

fn gpt(disk: &dyn ReadAt) -> Option<Vec<Partition>> {
    for sector in SECTORS {
        let last = (disk.len() / sector).checked_sub(1)?;
        // The header's copy in the last sector serves if the first one is broken.
        for lba in [1, last] {
            if let Some(partitions) = gpt_at(disk, sector, lba) {
                return Some(partitions);
            }
        }
    }
    None
}

fn gpt_at(disk: &dyn ReadAt, sector: u64, lba: u64) -> Option<Vec<Partition>> {
    const HEADER_BYTES: usize = 92;
    let header: [u8; 512] = peek(disk, lba.checked_mul(sector)?)?;
    let size = usize::try_from(le32(&header, 12)).ok()?;
    if !header.starts_with(b"EFI PART") || size < HEADER_BYTES || le64(&header, 24) != lba {
        return None;
    }
    let mut checked = header.get(..size)?.to_vec();
    checked.get_mut(16..20)?.fill(0);
    if crc32(&checked) != le32(&header, 16) {
        return None;
    }
    let entries_at = le64(&header, 72).checked_mul(sector)?;
    let (count, each) = (u64::from(le32(&header, 80)), u64::from(le32(&header, 84)));
    let total = count.checked_mul(each)?;
    if each < 128 || each % 8 != 0 || total > MAX_GPT_BYTES {
        return None;
    }
    let mut entries = vec![0; usize::try_from(total).ok()?];
    disk.read_at(entries_at, &mut entries).ok()?;
    if crc32(&entries) != le32(&header, 88) {
        return None;
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(usize::try_from(each).ok()?)) {
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let used = entry.iter().take(16).any(|&byte| byte != 0);
        let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
        let (start, len) = (first.checked_mul(sector), sectors.and_then(|n| n.checked_mul(sector)));
        if let (true, Some(start_bytes), Some(len_bytes)) = (used, start, len) {
            // Bit 2: "legacy BIOS bootable".
            let active = le64(entry, 48) & 4 != 0;
            partitions.push(Partition { number, start_bytes, len_bytes, active });
        }
    }
    Some(partitions)
}

/// One of the four entries of an MBR or of a logical partition's table.
#[derive(Clone, Copy)]
struct Slot {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Slot {
    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    fn is_partition(&self) -> bool {
        !matches!(self.kind, 0 | PROTECTIVE) && !self.is_extended() && self.sectors != 0
    }
}

fn slots(disk: &dyn ReadAt, at: u64) -> Option<[Slot; 4]> {
    let table: [u8; 512] = peek(disk, at)?;
    if le16(&table, 510) != 0xaa55 {
        return None;
    }
    Some([0, 1, 2, 3].map(|index| {
        let at = MBR_TABLE + 16 * index;
        Slot {
            flag: table[at],
            kind: table[at + 4],
            start: le32(&table, at + 8).into(),
            sectors: le32(&table, at + 12).into(),
        }
    }))
}

fn mbr(disk: &dyn ReadAt, sector: u64) -> Option<Vec<Partition>> {
    let slots = slots(disk, 0)?;
    // A boot sector without a table ends in the same signature.
    let plausible = |s: &Slot| {
        matches!(s.flag, 0 | 0x80)
            && (s.kind == 0 || (s.start != 0 && s.start.saturating_mul(sector) < disk.len()))
    };
    if !slots.iter().all(plausible) || slots.iter().all(|s| s.kind == 0 || s.sectors == 0) {
        return None;
    }
    let mut partitions = Vec::new();
    for (number, slot) in (1..).zip(slots) {
        if slot.is_partition() {
            partitions.push(partition(number, &slot, 0, sector));
        }
    }
    for slot in slots.iter().filter(|s| s.is_extended()) {
        logical(disk, sector, slot.start, &mut partitions);
    }
    Some(partitions)
}

fn partition(number: u32, slot: &Slot, base: u64, sector: u64) -> Partition {
    // 32-bit numbers times a sector fit.
    Partition {
        number,
        start_bytes: (base + slot.start) * sector,
        len_bytes: slot.sectors * sector,
        active: slot.flag == 0x80,
    }
}

/// Logical partitions: each table tells its own partition, relative to itself,
/// and the next table, relative to the first.
fn logical(disk: &dyn ReadAt, sector: u64, first: u64, partitions: &mut Vec<Partition>) {
    let mut at = first;
    for number in 5..5 + MAX_LOGICAL {
        let Some(slots) = slots(disk, at * sector) else { return };
        if let Some(slot) = slots.iter().find(|s| s.is_partition()) {
            partitions.push(partition(number, slot, at, sector));
        }
        match slots.iter().find(|s| s.is_extended() && s.start != 0) {
            // Tables lie one behind the other; anything else may be a loop.
            Some(next) if first + next.start > at => at = first + next.start,
            _ => return,
        }
    }
}

/// CRC-32 as zip and GPT have it.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(disk: &mut [u8], table: usize, index: usize, kind: u8, start: u32, sectors: u32) {
        let at = table + MBR_TABLE + 16 * index;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[table + 510..table + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn starts(disk: &Vec<u8>) -> Vec<(u32, u64)> {
        let (_, partitions) = partitions(disk, &|_| false).unwrap();
        partitions.iter().map(|p| (p.number, p.start_bytes / 512)).collect()
    }

    #[test]
    fn logical_partitions_are_followed() {
        let mut disk = vec![0; 512 * 2000];
        slot(&mut disk, 0, 0, 0x83, 10, 100);
        slot(&mut disk, 0, 2, 0x05, 200, 1000);
        slot(&mut disk, 200 * 512, 0, 0x83, 1, 99);
        slot(&mut disk, 200 * 512, 1, 0x05, 100, 300);
        slot(&mut disk, 300 * 512, 0, 0x82, 2, 50);
        disk[MBR_TABLE] = 0x80;
        assert_eq!(starts(&disk), [(1, 10), (5, 201), (6, 302)]);
        // A table that leads back to the first ends the list.
        slot(&mut disk, 300 * 512, 1, 0x05, 100, 300);
        assert_eq!(starts(&disk), [(1, 10), (5, 201), (6, 302)]);
        assert!(partitions(&disk, &|_| false).unwrap().1[0].active);
    }

    #[test]
    fn sectors_of_4096_bytes_are_found_by_what_lies_there() {
        let mut disk = vec![0; 4096 * 100];
        slot(&mut disk, 0, 0, 0x83, 16, 80);
        let (_, found) = partitions(&disk, &|p| p.start_bytes == 16 * 4096).unwrap();
        assert_eq!((found[0].start_bytes, found[0].len_bytes), (16 * 4096, 80 * 4096));
    }

    #[test]
    fn no_table_is_no_table() {
        assert_eq!(partitions(&Vec::new(), &|_| true), None);
        assert_eq!(partitions(&vec![0; 4096], &|_| true), None);
        // A boot sector's code is no table.
        let mut code = vec![0x90; 4096];
        code[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(partitions(&code, &|_| true), None);
    }

    /// A GPT of one partition, without its copy.
    fn write_gpt(disk: &mut [u8], sector: usize, lba: usize) {
        let entries_lba = if lba == 1 { 2 } else { lba - 32 };
        let entries = entries_lba * sector;
        disk[entries..entries + 16].fill(7);
        disk[entries + 32..entries + 40].copy_from_slice(&40u64.to_le_bytes());
        disk[entries + 40..entries + 48].copy_from_slice(&49u64.to_le_bytes());
        disk[entries + 48] = 4;
        let crc = crc32(&disk[entries..entries + 128 * 128]);
        let header = &mut disk[lba * sector..lba * sector + 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(entries_lba as u64).to_le_bytes());
        header[80] = 128;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc.to_le_bytes());
        header[16..20].fill(0);
        let crc = crc32(header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn gpt_with_both_sector_sizes_and_from_its_copy() {
        for sector in [512, 4096] {
            for lba in [1, 199] {
                let mut disk = vec![0; sector * 200];
                slot(&mut disk, 0, 0, PROTECTIVE, 1, 199);
                write_gpt(&mut disk, sector, lba);
                let (table, found) = partitions(&disk, &|_| false).unwrap();
                assert_eq!(table, Table::Gpt);
                let start_bytes = 40 * sector as u64;
                let len_bytes = 10 * sector as u64;
                let wanted = Partition { number: 1, start_bytes, len_bytes, active: true };
                assert_eq!(found, [wanted]);
                // A broken checksum: not taken.
                disk[lba * sector + 40] ^= 1;
                assert_eq!(partitions(&disk, &|_| false).unwrap().1, []);
            }
        }
    }

    #[test]
    fn crc_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
