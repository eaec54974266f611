//! A whole conversation: hypercalls, messages, rings and SCSI, without KVM.

use super::*;
use crate::storvsp::options::DiskOptions;
use crate::vmbus::test_guest::{Guest, Open};
use hv_abi::scsi::{LunListHeader, ScsiStatus, Sense, SenseKey};
use hv_abi::vmbus::message::{CloseChannel, RelidReleased};
use hv_abi::vmbus::packet::GpaDirectHeader;
use hv_abi::vmbus::{
    ChannelId, GpaRange, GpadlId, GpadlTeardown, GpadlTorndown, MessageHeader, MessageType,
    RescindChannelOffer,
};
use vm_memory::{Bytes, GuestAddress};

const DATA: u64 = 0x20_0000;
/// Data pages of a ring.
const RING: u64 = 2;

impl Guest {
    /// A guest that is connected, and the controller it will find.
    fn with_controller(sub_channels: u16) -> (Self, Arc<Controller>, usize) {
        let mut offered = None;
        let guest = Self::new(|memory, bus, _| {
            let controller = Arc::new(Controller::new(0, memory, sub_channels, false));
            let device = bus.offer(controller.clone()).unwrap();
            offered = Some((controller, device));
        });
        let (controller, device) = offered.unwrap();
        (guest, controller, device)
    }

    /// Sends a packet and waits for the next from the host.
    fn transact(&self, open: &mut Open, kind: PacketType, more: &[u8], payload: &[u8]) -> Vec<u8> {
        self.send(open, kind, true, more, payload);
        self.receive(open).payload().to_vec()
    }

    fn ask(&self, open: &mut Open, operation: Operation, body: &[u8]) -> (NtStatus, Vec<u8>) {
        let header = Header { operation, flags: 1, status: NtStatus::SUCCESS };
        let payload = filled(&header, body, 52);
        let answer = self.transact(open, PacketType::IN_BAND, &[], &payload);
        let (header, rest) = Header::read_from_prefix(answer.as_slice()).unwrap();
        assert_eq!((header.operation, answer.len()), (Operation::COMPLETE_IO, 64));
        (header.status, rest.to_vec())
    }

    fn initialize(&self, open: &mut Open) {
        for operation in [
            Operation::BEGIN_INITIALIZATION,
            Operation::QUERY_PROTOCOL_VERSION,
            Operation::QUERY_PROPERTIES,
            Operation::END_INITIALIZATION,
        ] {
            let (status, _) = self.ask(open, operation, &Version::V6_2.0.to_le_bytes());
            assert_eq!(status, NtStatus::SUCCESS, "{operation:?}");
        }
    }

    /// A SCSI command with one page of data at `DATA`.
    fn scsi(&self, open: &mut Open, lun: u8, cdb: &[u8], data_length: u32) -> ScsiRequest {
        self.scsi_at(open, (0, 0, lun), cdb, data_length)
    }

    /// The same at a path, target and LUN.
    fn scsi_at(
        &self,
        open: &mut Open,
        (path, target, lun): (u8, u8, u8),
        cdb: &[u8],
        data_length: u32,
    ) -> ScsiRequest {
        let mut request = ScsiRequest {
            length: 52,
            path,
            target,
            lun,
            cdb_length: cdb.len() as u8,
            direction: ScsiRequest::DATA_IN,
            data_length,
            ..ScsiRequest::new_zeroed()
        };
        request.payload[..cdb.len()].copy_from_slice(cdb);
        let header =
            Header { operation: Operation::EXECUTE_SRB, flags: 1, status: NtStatus::SUCCESS };
        let payload = [header.as_bytes(), request.as_bytes()].concat();
        let direct = GpaDirectHeader { reserved: 0, range_count: 1 };
        let range = GpaRange { byte_count: 4096, byte_offset: 0 };
        let page = (DATA / 4096).to_le_bytes();
        let more = [direct.as_bytes(), range.as_bytes(), &page].concat();
        let answer = self.transact(open, PacketType::GPA_DIRECT, &more, &payload);
        ScsiRequest::read_from_prefix(&answer[size_of::<Header>()..]).unwrap().0
    }
}

fn disk(dir: &tempfile::TempDir, byte: u8) -> Disk {
    let path = dir.path().join(byte.to_string());
    std::fs::write(&path, vec![byte; 8192]).unwrap();
    let options: DiskOptions = path.display().to_string().parse().unwrap();
    Disk::open(&options, (0, 0), &[]).unwrap()
}

