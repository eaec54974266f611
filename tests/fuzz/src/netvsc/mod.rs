//! A network card on a host that mostly does what it should, and at any place does not.
//!
//! The host answers every message as Hyper-V would, with as many bytes of the answer changed as the
//! input says, when it likes and in any order. While it keeps to the protocol every packet the card
//! takes comes to it once, whole, in order and with what was asked for, and ends once, as the host
//! said, or is lost with its channel; the guest is handed what the host sent, with what it said of
//! it, and every range comes back once. In any case nothing outside the receive buffer is handed
//! out, every packet ends, a new channel is as good as the first, and what was allocated is free
//! once the card is gone.

mod books;
mod traffic;

use std::sync::Arc;

use hv_abi::NtStatus;
use hv_abi::netvsc::nvsp::{MessageType, Status, Version};
use hv_abi::netvsc::rndis;
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, Version as BusVersion};
use pv_frontends::net::{HashTypes, NetDevice, Rss, RxFilter};
use pv_frontends::netvsc::fake::Host;
use pv_frontends::netvsc::{Config, Counter, NetVsc, Nic};
use pv_frontends::vmbus::fake::Fake;
use pv_frontends::vmbus::{Driver, Hypervisor, Shared, VmBus};
use translate::platform::PageWords;

use crate::input::Input;
use crate::vmbus::pages_are_free;
use books::Notes;

/// Steps of one run.
const MAX_STEPS: usize = 150;
/// The card's channel has one of these two numbers, in turn.
const PRIMARY: [u32; 2] = [5, 6];
/// Pages that all packets have parts of, and those of one packet each.
const PATTERNS: usize = 3;
const PAGES: usize = 60;
const SECOND: u64 = 1_000_000_000;

struct World {
    fake: Fake,
    bus: Arc<VmBus<Fake>>,
    host: Host,
    driver: Arc<NetVsc<Arc<Notes>>>,
    notes: Arc<Notes>,
    pool: Vec<Shared<PageWords>>,
    next_serial: u32,
}

/// What the card may use, and what the host can, by four bytes.
fn shape(setup: [u8; 4], host: &mut Host) -> Config {
    let bit = |byte: usize, nr: u8| setup[byte] >> nr & 1 != 0;
    let of = |byte: u8, list: [u32; 4]| list[usize::from(byte & 3)];
    let versions = [BusVersion::V5_3, BusVersion::V4_0, BusVersion::V5_0, BusVersion::V3_0];
    host.server.version = versions[usize::from(setup[0] & 3)];
    host.newest =
        [Version::V6_1, Version::V6, Version::V5, Version::V6_1][usize::from(setup[0] >> 2 & 3)];
    host.offloads = !bit(0, 4);
    host.link = !bit(0, 5);
    host.section_bytes = if bit(0, 6) { 2048 } else { 1728 };
    host.rss_queues = of(setup[1], [8, 1, 2, 64]);
    host.send_section_bytes = of(setup[1] >> 2, [6144, 2048, 100, 1 << 20]);
    host.max_packets = of(setup[1] >> 4, [8, 1, 0, 3]);
    host.alignment_shift = of(setup[1] >> 6, [3, 0, 5, 40]);
    if bit(2, 0) {
        host.refuse.push(MessageType::SEND_SEND_BUFFER);
    }
    if bit(2, 1) {
        host.refuse.push(MessageType::SUB_CHANNEL);
    }
    host.refuse_sets = setup[2] & 0xc == 0xc;
    host.mtu = of(setup[2] >> 4, [9000, 1500, 1400, 68]);
    host.keep = true;
    Config {
        outgoing_pages: 1 + u32::from(bit(2, 6)),
        incoming_pages: 1 + u32::from(bit(2, 7)),
        receive_buffer_bytes: 32 << 10,
        send_buffer_bytes: if bit(0, 7) { 0 } else { 16 << 10 },
        tx_slots: 1 + u16::from(setup[3] & 0xf),
        copy_max_bytes: of(setup[3] >> 4, [512, 0, 100, 1600]),
        max_queues: 1 + u16::from(setup[3] >> 6),
        vps: vec![0, 1],
        ..Config::default()
    }
}

