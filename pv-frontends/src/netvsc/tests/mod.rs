//! Cards against a host of plain memory.

mod link;
mod malformed;
mod pieces;
mod random;
mod receive;
mod threads;
mod transmit;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use host::Host;
use hv_abi::netvsc::nvsp::Version;
use hv_abi::vmbus::offer::interface;
use spin::Mutex;
use translate::platform::PageWords;
use xen_abi::Mfn;

use super::fake as host;
use super::*;
use crate::net::{
    Gso, MacAddress, NetDevice, NetInfo, RxCsum, RxFilter, RxHash, TxCsum, TxFragment, TxPacket,
    TxSubmitted,
};
use crate::vmbus::fake::Fake;
use crate::vmbus::{Driver, Hypervisor, VmBus};

/// A packet that came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    queue: u32,
    bytes: Vec<u8>,
    csum: RxCsum,
    ip_csum_blank: bool,
    gso: Option<Gso>,
    hash: Option<RxHash>,
    vlan: Option<u16>,
}

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Notes {
    cards: Mutex<Vec<Arc<Card>>>,
    changed: Mutex<Vec<NetInfo>>,
    removed: Mutex<usize>,
    got: Mutex<Vec<Got>>,
    ended: Mutex<Vec<(u32, u64, TxEnd)>>,
    settled: Mutex<Vec<u32>>,
    /// Packets that are taken before there is no room.
    room: Mutex<Option<usize>>,
}

impl Sink<Arc<Card>> for Notes {
    fn added(&self, card: &Arc<Card>) {
        self.cards.lock().push(Arc::clone(card));
    }
    fn changed(&self, card: &Arc<Card>) {
        assert!(self.cards.lock().iter().any(|known| Arc::ptr_eq(known, card)));
        self.changed.lock().push(card.info());
    }
    fn removed(&self, card: &Arc<Card>) {
        let mut cards = self.cards.lock();
        let at = cards.iter().position(|known| Arc::ptr_eq(known, card)).expect("it is known");
        cards.remove(at);
        *self.removed.lock() += 1;
    }
    fn receive(&self, _: &Arc<Card>, queue: u32, packet: &RxPacket<'_>) -> RxVerdict {
        if let Some(room) = &mut *self.room.lock() {
            if *room == 0 {
                return RxVerdict::Wait;
            }
            *room -= 1;
        }
        let mut bytes = vec![0; packet.bytes as usize];
        assert_eq!(packet.copy(0, &mut bytes), bytes.len());
        let RxPacket { csum, ip_csum_blank, gso, hash, vlan, .. } = *packet;
        self.got.lock().push(Got { queue, bytes, csum, ip_csum_blank, gso, hash, vlan });
        RxVerdict::Done
    }
    fn transmitted(&self, _: &Arc<Card>, queue: u32, tag: Tag, end: TxEnd) {
        self.ended.lock().push((queue, tag.0, end));
    }
    fn settled(&self, _: &Arc<Card>, queue: u32) {
        self.settled.lock().push(queue);
    }
}

struct Bench {
    host: Host,
    fake: Fake,
    notes: Arc<Notes>,
    driver: Arc<NetVsc<Arc<Notes>>>,
    bus: Arc<VmBus<Fake>>,
}

const SECOND: u64 = 1_000_000_000;
const PRIMARY: u32 = 5;

/// Small, for the tests' speed.
fn config() -> Config {
    Config {
        receive_buffer_bytes: 64 << 10,
        send_buffer_bytes: 32 << 10,
        tx_slots: 16,
        ..Config::default()
    }
}

fn queues(count: u16) -> Config {
    Config { max_queues: count, ..config() }
}

