//! Writing initramfs archives: the "newc" cpio format the Linux kernel unpacks.
//!
//! Only what an initramfs and a [bundle](crate::bundle) need: directories,
//! files, links, and a way to align a file's data to a page.

use std::io::{self, Write};

const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;
/// Fixed part of an entry: magic and thirteen fields of eight hex digits.
const HEADER_BYTES: u64 = 6 + 13 * 8;

/// Writes a newc archive, entry by entry; [`Archive::finish`] ends it.
pub struct Archive<W: Write> {
    out: W,
    at: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, at: 0, inode: 1 }
    }

    /// Adds a directory.
    pub fn dir(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, S_IFDIR | 0o755, (0, 0), &[])
    }

    /// Adds a file with the given permission bits.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, S_IFREG | mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, S_IFCHR | 0o600, (major, minor), &[])
    }

    /// Adds a file whose data begins at a multiple of `align` bytes from the
    /// archive's start, by an entry called `pad_name` in front of it.
    pub fn aligned_file(
        &mut self,
        pad_name: &str,
        name: &str,
        align: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let overhead = |name: &str| (HEADER_BYTES + name.len() as u64 + 1).next_multiple_of(4);
        let unpadded = self.at + overhead(pad_name) + overhead(name);
        let padding = unpadded.next_multiple_of(align) - unpadded;
        let zeroes = vec![0; usize::try_from(padding).map_err(io::Error::other)?];
        self.file(pad_name, 0o444, &zeroes)?;
        self.file(name, 0o444, data)
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        // Archives may be joined; the kernel wants each to end on four bytes,
        // boot loaders like whole sectors.
        let pad = self.at.next_multiple_of(512) - self.at;
        self.zeroes(pad)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| {
            io::Error::other(format!("{name} is too large for a cpio archive (4 GiB)"))
        })?;
        let inode = self.inode;
        self.inode += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align4()?;
        self.put(data)?;
        self.align4()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn align4(&mut self) -> io::Result<()> {
        let pad = self.at.next_multiple_of(4) - self.at;
        self.zeroes(pad)
    }

    fn zeroes(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut io::Read::take(io::repeat(0), count), &mut self.out)?;
        self.at += count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
        haystack.windows(needle.len()).position(|w| w == needle)
    }

    #[test]
    fn aligned_data_lies_on_its_boundary() {
        for name in ["a", "pontoon/kernel", "some/longer/name/of/a/file"] {
            let mut archive = Archive::new(Vec::new());
            archive.dir("pontoon").unwrap();
            archive.file("x", 0o644, b"odd").unwrap();
            archive.aligned_file("pad", name, 4096, b"NEEDLE-IN-HAY").unwrap();
            let bytes = archive.finish().unwrap();
            assert_eq!(find(&bytes, b"NEEDLE-IN-HAY").unwrap() % 4096, 0);
            assert_eq!(bytes.len() % 512, 0);
        }
    }

    #[test]
    fn header_is_newc() {
        let mut archive = Archive::new(Vec::new());
        archive.file("hello", 0o755, b"world!").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000006");
        assert_eq!(&bytes[94..102], b"00000006");
        assert_eq!(&bytes[110..116], b"hello\0");
        assert_eq!(&bytes[116..122], b"world!");
        assert!(find(&bytes, b"TRAILER!!!\0").is_some());
    }
}
