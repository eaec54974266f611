//! A network card in memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

use xen_abi::Mfn;

use crate::net::{
    Gso, HashTypes, Ip, MacAddress, NetDevice, NetInfo, Rss, RxCsum, RxFilter, RxHash, Tag,
    Transport, TxCsum, TxOffloads, TxPacket, TxRefusal, TxSubmitted, Unsupported, copy_out,
};

/// A packet at the card.
#[derive(Clone, Debug)]
pub struct Sent {
    pub queue: u32,
    pub tag: Tag,
    pub bytes: Vec<u8>,
    pub csum: TxCsum,
    pub gso: Option<Gso>,
    pub vlan: Option<u16>,
    pub hash: Option<u32>,
    /// Where the bytes are: read again at the end, when they must still be the same.
    pub places: Vec<(Mfn, u16, u16)>,
}

/// A packet the host has for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub csum: RxCsum,
    pub ip_csum_blank: bool,
    pub gso: Option<Gso>,
    pub hash: Option<RxHash>,
    pub vlan: Option<u16>,
    /// Where in the receive buffer its parts are cut.
    pub cuts: Vec<usize>,
}

impl Frame {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            csum: RxCsum::Validated,
            ip_csum_blank: false,
            gso: None,
            hash: None,
            vlan: None,
            cuts: Vec::new(),
        }
    }
}

/// RSS as it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRss {
    pub types: HashTypes,
    pub key: [u8; 40],
    pub table: Vec<u16>,
}

/// A card's state.
pub struct NicState {
    pub info: NetInfo,
    pub pending: VecDeque<Sent>,
    /// All it was ever given.
    pub log: Vec<Sent>,
    /// Takes no more than so many at once.
    pub room: usize,
    /// It said so.
    pub was_busy: bool,
    /// Says so once, and goes on before anybody can have heard it.
    pub busy_once: bool,
    /// Copies packets of at most so many bytes.
    pub copies: u32,
    pub refuse: Option<TxRefusal>,
    pub gone: bool,
    pub uncommitted: u64,
    /// For the guest, by queue; and whether the queue stands still.
    pub inbox: Vec<(VecDeque<Frame>, bool)>,
    pub resumed: Vec<u32>,
    pub filter: RxFilter,
    pub filters: u32,
    pub rss: Option<SetRss>,
    pub coalescing: (bool, bool),
}

/// A card in memory.
pub struct FakeNic(pub Mutex<NicState>);

pub const MAC: MacAddress = MacAddress([0, 0x15, 0x5d, 1, 2, 3]);

/// A card with all there is.
pub fn card(queues: u32) -> NetInfo {
    NetInfo {
        mac: MAC,
        mtu: 1500,
        max_mtu: 9000,
        link: true,
        speed_bps: 10_000_000_000,
        queues,
        max_fragments: 32,
        tx: TxOffloads {
            csum_tcp_v4: true,
            csum_udp_v4: true,
            csum_tcp_v6: true,
            csum_udp_v6: true,
            gso_v4_bytes: 65535,
            gso_v6_bytes: 65535,
            vlan: true,
        },
        coalesce_v4: true,
        coalesce_v6: true,
        rss_entries: 64,
    }
}

impl FakeNic {
    pub fn new(info: NetInfo) -> Self {
        Self(Mutex::new(NicState {
            info,
            pending: VecDeque::new(),
            log: Vec::new(),
            room: usize::MAX,
            was_busy: false,
            busy_once: false,
            copies: 0,
            refuse: None,
            gone: false,
            uncommitted: 0,
            inbox: (0..info.queues).map(|_| (VecDeque::new(), false)).collect(),
            resumed: Vec::new(),
            filter: RxFilter::default(),
            filters: 0,
            rss: None,
            coalescing: (false, false),
        }))
    }
    pub fn state(&self) -> MutexGuard<'_, NicState> {
        self.0.lock().unwrap()
    }
}

