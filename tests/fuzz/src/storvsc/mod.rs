//! A storage controller on a host that mostly does what it should, and at any place does not.
//!
//! The host answers every packet as a controller with a few units would, with as many bytes of the
//! answer changed as the input says. What is checked: every request the driver accepts ends
//! exactly once, not before the host has let go of its pages, and not well unless the host said
//! so; on the wire it names the sectors and pages it was made of; and what was allocated is free
//! once the controller is gone.

mod books;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use hv_abi::NtStatus;
use hv_abi::storvsc::{Header, Operation as Op, Version as Protocol};
use hv_abi::vmbus::message::CloseChannel;
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ChannelId, ControlMessage, Version};
use pv_frontends::blkback::{
    BlockDevice, Io, IoError, IoResult, Operation, Segment, Submitted, Tag,
};
use pv_frontends::storvsc::{Config, Disk, Sink, StorVsc, Unit};
use pv_frontends::vmbus::fake::{Fake, Server};
use pv_frontends::vmbus::ring::{ControlWord, RingMemory};
use pv_frontends::vmbus::{Driver, External, OutPacket, PageSpan, VmBus};
use translate::platform::PageWords;
use xen_abi::Mfn;
use zerocopy::FromBytes;

use crate::input::Input;
use crate::scsi::{self, Answer};
use crate::vmbus::{pages_are_free, rescind};

/// Steps of one run.
const MAX_STEPS: usize = 150;
/// Frames that requests name: this, and 16 for each request.
const FIRST_FRAME: u64 = 0x10_0000;
/// The controller's first channel; those of its sub-channels follow.
const PRIMARY: u32 = 1;
const CHANNELS: std::ops::Range<u32> = PRIMARY..PRIMARY + 3;
/// Requests at once.
const REQUESTS: u16 = 8;
const HEADER_BYTES: usize = size_of::<Header>();

/// A packet the host has.
struct Sent {
    channel: u32,
    id: u64,
    payload: Vec<u8>,
    /// First byte in the first page, bytes.
    range: Option<(u32, u32)>,
    pages: Vec<u64>,
    /// Which request's data it moves.
    tag: Option<u64>,
}

impl Sent {
    fn operation(&self) -> Op {
        Header::read_from_prefix(&self.payload).map_or(Op(0), |(header, _)| header.operation)
    }

    fn cdb(&self) -> &[u8] {
        &self.payload[HEADER_BYTES + 16..HEADER_BYTES + 32]
    }
}

/// A request the driver accepted.
struct Accepted {
    unit: Arc<Unit>,
    operation: Operation,
    sector: u64,
    segments: Vec<Segment>,
    block_bytes: u32,
    /// The host's last answer may mean success.
    may_be_well: bool,
}

/// What host and sink know in common.
#[derive(Default)]
struct Books {
    waiting: Vec<Sent>,
    accepted: BTreeMap<u64, Accepted>,
    units: Vec<Arc<Unit>>,
    ended: u64,
}

#[derive(Default)]
struct Notes(Mutex<Books>);

