//! GPADLs: lists of guest pages, sent in pieces and then known by a number.

use crate::memory::Memory;
use crate::vmbus::packet::PageRange;
use hv_abi::vmbus::gpadl::GpadlHeader;
use hv_abi::vmbus::{ChannelId, GpadlId};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// GPADLs a guest may have at once; Linux has two for each open channel.
const GPADLS_MAX: usize = 4096;

/// Memory a guest has shown to a device.
#[derive(Debug)]
pub struct Gpadl {
    ranges: Vec<PageRange>,
    /// Cleared when the guest takes the memory back; held while it is accessed.
    live: RwLock<bool>,
}

impl Gpadl {
    /// Its ranges.
    #[must_use]
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// All its pages, where it is one range of whole pages, as a ring is.
    #[must_use]
    pub fn whole_pages(&self) -> Option<&[u64]> {
        let [range] = self.ranges.as_slice() else { return None };
        let whole = range.offset == 0 && range.len as usize == range.pages.len() * 4096;
        whole.then_some(range.pages.as_slice())
    }

    /// Does something with the memory; `None` once the guest took it back.
    pub fn access<T>(&self, f: impl FnOnce(&[PageRange]) -> T) -> Option<T> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.then(|| f(&self.ranges))
    }

    fn end(&self) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// A GPADL whose pieces are still coming.
#[derive(Debug)]
struct Partial {
    channel: ChannelId,
    range_count: u16,
    wanted: usize,
    list: Vec<u8>,
}

/// What a piece led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More pieces are to come.
    More,
    /// The guest is to be told: the channel, and whether it is made.
    Done(ChannelId, bool),
}

/// All GPADLs of the guest.
#[derive(Debug, Default)]
pub struct Gpadls {
    partial: BTreeMap<GpadlId, Partial>,
    made: BTreeMap<GpadlId, (ChannelId, Arc<Gpadl>)>,
}

impl Gpadls {
    /// The first piece.
    pub fn begin(&mut self, header: &GpadlHeader, list: &[u8], memory: &Memory) -> Progress {
        let id = header.gpadl_id;
        let refused = Progress::Done(header.channel_id, false);
        let known = self.made.contains_key(&id) || self.partial.contains_key(&id);
        if known || self.made.len() + self.partial.len() >= GPADLS_MAX {
            return refused;
        }
        let wanted = usize::from(header.range_bytes);
        if header.range_count == 0 || wanted == 0 || !wanted.is_multiple_of(8) {
            return refused;
        }
        let partial = Partial {
            channel: header.channel_id,
            range_count: header.range_count,
            wanted,
            list: Vec::new(),
        };
        self.partial.insert(id, partial);
        self.more(id, list, memory).unwrap_or(refused)
    }

    /// A further piece; `None`: of no GPADL that is under way.
    pub fn more(&mut self, id: GpadlId, list: &[u8], memory: &Memory) -> Option<Progress> {
        let partial = self.partial.get_mut(&id)?;
        let room = partial.wanted - partial.list.len();
        // Messages are filled up beyond the list.
        partial.list.extend_from_slice(list.get(..room.min(list.len())).unwrap_or_default());
        if partial.list.len() < partial.wanted {
            return Some(Progress::More);
        }
        let partial = self.partial.remove(&id)?;
        let ranges = PageRange::parse_list(partial.range_count.into(), &partial.list)
            .filter(|ranges| ranges.iter().all(|r| r.len != 0 && r.is_backed(memory)));
        let made = ranges.is_some();
        if let Some(ranges) = ranges {
            let gpadl = Arc::new(Gpadl { ranges, live: RwLock::new(true) });
            self.made.insert(id, (partial.channel, gpadl));
        }
        Some(Progress::Done(partial.channel, made))
    }

    /// A GPADL made for `channel`.
    #[must_use]
    pub fn get(&self, channel: ChannelId, id: GpadlId) -> Option<Arc<Gpadl>> {
        let (owner, gpadl) = self.made.get(&id)?;
        (*owner == channel).then(|| gpadl.clone())
    }

    /// The guest takes the memory back: from here on no device touches it.
    /// `false`: there is no such GPADL.
    pub fn tear_down(&mut self, channel: ChannelId, id: GpadlId) -> bool {
        if self.partial.get(&id).is_some_and(|p| p.channel == channel) {
            return self.partial.remove(&id).is_some();
        }
        let Some(gpadl) = self.get(channel, id) else { return false };
        gpadl.end();
        self.made.remove(&id).is_some()
    }

