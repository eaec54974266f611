//! The host's ends of a channel's two rings (`hv_abi::vmbus::ring`).
//!
//! The guest may write anything anywhere at any time: indices are checked at
//! each load, packets are copied out whole and checked on the copy, and what the
//! host owns (its own indices) is kept here and never read back.

use crate::memory::Memory;
use crate::vmbus::packet::Packet;
use hv_abi::PAGE_SIZE;
use hv_abi::vmbus::ring::{RING_ALIGN, RingControl};
use hv_abi::vmbus::{PacketDescriptor, PacketFooter, PacketType};
use std::mem::{offset_of, size_of};
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::IntoBytes;

const PAGE: u64 = PAGE_SIZE as u64;
const WRITE_INDEX: u64 = offset_of!(RingControl, write_index) as u64;
const READ_INDEX: u64 = offset_of!(RingControl, read_index) as u64;
const INTERRUPT_MASK: u64 = offset_of!(RingControl, interrupt_mask) as u64;
const PENDING_SEND_SIZE: u64 = offset_of!(RingControl, pending_send_size) as u64;
const FEATURE_BITS: u64 = offset_of!(RingControl, feature_bits) as u64;
const FOOTER: u32 = size_of::<PacketFooter>() as u32;

/// Why a ring cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// An index is beyond the ring or not aligned.
    BadIndex,
    /// A packet's lengths contradict each other or the ring.
    BadPacket,
    /// A page is no memory.
    BadMemory,
    /// A packet of the host's that no empty ring could hold.
    TooLong,
}

/// A control page and the data pages behind it, anywhere in guest memory.
#[derive(Debug)]
pub struct RingPages {
    memory: Memory,
    control: u64,
    data: Vec<u64>,
    size: u32,
}

impl RingPages {
    /// A ring of these pages, by address; the first is the control page.
    ///
    /// # Errors
    /// Fewer than two pages, or a page that is no memory.
    pub fn new(memory: &Memory, pages: &[u64]) -> Result<Self, RingError> {
        let backed = |page: &u64| {
            page.is_multiple_of(PAGE) && memory.get_slice(GuestAddress(*page), PAGE_SIZE).is_ok()
        };
        if !pages.iter().all(backed) {
            return Err(RingError::BadMemory);
        }
        let Some((control, data)) = pages.split_first() else { return Err(RingError::BadMemory) };
        let size = u32::try_from(data.len() * PAGE_SIZE).map_err(|_| RingError::BadMemory)?;
        if size == 0 || size > u32::MAX / 2 {
            return Err(RingError::BadMemory);
        }
        Ok(Self { memory: memory.clone(), control: *control, data: data.to_vec(), size })
    }

    /// A word of the control page. The pages were checked when the ring was made,
    /// so 0 for what cannot be read never happens.
    fn load(&self, word: u64) -> u32 {
        self.memory.load(GuestAddress(self.control + word), Ordering::SeqCst).unwrap_or(0)
    }

    fn store(&self, word: u64, value: u32) {
        let _ = self.memory.store(value, GuestAddress(self.control + word), Ordering::SeqCst);
    }

    fn index(&self, word: u64) -> Result<u32, RingError> {
        let index = self.load(word);
        let good = index < self.size && index.is_multiple_of(RING_ALIGN);
        if good { Ok(index) } else { Err(RingError::BadIndex) }
    }

    /// Bytes between the reader and the writer.
    fn used(&self, write: u32, read: u32) -> u32 {
        if write >= read { write - read } else { self.size - read + write }
    }

    /// Bytes that can be written; a ring is never filled up.
    fn free(&self, write: u32, read: u32) -> u32 {
        self.size - self.used(write, read) - RING_ALIGN
    }

    fn advance(&self, index: u32, by: u32) -> u32 {
        (index + by) % self.size
    }

