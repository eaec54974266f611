//! The receive and the send buffer: guest memory, cut into sections.

use crate::memory::Memory;
use crate::vmbus::PageRange;
use crate::vmbus::gpadl::Gpadl;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Beside a frame in a section: RNDIS's header and what goes with a packet.
pub const SECTION_OVERHEAD: u32 = 128;
/// Sections begin at multiples of this.
const SECTION_ALIGN: u32 = 64;
/// Room for the longest control message.
const SECTION_BYTES_MIN: u32 = 1024;
/// Bytes of a section of the send buffer, as Hyper-V has it.
pub const SEND_SECTION_BYTES: u32 = 6144;

/// One range of guest memory, as long as the guest does not take it back.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    gpadl: Arc<Gpadl>,
    len: u32,
}

impl Shared {
    fn new(memory: &Memory, gpadl: Arc<Gpadl>) -> Option<Self> {
        let [range] = gpadl.ranges() else { return None };
        let len = range.len;
        Some(Self { memory: memory.clone(), gpadl, len })
    }

    fn with<T>(&self, f: impl FnOnce(&PageRange, &Memory) -> Option<T>) -> Option<T> {
        self.gpadl.access(|ranges| f(ranges.first()?, &self.memory)).flatten()
    }
}

/// Whose a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Host,
    /// The guest's, in a batch: who is next in it, and for its first the channel.
    Guest {
        head: Option<u16>,
        next: Option<u32>,
    },
}

#[derive(Debug)]
struct Sections {
    free: Vec<u32>,
    owners: Vec<Owner>,
    /// Somebody found none free.
    wanted: bool,
}

impl Sections {
    /// Takes a batch back, by its first section.
    fn recover(&mut self, head: u32) {
        let mut at = Some(head);
        while let Some(section) = at {
            let Some(owner) = self.owners.get_mut(section as usize) else { break };
            let Owner::Guest { next, .. } = std::mem::replace(owner, Owner::Host) else { break };
            self.free.push(section);
            at = next;
        }
    }
}

/// What giving back led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// The guest has no such batch.
    Unknown,
    /// Done; `true`: somebody waits for sections.
    Done(bool),
}

/// What the host puts packets and answers into.
#[derive(Debug)]
pub struct ReceiveBuffer {
    shared: Shared,
    section_bytes: u32,
    sections: Mutex<Sections>,
}

impl ReceiveBuffer {
    /// Cuts a buffer up for frames of `frame_bytes`; `None`: it is not of one range, or
    /// larger than `max`, or too small for a single one.
    #[must_use]
    pub fn new(memory: &Memory, gpadl: Arc<Gpadl>, frame_bytes: u32, max: u32) -> Option<Self> {
        let shared = Shared::new(memory, gpadl)?;
        let wanted = frame_bytes.checked_add(SECTION_OVERHEAD)?.max(SECTION_BYTES_MIN);
        let section_bytes = wanted.checked_next_multiple_of(SECTION_ALIGN)?;
        let count = shared.len / section_bytes;
        if count == 0 || shared.len > max {
            return None;
        }
        // The first ones are used first, and again.
        let free = (0..count).rev().collect();
        let owners = vec![Owner::Host; count as usize];
        let sections = Mutex::new(Sections { free, owners, wanted: false });
        Some(Self { shared, section_bytes, sections })
    }

    /// Bytes of a section.
    #[must_use]
    pub fn section_bytes(&self) -> u32 {
        self.section_bytes
    }

    /// Sections.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.shared.len / self.section_bytes
    }

    fn lock(&self) -> MutexGuard<'_, Sections> {
        self.sections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `count` sections to send them in one packet through a channel. The first
    /// stands for all of them; none: the guest has them all.
    #[must_use]
    pub fn take(&self, count: usize, channel: u16) -> Vec<u32> {
        let mut sections = self.lock();
        let keep = sections.free.len().saturating_sub(count);
        let batch: Vec<u32> = sections.free.drain(keep..).rev().collect();
        sections.wanted |= batch.is_empty();
        for (number, section) in batch.iter().enumerate() {
            let head = (number == 0).then_some(channel);
            let next = batch.get(number + 1).copied();
            if let Some(owner) = sections.owners.get_mut(*section as usize) {
                *owner = Owner::Guest { head, next };
            }
        }
        batch
    }

    /// The guest is done with the batch of this first section, which it got through this
    /// channel.
    #[must_use]
    pub fn give_back(&self, first: u64, channel: u16) -> Returned {
        let mut sections = self.lock();
        let Ok(first) = u32::try_from(first) else { return Returned::Unknown };
        match sections.owners.get(first as usize) {
            Some(Owner::Guest { head: Some(by), .. }) if *by == channel => {}
            _ => return Returned::Unknown,
        }
        sections.recover(first);
        Returned::Done(std::mem::take(&mut sections.wanted))
    }

    /// A channel is closed: what the guest got through it comes back.
    pub fn give_all_back(&self, channel: u16) {
        let mut sections = self.lock();
        let is_head =
            |owner: &Owner| matches!(owner, Owner::Guest { head: Some(by), .. } if *by == channel);
        let heads: Vec<u32> = (0u32..)
            .zip(&sections.owners)
            .filter(|(_, owner)| is_head(owner))
            .map(|(n, _)| n)
            .collect();
        heads.into_iter().for_each(|head| sections.recover(head));
    }

    /// Fills a section; its place in the buffer. `None`: it does not fit, or the guest took
    /// the memory back.
    #[must_use]
    pub fn fill(&self, section: u32, parts: [&[u8]; 2]) -> Option<u32> {
        let [head, rest] = parts;
        if head.len() + rest.len() > self.section_bytes as usize {
            return None;
        }
        let at = section.checked_mul(self.section_bytes)?;
        self.shared.with(|range, memory| {
            range.write(memory, at.into(), head)?;
            range.write(memory, u64::from(at) + head.len() as u64, rest)
        })?;
        Some(at)
    }
}

