//! The ring buffers of a channel: a control page each, and data pages behind it.
//!
//! Both indices are offsets into the data, multiples of 8; equal means empty, so that a full ring
//! keeps 8 bytes free. The writer owns `write_index`, `pending_send_size` and `feature_bits`, the
//! reader owns `read_index` and `interrupt_mask`.

use core::mem::{offset_of, size_of};
use core::sync::atomic::AtomicU32;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// `struct hv_ring_buffer` without its data: the control page.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RingControl {
    /// Where the next packet will be.
    pub write_index: AtomicU32,
    /// Where the oldest unread packet is.
    pub read_index: AtomicU32,
    /// Not 0: the reader wants no signal when the ring becomes non-empty.
    pub interrupt_mask: AtomicU32,
    /// Not 0: the writer waits for this many free bytes and wants a signal then.
    pub pending_send_size: AtomicU32,
    /// Reserved.
    pub reserved: [AtomicU32; 12],
    /// [`RingControl::FEATURE_PENDING_SEND_SIZE`].
    pub feature_bits: AtomicU32,
    /// Fills the page.
    pub reserved2: [AtomicU32; 1007],
}
const_assert_eq!(size_of::<RingControl>(), crate::PAGE_SIZE);
const_assert_eq!(offset_of!(RingControl, pending_send_size), 12);
const_assert_eq!(offset_of!(RingControl, feature_bits), 64);
impl SharedView for RingControl {}

impl RingControl {
    /// The writer sets `pending_send_size` when it waits, and signals for that of the ring it
    /// reads.
    pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;
}

/// Packets and indices are multiples of this many bytes.
pub const RING_ALIGN: u32 = 8;
