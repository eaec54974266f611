//! What a host says: control messages, ring bytes, a storage controller's packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use hv_abi::vmbus::message::{OpenChannel, OpenResult};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown,
    MessageType, UserDefined,
};
use pv_frontends::blkback::{BlockDevice, Io, IoResult, Operation, Segment, Tag};
use pv_frontends::storvsc::{Config, Disk, Sink, StorVsc, Unit};
use pv_frontends::vmbus::fake::{Fake, Server};
use pv_frontends::vmbus::ring::{ControlWord, Incoming, Outgoing, RingMemory};
use pv_frontends::vmbus::{
    Channel, Driver, Event, External, OpenParams, OutPacket, PageSpan, Received, VmBus,
};
use std::sync::Mutex;
use translate::platform::PageWords;
use xen_abi::Mfn;
use zerocopy::IntoBytes;

/// Steps of one run.
const MAX_STEPS: usize = 200;

/// Bytes handed out piece by piece.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    fn number(&mut self) -> u64 {
        let mut number = [0; 8];
        let bytes = self.take(8);
        number[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    }
}

/// Takes every offer and reads every packet.
struct Reader;

impl Driver<Fake> for Reader {
    fn wants(&self, _: &hv_abi::vmbus::OfferChannel) -> bool {
        true
    }
    fn on_event(&self, _: &VmBus<Fake>, _: &Event) {}
    fn on_signal(&self, bus: &VmBus<Fake>, channel: &Channel) -> Received {
        bus.receive(channel, 10, |packet| {
            let mut payload = [0; 64];
            assert!(packet.copy_payload(0, &mut payload) <= packet.payload_bytes());
        })
    }
}

const PARAMS: OpenParams =
    OpenParams { outgoing_pages: 1, incoming_pages: 1, target_vp: 0, user_data: UserDefined::ZERO };

/// The VMBus client against any host: messages, answers to what it asked, in any order. No page is
/// freed twice, and all are free once every channel is rescinded.
pub fn vmbus(data: &[u8]) {
    let fake = Fake::default();
    let bus = VmBus::new(fake.clone(), Box::new([Arc::new(Reader) as Arc<dyn Driver<Fake>>]));
    let mut server = Server::new(fake.clone());
    server.offer(1, interface::SCSI, 1, 0);
    bus.connect();
    server.run(&bus);
    let mut bytes = Bytes(data);
    for _ in 0..MAX_STEPS {
        let Some(what) = bytes.byte() else { break };
        let id = ChannelId(u32::from(what >> 4));
        match what & 0xf {
            0..=3 => {
                let length = bytes.byte().unwrap_or_default();
                bus.on_message(bytes.take(usize::from(length)));
            }
            4 => drop(bus.open(id, &PARAMS)),
            5 => drop(bus.close(id)),
            6 => drop(bus.retarget(id, 1)),
            7 => drop(bus.create_gpadl(id, &[1; 40])),
            8 => {
                server.offer(id.0, interface::SCSI, 1, 0);
                server.announce(&bus, id.0);
            }
            9 => rescind(&bus, id),
            10 => {
                fake.advance(bytes.number() >> 28);
                bus.poll();
            }
            _ => answer(&fake, &bus),
        }
        bus.poll();
    }
    // At most these were offered: the number has 4 bits, or is anything in a message.
    for id in 0..2048 {
        rescind(&bus, ChannelId(id));
    }
    for _ in 0..3 {
        fake.inner().posted.clear();
        bus.poll();
        fake.advance(1 << 40);
    }
    assert!(fake.pages_in_use() <= 3, "pages are lost");
}

fn rescind(bus: &VmBus<Fake>, id: ChannelId) {
    let mut message = [0; 12];
    message[0] = MessageType::RESCIND_CHANNEL_OFFER.0 as u8;
    message[8..].copy_from_slice(&id.0.to_le_bytes());
    bus.on_message(&message);
}

/// Answers the first message that waits as a good host would.
fn answer(fake: &Fake, bus: &VmBus<Fake>) {
    let Some((_, message)) = fake.inner().posted.pop_front() else { return };
    if let Some(m) = GpadlHeader::parse(&message) {
        let (channel_id, gpadl_id) = (m.channel_id, m.gpadl_id);
        let created = GpadlCreated { channel_id, gpadl_id, ..GpadlCreated::empty() };
        bus.on_message(created.as_bytes());
    } else if let Some(m) = OpenChannel::parse(&message) {
        let (channel_id, open_id) = (m.channel_id, m.open_id);
        bus.on_message(OpenResult { channel_id, open_id, ..OpenResult::empty() }.as_bytes());
    } else if let Some(m) = GpadlTeardown::parse(&message) {
        let gpadl_id = m.gpadl_id;
        bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
    }
}

