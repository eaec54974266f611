//! The backend's end of a shared ring (`xen/include/public/io/ring.h`).
//!
//! The frontend can write everything in the ring at any time. Of it the backend believes only
//! `req_prod`, and that only as far as there can be requests; its own indices are private, and
//! an entry is copied out once before anything looks at it.
//!
//! Notifications: each side stores its producer index, then looks at what the other asked to be
//! told about (`rsp_event`); or stores what it asks (`req_event`), then looks at the producer
//! index once more. A full barrier between each store and load makes sure that of the two sides
//! at least one sees the other's store: no request is left behind by both.

use arrayvec::ArrayVec;
use core::sync::atomic::{Ordering, fence};

use xen_abi::io::ring::{
    ENTRIES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingPage, WORDS_PER_PAGE, ring_size,
};

/// Pages a ring may have.
pub const MAX_PAGES: usize = 16;

/// Memory shared with a frontend, as 32-bit words; words beyond its end read 0 and are not
/// written.
pub trait RingMemory {
    /// Reads a word.
    fn load(&self, word: usize, order: Ordering) -> u32;
    /// Writes a word.
    fn store(&self, word: usize, value: u32, order: Ordering);
    /// Reads words that follow each other, each once.
    fn load_all(&self, first: usize, into: &mut [u32]) {
        for (word, to) in (first..).zip(into) {
            *to = self.load(word, Ordering::Relaxed);
        }
    }
    /// A full barrier.
    fn barrier(&self);
}

/// Pages of the guest's.
#[derive(Clone, Debug, Default)]
pub struct Pages(pub ArrayVec<&'static RingPage, MAX_PAGES>);

impl RingMemory for Pages {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        let page = self.0.get(word / WORDS_PER_PAGE);
        page.map_or(0, |page| page.words[word % WORDS_PER_PAGE].load(order))
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        if let Some(page) = self.0.get(word / WORDS_PER_PAGE) {
            page.words[word % WORDS_PER_PAGE].store(value, order);
        }
    }
    fn load_all(&self, first: usize, into: &mut [u32]) {
        let (mut nr, mut at) = (first / WORDS_PER_PAGE, first % WORDS_PER_PAGE);
        let mut left = into;
        while let Some(page) = self.0.get(nr).filter(|_| !left.is_empty()) {
            let words = page.words.get(at..).unwrap_or_default();
            let (now, rest) = left.split_at_mut(words.len().min(left.len()));
            for (to, word) in now.iter_mut().zip(words) {
                *to = word.load(Ordering::Relaxed);
            }
            (left, nr, at) = (rest, nr + 1, 0);
        }
        left.fill(0);
    }
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The frontend claims more requests than the ring has room for. Nothing in the ring can be
/// believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bogus;

/// The backend's end.
#[derive(Debug)]
pub struct BackRing<M> {
    memory: M,
    entries: u32,
    entry_words: usize,
    req_cons: u32,
    rsp_prod: u32,
    /// Responses that the frontend was told of, or did not want to be told of.
    told: u32,
}

impl<M: RingMemory> BackRing<M> {
    /// Attaches to a ring of `bytes` with entries of `entry_bytes`, a multiple of 4. It need not be
    /// new: requests behind the last response count as not taken yet.
    ///
    /// # Errors
    /// It has no room for an entry, or its indices cannot be.
    pub fn attach(memory: M, bytes: usize, entry_bytes: usize) -> Result<Self, Bogus> {
        let entries = ring_size(bytes, entry_bytes);
        let start = memory.load(RSP_PROD, Ordering::Relaxed);
        let ring = Self {
            memory,
            entries,
            entry_words: entry_bytes / 4,
            req_cons: start,
            rsp_prod: start,
            told: start,
        };
        if entries == 0 { Err(Bogus) } else { ring.waiting().map(|_| ring) }
    }

    /// Entries it has.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Requests taken and not answered.
    #[must_use]
    pub const fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Requests that can be taken.
    ///
    /// # Errors
    /// There cannot be as many as the frontend says.
    pub fn waiting(&self) -> Result<u32, Bogus> {
        // Acquire: the requests were written before the index.
        let prod = self.memory.load(REQ_PROD, Ordering::Acquire);
        if prod.wrapping_sub(self.rsp_prod) > self.entries {
            return Err(Bogus);
        }
        // Both are at most `entries` from `rsp_prod`. Where the frontend took its index back, even
        // behind what was taken, there is none.
        let behind = prod.wrapping_sub(self.rsp_prod);
        Ok(behind.saturating_sub(self.unanswered()))
    }

    const fn position(&self, index: u32) -> usize {
        // A power of two: the modulo holds over the wrap of the index.
        ENTRIES + (index % self.entries) as usize * self.entry_words
    }

    /// Copies the next request out, as many words of it as there is room for. Only after
    /// [`Self::waiting`] said there is one.
    pub fn take(&mut self, into: &mut [u32]) {
        let at = self.position(self.req_cons);
        let count = into.len().min(self.entry_words);
        self.memory.load_all(at, into.get_mut(..count).unwrap_or_default());
        self.req_cons = self.req_cons.wrapping_add(1);
    }

    /// Puts a response into the ring; [`Self::push`] shows it. Ignored where no request waits for
    /// one.
    pub fn put(&mut self, response: &[u32]) {
        if self.unanswered() == 0 {
            return;
        }
        let at = self.position(self.rsp_prod);
        for (word, value) in response.iter().take(self.entry_words).enumerate() {
            self.memory.store(at + word, *value, Ordering::Relaxed);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows the frontend the responses put since the last time
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`). Whether it wants to be told.
    #[must_use]
    pub fn push(&mut self) -> bool {
        self.publish();
        let (old, new) = (core::mem::replace(&mut self.told, self.rsp_prod), self.rsp_prod);
        if old == new {
            return false;
        }
        self.memory.barrier();
        let event = self.memory.load(RSP_EVENT, Ordering::Relaxed);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Shows the frontend the responses; [`Self::push`] says later whether it wants to be told of
    /// them. One that sees them by itself does not.
    pub fn publish(&mut self) {
        // Release: the responses before the index.
        self.memory.store(RSP_PROD, self.rsp_prod, Ordering::Release);
    }

    /// Asks to be told of the next request; whether there is one already
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    ///
    /// # Errors
    /// As [`Self::waiting`].
    pub fn sleep(&mut self) -> Result<bool, Bogus> {
        self.sleep_for(1)
    }

    /// Asks to be told when so many requests can be taken (at least one, at most as many as there
    /// are entries); whether they are there already.
    ///
    /// # Errors
    /// As [`Self::waiting`].
    pub fn sleep_for(&mut self, requests: u32) -> Result<bool, Bogus> {
        if self.waiting()? >= requests {
            return Ok(true);
        }
        self.memory.store(REQ_EVENT, self.req_cons.wrapping_add(requests), Ordering::Relaxed);
        self.memory.barrier();
        Ok(self.waiting()? >= requests)
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
