//! A packet taken out of a ring, and the guest memory it names.

use crate::memory::Memory;
use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::packet::GpaDirectHeader;
use hv_abi::vmbus::{GpaRange, PacketDescriptor, PacketType};
use std::mem::size_of;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use zerocopy::{FromBytes, FromZeros};

const PAGE: u64 = PAGE_SIZE as u64;

/// A packet, copied whole; its buffer is used again for the next.
#[derive(Debug)]
pub struct Packet {
    descriptor: PacketDescriptor,
    /// All behind the descriptor.
    body: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self { descriptor: PacketDescriptor::new_zeroed(), body: Vec::new() }
    }
}

impl Packet {
    /// Begins a packet; gives the room for what follows its descriptor. `None`:
    /// its lengths contradict each other.
    pub fn reset(&mut self, descriptor: PacketDescriptor) -> Option<&mut [u8]> {
        const WORDS: u16 = (size_of::<PacketDescriptor>() / 8) as u16;
        if descriptor.data_offset8 < WORDS || descriptor.length8 < descriptor.data_offset8 {
            return None;
        }
        self.descriptor = descriptor;
        self.body.clear();
        self.body.resize(usize::from(descriptor.length8 - WORDS) * 8, 0);
        Some(&mut self.body)
    }

    /// Type.
    #[must_use]
    pub fn kind(&self) -> PacketType {
        self.descriptor.packet_type
    }

    /// Transaction, where an answer is wanted or this is one.
    #[must_use]
    pub fn transaction(&self) -> Option<u64> {
        let asked = self.descriptor.flags & PacketDescriptor::COMPLETION_REQUESTED != 0;
        (asked || self.kind() == PacketType::COMPLETION).then_some(self.descriptor.transaction_id)
    }

    fn split(&self) -> (&[u8], &[u8]) {
        let at = usize::from(self.descriptor.data_offset8) * 8 - size_of::<PacketDescriptor>();
        self.body.split_at_checked(at).unwrap_or_default()
    }

    /// What belongs to the descriptor.
    #[must_use]
    pub fn more(&self) -> &[u8] {
        self.split().0
    }

    /// Payload, a multiple of 8 bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.split().1
    }

    /// Ranges of guest memory a GPA-direct packet names; none for other packets.
    /// `None`: they are not all there or make no sense.
    #[must_use]
    pub fn ranges(&self) -> Option<Vec<PageRange>> {
        if self.kind() != PacketType::GPA_DIRECT {
            return Some(Vec::new());
        }
        let (header, list) = GpaDirectHeader::read_from_prefix(self.split().0).ok()?;
        PageRange::parse_list(header.range_count, list)
    }
}

/// A range of guest memory in whole pages, byte-exact at its ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRange {
    /// Into the first page.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Page addresses.
    pub pages: Vec<u64>,
}

impl PageRange {
    /// Reads `count` ranges with their page numbers.
    #[must_use]
    pub fn parse_list(count: u32, mut list: &[u8]) -> Option<Vec<Self>> {
        let mut ranges = Vec::new();
        for _ in 0..count {
            let (range, rest) = GpaRange::read_from_prefix(list).ok()?;
            if range.byte_offset as usize >= PAGE_SIZE {
                return None;
            }
            // Bounded by the list's own length before anything is allocated.
            let bytes = usize::try_from(range.pages()).ok()?.checked_mul(8)?;
            let (numbers, rest) = rest.split_at_checked(bytes)?;
            let pages = numbers
                .chunks_exact(8)
                .map(|n| n.try_into().map(u64::from_le_bytes).ok()?.checked_mul(PAGE))
                .collect::<Option<Vec<u64>>>()?;
            ranges.push(Self { offset: range.byte_offset, len: range.byte_count, pages });
            list = rest;
        }
        Some(ranges)
    }

    /// Whether all of it is memory.
    #[must_use]
    pub fn is_backed(&self, memory: &Memory) -> bool {
        self.pages.iter().all(|page| memory.check_range(GuestAddress(*page), PAGE_SIZE))
    }

