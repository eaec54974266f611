//! Bytes that can be read from anywhere: an image, a part of one, memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

/// Something with a length that can be read at any offset, and never written.
pub trait ReadAt {
    /// Bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `to` from `offset` on; an error if there are not so many bytes.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(to.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(from);
        Ok(())
    }
}

/// An image file or a block device, open for reading only.
pub struct Image {
    file: File,
    len: u64,
}

impl Image {
    /// Opens `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        // A block device's metadata has no length; its end has a position.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
    }
}

impl ReadAt for Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }
}

/// A part of something, as a partition is of a disk.
pub struct Window {
    whole: Rc<dyn ReadAt>,
    start: u64,
    len: u64,
}

impl Window {
    /// `len` bytes from `start` on, cut off where `whole` ends.
    #[must_use]
    pub fn new(whole: Rc<dyn ReadAt>, start: u64, len: u64) -> Self {
        let len = len.min(whole.len().saturating_sub(start));
        Self { whole, start, len }
    }
}

impl ReadAt for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.whole.read_at(self.start + offset, to)
    }
}

/// The bytes at `offset`, if there are so many.
pub(super) fn peek<const N: usize>(from: &dyn ReadAt, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    from.read_at(offset, &mut bytes).ok().map(|()| bytes)
}

/// A little-endian word of 16 bits at `at`; 0 behind the end.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// A little-endian word of 32 bits at `at`; 0 behind the end.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A little-endian word of 64 bits at `at`; 0 behind the end.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_where_they_end() {
        let whole: Rc<dyn ReadAt> = Rc::new((0..100).collect::<Vec<u8>>());
        let window = Window::new(Rc::clone(&whole), 10, 20);
        let mut two = [0; 2];
        window.read_at(18, &mut two).unwrap();
        assert_eq!(two, [28, 29]);
        assert!(window.read_at(19, &mut two).is_err());
        assert!(window.read_at(u64::MAX, &mut two).is_err());
        assert_eq!(Window::new(Rc::clone(&whole), 90, 50).len(), 10);
        assert_eq!(Window::new(whole, 200, 50).len(), 0);
    }
}
