//! The data buffer of a SCSI command: one range of guest memory, cut to the
//! length the request names.

use crate::memory::Memory;
use crate::vmbus::PageRange;
use vm_memory::VolatileSlice;

/// A command's data buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer<'a> {
    memory: &'a Memory,
    range: Option<&'a PageRange>,
    len: u64,
}

impl<'a> Buffer<'a> {
    /// No buffer.
    #[must_use]
    pub fn none(memory: &'a Memory) -> Self {
        Self { memory, range: None, len: 0 }
    }

    /// The first `len` bytes of `range`; `None`: it is shorter, or no memory.
    #[must_use]
    pub fn new(memory: &'a Memory, range: &'a PageRange, len: u32) -> Option<Self> {
        let fits = range.len >= len && range.is_backed(memory);
        fits.then_some(Self { memory, range: Some(range), len: len.into() })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` bytes as pieces of guest memory; `None`: there are fewer.
    #[must_use]
    pub fn slices(&self, len: u64) -> Option<Vec<VolatileSlice<'a>>> {
        if len > self.len {
            return None;
        }
        match self.range {
            Some(range) => range.slices(self.memory, 0, len),
            None => Some(Vec::new()),
        }
    }

    /// Puts `data`, or as much as there is room for; how much that was.
    #[must_use]
    pub fn put(&self, data: &[u8]) -> u32 {
        let count = data.len().min(usize::try_from(self.len).unwrap_or(usize::MAX));
        let data = data.get(..count).unwrap_or_default();
        let done = self.range.and_then(|range| range.write(self.memory, 0, data));
        // At most the length of the buffer, which is 32 bits.
        if done.is_some() { count as u32 } else { 0 }
    }

    /// The first `count` bytes; `None`: there are fewer.
    #[must_use]
    pub fn get(&self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        if count as u64 > self.len {
            return None;
        }
        if let Some(range) = self.range {
            range.read(self.memory, 0, &mut bytes)?;
        }
        Some(bytes)
    }
}
