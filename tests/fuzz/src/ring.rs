//! The rings of a channel: both ends, against a queue; then with anything in the memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use hv_abi::vmbus::packet::PacketType;
use pv_frontends::vmbus::ring::{ControlWord, Incoming, Outgoing, Packet, Received, RingMemory};
use pv_frontends::vmbus::{External, OutPacket, PageSpan, SendError};

use crate::input::Input;

/// Steps of one run.
const MAX_STEPS: usize = 200;

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

/// A packet as it must come out again.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    packet_type: PacketType,
    id: u64,
    is_wanted: bool,
    header: Vec<u64>,
    payload: Vec<u8>,
}

impl Expected {
    fn of<M: RingMemory>(packet: &Packet<'_, M>) -> Self {
        let mut payload = vec![0; packet.payload_bytes()];
        assert_eq!(packet.copy_payload(0, &mut payload), payload.len());
        Self {
            packet_type: packet.packet_type(),
            id: packet.transaction_id(),
            is_wanted: packet.wants_completion(),
            header: (0..).map_while(|nr| packet.header_word(nr)).collect(),
            payload,
        }
    }

    /// Bytes in the ring: descriptor, the rest, footer.
    fn bytes(&self) -> usize {
        16 + self.header.len() * 8 + self.payload.len() + 8
    }
}

/// What a ring with two honest ends holds.
struct Model {
    bytes: usize,
    /// Written and not read.
    packets: VecDeque<Expected>,
    /// Bytes written and not given back.
    used: usize,
    /// Of these, read.
    read: usize,
    is_masked: bool,
    /// The largest the writer found no room for, since it wrote one as large.
    waiting: Option<usize>,
    /// Somebody wrote where he should not: nothing is known any more but bounds.
    is_spoilt: bool,
}

impl Model {
    const fn room(&self) -> usize {
        self.bytes - 8 - self.used
    }

    fn wrote(&mut self, packet: Expected, result: Result<bool, SendError>) {
        if self.is_spoilt {
            return;
        }
        let (bytes, room) = (packet.bytes(), self.room());
        match result {
            Ok(signal) => {
                assert!(bytes <= room, "there was no room");
                let is_asleep = self.used == 0 && !self.is_masked;
                assert_eq!(signal, is_asleep, "a signal when the reader sleeps, else none");
                self.used += bytes;
                self.packets.push_back(packet);
                self.waiting = self.waiting.filter(|waiting| *waiting > bytes);
            }
            Err(SendError::Full) => {
                assert!(bytes > room && bytes <= self.bytes - 8);
                self.waiting = self.waiting.max(Some(bytes));
            }
            Err(SendError::TooLarge) => assert!(bytes > self.bytes - 8),
            Err(error) => panic!("{error:?} from a sound ring"),
        }
    }

    fn took(&mut self, packet: &Expected) {
        if !self.is_spoilt {
            self.read += packet.bytes();
            assert_eq!(self.packets.pop_front().as_ref(), Some(packet));
        }
    }

    fn committed(&mut self, signal: bool) {
        if !self.is_spoilt {
            let before = self.room();
            self.used -= core::mem::take(&mut self.read);
            let now = self.room();
            let is_due = self.waiting.is_some_and(|bytes| before < bytes && now >= bytes);
            assert_eq!(signal, is_due, "a signal when a writer that waits can go on, else none");
        }
    }
}

struct World<'a> {
    memory: &'a Memory,
    incoming: Incoming<&'a Memory>,
    outgoing: Outgoing<&'a Memory>,
    model: Model,
}

