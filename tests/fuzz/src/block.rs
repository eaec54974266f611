//! Partition tables, and the option that names the disks.

use pv_frontends::blkback::DeviceInfo;
use pv_frontends::disk::{Finder, READ_BYTES, Step};
use pv_frontends::vbd;

/// A disk.
const DEVICE: DeviceInfo = DeviceInfo {
    sectors: 8192,
    logical_bytes: 512,
    physical_bytes: 4096,
    read_only: false,
    cdrom: false,
    removable: false,
    flush: true,
    discard: None,
    max_transfer_bytes: 16384,
    max_segments: 6,
    no_gaps: true,
    depth: 3,
};

/// A disk's first blocks, repeated to its end: the search ends, and stays on the disk.
pub(crate) fn partition(data: &[u8]) {
    let Some((setup, image)) = data.split_first_chunk::<2>() else { return };
    let logical_bytes = if setup[0] & 1 == 0 { 512 } else { 4096 };
    let device = DeviceInfo { logical_bytes, ..DEVICE };
    let mut finder = Finder::new(&device, setup[1].into());
    for _ in 0..1000 {
        match finder.step() {
            Step::Read { sector, bytes } => {
                assert!(bytes <= READ_BYTES && sector + bytes as u64 / 512 <= 8192);
                let at = sector as usize * 512 % (image.len().max(1) + 512);
                finder.feed(image.get(at..).and_then(|rest| rest.get(..bytes)));
            }
            Step::Done(found) => {
                if let Ok(extent) = found {
                    assert!(extent.start > 0 && extent.start + extent.sectors <= 8192);
                }
                return;
            }
        }
    }
    panic!("the search has no end");
}

/// `pontoon.vbd`: what is read has numbers, and no two disks are the same.
pub(crate) fn vbds(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Ok(entries) = vbd::parse(text) {
        for (index, entry) in entries.iter().enumerate() {
            let number = entry.vdev.number().expect("a disk has a number");
            assert_eq!(vbd::Vdev::from_number(number), Some(entry.vdev));
            assert_eq!(vbd::Vdev::parse(&entry.vdev.name()), Some(entry.vdev));
            assert!(entries[..index].iter().all(|other| other.vdev != entry.vdev));
        }
    }
}

pub(crate) fn partition_seeds() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 2 + 512 * 4];
    mbr[1] = 5;
    for (index, kind, start) in [(0, 0x83, 4u32), (1, 0x05, 2)] {
        let at = 2 + 446 + index * 16;
        mbr[at + 4] = kind;
        mbr[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        mbr[at + 12] = 2;
    }
    mbr[2 + 1024 + 450] = 0x83;
    mbr[2 + 1024 + 454] = 1;
    mbr[2 + 1024 + 458] = 1;
    for block in [0, 2] {
        mbr[2 + block * 512 + 510..2 + block * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    let mut primary = mbr.clone();
    primary[1] = 1;
    // A header whose checksums are right, with one partition.
    let mut gpt = vec![0; 2 + 512 * 40];
    gpt[1] = 1;
    gpt[2 + 450] = 0xee;
    gpt[2 + 510..2 + 512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 4];
    entries[..16].fill(7);
    entries[32] = 64;
    entries[40] = 99;
    gpt[2 + 1024..2 + 1024 + 512].copy_from_slice(&entries);
    let mut header = [0; 92];
    header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    header[12] = 92;
    (header[24], header[40], header[48], header[49]) = (1, 40, 0, 4);
    (header[72], header[80], header[84]) = (2, 4, 128);
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    gpt[2 + 512..2 + 512 + 92].copy_from_slice(&header);
    vec![mbr, primary, gpt]
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach what they are for.
    #[test]
    fn seeds_have_partitions() {
        let found = |seed: &[u8]| {
            let mut finder = Finder::new(&DEVICE, seed[1].into());
            loop {
                match finder.step() {
                    Step::Done(found) => {
                        return found.ok().map(|extent| (extent.start, extent.sectors));
                    }
                    Step::Read { sector, bytes } => {
                        let at = 2 + sector as usize * 512;
                        finder.feed(seed.get(at..).and_then(|rest| rest.get(..bytes)));
                    }
                }
            }
        };
        let extents: Vec<_> = partition_seeds().iter().map(|seed| found(seed)).collect();
        assert_eq!(extents, [Some((3, 1)), Some((4, 2)), Some((64, 36))]);
    }
}
