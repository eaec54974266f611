use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::blkback::{Discard, Segment};
use xen_abi::Mfn;

fn info(sectors: u64, logical_bytes: u32) -> DeviceInfo {
    DeviceInfo {
        sectors,
        logical_bytes,
        physical_bytes: 4096,
        read_only: false,
        cdrom: false,
        removable: false,
        flush: true,
        discard: Some(Discard { granularity: 4096, alignment: 512, secure: false, max_sectors: 8 }),
        max_transfer_bytes: 1 << 18,
        max_segments: 64,
        no_gaps: true,
        depth: 32,
    }
}

/// Runs a search over an image; reads of what it does not have fail.
fn find(image: &[u8], logical_bytes: u32, number: u16) -> Result<Extent, NoPartition> {
    let info = info(image.len() as u64 / 512, logical_bytes);
    let mut finder = Finder::new(&info, number);
    for _ in 0..2000 {
        match finder.step() {
            Step::Done(result) => {
                if let Ok(extent) = result {
                    assert!(extent.start > 0 && extent.sectors > 0);
                    assert!(extent.start + extent.sectors <= info.sectors);
                }
                return result;
            }
            Step::Read { sector, bytes } => {
                assert!(
                    bytes > 0
                        && bytes <= READ_BYTES
                        && bytes.is_multiple_of(logical_bytes as usize)
                );
                assert!(sector.is_multiple_of(u64::from(logical_bytes / 512)));
                finder.feed(image.get(sector as usize * 512..).and_then(|rest| rest.get(..bytes)));
            }
        }
    }
    panic!("no end");
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes an entry of the boot record in a block: index, type, start and blocks.
fn record(image: &mut [u8], block_at: usize, entry: (usize, u8, u32, u32)) {
    let (index, kind, start, blocks) = entry;
    let at = block_at + 446 + index * 16;
    image[at + 4] = kind;
    put(image, at + 8, &start.to_le_bytes());
    put(image, at + 12, &blocks.to_le_bytes());
    put(image, block_at + 510, &[0x55, 0xaa]);
}

fn mbr() -> Vec<u8> {
    let mut image = vec![0; 512 * 1000];
    record(&mut image, 0, (0, 0x83, 10, 100));
    record(&mut image, 0, (1, 0x05, 200, 500));
    record(&mut image, 0, (2, 0x83, 900, 101));
    record(&mut image, 200 * 512, (0, 0x83, 2, 50));
    record(&mut image, 200 * 512, (1, 0x05, 100, 60));
    record(&mut image, 300 * 512, (1, 0x05, 300, 60));
    record(&mut image, 500 * 512, (0, 0x83, 1, 40));
    image
}

#[test]
fn boot_records() {
    let image = mbr();
    let extent = |start, sectors| Ok(Extent { start, sectors });
    assert_eq!(find(&image, 512, 1), extent(10, 100));
    assert_eq!(find(&image, 512, 2), extent(200, 500));
    assert_eq!(find(&image, 512, 3), Err(NoPartition::OutOfRange));
    assert_eq!(find(&image, 512, 4), Err(NoPartition::NotThere));
    assert_eq!(find(&image, 512, 5), extent(202, 50));
    // A record with a link alone is not counted.
    assert_eq!(find(&image, 512, 6), extent(501, 40));
    assert_eq!(find(&image, 512, 7), Err(NoPartition::NotThere));
    assert_eq!(find(&image, 512, 0), Err(NoPartition::NotThere));
    assert_eq!(find(&vec![0; 512 * 100], 512, 1), Err(NoPartition::NoTable));
    assert_eq!(find(&[], 512, 1), Err(NoPartition::NoTable));
    // Records that lead back.
    let mut image = mbr();
    record(&mut image, 300 * 512, (1, 0x05, 0, 60));
    assert_eq!(find(&image, 512, 6), Err(NoPartition::BadTable));
    // Blocks of 4096 bytes: the numbers are of blocks.
    let mut image = vec![0; 4096 * 100];
    record(&mut image, 0, (0, 0x83, 10, 20));
    assert_eq!(find(&image, 4096, 1), extent(80, 160));
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// A GPT with its backup; partition `n` is at block 100 n, n + 9 blocks long.
fn gpt(block: usize, used: &[u32]) -> Vec<u8> {
    let blocks = 8192usize;
    let mut image = vec![0; block * blocks];
    record(&mut image, 0, (0, 0xee, 1, u32::MAX));
    let mut entries = vec![0; 128 * 128];
    for number in used {
        let at = (*number as usize - 1) * 128;
        put(&mut entries, at, &[0xaf; 32]);
        let first = u64::from(*number) * 100;
        put(&mut entries, at + 32, &first.to_le_bytes());
        put(&mut entries, at + 40, &(first + u64::from(*number) + 8).to_le_bytes());
    }
    let table = (128 * 128usize).div_ceil(block);
    let last = blocks - 1;
    for (own, other, entries_at) in [(1, last, 2), (last, 1, last - table)] {
        put(&mut image, entries_at * block, &entries);
        let mut header = [0; 92];
        put(&mut header, 0, b"EFI PART\0\0\x01\0");
        put(&mut header, 12, &92u32.to_le_bytes());
        for (at, value) in [(24, own), (32, other), (40, 40), (48, last - 40), (72, entries_at)] {
            put(&mut header, at, &(value as u64).to_le_bytes());
        }
        put(&mut header, 80, &128u32.to_le_bytes());
        put(&mut header, 84, &128u32.to_le_bytes());
        put(&mut header, 88, &crc(&entries).to_le_bytes());
        let sum = crc(&header);
        put(&mut header, 16, &sum.to_le_bytes());
        put(&mut image, own * block, &header);
    }
    image
}

#[test]
fn the_checksum_is_the_usual_one() {
    assert_eq!(crc(b"123456789"), 0xcbf4_3926);
}

#[test]
fn guid_partition_tables() {
    for block in [512usize, 4096] {
        let per_block = block as u64 / 512;
        let used = [1, 3, 33, 64];
        let extent = |number: u64| {
            Ok(Extent { start: number * 100 * per_block, sectors: (number + 9) * per_block })
        };
        let image = gpt(block, &used);
        let look = |image: &[u8], number| find(image, block as u32, number);
        for number in used {
            assert_eq!(look(&image, number as u16), extent(number.into()));
        }
        assert_eq!(look(&image, 2), Err(NoPartition::NotThere));
        assert_eq!(look(&image, 128), Err(NoPartition::NotThere));
        assert_eq!(look(&image, 129), Err(NoPartition::NotThere));
        // One byte wrong in the first table: the backup is used; in both: nothing is believed.
        for at in [block + 40, 2 * block + 5, block + 16, block + 88] {
            let mut image = image.clone();
            image[at] ^= 1;
            assert_eq!(look(&image, 3), extent(3));
            let end = image.len();
            image[end - block + 41] ^= 1;
            assert_eq!(look(&image, 3), Err(NoPartition::BadTable));
        }
        // Outside what may be used.
        let image = gpt(block, &[82]);
        assert_eq!(look(&image, 82), Err(NoPartition::OutOfRange));
    }
}

proptest! {
    /// Whatever a disk holds, the search ends, reads only the disk and gives only what is on it
    /// (which `find` checks).
    #[test]
    fn any_disk(
        base in 0..3usize,
        changes in prop::collection::vec((0..6000usize, any::<u8>()), 0..12),
        number in 0..140u16,
        large: bool,
    ) {
        let block = if large { 4096 } else { 512 };
        let mut image = match base {
            0 => mbr(),
            1 => gpt(block, &[1, 2, 3]),
            _ => vec![0; 512 * 80],
        };
        image.truncate(image.len() / block * block);
        for (at, byte) in changes {
            // Mostly where it matters.
            let at = if base == 0 && at > 600 { 200 * 512 + at % 600 } else { at };
            if let Some(to) = image.get_mut(at) {
                *to = byte;
            }
        }
        let _ = find(&image, block as u32, number);
    }
}

/// What the part below was asked.
#[derive(Debug, Default)]
struct Asked(spin::Mutex<Vec<(Operation, u64)>>);

impl BlockDevice for Asked {
    fn info(&self) -> DeviceInfo {
        info(1000, 512)
    }
    fn submit(&self, _vcpu: u32, io: &Io<'_>, _tag: Tag) -> Submitted {
        self.0.lock().push((io.operation, io.sector));
        Submitted::Accepted
    }
    fn commit(&self, _vcpu: u32) {}
}

#[test]
fn a_part_is_all_there_is() {
    let part = Part::of(Asked::default(), Extent { start: 100, sectors: 50 });
    assert_eq!(part.info().sectors, 50);
    // 4096-byte units that begin at sector 1 of the disk begin at sector 5 of the part.
    assert_eq!(part.info().discard.unwrap().alignment, 5 * 512);
    let segments = [Segment { gpfn: Mfn(1), offset: 0, len: 4096 }];
    let submit = |operation, sector| {
        let data = matches!(operation, Operation::Read | Operation::Write);
        let segments = if data { &segments[..] } else { &[] };
        part.submit(0, &Io { operation, sector, segments }, Tag(0))
    };
    let failed = Submitted::Failed(IoError::Io);
    assert_eq!(submit(Operation::Read, 42), Submitted::Accepted);
    assert_eq!(submit(Operation::Write, 43), failed);
    assert_eq!(submit(Operation::Read, u64::MAX), failed);
    assert_eq!(submit(Operation::Flush, 0), Submitted::Accepted);
    let discard = |sectors| Operation::Discard { sectors, secure: false };
    assert_eq!(submit(discard(50), 0), Submitted::Accepted);
    assert_eq!(submit(discard(51), 0), failed);
    let asked = [(Operation::Read, 142), (Operation::Flush, 100), (discard(50), 100)];
    assert_eq!(*part.device().0.lock(), asked);
    let whole = Part::whole(Asked::default());
    assert_eq!(whole.info().sectors, 1000);
    let shrunk = Part::of(Asked::default(), Extent { start: 990, sectors: 50 });
    assert_eq!(shrunk.info().sectors, 10);
    let gone = Part::of(Asked::default(), Extent { start: 2000, sectors: 50 });
    assert_eq!(gone.info().sectors, 0);
}
