//! Synthetic interrupt controller: message page and event flags page
//! (TLFS 11.6 to 11.9).
//!
//! The host writes a message into the slot of its SINT when the slot's type is
//! [`MessageType::NONE`], else it sets [`MESSAGE_PENDING`] in the flags of the
//! message already there. The guest frees the slot by storing the type NONE, and
//! if the flag was set, writes `HV_X64_MSR_EOM` so that the host tries again.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SharedView;

/// Synthetic interrupt sources of each virtual processor.
pub const SINT_COUNT: usize = 16;
/// Payload bytes of a message.
pub const MESSAGE_PAYLOAD_BYTES: usize = 240;
/// Event flags of each SINT.
pub const EVENT_FLAGS_PER_SINT: usize = 2048;
/// SINT on which VMBus messages and events arrive.
pub const VMBUS_SINT: u8 = 2;
/// `message_flags` bit: another message waits for this slot.
pub const MESSAGE_PENDING: u8 = 1;

/// `HV_MESSAGE_TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MessageType(pub u32);

impl MessageType {
    /// The slot is free.
    pub const NONE: Self = Self(0);
    /// A VMBus channel message (the type posted to and by VMBus).
    pub const VMBUS_CHANNEL: Self = Self(1);
    /// Access to an unmapped guest-physical address.
    pub const UNMAPPED_GPA: Self = Self(0x8000_0000);
    /// Intercepted guest-physical access.
    pub const GPA_INTERCEPT: Self = Self(0x8000_0001);
    /// A synthetic timer expired: [`TimerMessagePayload`].
    pub const TIMER_EXPIRED: Self = Self(0x8000_0010);
    /// Invalid VP register value.
    pub const INVALID_VP_REGISTER_VALUE: Self = Self(0x8000_0020);
    /// Unrecoverable exception.
    pub const UNRECOVERABLE_EXCEPTION: Self = Self(0x8000_0021);
    /// Unsupported feature.
    pub const UNSUPPORTED_FEATURE: Self = Self(0x8000_0022);
    /// Event log buffer complete.
    pub const EVENT_LOG_BUFFER_COMPLETE: Self = Self(0x8000_0040);

    /// Whether the hypervisor itself is the sender.
    #[must_use]
    pub const fn is_hypervisor(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

/// `HV_MESSAGE` in place: header of 16 bytes, payload of 240.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MessageSlot {
    /// [`MessageType`]; NONE means free.
    pub message_type: AtomicU32,
    /// Payload bytes in use.
    pub payload_size: AtomicU8,
    /// [`MESSAGE_PENDING`].
    pub message_flags: AtomicU8,
    /// Reserved.
    pub reserved: [AtomicU8; 2],
    /// Sending partition or port id.
    pub sender: AtomicU64,
    /// Payload, in 8-byte words.
    pub payload: [AtomicU64; MESSAGE_PAYLOAD_BYTES / 8],
}
const_assert_eq!(size_of::<MessageSlot>(), 256);
const_assert_eq!(offset_of!(MessageSlot, message_flags), 5);
const_assert_eq!(offset_of!(MessageSlot, sender), 8);
const_assert_eq!(offset_of!(MessageSlot, payload), 16);
impl SharedView for MessageSlot {}

impl MessageSlot {
    /// Type of the message in the slot. Acquire: what the host wrote before the
    /// type is visible once the type is.
    #[inline]
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        MessageType(self.message_type.load(Ordering::Acquire))
    }

    /// Frees the slot. `true`: another message waits, and the caller must write
    /// `HV_X64_MSR_EOM` to have it delivered.
    #[inline]
    #[must_use]
    pub fn release(&self) -> bool {
        self.message_type.store(MessageType::NONE.0, Ordering::Release);
        // The host sets the flag, then looks at the type again; this side stores
        // the type, then looks at the flag. Without a full fence both could miss
        // each other's store and the waiting message would stay for ever.
        fence(Ordering::SeqCst);
        self.message_flags.load(Ordering::Relaxed) & MESSAGE_PENDING != 0
    }

    /// Copies the payload of a [`MessageType::TIMER_EXPIRED`] message.
    #[inline]
    #[must_use]
    pub fn timer_payload(&self) -> TimerMessagePayload {
        let [first, expiration, delivery, ..] = &self.payload;
        TimerMessagePayload {
            timer_index: first.load(Ordering::Relaxed) as u32,
            reserved: 0,
            expiration_time_100ns: expiration.load(Ordering::Relaxed),
            delivery_time_100ns: delivery.load(Ordering::Relaxed),
        }
    }
}