    /// Forgets all GPADLs of a channel, or all.
    pub fn clear(&mut self, channel: Option<ChannelId>) {
        let gone = |owner: ChannelId| channel.is_none_or(|c| c == owner);
        self.partial.retain(|_, partial| !gone(partial.channel));
        self.made.retain(|_, (owner, gpadl)| {
            if gone(*owner) {
                gpadl.end();
            }
            !gone(*owner)
        });
    }

    /// Number of GPADLs, unfinished ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.partial.len() + self.made.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use hv_abi::vmbus::{ControlMessage, GpaRange};
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    const CHANNEL: ChannelId = ChannelId(3);

    fn list(pages: &[u64]) -> Vec<u8> {
        let range = GpaRange { byte_count: pages.len() as u32 * 4096, byte_offset: 0 };
        let mut bytes = range.as_bytes().to_vec();
        pages.iter().for_each(|p| bytes.extend(p.to_le_bytes()));
        bytes
    }

    fn header(id: u32, count: u16, bytes: usize) -> GpadlHeader {
        GpadlHeader {
            channel_id: CHANNEL,
            gpadl_id: GpadlId(id),
            range_bytes: bytes as u16,
            range_count: count,
            ..GpadlHeader::empty()
        }
    }

    #[test]
    fn pieces_make_one() {
        let memory = allocate(64 << 20).unwrap();
        let mut gpadls = Gpadls::default();
        let pages: Vec<u64> = (0..100).map(|n| 0x100 + n * 2).collect();
        let bytes = list(&pages);
        let head = header(7, 1, bytes.len());
        assert_eq!(gpadls.begin(&head, &bytes[..216], &memory), Progress::More);
        let mut rest = &bytes[216..];
        while rest.len() > 224 {
            assert_eq!(gpadls.more(GpadlId(7), &rest[..224], &memory), Some(Progress::More));
            rest = &rest[224..];
        }
        let mut last = rest.to_vec();
        last.resize(224, 0xee);
        assert_eq!(gpadls.more(GpadlId(7), &last, &memory), Some(Progress::Done(CHANNEL, true)));
        let gpadl = gpadls.get(CHANNEL, GpadlId(7)).unwrap();
        assert_eq!(gpadl.whole_pages().unwrap().len(), 100);
        assert_eq!(gpadl.whole_pages().unwrap()[1], 0x10_2000);
        assert!(gpadls.get(ChannelId(4), GpadlId(7)).is_none());
        assert!(!gpadls.tear_down(ChannelId(4), GpadlId(7)));
        assert!(gpadls.tear_down(CHANNEL, GpadlId(7)));
        assert_eq!(gpadl.access(|_| ()), None);
        assert!(gpadls.is_empty());
    }

    #[test]
    fn refusals() {
        let memory = allocate(64 << 20).unwrap();
        let mut gpadls = Gpadls::default();
        let refused = Progress::Done(CHANNEL, false);
        let good = list(&[1]);
        assert_eq!(gpadls.begin(&header(1, 0, 16), &good, &memory), refused);
        assert_eq!(gpadls.begin(&header(1, 1, 15), &good, &memory), refused);
        assert_eq!(gpadls.begin(&header(1, 2, 16), &good, &memory), refused);
        assert_eq!(gpadls.begin(&header(1, 1, 16), &list(&[1 << 30]), &memory), refused);
        assert_eq!(gpadls.begin(&header(1, 1, 16), &list(&[u64::MAX]), &memory), refused);
        assert_eq!(gpadls.more(GpadlId(1), &good, &memory), None);
        assert!(gpadls.is_empty());
        assert_eq!(gpadls.begin(&header(1, 1, 16), &good, &memory), Progress::Done(CHANNEL, true));
        assert_eq!(gpadls.begin(&header(1, 1, 16), &good, &memory), refused, "twice");
        gpadls.clear(Some(ChannelId(9)));
        assert_eq!(gpadls.len(), 1);
        gpadls.clear(None);
        assert!(gpadls.is_empty());
    }

    proptest! {
        #[test]
        fn any_pieces(
            count in any::<u16>(),
            bytes in any::<u16>(),
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..224), 0..8),
        ) {
            let memory = allocate(64 << 20).unwrap();
            let mut gpadls = Gpadls::default();
            gpadls.begin(&header(1, count, bytes.into()), pieces.first().map_or(&[], |p| p), &memory);
            for piece in pieces.iter().skip(1) {
                gpadls.more(GpadlId(1), piece, &memory);
            }
            prop_assert!(gpadls.len() <= 1);
        }
    }
}
