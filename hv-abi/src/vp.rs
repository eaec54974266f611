//! Starting virtual processors: HvCallStartVirtualProcessor and HvCallGetVpIndexFromApicId (TLFS 15,
//! "HvCallStartVirtualProcessor", `HV_INITIAL_VP_CONTEXT`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HV_PARTITION_ID_SELF`.
pub const PARTITION_ID_SELF: u64 = u64::MAX;

/// `HV_X64_SEGMENT_REGISTER`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SegmentRegister {
    /// Base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
    pub attributes: u16,
}
const_assert_eq!(size_of::<SegmentRegister>(), 16);

/// `HV_X64_TABLE_REGISTER`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TableRegister {
    /// Zero.
    pub pad: [u16; 3],
    /// Limit in bytes.
    pub limit: u16,
    /// Base.
    pub base: u64,
}
const_assert_eq!(size_of::<TableRegister>(), 16);

/// `HV_INITIAL_VP_CONTEXT`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "register names")]
pub struct InitialVpContext {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cs: SegmentRegister,
    pub ds: SegmentRegister,
    pub es: SegmentRegister,
    pub fs: SegmentRegister,
    pub gs: SegmentRegister,
    pub ss: SegmentRegister,
    pub tr: SegmentRegister,
    pub ldtr: SegmentRegister,
    pub idtr: TableRegister,
    pub gdtr: TableRegister,
    pub efer: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub pat: u64,
}
const_assert_eq!(size_of::<InitialVpContext>(), 224);
const_assert_eq!(offset_of!(InitialVpContext, cs), 24);
const_assert_eq!(offset_of!(InitialVpContext, idtr), 152);
const_assert_eq!(offset_of!(InitialVpContext, efer), 184);

/// Input of HvCallStartVirtualProcessor.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StartVirtualProcessor {
    /// [`PARTITION_ID_SELF`].
    pub partition_id: u64,
    /// Index of the virtual processor.
    pub vp_index: u32,
    /// Target VTL; 0.
    pub target_vtl: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Its first state.
    pub context: InitialVpContext,
}
const_assert_eq!(size_of::<StartVirtualProcessor>(), 240);
const_assert_eq!(offset_of!(StartVirtualProcessor, context), 16);

/// Input of HvCallGetVpIndexFromApicId with one rep; the output is one `u32`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GetVpIndexFromApicId {
    /// [`PARTITION_ID_SELF`].
    pub partition_id: u64,
    /// Target VTL; 0.
    pub target_vtl: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// The APIC id asked for.
    pub apic_id: u32,
    /// Zero.
    pub pad: u32,
}
const_assert_eq!(size_of::<GetVpIndexFromApicId>(), 24);
const_assert_eq!(offset_of!(GetVpIndexFromApicId, apic_id), 16);
