//! Between a network device of the host's ([`netvsc`](crate::netvsc)) and the backend above it.
//!
//! ```text
//! transmit: guest's pages ─> NetDevice::submit … submit, commit ─> host ─> transmitted(tag), settled
//! receive:  host ─> receive buffer ─> receive(RxPacket) … receive, settled ─> buffer back to the host
//! ```
//! Downwards the backend calls [`NetDevice`]. Upwards the device calls what
//! [`netvsc::Sink`](crate::netvsc::Sink) lists, on any processor, for one queue never on two at
//! once with receiving; from inside any of it [`NetDevice`] may be called.
//!
//! Queues are numbered from 0 to [`NetInfo::queues`] less one, the same for both directions.
//!
//! Two engineers' code meets here: what is in this file may be added to, and is not changed.

use translate::platform::PageWords;
use xen_abi::Mfn;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER_BYTES: u32 = 14;
/// Bytes a VLAN tag adds to it.
pub const VLAN_TAG_BYTES: u32 = 4;
/// Most bytes of any packet, Ethernet header included: IP's limit behind one.
pub const MAX_PACKET_BYTES: u32 = 65535 + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES;
/// Bytes of a Toeplitz key.
pub const HASH_KEY_BYTES: usize = 40;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it can be a card's own: not a group's, not zero.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        let [first, b, c, d, e, f] = self.0;
        first & 1 == 0 && (first | b | c | d | e | f) != 0
    }
}

impl core::fmt::Display for MacAddress {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Names a packet until its completion; chosen by the caller, given back as it is. Several packets
/// may have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

/// A piece of a guest page that is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct TxFragment {
    /// The VM's page frame.
    pub gpfn: Mfn,
    /// Its contents, for headers and for what is copied.
    pub page: &'static PageWords,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes, not 0; `offset + len` is at most a page.
    pub len: u16,
}

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Ip {
    V4,
    V6,
}

/// Protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Transport {
    Tcp,
    Udp,
}

/// The checksum of a packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxCsum {
    /// It is as it is to be.
    None,
    /// The transport's field holds the sum of the pseudo header (length included, not inverted);
    /// the device is to sum up the rest.
    Partial {
        /// Version of IP.
        ip: Ip,
        /// Transport.
        transport: Transport,
        /// Where the IP header begins in the packet.
        l3: u16,
        /// Where the transport's header begins in the packet.
        l4: u16,
    },
}

/// A packet to be cut into several. Its checksum is [`TxCsum::Partial`] with [`Transport::Tcp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Most bytes of TCP payload in each; not 0.
    pub mss: u16,
}

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub struct TxPacket<'a> {
    /// Where it is, Ethernet header first, without VLAN tag where `vlan` has it. Not empty, at most
    /// [`NetInfo::max_fragments`]. What is behind [`TxCsum::Partial`]'s offsets may change under the
    /// device's eyes: it copies what it looks at.
    pub fragments: &'a [TxFragment],
    /// Checksum.
    pub csum: TxCsum,
    /// Segmentation.
    pub gso: Option<Gso>,
    /// Tag control information (priority 15:13, DEI 12, VLAN 11:0) of a tag to be put in.
    pub vlan: Option<u16>,
    /// Hash of its flow, where the sender knows it.
    pub hash: Option<u32>,
}

impl TxPacket<'_> {
    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.fragments.iter().map(|fragment| u32::from(fragment.len)).sum()
    }
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxSubmitted {
    /// The pages are the device's until its completion (`transmitted`), which comes on any
    /// processor, possibly before this returns to the caller's next line.
    Queued,
    /// It was copied: the pages are the caller's again. No completion follows.
    Copied,
    /// The device takes nothing on this queue now. Nothing happened; submit again when it says
    /// that it goes on (`settled` of the same queue), which it does.
    Busy,
    /// It is not sent; no completion follows.
    Refused(TxRefusal),
}

/// Why a packet is not sent, now or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxRefusal {
    /// The device is gone.
    Removed,
    /// Fragments that are empty, leave their page, or are too many.
    Fragments,
    /// Shorter than an Ethernet header, or longer than the device takes.
    Size,
    /// The device does not do such a checksum, segmentation or VLAN tag.
    Unsupported,
    /// Offsets of headers that cannot be, or headers that do not say what the offsets say.
    Headers,
}

