//! The writer's end.

use core::sync::atomic::Ordering;

use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::packet::{GpaDirectHeader, PacketDescriptor, PacketFooter, PacketType};
use hv_abi::vmbus::{GpaRange, RingControl};
use zerocopy::{Immutable, IntoBytes, transmute};

use super::{
    ControlWord, RingError, RingMemory, advance, check_index, check_size, distance, padded,
};

/// A piece of one guest page.
pub trait Span {
    /// The page's frame number.
    fn gpfn(&self) -> u64;
    /// First byte in the page.
    fn offset(&self) -> u32;
    /// Bytes.
    fn bytes(&self) -> u32;
}

/// A [`Span`] as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSpan {
    /// The page's frame number.
    pub gpfn: u64,
    /// First byte in the page.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

impl Span for PageSpan {
    fn gpfn(&self) -> u64 {
        self.gpfn
    }
    fn offset(&self) -> u32 {
        self.offset
    }
    fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// Guest memory that goes with a packet (GPA-direct).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum External<'a, S> {
    /// None: an in-band packet.
    None,
    /// Each piece a range of its own (what Linux calls page buffers).
    PageBuffers(&'a [S]),
    /// All pieces as one range (a multi-page buffer): every piece but the first begins its page,
    /// every piece but the last ends its page.
    MultiPage(&'a [S]),
    /// The same, said as the packet says it: where the range begins in its first frame, its bytes,
    /// and its frames, of which there are as many as it reaches.
    Frames {
        /// First byte, in the first frame.
        offset: u32,
        /// Bytes.
        bytes: u32,
        /// Frame numbers.
        gpfns: &'a [u64],
    },
}

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub struct OutPacket<'a, S = PageSpan> {
    /// Comes back in the completion; of a completion, that of the packet it answers.
    pub transaction_id: u64,
    /// The packet is a completion; it has no external memory.
    pub is_completion: bool,
    /// A completion is wanted.
    pub completion_wanted: bool,
    /// Guest memory.
    pub external: External<'a, S>,
    /// Payload; filled up with zeros to a multiple of 8.
    pub payload: &'a [u8],
}

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no room now; the other side was asked for a signal once there is.
    Full,
    /// It would never fit.
    TooLarge,
    /// A piece leaves its page, or the pieces have holes where none may be.
    BadSpan,
    /// The ring is corrupt, or closed.
    Ring(RingError),
    /// The channel is not open (any more).
    Closed,
}

impl From<RingError> for SendError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// The writer's end of a ring.
#[derive(Debug)]
pub struct Outgoing<M> {
    memory: M,
    bytes: u32,
    /// Ours: where the next packet goes. Never read back.
    write: u32,
    /// The reader's index as last seen: enough while it leaves room.
    read: u32,
    /// What `pending_send_size` says: the largest packet that found no room since one as large
    /// was written.
    waiting: u32,
}

/// The parts of a packet that depend on its external memory.
struct Shape {
    packet_type: PacketType,
    header_bytes: usize,
    ranges: u32,
}

impl<M: RingMemory> Outgoing<M> {
    /// A new, empty ring.
    ///
    /// # Errors
    /// [`RingError::Size`].
    pub fn new(memory: M) -> Result<Self, RingError> {
        let bytes = check_size(memory.data_bytes())?;
        memory.store(ControlWord::WriteIndex, 0, Ordering::Relaxed);
        memory.store(ControlWord::ReadIndex, 0, Ordering::Relaxed);
        memory.store(ControlWord::PendingSendSize, 0, Ordering::Relaxed);
        let features = RingControl::FEATURE_PENDING_SEND_SIZE;
        memory.store(ControlWord::FeatureBits, features, Ordering::Relaxed);
        Ok(Self { memory, bytes, write: 0, read: 0, waiting: 0 })
    }

    /// The memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Most bytes a packet may have, descriptor and footer included.
    #[must_use]
    pub const fn max_packet_bytes(&self) -> u32 {
        self.bytes - 8
    }