impl Bench {
    fn new(config: Config, prepare: impl FnOnce(&mut Host)) -> Self {
        let fake = Fake::default();
        let notes = Arc::new(Notes::default());
        let driver = Arc::new(NetVsc::new(Arc::clone(&notes), config));
        let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
        let bus = Arc::new(VmBus::new(fake.clone(), drivers));
        let mut host = Host::new(fake.clone());
        host.server.offer(PRIMARY, interface::NETWORK, 1, 0);
        prepare(&mut host);
        bus.connect();
        Self { host, fake, notes, driver, bus }
    }

    /// A card that is known, and receives.
    fn ready_with(config: Config, prepare: impl FnOnce(&mut Host)) -> Self {
        let mut bench = Self::new(config, prepare);
        bench.run();
        assert!(bench.driver.is_settled());
        let filter = RxFilter { directed: true, broadcast: true, ..RxFilter::default() };
        bench.nic().set_filter(filter).expect("there is one");
        bench.run();
        bench
    }

    fn ready() -> Self {
        Self::ready_with(config(), |_| {})
    }

    fn run(&mut self) {
        self.host.run(&self.bus);
    }

    fn pass(&mut self, ns: u64) {
        self.fake.advance(ns);
        self.run();
    }

    fn card(&self) -> Arc<Card> {
        Arc::clone(self.notes.cards.lock().first().expect("a card is known"))
    }

    fn nic(&self) -> Nic<Arc<VmBus<Fake>>> {
        Nic::new(Arc::clone(&self.bus), self.card())
    }

    fn count(&self, counter: Counter) -> u64 {
        self.card().count(counter)
    }

    fn got(&self) -> Vec<Got> {
        core::mem::take(&mut *self.notes.got.lock())
    }

    fn ended(&self) -> Vec<(u32, u64, TxEnd)> {
        core::mem::take(&mut *self.notes.ended.lock())
    }

    /// Fragments of a packet in new pages, cut where told.
    fn fragments(&self, bytes: &[u8], cuts: &[usize]) -> Vec<TxFragment> {
        let mut fragments = Vec::new();
        let mut rest = bytes;
        for (nr, cut) in cuts.iter().copied().chain([usize::MAX]).enumerate() {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            // Anywhere in its page.
            let mut at = (nr * 301 + 5) % 2000;
            for chunk in now.chunks(4096 - at) {
                fragments.push(self.fragment(chunk, at));
                at = 0;
                assert!(now.len() <= 4096, "a test's own mistake");
            }
        }
        fragments
    }

    fn fragment(&self, bytes: &[u8], at: usize) -> TxFragment {
        let page = self.fake.allocate::<PageWords>().expect("there is memory");
        for (nr, byte) in bytes.iter().enumerate() {
            let word = &page.view[(at + nr) / 8];
            let mut whole = word.load(Ordering::Relaxed).to_le_bytes();
            whole[(at + nr) % 8] = *byte;
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        TxFragment {
            gpfn: Mfn(page.gpfn),
            page: page.view,
            offset: at as u16,
            len: bytes.len() as u16,
        }
    }

    /// Takes the card's channels back, and offers them again.
    fn offer_again(&mut self) {
        let bus = Arc::clone(&self.bus);
        for id in self.host.sub_channels() {
            self.host.rescind(&bus, id);
        }
        let primary = self.host.primary;
        self.host.rescind(&bus, primary);
        self.host.server.offers.clear();
        self.run();
        let next = if primary == PRIMARY { PRIMARY + 1 } else { PRIMARY };
        self.host.primary = next;
        self.host.server.offer(next, interface::NETWORK, 1, 0);
        self.host.server.announce(&bus, next);
        self.run();
    }

    /// Nothing of anybody's is left anywhere.
    fn assert_idle(&self) {
        for card in self.driver.cards() {
            assert_eq!(card.in_use(), (0, 0, 0));
        }
        assert!(self.host.outstanding.is_empty(), "{:?}", self.host.outstanding);
    }
}

fn plain(fragments: &[TxFragment]) -> TxPacket<'_> {
    TxPacket { fragments, csum: TxCsum::None, gso: None, vlan: None, hash: None }
}

