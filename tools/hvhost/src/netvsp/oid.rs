//! The objects of a card: their values, and what setting them does.

use crate::net::Mac;
use crate::net::frame::{ETHERNET_BYTES, VLAN_TAG_BYTES};
use crate::netvsp::control::{Control, Scaling};
use crate::netvsp::packet::part;
use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumFlags, ChecksumOffload, ChecksumSetting, ENCAPSULATION_8023, ENCAPSULATION_8023PQ_OOB,
    LargeSendV1, LargeSendV2, LinkSpeed, LinkState, ObjectHeader, ObjectType, Offload,
    OffloadEncapsulation, OffloadParameters, RSS_TABLE_ENTRIES, RssCapabilities, RssParameters,
    Setting,
};
use hv_abi::netvsc::nvsp::Version;
use hv_abi::netvsc::rndis::{ConfigParameter, MacOptions, MediaState, PacketFilter, Status};
use std::sync::atomic::Ordering::Relaxed;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What the link is said to be.
const LINK_BPS: u64 = 10_000_000_000;
/// Groups a guest may list.
const GROUPS_MAX: usize = 64;
/// Largest packet that is cut up, as Hyper-V has it.
const LARGE_SEND_BYTES: u32 = 62_780;
/// Microsoft's, as the addresses made here.
const VENDOR_ID: u32 = 0x0000_155d;
/// Objects that can only be set.
const SET_ONLY: [Oid; 3] = [
    Oid::TCP_OFFLOAD_PARAMETERS,
    Oid::GEN_RNDIS_CONFIG_PARAMETER,
    Oid::GEN_NETWORK_LAYER_ADDRESSES,
];

fn word(value: u32) -> Option<Vec<u8>> {
    Some(value.to_le_bytes().to_vec())
}

/// A statistic: 64 bits where the query has room for so many, else 32.
fn count(value: u64, input: &[u8]) -> Option<Vec<u8>> {
    // Truncated on purpose: such counters wrap.
    if input.len() >= 8 { Some(value.to_le_bytes().to_vec()) } else { word(value as u32) }
}

fn cut(bytes: &[u8], size: usize) -> Vec<u8> {
    bytes.get(..size).unwrap_or(bytes).to_vec()
}