    /// Pieces of the ring from `at`, `len` bytes, as address and length.
    fn pieces(&self, at: u32, len: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
        let (mut at, mut left) = (at as usize, len);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            at %= self.size as usize;
            let page = self.data.get(at / PAGE_SIZE)?;
            let offset = at % PAGE_SIZE;
            let count = left.min(PAGE_SIZE - offset);
            at += count;
            left -= count;
            Some((page + offset as u64, count))
        })
    }

    fn read(&self, at: u32, to: &mut [u8]) {
        let mut done = 0;
        for (address, count) in self.pieces(at, to.len()) {
            if let Some(piece) = to.get_mut(done..done + count) {
                let _ = self.memory.read_slice(piece, GuestAddress(address));
            }
            done += count;
        }
    }

    fn write(&self, at: u32, from: &[u8]) {
        let mut done = 0;
        for (address, count) in self.pieces(at, from.len()) {
            if let Some(piece) = from.get(done..done + count) {
                let _ = self.memory.write_slice(piece, GuestAddress(address));
            }
            done += count;
        }
    }
}

/// The ring the guest writes.
#[derive(Debug)]
pub struct Incoming {
    pages: RingPages,
    /// The next packet.
    read: u32,
    /// What the guest knows of it.
    committed: u32,
}

impl Incoming {
    /// Takes over a ring where the guest left it. Signals are off.
    ///
    /// # Errors
    /// Its indices make no sense.
    pub fn new(pages: RingPages) -> Result<Self, RingError> {
        let read = pages.index(READ_INDEX)?;
        pages.index(WRITE_INDEX)?;
        pages.store(INTERRUPT_MASK, 1);
        Ok(Self { pages, read, committed: read })
    }

    /// Copies the next packet; `false`: there is none.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn next(&mut self, packet: &mut Packet) -> Result<bool, RingError> {
        let available = self.pages.used(self.pages.index(WRITE_INDEX)?, self.read);
        if available == 0 {
            return Ok(false);
        }
        let mut descriptor: PacketDescriptor = zerocopy::FromZeros::new_zeroed();
        if (available as usize) < size_of::<PacketDescriptor>() {
            return Err(RingError::BadPacket);
        }
        self.pages.read(self.read, descriptor.as_mut_bytes());
        let bytes = u32::from(descriptor.length8) * 8;
        if available < bytes + FOOTER {
            return Err(RingError::BadPacket);
        }
        let body = packet.reset(descriptor).ok_or(RingError::BadPacket)?;
        self.pages.read(self.pages.advance(self.read, size_of::<PacketDescriptor>() as u32), body);
        self.read = self.pages.advance(self.read, bytes + FOOTER);
        Ok(true)
    }

    /// Gives the guest the space of all packets taken. `true`: it waits for that
    /// much and is to be interrupted.
    pub fn commit(&mut self) -> bool {
        if self.read == self.committed {
            return false;
        }
        self.pages.store(READ_INDEX, self.read);
        let old = std::mem::replace(&mut self.committed, self.read);
        // Some guests ask for the size of the ring less one, which no ring can have free.
        let wanted = self.pages.load(PENDING_SEND_SIZE) & !(RING_ALIGN - 1);
        let Ok(write) = self.pages.index(WRITE_INDEX) else { return false };
        wanted != 0
            && self.pages.free(write, old) < wanted
            && self.pages.free(write, self.read) >= wanted
    }

    /// Asks for signals, or not to be signalled. After asking, the ring has to be
    /// looked at once more.
    pub fn want_signals(&self, wanted: bool) {
        self.pages.store(INTERRUPT_MASK, u32::from(!wanted));
        fence(Ordering::SeqCst);
    }

    /// Whether a packet waits, or the ring is broken.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.pages.index(WRITE_INDEX) != Ok(self.read)
    }
}

/// The ring the host writes.
#[derive(Debug)]
pub struct Outgoing {
    pages: RingPages,
    write: u32,
    committed: u32,
}

/// A packet of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// Type.
    pub kind: PacketType,
    /// Flags of the descriptor.
    pub flags: u16,
    /// Transaction.
    pub transaction: u64,
    /// What belongs to the descriptor, a multiple of 8 bytes.
    pub more: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

impl Outbound<'_> {
    /// Bytes in the ring, footer included.
    fn ring_bytes(&self) -> Option<u32> {
        let body = size_of::<PacketDescriptor>() + self.more.len() + self.payload.len();
        u32::try_from(body.next_multiple_of(8) + size_of::<PacketFooter>()).ok()
    }
}

