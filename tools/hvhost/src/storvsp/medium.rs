//! What a disk's bytes lie on: a raw file, or a file with a format of its own.

use crate::storvsp::io::Transfer;
use std::fmt::Debug;
use std::io;
use vm_memory::VolatileSlice;

/// The bytes of a disk. Places and lengths are in bytes, whole sectors, and within the
/// disk; workers use a medium at once.
pub trait Medium: Debug + Send + Sync {
    /// Whether transfers go around the page cache.
    fn is_direct(&self) -> bool;

    /// Whether space can be given back.
    fn can_discard(&self) -> bool;

    /// Transfers between `at` and guest memory without a buffer between; `None`: this
    /// needs one.
    fn in_place(
        &self,
        kind: Transfer,
        at: u64,
        pieces: &[VolatileSlice<'_>],
    ) -> Option<io::Result<()>>;

    /// Reads; `data` begins at a multiple of 4096 if the medium is direct.
    ///
    /// # Errors
    /// The system's, or a broken file's.
    fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes; `data` as for [`Self::read`].
    ///
    /// # Errors
    /// The system's, or a broken file's.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Makes zeros without writing them; `false`: not here.
    ///
    /// # Errors
    /// The system's, or a broken file's.
    fn zero(&self, at: u64, bytes: u64) -> io::Result<bool>;

    /// Gives space back: reads as zeros afterwards, or stays as it is.
    ///
    /// # Errors
    /// The system's, or a broken file's.
    fn discard(&self, at: u64, bytes: u64) -> io::Result<()>;

    /// All that was written is on the host's own disk.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;
}
