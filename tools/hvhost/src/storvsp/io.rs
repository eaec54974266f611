//! Reading and writing files from and into guest memory, and their allocation.
#![allow(unsafe_code, reason = "vectored I/O on guest memory")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use vm_memory::VolatileSlice;

/// Most pieces of one system call.
const PIECES: usize = libc::UIO_MAXIOV as usize;

/// Direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file into memory.
    Read,
    /// From memory into the file.
    Write,
}

/// Transfers all of `pieces` at `at` bytes of the file.
///
/// # Errors
/// The system's; [`io::ErrorKind::UnexpectedEof`] behind the file's end.
pub fn transfer(
    file: &File,
    kind: Transfer,
    mut at: u64,
    pieces: &[VolatileSlice<'_>],
) -> io::Result<()> {
    let mut pieces: Vec<VolatileSlice<'_>> = pieces.to_vec();
    while !pieces.is_empty() {
        let done = once(file, kind, at, &pieces)?;
        if done == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += done as u64;
        let mut left = done;
        while let Some(first) = pieces.first_mut() {
            if left < first.len() {
                *first = first.offset(left).map_err(io::Error::other)?;
                break;
            }
            left -= first.len();
            pieces.remove(0);
        }
    }
    Ok(())
}

fn once(file: &File, kind: Transfer, at: u64, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = pieces.iter().take(PIECES).map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let at = libc::off64_t::try_from(at).map_err(io::Error::other)?;
    // At most UIO_MAXIOV.
    let count = vectors.len() as libc::c_int;
    loop {
        // The guest may change the memory meanwhile: it is read and written by the
        // kernel, and never through a reference.
        let done = match kind {
            // SAFETY: each vector is a piece of mapped guest memory that its guard
            // keeps mapped; the descriptor is open.
            Transfer::Read => unsafe {
                libc::preadv64(file.as_raw_fd(), vectors.as_ptr(), count, at)
            },
            // SAFETY: as above.
            Transfer::Write => unsafe {
                libc::pwritev64(file.as_raw_fd(), vectors.as_ptr(), count, at)
            },
        };
        if let Ok(done) = usize::try_from(done) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A buffer whose start is a multiple of 4096.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    const ALIGN: usize = 4096;

    /// `len` bytes of zero.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0u8; len + Self::ALIGN];
        let start = bytes.as_ptr().align_offset(Self::ALIGN).min(Self::ALIGN);
        Self { bytes, start, len }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn many_pieces_and_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        file.write_all(&data).unwrap();
        let mut to = vec![0u8; 3000];
        let pieces: Vec<VolatileSlice<'_>> = to.chunks_mut(2).map(VolatileSlice::from).collect();
        transfer(&file, Transfer::Read, 7, &pieces).unwrap();
        assert_eq!(to, data[7..3007]);
        let mut to = [0u8; 10];
        let end = transfer(&file, Transfer::Read, 4995, &[VolatileSlice::from(&mut to[..])]);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut aligned = Aligned::zeroed(100);
        assert_eq!(aligned.as_mut_slice().as_ptr() as usize % 4096, 0);
        aligned.as_mut_slice().fill(9);
        let piece = VolatileSlice::from(aligned.as_mut_slice());
        transfer(&file, Transfer::Write, 5000, &[piece]).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5100);
    }
}
