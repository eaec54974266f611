//! The PV console ring (`xen/include/public/io/console.h`) and console_io (`xen.h`).

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::SharedView;

/// Bytes of the ring towards the guest.
pub const IN_SIZE: u32 = 1024;
/// Bytes of the ring from the guest.
pub const OUT_SIZE: u32 = 2048;

/// `struct xencons_interface`. Indices run freely; the ring position is index modulo size.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct XenconsInterface {
    pub in_: [AtomicU8; IN_SIZE as usize],
    pub out: [AtomicU8; OUT_SIZE as usize],
    pub in_cons: AtomicU32,
    pub in_prod: AtomicU32,
    pub out_cons: AtomicU32,
    pub out_prod: AtomicU32,
}
const_assert_eq!(size_of::<XenconsInterface>(), 3088);
const_assert_eq!(offset_of!(XenconsInterface, out), 1024);
const_assert_eq!(offset_of!(XenconsInterface, in_cons), 3072);

impl SharedView for XenconsInterface {}

/// `CONSOLEIO_write`.
pub const CONSOLEIO_WRITE: u32 = 0;
/// `CONSOLEIO_read`.
pub const CONSOLEIO_READ: u32 = 1;