impl World {
    fn new(setup: [u8; 4]) -> Self {
        let fake = Fake::default();
        let notes = Arc::new(Notes::default());
        let mut host = Host::new(fake.clone());
        let config = shape(setup, &mut host);
        let driver = Arc::new(NetVsc::new(Arc::clone(&notes), config));
        let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
        let bus = Arc::new(VmBus::new(fake.clone(), drivers));
        let page = || fake.allocate::<PageWords>().expect("there is memory");
        let pool: Vec<_> = (0..PATTERNS + PAGES).map(|_| page()).collect();
        for (nr, page) in pool.iter().take(PATTERNS).enumerate() {
            let bytes: Vec<_> = (0..4096).map(|at| (at * 7 + at / 256) as u8 ^ nr as u8).collect();
            pv_frontends::netvsc::fake::write_page(page.view, 0, &bytes);
        }
        notes.books().free = (PATTERNS..PATTERNS + PAGES).collect();
        notes.books().may_lose = host.refuse_sets;
        host.server.offer(PRIMARY[0], interface::NETWORK, 1, 0);
        bus.connect();
        let mut world = Self { fake, bus, host, driver, notes, pool, next_serial: 0 };
        world.look();
        world
    }

    /// The card, where one is known.
    fn nic(&self) -> Option<Nic<Arc<VmBus<Fake>>>> {
        let card = self.notes.books().cards.first().map(Arc::clone)?;
        Some(Nic::new(Arc::clone(&self.bus), card))
    }

    /// The bus goes on, and the host reads its rings.
    fn look(&mut self) {
        self.host.look(&self.bus);
        self.collect();
    }

    /// The host answers everything.
    fn run(&mut self) {
        self.host.run(&self.bus);
        self.collect();
    }

    fn collect(&mut self) {
        let sent = core::mem::take(&mut self.host.sent);
        let mut books = self.notes.books();
        if !books.is_lying {
            sent.iter().for_each(|sent| books.on_wire(sent));
        }
        books.lost.clear();
        // What was in the last one may be handed out until its channel is closed.
        let buffer = self.host.receive_pages();
        if !buffer.is_empty() && buffer != books.buffer {
            books.buffer = buffer.to_vec();
        }
    }

    fn lie(&self, queue: u32) {
        let mut books = self.notes.books();
        books.wild.insert(queue);
        (books.is_lying, books.may_lose) = (true, true);
    }

    fn purge(&self) {
        let lives = |era: (u32, u32)| self.host.era(era.0) == era;
        self.notes.books().purge(lives);
    }

    /// A channel that is open; else the card's.
    fn channel(&self, nr: u8) -> u32 {
        let open: Vec<u32> = self.host.server.channels.keys().copied().collect();
        open.get(usize::from(nr) % open.len().max(1)).copied().unwrap_or(self.host.primary)
    }

    /// The queue of an open channel.
    fn queue_of(&self, channel: u32) -> Option<u32> {
        let server = &self.host.server;
        server.channels.get(&channel)?;
        server.offers.get(&channel).map(|offer| offer.sub_channel_index.into())
    }

    /// The host answers what came first, with some bytes changed.
    fn answer(&mut self, what: u8, input: &mut Input<'_>) {
        let twist: Vec<_> =
            (0..what >> 4 & 3).map(|_| (usize::from(input.byte()), input.byte())).collect();
        let was_lying = self.notes.books().is_lying;
        if !twist.is_empty() {
            self.lie(0);
        }
        self.host.twist = twist;
        self.host.handle_next(&self.bus);
        self.host.twist.clear();
        // Maybe they were as they should be, or nobody was answered.
        let is_lying = was_lying || self.host.is_lying;
        self.notes.books().is_lying = is_lying;
    }

    /// The host is done with frames.
    fn release(&mut self, nr: usize, status: Status) {
        if self.host.kept() > 0 {
            let nr = nr % self.host.kept();
            if let Some(transaction) = self.host.kept_id(nr) {
                self.notes.books().answered(transaction, status == Status::SUCCESS);
            }
            self.host.release_nth(&self.bus, nr, status);
        }
    }

    fn resume(&self) {
        if let Some(nic) = self.nic() {
            (0..4).for_each(|queue| nic.resume(queue));
        }
    }

