//! Hypercall codes, control word and inputs (TLFS 3 and appendix A).

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::HvStatus;

/// `HV_CALL_CODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CallCode(pub u16);

#[allow(missing_docs, reason = "names are the specification's own")]
impl CallCode {
    pub const SWITCH_VIRTUAL_ADDRESS_SPACE: Self = Self(0x0001);
    pub const FLUSH_VIRTUAL_ADDRESS_SPACE: Self = Self(0x0002);
    pub const FLUSH_VIRTUAL_ADDRESS_LIST: Self = Self(0x0003);
    pub const NOTIFY_LONG_SPIN_WAIT: Self = Self(0x0008);
    pub const SEND_SYNTHETIC_CLUSTER_IPI: Self = Self(0x000b);
    pub const FLUSH_VIRTUAL_ADDRESS_SPACE_EX: Self = Self(0x0013);
    pub const FLUSH_VIRTUAL_ADDRESS_LIST_EX: Self = Self(0x0014);
    pub const SEND_SYNTHETIC_CLUSTER_IPI_EX: Self = Self(0x0015);
    pub const GET_PARTITION_ID: Self = Self(0x0046);
    pub const GET_VP_REGISTERS: Self = Self(0x0050);
    pub const SET_VP_REGISTERS: Self = Self(0x0051);
    pub const POST_MESSAGE: Self = Self(0x005c);
    pub const SIGNAL_EVENT: Self = Self(0x005d);
    pub const POST_DEBUG_DATA: Self = Self(0x0069);
    pub const RETRIEVE_DEBUG_DATA: Self = Self(0x006a);
    pub const RESET_DEBUG_SESSION: Self = Self(0x006b);
    pub const START_VIRTUAL_PROCESSOR: Self = Self(0x0099);
    pub const GET_VP_INDEX_FROM_APIC_ID: Self = Self(0x009a);
    pub const FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE: Self = Self(0x00af);
    pub const FLUSH_GUEST_PHYSICAL_ADDRESS_LIST: Self = Self(0x00b0);
    pub const EXT_CALL_QUERY_CAPABILITIES: Self = Self(0x8001);
    pub const EXT_CALL_GET_BOOT_ZEROED_MEMORY: Self = Self(0x8002);
    pub const EXT_CALL_MEMORY_HEAT_HINT: Self = Self(0x8003);
}

/// Hypercall input value (RCX).
///
/// ```text
/// 15:0 call code | 16 fast | 26:17 variable header size in 8-byte words
/// | 31 nested | 43:32 rep count | 59:48 rep start index
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Control(pub u64);

impl Control {
    /// Input in registers.
    pub const FAST: u64 = 1 << 16;
    /// Largest rep count or start index.
    pub const REP_MAX: u16 = 0xfff;
    /// Largest variable header in 8-byte words.
    pub const VARIABLE_HEADER_MAX: u16 = 0x3ff;

    /// A simple call with its input in memory.
    #[must_use]
    pub const fn new(code: CallCode) -> Self {
        Self(code.0 as u64)
    }

    /// The same call with its input in registers.
    #[must_use]
    pub const fn fast(self) -> Self {
        Self(self.0 | Self::FAST)
    }

    /// With a variable header of `words` 8-byte words (at most 0x3ff count).
    #[must_use]
    pub const fn with_variable_header(self, words: u16) -> Self {
        Self(self.0 & !(0x3ff << 17) | ((words & 0x3ff) as u64) << 17)
    }

    /// With `count` reps starting at `start` (12 bits each).
    #[must_use]
    pub const fn with_reps(self, count: u16, start: u16) -> Self {
        Self(
            self.0 & !(0xfff << 32 | 0xfff << 48)
                | ((count & 0xfff) as u64) << 32
                | ((start & 0xfff) as u64) << 48,
        )
    }

    /// Call code.
    #[must_use]
    pub const fn code(self) -> CallCode {
        CallCode(self.0 as u16)
    }

