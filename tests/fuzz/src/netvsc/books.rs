//! What the guest was told, and what it must make of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use hv_abi::netvsc::ppi::PpiType;
use pv_frontends::net::{Gso, RxCsum, RxHash, RxPacket, RxVerdict, Tag, TxEnd};
use pv_frontends::netvsc::fake::Sent;
use pv_frontends::netvsc::{Card, Counter, Sink};

/// Where every frame has its number: its sender's address.
pub(super) const SERIAL: core::ops::Range<usize> = 6..10;

pub(super) fn serial_of(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[SERIAL].try_into().expect("4 bytes"))
}

/// Most bytes behind the Ethernet header that the host cuts up: what is longer comes in pieces.
const HOST_MOST: usize = 62_780;
/// TCP's flags of the last segment, and of the first.
const FIN_PSH: u8 = 9;
const CWR: u8 = 0x80;

/// Headers the host is to change: version 6 of IP or not, where IP's and TCP's begin; bytes of a
/// segment's payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    pub(super) is_v6: bool,
    pub(super) l3: usize,
    pub(super) l4: usize,
    pub(super) mss: usize,
}

impl Large {
    /// Bytes of a packet's headers.
    fn headers(&self, whole: &[u8]) -> usize {
        self.l4 + usize::from(whole[self.l4 + 12] >> 4) * 4
    }

    /// The `bytes` bytes of a packet that come behind `before` bytes of payload, as a packet.
    fn piece(&self, whole: &[u8], before: usize, bytes: usize) -> Vec<u8> {
        let (l3, l4, headers) = (self.l3, self.l4, self.headers(whole));
        let end = before + bytes;
        let is_last = headers + end == whole.len();
        assert!(bytes > self.mss && bytes + headers - l3 <= HOST_MOST);
        assert!(is_last || bytes.is_multiple_of(self.mss), "pieces are of whole segments");
        let mut piece = [&whole[..headers], &whole[headers + before..headers + end]].concat();
        let add = |field: &mut [u8], by: u32| {
            let old = field.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
            let new = old.wrapping_add(by).to_be_bytes();
            field.copy_from_slice(&new[4 - field.len()..]);
        };
        if !self.is_v6 {
            add(&mut piece[l3 + 4..l3 + 6], (before / self.mss) as u32);
        }
        add(&mut piece[l4 + 4..l4 + 8], before as u32);
        piece[l4 + 13] &= !if is_last { 0 } else { FIN_PSH };
        piece[l4 + 13] &= !if before == 0 { 0 } else { CWR };
        piece
    }
}

/// A packet the card took.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) queue: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) is_copied: bool,
    /// Its own page, of the pool's.
    pub(super) page: usize,
    /// What the host must be told.
    pub(super) hash: Option<u32>,
    pub(super) vlan: Option<u32>,
    pub(super) csum: Option<u32>,
    pub(super) large: Option<(u32, Large)>,
    /// Channel and transactions it came to the host by: one, but for pieces.
    pub(super) seen: Vec<(u32, u64)>,
    /// Bytes of payload of those pieces.
    pub(super) in_pieces: usize,
    /// What the host said became of it, or of each.
    pub(super) answers: Vec<bool>,
}

impl Out {
    /// It comes in pieces; not all of them, maybe.
    fn is_cut(&self) -> bool {
        self.large.is_some_and(|(_, large)| self.bytes.len() - large.l3 > HOST_MOST)
    }

    /// Not all of its pieces came.
    fn is_short(&self) -> bool {
        let payload = |large: Large| self.bytes.len() - large.headers(&self.bytes);
        self.is_cut() && self.large.is_some_and(|(_, large)| self.in_pieces < payload(large))
    }
}

/// A packet on its way to the guest.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) bytes: Vec<u8>,
    pub(super) csum: RxCsum,
    pub(super) gso: Option<Gso>,
    pub(super) hash: Option<RxHash>,
    pub(super) vlan: Option<u16>,
    /// The channel, and which of its lives.
    pub(super) era: (u32, u32),
    /// It came before the card was known.
    pub(super) is_optional: bool,
}

/// What a card must have counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) tx: (u64, u64),
    pub(super) rx: (u64, u64),
}