    /// Writes a packet and publishes it. `true`: the reader must be signalled, now or once more
    /// packets were written.
    ///
    /// # Errors
    /// [`SendError`]; nothing was written.
    pub fn write<S: Span>(&mut self, packet: &OutPacket<'_, S>) -> Result<bool, SendError> {
        let shape = shape(packet)?;
        let length = shape.header_bytes + padded(packet.payload.len());
        let (Ok(offset8), Ok(length8)) =
            (u16::try_from(shape.header_bytes / 8), u16::try_from(length / 8))
        else {
            return Err(SendError::TooLarge);
        };
        let total = u32::from(length8) * 8 + size_of::<PacketFooter>() as u32;
        self.make_room(total)?;

        let start = self.write;
        let mut out = Cursor { memory: &self.memory, at: start, bytes: self.bytes };
        out.put(&PacketDescriptor {
            packet_type: shape.packet_type,
            data_offset8: offset8,
            length8,
            flags: if packet.completion_wanted {
                PacketDescriptor::COMPLETION_REQUESTED
            } else {
                0
            },
            transaction_id: packet.transaction_id,
        });
        out.put_external(&packet.external, shape.ranges);
        out.put_bytes(packet.payload);
        out.put(&PacketFooter { reserved: 0, offset: start });
        self.write = out.at;
        debug_assert_eq!(self.write, advance(start, total, self.bytes));

        // Release: whoever sees the index sees the packet.
        self.memory.store(ControlWord::WriteIndex, self.write, Ordering::Release);
        // What fitted although it came later is no reason not to tell a larger one of its room.
        if self.waiting != 0 && total >= self.waiting {
            self.waiting = 0;
            self.memory.store(ControlWord::PendingSendSize, 0, Ordering::Relaxed);
        }
        // See the table in the module's documentation.
        self.memory.fence();
        if self.memory.load(ControlWord::InterruptMask, Ordering::Relaxed) != 0 {
            return Ok(false);
        }
        // The reader had taken everything before this packet: it may have gone to sleep. An index
        // that makes no sense is found out by the next packet that needs room.
        let read = self.memory.load(ControlWord::ReadIndex, Ordering::Relaxed);
        Ok(read == start)
    }

    /// Sees to it that `total` bytes can be written.
    fn make_room(&mut self, total: u32) -> Result<(), SendError> {
        if total > self.max_packet_bytes() {
            return Err(SendError::TooLarge);
        }
        if self.room() >= total {
            return Ok(());
        }
        self.look()?;
        if self.room() >= total {
            return Ok(());
        }
        // Ask for a signal, then look again: the reader may have made room in between.
        self.waiting = self.waiting.max(total);
        self.memory.store(ControlWord::PendingSendSize, self.waiting, Ordering::Relaxed);
        self.memory.fence();
        self.look()?;
        if self.room() >= total { Ok(()) } else { Err(SendError::Full) }
    }

    fn look(&mut self) -> Result<(), RingError> {
        // Acquire: the reader is done with what it gave back.
        let read = self.memory.load(ControlWord::ReadIndex, Ordering::Acquire);
        self.read = check_index(read, self.bytes)?;
        Ok(())
    }

    const fn room(&self) -> u32 {
        // Equal indices mean empty, so 8 bytes stay free.
        self.bytes - 8 - distance(self.read, self.write, self.bytes)
    }
}

