//! The memory of the store: equal slots, allocated once.
//!
//! Nodes, watches, transactions and queued events all live in slots of [`SLOT_BYTES`]; texts are
//! chains of slots. So nothing is fragmented, taking and giving back is constant time, and the
//! worst case is the size of the pool. A guest may take slots only while more than a reserve is
//! left: whatever it does, backends can go on writing.

use alloc::vec::Vec;
use core::mem::size_of;

use static_assertions::const_assert_eq;
use xen_abi::Errno;

use super::node::Node;
use super::transaction::Access;
use super::watch::{Event, Watch};

/// No slot.
pub(super) const NIL: u16 = u16::MAX;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 48;
/// Bytes of text in a slot.
pub(super) const BLOCK: usize = 44;

/// A text in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// First slot; means nothing where there are no bytes.
    head: u16,
    len: u16,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { head: NIL, len: 0 };

    pub(super) const fn len(self) -> usize {
        self.len as usize
    }
}

/// Slots that a text takes.
pub(super) const fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

/// A slot.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Free { next: u16 },
    Bytes { next: u16, data: [u8; BLOCK] },
    Node(Node),
    Access(Access),
    Watch(Watch),
    Event(Event),
}
const_assert_eq!(size_of::<Slot>(), SLOT_BYTES);

/// Whose wish it is that something is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payer {
    /// The guest's: leaves the reserve alone.
    Guest,
    /// Domain 0's.
    Dom0,
}

/// The slots.
#[derive(Debug)]
pub(super) struct Pool {
    slots: Vec<Slot>,
    free: u16,
    nr_free: usize,
    reserve: usize,
}

macro_rules! kinds {
    ($($kind:ident, $get:ident, $get_mut:ident, $put:ident;)*) => {
        impl Pool {
            $(
                #[doc = concat!("The ", stringify!($kind), " in a slot.")]
                pub(super) fn $get(&self, at: u16) -> Option<&$kind> {
                    match self.slots.get(usize::from(at)) {
                        Some(Slot::$kind(value)) => Some(value),
                        _ => None,
                    }
                }
                #[doc = concat!("The ", stringify!($kind), " in a slot, to change.")]
                pub(super) fn $get_mut(&mut self, at: u16) -> Option<&mut $kind> {
                    match self.slots.get_mut(usize::from(at)) {
                        Some(Slot::$kind(value)) => Some(value),
                        _ => None,
                    }
                }
                #[doc = concat!("Takes a slot for a ", stringify!($kind), ".")]
                pub(super) fn $put(&mut self, payer: Payer, value: $kind) -> Result<u16, Errno> {
                    self.take(payer, Slot::$kind(value))
                }
            )*
        }
    };
}
kinds! {
    Node, node, node_mut, put_node;
    Access, access, access_mut, put_access;
    Watch, watch, watch_mut, put_watch;
    Event, event, event_mut, put_event;
}

impl Pool {
    /// A pool of that many slots, of which the guest leaves `reserve`.
    pub(super) fn new(slots: usize, reserve: usize) -> Result<Self, Errno> {
        let count = slots.min(usize::from(NIL));
        let mut all = Vec::new();
        all.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        for next in 1..=count {
            let next = if next == count { NIL } else { next as u16 };
            all.push(Slot::Free { next });
        }
        let free = if count == 0 { NIL } else { 0 };
        Ok(Self { slots: all, free, nr_free: count, reserve })
    }

    /// Slots that can be taken.
    pub(super) const fn room(&self, payer: Payer) -> usize {
        match payer {
            Payer::Guest => self.nr_free.saturating_sub(self.reserve),
            Payer::Dom0 => self.nr_free,
        }
    }

