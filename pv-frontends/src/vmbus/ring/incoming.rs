//! The reader's end.

use core::sync::atomic::Ordering;

use hv_abi::vmbus::RingControl;
use hv_abi::vmbus::packet::{
    PacketDescriptor, PacketFooter, PacketType, TransferPageHeader, TransferPageRange,
};
use zerocopy::{FromBytes, IntoBytes, transmute};

use super::{ControlWord, RingError, RingMemory, advance, check_index, check_size, distance};

const DESCRIPTOR_BYTES: u32 = size_of::<PacketDescriptor>() as u32;
const FOOTER_BYTES: u32 = size_of::<PacketFooter>() as u32;

/// The reader's end of a ring.
#[derive(Debug)]
pub struct Incoming<M> {
    memory: M,
    bytes: u32,
    /// Ours: where the next packet is.
    next: u32,
    /// What `read_index` says; before [`Self::next`] while packets are in use.
    committed: u32,
    /// The writer's index as last seen.
    write: u32,
}

/// What became of a call that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Everything was read; the writer signals when there is more, unless the reader stays.
    All,
    /// The call's share was read, and there may be more: no signal comes, call again.
    More,
}

impl<M: RingMemory> Incoming<M> {
    /// A new, empty ring.
    ///
    /// # Errors
    /// [`RingError::Size`].
    pub fn new(memory: M) -> Result<Self, RingError> {
        let bytes = check_size(memory.data_bytes())?;
        memory.store(ControlWord::WriteIndex, 0, Ordering::Relaxed);
        memory.store(ControlWord::ReadIndex, 0, Ordering::Relaxed);
        memory.store(ControlWord::InterruptMask, 0, Ordering::Relaxed);
        Ok(Self { memory, bytes, next: 0, committed: 0, write: 0 })
    }

    /// The memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// The next packet. It stays in the ring until [`Self::commit`].
    ///
    /// # Errors
    /// [`RingError`]: the ring is corrupt.
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_, M>>, RingError> {
        if self.next == self.write {
            self.look()?;
            if self.next == self.write {
                return Ok(None);
            }
        }
        let there = distance(self.next, self.write, self.bytes);
        if there < DESCRIPTOR_BYTES + FOOTER_BYTES {
            return Err(RingError::Truncated);
        }
        let second = advance(self.next, 8, self.bytes);
        // Both words are read once; what the writer changes later is not looked at.
        let words = [self.memory.read(self.next), self.memory.read(second)];
        let descriptor: PacketDescriptor = transmute!(words);
        let offset = u32::from(descriptor.data_offset8) * 8;
        let length = u32::from(descriptor.length8) * 8;
        if offset < DESCRIPTOR_BYTES || length < offset || length + FOOTER_BYTES > there {
            return Err(RingError::Lengths);
        }
        let at = self.next;
        self.next = advance(at, length + FOOTER_BYTES, self.bytes);
        Ok(Some(Packet { memory: &self.memory, bytes: self.bytes, at, descriptor }))
    }

    /// Gives back the room of all packets read. `true`: the writer waits for it and must be
    /// signalled.
    ///
    /// # Errors
    /// [`RingError`]: the ring is corrupt.
    pub fn commit(&mut self) -> Result<bool, RingError> {
        if self.next == self.committed {
            return Ok(false);
        }
        let before = core::mem::replace(&mut self.committed, self.next);
        // Release: the packets have been read.
        self.memory.store(ControlWord::ReadIndex, self.next, Ordering::Release);
        // See the table in the module's documentation.
        self.memory.fence();
        let features = self.memory.load(ControlWord::FeatureBits, Ordering::Relaxed);
        if features & RingControl::FEATURE_PENDING_SEND_SIZE == 0 {
            return Ok(false);
        }
        // Some writers ask for the ring's size less one, to be signalled when it is empty.
        let pending = self.memory.load(ControlWord::PendingSendSize, Ordering::Relaxed) & !7;
        if pending == 0 {
            return Ok(false);
        }
        self.look()?;
        let room = |read| self.bytes - 8 - distance(read, self.write, self.bytes);
        // A signal is due only when this is what made the room; else it was sent before.
        Ok(room(before) < pending && room(self.next) >= pending)
    }

    /// The writer need not signal. To be called before reading in answer to a signal.
    pub fn mask(&mut self) {
        self.memory.store(ControlWord::InterruptMask, 1, Ordering::Relaxed);
    }

    /// The writer is to signal again. `true`: packets came before it knew; read on.
    ///
    /// # Errors
    /// [`RingError`]: the ring is corrupt.
    pub fn unmask(&mut self) -> Result<bool, RingError> {
        self.memory.store(ControlWord::InterruptMask, 0, Ordering::Relaxed);
        // See the table in the module's documentation.
        self.memory.fence();
        self.look()?;
        Ok(self.next != self.write)
    }

    /// Whether there is a packet. Takes none.
    ///
    /// # Errors
    /// [`RingError`]: the ring is corrupt.
    pub fn has_packets(&mut self) -> Result<bool, RingError> {
        self.look()?;
        Ok(self.next != self.write)
    }

