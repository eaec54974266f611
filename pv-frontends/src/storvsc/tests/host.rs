//! A storage host with media in memory.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::scsi::{AdditionalSense, Opcode, ScsiStatus, Sense, SenseKey};
use hv_abi::storvsc::{
    ChannelProperties, Header, NtStatus, Operation, ProtocolVersion, ScsiRequest, SrbStatus,
    Version,
};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::packet::{GpaDirectHeader, PacketType};
use hv_abi::vmbus::{ChannelId, ControlMessage, GpaRange, RescindChannelOffer};
use translate::platform::PageWords;
use zerocopy::{FromBytes, FromZeros, IntoBytes, transmute};

use crate::vmbus::fake::{Fake, Server};
use crate::vmbus::ring::{ControlWord, RingMemory};
use crate::vmbus::{External, OutPacket, PageSpan, VmBus};

/// What is wrong with the next command that moves blocks.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Sense(SenseKey, AdditionalSense),
    Busy,
    /// Fewer bytes than asked for.
    Short(u32),
    /// An answer that is none.
    Garbage,
    /// No answer.
    Keep,
}

/// A medium.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    pub data: Vec<u8>,
    sectors: u64,
    pub block_bytes: u32,
    pub write_protected: bool,
    pub capacity_10_only: bool,
    pub no_pages: bool,
    pub name: u8,
    pub unmapped: Vec<(u64, u32)>,
    is_cdrom: bool,
    attention: bool,
}

impl Medium {
    pub(super) fn disk(blocks: u64) -> Self {
        Self {
            data: vec![0; (blocks.min(8192) * 512) as usize],
            sectors: blocks,
            block_bytes: 512,
            write_protected: false,
            capacity_10_only: false,
            no_pages: false,
            name: 0,
            unmapped: Vec::new(),
            is_cdrom: false,
            attention: true,
        }
    }

    pub(super) fn cdrom() -> Self {
        Self { is_cdrom: true, ..Self::disk(0) }
    }

    pub(super) fn grow(&mut self, blocks: u64) {
        self.sectors = blocks;
        self.data.resize((blocks * 512) as usize, 0);
    }
}

/// A packet of the guest's.
struct Request {
    channel: u32,
    id: u64,
    payload: Vec<u8>,
    /// Offset, bytes, pages.
    external: Option<(u32, u32, Vec<u64>)>,
}

pub(super) struct Host {
    pub server: Server,
    version: Version,
    pub media: BTreeMap<u8, Medium>,
    pub target: u8,
    pub faults: VecDeque<Fault>,
    pub no_report_luns: bool,
    pub max_sub_channels: u16,
    pub refuse_sub_channels: bool,
    /// An operation that fails.
    pub refuse: Option<Operation>,
    pub deaf_to_resets: bool,
    /// A reset is answered, the requests it is for are not.
    pub resets_nothing: bool,
    /// Commands that fail, by their byte 2, too: INQUIRY's page.
    pub failing: Vec<(Opcode, u8)>,
    /// The next answer to this command and an ENUMERATE_BUS behind it come with one signal.
    pub enumerate_behind: Option<Opcode>,
    is_silent: bool,
    /// Operations other than EXECUTE_SRB, in order.
    pub operations: Vec<u32>,
    pub commands: Vec<Opcode>,
    /// Sizes of EXECUTE_SRB packets.
    pub lengths: BTreeSet<usize>,
    pub by_channel: BTreeMap<u32, usize>,
    /// Packets found in a ring that was empty, without a signal.
    pub signals_missed: usize,
    kept: Vec<Request>,
}

impl Host {
    pub(super) fn new(fake: Fake, version: Version) -> Self {
        Self {
            server: Server::new(fake),
            version,
            media: BTreeMap::new(),
            target: 0,
            faults: VecDeque::new(),
            no_report_luns: false,
            max_sub_channels: 0,
            refuse_sub_channels: false,
            refuse: None,
            deaf_to_resets: false,
            resets_nothing: false,
            failing: Vec::new(),
            enumerate_behind: None,
            is_silent: false,
            operations: Vec::new(),
            commands: Vec::new(),
            lengths: BTreeSet::new(),
            by_channel: BTreeMap::new(),
            signals_missed: 0,
            kept: Vec::new(),
        }
    }

    /// Forgets that it was initialized.
    pub(super) fn reset(&mut self) {
        self.operations.clear();
        self.kept.clear();
        (self.deaf_to_resets, self.resets_nothing) = (false, false);
    }