    /// The pieces of `len` bytes at `at`, as addresses and lengths; adjacent pages
    /// in one piece. `None`: not inside the range.
    #[must_use]
    pub fn pieces(&self, at: u64, len: u64) -> Option<Vec<(u64, u64)>> {
        if at.checked_add(len)? > u64::from(self.len) {
            return None;
        }
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        let (mut at, mut left) = (at + u64::from(self.offset), len);
        while left != 0 {
            let page = self.pages.get(usize::try_from(at / PAGE).ok()?)?;
            let offset = at % PAGE;
            let count = left.min(PAGE - offset);
            match pieces.last_mut() {
                Some((start, size)) if *start + *size == page + offset => *size += count,
                _ => pieces.push((page + offset, count)),
            }
            at += count;
            left -= count;
        }
        Some(pieces)
    }

    /// The pieces as slices of guest memory.
    #[must_use]
    pub fn slices<'a>(
        &self,
        memory: &'a Memory,
        at: u64,
        len: u64,
    ) -> Option<Vec<VolatileSlice<'a>>> {
        let slice = |(start, len): (u64, u64)| {
            memory.get_slice(GuestAddress(start), usize::try_from(len).ok()?).ok()
        };
        self.pieces(at, len)?.into_iter().map(slice).collect()
    }

    /// Copies `bytes` to `at`; `None`: not inside, or no memory.
    #[must_use]
    pub fn write(&self, memory: &Memory, at: u64, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        for (start, len) in self.pieces(at, bytes.len() as u64)? {
            let (piece, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            memory.write_slice(piece, GuestAddress(start)).ok()?;
            rest = after;
        }
        Some(())
    }

    /// Copies from `at`; `None`: not inside, or no memory.
    #[must_use]
    pub fn read(&self, memory: &Memory, at: u64, to: &mut [u8]) -> Option<()> {
        let mut done = 0;
        for (start, len) in self.pieces(at, to.len() as u64)? {
            let len = usize::try_from(len).ok()?;
            memory.read_slice(to.get_mut(done..done + len)?, GuestAddress(start)).ok()?;
            done += len;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn list(ranges: &[(u32, u32, &[u64])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (byte_offset, byte_count, pages) in ranges {
            bytes
                .extend(GpaRange { byte_count: *byte_count, byte_offset: *byte_offset }.as_bytes());
            pages.iter().for_each(|p| bytes.extend(p.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn ranges_are_read() {
        let bytes = list(&[(8, 8000, &[5, 6]), (0, 4096, &[1])]);
        let ranges = PageRange::parse_list(2, &bytes).unwrap();
        assert_eq!(ranges[0].pages, [0x5000, 0x6000]);
        assert_eq!((ranges[1].offset, ranges[1].len), (0, 4096));
        assert!(PageRange::parse_list(3, &bytes).is_none());
        assert!(PageRange::parse_list(1, &list(&[(4096, 1, &[1, 2])])).is_none());
        assert!(PageRange::parse_list(1, &list(&[(0, u32::MAX, &[1])])).is_none());
        assert!(PageRange::parse_list(1, &list(&[(0, 1, &[u64::MAX])])).is_none());
    }

    #[test]
    fn adjacent_pages_are_one_piece() {
        let range =
            PageRange { offset: 0x100, len: 0x3000, pages: vec![0x5000, 0x6000, 0x9000, 0xa000] };
        assert_eq!(range.pieces(0, 0x3000).unwrap(), [(0x5100, 0x1f00), (0x9000, 0x1100)]);
        assert_eq!(range.pieces(0xf00, 0x10).unwrap(), [(0x6000, 0x10)]);
        assert_eq!(range.pieces(0x2fff, 2), None);
        assert_eq!(range.pieces(u64::MAX, 2), None);
    }

    proptest! {
        #[test]
        fn any_list(count in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(ranges) = PageRange::parse_list(count.min(1000), &bytes) {
                for range in ranges {
                    let pieces = range.pieces(0, range.len.into()).unwrap();
                    prop_assert_eq!(pieces.iter().map(|p| p.1).sum::<u64>(), u64::from(range.len));
                }
            }
        }

        #[test]
        fn copies_come_back(offset in 0u32..4096, bytes in proptest::collection::vec(any::<u8>(), 1..9000)) {
            let memory = allocate(64 << 20).unwrap();
            let range = PageRange {
                offset, len: bytes.len() as u32, pages: vec![0x9000, 0x5000, 0x6000, 0x2000],
            };
            range.write(&memory, 0, &bytes).unwrap();
            let mut back = vec![0; bytes.len()];
            range.read(&memory, 0, &mut back).unwrap();
            prop_assert_eq!(back, bytes);
        }
    }
}
