//! Page lists made known to the host.

use alloc::boxed::Box;

use arrayvec::ArrayVec;
use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpaRange, GpadlBody, GpadlHeader, GpadlId, MAX_MESSAGE_BYTES,
};
use zerocopy::IntoBytes;

/// Most pages of one list: its length in bytes has 16 bits, and the range takes a word.
pub(super) const MAX_PAGES: usize = GpadlHeader::MAX_RANGE_BYTES / 8 - 1;

/// A message as it is posted.
pub(super) type Posted = ArrayVec<u8, MAX_MESSAGE_BYTES>;

/// What a list is for, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gpadl {
    /// Its channel.
    pub channel: ChannelId,
    /// The channel's rings, or a driver's pages.
    pub is_ring: bool,
    /// How far.
    pub state: GpadlState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GpadlState {
    /// Being posted, or not answered.
    Creating,
    /// The host has it.
    Created,
    /// To be given back; not answered.
    TearingDown,
}

/// A list on its way to the host: its messages are made as they are posted.
#[derive(Debug)]
pub(super) struct Sending {
    pub id: GpadlId,
    channel: ChannelId,
    gpfns: Box<[u64]>,
    /// Words of the list already posted; the first is the range.
    words: usize,
    /// Messages already posted.
    messages: u32,
}

impl Sending {
    /// A list of whole pages; `None` where there are too many, or none.
    pub(super) fn new(id: GpadlId, channel: ChannelId, gpfns: Box<[u64]>) -> Option<Self> {
        let fits = (1..=MAX_PAGES).contains(&gpfns.len());
        fits.then_some(Self { id, channel, gpfns, words: 0, messages: 0 })
    }

    fn total_words(&self) -> usize {
        self.gpfns.len() + 1
    }

    fn word(&self, nr: usize) -> u64 {
        match nr.checked_sub(1) {
            None => {
                // MAX_PAGES pages are far below 4 GiB.
                let byte_count = (self.gpfns.len() * PAGE_SIZE) as u32;
                zerocopy::transmute!(GpaRange { byte_count, byte_offset: 0 })
            }
            Some(page) => self.gpfns.get(page).copied().unwrap_or_default(),
        }
    }

    /// The next message, and how many words of the list are in it.
    pub(super) fn message(&self) -> (Posted, usize) {
        let mut message = Posted::new();
        let room = if self.messages == 0 {
            let header = GpadlHeader {
                channel_id: self.channel,
                gpadl_id: self.id,
                range_bytes: (self.total_words() * 8) as u16,
                range_count: 1,
                ..GpadlHeader::empty()
            };
            append(&mut message, header.as_bytes());
            GpadlHeader::WORDS
        } else {
            let body = GpadlBody {
                message_number: self.messages,
                gpadl_id: self.id,
                ..GpadlBody::empty()
            };
            append(&mut message, body.as_bytes());
            GpadlBody::WORDS
        };
        let count = room.min(self.total_words() - self.words);
        for nr in self.words..self.words + count {
            append(&mut message, &self.word(nr).to_le_bytes());
        }
        (message, count)
    }

    /// The message was posted. `true`: it was the last.
    pub(super) fn posted(&mut self, words: usize) -> bool {
        self.messages += 1;
        self.words += words;
        self.words >= self.total_words()
    }
}

/// Appends what fits; callers append what does.
pub(super) fn append(message: &mut Posted, bytes: &[u8]) {
    let fits = message.try_extend_from_slice(bytes);
    debug_assert!(fits.is_ok());
}