impl Outgoing {
    /// Takes over a ring where the guest left it.
    ///
    /// # Errors
    /// Its indices make no sense.
    pub fn new(pages: RingPages) -> Result<Self, RingError> {
        let write = pages.index(WRITE_INDEX)?;
        pages.index(READ_INDEX)?;
        pages.store(PENDING_SEND_SIZE, 0);
        pages.store(FEATURE_BITS, RingControl::FEATURE_PENDING_SEND_SIZE);
        Ok(Self { pages, write, committed: write })
    }

    /// Writes a packet; `false`: no room yet.
    ///
    /// # Errors
    /// The ring is broken or too small.
    pub fn put(&mut self, packet: &Outbound<'_>) -> Result<bool, RingError> {
        let total = packet.ring_bytes().ok_or(RingError::TooLong)?;
        let offset8 = (size_of::<PacketDescriptor>() + packet.more.len()) / 8;
        let (Ok(data_offset8), Ok(length8)) =
            (u16::try_from(offset8), u16::try_from((total - FOOTER) / 8))
        else {
            return Err(RingError::TooLong);
        };
        if total > self.pages.size - RING_ALIGN || !packet.more.len().is_multiple_of(8) {
            return Err(RingError::TooLong);
        }
        if self.pages.free(self.write, self.pages.index(READ_INDEX)?) < total {
            return Ok(false);
        }
        let descriptor = PacketDescriptor {
            packet_type: packet.kind,
            data_offset8,
            length8,
            flags: packet.flags,
            transaction_id: packet.transaction,
        };
        let footer = PacketFooter { reserved: 0, offset: self.write };
        let padding = [0u8; 8];
        let pad = (total - FOOTER) as usize
            - size_of::<PacketDescriptor>()
            - packet.more.len()
            - packet.payload.len();
        let mut at = self.write;
        for part in [
            descriptor.as_bytes(),
            packet.more,
            packet.payload,
            padding.get(..pad).unwrap_or_default(),
            footer.as_bytes(),
        ] {
            self.pages.write(at, part);
            at = self.pages.advance(at, part.len() as u32);
        }
        self.write = at;
        Ok(true)
    }

    /// Shows the guest all packets written. `true`: it is to be interrupted.
    pub fn commit(&mut self) -> bool {
        if self.write == self.committed {
            return false;
        }
        fence(Ordering::Release);
        self.pages.store(WRITE_INDEX, self.write);
        let old = std::mem::replace(&mut self.committed, self.write);
        fence(Ordering::SeqCst);
        // The guest, which empties the ring with its interrupts masked, looks
        // again after unmasking: only a ring that was empty needs an interrupt.
        self.pages.load(INTERRUPT_MASK) == 0 && self.pages.load(READ_INDEX) == old
    }

    /// Asks the guest for a signal once this packet fits. Afterwards it has to be
    /// tried once more.
    pub fn wait_for(&self, packet: Option<&Outbound<'_>>) {
        let bytes = packet.and_then(Outbound::ring_bytes).unwrap_or(0);
        self.pages.store(PENDING_SEND_SIZE, bytes);
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory::allocate;
    use proptest::prelude::*;

    /// Both ends of one ring of `pages` data pages, scattered in memory.
    pub fn pair(pages: u64) -> (Memory, Outgoing, Incoming) {
        let memory = allocate(64 << 20).unwrap();
        let list: Vec<u64> = (0..=pages).map(|n| 0x10_0000 + (pages - n) * 3 * PAGE).collect();
        let outgoing = Outgoing::new(RingPages::new(&memory, &list).unwrap()).unwrap();
        let incoming = Incoming::new(RingPages::new(&memory, &list).unwrap()).unwrap();
        (memory, outgoing, incoming)
    }

    fn in_band(transaction: u64, payload: &[u8]) -> Outbound<'_> {
        Outbound { kind: PacketType::IN_BAND, flags: 1, transaction, more: &[], payload }
    }

    #[test]
    fn packets_wrap_around() {
        let (_, mut out, mut inc) = pair(1);
        let mut packet = Packet::default();
        for n in 0..500u64 {
            let payload = vec![n as u8; (n as usize * 13) % 300];
            assert!(out.put(&in_band(n, &payload)).unwrap());
            out.commit();
            assert!(inc.next(&mut packet).unwrap());
            assert_eq!(packet.transaction(), Some(n));
            let got = packet.payload();
            assert_eq!(&got[..payload.len()], payload);
            assert!(got.len() - payload.len() < 8);
            assert!(!inc.next(&mut packet).unwrap());
            inc.commit();
        }
    }

