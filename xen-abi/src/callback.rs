//! Callback registration (`xen/include/public/callback.h`) and NMI callback (`nmi.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `CALLBACKOP_register`.
pub const CALLBACKOP_REGISTER: u32 = 0;
/// `CALLBACKOP_unregister`.
pub const CALLBACKOP_UNREGISTER: u32 = 1;

/// `CALLBACKTYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CallbackType(pub u16);

impl CallbackType {
    /// Event delivery.
    pub const EVENT: Self = Self(0);
    /// A return to the guest failed.
    pub const FAILSAFE: Self = Self(1);
    /// System call of a 64-bit program.
    pub const SYSCALL: Self = Self(2);
    /// The 32-bit hypervisor's sysenter; a 64-bit one refuses it.
    pub const SYSENTER_DEPRECATED: Self = Self(3);
    /// NMI.
    pub const NMI: Self = Self(4);
    /// SYSENTER.
    pub const SYSENTER: Self = Self(5);
    /// SYSCALL of a 32-bit program.
    pub const SYSCALL32: Self = Self(7);
}

/// `CALLBACKF_mask_events`: the callback runs with events masked.
pub const CALLBACKF_MASK_EVENTS: u16 = 1;

/// `struct callback_register`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct CallbackRegister {
    pub type_: CallbackType,
    pub flags: u16,
    pub pad: u32,
    pub address: u64,
}
const_assert_eq!(size_of::<CallbackRegister>(), 16);
const_assert_eq!(offset_of!(CallbackRegister, address), 8);

/// `struct callback_unregister`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct CallbackUnregister {
    pub type_: CallbackType,
    pub unused: u16,
}
const_assert_eq!(size_of::<CallbackUnregister>(), 4);

/// `XENNMI_register_callback` (`nmi.h`).
pub const XENNMI_REGISTER_CALLBACK: u32 = 0;
/// `XENNMI_unregister_callback`.
pub const XENNMI_UNREGISTER_CALLBACK: u32 = 1;

/// `struct xennmi_callback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XennmiCallback {
    pub handler_address: u64,
    pub pad: u64,
}
const_assert_eq!(size_of::<XennmiCallback>(), 16);