    /// Whether the input is in registers.
    #[must_use]
    pub const fn is_fast(self) -> bool {
        self.0 & Self::FAST != 0
    }

    /// Variable header size in 8-byte words.
    #[must_use]
    pub const fn variable_header(self) -> u16 {
        (self.0 >> 17) as u16 & 0x3ff
    }

    /// Rep count.
    #[must_use]
    pub const fn rep_count(self) -> u16 {
        (self.0 >> 32) as u16 & 0xfff
    }

    /// Rep start index.
    #[must_use]
    pub const fn rep_start(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }
}

/// Hypercall result value (RAX): 15:0 status, 43:32 reps completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvResult(pub u64);

impl HvResult {
    /// Composes a result.
    #[must_use]
    pub const fn new(status: HvStatus, reps_completed: u16) -> Self {
        Self(status.0 as u64 | ((reps_completed & 0xfff) as u64) << 32)
    }

    /// Status.
    #[must_use]
    pub const fn status(self) -> HvStatus {
        HvStatus(self.0 as u16)
    }

    /// Reps completed, counted from the first rep of the whole call.
    #[must_use]
    pub const fn reps_completed(self) -> u16 {
        (self.0 >> 32) as u16 & 0xfff
    }
}

bitflags! {
    /// `HV_FLUSH_FLAGS` (TLFS 8.4.4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FlushFlags: u64 {
        /// On all virtual processors; the mask is ignored.
        const ALL_PROCESSORS = 1 << 0;
        /// In all address spaces; the address space is ignored.
        const ALL_VIRTUAL_ADDRESS_SPACES = 1 << 1;
        /// Non-global mappings only.
        const NON_GLOBAL_MAPPINGS_ONLY = 1 << 2;
        /// Ranges are in the extended format.
        const USE_EXTENDED_RANGE_FORMAT = 1 << 3;
    }
}

/// Input of HvFlushVirtualAddressSpace and, before its list, HvFlushVirtualAddressList.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushVirtualAddressSpace {
    /// CR3 of the address space.
    pub address_space: u64,
    /// [`FlushFlags`].
    pub flags: u64,
    /// Virtual processors 0..=63.
    pub processor_mask: u64,
}
const_assert_eq!(size_of::<FlushVirtualAddressSpace>(), 24);

/// Fixed part of the input of the Ex forms; bank words follow, then the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushVirtualAddressSpaceEx {
    /// CR3 of the address space.
    pub address_space: u64,
    /// [`FlushFlags`].
    pub flags: u64,
    /// Header of the processor set.
    pub vp_set: VpSet,
}
const_assert_eq!(size_of::<FlushVirtualAddressSpaceEx>(), 32);
const_assert_eq!(offset_of!(FlushVirtualAddressSpaceEx, vp_set), 16);

/// `HV_VP_SET` without its banks (TLFS 7.8.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpSet {
    /// [`VpSet::SPARSE_4K`] or [`VpSet::ALL`].
    pub format: u64,
    /// Bit `n` set: a bank word for processors `64 n ..= 64 n + 63` follows.
    pub valid_bank_mask: u64,
}
const_assert_eq!(size_of::<VpSet>(), 16);

impl VpSet {
    /// Up to 4096 processors in up to 64 banks.
    pub const SPARSE_4K: u64 = 0;
    /// All processors; no banks.
    pub const ALL: u64 = 1;
    /// Processors in a bank.
    pub const BANK_BITS: u32 = 64;
}

/// `HV_GVA_RANGE`: page number in 63:12, additional pages in 11:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GvaRange(pub u64);

impl GvaRange {
    /// Largest number of pages one range covers.
    pub const PAGES_MAX: u64 = 4096;

    /// `pages` pages (1..=4096) from the one that contains `va`.
    #[must_use]
    pub const fn new(va: u64, pages: u64) -> Self {
        Self(va & !0xfff | pages.wrapping_sub(1) & 0xfff)
    }

    /// First address.
    #[must_use]
    pub const fn va(self) -> u64 {
        self.0 & !0xfff
    }