    /// # Errors
    /// `ENOMEM` where fewer slots are left.
    pub(super) const fn need(&self, payer: Payer, slots: usize) -> Result<(), Errno> {
        if self.room(payer) < slots { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn take(&mut self, payer: Payer, value: Slot) -> Result<u16, Errno> {
        self.need(payer, 1)?;
        let at = self.free;
        let slot = self.slots.get_mut(usize::from(at)).ok_or(Errno::ENOMEM)?;
        let Slot::Free { next } = *slot else { return Err(Errno::ENOMEM) };
        *slot = value;
        self.free = next;
        self.nr_free -= 1;
        Ok(at)
    }

    /// Gives a slot back.
    pub(super) fn give(&mut self, at: u16) {
        let next = self.free;
        if let Some(slot) = self.slots.get_mut(usize::from(at))
            && !matches!(slot, Slot::Free { .. })
        {
            *slot = Slot::Free { next };
            self.free = at;
            self.nr_free += 1;
        }
    }

    /// Slots that are taken.
    pub(super) fn nr_used(&self) -> usize {
        self.slots.len().saturating_sub(self.nr_free)
    }

    /// All nodes, and where they are.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u16, &Node)> {
        (0u16..).zip(&self.slots).filter_map(|(at, slot)| match slot {
            Slot::Node(node) => Some((at, node)),
            _ => None,
        })
    }

    /// All that transactions look at.
    pub(super) fn accesses(&self) -> impl Iterator<Item = &Access> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Access(access) => Some(access),
            _ => None,
        })
    }

    /// All watches.
    pub(super) fn watches(&self) -> impl Iterator<Item = &Watch> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Watch(watch) => Some(watch),
            _ => None,
        })
    }

    /// All events.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Event(event) => Some(event),
            _ => None,
        })
    }

    fn block(&self, at: u16) -> Option<(u16, &[u8; BLOCK])> {
        match self.slots.get(usize::from(at)) {
            Some(Slot::Bytes { next, data }) => Some((*next, data)),
            _ => None,
        }
    }

    fn block_mut(&mut self, at: u16) -> Option<(&mut u16, &mut [u8; BLOCK])> {
        match self.slots.get_mut(usize::from(at)) {
            Some(Slot::Bytes { next, data }) => Some((next, data)),
            _ => None,
        }
    }

    /// Stores a text.
    pub(super) fn store(&mut self, payer: Payer, text: &[u8]) -> Result<Chain, Errno> {
        let mut chain = Chain::EMPTY;
        self.append(payer, &mut chain, text)?;
        Ok(chain)
    }

    /// Adds to the end of a text; all or nothing.
    pub(super) fn append(
        &mut self,
        payer: Payer,
        chain: &mut Chain,
        text: &[u8],
    ) -> Result<(), Errno> {
        let len = chain.len() + text.len();
        let new_len = u16::try_from(len).map_err(|_| Errno::ENOSPC)?;
        self.need(payer, blocks(len) - blocks(chain.len()))?;
        let mut last = NIL;
        if chain.len != 0 {
            last = chain.head;
            while let Some((next, _)) = self.block(last)
                && next != NIL
            {
                last = next;
            }
        }
        let used = chain.len() - blocks(chain.len()).saturating_sub(1) * BLOCK;
        let first = if chain.len == 0 { 0 } else { text.len().min(BLOCK - used) };
        let (head, rest) = text.split_at_checked(first).unwrap_or((text, &[]));
        if let Some((_, data)) = self.block_mut(last) {
            data.iter_mut().skip(used).zip(head).for_each(|(to, from)| *to = *from);
        }
        for part in rest.chunks(BLOCK) {
            let mut data = [0; BLOCK];
            data.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            let at = self.take(payer, Slot::Bytes { next: NIL, data })?;
            match self.block_mut(last) {
                Some((next, _)) => *next = at,
                None => chain.head = at,
            }
            last = at;
        }
        chain.len = new_len;
        Ok(())
    }

    /// Copies a text.
    pub(super) fn copy(&mut self, payer: Payer, chain: Chain) -> Result<Chain, Errno> {
        self.need(payer, blocks(chain.len()))?;
        let mut new = Chain { head: NIL, len: chain.len };
        let (mut from, mut last) = (chain.head, NIL);
        for _ in 0..blocks(chain.len()) {
            let Some((next, data)) = self.block(from) else { break };
            let (next, data) = (next, *data);
            let at = self.take(payer, Slot::Bytes { next: NIL, data })?;
            match self.block_mut(last) {
                Some((next, _)) => *next = at,
                None => new.head = at,
            }
            (from, last) = (next, at);
        }
        Ok(new)
    }

    /// Gives a text back.
    pub(super) fn drop_text(&mut self, chain: Chain) {
        let mut at = chain.head;
        for _ in 0..blocks(chain.len()) {
            let Some((next, _)) = self.block(at) else { break };
            self.give(at);
            at = next;
        }
    }

    /// The text in pieces.
    pub(super) fn pieces(&self, chain: Chain) -> Pieces<'_> {
        Pieces { pool: self, at: chain.head, left: chain.len() }
    }

    /// Whether a text is these bytes.
    pub(super) fn is(&self, chain: Chain, text: &[u8]) -> bool {
        chain.len() == text.len() && self.begins(chain, text)
    }

    /// Whether two texts are the same.
    pub(super) fn same(&self, one: Chain, other: Chain) -> bool {
        one.len == other.len && self.pieces(one).eq(self.pieces(other))
    }

    /// Whether `text` begins with the stored one.
    pub(super) fn begins(&self, chain: Chain, text: &[u8]) -> bool {
        let mut rest = text;
        chain.len() <= text.len()
            && self.pieces(chain).all(|piece| {
                let same = rest.starts_with(piece);
                rest = rest.get(piece.len()..).unwrap_or_default();
                same
            })
    }

    /// Copies bytes from an offset on; returns how many there were.
    pub(super) fn read_at(&self, chain: Chain, offset: usize, into: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in self.pieces(chain) {
            let piece = piece.get(skip.min(piece.len())..).unwrap_or_default();
            skip = skip.saturating_sub(BLOCK);
            let Some(room) = into.get_mut(done..) else { break };
            if room.is_empty() {
                break;
            }
            done += piece.len().min(room.len());
            room.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        }
        done
    }

    /// Adds the text that begins at an offset and ends before a NUL; returns its length.
    pub(super) fn string_at(&self, chain: Chain, offset: usize, out: &mut Buf) -> Option<usize> {
        let (mut skip, mut len) = (offset, 0);
        for piece in self.pieces(chain) {
            let part = piece.get(skip.min(piece.len())..).unwrap_or_default();
            skip = skip.saturating_sub(BLOCK);
            let end = part.iter().position(|byte| *byte == 0);
            let text = part.get(..end.unwrap_or(part.len())).unwrap_or_default();
            out.add(text).ok()?;
            len += text.len();
            if end.is_some() {
                return Some(len);
            }
        }
        None
    }

    /// Takes bytes out of the middle of a text.
    pub(super) fn cut(&mut self, chain: &mut Chain, offset: usize, count: usize) {
        let Some(len) = chain.len().checked_sub(count) else { return };
        let (mut to, mut from) = (self.seek(*chain, offset), self.seek(*chain, offset + count));
        for _ in offset..len {
            let byte = self.block(from.0).and_then(|(_, data)| data.get(from.1)).copied();
            if let (Some(byte), Some((_, data))) = (byte, self.block_mut(to.0))
                && let Some(place) = data.get_mut(to.1)
            {
                *place = byte;
            }
            (to, from) = (self.step(to), self.step(from));
        }
        let keep = blocks(len);
        let mut at = chain.head;
        let mut last = NIL;
        for index in 0..blocks(chain.len()) {
            let Some((next, _)) = self.block(at) else { break };
            if index < keep {
                last = at;
            } else {
                self.give(at);
            }
            at = next;
        }
        match self.block_mut(last) {
            Some((next, _)) => *next = NIL,
            None => chain.head = NIL,
        }
        chain.len = len as u16;
    }

    fn seek(&self, chain: Chain, offset: usize) -> (u16, usize) {
        let mut at = chain.head;
        for _ in 0..offset / BLOCK {
            at = self.block(at).map_or(NIL, |(next, _)| next);
        }
        (at, offset % BLOCK)
    }

    fn step(&self, (at, offset): (u16, usize)) -> (u16, usize) {
        if offset + 1 < BLOCK {
            return (at, offset + 1);
        }
        (self.block(at).map_or(NIL, |(next, _)| next), 0)
    }
}

