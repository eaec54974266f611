//! The xenstore protocol and its ring (`xen/include/public/io/xs_wire.h`,
//! `docs/misc/xenstore.txt`, `docs/misc/xenstore-ring.txt`).

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Errno, SharedView};

/// `enum xsd_sockmsg_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct XsType(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl XsType {
    pub const CONTROL: Self = Self(0);
    pub const DIRECTORY: Self = Self(1);
    pub const READ: Self = Self(2);
    pub const GET_PERMS: Self = Self(3);
    pub const WATCH: Self = Self(4);
    pub const UNWATCH: Self = Self(5);
    pub const TRANSACTION_START: Self = Self(6);
    pub const TRANSACTION_END: Self = Self(7);
    pub const INTRODUCE: Self = Self(8);
    pub const RELEASE: Self = Self(9);
    pub const GET_DOMAIN_PATH: Self = Self(10);
    pub const WRITE: Self = Self(11);
    pub const MKDIR: Self = Self(12);
    pub const RM: Self = Self(13);
    pub const SET_PERMS: Self = Self(14);
    pub const WATCH_EVENT: Self = Self(15);
    pub const ERROR: Self = Self(16);
    pub const IS_DOMAIN_INTRODUCED: Self = Self(17);
    pub const RESUME: Self = Self(18);
    pub const SET_TARGET: Self = Self(19);
    pub const RESET_WATCHES: Self = Self(21);
    pub const DIRECTORY_PART: Self = Self(22);
    pub const GET_FEATURE: Self = Self(23);
    pub const SET_FEATURE: Self = Self(24);
    pub const GET_QUOTA: Self = Self(25);
    pub const SET_QUOTA: Self = Self(26);
}

/// `struct xsd_sockmsg`: the header of every message, followed by `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XsdSockmsg {
    /// What it is.
    pub type_: XsType,
    /// Echoed in the reply; 0 in watch events.
    pub req_id: u32,
    /// Transaction, 0 = none.
    pub tx_id: u32,
    /// Bytes that follow.
    pub len: u32,
}
const_assert_eq!(size_of::<XsdSockmsg>(), 16);

/// Bytes of each ring (`XENSTORE_RING_SIZE`).
pub const RING_SIZE: u32 = 1024;
/// Bytes that may follow a header (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Bytes of an absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Bytes of a path below a domain's own (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// `struct xenstore_domain_interface`: the shared page. Indices run freely; the place of a byte
/// is its index modulo [`RING_SIZE`].
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct XenstoreDomainInterface {
    /// Requests.
    pub req: [AtomicU8; RING_SIZE as usize],
    /// Replies and watch events.
    pub rsp: [AtomicU8; RING_SIZE as usize],
    /// Moved by the store.
    pub req_cons: AtomicU32,
    /// Moved by the guest.
    pub req_prod: AtomicU32,
    /// Moved by the guest.
    pub rsp_cons: AtomicU32,
    /// Moved by the store.
    pub rsp_prod: AtomicU32,
    /// `XENSTORE_SERVER_FEATURE_*`.
    pub server_features: AtomicU32,
    /// [`CONNECTED`] or [`RECONNECT`].
    pub connection: AtomicU32,
    /// [`RingError`].
    pub error: AtomicU32,
}
const_assert_eq!(size_of::<XenstoreDomainInterface>(), 2076);
const_assert_eq!(offset_of!(XenstoreDomainInterface, rsp), 1024);
const_assert_eq!(offset_of!(XenstoreDomainInterface, req_cons), 2048);
const_assert_eq!(offset_of!(XenstoreDomainInterface, req_prod), 2052);
const_assert_eq!(offset_of!(XenstoreDomainInterface, server_features), 2064);
const_assert_eq!(offset_of!(XenstoreDomainInterface, connection), 2068);
const_assert_eq!(offset_of!(XenstoreDomainInterface, error), 2072);

impl SharedView for XenstoreDomainInterface {}

/// `XENSTORE_SERVER_FEATURE_RECONNECTION`: the guest may reset the ring.
pub const FEATURE_RECONNECTION: u32 = 1;
/// `XENSTORE_SERVER_FEATURE_ERROR`: `error` is used.
pub const FEATURE_ERROR: u32 = 2;
/// `XENSTORE_SERVER_FEATURE_WATCHDEPTH`: WATCH takes a depth.
pub const FEATURE_WATCHDEPTH: u32 = 4;
/// `XENSTORE_SERVER_FEATURE_DOMID_ANY`: permissions may name `DOMID_ANY`.
pub const FEATURE_DOMID_ANY: u32 = 8;

/// `XENSTORE_CONNECTED`: the steady state.
pub const CONNECTED: u32 = 0;
/// `XENSTORE_RECONNECT`: the guest wants the ring reset.
pub const RECONNECT: u32 = 1;

/// Why the store stopped serving the ring (`XENSTORE_ERROR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct RingError(pub u32);

impl RingError {
    /// It did not.
    pub const NONE: Self = Self(0);
    /// The event channel does not work.
    pub const COMM: Self = Self(1);
    /// Indices that cannot be true.
    pub const RINGIDX: Self = Self(2);
    /// A message is too long.
    pub const PROTO: Self = Self(3);
}

/// The name an error has on the wire (`xsd_errors`, a closing NUL included). Errors the protocol
/// has no name for are `EINVAL`, as from Xen's daemon.
#[must_use]
pub const fn error_name(error: Errno) -> &'static [u8] {
    match error {
        Errno::EACCES => b"EACCES\0",
        Errno::EEXIST => b"EEXIST\0",
        Errno::EISDIR => b"EISDIR\0",
        Errno::ENOENT => b"ENOENT\0",
        Errno::ENOMEM => b"ENOMEM\0",
        Errno::ENOSPC => b"ENOSPC\0",
        Errno::EIO => b"EIO\0",
        Errno::ENOTEMPTY => b"ENOTEMPTY\0",
        Errno::ENOSYS => b"ENOSYS\0",
        Errno::EROFS => b"EROFS\0",
        Errno::EBUSY => b"EBUSY\0",
        Errno::EAGAIN => b"EAGAIN\0",
        Errno::E2BIG => b"E2BIG\0",
        Errno::EPERM => b"EPERM\0",
        _ => b"EINVAL\0",
    }
}

#[cfg(test)]
mod tests {
    use super::{Errno, error_name};

    #[test]
    fn errors_have_names() {
        for (error, name) in [
            (Errno::EAGAIN, "EAGAIN\0"),
            (Errno::ENOENT, "ENOENT\0"),
            (Errno::EINVAL, "EINVAL\0"),
            (Errno::ESRCH, "EINVAL\0"),
        ] {
            assert_eq!(error_name(error), name.as_bytes());
        }
    }
}
