//! nmi_op (`xen/include/public/nmi.h`). Its callback structure is in [`crate::callback`].

pub use crate::callback::{XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK, XennmiCallback};

/// `XEN_NMIREASON_io_error`, a bit of `arch_shared_info.nmi_reason`.
pub const XEN_NMIREASON_IO_ERROR: u64 = 1;
/// `XEN_NMIREASON_pci_serr`.
pub const XEN_NMIREASON_PCI_SERR: u64 = 2;
/// `XEN_NMIREASON_unknown`.
pub const XEN_NMIREASON_UNKNOWN: u64 = 4;
