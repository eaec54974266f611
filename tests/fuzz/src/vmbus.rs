//! What a host says on the bus: control messages, in any order.

use std::sync::Arc;

use hv_abi::NtStatus;
use hv_abi::vmbus::message::{OpenChannel, OpenResult};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown,
    MessageType, UserDefined, Version,
};
use pv_frontends::vmbus::fake::{Fake, Server};
use pv_frontends::vmbus::{Channel, Driver, Event, OpenParams, Received, VmBus};
use zerocopy::IntoBytes;

use crate::input::Input;

/// Steps of one run.
const MAX_STEPS: usize = 200;

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
pub(crate) fn vmbus(data: &[u8]) {
    let mut input = Input::new(data);
    let fake = Fake::default();
    let bus = VmBus::new(fake.clone(), Box::new([Arc::new(Reader) as Arc<dyn Driver<Fake>>]));
    let mut server = Server::new(fake.clone());
    let versions = [Version::V5_3, Version::V5_0, Version::V4_0, Version::V3_0];
    server.version = versions[usize::from(input.byte() & 3)];
    server.offer(1, interface::SCSI, 1, 0);
    bus.connect();
    server.run(&bus);
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        let id = ChannelId(u32::from(what >> 4));
        match what & 0xf {
            0..=2 => bus.on_message(input.bytes()),
            // A message of some type, zeros but for a few words.
            3 => {
                let mut message = [0; 64];
                (message[0], message[8]) = (input.byte(), what >> 4);
                for _ in 0..input.byte() % 4 {
                    let at = usize::from(input.byte()) % 16 * 4;
                    message[at..at + 4].copy_from_slice(&input.word().to_le_bytes());
                }
                bus.on_message(&message[..(12 + usize::from(input.byte())).min(64)]);
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
                fake.advance(input.number() >> 28);
                bus.poll();
            }
            11 => fake.inner().free_pages = usize::from(input.byte()),
            12 => answer(&fake, &bus, NtStatus(input.word())),
            _ => answer(&fake, &bus, NtStatus::SUCCESS),
        }
        bus.poll();
    }
    // At most these were offered: the number has 4 bits, or is anything in a message.
    for id in 0..2048 {
        rescind(&bus, ChannelId(id));
    }
    pages_are_free(&fake, &bus);
}

/// Once no channel is left and the host had its time, the guest has the bus's own pages.
pub(crate) fn pages_are_free(fake: &Fake, bus: &VmBus<Fake>) {
    for _ in 0..3 {
        fake.inner().posted.clear();
        bus.poll();
        fake.advance(1 << 40);
    }
    assert!(fake.pages_in_use() <= 3, "pages are lost");
}

pub(crate) fn rescind(bus: &VmBus<Fake>, id: ChannelId) {
    let mut message = [0; 12];
    message[0] = MessageType::RESCIND_CHANNEL_OFFER.0 as u8;
    message[8..].copy_from_slice(&id.0.to_le_bytes());
    bus.on_message(&message);
}

/// Answers the first message that waits.
fn answer(fake: &Fake, bus: &VmBus<Fake>, status: NtStatus) {
    let Some((_, message)) = fake.inner().posted.pop_front() else { return };
    if let Some(m) = GpadlHeader::parse(&message) {
        let (channel_id, gpadl_id) = (m.channel_id, m.gpadl_id);
        let created = GpadlCreated { channel_id, gpadl_id, status, ..GpadlCreated::empty() };
        bus.on_message(created.as_bytes());
    } else if let Some(m) = OpenChannel::parse(&message) {
        let (channel_id, open_id) = (m.channel_id, m.open_id);
        bus.on_message(
            OpenResult { channel_id, open_id, status, ..OpenResult::empty() }.as_bytes(),
        );
    } else if let Some(m) = GpadlTeardown::parse(&message) {
        let gpadl_id = m.gpadl_id;
        bus.on_message(GpadlTorndown { gpadl_id, ..GpadlTorndown::empty() }.as_bytes());
    }
}

/// Channels opened, closed and rescinded.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0, 0x14, 13, 13, 0x17, 13, 13, 0x16, 0x15, 13, 13, 13, 0x19],
        vec![1, 0x28, 0x24, 0x29, 0x28, 0x24, 13, 0x29, 0x28, 0x24, 13, 13, 0x29],
        vec![2, 0, 12, 12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
}
