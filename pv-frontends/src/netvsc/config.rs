//! What cards may use.

use alloc::vec::Vec;

use hv_abi::PAGE_SIZE;
use hv_abi::netvsc::nvsp::{MAX_LEGACY_BUFFER_BYTES, MAX_RECEIVE_BUFFER_BYTES};
use hv_abi::vmbus::UserDefined;

use super::slots::SLOTS_PER_PAGE;
use crate::net::ETHERNET_HEADER_BYTES;
use crate::vmbus::OpenParams;

/// Least MTU: IPv4's.
pub(super) const MIN_MTU: u32 = 68;
/// Most packets on their way on one queue: numbers have 16 bits, one for a frame in a section each.
const MAX_SLOTS: u16 = 4096;

/// What cards may use; see [`Config::pages`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Data pages of rings towards the host.
    pub outgoing_pages: u32,
    /// Data pages of rings from the host.
    pub incoming_pages: u32,
    /// Bytes of a card's receive buffer; whole pages are taken, at most 31 MiB.
    pub receive_buffer_bytes: u32,
    /// Bytes of a card's send buffer; as above, at most 15 MiB. 0: none, nothing is copied.
    pub send_buffer_bytes: u32,
    /// Packets, or sections of several, a queue has on their way at once.
    pub tx_slots: u16,
    /// Packets of at most this many bytes are copied into the send buffer.
    pub copy_max_bytes: u32,
    /// Queues of a card; at least 1. The first has the card's channel, the others sub-channels.
    pub max_queues: u16,
    /// Virtual processors that channels are bound to, in turn; not empty.
    pub vps: Vec<u32>,
    /// MTU that cards begin with; hosts may allow less.
    pub mtu: u32,
    /// Largest MTU a card can be set to.
    pub max_mtu: u32,
    /// How long a card whose channel is gone waits to be offered again before it is gone, too.
    pub linger_ns: u64,
}

impl Default for Config {
    /// One queue, 2 MiB to receive, 256 KiB to send.
    fn default() -> Self {
        Self {
            outgoing_pages: 8,
            incoming_pages: 8,
            receive_buffer_bytes: 2 << 20,
            send_buffer_bytes: 256 << 10,
            tx_slots: 128,
            copy_max_bytes: 512,
            max_queues: 1,
            vps: alloc::vec![0],
            mtu: 1500,
            max_mtu: 9000,
            linger_ns: 3_000_000_000,
        }
    }
}

impl Config {
    /// Pages a card of so many queues takes: its buffers, one for its conversation, and for each
    /// queue the rings and what packets' headers are built in.
    #[must_use]
    pub fn pages(&self, queues: u16) -> usize {
        let rings = self.outgoing_pages as usize + self.incoming_pages as usize + 2;
        let queue = rings + usize::from(self.slots()).div_ceil(SLOTS_PER_PAGE);
        self.receive_pages() + self.send_pages() + 1 + usize::from(queues.max(1)) * queue
    }

    pub(super) fn receive_pages(&self) -> usize {
        let bytes = self.receive_buffer_bytes.clamp(1, MAX_RECEIVE_BUFFER_BYTES);
        (bytes as usize).div_ceil(PAGE_SIZE)
    }

    pub(super) fn send_pages(&self) -> usize {
        (self.send_buffer_bytes.min(MAX_LEGACY_BUFFER_BYTES) as usize).div_ceil(PAGE_SIZE)
    }

    pub(super) fn slots(&self) -> u16 {
        self.tx_slots.clamp(1, MAX_SLOTS)
    }

    /// An MTU within bounds.
    pub(super) fn clamp_mtu(&self, mtu: u32) -> u32 {
        let most = (u32::from(u16::MAX) - ETHERNET_HEADER_BYTES).min(self.max_mtu);
        mtu.clamp(MIN_MTU, most.max(MIN_MTU))
    }

    pub(super) fn open_params(&self, sub_channel_index: u16) -> OpenParams {
        let vp = self.vps.get(usize::from(sub_channel_index) % self.vps.len().max(1));
        OpenParams {
            outgoing_pages: self.outgoing_pages,
            incoming_pages: self.incoming_pages,
            target_vp: vp.copied().unwrap_or_default(),
            user_data: UserDefined::ZERO,
        }
    }
}
