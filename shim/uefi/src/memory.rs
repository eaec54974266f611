//! Pages below 4 GiB, where the shim looks for everything it is given.

use core::ptr::NonNull;

use uefi::boot::{self, AllocateType, MemoryType};

use crate::Failure;

const PAGE: usize = 4096;
const BELOW: u64 = (1 << 32) - 1;

/// Pages of our own, zeroed; kept for good.
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// At least `bytes`, of which `bytes` count.
    pub fn new(what: &'static str, bytes: usize, kind: MemoryType) -> Result<Self, Failure> {
        let pages = bytes.div_ceil(PAGE).max(1);
        let start = boot::allocate_pages(AllocateType::MaxAddress(BELOW), kind, pages)
            .map_err(|e| Failure::Firmware(what, e.status()))?;
        // SAFETY: so many pages were allocated just now.
        unsafe { start.write_bytes(0, pages * PAGE) };
        Ok(Self { start, len: bytes })
    }

    /// Where they are: below 4 GiB.
    pub fn address(&self) -> u32 {
        // Not cut: they were asked for below 4 GiB.
        self.start.addr().get() as u32
    }

    /// One past the last byte that counts.
    pub fn end(&self) -> u32 {
        self.address() + self.len as u32
    }

    /// The bytes that count.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated, initialised, and nobody else's.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// See [`Self::bytes`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The bytes that count, for good.
    pub fn leak(self) -> &'static mut [u8] {
        // SAFETY: as above; the pages are never given back.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
