//! Ring buffers: [`Outgoing`] for the writer, [`Incoming`] for the reader.
//!
//! Either end keeps its own index to itself and only publishes it; the other end's index, and every
//! descriptor, is read once, checked, and then used. What does not check out makes the ring
//! [`RingError`]: it is not touched again, and the channel closes.
//!
//! # Orderings
//! Data is written before `write_index` is stored with release, and read after it was loaded with
//! acquire; the same holds for `read_index` and the room it gives back. Three questions need more,
//! since each side stores one word and then looks at another, and at least one of them must see the
//! other's store:
//!
//! | this side stores | then looks at | the other stores | then looks at |
//! |---|---|---|---|
//! | `write_index` | mask, `read_index`: signal? | `interrupt_mask` = 0 | `write_index`: more to read? |
//! | `write_index` | `read_index`: was it empty? | `read_index` | `write_index`: more to read? |
//! | `pending_send_size` | `read_index`: room now? | `read_index` | `pending_send_size`: signal? |
//!
//! Between the two there is a sequentially consistent fence on both sides.

mod incoming;
mod memory;
mod outgoing;
#[cfg(test)]
mod tests;

use core::sync::atomic::Ordering;

pub use incoming::{Incoming, Packet, Received};
pub use memory::PagedRing;
pub use outgoing::{External, OutPacket, Outgoing, PageSpan, SendError, Span, contiguous};

use hv_abi::vmbus::ring::RING_ALIGN;

/// A word of the control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlWord {
    /// `write_index`.
    WriteIndex,
    /// `read_index`.
    ReadIndex,
    /// `interrupt_mask`.
    InterruptMask,
    /// `pending_send_size`.
    PendingSendSize,
    /// `feature_bits`.
    FeatureBits,
}

/// The memory of one ring. Positions are byte offsets into the data, multiples of 8 below
/// [`Self::data_bytes`]; others are answered by zero, or ignored.
pub trait RingMemory {
    /// Bytes of data.
    fn data_bytes(&self) -> u32;
    /// Reads a control word.
    fn load(&self, word: ControlWord, order: Ordering) -> u32;
    /// Writes a control word.
    fn store(&self, word: ControlWord, value: u32, order: Ordering);
    /// A sequentially consistent fence.
    fn fence(&self);
    /// Reads 8 bytes of data, relaxed.
    fn read(&self, at: u32) -> u64;
    /// Writes 8 bytes of data, relaxed.
    fn write(&self, at: u32, word: u64);
    /// Writes words from a position on, over the end to the beginning.
    fn write_words(&self, mut at: u32, words: &[u64]) {
        for word in words {
            self.write(at, *word);
            at = advance(at, 8, self.data_bytes());
        }
    }
}

/// The ring cannot be used (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Its size is no multiple of 8, too small or too large.
    Size,
    /// The other side's index is out of bounds or not a multiple of 8.
    Index(u32),
    /// Fewer bytes are there than any packet has.
    Truncated,
    /// A descriptor's lengths contradict each other or the ring.
    Lengths,
}

/// Least data bytes: some packets must fit.
const MIN_BYTES: u32 = 256;
/// Most data bytes, so that sums of positions fit.
const MAX_BYTES: u32 = 1 << 30;

fn check_size(bytes: u32) -> Result<u32, RingError> {
    if bytes.is_multiple_of(RING_ALIGN) && (MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(RingError::Size)
    }
}

/// An index the other side wrote.
fn check_index(index: u32, bytes: u32) -> Result<u32, RingError> {
    if index < bytes && index.is_multiple_of(RING_ALIGN) {
        Ok(index)
    } else {
        Err(RingError::Index(index))
    }
}

/// Bytes between two positions.
const fn distance(from: u32, to: u32, bytes: u32) -> u32 {
    if to >= from { to - from } else { bytes - from + to }
}

/// A position further on; `by` is at most `bytes`.
const fn advance(at: u32, by: u32, bytes: u32) -> u32 {
    let sum = at + by;
    if sum >= bytes { sum - bytes } else { sum }
}

/// Bytes of payload as the ring counts them.
const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(RING_ALIGN as usize)
}