    /// Works until nothing is left to do.
    pub(super) fn run(&mut self, bus: &VmBus<Fake>) {
        for _ in 0..10_000 {
            self.server.run(bus);
            let requests = self.take();
            if requests.is_empty() && self.server.fake.inner().posted.is_empty() {
                return;
            }
            for request in requests {
                self.handle(bus, request);
            }
        }
        panic!("the guest and the host go on and on");
    }

    /// Takes the packets of all channels.
    fn take(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        let signals: Vec<_> = self.server.fake.inner().signals.drain(..).collect();
        for (&id, channel) in &mut self.server.channels {
            let before = requests.len();
            let result = channel.incoming.receive(10_000, |packet| {
                let mut payload = vec![0; packet.payload_bytes()];
                packet.copy_payload(0, &mut payload);
                let external = (packet.packet_type() == PacketType::GPA_DIRECT).then(|| {
                    let header: GpaDirectHeader = transmute!(packet.header_word(0).expect("it"));
                    assert_eq!(header.range_count, 1);
                    let range: GpaRange = transmute!(packet.header_word(1).expect("a range"));
                    let pages = (0..range.pages() as usize).map(|nr| packet.header_word(2 + nr));
                    let pages = pages.map(|page| page.expect("as many as the range says"));
                    (range.byte_offset, range.byte_count, pages.collect())
                });
                if packet.packet_type() != PacketType::COMPLETION {
                    assert!(packet.wants_completion());
                    let id = packet.transaction_id();
                    requests.push(Request { channel: id_of(&channel.open), id, payload, external });
                }
            });
            assert!(result.is_ok());
            let connection = hv_abi::vmbus::ConnectionId::of_channel(ChannelId(id), 0, 2);
            if requests.len() > before && !signals.contains(&connection) {
                self.signals_missed += 1;
            }
        }
        requests
    }

    fn handle(&mut self, bus: &VmBus<Fake>, request: Request) {
        let (header, _) = Header::read_from_prefix(&request.payload).expect("a header");
        assert_eq!(header.flags, Header::COMPLETION_WANTED);
        if header.operation == Operation::EXECUTE_SRB {
            self.lengths.insert(request.payload.len());
            *self.by_channel.entry(request.channel).or_default() += 1;
            let channel = request.channel;
            let opcode = Some(Opcode(request.payload[12 + 16]));
            self.is_silent = opcode == self.enumerate_behind;
            self.execute(bus, request);
            if core::mem::take(&mut self.is_silent) {
                self.enumerate_behind = None;
                self.enumerate(bus, channel);
                bus.on_signal(ChannelId(channel));
            }
            return;
        }
        self.operations.push(header.operation.0);
        let body = &request.payload[12..];
        let mut answer = [0; 52];
        let mut status = NtStatus::SUCCESS;
        match header.operation {
            refused if self.refuse == Some(refused) => status = NtStatus::INVALID_PARAMETER,
            Operation::BEGIN_INITIALIZATION | Operation::END_INITIALIZATION => {}
            Operation::QUERY_PROTOCOL_VERSION => {
                let (proposed, _) = ProtocolVersion::read_from_prefix(body).expect("a version");
                if proposed.version > self.version {
                    status = NtStatus::REVISION_MISMATCH;
                }
            }
            Operation::QUERY_PROPERTIES => {
                let properties = ChannelProperties {
                    max_sub_channels: self.max_sub_channels,
                    flags: ChannelProperties::MULTI_CHANNEL,
                    max_transfer_bytes: 128 << 10,
                    ..ChannelProperties::new_zeroed()
                };
                answer[..24].copy_from_slice(properties.as_bytes());
            }
            Operation::CREATE_SUB_CHANNELS if self.refuse_sub_channels => {
                status = NtStatus::INVALID_PARAMETER;
            }
            Operation::CREATE_SUB_CHANNELS => {
                for index in 1..=u16::from(body[0]) {
                    let id = 100 + u32::from(index);
                    self.server.offer(id, interface::SCSI, 1, index);
                    self.server.announce(bus, id);
                }
            }
            Operation::RESET_BUS if self.resets_nothing => {}
            Operation::RESET_BUS => {
                if self.deaf_to_resets {
                    return;
                }
                self.answer_kept(bus);
            }
            other => panic!("{other:?}"),
        }
        self.complete(bus, request.channel, request.id, status, &answer);
    }

