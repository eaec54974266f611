//! The pseudo-physical memory map a domU sees (`XENMEM_memory_map`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An E820 entry as `XENMEM_memory_map` returns it (`struct e820entry`: 20 bytes, packed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// Kind.
    pub kind: u32,
}
static_assertions::const_assert_eq!(size_of::<Entry>(), 20);

/// Usable memory.
pub const RAM: u32 = 1;

/// The map of a domU whose toolstack set none: all its pages as RAM from 0.
#[must_use]
pub const fn pseudo_map(nr_pages: u64) -> [Entry; 1] {
    [Entry { addr: 0, size: nr_pages.saturating_mul(4096), kind: RAM }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_covers_all() {
        let [entry] = pseudo_map(0x40000);
        assert_eq!(entry, Entry { addr: 0, size: 1 << 30, kind: RAM });
        assert_eq!(entry.as_bytes().len(), 20);
    }
}
