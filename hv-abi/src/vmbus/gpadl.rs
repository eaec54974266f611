//! GPADLs: lists of guest pages made known to the host, for rings and transfer buffers.
//!
//! The list is `range_count` times a [`GpaRange`] and its page numbers (8 bytes each), in all
//! `range_bytes` bytes: what fits behind a [`GpadlHeader`], the rest behind [`GpadlBody`]s.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::message::{MessageHeader, MessageType, messages};
use super::{ChannelId, GpadlId, MAX_MESSAGE_BYTES, NtStatus};

/// `struct gpa_range` without its page numbers: bytes that begin `byte_offset` into the first page
/// and run through as many as that takes. Also in GPA-direct packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpaRange {
    /// Bytes.
    pub byte_count: u32,
    /// Where in the first page.
    pub byte_offset: u32,
}
const_assert_eq!(size_of::<GpaRange>(), 8);
const_assert_eq!(offset_of!(GpaRange, byte_offset), 4);

impl GpaRange {
    /// Page numbers that follow. An offset of a page or more counts as whole pages, too: the
    /// receiver decides whether it takes such a range.
    #[must_use]
    pub const fn pages(self) -> u64 {
        (self.byte_offset as u64 + self.byte_count as u64).div_ceil(crate::PAGE_SIZE as u64)
    }
}

/// GPADL_HEADER (`struct vmbus_channel_gpadl_header`); the list begins behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlHeader {
    /// GPADL_HEADER.
    pub header: MessageHeader,
    /// Channel whose device may use it.
    pub channel_id: ChannelId,
    /// Its number, new.
    pub gpadl_id: GpadlId,
    /// Bytes of the whole list; at most [`GpadlHeader::MAX_RANGE_BYTES`].
    pub range_bytes: u16,
    /// Ranges in it.
    pub range_count: u16,
}
const_assert_eq!(size_of::<GpadlHeader>(), 20);

impl GpadlHeader {
    /// Words of the list that fit behind it.
    pub const WORDS: usize = (MAX_MESSAGE_BYTES - size_of::<Self>()) / 8;
    /// Longest list: what the field holds, in whole words.
    pub const MAX_RANGE_BYTES: usize = u16::MAX as usize & !7;
}

/// GPADL_BODY (`struct vmbus_channel_gpadl_body`); more of the list is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlBody {
    /// GPADL_BODY.
    pub header: MessageHeader,
    /// 1 for the first; servers ignore it.
    pub message_number: u32,
    /// That of the header.
    pub gpadl_id: GpadlId,
}
const_assert_eq!(size_of::<GpadlBody>(), 16);

impl GpadlBody {
    /// Words of the list that fit behind it.
    pub const WORDS: usize = (MAX_MESSAGE_BYTES - size_of::<Self>()) / 8;
}

/// GPADL_CREATED (`struct vmbus_channel_gpadl_created`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlCreated {
    /// GPADL_CREATED.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// GPADL.
    pub gpadl_id: GpadlId,
    /// Whether it is.
    pub status: NtStatus,
}
const_assert_eq!(size_of::<GpadlCreated>(), 20);

/// GPADL_TEARDOWN (`struct vmbus_channel_gpadl_teardown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlTeardown {
    /// GPADL_TEARDOWN.
    pub header: MessageHeader,
    /// Channel.
    pub channel_id: ChannelId,
    /// GPADL.
    pub gpadl_id: GpadlId,
}
const_assert_eq!(size_of::<GpadlTeardown>(), 16);

/// GPADL_TORNDOWN (`struct vmbus_channel_gpadl_torndown`): the pages are the guest's own again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlTorndown {
    /// GPADL_TORNDOWN.
    pub header: MessageHeader,
    /// GPADL.
    pub gpadl_id: GpadlId,
}
const_assert_eq!(size_of::<GpadlTorndown>(), 12);

messages! {
    GpadlHeader.header = GPADL_HEADER;
    GpadlBody.header = GPADL_BODY;
    GpadlCreated.header = GPADL_CREATED;
    GpadlTeardown.header = GPADL_TEARDOWN;
    GpadlTorndown.header = GPADL_TORNDOWN;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_their_pages() {
        let pages = |byte_offset, byte_count| GpaRange { byte_count, byte_offset }.pages();
        assert_eq!(pages(0, 0), 0);
        assert_eq!(pages(0, 4096), 1);
        assert_eq!(pages(4095, 1), 1);
        assert_eq!(pages(4095, 2), 2);
        assert_eq!(pages(u32::MAX, u32::MAX), 0x20_0000);
    }

    #[test]
    fn words_that_fit() {
        assert_eq!((GpadlHeader::WORDS, GpadlBody::WORDS), (27, 28));
    }
}