#[derive(Default)]
pub(super) struct Books {
    pub(super) cards: Vec<Arc<Card>>,
    pub(super) out: BTreeMap<u32, Out>,
    /// Packets whose channel went since the host's rings were last looked at: it may have had them.
    pub(super) lost: BTreeMap<u32, Out>,
    /// By queue, in order.
    pub(super) coming: BTreeMap<u32, VecDeque<Coming>>,
    /// Queues on which the host sent what is no packet, or perhaps one.
    pub(super) wild: BTreeSet<u32>,
    /// Packets taken before there is no room.
    pub(super) room: Option<usize>,
    /// Frames of the receive buffer.
    pub(super) buffer: Vec<u64>,
    /// The host broke its word.
    pub(super) is_lying: bool,
    /// A channel went, or may have.
    pub(super) may_lose: bool,
    pub(super) counts: BTreeMap<u32, Counts>,
    /// Packets of which pieces are missing.
    pub(super) cut_short: u64,
    /// As cards counted them that are gone.
    pub(super) cut_short_before: u64,
    /// Pages of the pool that are free.
    pub(super) free: Vec<usize>,
    pub(super) received: usize,
    pub(super) ended: usize,
    /// The last frame of a queue that came by a channel.
    last: BTreeMap<(u32, u32), u32>,
}

impl Books {
    /// A frame came to the host.
    pub(super) fn on_wire(&mut self, sent: &Sent) {
        let serial = serial_of(&sent.bytes);
        let out = match self.out.get_mut(&serial) {
            Some(out) => out,
            None => self.lost.get_mut(&serial).expect("a frame nobody sent, or that is answered"),
        };
        assert!(out.seen.is_empty() || out.is_cut(), "a frame is sent once");
        out.seen.push((sent.channel, sent.id));
        assert_eq!(out.is_copied, sent.copied);
        let last = self.last.insert((out.queue, sent.channel), serial);
        let is_next = |last| last < serial || last == serial && out.seen.len() > 1;
        assert!(last.is_none_or(is_next), "frames of a queue stay in order");
        let info =
            |kind: PpiType| sent.infos.iter().find(|info| info.0 == kind.0).map(|info| info.1);
        assert_eq!(info(PpiType::HASH_VALUE), out.hash);
        assert_eq!(info(PpiType::VLAN), out.vlan);
        let mut wanted = out.bytes.clone();
        let mut bytes = sent.bytes.clone();
        match (info(PpiType::LARGE_SEND), out.large) {
            (Some(value), Some((word, large))) => {
                assert_eq!((value, info(PpiType::CHECKSUM)), (word, None));
                if out.is_cut() {
                    let bytes = sent.bytes.len() - large.headers(&out.bytes);
                    wanted = large.piece(&out.bytes, out.in_pieces, bytes);
                    out.in_pieces += bytes;
                }
                // What is not the same for all segments.
                let (l3, l4) = (large.l3, large.l4);
                let lengths = if large.is_v6 { l3 + 4..l3 + 6 } else { l3 + 2..l3 + 4 };
                let sum = if large.is_v6 { 0..0 } else { l3 + 10..l3 + 12 };
                for changed in [lengths, sum, l4 + 16..l4 + 18] {
                    wanted[changed.clone()].fill(0);
                    bytes[changed].fill(0);
                }
            }
            // One piece is a packet like any other.
            (None, _) => assert_eq!(info(PpiType::CHECKSUM), out.csum),
            (Some(_), None) => panic!("a packet to be cut up that nobody wanted cut up"),
        }
        assert!(bytes == wanted, "{serial}: a frame came other than it was sent");
        assert!(sent.infos.len() <= 3);
    }

    /// The host answers, or will have.
    pub(super) fn answered(&mut self, transaction: (u32, u64), well: bool) {
        for out in self.out.values_mut().filter(|out| out.seen.contains(&transaction)) {
            out.answers.push(well);
        }
        self.out.retain(|_, out| !(out.is_copied && out.seen.contains(&transaction)));
    }

    /// Forgets what came by lives of channels that are over.
    pub(super) fn purge(&mut self, lives: impl Fn((u32, u32)) -> bool) {
        for (queue, coming) in &mut self.coming {
            let before = coming.len();
            coming.retain(|packet| lives(packet.era));
            if coming.len() < before {
                self.wild.remove(queue);
            }
        }
    }