/// What the guest puts packets into.
#[derive(Debug)]
pub struct SendBuffer(Shared);

impl SendBuffer {
    /// `None`: it is not of one range, larger than `max`, or smaller than a section.
    #[must_use]
    pub fn new(memory: &Memory, gpadl: Arc<Gpadl>, max: u32) -> Option<Self> {
        let shared = Shared::new(memory, gpadl)?;
        let good = (SEND_SECTION_BYTES..=max).contains(&shared.len);
        good.then_some(Self(shared))
    }

    /// Appends what is in a section; `None`: there is not so much, or the guest took the
    /// memory back.
    #[must_use]
    pub fn read(&self, section: u32, bytes: u32, to: &mut Vec<u8>) -> Option<()> {
        let at = section.checked_mul(SEND_SECTION_BYTES)?;
        if bytes > SEND_SECTION_BYTES {
            return None;
        }
        let begin = to.len();
        self.0.with(|range, memory| {
            to.resize(begin + bytes as usize, 0);
            range.read(memory, at.into(), to.get_mut(begin..)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use crate::vmbus::gpadl::Gpadls;
    use hv_abi::vmbus::gpadl::GpadlHeader;
    use hv_abi::vmbus::{ChannelId, ControlMessage, GpaRange, GpadlId};
    use zerocopy::IntoBytes;

    fn gpadl(memory: &Memory, pages: u64) -> (Gpadls, Arc<Gpadl>) {
        let range = GpaRange { byte_count: pages as u32 * 4096, byte_offset: 0 };
        let mut list = range.as_bytes().to_vec();
        (0..pages).for_each(|page| list.extend((0x400 + page * 2).to_le_bytes()));
        let header = GpadlHeader {
            channel_id: ChannelId(1),
            gpadl_id: GpadlId(1),
            range_bytes: list.len() as u16,
            range_count: 1,
            ..GpadlHeader::empty()
        };
        let mut gpadls = Gpadls::default();
        let _ = gpadls.begin(&header, &list, memory);
        let gpadl = gpadls.get(ChannelId(1), GpadlId(1)).unwrap();
        (gpadls, gpadl)
    }

    #[test]
    fn sections_are_lent() {
        let memory = allocate(64 << 20).unwrap();
        let (mut gpadls, gpadl) = gpadl(&memory, 4);
        assert!(ReceiveBuffer::new(&memory, gpadl.clone(), 1514, 8192).is_none(), "too large");
        assert!(ReceiveBuffer::new(&memory, gpadl.clone(), 17000, 1 << 20).is_none(), "too small");
        assert!(ReceiveBuffer::new(&memory, gpadl.clone(), u32::MAX, 1 << 20).is_none());
        let buffer = ReceiveBuffer::new(&memory, gpadl, 1518, 1 << 20).unwrap();
        assert_eq!((buffer.section_bytes(), buffer.count()), (1664, 9));
        assert_eq!(buffer.take(1, 0), [0]);
        assert_eq!(buffer.take(3, 1), [1, 2, 3]);
        assert_eq!(buffer.take(1, 1), [4]);
        assert_eq!(buffer.take(2, 0), [5, 6]);
        assert_eq!(buffer.take(4, 0), [7, 8], "fewer than wanted");
        for (first, channel) in [(1, 0), (2, 1), (9, 0), (1 << 40, 0)] {
            assert_eq!(buffer.give_back(first, channel), Returned::Unknown);
        }
        assert_eq!(buffer.give_back(4, 1), Returned::Done(false));
        assert_eq!(buffer.give_back(4, 1), Returned::Unknown, "twice");
        assert_eq!((buffer.take(1, 7), buffer.take(1, 7)), (vec![4], vec![]));
        assert_eq!(buffer.give_back(1, 1), Returned::Done(true));
        buffer.give_all_back(0);
        let again: Vec<_> = std::iter::from_fn(|| buffer.take(1, 7).pop()).collect();
        assert_eq!(again, [8, 7, 6, 5, 0, 3, 2, 1]);
        assert_eq!(buffer.lock().free.len(), 0);
        assert_eq!(buffer.fill(2, [&[1; 4], &[2; 1660]]), Some(3328));
        assert_eq!(buffer.fill(2, [&[1; 4], &[2; 1661]]), None);
        assert_eq!(buffer.fill(9, [&[1], &[]]), Some(14976), "behind the last whole one");
        assert_eq!(buffer.fill(10, [&[1], &[]]), None);
        assert!(gpadls.tear_down(ChannelId(1), GpadlId(1)));
        assert_eq!(buffer.fill(2, [&[1], &[]]), None);
    }

    #[test]
    fn send_sections_are_read() {
        let memory = allocate(64 << 20).unwrap();
        let (_gpadls, gpadl) = gpadl(&memory, 4);
        let [range] = gpadl.ranges() else { panic!() };
        range.write(&memory, 6144, &[5; 100]).unwrap();
        let buffer = SendBuffer::new(&memory, gpadl.clone(), 1 << 20).unwrap();
        let mut to = vec![1];
        buffer.read(1, 100, &mut to).unwrap();
        assert_eq!((to.len(), to[100]), (101, 5));
        assert!(buffer.read(1, 6145, &mut to).is_none());
        assert!(buffer.read(2, 6144, &mut to).is_none());
        assert!(buffer.read(u32::MAX, 1, &mut to).is_none());
        assert!(SendBuffer::new(&memory, gpadl, 4096).is_none());
    }
}
