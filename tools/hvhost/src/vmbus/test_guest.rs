//! A guest for tests of devices: hypercalls, messages and rings, without KVM.

use crate::memory::{Memory, allocate};
use crate::stats::Counters;
use crate::synic::{SintSink, Synic};
use crate::vmbus::ring::{Incoming, Outgoing, RingPages};
use crate::vmbus::{Bus, Outbound, Packet};
use hv_abi::HvStatus;
use hv_abi::hypercall::{CallCode, Control};
use hv_abi::msr::{HV_X64_MSR_SIEFP, HV_X64_MSR_SIMP, PageMsr};
use hv_abi::vmbus::message::{OpenChannel, OpenResult};
use hv_abi::vmbus::version::{FeatureFlags, TargetInfo, VersionResponse};
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpaRange, GpadlBody, GpadlCreated, GpadlHeader, GpadlId,
    InitiateContact, MessageHeader, MessageType, PacketDescriptor, PacketType, Version,
};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

struct Nobody;

impl SintSink for Nobody {
    fn inject(&self, _: u32, _: u8) {}
    fn kick(&self, _: u32) {}
}

const SLOT: u64 = 0x5000 + 2 * 256;
const HYPERCALL: u64 = 0x7000;
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a GPADL's list in its first message and in the others.
const PIECES: [usize; 2] = [216, 224];

/// A guest that is connected and has asked for offers.
pub struct Guest {
    pub memory: Memory,
    pub synic: Arc<Synic>,
    pub bus: Arc<Bus>,
    pub counters: Arc<Counters>,
}

/// The guest's ends of an open channel.
pub struct Open {
    pub id: ChannelId,
    pub out: Outgoing,
    pub inc: Incoming,
}

impl Guest {
    pub fn new(offer: impl FnOnce(&Memory, &Arc<Bus>, &Arc<Counters>)) -> Self {
        let memory = allocate(64 << 20).unwrap();
        let synic = Arc::new(Synic::new(memory.clone(), 1, Box::new(Nobody)));
        let counters = Arc::<Counters>::default();
        let bus = Bus::new(&memory, synic.clone(), None, counters.clone());
        offer(&memory, &bus, &counters);
        let (simp, siefp) = (PageMsr::enabled_at(0x5000), PageMsr::enabled_at(0x6000));
        synic.update(0, HV_X64_MSR_SIMP, 1, simp, siefp);
        synic.update(0, HV_X64_MSR_SIEFP, 1, simp, siefp);
        let guest = Self { memory, synic, bus, counters };
        guest.post(&InitiateContact {
            version: Version::V5_3,
            interrupt_page_or_target_info: TargetInfo::new(2, 0, FeatureFlags::empty()).0,
            ..InitiateContact::empty()
        });
        assert_eq!(guest.message::<VersionResponse>().version_supported, 1);
        guest.post(&MessageHeader::new(MessageType::REQUEST_OFFERS));
        guest
    }

    pub fn post(&self, message: &(impl IntoBytes + Immutable + ?Sized)) {
        let bytes = message.as_bytes();
        let header = [4u32, 0, 1, bytes.len() as u32];
        self.memory.write_slice(header.as_bytes(), GuestAddress(HYPERCALL)).unwrap();
        self.memory.write_slice(bytes, GuestAddress(HYPERCALL + 16)).unwrap();
        let status = self.bus.hypercall(Control::new(CallCode::POST_MESSAGE), HYPERCALL);
        assert_eq!(status, HvStatus::SUCCESS);
    }

    /// Waits for a message of this type; others are thrown away.
    pub fn message<T: ControlMessage>(&self) -> T {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            self.synic.deliver(0);
            let mut bytes = [0u8; 256];
            self.memory.read_slice(&mut bytes, GuestAddress(SLOT)).unwrap();
            if bytes[0] == 0 {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            self.memory.write_obj(0u32, GuestAddress(SLOT)).unwrap();
            if let Some(message) = T::parse(&bytes[16..16 + usize::from(bytes[4])]) {
                return message;
            }
        }
        panic!("no {:?}", T::TYPE)
    }

    /// Shows the host `count` pages from page `at` on; the number is the page's.
    pub fn gpadl(&self, channel: ChannelId, at: u64, count: u64) -> GpadlId {
        let id = GpadlId(at as u32);
        let range = GpaRange { byte_count: count as u32 * 4096, byte_offset: 0 };
        let mut list = range.as_bytes().to_vec();
        (at..at + count).for_each(|page| list.extend(page.to_le_bytes()));
        let header = GpadlHeader {
            channel_id: channel,
            gpadl_id: id,
            range_bytes: list.len() as u16,
            range_count: 1,
            ..GpadlHeader::empty()
        };
        let (first, rest) = list.split_at(list.len().min(PIECES[0]));
        self.post([header.as_bytes(), first].concat().as_slice());
        for (number, piece) in (0u32..).zip(rest.chunks(PIECES[1])) {
            let body = GpadlBody { message_number: number, gpadl_id: id, ..GpadlBody::empty() };
            self.post([body.as_bytes(), piece].concat().as_slice());
        }
        assert!(self.message::<GpadlCreated>().status.is_success());
        id
    }

    /// Opens a channel with two rings of `pages` data pages each at page `at`.
    pub fn open(&self, id: ChannelId, at: u64, pages: u64) -> Open {
        let ring_gpadl = self.gpadl(id, at, 2 * pages + 2);
        let downstream_page_offset = pages as u32 + 1;
        let open = OpenChannel {
            channel_id: id,
            ring_gpadl,
            downstream_page_offset,
            ..OpenChannel::empty()
        };
        self.post(&open);
        assert!(self.message::<OpenResult>().status.is_success());
        let ring = |from: u64| {
            let pages: Vec<u64> = (from..=from + pages).map(|page| page * 4096).collect();
            RingPages::new(&self.memory, &pages).unwrap()
        };
        let out = Outgoing::new(ring(at)).unwrap();
        Open { id, out, inc: Incoming::new(ring(at + pages + 1)).unwrap() }
    }

    pub fn signal(&self, id: ChannelId) {
        let control = Control::new(CallCode::SIGNAL_EVENT).fast();
        assert_eq!(self.bus.hypercall(control, (0x2000 | id.0).into()), HvStatus::SUCCESS);
    }

    /// Sends a packet.
    pub fn send(&self, open: &mut Open, kind: PacketType, ask: bool, more: &[u8], payload: &[u8]) {
        let flags = if ask { PacketDescriptor::COMPLETION_REQUESTED } else { 0 };
        let packet = Outbound { kind, flags, transaction: 77, more, payload };
        assert!(open.out.put(&packet).unwrap());
        open.out.commit();
        self.signal(open.id);
    }

    /// Answers a packet.
    pub fn complete(&self, open: &mut Open, transaction: u64, payload: &[u8]) {
        let kind = PacketType::COMPLETION;
        let packet = Outbound { kind, flags: 0, transaction, more: &[], payload };
        assert!(open.out.put(&packet).unwrap());
        open.out.commit();
        self.signal(open.id);
    }

    /// Waits for a packet.
    pub fn receive(&self, open: &mut Open) -> Packet {
        let mut packet = Packet::default();
        let until = Instant::now() + LIMIT;
        while !open.inc.next(&mut packet).unwrap() {
            assert!(Instant::now() < until, "no packet");
            thread::sleep(Duration::from_millis(1));
        }
        if open.inc.commit() {
            self.signal(open.id);
        }
        packet
    }
}