    /// Hands up to `budget` packets to `each`, with the writer's signals off meanwhile, and gives
    /// their room back. The second value: the writer must be signalled.
    ///
    /// # Errors
    /// [`RingError`]: the ring is corrupt. Packets before the bad one have been handed out.
    pub fn receive(
        &mut self,
        budget: u32,
        each: impl FnMut(&Packet<'_, M>),
    ) -> Result<(Received, bool), RingError> {
        self.read(budget, false, each)
    }

    /// As [`Self::receive`], but signals stay off when everything was read, too: the caller looks
    /// again, or calls [`Self::unmask`].
    ///
    /// # Errors
    /// [`RingError`]: as [`Self::receive`].
    pub fn receive_and_stay(
        &mut self,
        budget: u32,
        each: impl FnMut(&Packet<'_, M>),
    ) -> Result<(Received, bool), RingError> {
        self.read(budget, true, each)
    }

    fn read(
        &mut self,
        budget: u32,
        stays: bool,
        mut each: impl FnMut(&Packet<'_, M>),
    ) -> Result<(Received, bool), RingError> {
        let (mut left, mut signal) = (budget, false);
        self.mask();
        loop {
            while left > 0
                && let Some(packet) = self.next_packet()?
            {
                each(&packet);
                left -= 1;
            }
            signal |= self.commit()?;
            // One for each turn, too: a writer that plays with its index does not keep us here.
            if left == 0 {
                return Ok((Received::More, signal));
            }
            left -= 1;
            if stays || !self.unmask()? {
                return Ok((Received::All, signal));
            }
            self.mask();
        }
    }

    fn look(&mut self) -> Result<(), RingError> {
        // Acquire: the packets before the index have been written.
        let write = self.memory.load(ControlWord::WriteIndex, Ordering::Acquire);
        self.write = check_index(write, self.bytes)?;
        Ok(())
    }
}

/// A packet in the ring: its descriptor is a copy, everything else is still the writer's to change
/// and is copied by whoever looks at it.
#[derive(Debug)]
pub struct Packet<'a, M> {
    memory: &'a M,
    bytes: u32,
    at: u32,
    descriptor: PacketDescriptor,
}

impl<M: RingMemory> Packet<'_, M> {
    /// Type.
    #[must_use]
    pub const fn packet_type(&self) -> PacketType {
        self.descriptor.packet_type
    }

    /// The sender's number; of a completion, that of the packet it answers.
    #[must_use]
    pub const fn transaction_id(&self) -> u64 {
        self.descriptor.transaction_id
    }

    /// Whether a completion is wanted.
    #[must_use]
    pub const fn wants_completion(&self) -> bool {
        self.descriptor.flags & PacketDescriptor::COMPLETION_REQUESTED != 0
    }

    /// Bytes of payload, with what fills it up to a multiple of 8.
    #[must_use]
    pub const fn payload_bytes(&self) -> usize {
        // Checked when the packet was found.
        (self.descriptor.length8 - self.descriptor.data_offset8) as usize * 8
    }

    /// Copies payload from `offset`, a multiple of 8; how many bytes there were.
    pub fn copy_payload(&self, offset: usize, into: &mut [u8]) -> usize {
        if !offset.is_multiple_of(8) {
            return 0;
        }
        let there = self.payload_bytes().saturating_sub(offset).min(into.len());
        let begin = usize::from(self.descriptor.data_offset8) * 8 + offset;
        let (words, rest) = into.get_mut(..there).unwrap_or_default().as_chunks_mut::<8>();
        let behind = begin / 8 + words.len();
        for (nr, word) in (begin / 8..).zip(words) {
            *word = self.word(nr).to_le_bytes();
        }
        if !rest.is_empty() {
            for (to, from) in rest.iter_mut().zip(self.word(behind).to_le_bytes()) {
                *to = from;
            }
        }
        there
    }

    /// Copies the structure the payload begins with; `None` if it is shorter.
    #[must_use]
    pub fn payload<T: FromBytes + IntoBytes>(&self) -> Option<T> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        (self.copy_payload(0, bytes) == bytes.len()).then_some(value)
    }

    /// The header of a packet with transfer pages, its ranges counted: `None` where it is no such
    /// packet, or its ranges do not fit before the payload.
    #[must_use]
    pub fn transfer_pages(&self) -> Option<TransferPageHeader> {
        if self.descriptor.packet_type != PacketType::TRANSFER_PAGES {
            return None;
        }
        let room = u32::from(self.descriptor.data_offset8).checked_sub(3)?;
        let header: TransferPageHeader = transmute!(self.word(2));
        (header.range_count <= room).then_some(header)
    }

    /// A transfer page range, by its number below the header's count.
    #[must_use]
    pub fn transfer_range(&self, nr: u32) -> Option<TransferPageRange> {
        let room = u32::from(self.descriptor.data_offset8).checked_sub(3)?;
        (nr < room).then(|| transmute!(self.word(3 + nr as usize)))
    }

    /// A word between descriptor and payload, by its number.
    #[must_use]
    pub fn header_word(&self, nr: usize) -> Option<u64> {
        let nr = nr.checked_add(DESCRIPTOR_BYTES as usize / 8)?;
        (nr < usize::from(self.descriptor.data_offset8)).then(|| self.word(nr))
    }

    /// A word of the packet; `nr` is below its length.
    fn word(&self, nr: usize) -> u64 {
        self.memory.read(advance(self.at, nr as u32 * 8, self.bytes))
    }
}