    /// Gives up on the requests it has kept.
    pub(super) fn answer_kept(&mut self, bus: &VmBus<Fake>) {
        for request in core::mem::take(&mut self.kept) {
            self.answer_srb(bus, &request, SrbStatus::ABORTED, ScsiStatus::GOOD, 0, None);
        }
    }

    fn complete(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        id: u64,
        status: NtStatus,
        body: &[u8],
    ) {
        let header = Header { operation: Operation::COMPLETE_IO, flags: 0, status };
        let payload = [header.as_bytes(), body].concat();
        self.complete_raw(bus, channel, id, &payload);
    }

    pub(super) fn complete_raw(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        id: u64,
        payload: &[u8],
    ) {
        self.write(bus, channel, id, true, payload);
    }

    pub(super) fn in_band_raw(&mut self, bus: &VmBus<Fake>, channel: u32, payload: &[u8]) {
        self.write(bus, channel, 0, false, payload);
    }

    fn write(&mut self, bus: &VmBus<Fake>, id: u32, tid: u64, is_completion: bool, payload: &[u8]) {
        // The guest may have closed it since.
        let Some(channel) = self.server.channels.get_mut(&id) else { return };
        let packet = OutPacket::<PageSpan> {
            transaction_id: tid,
            is_completion,
            completion_wanted: false,
            external: External::None,
            payload,
        };
        let is_due = channel.outgoing.write(&packet).expect("there is room");
        if is_due && !self.is_silent {
            bus.on_signal(ChannelId(id));
        }
    }

    /// Units came or went.
    pub(super) fn enumerate(&mut self, bus: &VmBus<Fake>, channel: u32) {
        let header = Header { operation: Operation::ENUMERATE_BUS, ..Header::new_zeroed() };
        self.in_band_raw(bus, channel, header.as_bytes());
    }

    pub(super) fn rescind(&mut self, bus: &VmBus<Fake>, id: u32) {
        self.server.offers.remove(&id);
        self.server.channels.remove(&id);
        let channel_id = ChannelId(id);
        let rescind = RescindChannelOffer { channel_id, ..RescindChannelOffer::empty() };
        bus.on_message(rescind.as_bytes());
    }

    pub(super) fn corrupt(&mut self, bus: &VmBus<Fake>, id: u32) {
        let channel = &self.server.channels[&id];
        channel.outgoing.memory().store(ControlWord::WriteIndex, 3, Ordering::Relaxed);
        bus.on_signal(ChannelId(id));
    }

    fn answer_srb(
        &mut self,
        bus: &VmBus<Fake>,
        request: &Request,
        srb_status: SrbStatus,
        scsi_status: ScsiStatus,
        data_length: u32,
        sense: Option<Sense>,
    ) {
        let body = &request.payload[12..];
        let mut whole = [0; 52];
        whole[..body.len()].copy_from_slice(body);
        let mut answer = ScsiRequest::read_from_bytes(&whole).expect("its size");
        answer.srb_status = srb_status;
        answer.scsi_status = scsi_status;
        answer.data_length = data_length;
        answer.payload = [0; 20];
        if let Some(sense) = sense {
            answer.srb_status = srb_status.with_sense();
            answer.payload[..18].copy_from_slice(sense.as_bytes());
        }
        let status = NtStatus::SUCCESS;
        let bytes = answer.as_bytes()[..body.len()].to_vec();
        self.complete(bus, request.channel, request.id, status, &bytes);
    }

    fn check(
        &mut self,
        bus: &VmBus<Fake>,
        request: &Request,
        key: SenseKey,
        code: AdditionalSense,
    ) {
        let sense = Some(Sense::new(key, code));
        let check = ScsiStatus::CHECK_CONDITION;
        self.answer_srb(bus, request, SrbStatus::ERROR, check, 0, sense);
    }

    fn good(&mut self, bus: &VmBus<Fake>, request: &Request, bytes: u32) {
        self.answer_srb(bus, request, SrbStatus::SUCCESS, ScsiStatus::GOOD, bytes, None);
    }