    /// Pages covered.
    #[must_use]
    pub const fn pages(self) -> u64 {
        (self.0 & 0xfff) + 1
    }
}

/// Input of HvSendSyntheticClusterIpi. Fast: the first word in RDX, the mask in R8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSyntheticClusterIpi {
    /// Vector 0x10..=0xff.
    pub vector: u32,
    /// Target VTL; 0.
    pub target_vtl: u8,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Virtual processors 0..=63.
    pub processor_mask: u64,
}
const_assert_eq!(size_of::<SendSyntheticClusterIpi>(), 16);
const_assert_eq!(offset_of!(SendSyntheticClusterIpi, processor_mask), 8);

/// Fixed part of the input of HvSendSyntheticClusterIpiEx; bank words follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSyntheticClusterIpiEx {
    /// Vector 0x10..=0xff.
    pub vector: u32,
    /// Target VTL; 0.
    pub target_vtl: u8,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Header of the processor set.
    pub vp_set: VpSet,
}
const_assert_eq!(size_of::<SendSyntheticClusterIpiEx>(), 24);

/// Input of HvPostMessage (TLFS 11.11.1); the whole payload is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PostMessage {
    /// `HV_CONNECTION_ID`.
    pub connection_id: u32,
    /// Zero.
    pub reserved: u32,
    /// [`MessageType`](crate::synic::MessageType); its top bit is the hypervisor's.
    pub message_type: u32,
    /// Payload bytes in use, at most 240.
    pub payload_size: u32,
    /// Payload.
    pub payload: [u64; crate::synic::MESSAGE_PAYLOAD_BYTES / 8],
}
const_assert_eq!(size_of::<PostMessage>(), 256);
const_assert_eq!(offset_of!(PostMessage, payload), 16);

/// Input of HvSignalEvent (TLFS 11.11.2); fast: in RDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SignalEvent {
    /// `HV_CONNECTION_ID`.
    pub connection_id: u32,
    /// Event flag, relative to the connection's first.
    pub flag_number: u16,
    /// Zero.
    pub reserved: u16,
}
const_assert_eq!(size_of::<SignalEvent>(), 8);

/// Input of HvNotifyLongSpinWait: spins so far, in RDX of the fast form.
pub type SpinWaitCount = u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_word_fields() {
        let c = Control::new(CallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX)
            .with_variable_header(2)
            .with_reps(5, 3);
        assert_eq!(c.0, 0x0003_0005_0004_0014);
        assert_eq!((c.variable_header(), c.rep_count(), c.rep_start()), (2, 5, 3));
        assert!(!c.is_fast());
        let f = Control::new(CallCode::SEND_SYNTHETIC_CLUSTER_IPI).fast();
        assert_eq!(f.0, 0x1_000b);
        assert_eq!(f.code(), CallCode::SEND_SYNTHETIC_CLUSTER_IPI);
    }

    #[test]
    fn control_setters_replace() {
        let c = Control::new(CallCode(1)).with_reps(0xfff, 0xfff).with_reps(1, 2);
        assert_eq!((c.rep_count(), c.rep_start()), (1, 2));
        let c = c.with_variable_header(0x3ff).with_variable_header(1);
        assert_eq!((c.variable_header(), c.is_fast(), c.rep_count()), (1, false, 1));
    }

    #[test]
    fn result_fields() {
        let r = HvResult::new(HvStatus::INVALID_PARAMETER, 7);
        assert_eq!(r.status(), HvStatus::INVALID_PARAMETER);
        assert_eq!(r.reps_completed(), 7);
        assert!(r.status().ok().is_err());
    }

    #[test]
    fn gva_range_counts_additional_pages() {
        let r = GvaRange::new(0xffff_8880_1234_5678, 1);
        assert_eq!((r.va(), r.pages()), (0xffff_8880_1234_5000, 1));
        assert_eq!(GvaRange::new(0x1000, 4096).pages(), 4096);
    }
}