/// The page `HV_X64_MSR_SIMP` points to: one message slot for each SINT.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MessagePage {
    /// Slots by SINT.
    pub slots: [MessageSlot; SINT_COUNT],
}
const_assert_eq!(size_of::<MessagePage>(), 4096);
impl SharedView for MessagePage {}

/// Event flags of one SINT.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EventFlags {
    /// Flag `n` is bit `n % 64` of word `n / 64`.
    pub words: [AtomicU64; EVENT_FLAGS_PER_SINT / 64],
}
const_assert_eq!(size_of::<EventFlags>(), 256);
impl SharedView for EventFlags {}

/// The page `HV_X64_MSR_SIEFP` points to: event flags for each SINT.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EventFlagsPage {
    /// Flags by SINT.
    pub sints: [EventFlags; SINT_COUNT],
}
const_assert_eq!(size_of::<EventFlagsPage>(), 4096);
impl SharedView for EventFlagsPage {}

/// `HV_TIMER_MESSAGE_PAYLOAD` (TLFS 12.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TimerMessagePayload {
    /// Timer 0..=3.
    pub timer_index: u32,
    /// Reserved.
    pub reserved: u32,
    /// When it was due, reference time.
    pub expiration_time_100ns: u64,
    /// When the message was delivered, reference time.
    pub delivery_time_100ns: u64,
}
const_assert_eq!(size_of::<TimerMessagePayload>(), 24);
const_assert_eq!(offset_of!(TimerMessagePayload, delivery_time_100ns), 16);

/// The page `HV_X64_MSR_VP_ASSIST_PAGE` points to (TLFS 10.3.5, 15.5); only its
/// first field serves ordinary guests.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VpAssistPage {
    /// Bit 0 set by the host: no EOI is required for the interrupt in service.
    /// The guest clears it and skips the EOI.
    pub apic_assist: AtomicU32,
    /// Reserved.
    pub reserved: AtomicU32,
    /// VTL and nested-virtualization controls, unused here.
    pub other: [AtomicU64; 511],
}
const_assert_eq!(size_of::<VpAssistPage>(), 4096);
impl SharedView for VpAssistPage {}

impl VpAssistPage {
    /// Bit of `apic_assist`: no EOI required.
    pub const NO_EOI_REQUIRED: u32 = 1;

    /// Takes the "no EOI required" mark; `true` means skip the EOI.
    #[inline]
    #[must_use]
    pub fn take_no_eoi(&self) -> bool {
        // Cheap look first: the mark is rare and the exchange is not free.
        self.apic_assist.load(Ordering::Relaxed) & Self::NO_EOI_REQUIRED != 0
            && self.apic_assist.fetch_and(!Self::NO_EOI_REQUIRED, Ordering::Relaxed)
                & Self::NO_EOI_REQUIRED
                != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn release_reports_a_waiting_message() {
        let slot = MessageSlot::new_zeroed();
        slot.message_type.store(MessageType::TIMER_EXPIRED.0, Ordering::Relaxed);
        assert!(!slot.release());
        assert_eq!(slot.message_type(), MessageType::NONE);
        slot.message_flags.store(MESSAGE_PENDING, Ordering::Relaxed);
        assert!(slot.release());
    }

    #[test]
    fn timer_payload_is_read_by_word() {
        let slot = MessageSlot::new_zeroed();
        slot.payload[0].store(0xdead_beef_0000_0003, Ordering::Relaxed);
        slot.payload[1].store(77, Ordering::Relaxed);
        slot.payload[2].store(78, Ordering::Relaxed);
        let p = slot.timer_payload();
        assert_eq!((p.timer_index, p.expiration_time_100ns, p.delivery_time_100ns), (3, 77, 78));
    }

    #[test]
    fn no_eoi_is_taken_once() {
        let page = VpAssistPage::new_zeroed();
        assert!(!page.take_no_eoi());
        page.apic_assist.store(3, Ordering::Relaxed);
        assert!(page.take_no_eoi());
        assert!(!page.take_no_eoi());
        assert_eq!(page.apic_assist.load(Ordering::Relaxed), 2);
    }
}