/// What netback promises a card.
fn check(info: &NetInfo, packet: &TxPacket<'_>, bytes: &[u8]) {
    assert!(!packet.fragments.is_empty());
    assert!(packet.fragments.len() <= usize::from(info.max_fragments));
    for fragment in packet.fragments {
        assert!(fragment.len > 0 && u32::from(fragment.offset) + u32::from(fragment.len) <= 4096);
    }
    assert!(bytes.len() >= 14 && bytes.len() <= 65535);
    assert!(packet.vlan.is_none() || info.tx.vlan);
    if let TxCsum::Partial { ip, transport, l3, l4 } = packet.csum {
        let (l3, l4) = (usize::from(l3), usize::from(l4));
        let version = if ip == Ip::V4 { 4 } else { 6 };
        assert_eq!(bytes[l3] >> 4, version);
        assert!(l4 + if transport == Transport::Tcp { 18 } else { 8 } <= bytes.len());
        let offered = match (ip, transport) {
            (Ip::V4, Transport::Tcp) => info.tx.csum_tcp_v4,
            (Ip::V4, Transport::Udp) => info.tx.csum_udp_v4,
            (Ip::V6, Transport::Tcp) => info.tx.csum_tcp_v6,
            (Ip::V6, Transport::Udp) => info.tx.csum_udp_v6,
        };
        assert!(offered || packet.gso.is_some());
    }
    if let Some(gso) = packet.gso {
        assert!(gso.mss > 0);
        assert!(matches!(packet.csum, TxCsum::Partial { transport: Transport::Tcp, .. }));
    }
}

impl NetDevice for FakeNic {
    fn info(&self) -> NetInfo {
        self.state().info
    }
    fn submit(&self, queue: u32, packet: &TxPacket<'_>, tag: Tag) -> TxSubmitted {
        let mut state = self.state();
        assert!(queue < state.info.queues);
        let mut bytes = Vec::new();
        for fragment in packet.fragments {
            let mut part = std::vec![0; fragment.len.into()];
            copy_out(fragment.page, fragment.offset.into(), &mut part);
            bytes.extend(part);
        }
        check(&state.info, packet, &bytes);
        if state.gone {
            return TxSubmitted::Refused(TxRefusal::Removed);
        }
        if let Some(refusal) = state.refuse {
            return TxSubmitted::Refused(refusal);
        }
        if core::mem::take(&mut state.busy_once) {
            return TxSubmitted::Busy;
        }
        if state.pending.len() >= state.room {
            state.was_busy = true;
            return TxSubmitted::Busy;
        }
        let places = packet.fragments.iter().map(|f| (f.gpfn, f.offset, f.len)).collect();
        let (csum, gso, vlan, hash) = (packet.csum, packet.gso, packet.vlan, packet.hash);
        let sent = Sent { queue, tag, bytes, csum, gso, vlan, hash, places };
        state.uncommitted |= 1 << queue;
        state.log.push(sent.clone());
        if packet.bytes() <= state.copies {
            return TxSubmitted::Copied;
        }
        state.pending.push_back(sent);
        TxSubmitted::Queued
    }
    fn commit(&self, queue: u32) {
        self.state().uncommitted &= !(1 << queue);
    }
    fn resume(&self, queue: u32) {
        let mut state = self.state();
        state.resumed.push(queue);
        state.inbox[queue as usize].1 = false;
    }
    fn set_filter(&self, filter: RxFilter) -> Result<(), Unsupported> {
        let mut state = self.state();
        state.filter = filter;
        state.filters += 1;
        if state.gone { Err(Unsupported::Removed) } else { Ok(()) }
    }
    fn set_rss(&self, rss: &Rss<'_>) -> Result<(), Unsupported> {
        let mut state = self.state();
        assert!(rss.table.len().is_power_of_two());
        assert!(rss.table.len() <= state.info.rss_entries.into());
        assert!(rss.table.iter().all(|queue| u32::from(*queue) < state.info.queues));
        state.rss = Some(SetRss { types: rss.types, key: rss.key, table: rss.table.to_vec() });
        Ok(())
    }
    fn set_coalescing(&self, v4: bool, v6: bool) -> Result<(), Unsupported> {
        self.state().coalescing = (v4, v6);
        Ok(())
    }
    fn set_mtu(&self, mtu: u32) -> Result<(), Unsupported> {
        let mut state = self.state();
        if mtu > state.info.max_mtu {
            return Err(Unsupported::Values);
        }
        state.info.mtu = mtu;
        Ok(())
    }
}