#[test]
fn initialization_is_in_order() {
    let (guest, _, _) = Guest::with_controller(3);
    let mut open = guest.open(ChannelId(1), 0x400, RING);
    let state = NtStatus::INVALID_DEVICE_STATE;
    assert_eq!(guest.ask(&mut open, Operation::END_INITIALIZATION, &[]).0, state);
    assert_eq!(guest.ask(&mut open, Operation::EXECUTE_SRB, &[]).0, state);
    assert_eq!(guest.ask(&mut open, Operation::BEGIN_INITIALIZATION, &[]).0, NtStatus::SUCCESS);
    let (status, answer) = guest.ask(&mut open, Operation::QUERY_PROTOCOL_VERSION, &[9, 9]);
    assert_eq!((status, &answer[..2]), (NtStatus::REVISION_MISMATCH, &[9u8, 9][..]));
    let version = Version::V6_2.0.to_le_bytes();
    let (status, _) = guest.ask(&mut open, Operation::QUERY_PROTOCOL_VERSION, &version);
    assert_eq!(status, NtStatus::SUCCESS);
    let (_, answer) = guest.ask(&mut open, Operation::QUERY_PROPERTIES, &[]);
    let (properties, _) = ChannelProperties::read_from_prefix(answer.as_slice()).unwrap();
    assert_eq!((properties.max_sub_channels, properties.flags), (3, 1));
    let parameter = NtStatus::INVALID_PARAMETER;
    assert_eq!(guest.ask(&mut open, Operation::CREATE_SUB_CHANNELS, &[4, 0]).0, parameter);
    let (status, _) = guest.ask(&mut open, Operation::CREATE_SUB_CHANNELS, &[2, 0]);
    assert_eq!(status, NtStatus::SUCCESS);
    assert_eq!(guest.message::<OfferChannel>().sub_channel_index, 1);
    assert_eq!(guest.ask(&mut open, Operation::END_INITIALIZATION, &[]).0, NtStatus::SUCCESS);
    assert_eq!(guest.ask(&mut open, Operation(99), &[]).0, NtStatus::INVALID_DEVICE_REQUEST);
    assert_eq!(guest.ask(&mut open, Operation::RESET_LUN, &[]).0, NtStatus::SUCCESS);
}

#[test]
fn disks_come_and_go() {
    let (guest, controller, device) = Guest::with_controller(1);
    let dir = tempfile::tempdir().unwrap();
    assert!(controller.add(0, disk(&dir, 1)));
    let mut open = guest.open(ChannelId(1), 0x400, RING);
    guest.initialize(&mut open);
    let read = [0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0];
    let answer = guest.scsi(&mut open, 0, &read, 4096);
    assert_eq!((answer.srb_status, answer.data_length), (SrbStatus::SUCCESS, 1024));
    assert_eq!(guest.memory.read_obj::<u64>(GuestAddress(DATA)).unwrap(), 0x0101_0101_0101_0101);

    let answer = guest.scsi(&mut open, 5, &read, 4096);
    assert_eq!(answer.srb_status, SrbStatus::INVALID_LUN.with_sense());
    assert_eq!(answer.scsi_status, ScsiStatus::CHECK_CONDITION);
    let (sense, _) = Sense::read_from_prefix(&answer.payload).unwrap();
    assert_eq!(sense.sense_key(), SenseKey::ILLEGAL_REQUEST);
    let answer = guest.scsi(&mut open, 5, &[0x12, 0, 0, 0, 96, 0], 96);
    assert_eq!((answer.srb_status, answer.data_length), (SrbStatus::SUCCESS, 96));
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 0x7f);

    assert!(controller.add(5, disk(&dir, 2)) && !controller.add(5, disk(&dir, 3)));
    let (header, _) = Header::read_from_prefix(guest.receive(&mut open).payload()).unwrap();
    assert_eq!(header.operation, Operation::ENUMERATE_BUS);
    assert_eq!(guest.scsi(&mut open, 5, &read, 4096).srb_status, SrbStatus::SUCCESS);
    let luns = guest.scsi(&mut open, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096);
    assert_eq!(luns.data_length, 24);
    let header: [u8; 8] = guest.memory.read_obj::<u64>(GuestAddress(DATA)).unwrap().to_le_bytes();
    assert_eq!(LunListHeader::read_from_bytes(&header).unwrap().length.get(), 16);
    assert!(controller.remove(5).unwrap().is_ok() && controller.remove(5).is_none());

    let report = guest.counters.report("", None).channels["scsi0"];
    assert_eq!((report.requests, report.malformed), (5, 0));
    assert_eq!(guest.counters.report("", None).vmbus_malformed, 0);
    guest.post(&MessageHeader::new(MessageType::PAUSE));
    assert_eq!(guest.counters.report("", None).vmbus_malformed, 1);
    assert!(report.host_signals > 0 && report.bytes_read >= 1024 + 96 + 24);

    // The controller goes while its channel is open, and comes again.
    guest.bus.revoke(device);
    assert_eq!(guest.message::<RescindChannelOffer>().channel_id, ChannelId(1));
    guest.bus.offer(controller.clone()).unwrap();
    guest.post(&RelidReleased { channel_id: ChannelId(1), ..RelidReleased::empty() });
    let offer = guest.message::<OfferChannel>();
    assert_ne!(offer.channel_id, ChannelId(1));
    let mut open = guest.open(offer.channel_id, 0x500, RING);
    guest.initialize(&mut open);
    assert_eq!(guest.scsi(&mut open, 0, &read, 4096).srb_status, SrbStatus::SUCCESS);
}

