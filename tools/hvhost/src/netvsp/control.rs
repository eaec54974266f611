//! RNDIS's control channel: what a guest asks of a card, and the state that follows from it.
//! No I/O: messages in, answers out.

use crate::net::Mac;
use crate::netvsp::counters::NicCounters;
use crate::netvsp::packet::{ReceiveChecksums, part, split};
use crate::netvsp::rss::{Rss, Toeplitz};
use hv_abi::netvsc::ndis::{HashInformation, RSS_KEY_BYTES};
use hv_abi::netvsc::nvsp::Version;
use hv_abi::netvsc::rndis::{
    Body, Halt, IndicateStatus, Initialize, InitializeComplete, Keepalive, KeepaliveComplete,
    MAJOR_VERSION, MINOR_VERSION, Medium, MessageType, PacketFilter, Query, QueryComplete,
    ResetComplete, Set, SetComplete, Status,
};
use std::mem::size_of;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Packets in one section, at most.
const PACKETS_MAX: u32 = 8;
/// Each begins at a multiple of 8.
const ALIGNMENT_SHIFT: u32 = 3;

/// What does not change.
#[derive(Clone, Debug)]
pub struct Card {
    /// Address it was made with.
    pub mac: Mac,
    /// Largest packet.
    pub mtu: u16,
    /// Channels it may have.
    pub channels: u16,
    /// Counters.
    pub counters: Arc<NicCounters>,
}

/// Which offloads the guest has on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmits {
    /// Checksums made: IPv4's header, TCP and UDP over IPv4, over IPv6.
    pub checksums: [bool; 5],
    /// Segmentation: version 1, version 2 of IPv4, of IPv6.
    pub segments: [bool; 3],
}

/// Receive-side scaling as set, piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// It is on.
    pub on: bool,
    /// Hash.
    pub hash: HashInformation,
    /// Key.
    pub key: [u8; RSS_KEY_BYTES],
    /// Channels; a power of two of them.
    pub table: Vec<u16>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { on: false, hash: HashInformation(0), key: [0; RSS_KEY_BYTES], table: vec![0] }
    }
}

/// State of a card since its channel was opened.
#[derive(Clone, Debug)]
pub struct Control {
    pub(super) card: Card,
    pub(super) version: Version,
    /// INITIALIZE was there.
    pub(super) ready: bool,
    pub(super) filter: PacketFilter,
    pub(super) mac: Mac,
    pub(super) groups: Vec<Mac>,
    pub(super) lookahead: u32,
    pub(super) transmits: Transmits,
    pub(super) receives: ReceiveChecksums,
    pub(super) scaling: Scaling,
    pub(super) link_up: bool,
}

/// A message with what is behind its body.
fn message<T: Body>(body: &T, more: &[u8]) -> Vec<u8> {
    let mut bytes = T::header(more.len() as u32).as_bytes().to_vec();
    bytes.extend_from_slice(body.as_bytes());
    bytes.extend_from_slice(more);
    bytes
}

impl Control {
    /// A card nobody has said anything to.
    #[must_use]
    pub fn new(card: Card, version: Version, link_up: bool) -> Self {
        let mac = card.mac;
        Self {
            card,
            version,
            ready: false,
            filter: PacketFilter(0),
            mac,
            groups: Vec::new(),
            lookahead: 0,
            transmits: Transmits::default(),
            receives: ReceiveChecksums::default(),
            scaling: Scaling::default(),
            link_up,
        }
    }

    /// Whether the guest can be told anything.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// What the guest wants to be told of checksums.
    #[must_use]
    pub fn receives(&self) -> ReceiveChecksums {
        self.receives
    }

    /// Whether frames of so many bytes to this address are received.
    #[must_use]
    pub fn wants(&self, to: Mac) -> bool {
        let has = |bit| self.filter.0 & bit != 0;
        let by_kind = match to {
            Mac::BROADCAST => has(PacketFilter::BROADCAST),
            mac if mac.is_multicast() => {
                has(PacketFilter::ALL_MULTICAST)
                    || has(PacketFilter::MULTICAST) && self.groups.contains(&mac)
            }
            mac => has(PacketFilter::DIRECTED) && mac == self.mac,
        };
        by_kind || has(PacketFilter::PROMISCUOUS)
    }