impl Control {
    /// Value of an object; `input` came with the query. `None`: there is none.
    pub(super) fn query(&self, oid: Oid, input: &[u8]) -> Option<Vec<u8>> {
        let mtu = u32::from(self.card.mtu);
        let frame = mtu + ETHERNET_BYTES as u32;
        match oid {
            Oid::GEN_SUPPORTED_LIST => {
                let there = |oid: &&Oid| {
                    // Not asked for its own value, which would have no end.
                    **oid == Oid::GEN_SUPPORTED_LIST
                        || SET_ONLY.contains(oid)
                        || self.query(**oid, &[]).is_some()
                };
                Some(Oid::ALL.iter().filter(there).flat_map(|oid| oid.0.to_le_bytes()).collect())
            }
            Oid::GEN_HARDWARE_STATUS
            | Oid::GEN_MEDIA_SUPPORTED
            | Oid::GEN_MEDIA_IN_USE
            | Oid::GEN_PHYSICAL_MEDIUM
            | Oid::GEN_PROTOCOL_OPTIONS
            | Oid::GEN_INTERRUPT_MODERATION
            | Oid::GEN_VLAN_ID
            | Oid::IEEE_802_3_MAC_OPTIONS => word(0),
            Oid::GEN_MAXIMUM_LOOKAHEAD | Oid::GEN_MAXIMUM_FRAME_SIZE => word(mtu),
            Oid::GEN_CURRENT_LOOKAHEAD => word(self.lookahead),
            Oid::GEN_LINK_SPEED => word((LINK_BPS / 100) as u32),
            Oid::GEN_TRANSMIT_BLOCK_SIZE
            | Oid::GEN_RECEIVE_BLOCK_SIZE
            | Oid::GEN_MAXIMUM_TOTAL_SIZE => word(frame),
            Oid::GEN_TRANSMIT_BUFFER_SPACE | Oid::GEN_RECEIVE_BUFFER_SPACE => word(frame * 256),
            Oid::GEN_VENDOR_ID => word(VENDOR_ID),
            Oid::GEN_VENDOR_DESCRIPTION => Some(b"Pontoon network adapter\0".to_vec()),
            Oid::GEN_VENDOR_DRIVER_VERSION => word(0x0001_0000),
            Oid::GEN_DRIVER_VERSION => {
                let (major, minor) = self.version.ndis();
                Some(vec![minor as u8, major as u8])
            }
            Oid::GEN_CURRENT_PACKET_FILTER => word(self.filter.0),
            Oid::GEN_MAC_OPTIONS => word(
                MacOptions::COPY_LOOKAHEAD_DATA
                    | MacOptions::TRANSFERS_NOT_PEND
                    | MacOptions::NO_LOOPBACK
                    | MacOptions::IEEE_8021P_PRIORITY
                    | MacOptions::IEEE_8021Q_VLAN,
            ),
            Oid::GEN_MEDIA_CONNECT_STATUS => word(match self.link_up {
                true => MediaState::CONNECTED.0,
                false => MediaState::DISCONNECTED.0,
            }),
            Oid::GEN_MAXIMUM_SEND_PACKETS => word(u32::MAX),
            Oid::GEN_MAX_LINK_SPEED => {
                Some(LinkSpeed { xmit_bps: LINK_BPS, rcv_bps: LINK_BPS }.as_bytes().to_vec())
            }
            Oid::GEN_LINK_STATE => Some(self.link_state().as_bytes().to_vec()),
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => self.rss_capabilities(input),
            Oid::GEN_RECEIVE_SCALE_PARAMETERS => self.rss_parameters(),
            Oid::IEEE_802_3_PERMANENT_ADDRESS => Some(self.card.mac.0.to_vec()),
            Oid::IEEE_802_3_CURRENT_ADDRESS => Some(self.mac.0.to_vec()),
            Oid::IEEE_802_3_MULTICAST_LIST => Some(self.groups.iter().flat_map(|m| m.0).collect()),
            Oid::IEEE_802_3_MAXIMUM_LIST_SIZE => word(GROUPS_MAX as u32),
            Oid::OFFLOAD_ENCAPSULATION => Some(
                OffloadEncapsulation {
                    header: header(
                        ObjectType::OFFLOAD_ENCAPSULATION,
                        1,
                        size_of::<OffloadEncapsulation>(),
                    ),
                    ipv4_enabled: Setting::ENABLED.0.into(),
                    ipv4_encapsulation: ENCAPSULATION_8023,
                    ipv4_header_bytes: 0,
                    ipv6_enabled: Setting::ENABLED.0.into(),
                    ipv6_encapsulation: ENCAPSULATION_8023,
                    ipv6_header_bytes: 0,
                }
                .as_bytes()
                .to_vec(),
            ),
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
                Some(self.offload(input, [true; 5], [true; 5], [true; 3]))
            }
            Oid::TCP_OFFLOAD_CURRENT_CONFIG => {
                let r = self.receives;
                let receives = [r.ipv4, r.tcp_ipv4, r.udp_ipv4, r.tcp_ipv6, r.udp_ipv6];
                let transmits = self.transmits;
                Some(self.offload(input, transmits.checksums, receives, transmits.segments))
            }
            other => count(self.statistic(other)?, input),
        }
    }

    fn statistic(&self, oid: Oid) -> Option<u64> {
        let c = &self.card.counters;
        let (sent, received) = (&c.sent, &c.received);
        Some(match oid {
            Oid::GEN_XMIT_OK => sent.frames(),
            Oid::GEN_RCV_OK => received.frames(),
            Oid::GEN_XMIT_ERROR => c.sent_malformed.load(Relaxed),
            Oid::GEN_RCV_ERROR => c.unfit.load(Relaxed),
            Oid::GEN_RCV_NO_BUFFER | Oid::GEN_RCV_DISCARDS => c.no_room.load(Relaxed),
            Oid::GEN_XMIT_DISCARDS => c.sent_dropped.load(Relaxed),
            Oid::GEN_DIRECTED_BYTES_XMIT => sent.directed.bytes.load(Relaxed),
            Oid::GEN_DIRECTED_FRAMES_XMIT => sent.directed.frames.load(Relaxed),
            Oid::GEN_MULTICAST_BYTES_XMIT => sent.multicast.bytes.load(Relaxed),
            Oid::GEN_MULTICAST_FRAMES_XMIT => sent.multicast.frames.load(Relaxed),
            Oid::GEN_BROADCAST_BYTES_XMIT => sent.broadcast.bytes.load(Relaxed),
            Oid::GEN_BROADCAST_FRAMES_XMIT => sent.broadcast.frames.load(Relaxed),
            Oid::GEN_DIRECTED_BYTES_RCV => received.directed.bytes.load(Relaxed),
            Oid::GEN_DIRECTED_FRAMES_RCV => received.directed.frames.load(Relaxed),
            Oid::GEN_MULTICAST_BYTES_RCV => received.multicast.bytes.load(Relaxed),
            Oid::GEN_MULTICAST_FRAMES_RCV => received.multicast.frames.load(Relaxed),
            Oid::GEN_BROADCAST_BYTES_RCV => received.broadcast.bytes.load(Relaxed),
            Oid::GEN_BROADCAST_FRAMES_RCV => received.broadcast.frames.load(Relaxed),
            Oid::GEN_BYTES_RCV => received.bytes(),
            Oid::GEN_BYTES_XMIT => sent.bytes(),
            Oid::GEN_RCV_CRC_ERROR
            | Oid::GEN_TRANSMIT_QUEUE_LENGTH
            | Oid::IEEE_802_3_RCV_ERROR_ALIGNMENT
            | Oid::IEEE_802_3_XMIT_ONE_COLLISION
            | Oid::IEEE_802_3_XMIT_MORE_COLLISIONS => 0,
            _ => return None,
        })
    }

    fn link_state(&self) -> LinkState {
        LinkState {
            header: header(ObjectType::DEFAULT, 1, size_of::<LinkState>()),
            connect_state: if self.link_up {
                LinkState::CONNECTED
            } else {
                LinkState::DISCONNECTED
            },
            duplex_state: LinkState::FULL_DUPLEX,
            xmit_speed_bps: LINK_BPS,
            rcv_speed_bps: LINK_BPS,
            ..LinkState::new_zeroed()
        }
    }

    fn rss_capabilities(&self, input: &[u8]) -> Option<Vec<u8>> {
        if !self.version.has_sub_channels() {
            return None;
        }
        let asked = ObjectHeader::read_from_prefix(input).map_or(2, |(header, _)| header.revision);
        let size = if asked < 2 { RssCapabilities::BYTES_1 } else { RssCapabilities::BYTES_2 };
        let capabilities = RssCapabilities {
            header: header(ObjectType::RSS_CAPABILITIES, asked.clamp(1, 2), size),
            flags: RssCapabilities::HASH_TCP_IPV4
                | RssCapabilities::HASH_TCP_IPV6
                | RssCapabilities::HASH_UDP_IPV4
                | RssCapabilities::HASH_UDP_IPV6,
            interrupt_messages: u32::from(self.card.channels),
            receive_queues: u32::from(self.card.channels),
            table_entries: RSS_TABLE_ENTRIES as u16,
            reserved: 0,
        };
        Some(cut(capabilities.as_bytes(), size))
    }

    fn rss_parameters(&self) -> Option<Vec<u8>> {
        if !self.version.has_sub_channels() {
            return None;
        }
        let Scaling { on, hash, key, table } = &self.scaling;
        let begin = RssParameters::BYTES_2;
        let parameters = RssParameters {
            header: header(ObjectType::RSS_PARAMETERS, 2, begin),
            flags: if *on { 0 } else { RssParameters::DISABLE },
            hash: *hash,
            table_bytes: (table.len() * 4) as u16,
            table_offset: begin as u32,
            key_bytes: key.len() as u16,
            key_offset: (begin + table.len() * 4) as u32,
            ..RssParameters::new_zeroed()
        };
        let mut bytes = parameters.as_bytes().to_vec();
        bytes.extend(table.iter().flat_map(|channel| u32::from(*channel).to_le_bytes()));
        bytes.extend(key);
        Some(bytes)
    }

    /// Offloads: made checksums (IPv4's header, TCP and UDP over IPv4, over IPv6), known
    /// ones, segmentation (version 1, 2 of IPv4, of IPv6).
    fn offload(
        &self,
        input: &[u8],
        made: [bool; 5],
        known: [bool; 5],
        cut_up: [bool; 3],
    ) -> Vec<u8> {
        let latest = if self.version >= Version::V5 {
            3
        } else if self.version >= Version::V4 {
            2
        } else {
            1
        };
        let asked = ObjectHeader::read_from_prefix(input);
        let revision = asked.map_or(latest, |(header, _)| header.revision.clamp(1, latest));
        let size = match revision {
            1 => Offload::BYTES_1,
            2 => Offload::BYTES_2,
            _ => Offload::BYTES_3,
        };
        let flags = |ip, tcp, udp| {
            use ChecksumFlags as F;
            let part = |on, bits| if on { bits } else { 0 };
            F(part(ip, F::IP | F::IP_OPTIONS)
                | part(tcp, F::TCP | F::TCP_OPTIONS | F::IP_OPTIONS)
                // Before version 5 there was none of UDP.
                | part(udp && latest >= 3, F::UDP))
        };
        let frames = ENCAPSULATION_8023 | ENCAPSULATION_8023PQ_OOB;
        let if_on = |on: bool, value: u32| if on { value } else { 0 };
        let [lso_v1, lso_ipv4, lso_ipv6] = cut_up;
        let offload = Offload {
            header: header(ObjectType::OFFLOAD, revision, size),
            checksum: ChecksumOffload {
                ipv4_tx_encapsulation: frames,
                ipv4_tx: flags(made[0], made[1], made[2]),
                ipv4_rx_encapsulation: frames,
                ipv4_rx: flags(known[0], known[1], known[2]),
                ipv6_tx_encapsulation: frames,
                ipv6_tx: flags(false, made[3], made[4]),
                ipv6_rx_encapsulation: frames,
                ipv6_rx: flags(false, known[3], known[4]),
            },
            lso_v1: LargeSendV1 {
                encapsulation: if_on(lso_v1, frames),
                max_bytes: if_on(lso_v1, LARGE_SEND_BYTES),
                min_segments: if_on(lso_v1, 2),
                // TCP's and IP's options.
                options: if_on(lso_v1, 0x5),
            },
            lso_v2: LargeSendV2 {
                ipv4_encapsulation: if_on(lso_ipv4, frames),
                ipv4_max_bytes: if_on(lso_ipv4, LARGE_SEND_BYTES),
                ipv4_min_segments: if_on(lso_ipv4, 2),
                ipv6_encapsulation: if_on(lso_ipv6, frames),
                ipv6_max_bytes: if_on(lso_ipv6, LARGE_SEND_BYTES),
                ipv6_min_segments: if_on(lso_ipv6, 2),
                ipv6_options: if_on(
                    lso_ipv6,
                    LargeSendV2::IPV6_EXTENSIONS | LargeSendV2::IPV6_TCP_OPTIONS,
                ),
            },
            ..Offload::new_zeroed()
        };
        cut(offload.as_bytes(), size)
    }

    /// Sets an object.
    pub(super) fn set(&mut self, oid: Oid, value: &[u8]) -> Status {
        let number = u32::read_from_prefix(value).map(|(number, _)| number);
        match (oid, number) {
            (Oid::GEN_CURRENT_PACKET_FILTER, Ok(filter)) => self.filter = PacketFilter(filter),
            (Oid::GEN_CURRENT_LOOKAHEAD, Ok(bytes)) => {
                self.lookahead = bytes.min(u32::from(self.card.mtu));
            }
            (Oid::GEN_PROTOCOL_OPTIONS, Ok(_)) => {}
            (
                Oid::GEN_CURRENT_PACKET_FILTER
                | Oid::GEN_CURRENT_LOOKAHEAD
                | Oid::GEN_PROTOCOL_OPTIONS,
                Err(_),
            ) => {
                return Status::INVALID_LENGTH;
            }
            // For cards that do things the network layer cares about.
            (
                Oid::GEN_NETWORK_LAYER_ADDRESSES
                | Oid::OFFLOAD_ENCAPSULATION
                | Oid::GEN_LINK_PARAMETERS,
                _,
            ) => {}
            (Oid::IEEE_802_3_MULTICAST_LIST, _) => {
                let (macs, rest) = value.as_chunks::<6>();
                if !rest.is_empty() {
                    return Status::INVALID_LENGTH;
                }
                if macs.len() > GROUPS_MAX {
                    return Status::MULTICAST_FULL;
                }
                self.groups = macs.iter().map(|mac| Mac(*mac)).collect();
            }
            (Oid::GEN_RNDIS_CONFIG_PARAMETER, _) => return self.configure(value),
            (Oid::TCP_OFFLOAD_PARAMETERS, _) => return self.set_offloads(value),
            (Oid::GEN_RECEIVE_SCALE_PARAMETERS, _) if self.version.has_sub_channels() => {
                return self.scale(value).err().unwrap_or(Status::SUCCESS);
            }
            _ => return Status::NOT_SUPPORTED,
        }
        Status::SUCCESS
    }

    /// The one parameter there is: another address.
    fn configure(&mut self, value: &[u8]) -> Status {
        let text = |offset, length| -> Option<String> {
            let (units, rest) = part(value, offset, length)?.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
            let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
            rest.is_empty().then(|| text.trim_end_matches('\0').to_owned())
        };
        let Ok((p, _)) = ConfigParameter::read_from_prefix(value) else {
            return Status::INVALID_LENGTH;
        };
        let (name, digits) =
            (text(p.name_offset, p.name_length), text(p.value_offset, p.value_length));
        let (Some(name), Some(digits)) = (name, digits) else { return Status::INVALID_DATA };
        if name != "NetworkAddress" || p.parameter_type != ConfigParameter::STRING {
            return Status::NOT_SUPPORTED;
        }
        let number = (digits.len() == 12).then(|| u64::from_str_radix(&digits, 16).ok()).flatten();
        let mac = number.and_then(|number| number.to_be_bytes().last_chunk().copied()).map(Mac);
        match mac.filter(|mac| !mac.is_multicast() && *mac != Mac::default()) {
            Some(mac) => {
                self.mac = mac;
                Status::SUCCESS
            }
            None => Status::INVALID_DATA,
        }
    }

    fn set_offloads(&mut self, value: &[u8]) -> Status {
        if value.len() < OffloadParameters::BYTES_1 {
            return Status::INVALID_LENGTH;
        }
        let mut p = OffloadParameters::new_zeroed();
        for (to, from) in p.as_mut_bytes().iter_mut().zip(value) {
            *to = *from;
        }
        if p.header.object_type != ObjectType::DEFAULT {
            return Status::INVALID_DATA;
        }
        let r = &mut self.receives;
        let receives =
            [&mut r.ipv4, &mut r.tcp_ipv4, &mut r.udp_ipv4, &mut r.tcp_ipv6, &mut r.udp_ipv6];
        let settings = [
            p.ipv4_checksum,
            p.tcp_ipv4_checksum,
            p.udp_ipv4_checksum,
            p.tcp_ipv6_checksum,
            p.udp_ipv6_checksum,
        ];
        for ((setting, known), made) in
            settings.into_iter().zip(receives).zip(&mut self.transmits.checksums)
        {
            (*made, *known) = match setting {
                ChecksumSetting::DISABLED => (false, false),
                ChecksumSetting::TX => (true, false),
                ChecksumSetting::RX => (false, true),
                ChecksumSetting::TX_RX => (true, true),
                _ => (*made, *known),
            };
        }
        let settings = [p.lso_v1, p.lso_v2_ipv4, p.lso_v2_ipv6];
        for (setting, on) in settings.into_iter().zip(&mut self.transmits.segments) {
            *on = match setting {
                Setting::DISABLED => false,
                Setting::ENABLED => true,
                _ => *on,
            };
        }
        Status::SUCCESS
    }

    fn scale(&mut self, value: &[u8]) -> Result<(), Status> {
        if value.len() < RssParameters::BYTES_1 {
            return Err(Status::INVALID_LENGTH);
        }
        let mut p = RssParameters::new_zeroed();
        for (to, from) in p.as_mut_bytes().iter_mut().zip(value) {
            *to = *from;
        }
        if p.header.object_type != ObjectType::RSS_PARAMETERS {
            return Err(Status::INVALID_DATA);
        }
        let unchanged = |flag| p.flags & flag != 0;
        let mut scaling = self.scaling.clone();
        scaling.on = !unchanged(RssParameters::DISABLE);
        if !unchanged(RssParameters::HASH_UNCHANGED) {
            scaling.hash = p.hash;
        }
        // One that is switched off needs neither key nor table.
        if scaling.on && !unchanged(RssParameters::KEY_UNCHANGED) {
            let key =
                part(value, p.key_offset, p.key_bytes.into()).ok_or(Status::INVALID_LENGTH)?;
            scaling.key = key.try_into().map_err(|_| Status::INVALID_LENGTH)?;
        }
        if scaling.on && !unchanged(RssParameters::TABLE_UNCHANGED) {
            let table =
                part(value, p.table_offset, p.table_bytes.into()).ok_or(Status::INVALID_LENGTH)?;
            let (entries, rest) = table.as_chunks::<4>();
            let good = (1..=RSS_TABLE_ENTRIES).contains(&entries.len()) && rest.is_empty();
            if !good || !entries.len().is_power_of_two() {
                return Err(Status::INVALID_LENGTH);
            }
            let channel = |entry: &[u8; 4]| {
                let channel = u16::try_from(u32::from_le_bytes(*entry)).ok()?;
                (channel < self.card.channels).then_some(channel)
            };
            let table: Option<Vec<u16>> = entries.iter().map(channel).collect();
            scaling.table = table.ok_or(Status::INVALID_DATA)?;
        }
        self.scaling = scaling;
        Ok(())
    }
}

fn header(object_type: ObjectType, revision: u8, size: usize) -> ObjectHeader {
    ObjectHeader { object_type, revision, size: size as u16 }
}

/// Longest frame of a card, a tag included.
#[must_use]
pub fn frame_bytes(mtu: u16) -> usize {
    usize::from(mtu) + ETHERNET_BYTES + VLAN_TAG_BYTES
}