/// Ring memory on the heap.
struct Memory {
    control: [AtomicU32; 5],
    data: Vec<AtomicU64>,
}

impl RingMemory for &Memory {
    fn data_bytes(&self) -> u32 {
        self.data.len() as u32 * 8
    }
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        self.control[word as usize].load(order)
    }
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.control[word as usize].store(value, order);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
    fn read(&self, at: u32) -> u64 {
        self.data[at as usize / 8].load(Ordering::Relaxed)
    }
    fn write(&self, at: u32, word: u64) {
        self.data[at as usize / 8].store(word, Ordering::Relaxed);
    }
}

/// Ring bytes and indices of any value: positions stay in the ring, work is bounded.
pub fn vmbus_ring(data: &[u8]) {
    let mut bytes = Bytes(data);
    let size = 64 << (bytes.byte().unwrap_or_default() % 4);
    let memory = Memory {
        control: Default::default(),
        data: (0..size).map(|_| AtomicU64::new(0)).collect(),
    };
    let mut incoming = Incoming::new(&memory).expect("the size is right");
    let mut outgoing = Outgoing::new(&memory).expect("the size is right");
    for _ in 0..MAX_STEPS {
        let Some(what) = bytes.byte() else { break };
        match what & 7 {
            0 => memory.control[0].store(bytes.number() as u32, Ordering::Relaxed),
            1 => memory.control[1].store(bytes.number() as u32, Ordering::Relaxed),
            2 => memory.control[3].store(bytes.number() as u32, Ordering::Relaxed),
            3 => {
                let at = bytes.number() as usize % size;
                memory.data[at].store(bytes.number(), Ordering::Relaxed);
            }
            4 => {
                let payload = bytes.take(usize::from(what));
                let packet = OutPacket::<PageSpan> {
                    transaction_id: 1,
                    is_completion: false,
                    completion_wanted: true,
                    external: External::None,
                    payload,
                };
                let _ = outgoing.write(&packet);
            }
            _ => {
                let mut count = 0;
                let result = incoming.receive(20, |packet| {
                    count += 1;
                    let mut all = [0; 5000];
                    assert_eq!(packet.copy_payload(0, &mut all), packet.payload_bytes());
                    if let Some(header) = packet.transfer_pages() {
                        assert!(
                            (0..header.range_count).all(|n| packet.transfer_range(n).is_some())
                        );
                    }
                });
                assert!(count <= 20);
                if result.is_err() {
                    return;
                }
            }
        }
    }
}

/// Keeps units, counts completions.
#[derive(Default)]
struct Notes {
    units: Mutex<Vec<Arc<Unit>>>,
    completed: AtomicU64,
}

impl Sink for Notes {
    fn added(&self, unit: &Arc<Unit>) {
        self.units.lock().expect("a lock").push(Arc::clone(unit));
    }
    fn changed(&self, unit: &Arc<Unit>) {
        assert!(unit.info().device.is_sane());
    }
    fn removed(&self, unit: &Arc<Unit>) {
        let mut units = self.units.lock().expect("a lock");
        let at = units.iter().position(|other| Arc::ptr_eq(other, unit));
        units.remove(at.expect("it was added"));
    }
    fn completed(&self, _: &Arc<Unit>, _: Tag, _: IoResult) {
        self.completed.fetch_add(1, Ordering::Relaxed);
    }
    fn settled(&self, _: &Arc<Unit>) {}
}

/// A storage controller that answers anything: every request accepted ends exactly once, the last
/// of them when the controller is rescinded.
pub fn storvsc(data: &[u8]) {
    run_storvsc(data, &AtomicU64::new(0));
}

/// As above; counts the requests accepted.
fn run_storvsc(data: &[u8], seen: &AtomicU64) {
    let fake = Fake::default();
    let notes = Arc::new(Notes::default());
    let driver: Arc<dyn Driver<Fake>> =
        Arc::new(StorVsc::new(Arc::clone(&notes), Config { requests: 8, ..Config::default() }));
    let bus = Arc::new(VmBus::new(fake.clone(), Box::new([driver])));
    let mut server = Server::new(fake);
    server.offer(1, interface::SCSI, 1, 0);
    bus.connect();
    server.run(&bus);
    let (mut bytes, mut accepted, mut waiting) = (Bytes(data), 0, Vec::new());
    for _ in 0..MAX_STEPS {
        let Some(what) = bytes.byte() else { break };
        server.run(&bus);
        let Some(channel) = server.channels.get_mut(&1) else { break };
        let read = channel.incoming.receive(100, |packet| {
            // Of a GPA-direct packet: the first page of its range.
            waiting.push((packet.transaction_id(), packet.header_word(2)));
        });
        assert!(read.is_ok(), "what the guest writes is sound");
        if what & 0x80 != 0 {
            accepted += submit(&bus, &notes, what);
            continue;
        }
        let is_completion = what & 0x40 == 0;
        let (transaction_id, page) = match waiting.len() {
            0 => (bytes.number(), None),
            count => waiting.swap_remove(usize::from(what) % count),
        };
        let length = bytes.byte().unwrap_or_default();
        let payload = bytes.take(usize::from(length));
        if let Some(page) = page.filter(|_| what & 0x10 != 0)
            && let Some(page) = server.fake.page::<PageWords>(page)
        {
            page.iter().take(4).for_each(|word| word.store(bytes.number(), Ordering::Relaxed));
        }
        let packet = OutPacket::<PageSpan> {
            transaction_id,
            is_completion,
            completion_wanted: what & 0x20 != 0 && !is_completion,
            external: External::None,
            payload,
        };
        if channel.outgoing.write(&packet).is_ok() {
            bus.on_signal(ChannelId(1));
        }
        bus.poll();
    }
    seen.store(accepted, Ordering::Relaxed);
    rescind(&bus, ChannelId(1));
    assert_eq!(notes.completed.load(Ordering::Relaxed), accepted);
    assert!(notes.units.lock().expect("a lock").is_empty());
    assert!(bus.channel(ChannelId(1)).is_none());
}

