//! Ring memory made of shared pages.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::RingControl;
use translate::platform::PageWords;

use super::{ControlWord, RingMemory};

/// A control page, and data pages anywhere.
#[derive(Debug)]
pub struct PagedRing {
    control: &'static RingControl,
    data: Box<[&'static PageWords]>,
}

impl PagedRing {
    /// The ring of these pages.
    #[must_use]
    pub fn new(control: &'static RingControl, data: Box<[&'static PageWords]>) -> Self {
        Self { control, data }
    }

    fn control(&self, word: ControlWord) -> &AtomicU32 {
        match word {
            ControlWord::WriteIndex => &self.control.write_index,
            ControlWord::ReadIndex => &self.control.read_index,
            ControlWord::InterruptMask => &self.control.interrupt_mask,
            ControlWord::PendingSendSize => &self.control.pending_send_size,
            ControlWord::FeatureBits => &self.control.feature_bits,
        }
    }

    #[inline]
    fn word(&self, at: u32) -> Option<&AtomicU64> {
        let at = at as usize;
        self.data.get(at / PAGE_SIZE)?.get(at % PAGE_SIZE / 8)
    }
}

impl RingMemory for PagedRing {
    fn data_bytes(&self) -> u32 {
        u32::try_from(self.data.len() * PAGE_SIZE).unwrap_or(u32::MAX)
    }

    #[inline]
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.control(word).load(order)
    }

    #[inline]
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.control(word).store(value, order);
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn read(&self, at: u32) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn write(&self, at: u32, word: u64) {
        if let Some(place) = self.word(at) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn write_words(&self, at: u32, mut words: &[u64]) {
        let (mut nr, mut first) = (at as usize / PAGE_SIZE, at as usize % PAGE_SIZE / 8);
        while !words.is_empty() {
            let Some(places) = self.data.get(nr).and_then(|page| page.get(first..)) else { return };
            let (now, rest) = words.split_at(places.len().min(words.len()));
            for (place, word) in places.iter().zip(now) {
                place.store(*word, Ordering::Relaxed);
            }
            (words, first) = (rest, 0);
            nr = if nr + 1 < self.data.len() { nr + 1 } else { 0 };
        }
    }
}
