//! What a disk or a part of it is, told by its magic numbers.

use super::bytes::{ReadAt, le16, le32, peek};

/// File formats of disk images that are not the disk's bytes as they are.
///
/// Names, and where their magic number lies.
const CONTAINERS: [(&str, u64, &[u8]); 7] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("VHDX", 0, b"vhdxfile"),
    // A dynamic VHD begins with a copy of its footer.
    ("VHD (dynamic)", 0, b"conectix"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK (descriptor)", 0, b"# Disk DescriptorFile"),
    ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ("gzip-compressed", 0, b"\x1f\x8b\x08"),
];

/// The name of an image's file format if it is not raw.
#[must_use]
pub fn container(image: &dyn ReadAt) -> Option<&'static str> {
    let found = CONTAINERS.iter().find(|(_, at, magic)| has(image, *at, magic));
    found.map(|(name, ..)| *name)
}

/// The size of the disk in a VHD of fixed size: the disk's bytes as they are, and
/// a footer behind them (Virtual Hard Disk Image Format Specification, 1.0).
#[must_use]
pub fn fixed_vhd(image: &dyn ReadAt) -> Option<u64> {
    let footer: [u8; 512] = peek(image, image.len().checked_sub(512)?)?;
    let size = footer.get(48..).and_then(|f| f.first_chunk()).map(|f| u64::from_be_bytes(*f))?;
    let fixed = footer.starts_with(b"conectix") && footer.get(60..64) == Some(&[0, 0, 0, 2]);
    (fixed && size <= image.len() - 512).then_some(size)
}

/// What a partition, or a disk without any, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT of any size.
    Fat,
    /// Something known that is not read here.
    Other(&'static str),
}

impl Content {
    /// A physical volume of LVM's.
    pub const LVM: Self = Self::Other("LVM");
}

/// Contents told by a fixed magic number: name, offset, magic.
const CONTENTS: [(&str, u64, &[u8]); 15] = [
    ("XFS", 0, b"XFSB"),
    ("Btrfs", 0x1_0040, b"_BHRfS_M"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("LVM", 0x218, b"LVM2 001"),
    ("Linux RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("squashfs", 0, b"hsqs"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("ISO 9660", 0x8001, b"CD001"),
    ("ReiserFS", 0x1_0034, b"ReIsEr"),
    ("JFS", 0x8000, b"JFS1"),
    ("bcachefs", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
];

/// What `part` holds; `None` if nothing is recognised.
#[must_use]
pub fn content(part: &dyn ReadAt) -> Option<Content> {
    if let Some((name, ..)) = CONTENTS.iter().find(|(_, at, magic)| has(part, *at, magic)) {
        return Some(Content::Other(name));
    }
    // linux/fs/ext4: s_magic at 0x38 of the superblock at 1024.
    if has(part, 1024 + 0x38, &[0x53, 0xef]) {
        return Some(Content::Ext);
    }
    is_fat(part).then_some(Content::Fat)
}

fn has(source: &dyn ReadAt, at: u64, magic: &[u8]) -> bool {
    let mut bytes = vec![0; magic.len()];
    source.read_at(at, &mut bytes).is_ok() && bytes == magic
}

/// FAT has no magic number, only a parameter block that must make sense. GRUB's
/// boot sector begins like one, but with its fields zero.
fn is_fat(part: &dyn ReadAt) -> bool {
    let Some(sector) = peek::<512>(part, 0) else { return false };
    let sectors = u32::from(le16(&sector, 19)).max(le32(&sector, 32));
    matches!(sector[0], 0xeb | 0xe9)
        && matches!(le16(&sector, 11), 512 | 1024 | 2048 | 4096)
        && sector[13].is_power_of_two()
        && le16(&sector, 14) != 0
        && matches!(sector[16], 1..=4)
        && sectors != 0
        && le16(&sector, 510) == 0xaa55
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(len: usize, at: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn containers_are_named() {
        assert_eq!(container(&with(4096, 0, b"QFI\xfb")), Some("qcow2"));
        assert_eq!(container(&with(4096, 0, b"vhdxfile")), Some("VHDX"));
        let mut fixed = with(4096 + 512, 4096, b"conectix");
        assert_eq!(fixed_vhd(&fixed), None);
        fixed[4096 + 48..4096 + 56].copy_from_slice(&4096u64.to_be_bytes());
        fixed[4096 + 63] = 2;
        assert_eq!((container(&fixed), fixed_vhd(&fixed)), (None, Some(4096)));
        fixed[4096 + 48] = 1;
        assert_eq!(fixed_vhd(&fixed), None);
        assert_eq!(container(&with(4096, 0, b"conectix")), Some("VHD (dynamic)"));
        assert_eq!(container(&vec![0; 4096]), None);
        assert_eq!(container(&Vec::new()), None);
    }

    #[test]
    fn contents_are_named() {
        assert_eq!(content(&with(4096, 0, b"XFSB")), Some(Content::Other("XFS")));
        assert_eq!(content(&with(0x2_0000, 0x1_0040, b"_BHRfS_M")), Some(Content::Other("Btrfs")));
        assert_eq!(content(&with(4096, 1080, b"\x53\xef")), Some(Content::Ext));
        assert_eq!(content(&with(4096, 510, b"\x55\xaa")), None);
        assert_eq!(content(&Vec::new()), None);
    }
}