#[test]
fn closing_ends_the_worker_and_nonsense_does_not_end_the_host() {
    let (guest, _, _) = Guest::with_controller(0);
    let mut open = guest.open(ChannelId(1), 0x400, RING);
    guest.initialize(&mut open);
    // Too much data, no data where some is named, no memory there.
    let overrun = guest.scsi(&mut open, 0, &[0x25], 8192);
    assert_eq!(overrun.srb_status, SrbStatus::INVALID_REQUEST.with_sense());
    for payload in [&[][..], &[1, 2, 3]] {
        let packet =
            Outbound { kind: PacketType::IN_BAND, flags: 1, transaction: 0, more: &[], payload };
        assert!(open.out.put(&packet).unwrap());
    }
    open.out.commit();
    assert_eq!(guest.ask(&mut open, Operation::RESET_BUS, &[]).0, NtStatus::SUCCESS);
    // An index beyond the ring: the worker gives up, and still closes.
    guest.memory.write_obj(u32::MAX, GuestAddress(0x40_0000)).unwrap();
    guest.signal(ChannelId(1));
    guest.post(&CloseChannel { channel_id: ChannelId(1), ..CloseChannel::empty() });
    let gpadl_id = GpadlId(0x400);
    guest.post(&GpadlTeardown { channel_id: ChannelId(1), gpadl_id, ..GpadlTeardown::empty() });
    assert_eq!(guest.message::<GpadlTorndown>().gpadl_id, gpadl_id);
    assert!(guest.counters.report("", None).channels["scsi0"].malformed >= 3);
    guest.memory.write_slice(&[0; 4096], GuestAddress(0x40_0000)).unwrap();
    let mut open = guest.open(ChannelId(1), 0x400, RING);
    guest.initialize(&mut open);
}

/// A device of an IDE controller has a channel of its own, by which a guest knows which it is.
#[test]
fn an_ide_device() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new(|memory, bus, _| {
        let controller = Controller::ide(1, 1, memory, false);
        assert!(controller.add(0, disk(&dir, 7)));
        bus.offer(Arc::new(controller)).unwrap();
    });
    let offer = guest.message::<OfferChannel>();
    assert_eq!(offer.interface_type, IDE_CLASS);
    let instance = "00000001-0001-8899-0000-000000000000";
    assert_eq!(Some(offer.interface_instance), Guid::parse(instance));
    assert_eq!(offer.user_defined.0[..12], [0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 0, 0]);
    let mut open = guest.open(offer.channel_id, 0x400, RING);
    guest.initialize(&mut open);
    let read = [0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0];
    // The device is the target; the path is what the guest likes.
    for path in [0, 1] {
        let answer = guest.scsi_at(&mut open, (path, 1, 0), &read, 4096);
        assert_eq!((answer.srb_status, answer.data_length), (SrbStatus::SUCCESS, 1024));
    }
    for nobody in [(0, 0, 0), (0, 1, 1)] {
        let answer = guest.scsi_at(&mut open, nobody, &read, 4096);
        assert_eq!(answer.srb_status, SrbStatus::INVALID_LUN.with_sense());
    }
    let report = guest.counters.report("", None).channels["ide1-1"];
    assert_eq!((report.requests, report.malformed), (4, 0));
}