/// A frame of so many bytes, its contents of a seed.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(7) ^ (at >> 8) as u8 ^ seed).collect()
}

#[test]
fn versions_step_down_to_5() {
    let tries = [(Version::V6_1, 1, 40), (Version::V6, 2, 28), (Version::V5, 3, 28)];
    for (newest, proposals, bytes) in tries {
        let mut bench = Bench::new(config(), |host| host.newest = newest);
        bench.run();
        assert!(bench.driver.is_settled());
        let told = &bench.host.told;
        // INIT …, NDIS config, NDIS version, both buffers.
        let wanted = [vec![1; proposals], vec![125, 100, 101, 104]].concat();
        assert_eq!(*told, wanted);
        // Payloads are filled up to multiples of 8.
        let config = bench.host.lengths[proposals];
        assert_eq!(config, usize::next_multiple_of(bytes, 8));
        assert_eq!(bench.notes.cards.lock().len(), 1);
        let rsc = bench.nic().info().coalesce_v4;
        assert_eq!(rsc, newest == Version::V6_1);
    }
}

#[test]
fn older_hosts_are_refused() {
    for newest in [Version::V4, Version::V2, Version::V1] {
        let mut bench = Bench::new(config(), |host| host.newest = newest);
        bench.run();
        assert!(bench.driver.is_settled());
        assert!(bench.notes.cards.lock().is_empty());
        assert_eq!(bench.host.told, [1, 1, 1]);
        let log = &bench.fake.inner().log;
        assert!(log.iter().any(|line| line.contains("no version of NVSP from 5")), "{log:?}");
        assert!(bench.host.server.channels.is_empty());
        // Its buffers were never the host's.
        assert_eq!(bench.host.server.gpadl_count(), 0);
    }
}

#[test]
fn a_card_says_what_it_is() {
    let bench = Bench::ready();
    let info = bench.nic().info();
    assert_eq!(info.mac, MacAddress(host::MAC));
    assert_eq!((info.mtu, info.max_mtu, info.queues), (1500, 9000, 1));
    assert!(info.link);
    assert_eq!(info.speed_bps, 10_000_000_000);
    let tx = info.tx;
    assert!(tx.csum_tcp_v4 && tx.csum_udp_v4 && tx.csum_tcp_v6 && tx.csum_udp_v6 && tx.vlan);
    assert_eq!((tx.gso_v4_bytes, tx.gso_v6_bytes), (65_535, 65_535), "the host takes less");
    assert!(info.coalesce_v4 && info.coalesce_v6);
    let config = bench.host.config.expect("it was sent");
    assert_eq!((config.mtu, config.capabilities.0), (1514, 0xa8));
    // Directed and broadcast.
    let filter = bench.host.sets.last().expect("it was set");
    assert_eq!(filter.1, [9, 0, 0, 0]);
    assert_eq!(bench.card().mac(), info.mac);
}

#[test]
fn a_host_with_fewer_abilities() {
    let bench = Bench::ready_with(config(), |host| {
        (host.offloads, host.rss_queues, host.mtu) = (false, 1, 1400);
        host.refuse.push(hv_abi::netvsc::nvsp::MessageType::SEND_SEND_BUFFER);
    });
    let info = bench.nic().info();
    assert!(!info.tx.csum_tcp_v4 && !info.coalesce_v4 && info.tx.vlan);
    assert_eq!((info.tx.gso_v4_bytes, info.rss_entries, info.mtu), (0, 0, 1400));
    // Nothing can be copied.
    let fragments = bench.fragments(&frame(60, 1), &[]);
    let submitted = bench.nic().submit(0, &plain(&fragments), Tag(1));
    assert_eq!(submitted, TxSubmitted::Queued);
}

#[test]
fn budget_is_what_is_taken() {
    let bench = Bench::ready();
    // Besides: the bus's own three pages.
    let own = bench.fake.pages_in_use() - config().pages(1);
    assert!(own <= 3, "{own}");
}
