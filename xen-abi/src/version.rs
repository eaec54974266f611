//! xen_version (`xen/include/public/version.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENVER_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct XenVer(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl XenVer {
    pub const VERSION: Self = Self(0);
    pub const EXTRAVERSION: Self = Self(1);
    pub const COMPILE_INFO: Self = Self(2);
    pub const CAPABILITIES: Self = Self(3);
    pub const CHANGESET: Self = Self(4);
    pub const PLATFORM_PARAMETERS: Self = Self(5);
    pub const GET_FEATURES: Self = Self(6);
    pub const PAGESIZE: Self = Self(7);
    pub const GUEST_HANDLE: Self = Self(8);
    pub const COMMANDLINE: Self = Self(9);
    pub const BUILD_ID: Self = Self(10);
}

/// `XEN_EXTRAVERSION_LEN`.
pub const EXTRAVERSION_LEN: usize = 16;
/// `XEN_CAPABILITIES_INFO_LEN`.
pub const CAPABILITIES_INFO_LEN: usize = 1024;
/// `XEN_CHANGESET_INFO_LEN`.
pub const CHANGESET_INFO_LEN: usize = 64;
/// `sizeof(xen_commandline_t)`.
pub const COMMANDLINE_LEN: usize = 1024;

/// `struct xen_compile_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XenCompileInfo {
    pub compiler: [u8; 64],
    pub compile_by: [u8; 16],
    pub compile_domain: [u8; 32],
    pub compile_date: [u8; 32],
}
const_assert_eq!(size_of::<XenCompileInfo>(), 144);
const_assert_eq!(offset_of!(XenCompileInfo, compile_date), 112);

/// `struct xen_platform_parameters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XenPlatformParameters {
    pub virt_start: u64,
}
const_assert_eq!(size_of::<XenPlatformParameters>(), 8);

/// `struct xen_feature_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XenFeatureInfo {
    pub submap_idx: u32,
    pub submap: u32,
}
const_assert_eq!(size_of::<XenFeatureInfo>(), 8);
