//! The host's side of RNDIS's conversation.

use alloc::vec::Vec;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumFlags, ENCAPSULATION_8023, LargeSendV2, ObjectHeader, ObjectType, Offload,
    OffloadParameters, RssCapabilities, RssParameters,
};
use hv_abi::netvsc::rndis::{self, MessageHeader, MessageType as RndisType};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Host, MAC, Packet, Saying};
use crate::vmbus::VmBus;
use crate::vmbus::fake::Fake;

impl Host {
    pub(super) fn control(&mut self, bus: &VmBus<Fake>, packet: &Packet, bytes: &[u8]) {
        let channel = packet.channel;
        let (header, body) = MessageHeader::read_from_prefix(bytes).expect("a header");
        assert_eq!(header.length as usize, bytes.len());
        match header.message_type {
            RndisType::INITIALIZE => {
                let request = rndis::Initialize::read_from_prefix(body).expect("it").0;
                let answer = rndis::InitializeComplete {
                    request_id: request.request_id,
                    major_version: 1,
                    device_flags: rndis::InitializeComplete::CONNECTIONLESS,
                    max_packets: self.max_packets,
                    max_transfer_bytes: 0xefff_ffff,
                    alignment_shift: self.alignment_shift,
                    ..rndis::InitializeComplete::new_zeroed()
                };
                self.reply(bus, channel, &answer, &[]);
            }
            RndisType::QUERY => {
                let query = rndis::Query::read_from_prefix(body).expect("it").0;
                let value = self.value(query.oid);
                let found = value.is_some();
                let value = value.unwrap_or_default();
                let answer = rndis::QueryComplete {
                    request_id: query.request_id,
                    status: if found {
                        rndis::Status::SUCCESS
                    } else {
                        rndis::Status::NOT_SUPPORTED
                    },
                    length: value.len() as u32,
                    offset: 16,
                };
                self.reply(bus, channel, &answer, &value);
            }
            RndisType::SET => {
                let set = rndis::Set::read_from_prefix(body).expect("it").0;
                let at = set.offset as usize;
                let value = body[at..at + set.length as usize].to_vec();
                check_set(set.oid, &value, packet.last_queue);
                self.sets.push((set.oid, value));
                let status =
                    if self.refuse_sets { rndis::Status::FAILURE } else { rndis::Status::SUCCESS };
                let answer = rndis::SetComplete { request_id: set.request_id, status };
                self.reply(bus, channel, &answer, &[]);
            }
            RndisType::KEEPALIVE_COMPLETE => {
                let answer = rndis::KeepaliveComplete::read_from_prefix(body).expect("it").0;
                self.replies.push(answer.request_id);
            }
            RndisType::HALT => {}
            other => panic!("{other:?}"),
        }
    }

    fn value(&self, oid: Oid) -> Option<Vec<u8>> {
        Some(match oid {
            Oid::IEEE_802_3_PERMANENT_ADDRESS => MAC.to_vec(),
            Oid::GEN_MAXIMUM_FRAME_SIZE => {
                let mtu = self.config.map_or(1500, |config| config.mtu - 14);
                mtu.min(self.mtu).to_le_bytes().to_vec()
            }
            Oid::GEN_MEDIA_CONNECT_STATUS => u32::from(!self.link).to_le_bytes().to_vec(),
            Oid::GEN_LINK_SPEED => 100_000_000u32.to_le_bytes().to_vec(),
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES if self.offloads => {
                let mut offload = Offload::new_zeroed();
                offload.header = ObjectHeader {
                    object_type: ObjectType::OFFLOAD,
                    revision: 3,
                    size: Offload::BYTES_3 as u16,
                };
                offload.checksum.ipv4_tx = ChecksumFlags(0x155);
                offload.checksum.ipv6_tx = ChecksumFlags(0x55);
                offload.lso_v2 = LargeSendV2 {
                    ipv4_encapsulation: ENCAPSULATION_8023,
                    ipv4_max_bytes: 0xf53c,
                    ipv4_min_segments: 2,
                    ipv6_encapsulation: ENCAPSULATION_8023,
                    ipv6_max_bytes: 0xf53c,
                    ipv6_min_segments: 2,
                    ipv6_options: 5,
                };
                (offload.rsc.ipv4, offload.rsc.ipv6) = (1, 1);
                offload.as_bytes().to_vec()
            }
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES if self.rss_queues > 1 => {
                let mut rss = RssCapabilities::new_zeroed();
                rss.header = ObjectHeader {
                    object_type: ObjectType::RSS_CAPABILITIES,
                    revision: 2,
                    size: RssCapabilities::BYTES_2 as u16,
                };
                (rss.receive_queues, rss.table_entries) = (self.rss_queues, 128);
                rss.as_bytes()[..RssCapabilities::BYTES_2].to_vec()
            }
            _ => return None,
        })
    }

    fn reply<T: rndis::Body + Immutable>(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        body: &T,
        value: &[u8],
    ) {
        let header = T::header(value.len() as u32);
        let mut message = [header.as_bytes(), body.as_bytes(), value].concat();
        self.twist(&mut message);
        self.say(bus, channel, Saying::Message(message));
    }

    /// Says something of itself.
    pub fn indicate(&mut self, bus: &VmBus<Fake>, status: rndis::Status, value: &[u8]) {
        let length = value.len() as u32;
        let body = rndis::IndicateStatus { status, length, offset: 12 };
        self.reply(bus, self.primary, &body, value);
    }

    pub fn keepalive(&mut self, bus: &VmBus<Fake>, request_id: u32) {
        self.reply(bus, self.primary, &rndis::Keepalive { request_id }, &[]);
    }
}

/// A setting is whole; the queues of a table are open.
fn check_set(oid: Oid, value: &[u8], last_queue: u16) {
    match oid {
        Oid::TCP_OFFLOAD_PARAMETERS => {
            let set = OffloadParameters::read_from_bytes(value).expect("whole");
            assert_eq!((set.header.revision, set.header.size), (3, 28));
        }
        Oid::GEN_RECEIVE_SCALE_PARAMETERS => {
            let rss = RssParameters::read_from_prefix(value).expect("whole").0;
            assert_eq!(value.len(), 40 + 512 + 40);
            assert_eq!((rss.table_offset, rss.key_offset), (40, 552));
            assert!(rss_table(value).iter().all(|queue| *queue <= u32::from(last_queue)));
        }
        _ => assert_eq!(value.len(), 4),
    }
}

/// The queues of a receive-side scaling object's table.
pub fn rss_table(value: &[u8]) -> Vec<u32> {
    let entries = value[40..552].chunks(4);
    entries.map(|entry| u32::from_le_bytes(entry.try_into().expect("4"))).collect()
}