    fn execute(&mut self, bus: &VmBus<Fake>, request: Request) {
        let body = &request.payload[12..];
        assert_eq!(usize::from(body[0]), body.len(), "vmscsi_request.length");
        let (target, lun) = (body[6], body[7]);
        let cdb: [u8; 16] = body[16..32].try_into().expect("a command");
        let opcode = Opcode(cdb[0]);
        self.commands.push(opcode);
        if self.failing.contains(&(opcode, cdb[2])) {
            const RESERVATION_CONFLICT: ScsiStatus = ScsiStatus(0x18);
            let srb = SrbStatus::ERROR;
            return self.answer_srb(bus, &request, srb, RESERVATION_CONFLICT, 0, None);
        }
        if opcode == Opcode::REPORT_LUNS {
            if self.no_report_luns {
                let code = AdditionalSense::INVALID_COMMAND_OPERATION_CODE;
                return self.check(bus, &request, SenseKey::ILLEGAL_REQUEST, code);
            }
            let mut list = vec![0; 8 + self.media.len() * 8];
            list[..4].copy_from_slice(&(self.media.len() as u32 * 8).to_be_bytes());
            for (nr, lun) in self.media.keys().enumerate() {
                list[8 + nr * 8 + 1] = *lun;
            }
            return self.data_in(bus, &request, &list);
        }
        if target != self.target || !self.media.contains_key(&lun) {
            let none = SrbStatus::INVALID_LUN;
            return self.answer_srb(bus, &request, none, ScsiStatus::GOOD, 0, None);
        }
        let medium = self.media.get_mut(&lun).expect("there");
        if opcode != Opcode::INQUIRY && core::mem::take(&mut medium.attention) {
            let code = AdditionalSense(0x2900);
            return self.check(bus, &request, SenseKey::UNIT_ATTENTION, code);
        }
        match opcode {
            Opcode::INQUIRY => self.inquiry(bus, &request, lun, &cdb),
            Opcode::TEST_UNIT_READY if medium.is_cdrom => {
                self.check(bus, &request, SenseKey::NOT_READY, AdditionalSense::MEDIUM_NOT_PRESENT);
            }
            Opcode::TEST_UNIT_READY | Opcode::SYNCHRONIZE_CACHE_10 => self.good(bus, &request, 0),
            Opcode::SERVICE_ACTION_IN_16 if !medium.capacity_10_only => {
                let mut data = [0; 32];
                data[..8].copy_from_slice(&(medium.sectors - 1).to_be_bytes());
                data[8..12].copy_from_slice(&medium.block_bytes.to_be_bytes());
                data[13] = if medium.block_bytes == 512 { 3 } else { 0 };
                self.data_in(bus, &request, &data);
            }
            Opcode::READ_CAPACITY_10 if !medium.is_cdrom => {
                let last = u32::try_from(medium.sectors - 1).unwrap_or(u32::MAX);
                let data = [last.to_be_bytes(), medium.block_bytes.to_be_bytes()].concat();
                self.data_in(bus, &request, &data);
            }
            Opcode::MODE_SENSE_6 => {
                let protected = if medium.write_protected { 0x80 } else { 0 };
                let mut data = vec![23, 0, protected, 0, 8, 18, 4];
                data.resize(24, 0);
                self.data_in(bus, &request, &data);
            }
            Opcode::READ_10 | Opcode::WRITE_10 => self.transfer(bus, request, lun, &cdb),
            Opcode::UNMAP => self.unmap(bus, &request, lun),
            _ => {
                let code = AdditionalSense::INVALID_COMMAND_OPERATION_CODE;
                self.check(bus, &request, SenseKey::ILLEGAL_REQUEST, code);
            }
        }
    }

    fn inquiry(&mut self, bus: &VmBus<Fake>, request: &Request, lun: u8, cdb: &[u8; 16]) {
        let medium = &self.media[&lun];
        let kind = if medium.is_cdrom { 5 } else { 0 };
        if cdb[1] == 0 {
            let removable = if medium.is_cdrom { 0x80 } else { 0 };
            let mut data = vec![kind, removable, 5, 2, 31];
            data.resize(36, b' ');
            return self.data_in(bus, request, &data);
        }
        let mut page = match cdb[2] {
            0x83 => vec![1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0, medium.name],
            0xb0 => {
                let mut page = vec![0; 60];
                page[18] = 8; // 2048 blocks of UNMAP
                page[23] = 1;
                page[27] = 8;
                page[28..32].copy_from_slice(&[0x80, 0, 0, 1]);
                page
            }
            0xb1 => vec![0, 1, 0, 0],
            0xb2 => vec![0, 0x80, 2, 0],
            other => panic!("page {other:#x}"),
        };
        if medium.no_pages {
            let code = AdditionalSense::INVALID_FIELD_IN_CDB;
            return self.check(bus, request, SenseKey::ILLEGAL_REQUEST, code);
        }
        let mut data = vec![kind, cdb[2], 0, page.len() as u8];
        data.append(&mut page);
        self.data_in(bus, request, &data);
    }