impl Notes {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Sink for Notes {
    fn added(&self, unit: &Arc<Unit>) {
        assert!(unit.info().device.is_sane());
        self.books().units.push(Arc::clone(unit));
    }
    fn changed(&self, unit: &Arc<Unit>) {
        assert!(unit.info().device.is_sane());
    }
    fn removed(&self, unit: &Arc<Unit>) {
        let mut books = self.books();
        let at = books.units.iter().position(|other| Arc::ptr_eq(other, unit));
        books.units.remove(at.expect("it was added"));
        let left = books.accepted.values().any(|request| Arc::ptr_eq(&request.unit, unit));
        assert!(!left, "requests of a unit that is gone");
    }
    fn completed(&self, unit: &Arc<Unit>, tag: Tag, result: IoResult) {
        let mut books = self.books();
        let request = books.accepted.remove(&tag.0).expect("a request ends once");
        assert!(Arc::ptr_eq(&request.unit, unit));
        let at_host = books.waiting.iter().any(|sent| sent.tag == Some(tag.0));
        assert!(!at_host, "the host still has the pages of a request that ended");
        assert!(result.is_err() || request.may_be_well, "nobody said that it was done");
        books.ended += 1;
    }
    fn settled(&self, _: &Arc<Unit>) {}
}

struct World {
    fake: Fake,
    bus: Arc<VmBus<Fake>>,
    server: Server,
    notes: Arc<Notes>,
    units: [scsi::Unit; 4],
    setup: [u8; 4],
    next_tag: u64,
    made: u64,
    /// The host broke its own end of a ring: what it reads may be anything.
    spoilt: bool,
}

impl World {
    fn new(setup: [u8; 4]) -> Self {
        let fake = Fake::default();
        let notes = Arc::new(Notes::default());
        let config = Config {
            outgoing_pages: 1 + u32::from(setup[0] >> 6),
            requests: REQUESTS,
            max_transfer_bytes: 16 << 10,
            vps: vec![0, 1],
            max_sub_channels: 2,
            ..Config::default()
        };
        let driver: Arc<dyn Driver<Fake>> = Arc::new(StorVsc::new(Arc::clone(&notes), config));
        let bus = Arc::new(VmBus::new(fake.clone(), Box::new([driver])));
        let mut server = Server::new(fake.clone());
        let versions = [Version::V5_3, Version::V4_0, Version::V5_0, Version::V3_0];
        server.version = versions[usize::from(setup[0] & 3)];
        let units = [1, u32::from(setup[2]), u32::from(setup[3]), 0].map(scsi::Unit::new);
        let mut world =
            Self { fake, bus, server, notes, units, setup, next_tag: 0, made: 0, spoilt: false };
        world.offer(PRIMARY);
        world.bus.connect();
        world.run();
        world
    }

    fn offer(&mut self, id: u32) {
        let class = if self.setup[0] & 4 != 0 { interface::IDE } else { interface::SCSI };
        // An IDE port's instance says which unit is behind it.
        let instance = u8::from(class == interface::SCSI);
        self.server.offer(id, class, instance, (id - PRIMARY) as u16);
    }

    /// Answers what belongs to the bus, and looks into the rings.
    fn run(&mut self) {
        for _ in 0..10_000 {
            let next = self.fake.inner().posted.pop_front();
            match next {
                Some((to, message)) => {
                    if let Some(close) = CloseChannel::parse(&message) {
                        self.let_go(close.channel_id.0);
                    }
                    self.server.answer(&self.bus, to, &message);
                }
                None if self.bus.next_poll_ns() <= self.fake.inner().now_ns => self.bus.poll(),
                None => return self.collect(),
            }
        }
        panic!("the guest and the host go on and on");
    }

    /// The host does not touch pages of a channel's requests any more.
    fn let_go(&self, channel: u32) {
        self.notes.books().waiting.retain(|sent| sent.channel != channel);
    }

    fn collect(&mut self) {
        self.fake.inner().signals.clear();
        for (id, channel) in &mut self.server.channels {
            let mut found = Vec::new();
            let read = channel.incoming.receive(200, |packet| {
                let mut payload = vec![0; packet.payload_bytes()];
                packet.copy_payload(0, &mut payload);
                let mut words = (1..).map_while(|nr| packet.header_word(nr));
                let range = words.next().map(|word| ((word >> 32) as u32, word as u32));
                let (pages, id, channel) = (words.collect(), packet.transaction_id(), *id);
                found.push(Sent { channel, id, payload, range, pages, tag: None });
            });
            if read.is_err() {
                assert!(self.spoilt, "what the guest writes is sound");
                continue;
            }
            for mut sent in found {
                self.notes.books().check(&mut sent, &self.fake, self.spoilt);
                self.notes.books().waiting.push(sent);
            }
        }
    }

