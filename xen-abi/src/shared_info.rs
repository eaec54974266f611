//! `struct shared_info` and the per-vCPU records in it (`xen/include/public/xen.h`,
//! `arch-x86/xen.h`, `arch-x86/xen-x86_64.h`). All fields are shared with the guest at run time.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// vCPUs with a `vcpu_info` inside `shared_info` (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: usize = 32;
/// Event channels of the 2-level ABI on a 64-bit guest.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 64 * 64;

/// `struct vcpu_time_info` (pvclock). `version` is odd while it is written.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuTimeInfo {
    pub version: AtomicU32,
    pub pad0: AtomicU32,
    pub tsc_timestamp: AtomicU64,
    pub system_time: AtomicU64,
    pub tsc_to_system_mul: AtomicU32,
    /// A signed shift in the low 8 bits' worth: see `tsc_shift` in the header.
    pub tsc_shift: AtomicU8,
    pub flags: AtomicU8,
    pub pad1: [AtomicU8; 2],
}
const_assert_eq!(size_of::<VcpuTimeInfo>(), 32);

/// `struct arch_vcpu_info`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct ArchVcpuInfo {
    pub cr2: AtomicU64,
    pub pad: AtomicU64,
}

/// `struct vcpu_info`: 64 bytes.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct VcpuInfo {
    pub evtchn_upcall_pending: AtomicU8,
    pub evtchn_upcall_mask: AtomicU8,
    pub pad: [AtomicU8; 6],
    pub evtchn_pending_sel: AtomicU64,
    pub arch: ArchVcpuInfo,
    pub time: VcpuTimeInfo,
}
const_assert_eq!(size_of::<VcpuInfo>(), 64);
const_assert_eq!(offset_of!(VcpuInfo, time), 32);

/// `struct arch_shared_info`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct ArchSharedInfo {
    pub max_pfn: AtomicU64,
    pub pfn_to_mfn_frame_list_list: AtomicU64,
    pub nmi_reason: AtomicU64,
    pub p2m_cr3: AtomicU64,
    pub p2m_vaddr: AtomicU64,
    pub p2m_generation: AtomicU64,
}

/// `struct shared_info`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct SharedInfo {
    pub vcpu_info: [VcpuInfo; LEGACY_MAX_VCPUS],
    pub evtchn_pending: [AtomicU64; 64],
    pub evtchn_mask: [AtomicU64; 64],
    pub wc_version: AtomicU32,
    pub wc_sec: AtomicU32,
    pub wc_nsec: AtomicU32,
    pub wc_sec_hi: AtomicU32,
    pub arch: ArchSharedInfo,
}
const_assert_eq!(offset_of!(SharedInfo, evtchn_pending), 2048);
const_assert_eq!(offset_of!(SharedInfo, wc_version), 3072);

impl SharedView for VcpuTimeInfo {}
impl SharedView for VcpuInfo {}
impl SharedView for SharedInfo {}
