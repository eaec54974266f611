//! Keyboards against a host that sends anything.

use std::sync::Arc;

use hv_abi::keyboard::{Keystroke, MessageType, ProtocolResponse};
use hv_abi::vmbus::ChannelId;
use hv_abi::vmbus::offer::interface;
use pv_frontends::keyboard::{Keyboard, Sink};
use pv_frontends::vmbus::fake::{Fake, Server};
use pv_frontends::vmbus::ring::{ControlWord, RingMemory};
use pv_frontends::vmbus::{Driver, External, OutPacket, PageSpan, VmBus};
use zerocopy::IntoBytes;

use crate::input::Input;
use crate::vmbus::{pages_are_free, rescind};

/// Steps of one run.
const MAX_STEPS: usize = 300;
const ID: ChannelId = ChannelId(3);
/// Another keyboard's, in the end.
const LAST: ChannelId = ChannelId(4);

struct Nobody;

impl Sink for Nobody {
    fn typed(&self) {}
}

struct Bench {
    fake: Fake,
    server: Server,
    driver: Arc<Keyboard<Nobody>>,
    bus: VmBus<Fake>,
}

impl Bench {
    fn offer(&mut self, id: ChannelId) {
        self.server.offer(id.0, interface::KEYBOARD, id.0 as u8, 0);
        self.server.announce(&self.bus, id.0);
        self.server.run(&self.bus);
    }

    fn rescind(&mut self, id: ChannelId) {
        self.server.offers.remove(&id.0);
        self.server.channels.remove(&id.0);
        rescind(&self.bus, id);
        self.server.run(&self.bus);
        self.fake.advance(1 << 32);
        self.server.run(&self.bus);
    }

    /// Puts a packet into the ring, where it is open and has room; the guest reads.
    fn put(&mut self, id: ChannelId, kind: u8, payload: &[u8]) {
        let Some(host) = self.server.channels.get_mut(&id.0) else { return };
        let span = [PageSpan { gpfn: 5, offset: 0, bytes: 100 }];
        let packet = OutPacket {
            transaction_id: 1,
            is_completion: kind & 3 == 1,
            completion_wanted: kind & 3 == 2,
            external: if kind & 3 == 3 { External::PageBuffers(&span) } else { External::None },
            payload,
        };
        let _ = host.outgoing.write(&packet);
        // What the guest sends is nothing to go by.
        while let Ok(Some(_)) = host.incoming.next_packet() {}
        let _ = host.incoming.commit();
        self.bus.on_signal(id);
        self.server.run(&self.bus);
    }

    fn take(&mut self, most: usize) -> Vec<u8> {
        let mut some = vec![0; most];
        let count = self.driver.take(&self.bus, &mut some);
        some.truncate(count);
        self.server.run(&self.bus);
        some
    }
}

/// Whatever a host sends and when, no page is lost, work is bounded, and a keyboard offered afterwards
/// types what is pressed on it.
pub(crate) fn keyboard(data: &[u8]) {
    let mut input = Input::new(data);
    let fake = Fake::default();
    let driver = Arc::new(Keyboard::new(Nobody, 0));
    let bus = VmBus::new(fake.clone(), Box::new([Arc::clone(&driver) as Arc<dyn Driver<Fake>>]));
    let mut bench = Bench { server: Server::new(fake.clone()), fake, driver, bus };
    bench.bus.connect();
    bench.server.run(&bench.bus);
    bench.offer(ID);
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        match what & 7 {
            0 | 1 => {
                let (code, flags) = (input.half(), u32::from(what >> 4));
                let message_type = MessageType::EVENT;
                let stroke = Keystroke { message_type, make_code: code, reserved: 0, flags };
                bench.put(ID, 0, stroke.as_bytes());
            }
            2 => bench.put(ID, 0, ProtocolResponse::new(what & 8 == 0).as_bytes()),
            3 => bench.put(ID, what >> 4, input.bytes()),
            4 => drop(bench.take(what.into())),
            5 => {
                if let Some(host) = bench.server.channels.get(&ID.0) {
                    let memory = host.outgoing.memory();
                    let order = std::sync::atomic::Ordering::Relaxed;
                    memory.store(ControlWord::WriteIndex, input.word(), order);
                }
                bench.bus.on_signal(ID);
                bench.server.run(&bench.bus);
            }
            6 if bench.server.offers.contains_key(&ID.0) => bench.rescind(ID),
            _ if !bench.server.offers.contains_key(&ID.0) => bench.offer(ID),
            _ => {}
        }
    }
    if bench.server.offers.contains_key(&ID.0) {
        bench.rescind(ID);
    }
    while !bench.take(100).is_empty() {}
    bench.offer(LAST);
    bench.put(LAST, 0, ProtocolResponse::new(true).as_bytes());
    for code in [0x17, 0x97] {
        let flags = if code & 0x80 == 0 { 0 } else { 2 };
        let message_type = MessageType::EVENT;
        let stroke = Keystroke { message_type, make_code: code & 0x7f, reserved: 0, flags };
        bench.put(LAST, 0, stroke.as_bytes());
    }
    assert_eq!(bench.take(100), b"i");
    bench.rescind(LAST);
    pages_are_free(&bench.fake, &bench.bus);
}

/// An answer and keys; a refusal and a new offer; a broken ring.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![2, 0, 0x2a, 0, 0, 0x1e, 0, 0x20, 0x1e, 0, 0x20, 0x2a, 0, 0x14],
        vec![10, 6, 7, 2, 0x40, 0x48, 0, 0x60, 0x48, 0, 0x10, 0x3d, 0xd8, 0x10, 0, 0xde, 0x84],
        vec![2, 5, 5, 0, 0, 0, 2, 3, 4, 1, 2, 3, 4, 0, 0x1e, 0, 5, 1, 0, 0, 0],
    ]
}