    fn set(&mut self, what: u8, input: &mut Input<'_>) {
        let Some(nic) = self.nic() else { return };
        let value = input.byte();
        let _ = match what & 3 {
            0 => nic.set_filter(RxFilter {
                directed: value & 1 != 0,
                broadcast: value & 2 != 0,
                all_multicast: value & 4 != 0,
                promiscuous: value & 8 != 0,
            }),
            1 => {
                let table: Vec<u16> =
                    (0..1u16 << (value & 3)).map(|nr| u16::from(value >> 2) >> nr & 3).collect();
                let types = HashTypes { tcp_v4: true, ..HashTypes::default() };
                nic.set_rss(&Rss { types, key: [value; 40], table: &table })
            }
            2 => nic.set_coalescing(value & 1 != 0, value & 2 != 0),
            _ => {
                self.notes.books().may_lose = true;
                nic.set_mtu(u32::from(value) * 40)
            }
        };
    }

    /// Channels go, or come.
    fn offers(&mut self, what: u8) {
        self.notes.books().may_lose = true;
        let primary = self.host.primary;
        let subs: Vec<u32> =
            self.host.server.offers.keys().copied().filter(|id| *id != primary).collect();
        let is_offered = self.host.server.offers.contains_key(&primary);
        match (what & 3, subs.get(usize::from(what >> 2) % subs.len().max(1))) {
            (0, Some(sub)) => {
                let sub = *sub;
                self.rescind(sub);
            }
            (1, _) if is_offered => self.rescind_all(),
            _ => self.offer_again(),
        }
    }

    fn rescind(&mut self, id: u32) {
        // A close may be on its way.
        self.look();
        self.host.rescind(&self.bus, id);
        self.look();
    }

    fn rescind_all(&mut self) {
        self.notes.books().may_lose = true;
        let primary = self.host.primary;
        let offered: Vec<u32> = self.host.server.offers.keys().copied().collect();
        // Sub-channels go before the channel they belong to.
        for id in offered.iter().copied().filter(|id| *id != primary) {
            self.rescind(id);
        }
        if offered.contains(&primary) {
            self.rescind(primary);
        }
        self.purge();
        // What the host says from here on is true until it lies again.
        self.host.is_lying = false;
        self.notes.books().is_lying = false;
    }

    fn offer_again(&mut self) {
        self.rescind_all();
        let next = if self.host.primary == PRIMARY[0] { PRIMARY[1] } else { PRIMARY[0] };
        self.host.primary = next;
        self.host.server.offer(next, interface::NETWORK, 1, 0);
        self.host.server.announce(&self.bus, next);
        self.look();
    }

    /// Memory, and what the bus answers.
    fn fault(&mut self, what: u8) {
        let refused = NtStatus::UNSUCCESSFUL;
        let server = &mut self.host.server;
        match what & 3 {
            0 => self.fake.inner().free_pages = usize::from(what & 0xc) * 7,
            1 => server.open_status = if what & 4 != 0 { refused } else { NtStatus::SUCCESS },
            2 => server.gpadl_status = if what & 4 != 0 { refused } else { NtStatus::SUCCESS },
            _ => {
                let channel = self.channel(what >> 2);
                if let Some(queue) = self.queue_of(channel) {
                    self.lie(queue);
                    self.host.corrupt(&self.bus, channel);
                }
            }
        }
        self.notes.books().may_lose = true;
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        let rest = what >> 4;
        match what & 0xf {
            0 | 1 => self.submit(u32::from(rest & 3), input),
            2 => {
                if let Some(nic) = self.nic() {
                    nic.commit(u32::from(rest & 3));
                }
            }
            3 => self.run(),
            4 => self.answer(what, input),
            5 => {
                let statuses = [Status::SUCCESS, Status::FAILURE, Status(9), Status::SUCCESS];
                self.release(input.byte().into(), statuses[usize::from(rest & 3)]);
            }
            6 | 7 => self.receive(self.channel(rest), input),
            8 => {
                let channel = self.channel(input.byte());
                self.wild(rest, channel, input);
            }
            9 => {
                self.notes.books().room = (rest < 8).then(|| rest.into());
                if rest & 1 != 0 {
                    self.resume();
                }
            }
            10 => self.indicate(rest, input),
            11 => self.set(rest, input),
            12 => {
                self.fake.advance(1 << (24 + rest));
                self.notes.books().may_lose = true;
            }
            13 => self.offers(rest),
            14 => self.fault(rest),
            _ => self.calm(),
        }
        self.look();
    }

