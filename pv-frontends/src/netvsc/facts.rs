//! What a card is: what the host says of it, and what the backend wants of it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{Offload, RSS_TABLE_ENTRIES};
use hv_abi::netvsc::nvsp::Version;
use hv_abi::netvsc::rndis::{InitializeComplete, MediaState};
use zerocopy::{FromZeros, IntoBytes};

use super::config::{Config, MIN_MTU};
use super::frame::{ALIGN, Limits, MAX_FRAGMENTS};
use super::slots::{Pages, Sections};
use super::tx::{Session, batch_bytes};
use super::{control, cut};
use crate::net::{HASH_KEY_BYTES, HashTypes, MacAddress, NetInfo, Rss, RxFilter, TxOffloads};

/// Least bytes of a send section that are of any use.
const MIN_SECTION_BYTES: u32 = 128;
/// Largest alignment of packets in a section.
const MAX_ALIGN_SHIFT: u32 = 8;

/// What the host said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub version: Version,
    pub mac: MacAddress,
    /// Its limit of the MTU.
    pub mtu: u32,
    pub link: bool,
    pub speed_bps: u64,
    pub offload: Offload,
    pub rss_queues: u32,
    pub rss_entries: u16,
    pub send_section_bytes: u32,
    pub max_packets: u32,
    pub max_transfer_bytes: u32,
    pub align: u32,
}

impl Facts {
    pub(super) fn new() -> Self {
        Self {
            version: Version::V6_1,
            mac: MacAddress([0; 6]),
            mtu: u32::MAX,
            link: false,
            speed_bps: 0,
            offload: Offload::new_zeroed(),
            rss_queues: 1,
            rss_entries: 0,
            send_section_bytes: 0,
            max_packets: 1,
            max_transfer_bytes: 0,
            align: ALIGN,
        }
    }

    pub(super) fn initialized(&mut self, answer: &InitializeComplete) {
        self.max_packets = answer.max_packets.max(1);
        self.max_transfer_bytes = answer.max_transfer_bytes;
        self.align = 1 << answer.alignment_shift.min(MAX_ALIGN_SHIFT).max(ALIGN.ilog2());
    }

    /// The host's value of an object; `false`: one that is needed is missing, or makes no sense.
    pub(super) fn take(&mut self, oid: Oid, value: Option<&[u8]>) -> bool {
        let number = value.and_then(control::number);
        match oid {
            Oid::IEEE_802_3_PERMANENT_ADDRESS => {
                let mac = value.and_then(|v| v.first_chunk()).map(|bytes| MacAddress(*bytes));
                match mac.filter(|mac| mac.is_unicast()) {
                    Some(mac) => self.mac = mac,
                    None => return false,
                }
            }
            Oid::GEN_MAXIMUM_FRAME_SIZE => {
                self.mtu = number.filter(|mtu| *mtu >= MIN_MTU).unwrap_or(u32::MAX);
            }
            // A host that does not say has no link to lose.
            Oid::GEN_MEDIA_CONNECT_STATUS => {
                self.link = number.map(MediaState) != Some(MediaState::DISCONNECTED);
            }
            Oid::GEN_LINK_SPEED => self.speed_bps = u64::from(number.unwrap_or(0)) * 100,
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
                let offload = value.and_then(control::offload);
                self.offload = offload.unwrap_or_else(Offload::new_zeroed);
            }
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
                let rss = value.and_then(control::rss_capabilities);
                (self.rss_queues, self.rss_entries) = rss.unwrap_or((1, 0));
            }
            _ => {}
        }
        true
    }

    /// What the host does to packets.
    pub(super) fn tx(&self) -> TxOffloads {
        cut::useful(control::tx_offloads(&self.offload))
    }

    /// Which received streams can be coalesced.
    pub(super) const fn coalesce(&self) -> (bool, bool) {
        let can = self.version.has_rsc();
        (can && self.offload.rsc.ipv4 != 0, can && self.offload.rsc.ipv6 != 0)
    }

    /// What queues need to know.
    pub(super) fn session(&self, config: &Config, mtu: u32, send_pages: &Arc<Pages>) -> Session {
        let bytes = self.send_section_bytes & !(ALIGN - 1);
        let is_of_use = bytes >= MIN_SECTION_BYTES;
        let buffer = if is_of_use { send_pages.bytes() } else { 0 };
        Session {
            limits: Limits { mtu: mtu.min(self.mtu), tx: self.tx() },
            message_bytes: self.version.message_bytes(),
            max_packets: self.max_packets,
            max_batch_bytes: batch_bytes(bytes, self.max_transfer_bytes),
            align: self.align,
            copy_max_bytes: config.copy_max_bytes,
            sections: Sections::new(buffer, bytes),
            send_pages: Arc::clone(send_pages),
        }
    }

    pub(super) fn info(&self, config: &Config, mtu: u32, queues: u32) -> NetInfo {
        let (coalesce_v4, coalesce_v6) = self.coalesce();
        NetInfo {
            mac: self.mac,
            mtu: mtu.min(self.mtu),
            max_mtu: config.clamp_mtu(u32::MAX),
            link: self.link,
            speed_bps: self.speed_bps,
            queues: queues.max(1),
            max_fragments: MAX_FRAGMENTS as u16,
            tx: cut::offered(self.tx()),
            coalesce_v4,
            coalesce_v6,
            rss_entries: if self.rss_queues > 1 { self.rss_entries } else { 0 },
        }
    }
}

/// What the backend wants; it outlives the channel.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub filter: RxFilter,
    pub coalesce: (bool, bool),
    types: HashTypes,
    key: [u8; HASH_KEY_BYTES],
    /// Empty: queues in turn.
    table: Vec<u16>,
}

impl Settings {
    pub(super) const fn new() -> Self {
        Self {
            filter: RxFilter {
                directed: false,
                broadcast: false,
                all_multicast: false,
                promiscuous: false,
            },
            coalesce: (false, false),
            types: HashTypes { tcp_v4: true, v4: true, tcp_v6: true, v6: true },
            key: control::DEFAULT_KEY,
            table: Vec::new(),
        }
    }

    pub(super) fn set_rss(&mut self, rss: &Rss<'_>) {
        (self.types, self.key, self.table) = (rss.types, rss.key, rss.table.to_vec());
    }

    /// The value of the filter's object.
    pub(super) fn filter_value(&self) -> Vec<u8> {
        control::filter_bits(self.filter).as_bytes().to_vec()
    }

    /// The value of receive-side scaling's object; queues that are not open are replaced by the
    /// first.
    pub(super) fn rss_value(&self, is_open: impl Fn(u16) -> bool) -> Vec<u8> {
        let open: Vec<u16> = (0..RSS_TABLE_ENTRIES as u16).filter(|nr| is_open(*nr)).collect();
        let in_turn = || open.iter().copied().cycle().take(RSS_TABLE_ENTRIES).collect();
        let table: Vec<u16> = if self.table.is_empty() {
            in_turn()
        } else {
            self.table.iter().map(|nr| if is_open(*nr) { *nr } else { 0 }).collect()
        };
        control::rss_parameters(self.types, &self.key, &table)
    }
}