    /// Receive-side scaling, prepared for use; `None`: it is off.
    #[must_use]
    pub fn rss(&self) -> Option<Rss> {
        let Scaling { on, hash, key, table } = &self.scaling;
        let toeplitz = hash.0 & HashInformation::FUNCTION == HashInformation::TOEPLITZ;
        (*on && toeplitz).then(|| Rss {
            toeplitz: Toeplitz::new(key),
            types: *hash,
            table: table.clone(),
        })
    }

    /// Notes the link's state; the message that tells the guest, if it is to be told.
    pub fn set_link(&mut self, up: bool) -> Option<Vec<u8>> {
        let changed = std::mem::replace(&mut self.link_up, up) != up;
        let status = if up { Status::MEDIA_CONNECT } else { Status::MEDIA_DISCONNECT };
        let indication = IndicateStatus { status, length: 0, offset: 0 };
        (changed && self.ready).then(|| message(&indication, &[]))
    }

    /// Does what a message says; the answer, if it wants one. `Err`: it makes no sense.
    pub fn handle(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Nonsense> {
        let (kind, body) = split(bytes).ok_or(Nonsense)?;
        Ok(match kind {
            MessageType::INITIALIZE => Some(self.initialize(read(body)?)),
            MessageType::HALT => {
                let _: Halt = read(body)?;
                self.forget();
                None
            }
            MessageType::QUERY => {
                let query: Query = read(body)?;
                let input = part(body, query.offset, query.length).unwrap_or_default();
                let value = if self.ready {
                    self.query(query.oid, input).ok_or(Status::NOT_SUPPORTED)
                } else {
                    Err(Status::ADAPTER_NOT_READY)
                };
                Some(answer(query.request_id, value))
            }
            MessageType::SET => {
                let set: Set = read(body)?;
                let status = match part(body, set.offset, set.length) {
                    _ if !self.ready => Status::ADAPTER_NOT_READY,
                    Some(value) => self.set(set.oid, value),
                    None => Status::INVALID_LENGTH,
                };
                Some(message(&SetComplete { request_id: set.request_id, status }, &[]))
            }
            MessageType::RESET => {
                let was_ready = self.ready;
                self.forget();
                self.ready = was_ready;
                Some(message(&ResetComplete { status: Status::SUCCESS, addressing_reset: 1 }, &[]))
            }
            MessageType::KEEPALIVE => {
                let Keepalive { request_id } = read(body)?;
                let status = Status::SUCCESS;
                Some(message(&KeepaliveComplete { request_id, status }, &[]))
            }
            MessageType::KEEPALIVE_COMPLETE => None,
            _ => return Err(Nonsense),
        })
    }

    fn forget(&mut self) {
        *self = Self::new(self.card.clone(), self.version, self.link_up);
    }

    fn initialize(&mut self, asked: Initialize) -> Vec<u8> {
        let known = asked.major_version == MAJOR_VERSION;
        if known {
            self.forget();
            self.ready = true;
        }
        let complete = InitializeComplete {
            request_id: asked.request_id,
            status: if known { Status::SUCCESS } else { Status::BAD_VERSION },
            major_version: MAJOR_VERSION,
            minor_version: MINOR_VERSION,
            device_flags: InitializeComplete::CONNECTIONLESS,
            medium: Medium::IEEE_802_3,
            max_packets: PACKETS_MAX,
            max_transfer_bytes: crate::netvsp::buffers::SEND_SECTION_BYTES,
            alignment_shift: ALIGNMENT_SHIFT,
            af_list_offset: 0,
            af_list_bytes: 0,
        };
        message(&complete, &[])
    }
}

/// A message that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense;

fn read<T: FromBytes>(body: &[u8]) -> Result<T, Nonsense> {
    T::read_from_prefix(body).map(|(value, _)| value).map_err(|_| Nonsense)
}

fn answer(request_id: u32, value: Result<Vec<u8>, Status>) -> Vec<u8> {
    let status = value.as_ref().err().copied().unwrap_or(Status::SUCCESS);
    let value = value.unwrap_or_default();
    let offset = if value.is_empty() { 0 } else { size_of::<QueryComplete>() as u32 };
    let complete = QueryComplete { request_id, status, length: value.len() as u32, offset };
    message(&complete, &value)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
