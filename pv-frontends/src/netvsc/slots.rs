//! Pages shared with the host as bytes, and who has which parts of them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hv_abi::PAGE_SIZE;
use translate::platform::PageWords;
use zerocopy::{FromBytes, IntoBytes};

use crate::net::{RxPage, copy_out};
use crate::vmbus::{Hypervisor, Shared, VmBus};

/// Room for a packet's RNDIS header, its per-packet information and, where the packet is to be cut
/// up, its own headers.
pub(super) const SLOT_BYTES: usize = 256;
/// Slots in a page: none crosses its end.
pub(super) const SLOTS_PER_PAGE: usize = PAGE_SIZE / SLOT_BYTES;

/// Pages in a row, as the host sees them.
#[derive(Debug)]
pub(super) struct Pages(Box<[RxPage]>);

impl Pages {
    /// Zeroed pages; `None` without memory.
    pub(super) fn allocate<H: Hypervisor>(hv: &H, count: usize) -> Option<Self> {
        let mut pages: Vec<RxPage> = Vec::with_capacity(count);
        for _ in 0..count {
            let page: Option<Shared<PageWords>> = hv.allocate();
            match page {
                Some(page) => pages.push(RxPage { gpfn: page.gpfn, page: page.view }),
                None => {
                    pages.iter().for_each(|page| hv.free(page.gpfn));
                    return None;
                }
            }
        }
        Some(Self(pages.into_boxed_slice()))
    }

    /// Gives them back, after a while: the host may be in the middle of them still.
    pub(super) fn free<H: Hypervisor>(&self, bus: &VmBus<H>) {
        if !self.0.is_empty() {
            bus.free_later(self.gpfns());
        }
    }

    /// Frame numbers.
    pub(super) fn gpfns(&self) -> Box<[u64]> {
        self.0.iter().map(|page| page.gpfn).collect()
    }

    pub(super) fn as_slice(&self) -> &[RxPage] {
        &self.0
    }

    pub(super) fn get(&self, nr: usize) -> Option<RxPage> {
        self.0.get(nr).copied()
    }

    pub(super) const fn bytes(&self) -> u32 {
        // At most 31 MiB.
        (self.0.len() * PAGE_SIZE) as u32
    }
}

/// A run of bytes in pages the host writes to: everything is copied out once, then looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pages: &'a [RxPage],
    /// Where it begins in the pages.
    pub at: u32,
    /// Its bytes.
    pub bytes: u32,
}

impl<'a> Run<'a> {
    /// A run; `None` where it is not all inside.
    pub(super) fn new(pages: &'a [RxPage], at: u32, bytes: u32) -> Option<Self> {
        let end = u64::from(at) + u64::from(bytes);
        (end <= (pages.len() * PAGE_SIZE) as u64).then_some(Self { pages, at, bytes })
    }

    /// The part of it from `at` on; `None` where it is not all inside.
    pub(super) fn part(&self, at: u32, bytes: u32) -> Option<Self> {
        let end = u64::from(at) + u64::from(bytes);
        // Inside the run, so the sum fits.
        (end <= u64::from(self.bytes)).then(|| Self { at: self.at + at, bytes, ..*self })
    }

    /// Copies its first bytes, as many as there are and fit; how many.
    pub(super) fn copy(&self, into: &mut [u8]) -> usize {
        let (mut at, mut rest) = (self.at as usize, into);
        let there = rest.len().min(self.bytes as usize);
        rest = rest.get_mut(..there).unwrap_or_default();
        while !rest.is_empty() {
            let Some(page) = self.pages.get(at / PAGE_SIZE) else { break };
            let take = rest.len().min(PAGE_SIZE - at % PAGE_SIZE);
            let (now, later) = rest.split_at_mut(take);
            copy_out(page.page, at % PAGE_SIZE, now);
            (rest, at) = (later, at + take);
        }
        there
    }