    fn received(&mut self, queue: u32, packet: &RxPacket<'_>) {
        let mut bytes = vec![0; packet.bytes as usize];
        assert_eq!(packet.copy(0, &mut bytes), bytes.len());
        let is_wild = self.is_lying || self.wild.contains(&queue);
        let coming = self.coming.entry(queue).or_default();
        let is_it = |wanted: &Coming| {
            let RxPacket { csum, gso, hash, vlan, .. } = *packet;
            let facts = (wanted.csum, wanted.gso, wanted.hash, wanted.vlan);
            wanted.bytes == bytes && facts == (csum, gso, hash, vlan)
        };
        while coming.front().is_some_and(|wanted| wanted.is_optional && !is_it(wanted)) {
            coming.pop_front();
        }
        if coming.front().is_some_and(is_it) {
            coming.pop_front();
        } else if !is_wild {
            let RxPacket { csum, gso, hash, vlan, .. } = *packet;
            let facts = (csum, gso, hash, vlan);
            let wanted = coming.front().map(|c| (c.csum, c.gso, c.hash, c.vlan, c.bytes.len()));
            panic!("{queue}: {} bytes, {facts:?} instead of {wanted:?}", bytes.len());
        }
    }
}

#[derive(Default)]
pub(super) struct Notes(Mutex<Books>);

impl Notes {
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Sink<Arc<Card>> for Notes {
    fn added(&self, card: &Arc<Card>) {
        assert!(card.mac().is_unicast() && card.info().queues > 0);
        let mut books = self.books();
        assert!(!books.cards.iter().any(|known| Arc::ptr_eq(known, card)));
        books.cards.push(Arc::clone(card));
    }
    fn changed(&self, card: &Arc<Card>) {
        assert!(card.info().queues > 0);
        assert!(self.books().cards.iter().any(|known| Arc::ptr_eq(known, card)));
    }
    fn removed(&self, card: &Arc<Card>) {
        let mut books = self.books();
        let at = books.cards.iter().position(|known| Arc::ptr_eq(known, card));
        books.cards.remove(at.expect("it was added"));
        books.cut_short_before += card.count(Counter::TxCutShort);
        assert!(books.out.values().all(|out| out.is_copied), "packets of a card that is gone");
        books.out.clear();
    }
    fn receive(&self, card: &Arc<Card>, queue: u32, packet: &RxPacket<'_>) -> RxVerdict {
        let mut books = self.books();
        let mut bytes = 0;
        for piece in packet.pieces() {
            assert!(books.buffer.contains(&piece.gpfn), "no page of the receive buffer's");
            assert!(piece.len > 0 && piece.offset + piece.len <= 4096);
            bytes += u32::from(piece.len);
        }
        assert_eq!(bytes, packet.bytes);
        if let Some(room) = &mut books.room {
            if *room == 0 {
                return RxVerdict::Wait;
            }
            *room -= 1;
        }
        books.received(queue, packet);
        books.received += 1;
        let counts = books.counts.entry(card.number()).or_default();
        counts.rx = (counts.rx.0 + 1, counts.rx.1 + u64::from(packet.bytes));
        RxVerdict::Done
    }
    fn transmitted(&self, _: &Arc<Card>, queue: u32, tag: Tag, end: TxEnd) {
        let mut books = self.books();
        let out = books.out.remove(&(tag.0 as u32)).expect("a packet ends once");
        assert!(!out.is_copied && (queue == out.queue || queue == 0));
        if !books.is_lying {
            let books = &mut *books;
            match end {
                TxEnd::Lost => assert!(books.may_lose, "lost without a reason"),
                TxEnd::Sent | TxEnd::Refused => {
                    assert!(!out.seen.is_empty() && out.answers.len() == out.seen.len());
                    assert_eq!(out.answers.iter().all(|well| *well), end == TxEnd::Sent);
                    books.cut_short += u64::from(out.is_short());
                }
            }
        }
        books.free.push(out.page);
        books.ended += 1;
        if end == TxEnd::Lost {
            books.lost.insert(tag.0 as u32, out);
        }
    }
    fn settled(&self, _: &Arc<Card>, _: u32) {}
}
