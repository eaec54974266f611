//! What the client asks of ring 0.

use core::fmt;

use hv_abi::vmbus::ConnectionId;
use hv_abi::vmbus::MAX_MESSAGE_BYTES;
use hv_abi::{HvStatus, SharedView};

/// A page shared with the host: its contents, and the guest page frame number the host knows it by.
#[derive(Debug)]
pub struct Shared<T: 'static> {
    /// Contents.
    pub view: &'static T,
    /// Guest page frame number.
    pub gpfn: u64,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

/// Ring 0, as the VMBus client needs it. All methods may be called on every virtual processor, with
/// interrupts off; none waits, none panics.
pub trait Hypervisor: Send + Sync + 'static {
    /// HvPostMessage, message type 1. `payload` has at most [`MAX_MESSAGE_BYTES`].
    fn post_message(&self, to: ConnectionId, payload: &[u8]) -> HvStatus;
    /// HvSignalEvent, flag 0 of the connection.
    fn signal_event(&self, to: ConnectionId) -> HvStatus;
    /// The calling virtual processor's index (`HV_X64_MSR_VP_INDEX`).
    fn vp_index(&self) -> u32;
    /// Nanoseconds since some moment, monotonic over all virtual processors.
    fn now_ns(&self) -> u64;
    /// A zeroed page of memory that is the shim's own, as a structure that fills it; `None` when
    /// there is none left, or `T` is larger than a page.
    fn allocate<T: SharedView>(&self) -> Option<Shared<T>>;
    /// Takes a page back that [`Self::allocate`] gave. The host may still write to it where it
    /// breaks the protocol, nobody here does.
    fn free(&self, gpfn: u64);
    /// Takes a waiting message out of the VMBus SINT's slot of any virtual processor, frees the
    /// slot and writes EOM where due; how many bytes there are. Used only while
    /// [`VmBus::unload`](super::VmBus::unload) polls.
    fn take_message(&self, payload: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<usize>;
    /// A moment's pause in a short polling loop.
    fn relax(&self);
    /// Logs a line.
    fn log(&self, text: fmt::Arguments<'_>);
}