/// How a packet's way ended that was [`TxSubmitted::Queued`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxEnd {
    /// The host has taken it.
    Sent,
    /// The host refused it.
    Refused,
    /// The channel went away under it: it may or may not have been sent.
    Lost,
}

/// What is known of a received packet's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxCsum {
    /// Nothing.
    Unchecked,
    /// It is right.
    Validated,
    /// It is wrong; the guest should see for itself.
    Wrong,
    /// The sender left it to be done, and nobody has: only the pseudo header is in it.
    Partial,
}

/// Hash of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxHash {
    /// Value.
    pub value: u32,
    /// What it was made of; `None` where the host does not say: the first of the types set that
    /// suits the packet.
    pub kind: Option<HashTypes>,
}

/// A run of bytes of a received packet, in one page of the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct RxPiece {
    /// The page's frame number.
    pub gpfn: u64,
    /// Its contents. The host may change them at any time: copy, then look.
    pub page: &'static PageWords,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes, not 0; `offset + len` is at most a page.
    pub len: u16,
}

/// A received packet. Its bytes are the host's again when the call that brought it returns.
#[derive(Clone, Copy, Debug)]
pub struct RxPacket<'a> {
    /// Pages of the receive buffer and where in it the packet's parts are; all are inside, and none
    /// is empty. Use [`Self::pieces`].
    pub(crate) buffer: &'a [RxPage],
    /// Parts: offset in the buffer and bytes.
    pub(crate) parts: &'a [(u32, u32)],
    /// Bytes in all: at least an Ethernet header, at most [`MAX_PACKET_BYTES`].
    pub bytes: u32,
    /// Checksum.
    pub csum: RxCsum,
    /// The IPv4 header is right, but the packet does not have its checksum.
    pub ip_csum_blank: bool,
    /// It is several packets of one TCP stream made into one, with this much payload in each but
    /// the last, as far as known. Comes only where [`NetDevice::set_coalescing`] allowed it.
    pub gso: Option<Gso>,
    /// Hash of its flow.
    pub hash: Option<RxHash>,
    /// Tag control information of the VLAN tag that was taken out.
    pub vlan: Option<u16>,
}

/// A page of a receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct RxPage {
    /// Frame number.
    pub gpfn: u64,
    /// Contents.
    pub page: &'static PageWords,
}

impl<'a> RxPacket<'a> {
    /// A packet at `parts` (offset, bytes) of a buffer; for backends' tests. `None` where they
    /// are not inside, empty, or too many bytes.
    #[must_use]
    pub fn new(buffer: &'a [RxPage], parts: &'a [(u32, u32)]) -> Option<Self> {
        let room = buffer.len() as u64 * PAGE_BYTES;
        let fits = |&(at, len): &(u32, u32)| len > 0 && u64::from(at) + u64::from(len) <= room;
        let bytes = parts.iter().map(|&(_, len)| u64::from(len)).sum::<u64>();
        let is_sane = parts.iter().all(fits)
            && (u64::from(ETHERNET_HEADER_BYTES)..=u64::from(MAX_PACKET_BYTES)).contains(&bytes);
        is_sane.then_some(Self {
            buffer,
            parts,
            bytes: bytes as u32,
            csum: RxCsum::Unchecked,
            ip_csum_blank: false,
            gso: None,
            hash: None,
            vlan: None,
        })
    }

    /// Where the bytes are, in order, none across a page's end.
    pub fn pieces(&self) -> impl Iterator<Item = RxPiece> + Clone + 'a {
        let buffer = self.buffer;
        self.parts.iter().flat_map(move |&(at, len)| pieces(buffer, at, len))
    }

    /// Copies bytes from `at` on; how many there were.
    pub fn copy(&self, at: u32, into: &mut [u8]) -> usize {
        let (mut skip, mut done) = (at, 0);
        for piece in self.pieces() {
            let len = u32::from(piece.len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let room = into.get_mut(done..).unwrap_or_default();
            let take = room.len().min((len - skip) as usize);
            if take == 0 {
                break;
            }
            let from = usize::from(piece.offset) + skip as usize;
            copy_out(piece.page, from, room.get_mut(..take).unwrap_or_default());
            (skip, done) = (0, done + take);
        }
        done
    }
}

const PAGE_BYTES: u64 = 4096;

