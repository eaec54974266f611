//! Which received packets go where: groups the guest wants to hear, and the hash that chooses a
//! queue.

use arrayvec::ArrayVec;
use xen_abi::io::netif::{
    ExtraType, HashAlgorithm, HashType, NetifExtraHash, NetifExtraInfo, hash_types,
};
use zerocopy::IntoBytes;

use super::headers::{HEADER_BYTES, Headers, toeplitz};
use crate::net::{HASH_KEY_BYTES, HashTypes, RxPacket};

/// Groups a guest may ask for (`XEN_NETBK_MCAST_MAX`).
const MAX_GROUPS: usize = 64;
/// Entries of the table of queues (`XEN_NETBK_MAX_HASH_MAPPING_SIZE`).
pub(super) const MAPPING_ENTRIES: usize = 128;
/// All kinds of hash there are.
pub(super) const ALL_TYPES: u32 =
    hash_types::IPV4 | hash_types::IPV4_TCP | hash_types::IPV6 | hash_types::IPV6_TCP;

/// The hash a frontend set up.
#[derive(Clone, Debug)]
pub(super) struct Hash {
    pub(super) algorithm: HashAlgorithm,
    /// Of [`hash_types`].
    pub(super) types: u32,
    pub(super) key: [u8; HASH_KEY_BYTES],
    /// Queue for each value of the hash modulo their number; none: the hash modulo queues.
    pub(super) mapping: ArrayVec<u16, MAPPING_ENTRIES>,
}

impl Hash {
    const NONE: Self = Self {
        algorithm: HashAlgorithm::NONE,
        types: 0,
        key: [0; HASH_KEY_BYTES],
        mapping: ArrayVec::new_const(),
    };

    /// The kinds of hash as the device below has them.
    pub(super) const fn types(&self) -> HashTypes {
        HashTypes {
            tcp_v4: self.types & hash_types::IPV4_TCP != 0,
            v4: self.types & hash_types::IPV4 != 0,
            tcp_v6: self.types & hash_types::IPV6_TCP != 0,
            v6: self.types & hash_types::IPV6 != 0,
        }
    }

    fn of(&self, packet: &RxPacket<'_>) -> Option<(u32, HashType)> {
        let mut bytes = [0; HEADER_BYTES];
        let count = packet.copy(0, &mut bytes);
        let bytes = bytes.get(..count)?;
        let headers = Headers::parse(bytes)?;
        let (kind, addresses, ports) = headers.hashed(bytes, self.types())?;
        // The device's value is believed where it says that it is of the same kind.
        let value = match packet.hash {
            Some(hash) if hash.kind == Some(kind) => hash.value,
            _ => toeplitz(&self.key, addresses.iter().chain(ports)),
        };
        Some((value, type_of(kind)))
    }
}

const fn type_of(kind: HashTypes) -> HashType {
    if kind.tcp_v4 {
        HashType::IPV4_TCP
    } else if kind.v4 {
        HashType::IPV4
    } else if kind.tcp_v6 {
        HashType::IPV6_TCP
    } else {
        HashType::IPV6
    }
}

/// Everything about it.
#[derive(Clone, Debug)]
pub(super) struct Steering {
    /// Only groups that were asked for are heard.
    pub(super) multicast_control: bool,
    groups: ArrayVec<[u8; 6], MAX_GROUPS>,
    pub(super) hash: Hash,
}

/// Where a packet goes.
pub(super) enum Choice {
    /// Nowhere.
    Filtered,
    /// To this queue, or the one of the device's queue; with this extra info.
    To(Option<u16>, Option<NetifExtraInfo>),
}

impl Steering {
    pub(super) const NONE: Self =
        Self { multicast_control: false, groups: ArrayVec::new_const(), hash: Hash::NONE };

    /// Forgets what a frontend set up, but for its key: the device has that already.
    pub(super) fn reset(&mut self) {
        let key = self.hash.key;
        *self = Self::NONE;
        self.hash.key = key;
    }

    /// Whether there is anything to decide.
    pub(super) fn matters(&self) -> bool {
        self.multicast_control || self.hash.algorithm != HashAlgorithm::NONE
    }

    /// Adds a group or takes one away; `false` where there are too many. Groups added twice count
    /// twice, as in Linux.
    pub(super) fn set_group(&mut self, add: bool, group: [u8; 6]) -> bool {
        if add {
            return self.groups.try_push(group).is_ok();
        }
        if let Some(index) = self.groups.iter().position(|other| *other == group) {
            self.groups.swap_remove(index);
        }
        true
    }

    /// Where a packet goes that is for a frontend of so many queues.
    pub(super) fn choose(&self, packet: &RxPacket<'_>, queues: u16) -> Choice {
        if self.multicast_control {
            let mut to = [0; 6];
            packet.copy(0, &mut to);
            let is_group = to[0] & 1 != 0 && to != [0xff; 6];
            if is_group && !self.groups.contains(&to) {
                return Choice::Filtered;
            }
        }
        if self.hash.algorithm == HashAlgorithm::NONE {
            return Choice::To(None, None);
        }
        // What cannot be hashed has the hash 0, and no extra info.
        let hash = self.hash.of(packet);
        let value = hash.map_or(0, |(value, _)| value);
        let queue = match self.hash.mapping.len() as u32 {
            0 => (value % u32::from(queues.max(1))) as u16,
            size => self.hash.mapping.get((value % size) as usize).copied().unwrap_or(0),
        };
        let extra = hash.map(|(value, type_)| {
            let hash = NetifExtraHash {
                type_,
                algorithm: HashAlgorithm::TOEPLITZ.0 as u8,
                value: value.to_ne_bytes(),
            };
            extra(ExtraType::HASH, &hash)
        });
        Choice::To(Some(queue), extra)
    }
}

/// An extra info; `value` has its 6 bytes.
pub(super) fn extra(
    type_: ExtraType,
    value: &(impl IntoBytes + zerocopy::Immutable),
) -> NetifExtraInfo {
    let mut u = [0; 6];
    if let Some(bytes) = value.as_bytes().get(..6) {
        u.copy_from_slice(bytes);
    }
    NetifExtraInfo { type_, flags: 0, u }
}