    /// The host says something of itself.
    fn indicate(&mut self, what: u8, input: &mut Input<'_>) {
        if self.host.receive_pages().is_empty() {
            return;
        }
        let status = match what & 7 {
            0 | 1 => {
                self.host.link = true;
                rndis::Status::MEDIA_CONNECT
            }
            2 => {
                self.host.link = false;
                rndis::Status::MEDIA_DISCONNECT
            }
            3 => rndis::Status::NETWORK_CHANGE,
            4 => rndis::Status::LINK_SPEED_CHANGE,
            5 => rndis::Status(input.word()),
            _ => return self.host.keepalive(&self.bus, u32::from(what)),
        };
        let value = input.word().to_le_bytes();
        self.host.indicate(&self.bus, status, &value);
    }

    /// Everybody does what is left to do: nothing is anybody's then.
    fn calm(&mut self) {
        self.notes.books().room = None;
        // A host with much to say says as much at a time as its buffer holds.
        let mut left = 3;
        for _ in 0..MAX_STEPS {
            if self.host.unsaid() == 0 {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            if let Some(nic) = self.nic() {
                (0..4).for_each(|queue| nic.commit(queue));
            }
            self.resume();
            self.run();
            while self.host.kept() > 0 {
                self.release(0, Status::SUCCESS);
            }
            self.run();
            // Completions that found no room.
            self.fake.advance(SECOND / 100);
        }
        self.run();
        self.purge();
        let mut books = self.notes.books();
        let cards = self.driver.cards();
        let cut_short: u64 = cards.iter().map(|card| card.count(Counter::TxCutShort)).sum();
        assert!(books.cut_short <= books.cut_short_before + cut_short, "pieces are missing");
        for card in cards {
            let counts = books.counts.entry(card.number()).or_default();
            let count = |counter| card.count(counter);
            assert_eq!(counts.tx, (count(Counter::TxPackets), count(Counter::TxBytes)));
            assert_eq!(counts.rx, (count(Counter::RxPackets), count(Counter::RxBytes)));
        }
        if books.is_lying {
            return;
        }
        if books.may_lose {
            // Copies went with their channel, and nobody is told.
            books.out.retain(|_, out| !out.is_copied);
            // A host that refuses the filter has its channel closed on it.
            books.may_lose = self.host.refuse_sets;
        }
        assert!(books.out.is_empty(), "{:?}", books.out);
        let left = books.coming.values().flatten().find(|packet| !packet.is_optional);
        assert!(left.is_none(), "the host's packets were not handed out: {left:?}");
        for card in self.driver.cards() {
            assert_eq!(card.in_use(), (0, 0, 0));
        }
        assert!(self.host.outstanding.is_empty(), "ranges are not given back");
        drop(books);
        let link = self.host.link;
        if self.driver.is_settled() && self.queue_of(self.host.primary).is_some() {
            let is_told = |nic: Nic<_>| nic.info().link == link;
            assert!(self.nic().is_none_or(is_told), "the link is {link}");
        }
    }

    /// A card of a host that is honest sends and receives; then it goes. Packets that ended, and
    /// that came.
    fn end(mut self) -> (usize, usize) {
        self.fake.inner().free_pages = 10_000;
        let server = &mut self.host.server;
        (server.open_status, server.gpadl_status) = (NtStatus::SUCCESS, NtStatus::SUCCESS);
        // A card that may receive nothing is given up.
        self.host.refuse_sets = false;
        let books = self.notes.books();
        let seen = (books.ended, books.received);
        drop(books);
        for round in 0..2 {
            self.calm();
            // Every time-out.
            self.notes.books().may_lose = true;
            self.fake.advance(100 * SECOND);
            self.run();
            if round == 0 {
                self.offer_again();
            }
        }
        assert!(self.driver.is_settled());
        self.calm();
        let before = self.notes.books().received;
        self.submit(0, &mut Input::new(&[0, 0xa0]));
        self.receive(self.host.primary, &mut Input::new(&[0, 0, 40]));
        self.calm();
        let books = self.notes.books();
        assert_eq!(books.cards.len(), 1);
        assert_eq!(books.received, before + 1);
        drop(books);
        self.rescind_all();
        self.fake.advance(100 * SECOND);
        self.run();
        let books = self.notes.books();
        assert!(books.cards.is_empty() && books.out.is_empty());
        assert_eq!(books.free.len(), PAGES, "pages of packets");
        drop(books);
        assert!(self.driver.cards().is_empty());
        for id in PRIMARY {
            assert!(self.bus.channel(ChannelId(id)).is_none());
        }
        self.pool.iter().for_each(|page| self.fake.free(page.gpfn));
        pages_are_free(&self.fake, &self.bus);
        seen
    }
}

fn run(data: &[u8]) -> (usize, usize) {
    let mut input = Input::new(data);
    let mut world = World::new([(); 4].map(|()| input.byte()));
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        world.step(what, &mut input);
    }
    world.end()
}