/// A controller with one disk, and a request of each kind.
pub fn storvsc_seeds() -> Vec<Vec<u8>> {
    fn answer(seed: &mut Vec<u8>, srb_status: u8, data_length: u8, data: Option<[u8; 32]>) {
        let mut body = [0; 64];
        (body[0], body[12], body[14], body[24]) = (1, 0x34, srb_status, data_length);
        seed.extend([if data.is_some() { 0x10 } else { 0 }, 64]);
        seed.extend(body);
        seed.extend(data.into_iter().flatten());
    }
    let mut seed = Vec::new();
    (0..4).for_each(|_| answer(&mut seed, 0, 0, None));
    let mut luns = [0; 32];
    luns[3] = 8;
    answer(&mut seed, 1, 16, Some(luns));
    answer(&mut seed, 1, 36, Some([0; 32]));
    (0..5).for_each(|_| answer(&mut seed, 1, 0, None));
    let mut capacity = [0; 32];
    (capacity[7], capacity[10]) = (0xff, 2);
    answer(&mut seed, 1, 32, Some(capacity));
    answer(&mut seed, 4, 0, None);
    seed.extend([0x80, 0x84, 0x88, 0x8c]);
    (0..3).for_each(|_| answer(&mut seed, 1, 0, None));
    vec![seed]
}

/// Channels opened, closed and rescinded.
pub fn vmbus_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0x14, 11, 11, 0x17, 11, 11, 0x16, 0x15, 11, 11, 11, 0x19],
        vec![0x28, 0x24, 0x29, 0x28, 0x24, 11, 0x29, 0x28, 0x24, 11, 11, 0x29],
        vec![0, 12, 12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
}

/// Packets that turn the ring, and words that are none.
pub fn vmbus_ring_seeds() -> Vec<Vec<u8>> {
    let mut turn = vec![0];
    (0..30).for_each(|_| turn.extend([0x2c; 45].into_iter().chain([5])));
    let mut words = vec![1];
    for word in [0x0001_0006_0005_0007_u64, 9, 0x0000_0002_dead_cafe] {
        words.push(3);
        words.extend([[0; 8], word.to_le_bytes()].concat());
    }
    words.extend([0, 56, 0, 0, 0, 0, 0, 0, 0, 5]);
    vec![turn, words]
}

fn submit(bus: &Arc<VmBus<Fake>>, notes: &Arc<Notes>, what: u8) -> u64 {
    let units: Vec<_> = notes.units.lock().expect("a lock").clone();
    let Some(unit) = units.get(usize::from(what & 3)) else { return 0 };
    let segments = [Segment { gpfn: Mfn(7), offset: 0, len: 512 }];
    let operation = match what >> 2 & 3 {
        0 => Operation::Read,
        1 => Operation::Write,
        2 => Operation::Flush,
        _ => Operation::Discard { sectors: 8, secure: false },
    };
    let segments: &[Segment] =
        if matches!(operation, Operation::Read | Operation::Write) { &segments } else { &[] };
    let disk = Disk::new(Arc::clone(bus), Arc::clone(unit));
    let io = Io { operation, sector: 0, segments };
    let accepted = disk.submit(0, &io, Tag(1)) == pv_frontends::blkback::Submitted::Accepted;
    disk.commit(0);
    u64::from(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed gets as far as its comment says.
    #[test]
    fn the_seed_has_a_disk() {
        let seen = AtomicU64::new(0);
        run_storvsc(&storvsc_seeds()[0], &seen);
        assert_eq!(seen.load(Ordering::Relaxed), 3, "a read, a write and a flush");
    }
}
