//! Shared rings (`xen/include/public/io/ring.h`): a header of free-running indices, then a power
//! of two of entries, each a request until the backend makes a response of it.
//!
//! A ring of several pages is contiguous for the frontend only; entries may cross from one of its
//! pages into another. Everything in it is aligned to 4 bytes, so it is seen as 32-bit words.

use core::mem::{offset_of, size_of};
use core::sync::atomic::AtomicU32;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// 32-bit words in a page of a ring.
pub const WORDS_PER_PAGE: usize = 1024;

/// What is in front of the entries (`struct __name##_sring`). Indices run freely; an entry's
/// position is the index modulo the number of entries.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SringHeader {
    pub req_prod: AtomicU32,
    pub req_event: AtomicU32,
    pub rsp_prod: AtomicU32,
    pub rsp_event: AtomicU32,
    pub pvt_pad: [AtomicU32; 12],
}
const_assert_eq!(size_of::<SringHeader>(), 64);
const_assert_eq!(offset_of!(SringHeader, rsp_event), 12);

/// A page of a ring as words.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RingPage {
    /// The words.
    pub words: [AtomicU32; WORDS_PER_PAGE],
}
const_assert_eq!(size_of::<RingPage>(), 4096);

impl SharedView for SringHeader {}
impl SharedView for RingPage {}

/// Word of [`SringHeader::req_prod`].
pub const REQ_PROD: usize = offset_of!(SringHeader, req_prod) / 4;
/// Word of [`SringHeader::req_event`].
pub const REQ_EVENT: usize = offset_of!(SringHeader, req_event) / 4;
/// Word of [`SringHeader::rsp_prod`].
pub const RSP_PROD: usize = offset_of!(SringHeader, rsp_prod) / 4;
/// Word of [`SringHeader::rsp_event`].
pub const RSP_EVENT: usize = offset_of!(SringHeader, rsp_event) / 4;
/// Word the entries begin at.
pub const ENTRIES: usize = size_of::<SringHeader>() / 4;

/// Entries of `entry_bytes` in a ring of `ring_bytes` (`__RING_SIZE`): a power of two, or 0.
#[must_use]
pub const fn ring_size(ring_bytes: usize, entry_bytes: usize) -> u32 {
    let room = ring_bytes.saturating_sub(size_of::<SringHeader>());
    match room.checked_div(entry_bytes) {
        None | Some(0) => 0,
        Some(entries) => 1 << entries.ilog2(),
    }
}
const_assert_eq!(ring_size(4096, 112), 32);
const_assert_eq!(ring_size(4096, 108), 32);
const_assert_eq!(ring_size(16 * 4096, 112), 512);
const_assert_eq!(ring_size(64, 112), 0);