/// A card, and a host with its own mind.
pub(crate) fn netvsc(data: &[u8]) {
    run(data);
}

/// Cards of all kinds that are found, traffic both ways, lies, and departures.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // A small packet, one by its pages, one whose sum is to be made, one to be cut up; commits.
    let send: &[u8] = &[
        0x00, 0, 0xa0, 1, 0, 0x00, 3, 0, 9, 1, 0x31, 0xff, 0x02, 0x10, 0x1b, 1, 7, 2, 5, 0x10, 6,
        0x40, 0x12, 0x00, 5, 0, 100, 0, 3, 0xff, 0x7f, 1, 0x70, 2, 0x30, 2, 0x03,
    ];
    let done: &[u8] = &[0x05, 0, 0x15, 1, 0x05, 0, 0x05, 0, 0x05, 0, 3];
    // Single packets, several in a range, one in parts.
    let receive: &[u8] = &[
        0x06, 2, 0x0d, 10, 200, 60, 0x06, 0xa, 0x1a, 9, 9, 9, 0x16, 6, 1, 100, 200, 255, 0x07, 0,
        0x39, 0,
    ];
    let twisted: &[u8] =
        &[0x08, 0, 3, 200, 0, 0, 0, 0x18, 0, 4, 7, 0, 0, 0, 0x28, 0, 2, 0, 5, 0, 0, 0, 9, 0, 0, 0];
    let wait: &[u8] = &[0x29, 0x06, 3, 0, 1, 2, 3, 4, 0xf9, 0x0f];
    let plain = [&[0, 0, 0, 0x0f], &[3][..], send, done, receive, &[0x0f], twisted, wait].concat();
    let several =
        [&[0, 0, 0, 0xcf], &[3][..], send, receive, done, &[0x0d], send, receive, &[0x0f]].concat();
    let older =
        [&[0x0b, 0x49, 0x40, 0x53], &[3][..], send, receive, wait, done, &[0x2d, 3], send].concat();
    let small = [&[0x84, 0x85, 3, 2], &[3][..], send, done, receive, &[0x3b, 40, 3, 0x0f]].concat();
    // Longer than the host segments: in two pieces, of which one is refused.
    let mut long = vec![0x00, 5, 0, 181, 0, 0x80 | 18];
    long.extend([0, 0xff].repeat(18));
    let two =
        [&[0, 0, 0, 0x0f, 3][..], &long, &long, &[2, 3, 0x15, 0, 5, 0, 5, 0, 0x15, 0, 3]].concat();
    let two = [&two[..], &long, &[0x2d], &long, &[2, 3, 5, 0, 5, 0, 0x0f], receive].concat();
    // One answer after the other; some of them wrong.
    let mut slow = vec![0, 0, 0, 0x8f];
    slow.extend([4; 24]);
    slow.extend(send);
    slow.extend([0x0a, 0, 0, 0, 0, 0x2a, 0, 0, 0, 0, 0x3a, 0, 0, 0, 0, 0x6a, 3, 0x0f]);
    let mut lies = vec![0, 0, 0, 0x8f];
    lies.extend([4, 4, 0x14, 12, 7, 4, 0x24, 8, 1, 16, 0, 4, 4, 4, 0x14, 20, 9, 3]);
    lies.extend(send);
    lies.extend([0x38, 0, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0, 4, 108, 0, 0, 0, 0x2d, 3]);
    lies.extend(send);
    lies.extend([0x3e, 0x0c, 0x9c, 3, 0x5e, 0x1d, 0x2d, 3, 0x1e, 3, 0x0e, 0xcc]);
    vec![plain, several, older, small, two, slow, lies]
}

#[cfg(test)]
mod tests {
    /// The seeds get as far as their comments say.
    #[test]
    fn the_seeds_have_traffic() {
        let seen: Vec<_> = super::seeds().iter().map(|seed| super::run(seed)).collect();
        assert!(seen.iter().all(|seen| seen.0 >= 1), "{seen:?}");
        assert!(seen.iter().filter(|seen| seen.1 >= 3).count() >= 4, "{seen:?}");
    }
}