    /// Answers one of the packets the host has.
    fn answer(&mut self, input: &mut Input<'_>) {
        let (which, fault, changes) = (input.byte(), input.byte(), input.byte());
        let sent = {
            let mut books = self.notes.books();
            if books.waiting.is_empty() {
                return;
            }
            let at = usize::from(which) % books.waiting.len();
            books.waiting.remove(at)
        };
        let mut answer = self.honest(&sent, fault);
        let mut may_be_well = answer.is_well;
        for _ in 0..changes & 3 {
            let (at, value) = (usize::from(input.half()), input.byte());
            let whole = answer.packet.len() + answer.data.len();
            let at = at % whole;
            let split = answer.packet.len();
            *(if at < split { &mut answer.packet[at] } else { &mut answer.data[at - split] }) =
                value;
            may_be_well |= at < split;
        }
        if changes & 0xc0 == 0xc0 {
            // Zeros stand for what is missing.
            answer.packet.truncate(input.byte().into());
            may_be_well = true;
        }
        self.put_data(&sent, &answer.data);
        self.notes.books().answered(sent.tag, may_be_well);
        let (mut channel, mut id) = (sent.channel, sent.id);
        if changes & 0x20 != 0 {
            (channel, id) = (PRIMARY, input.number());
            self.notes.books().waiting.push(sent);
            self.notes.books().forged(channel, id);
        }
        self.packet(channel, id, true, &answer.packet);
    }

    /// What a good host would say.
    fn honest(&self, sent: &Sent, fault: u8) -> Answer {
        let mut packet = vec![0; sent.payload.len().max(HEADER_BYTES)];
        packet[0] = Op::COMPLETE_IO.0 as u8;
        let mut answer = Answer { packet, data: Vec::new(), is_well: true };
        let body = &mut answer.packet[HEADER_BYTES..];
        match sent.operation() {
            Op::QUERY_PROTOCOL_VERSION => {
                let version = &sent.payload[HEADER_BYTES..HEADER_BYTES + 2];
                let known = Protocol::ALL.iter().position(|known| known.0.to_le_bytes() == version);
                // The oldest is never refused.
                if known.is_some_and(|bit| bit < 3 && self.setup[1] >> bit & 1 != 0) {
                    let refused = NtStatus::INVALID_PARAMETER.0;
                    answer.packet[8..12].copy_from_slice(&refused.to_le_bytes());
                }
            }
            Op::QUERY_PROPERTIES if body.len() >= 16 => {
                body[4] = self.setup[1] >> 3 & 3;
                body[8] = 1;
                body[12..16].copy_from_slice(&(8192u32 << (self.setup[1] >> 6)).to_le_bytes());
            }
            Op::EXECUTE_SRB => {
                let lun = usize::from(sent.payload[HEADER_BYTES + 7]);
                let unit = self.units.get(lun).copied().unwrap_or_default();
                let luns = (0u8..).zip(&self.units).filter(|(_, unit)| unit.is_there());
                let luns: Vec<u8> = luns.map(|(lun, _)| lun).collect();
                let room = sent.range.map_or(0, |(_, bytes)| bytes);
                let request = &sent.payload[HEADER_BYTES..];
                scsi::answer(&mut answer, request, sent.cdb(), unit, &luns, room, fault);
            }
            _ => {}
        }
        answer
    }