fn pieces(buffer: &[RxPage], at: u32, len: u32) -> impl Iterator<Item = RxPiece> + Clone + '_ {
    let end = u64::from(at) + u64::from(len);
    let mut at = u64::from(at);
    core::iter::from_fn(move || {
        let page = buffer.get((at / PAGE_BYTES) as usize)?;
        let offset = at % PAGE_BYTES;
        let len = end.saturating_sub(at).min(PAGE_BYTES - offset);
        at += len;
        // Both below a page.
        let piece = |len| RxPiece { gpfn: page.gpfn, page: page.page, offset: offset as u16, len };
        (len > 0).then(|| piece(len as u16))
    })
}

/// Copies bytes out of a page, from `at` on; what is not there stays as it is.
pub fn copy_out(page: &PageWords, at: usize, into: &mut [u8]) {
    let (mut nr, mut skip) = (at / 8, at % 8);
    let mut rest = into;
    while !rest.is_empty() {
        let Some(word) = page.get(nr) else { return };
        let word = word.load(core::sync::atomic::Ordering::Relaxed).to_le_bytes();
        let from = word.get(skip..).unwrap_or_default();
        let take = from.len().min(rest.len());
        let (now, later) = rest.split_at_mut(take);
        for (to, from) in now.iter_mut().zip(from) {
            *to = *from;
        }
        (rest, nr, skip) = (later, nr + 1, 0);
    }
}

/// What the backend says to a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxVerdict {
    /// It has it, or does not want it: its bytes are the host's again.
    Done,
    /// It has no room now, and has not taken any of it. The queue stands still, and the same
    /// packet is brought again, after [`NetDevice::resume`].
    Wait,
}

/// What hashes are made of. Of those that suit a packet the first set in this order is made: TCP,
/// then IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashTypes {
    /// Addresses and ports of TCP over IPv4.
    pub tcp_v4: bool,
    /// Addresses of IPv4.
    pub v4: bool,
    /// Addresses and ports of TCP over IPv6.
    pub tcp_v6: bool,
    /// Addresses of IPv6.
    pub v6: bool,
}

/// Receive-side scaling: Toeplitz, then a table of queues.
#[derive(Clone, Copy, Debug)]
pub struct Rss<'a> {
    /// What is hashed; none: everything goes to the first entry's queue.
    pub types: HashTypes,
    /// Key.
    pub key: [u8; HASH_KEY_BYTES],
    /// Queue for each value of the hash's low bits: a power of two of entries, from 1 to
    /// [`NetInfo::rss_entries`], each below [`NetInfo::queues`].
    pub table: &'a [u16],
}

/// Which packets to receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxFilter {
    /// To the card's address.
    pub directed: bool,
    /// To all.
    pub broadcast: bool,
    /// To groups, whichever.
    pub all_multicast: bool,
    /// Everything on the wire.
    pub promiscuous: bool,
}

/// What a device can do to packets that are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxOffloads {
    /// [`TxCsum::Partial`] of TCP over IPv4.
    pub csum_tcp_v4: bool,
    /// Of UDP over IPv4.
    pub csum_udp_v4: bool,
    /// Of TCP over IPv6.
    pub csum_tcp_v6: bool,
    /// Of UDP over IPv6.
    pub csum_udp_v6: bool,
    /// Most bytes of an IPv4 packet to be cut up, Ethernet header not included; 0: none is.
    pub gso_v4_bytes: u32,
    /// Most bytes of an IPv6 packet to be cut up.
    pub gso_v6_bytes: u32,
    /// Puts VLAN tags in.
    pub vlan: bool,
}

/// What a device is, as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetInfo {
    /// Its address.
    pub mac: MacAddress,
    /// Most bytes of a packet behind its Ethernet header.
    pub mtu: u32,
    /// Largest MTU it could be set to ([`NetDevice::set_mtu`]).
    pub max_mtu: u32,
    /// The link is up. While it is down packets are taken, and lost.
    pub link: bool,
    /// Bits per second; 0 where unknown.
    pub speed_bps: u64,
    /// Queues; at least 1. May grow after `added` as channels open: then `changed` is called.
    pub queues: u32,
    /// Most fragments of a packet.
    pub max_fragments: u16,
    /// Transmit offloads.
    pub tx: TxOffloads,
    /// Received IPv4 streams can be coalesced.
    pub coalesce_v4: bool,
    /// Received IPv6 streams can be coalesced.
    pub coalesce_v6: bool,
    /// Most entries of [`Rss::table`]; 0: no RSS.
    pub rss_entries: u16,
}

/// Something a device does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// It never does.
    Never,
    /// The values are out of bounds.
    Values,
    /// It is gone.
    Removed,
}

