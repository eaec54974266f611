//! Who gets which memory: the shim's own region, the direct map, and the guest's frames.

use core::ops::Range;

use arrayvec::ArrayVec;
use boot_abi::{BootInfo, MAX_REGIONS};
use xen_abi::{Mfn, Pfn};

use crate::mm::layout::DIRECT_MAP_SIZE;

/// Memory below this is left alone: firmware's data, and where other processors start.
const LOW_END: u64 = 0x10_0000;
/// The boot page tables map this much.
pub const BOOT_MAP_END: u64 = 1 << 32;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 1 << 21;

/// Disjoint ranges in ascending order.
pub type Ranges = ArrayVec<Range<u64>, MAX_REGIONS>;

/// All RAM above the first megabyte, whole pages, sorted, joined; what other entries of the map
/// claim is taken out.
pub fn ram(info: &BootInfo) -> Ranges {
    let mut list: Ranges = info
        .regions
        .iter()
        .filter(|r| r.ram)
        .map(|r| {
            r.start.next_multiple_of(PAGE).max(LOW_END)..(r.end & !(PAGE - 1)).min(DIRECT_MAP_SIZE)
        })
        .filter(|r| r.start < r.end)
        .collect();
    list.sort_unstable_by_key(|r| r.start);
    let mut joined = Ranges::new();
    for range in list {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    for other in info.regions.iter().filter(|r| !r.ram && r.start < r.end) {
        joined = without(&joined, &(other.start & !(PAGE - 1)..other.end.next_multiple_of(PAGE)));
    }
    joined
}

/// Whether the range is RAM of the first megabyte: the guest gets none of it, but a loader may have
/// put small files there.
pub fn is_low_ram(info: &BootInfo, range: &Range<u64>) -> bool {
    range.end <= LOW_END
        && info.regions.iter().any(|r| r.ram && r.start <= range.start && range.end <= r.end)
        && !info.regions.iter().any(|r| !r.ram && r.start < range.end && range.start < r.end)
}

/// A page of RAM below 640 KiB, where processors start: the highest there is that holds no file.
pub fn low_page(info: &BootInfo) -> Option<u64> {
    const LOW_RAM_END: u64 = 0x9_f000;
    let mut pages = (1..LOW_RAM_END / PAGE).rev().map(|page| page * PAGE);
    let is_file = |page: &Range<u64>| {
        super::payload(info).any(|file| file.start < page.end && page.start < file.end)
    };
    pages.find(|&page| {
        let page = page..page + PAGE;
        is_low_ram(info, &page) && !is_file(&page)
    })
}

/// `list` less `hole`.
pub fn without(list: &Ranges, hole: &Range<u64>) -> Ranges {
    let mut result = Ranges::new();
    for range in list {
        for part in [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end] {
            if part.start < part.end {
                let _ = result.try_push(part);
            }
        }
    }
    result
}

/// The highest place below 4 GiB for `bytes`, 2 MiB aligned, clear of `taken`.
pub fn place(ram: &Ranges, taken: &[Range<u64>], bytes: u64) -> Option<Range<u64>> {
    let mut free = ram.clone();
    for range in taken {
        free = without(&free, range);
    }
    free.iter().rev().find_map(|range| {
        let end = range.end.min(BOOT_MAP_END);
        let start = end.checked_sub(bytes)? & !(LARGE_PAGE - 1);
        (start >= range.start).then_some(start..start + bytes)
    })
}

/// Where the free memory begins that ends at `address`, clear of `taken`.
pub fn free_below(ram: &Ranges, taken: &[Range<u64>], address: u64) -> u64 {
    let mut free = ram.clone();
    for range in taken {
        free = without(&free, range);
    }
    let range = free.iter().find(|range| range.start < address && address <= range.end);
    range.map_or(address, |range| range.start)
}

/// The guest's frames: pfns count up through the ranges.
pub struct GuestFrames {
    ranges: Ranges,
    pages: u64,
}

impl GuestFrames {
    /// The frames of `ranges`, at most `limit` of them.
    pub fn new(ranges: Ranges, limit: u64) -> Self {
        let mut kept = Ranges::new();
        let mut pages = 0;
        for range in &ranges {
            let count = ((range.end - range.start) / PAGE).min(limit - pages);
            if count != 0 {
                kept.push(range.start..range.start + count * PAGE);
                pages += count;
            }
        }
        Self { ranges: kept, pages }
    }

    /// Number of frames.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The ranges of physical addresses.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The frame of a pfn and how many follow it contiguously, it included.
    pub fn run(&self, pfn: Pfn) -> Option<(Mfn, u64)> {
        let mut first = 0;
        for range in &self.ranges {
            let count = (range.end - range.start) / PAGE;
            if pfn.0 < first + count {
                let index = pfn.0 - first;
                return Some((Mfn(range.start / PAGE + index), count - index));
            }
            first += count;
        }
        None
    }

    /// The pfn of a physical address.
    pub fn pfn(&self, address: u64) -> Option<Pfn> {
        let mut first = 0;
        for range in &self.ranges {
            if range.contains(&address) {
                return Some(Pfn(first + (address - range.start) / PAGE));
            }
            first += (range.end - range.start) / PAGE;
        }
        None
    }
}