    /// Writes data into the page of a packet, where it is one of the driver's own.
    fn put_data(&self, sent: &Sent, data: &[u8]) {
        let page = sent.pages.first().and_then(|page| self.fake.page::<PageWords>(*page));
        // What the guest sends stays as it is.
        let is_for_host = sent.operation() == Op::EXECUTE_SRB && sent.cdb()[0] == 0x42;
        let is_own = sent.tag.is_none() && !is_for_host;
        let Some(page) = page.filter(|_| is_own) else { return };
        for (word, bytes) in page.iter().zip(data.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
    }

    /// The host sends a packet, and its signal.
    fn packet(&mut self, channel: u32, id: u64, is_completion: bool, payload: &[u8]) {
        let Some(open) = self.server.channels.get_mut(&channel) else { return };
        let packet = OutPacket::<PageSpan> {
            transaction_id: id,
            is_completion,
            completion_wanted: !is_completion && id & 1 != 0,
            external: External::None,
            payload,
        };
        if open.outgoing.write(&packet).is_ok() {
            self.bus.on_signal(ChannelId(channel));
        }
    }

    /// A request from above.
    fn submit(&mut self, input: &mut Input<'_>) {
        let units = self.notes.books().units.clone();
        let what = input.byte();
        let Some(unit) = units.get(usize::from(what & 3) % units.len().max(1)) else { return };
        let device = unit.info().device;
        let (count, shape, place) = (input.byte(), input.byte(), input.half());
        let tag = self.next_tag;
        self.next_tag += 1;
        let operation = match what >> 2 & 7 {
            0..=2 => Operation::Read,
            3..=5 => Operation::Write,
            6 => Operation::Flush,
            _ => Operation::Discard { sectors: count.into(), secure: shape & 1 != 0 },
        };
        let segments = match operation {
            Operation::Read | Operation::Write => segments(tag, count, shape),
            _ => Vec::new(),
        };
        // Near the disk's end, too.
        let sector = match what >> 5 {
            0..=4 => u64::from(place) * 8,
            5..=6 => device.sectors.wrapping_sub(place.into()),
            _ => input.number(),
        };
        let request = Accepted {
            unit: Arc::clone(unit),
            operation,
            sector,
            segments: segments.clone(),
            block_bytes: device.logical_bytes,
            may_be_well: false,
        };
        self.notes.books().accepted.insert(tag, request);
        let disk = Disk::new(Arc::clone(&self.bus), Arc::clone(unit));
        let io = Io { operation, sector, segments: &segments };
        let queue = u32::from(shape >> 6);
        match disk.submit(queue, &io, Tag(tag)) {
            Submitted::Accepted => {
                self.made += 1;
                let end = sector.checked_add(io.bytes() / 512);
                let has = |end| operation == Operation::Flush || end <= device.sectors;
                assert!(end.is_some_and(has), "beyond the disk's end");
            }
            Submitted::Busy => {
                self.notes.books().accepted.remove(&tag);
            }
            Submitted::Failed(error) => {
                let request = self.notes.books().accepted.remove(&tag);
                assert!(request.is_some(), "a request that failed at once ended, too");
                assert!(unit.is_present() || error == IoError::Removed);
            }
        }
        disk.commit(queue);
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what & 0xf {
            0..=5 => self.answer(input),
            6 | 7 => self.submit(input),
            8 => {
                let operation =
                    if what & 0x10 != 0 { Op::ENUMERATE_BUS } else { Op::REMOVE_DEVICE };
                let mut payload = [0; 64];
                payload[..4].copy_from_slice(&operation.0.to_le_bytes());
                self.packet(PRIMARY, u64::from(what >> 5), false, &payload);
            }
            9 => {
                let channel = PRIMARY + u32::from(what >> 6) % 3;
                let (id, payload) = (input.number(), input.bytes());
                self.notes.books().forged(channel, id);
                self.packet(channel, id, what & 0x10 != 0, payload);
            }
            10 => {
                let shape = u32::from(input.byte()) | u32::from(what >> 6) << 8;
                self.units[usize::from(what >> 4 & 3)] = scsi::Unit::new(shape);
            }
            11 => self.fake.advance(1 << (what >> 4) << 28),
            12 => self.offers(PRIMARY + u32::from(what >> 4) % 3),
            13 => self.spoil(what, input),
            14 => self.fake.inner().free_pages = usize::from(what & 0x70) << 6,
            _ => self.bus.poll(),
        }
        self.run();
    }

    /// A channel goes, or comes.
    fn offers(&mut self, id: u32) {
        if self.server.offers.contains_key(&id) {
            // Sub-channels go before the channel they belong to.
            for id in (id..CHANNELS.end).rev().filter(|other| *other == id || id == PRIMARY) {
                if self.server.offers.contains_key(&id) {
                    self.rescind(id);
                    self.run();
                }
            }
        } else {
            self.offer(id);
            self.server.announce(&self.bus, id);
        }
    }

    fn rescind(&mut self, id: u32) {
        self.run();
        self.server.offers.remove(&id);
        self.server.channels.remove(&id);
        self.let_go(id);
        rescind(&self.bus, ChannelId(id));
    }

    /// The host writes what it likes where it may write in a ring.
    fn spoil(&mut self, what: u8, input: &mut Input<'_>) {
        let id = PRIMARY + u32::from(what >> 6) % 3;
        let Some(channel) = self.server.channels.get(&id) else { return };
        let value = input.word();
        let (to_guest, from_guest) = (channel.outgoing.memory(), channel.incoming.memory());
        match what >> 4 & 3 {
            0 => to_guest.store(ControlWord::WriteIndex, value, Ordering::Relaxed),
            1 => from_guest.store(ControlWord::ReadIndex, value, Ordering::Relaxed),
            2 => to_guest.store(ControlWord::PendingSendSize, value, Ordering::Relaxed),
            _ => to_guest.write(value % 512 * 8, input.number()),
        }
        self.spoilt = true;
        self.bus.on_signal(ChannelId(id));
    }

    fn end(mut self) -> u64 {
        self.fake.inner().free_pages = 10_000;
        // Here the channel they belong to goes first.
        for id in CHANNELS {
            if self.server.offers.contains_key(&id) {
                self.rescind(id);
                self.run();
            }
        }
        let books = self.notes.books();
        assert_eq!((books.ended, books.accepted.len()), (self.made, 0), "every request ends");
        assert!(books.units.is_empty());
        drop(books);
        assert!(CHANNELS.into_iter().all(|id| self.bus.channel(ChannelId(id)).is_none()));
        pages_are_free(&self.fake, &self.bus);
        self.made
    }
}

/// Pieces of pages: joined as a driver wants them, or not.
fn segments(tag: u64, count: u8, shape: u8) -> Vec<Segment> {
    let count = count % 6 + 1;
    let frame = |nr: u8| Mfn(FIRST_FRAME + tag * 16 + u64::from(nr));
    let (first, last) = (u16::from(shape & 7) * 512, u16::from(shape >> 3 & 7) * 512 + 512);
    (0..count)
        .map(|nr| {
            let offset = if nr == 0 { first } else { 0 };
            let end = if nr + 1 == count { last } else { 4096 };
            Segment { gpfn: frame(nr), offset, len: end.saturating_sub(offset) }
        })
        .collect()
}

/// A storage controller that answers anything.
pub(crate) fn storvsc(data: &[u8]) {
    let _ = run(data);
}

/// As above; how many requests were accepted.
fn run(data: &[u8]) -> u64 {
    let mut input = Input::new(data);
    let setup = [(); 4].map(|()| input.byte());
    let mut world = World::new(setup);
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        world.step(what, &mut input);
    }
    world.end()
}

/// A controller with disks, negotiated in several ways, with requests, errors and departures.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let answers = |seed: &mut Vec<u8>, count: usize| {
        (0..count).for_each(|_| seed.extend([0, 0, 0, 0]));
    };
    let requests: &[u8] = &[6, 0, 0, 0, 4, 0, 6, 0xc, 1, 0x38, 1, 0, 6, 0x18, 0, 0, 0, 0];
    let mut plain = vec![0, 0, 0x61, 0x13];
    answers(&mut plain, 45);
    plain.extend(requests);
    plain.extend([6, 0x1c, 8, 0, 8, 0]);
    answers(&mut plain, 4);
    // Version 4.2 on an old bus; faults of all kinds.
    let mut old = vec![3, 7, 0, 0];
    answers(&mut old, 20);
    for fault in 0..12 {
        old.extend([6, 0, 0, 0, 4, 0, 0, 0, fault * 16 + 1, 0, 0x1b, 0x3b]);
    }
    // Sub-channels, a new size, a unit that goes, time-outs, the controller gone and back.
    let mut several = vec![0x40, 0x18, 0x61, 1];
    answers(&mut several, 6);
    several.extend([0x1c, 0x2c]);
    answers(&mut several, 40);
    several.extend(requests);
    several.extend([0x0a, 0x41, 0x18]);
    answers(&mut several, 15);
    several.extend([0x1a, 0, 0x08]);
    answers(&mut several, 15);
    several.extend(requests);
    several.extend([0xab, 0xab, 0x1f, 0x0c, 0x0c]);
    answers(&mut several, 40);
    several.extend(requests);
    several.extend([0x0d, 1, 0, 0, 0]);
    answers(&mut several, 10);
    // A disk on an IDE port.
    let mut ide = vec![4, 0, 0, 0];
    answers(&mut ide, 16);
    ide.extend(requests);
    answers(&mut ide, 4);
    vec![plain, old, several, ide]
}

#[cfg(test)]
mod tests {
    /// The seeds get as far as their comments say.
    #[test]
    fn the_seeds_have_disks() {
        let accepted: Vec<_> = super::seeds().iter().map(|seed| super::run(seed)).collect();
        assert!(accepted.iter().all(|count| *count >= 3), "{accepted:?}");
    }
}