    /// The pages of a request as bytes to copy to or from.
    fn memory(&self, request: &Request) -> Vec<(&'static PageWords, usize, usize)> {
        let Some((offset, bytes, pages)) = &request.external else { return Vec::new() };
        let (mut at, mut left) = (*offset as usize, *bytes as usize);
        let mut pieces = Vec::new();
        for page in pages {
            let bytes = left.min(4096 - at);
            let words = self.server.fake.page::<PageWords>(*page).expect("a page of the guest's");
            pieces.push((words, at, bytes));
            (at, left) = (0, left - bytes);
        }
        assert_eq!(left, 0);
        pieces
    }

    fn put(&self, request: &Request, data: &[u8]) -> u32 {
        let mut data = data;
        let mut done = 0;
        for (words, at, bytes) in self.memory(request) {
            let count = bytes.min(data.len());
            for (nr, byte) in data[..count].iter().enumerate() {
                let (word, shift) = (&words[(at + nr) / 8], (at + nr) % 8 * 8);
                let old = word.load(Ordering::Relaxed) & !(0xff << shift);
                word.store(old | u64::from(*byte) << shift, Ordering::Relaxed);
            }
            data = &data[count..];
            done += count as u32;
        }
        done
    }

    fn get(&self, request: &Request) -> Vec<u8> {
        let mut data = Vec::new();
        for (words, at, bytes) in self.memory(request) {
            data.extend(
                (at..at + bytes)
                    .map(|at| (words[at / 8].load(Ordering::Relaxed) >> (at % 8 * 8)) as u8),
            );
        }
        data
    }

    fn data_in(&mut self, bus: &VmBus<Fake>, request: &Request, data: &[u8]) {
        assert_eq!(request.payload[12 + 10], ScsiRequest::DATA_IN);
        let done = self.put(request, data);
        self.good(bus, request, done);
    }

    fn transfer(&mut self, bus: &VmBus<Fake>, request: Request, lun: u8, cdb: &[u8; 16]) {
        let length = u32::from_le_bytes(request.payload[24..28].try_into().expect("4"));
        assert_eq!(request.external.as_ref().map(|(_, bytes, _)| *bytes), Some(length));
        match self.faults.pop_front() {
            None => {}
            Some(Fault::Sense(key, code)) => return self.check(bus, &request, key, code),
            Some(Fault::Busy) => {
                let (srb, busy) = (SrbStatus::ERROR, ScsiStatus::BUSY);
                return self.answer_srb(bus, &request, srb, busy, 0, None);
            }
            Some(Fault::Short(bytes)) => return self.good(bus, &request, bytes),
            Some(Fault::Garbage) => {
                return self.complete_raw(bus, request.channel, request.id, &[0xff; 5]);
            }
            Some(Fault::Keep) => return self.kept.push(request),
        }
        let medium = &self.media[&lun];
        let block = medium.block_bytes as usize;
        let lba = u32::from_be_bytes(cdb[2..6].try_into().expect("4")) as usize;
        let blocks = usize::from(u16::from_be_bytes([cdb[7], cdb[8]]));
        assert_eq!(blocks * block, length as usize);
        let range = lba * block..(lba + blocks) * block;
        let is_write = cdb[0] == Opcode::WRITE_10.0;
        assert_eq!(request.payload[22], u8::from(!is_write));
        if is_write {
            let data = self.get(&request);
            self.media.get_mut(&lun).expect("there").data[range].copy_from_slice(&data);
        } else {
            let data = medium.data[range].to_vec();
            self.put(&request, &data);
        }
        self.good(bus, &request, length);
    }

    fn unmap(&mut self, bus: &VmBus<Fake>, request: &Request, lun: u8) {
        let data = self.get(request);
        assert_eq!((data.len(), &data[..4]), (24, &[0, 22, 0, 16][..]));
        let lba = u64::from_be_bytes(data[8..16].try_into().expect("8"));
        let blocks = u32::from_be_bytes(data[16..20].try_into().expect("4"));
        self.media.get_mut(&lun).expect("there").unmapped.push((lba, blocks));
        self.good(bus, request, 24);
    }
}

fn id_of(open: &hv_abi::vmbus::message::OpenChannel) -> u32 {
    open.channel_id.0
}