/// A network card. All methods may be called on several processors at once, with interrupts off;
/// none waits.
///
/// Settings (filter, RSS, coalescing, MTU) are kept and given to the host again whenever the
/// channel comes back; they are in force some time after the call.
pub trait NetDevice: Sync {
    /// What it is, as of now.
    fn info(&self) -> NetInfo;
    /// Hands a packet over. Those of one queue are sent in order, as far as the host keeps it.
    fn submit(&self, queue: u32, packet: &TxPacket<'_>, tag: Tag) -> TxSubmitted;
    /// The last of a batch has been submitted: tell the host if it has to be told.
    fn commit(&self, queue: u32);
    /// There is room again after [`RxVerdict::Wait`]. The packets come later, on some processor,
    /// not from inside this call.
    fn resume(&self, queue: u32);
    /// Which packets to receive. At first: none.
    fn set_filter(&self, filter: RxFilter) -> Result<(), Unsupported>;
    /// Hash and spread of received packets. At first: all types, the key of the specification of
    /// receive-side scaling, queues in turn.
    fn set_rss(&self, rss: &Rss<'_>) -> Result<(), Unsupported>;
    /// Which received streams may be coalesced. At first: none.
    fn set_coalescing(&self, v4: bool, v6: bool) -> Result<(), Unsupported>;
    /// Sets the MTU. The channel is closed and opened again: packets are lost meanwhile.
    fn set_mtu(&self, mtu: u32) -> Result<(), Unsupported>;
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn buffer(pages: u64) -> Vec<RxPage> {
        let page = |nr: u64| {
            let words: &'static PageWords = Box::leak(Box::new([const { AtomicU64::new(0) }; 512]));
            for (at, word) in words.iter().enumerate() {
                let bytes = core::array::from_fn(|i| (at * 8 + i) as u8 ^ nr as u8);
                word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            }
            RxPage { gpfn: 100 + 7 * nr, page: words }
        };
        (0..pages).map(page).collect()
    }

    fn byte(at: u32) -> u8 {
        (at % 4096) as u8 ^ (at / 4096) as u8
    }

    #[test]
    fn pieces_end_with_their_pages() {
        let buffer = buffer(3);
        let parts = [(4090, 10), (8000, 200), (12280, 8)];
        let packet = RxPacket::new(&buffer, &parts).expect("it fits");
        let pieces: Vec<_> = packet.pieces().map(|p| (p.gpfn, p.offset, p.len)).collect();
        let wanted = [(100, 4090, 6), (107, 0, 4), (107, 3904, 192), (114, 0, 8), (114, 4088, 8)];
        assert_eq!(pieces, wanted);
        assert_eq!(packet.bytes, 218);
    }

    #[test]
    fn copies_start_anywhere() {
        let buffer = buffer(2);
        let parts = [(3, 17), (4000, 200)];
        let packet = RxPacket::new(&buffer, &parts).expect("it fits");
        let bytes: Vec<u8> = (3..20).chain(4000..4200).map(byte).collect();
        for at in 0..=bytes.len() {
            for len in [0, 1, 7, 8, 9, 100, 300] {
                let mut into = [0xee; 300];
                let there = packet.copy(at as u32, &mut into[..len]);
                assert_eq!(there, len.min(bytes.len() - at));
                assert_eq!(into[..there], bytes[at..at + there]);
                assert!(into[there..].iter().all(|byte| *byte == 0xee));
            }
        }
    }

    #[test]
    fn packets_outside_their_buffer_are_none() {
        let buffer = buffer(1);
        for parts in [
            &[(4090, 20)][..],
            &[(u32::MAX, 20)],
            &[(0, 20), (40, 0)],
            &[(0, 13)],
            &[],
            &[(0, u32::MAX), (1, u32::MAX)],
        ] {
            assert!(RxPacket::new(&buffer, parts).is_none(), "{parts:?}");
        }
        assert!(RxPacket::new(&buffer, &[(4076, 20)]).is_some());
    }

    #[test]
    fn addresses_of_cards() {
        assert!(MacAddress([0, 0x15, 0x5d, 1, 2, 3]).is_unicast());
        assert!(!MacAddress([1, 0, 0x5e, 1, 2, 3]).is_unicast());
        assert!(!MacAddress([0; 6]).is_unicast());
        assert_eq!(
            std::format!("{}", MacAddress([0, 0x15, 0x5d, 0xa, 2, 0xff])),
            "00:15:5d:0a:02:ff"
        );
    }
}