/// See [`Pool::pieces`].
pub(super) struct Pieces<'a> {
    pool: &'a Pool,
    at: u16,
    left: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let (next, data) = self.pool.block(self.at)?;
        let piece = data.get(..self.left.min(BLOCK))?;
        self.at = next;
        self.left -= piece.len();
        Some(piece)
    }
}

/// Bytes whose room was allocated once.
#[derive(Debug, Default)]
pub(super) struct Buf {
    bytes: Vec<u8>,
    limit: usize,
}

impl Buf {
    pub(super) fn new(limit: usize) -> Result<Self, Errno> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(limit).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { bytes, limit })
    }

    /// # Errors
    /// `E2BIG` where there is no room.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(Errno::E2BIG);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds a decimal number.
    pub(super) fn add_number(&mut self, number: u64) -> Result<(), Errno> {
        let mut digits = [0; 20];
        let mut rest = number;
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            used += 1;
            if rest == 0 {
                break;
            }
        }
        self.add(digits.get(20 - used..).unwrap_or_default())
    }

    /// Makes it that long, the new bytes zero, up to its room.
    pub(super) fn resize(&mut self, len: usize) {
        self.bytes.resize(len.min(self.limit), 0);
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn cut(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
#[path = "tests/pool.rs"]
mod tests;
