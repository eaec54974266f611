//! nmi_op (`xen/include/public/nmi.h`).

use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENNMI_register_callback`.
pub const XENNMI_REGISTER_CALLBACK: u32 = 0;
/// `XENNMI_unregister_callback`.
pub const XENNMI_UNREGISTER_CALLBACK: u32 = 1;

/// `XEN_NMIREASON_io_error`, a bit of `arch_shared_info.nmi_reason`.
pub const XEN_NMIREASON_IO_ERROR: u64 = 1;
/// `XEN_NMIREASON_pci_serr`.
pub const XEN_NMIREASON_PCI_SERR: u64 = 2;
/// `XEN_NMIREASON_unknown`.
pub const XEN_NMIREASON_UNKNOWN: u64 = 4;

/// `struct xennmi_callback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XenNmiCallback {
    pub handler_address: u64,
    pub pad: u64,
}
const_assert_eq!(size_of::<XenNmiCallback>(), 16);