    /// Copies the structure at `at`; `None` where it is not all inside.
    pub(super) fn read<T: FromBytes + IntoBytes>(&self, at: u32) -> Option<T> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        self.part(at, bytes.len() as u32)?.copy(bytes);
        Some(value)
    }
}

/// Writes bytes one behind the other into pages, from a multiple of 8 on.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pages: &'a [RxPage],
    /// Where the word that is being filled goes.
    at: usize,
    word: u64,
    /// Bytes in the word.
    filled: u32,
}

impl<'a> Writer<'a> {
    /// A writer at `at`, a multiple of 8.
    pub(super) const fn new(pages: &'a [RxPage], at: usize) -> Self {
        Self { pages, at, word: 0, filled: 0 }
    }

    /// Writes bytes.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut whole = [0; 8];
            for (to, from) in whole.iter_mut().zip(chunk) {
                *to = *from;
            }
            let value = u64::from_le_bytes(whole);
            self.word |= value << (8 * self.filled);
            let filled = self.filled + chunk.len() as u32;
            if filled < 8 {
                self.filled = filled;
                continue;
            }
            self.store();
            // What did not fit: nothing where the word was empty before.
            self.word = value.checked_shr(64 - 8 * self.filled).unwrap_or(0);
            self.filled = filled - 8;
        }
    }

    /// Writes bytes of a page.
    pub(super) fn put_page(&mut self, page: &PageWords, offset: usize, bytes: usize) {
        let mut copy = [0; 256];
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let chunk = (end - at).min(copy.len());
            let part = copy.get_mut(..chunk).unwrap_or_default();
            copy_out(page, at, part);
            self.put(part);
            at += chunk;
        }
    }

    /// Fills the last word up with zeros and writes it.
    pub(super) fn finish(mut self) {
        if self.filled > 0 {
            self.store();
        }
    }

    fn store(&mut self) {
        let page = self.pages.get(self.at / PAGE_SIZE);
        if let Some(place) = page.and_then(|page| page.page.get(self.at % PAGE_SIZE / 8)) {
            place.store(self.word, Ordering::Relaxed);
        }
        self.at += 8;
    }
}

/// Which sections of a send buffer are free. Any queue takes one, any gives it back.
#[derive(Debug)]
pub(super) struct Sections {
    /// A bit for each that is taken.
    taken: Box<[AtomicU64]>,
    count: u32,
    /// Bytes of each.
    pub bytes: u32,
}

impl Sections {
    /// Sections of `bytes`, a multiple of 8, each in a buffer.
    pub(super) fn new(buffer_bytes: u32, bytes: u32) -> Self {
        let count = buffer_bytes.checked_div(bytes).unwrap_or(0);
        let words = (count as usize).div_ceil(64);
        Self { taken: (0..words).map(|_| AtomicU64::new(0)).collect(), count, bytes }
    }

    /// Takes one; the search begins at a place that depends on the queue.
    pub(super) fn take(&self, queue: usize) -> Option<u32> {
        let words = self.taken.len();
        for nr in (0..words).map(|nr| (nr + queue) % words) {
            let Some(word) = self.taken.get(nr) else { continue };
            let mut value = word.load(Ordering::Relaxed);
            loop {
                let bit = value.trailing_ones();
                let section = nr as u32 * 64 + bit;
                if bit == 64 || section >= self.count {
                    break;
                }
                // Acquire: who had it before is done with it.
                let with = value | 1 << bit;
                match word.compare_exchange(value, with, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return Some(section),
                    Err(now) => value = now,
                }
            }
        }
        None
    }

    /// Gives one back.
    pub(super) fn release(&self, section: u32) {
        if let Some(word) = self.taken.get(section as usize / 64) {
            word.fetch_and(!(1 << (section % 64)), Ordering::Release);
        }
    }

    /// How many are taken.
    #[cfg(any(test, feature = "fake"))]
    pub(super) fn in_use(&self) -> u32 {
        self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}
