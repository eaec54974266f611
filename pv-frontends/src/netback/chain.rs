//! Taking packets out of the ring a guest sends on.
//!
//! As Linux's netback reads it (`xenvif_tx_build_gops`): what a frontend may get wrong costs it
//! the packet; what only a broken or hostile one does ([`Fatal`]) costs it the device.

use arrayvec::ArrayVec;
use xen_abi::PAGE_SIZE;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraType, GsoType, NR_SLOTS_MIN, NetifExtraGso, NetifExtraHash,
    NetifExtraInfo, NetifTxRequest, txf,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::net::ETHERNET_HEADER_BYTES;
use crate::ring::{BackRing, Bogus, RingMemory};

/// Words of an entry.
pub(super) const TX_WORDS: usize = size_of::<NetifTxRequest>() / 4;
/// Slots behind the first at which a frontend is taken for hostile (`fatal_skb_slots`).
const FATAL_SLOTS: usize = 20;
/// Slots of a packet: those Linux takes.
pub(super) const MAX_SLOTS: usize = 1 + NR_SLOTS_MIN;

/// The frontend cannot be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// Ring indices that cannot be.
    Indices,
    /// An extra info was announced and is not there.
    MissingExtra,
    /// An extra info of no known type.
    ExtraType,
    /// More of a packet was announced and is not there.
    MissingSlots,
    /// A packet in more slots than even a sloppy frontend makes.
    TooManySlots,
    /// A part of a packet leaves its page.
    CrossesPage,
    /// Segmentation into nothing.
    GsoSize,
    /// Segmentation of an unknown kind.
    GsoType,
}

impl From<Bogus> for Fatal {
    fn from(_: Bogus) -> Self {
        Self::Indices
    }
}

/// What a packet's entries say. Sizes are each slot's own.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) slots: ArrayVec<NetifTxRequest, { 1 + FATAL_SLOTS }>,
    /// Extra infos behind the first slot.
    pub(super) extras: u16,
    pub(super) gso: Option<NetifExtraGso>,
    pub(super) hash: Option<NetifExtraHash>,
}

/// What was taken.
#[derive(Clone, Debug)]
pub(super) enum Taken {
    /// A packet.
    Packet(Chain),
    /// One that is to be answered with an error.
    Bad(Chain),
    /// A request to hear a group, or no longer.
    Multicast { chain: Chain, add: bool, group: [u8; 6] },
}

/// Reads the head of an entry as a wire structure.
fn view<T: FromBytes + Immutable>(entry: &[u32; TX_WORDS]) -> Result<T, Fatal> {
    T::read_from_prefix(entry.as_bytes()).map(|(value, _)| value).map_err(|_| Fatal::Indices)
}

struct Reader<'a, M> {
    ring: &'a mut BackRing<M>,
    left: u32,
}

impl<M: RingMemory> Reader<'_, M> {
    fn next<T: FromBytes + Immutable>(&mut self, missing: Fatal) -> Result<T, Fatal> {
        self.left = self.left.checked_sub(1).ok_or(missing)?;
        let mut entry = [0; TX_WORDS];
        self.ring.take(&mut entry);
        view(&entry)
    }
}

/// Takes the next packet; `None` where there is none, and the frontend is asked to tell of the
/// next.
///
/// # Errors
/// Nothing may be taken any more.
pub(super) fn take<M: RingMemory>(ring: &mut BackRing<M>) -> Result<Option<Taken>, Fatal> {
    if !ring.sleep()? {
        return Ok(None);
    }
    let left = ring.waiting()?;
    let mut reader = Reader { ring, left };
    if left == 0 {
        return Ok(None);
    }
    let first: NetifTxRequest = reader.next(Fatal::MissingSlots)?;
    let mut chain = Chain { slots: ArrayVec::new(), extras: 0, gso: None, hash: None };
    let mut group = None;
    let mut more = first.flags & txf::EXTRA_INFO != 0;
    while more {
        let extra: NetifExtraInfo = reader.next(Fatal::MissingExtra)?;
        chain.extras += 1;
        match extra.type_ {
            ExtraType::GSO => chain.gso = NetifExtraGso::read_from_bytes(&extra.u).ok(),
            ExtraType::HASH => chain.hash = NetifExtraHash::read_from_bytes(&extra.u).ok(),
            // Of both the addition is done, as Linux does it.
            ExtraType::MCAST_ADD => group = Some((true, extra.u)),
            ExtraType::MCAST_DEL => {
                group = group.filter(|group| group.0).or(Some((false, extra.u)))
            }
            ExtraType::XDP => {}
            _ => return Err(Fatal::ExtraType),
        }
        more = extra.flags & EXTRA_FLAG_MORE != 0;
    }
    if let Some((add, group)) = group {
        chain.slots.push(first);
        return Ok(Some(Taken::Multicast { chain, add, group }));
    }
    slots(&mut reader, first, chain).map(Some)
}

/// Reads the slots behind the first.
fn slots<M: RingMemory>(
    reader: &mut Reader<'_, M>,
    first: NetifTxRequest,
    mut chain: Chain,
) -> Result<Taken, Fatal> {
    // The first entry has the size of all; what the others do not have of it is its own.
    let mut own = first.size;
    let mut good = true;
    chain.slots.push(first);
    let mut more = first.flags & txf::MORE_DATA != 0;
    while more {
        if chain.slots.len() > FATAL_SLOTS {
            return Err(Fatal::TooManySlots);
        }
        let slot: NetifTxRequest = reader.next(Fatal::MissingSlots)?;
        if crosses(&slot) {
            return Err(Fatal::CrossesPage);
        }
        // Sizes of 64 KiB and more overflow in some frontends: they cost the packet only.
        good &= chain.slots.len() < MAX_SLOTS && slot.size <= own;
        own = own.wrapping_sub(slot.size);
        more = slot.flags & txf::MORE_DATA != 0;
        chain.slots.push(slot);
    }
    if let Some(first) = chain.slots.first_mut() {
        first.size = own;
        good &= u32::from(own) >= ETHERNET_HEADER_BYTES;
        if good && crosses(first) {
            return Err(Fatal::CrossesPage);
        }
    }
    if !good {
        return Ok(Taken::Bad(chain));
    }
    match chain.gso {
        Some(gso) if gso.size == 0 => Err(Fatal::GsoSize),
        Some(gso) if gso.type_ != GsoType::TCPV4 && gso.type_ != GsoType::TCPV6 => {
            Err(Fatal::GsoType)
        }
        _ => Ok(Taken::Packet(chain)),
    }
}

fn crosses(slot: &NetifTxRequest) -> bool {
    u64::from(slot.offset) + u64::from(slot.size) > PAGE_SIZE
}