    #[test]
    fn interrupt_only_when_empty_and_unmasked() {
        let (_, mut out, mut inc) = pair(1);
        let mut packet = Packet::default();
        assert!(out.put(&in_band(1, b"x")).unwrap());
        assert!(!out.commit(), "masked");
        inc.next(&mut packet).unwrap();
        inc.commit();
        inc.want_signals(true);
        assert!(out.put(&in_band(2, b"x")).unwrap());
        assert!(out.commit());
        assert!(out.put(&in_band(3, b"x")).unwrap());
        assert!(!out.commit(), "not empty");
        assert!(inc.has_work());
    }

    #[test]
    fn full_ring_asks_for_a_signal() {
        let (_, mut out, mut inc) = pair(1);
        let mut packet = Packet::default();
        let payload = [0u8; 1000];
        for _ in 0..3 {
            assert!(out.put(&in_band(0, &payload)).unwrap());
        }
        let fourth = in_band(0, &payload);
        assert!(!out.put(&fourth).unwrap());
        out.commit();
        out.wait_for(Some(&fourth));
        inc.next(&mut packet).unwrap();
        assert!(inc.commit(), "now it fits");
        assert!(out.put(&fourth).unwrap());
        out.wait_for(None);
        inc.next(&mut packet).unwrap();
        assert!(!inc.commit());
        assert_eq!(out.put(&in_band(0, &[0; 4096])), Err(RingError::TooLong));
    }

    #[test]
    fn nonsense_breaks_the_ring_only() {
        let (memory, mut out, mut inc) = pair(2);
        let mut packet = Packet::default();
        let control = GuestAddress(inc.pages.control);
        for bad in [1u32, 4, 8192, u32::MAX] {
            memory.store(bad, control, Ordering::SeqCst).unwrap();
            assert_eq!(inc.next(&mut packet), Err(RingError::BadIndex), "{bad}");
            assert!(inc.has_work());
        }
        memory.store(8u32, control, Ordering::SeqCst).unwrap();
        assert_eq!(inc.next(&mut packet), Err(RingError::BadPacket));
        memory.store(4096u32, GuestAddress(control.0 + READ_INDEX), Ordering::SeqCst).unwrap();
        assert!(out.put(&in_band(0, b"x")).unwrap());
        memory.store(3u32, GuestAddress(control.0 + READ_INDEX), Ordering::SeqCst).unwrap();
        assert_eq!(out.put(&in_band(0, b"x")), Err(RingError::BadIndex));
        assert!(RingPages::new(&memory, &[0]).is_err());
        assert!(RingPages::new(&memory, &[0, 1 << 40]).is_err());
        assert!(RingPages::new(&memory, &[0, 1]).is_err());
    }

    proptest! {
        /// Whatever bytes and indices the guest writes, reading ends.
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 64), write in 0u32..520) {
            let (memory, _, mut inc) = pair(2);
            let start = inc.pages.data[0];
            memory.write_slice(&data, GuestAddress(start)).unwrap();
            memory.store(write * 8, GuestAddress(inc.pages.control), Ordering::SeqCst).unwrap();
            let mut packet = Packet::default();
            let mut count = 0;
            while let Ok(true) = inc.next(&mut packet) {
                let _ = packet.ranges();
                count += 1;
                prop_assert!(count < 1024);
            }
        }

        /// Any sequence of packets comes out as it went in.
        #[test]
        fn in_order(sizes in proptest::collection::vec(0usize..600, 1..60)) {
            let (_, mut out, mut inc) = pair(1);
            let mut packet = Packet::default();
            let mut sent = std::collections::VecDeque::new();
            for (n, size) in sizes.iter().enumerate() {
                let payload = vec![n as u8; *size];
                while !out.put(&in_band(n as u64, &payload)).unwrap() {
                    out.commit();
                    prop_assert!(inc.next(&mut packet).unwrap());
                    inc.commit();
                    let (n, size): (u64, usize) = sent.pop_front().unwrap();
                    prop_assert_eq!(packet.transaction(), Some(n));
                    prop_assert!(packet.payload()[..size].iter().all(|b| *b == n as u8));
                }
                sent.push_back((n as u64, *size));
            }
        }
    }
}