/// What the packet's external memory makes of its header; refuses pieces that are none.
fn shape<S: Span>(packet: &OutPacket<'_, S>) -> Result<Shape, SendError> {
    const DESCRIPTOR: usize = size_of::<PacketDescriptor>();
    const GPA_DIRECT: usize = DESCRIPTOR + size_of::<GpaDirectHeader>();
    const RANGE: usize = size_of::<GpaRange>();
    let page = PAGE_SIZE as u32;
    let (spans, is_one_range) = match packet.external {
        External::None => {
            let packet_type =
                if packet.is_completion { PacketType::COMPLETION } else { PacketType::IN_BAND };
            return Ok(Shape { packet_type, header_bytes: DESCRIPTOR, ranges: 0 });
        }
        External::PageBuffers(spans) => (spans, false),
        External::MultiPage(spans) => (spans, true),
        External::Frames { offset, bytes, gpfns } => {
            let end = u64::from(offset) + u64::from(bytes);
            let fits = offset < page
                && bytes > 0
                && gpfns.len() as u64 == end.div_ceil(u64::from(page))
                && !packet.is_completion;
            if !fits {
                return Err(SendError::BadSpan);
            }
            if gpfns.len() > usize::from(u16::MAX) {
                return Err(SendError::TooLarge);
            }
            let header_bytes = GPA_DIRECT + RANGE + gpfns.len() * 8;
            return Ok(Shape { packet_type: PacketType::GPA_DIRECT, header_bytes, ranges: 1 });
        }
    };
    let fits =
        |span: &S| span.bytes() > 0 && span.offset() < page && span.bytes() <= page - span.offset();
    if packet.is_completion || spans.is_empty() || !spans.iter().all(fits) {
        return Err(SendError::BadSpan);
    }
    if is_one_range && contiguous(spans) != spans.len() {
        return Err(SendError::BadSpan);
    }
    // More than this fits in no packet; the sums below cannot overflow.
    if spans.len() > usize::from(u16::MAX) {
        return Err(SendError::TooLarge);
    }
    let (ranges, bytes) = if is_one_range {
        (1, RANGE + spans.len() * 8)
    } else {
        (spans.len() as u32, spans.len() * (RANGE + 8))
    };
    Ok(Shape { packet_type: PacketType::GPA_DIRECT, header_bytes: GPA_DIRECT + bytes, ranges })
}

/// How many pieces, from the first, make one range without holes.
pub fn contiguous<S: Span>(spans: &[S]) -> usize {
    let page = PAGE_SIZE as u32;
    let joined = |pair: &[S]| match pair {
        [a, b] => a.offset() + a.bytes() == page && b.offset() == 0,
        _ => false,
    };
    let joints = spans.windows(2).take_while(|pair| joined(pair)).count();
    if spans.is_empty() { 0 } else { joints + 1 }
}

/// Writes on from a position; room was made.
struct Cursor<'a, M> {
    memory: &'a M,
    at: u32,
    bytes: u32,
}

impl<M: RingMemory> Cursor<'_, M> {
    fn word(&mut self, word: u64) {
        self.memory.write(self.at, word);
        self.at = advance(self.at, 8, self.bytes);
    }

    fn put<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.put_bytes(value.as_bytes());
    }

    fn words(&mut self, words: &[u64]) {
        self.memory.write_words(self.at, words);
        self.at = advance(self.at, words.len() as u32 * 8, self.bytes);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        for some in chunks.chunks(8) {
            let mut words = [0; 8];
            for (word, chunk) in words.iter_mut().zip(some) {
                *word = u64::from_le_bytes(*chunk);
            }
            self.words(words.get(..some.len()).unwrap_or_default());
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            self.word(u64::from_le_bytes(last));
        }
    }

    fn range(&mut self, byte_offset: u32, byte_count: u32) {
        self.word(transmute!(GpaRange { byte_count, byte_offset }));
    }

    fn put_external<S: Span>(&mut self, external: &External<'_, S>, range_count: u32) {
        if range_count != 0 {
            self.word(transmute!(GpaDirectHeader { reserved: 0, range_count }));
        }
        match external {
            External::None => {}
            External::PageBuffers(spans) => {
                for span in *spans {
                    self.range(span.offset(), span.bytes());
                    self.word(span.gpfn());
                }
            }
            External::MultiPage(spans) => {
                let bytes = spans.iter().map(Span::bytes).sum();
                self.range(spans.first().map_or(0, Span::offset), bytes);
                for span in *spans {
                    self.word(span.gpfn());
                }
            }
            External::Frames { offset, bytes, gpfns } => {
                self.range(*offset, *bytes);
                self.words(gpfns);
            }
        }
    }
}