impl World<'_> {
    fn write(&mut self, what: u8, input: &mut Input<'_>) {
        let (id, mut payload) = (u64::from(input.half()), input.bytes().to_vec());
        if what & 0x80 != 0 {
            // Longer than an input: by the same bytes again.
            payload = payload.repeat(usize::from(input.byte()));
        }
        let mut spans = Vec::new();
        let external = match what >> 4 & 3 {
            0 | 1 => External::None,
            kind => {
                let (count, shape) = (input.byte() % 40, u32::from(input.half()));
                for nr in 0..count {
                    let offset = if nr == 0 || kind == 3 { shape & 0xfff } else { 0 };
                    let bytes = if nr + 1 == count { shape >> 4 } else { 4096 - offset };
                    spans.push(PageSpan { gpfn: id << 8 | u64::from(nr), offset, bytes });
                }
                if kind == 2 {
                    External::MultiPage(&spans[..])
                } else {
                    External::PageBuffers(&spans)
                }
            }
        };
        let is_completion = what & 0x10 != 0 && external == External::None;
        let is_wanted = what & 0x40 != 0;
        let packet = OutPacket {
            transaction_id: id,
            is_completion,
            completion_wanted: is_wanted,
            external,
            payload: &payload,
        };
        let result = self.outgoing.write(&packet);
        let is_page = |span: &PageSpan| span.bytes > 0 && span.offset + span.bytes <= 4096;
        let is_sound = external == External::None || !spans.is_empty() && spans.iter().all(is_page);
        assert_eq!(result == Err(SendError::BadSpan), !is_sound);
        if is_sound {
            let (packet_type, header) = (packet_type(&packet), header(&external));
            payload.resize(payload.len().next_multiple_of(8), 0);
            self.model.wrote(Expected { packet_type, id, is_wanted, header, payload }, result);
        }
    }

    /// Reads; `false` once the ring is known to be corrupt.
    fn receive(&mut self, budget: u32) -> bool {
        let (mut count, model) = (0, &mut self.model);
        let result = self.incoming.receive(budget, |packet| {
            count += 1;
            let expected = Expected::of(packet);
            if let Some(header) = packet.transfer_pages() {
                assert!((0..header.range_count).all(|nr| packet.transfer_range(nr).is_some()));
            }
            model.took(&expected);
        });
        assert!(count <= budget);
        let Ok((received, signal)) = result else {
            assert!(model.is_spoilt);
            return false;
        };
        model.committed(signal);
        model.is_masked = received == Received::More;
        if !model.is_spoilt && received == Received::All {
            assert!(model.packets.is_empty());
        }
        true
    }

    /// A step; `false` once the ring is known to be corrupt.
    fn step(&mut self, what: u8, input: &mut Input<'_>) -> bool {
        let (memory, spoilt) = (self.memory, self.model.is_spoilt);
        let result = match what & 0xf {
            0..=6 => {
                self.write(what, input);
                return true;
            }
            7 | 8 => return self.receive(u32::from(what >> 4) * 2),
            9 => match self.incoming.next_packet() {
                Ok(Some(packet)) => {
                    let expected = Expected::of(&packet);
                    self.model.took(&expected);
                    Ok(())
                }
                Ok(None) => {
                    assert!(spoilt || self.model.packets.is_empty());
                    Ok(())
                }
                Err(error) => Err(error),
            },
            10 => self.incoming.commit().map(|signal| self.model.committed(signal)),
            11 => {
                self.incoming.mask();
                self.model.is_masked = true;
                Ok(())
            }
            12 => self.incoming.unmask().map(|more| {
                self.model.is_masked = false;
                assert!(spoilt || more != self.model.packets.is_empty());
            }),
            13 => {
                let word = usize::from(what >> 4) % memory.control.len();
                memory.control[word].store(input.word(), Ordering::Relaxed);
                self.model.is_spoilt = true;
                Ok(())
            }
            14 => {
                // As an index that is possible.
                let word = usize::from(what >> 4) % 2;
                let at = u32::from(input.half()) * 8 % memory.data_bytes();
                memory.control[word].store(at, Ordering::Relaxed);
                self.model.is_spoilt = true;
                Ok(())
            }
            _ => {
                let at = usize::from(input.half()) % memory.data.len();
                memory.data[at].store(input.number(), Ordering::Relaxed);
                self.model.is_spoilt = true;
                Ok(())
            }
        };
        assert!(result.is_ok() || self.model.is_spoilt);
        result.is_ok()
    }
}

fn packet_type(packet: &OutPacket<'_>) -> PacketType {
    match packet.external {
        External::None if packet.is_completion => PacketType::COMPLETION,
        External::None => PacketType::IN_BAND,
        _ => PacketType::GPA_DIRECT,
    }
}

/// The words between descriptor and payload.
fn header(external: &External<'_, PageSpan>) -> Vec<u64> {
    let range = |offset: u32, bytes: u32| u64::from(offset) << 32 | u64::from(bytes);
    if let External::PageBuffers(spans) = external {
        let each = spans.iter().flat_map(|span| [range(span.offset, span.bytes), span.gpfn]);
        [(spans.len() as u64) << 32].into_iter().chain(each).collect()
    } else if let External::MultiPage(spans) = external {
        let bytes = spans.iter().map(|span| span.bytes).sum();
        let head = [1 << 32, range(spans[0].offset, bytes)];
        head.into_iter().chain(spans.iter().map(|span| span.gpfn)).collect()
    } else {
        Vec::new()
    }
}

/// A ring with a writer and a reader: what goes in comes out, in order, signals come when they are
/// due; and with indices and bytes of any value positions stay in the ring and work is bounded.
pub(crate) fn vmbus_ring(data: &[u8]) {
    let mut input = Input::new(data);
    let words = 32 << (input.byte() % 6);
    let memory = Memory {
        control: Default::default(),
        data: (0..words).map(|_| AtomicU64::new(0)).collect(),
    };
    let model = Model {
        bytes: words * 8,
        packets: VecDeque::new(),
        used: 0,
        read: 0,
        is_masked: false,
        waiting: None,
        is_spoilt: false,
    };
    let incoming = Incoming::new(&memory).expect("the size is right");
    let outgoing = Outgoing::new(&memory).expect("the size is right");
    let mut world = World { memory: &memory, incoming, outgoing, model };
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        if !world.step(what, &mut input) {
            break;
        }
    }
}

/// Packets of all kinds that turn the ring, and words that are none.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut turn = vec![1];
    for nr in 0..30 {
        turn.extend([0x40, nr, 0, 40]);
        turn.extend([nr; 40]);
        turn.extend([0x10, nr, 1, 0, 0x20, nr, 2, 4, 1, 2, 3, 4, 2, 0x80, 0x1f]);
        turn.extend([0x30, nr, 3, 0, 3, 0, 0x10, if nr % 3 == 0 { 0x47 } else { 9 }, 10, 11, 12]);
    }
    let mut words = vec![2];
    for (at, word) in [0x0001_0006_0005_0007_u64, 9, 0x0000_0002_dead_cafe].iter().enumerate() {
        words.extend([15, at as u8, 0]);
        words.extend(word.to_le_bytes());
    }
    words.extend([14, 7, 0, 0x27, 0x1d, 1, 0, 0, 0, 0x27]);
    vec![turn, words]
}
