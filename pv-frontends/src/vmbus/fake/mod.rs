//! Ring 0 and a host made of plain memory, for tests, here and of crates above.

mod server;

pub use server::{HostChannel, Server};

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use hv_abi::vmbus::{ConnectionId, MAX_MESSAGE_BYTES};
use hv_abi::{HvStatus, PAGE_SIZE, SharedView};
use spin::{Mutex, MutexGuard};

use super::{Hypervisor, Shared};

/// What [`Fake`] is made of; tests look at it and change it as they like.
#[derive(Debug, Default)]
pub struct Inner {
    /// Messages the guest posted, in order.
    pub posted: VecDeque<(ConnectionId, Vec<u8>)>,
    /// Signals the guest sent.
    pub signals: VecDeque<ConnectionId>,
    /// Answers to the next posts, before any succeeds.
    pub refuse: VecDeque<HvStatus>,
    /// Connections that exist; none: all do.
    pub connections: Vec<u32>,
    /// Messages [`Hypervisor::take_message`] finds.
    pub messages: VecDeque<Vec<u8>>,
    /// The time; each look at it takes `tick_ns`.
    pub now_ns: u64,
    /// See [`Self::now_ns`].
    pub tick_ns: u64,
    /// Index of the calling virtual processor.
    pub vp_index: u32,
    /// Pages that can still be allocated.
    pub free_pages: usize,
    /// Lines logged.
    pub log: Vec<String>,
    pages: BTreeMap<u64, Box<dyn Any + Send>>,
    next_gpfn: u64,
}

/// Ring 0 in plain memory. Clones are the same.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Inner>>);

impl Default for Fake {
    fn default() -> Self {
        let inner = Inner { free_pages: 10_000, next_gpfn: 0x1000, ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }
}

impl Fake {
    /// What it is made of.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// A page the guest shares, as the type it has there.
    #[must_use]
    pub fn page<T: SharedView>(&self, gpfn: u64) -> Option<&'static T> {
        let inner = self.0.lock();
        inner.pages.get(&gpfn)?.downcast_ref::<Shared<T>>().map(|page| page.view)
    }

    /// Pages the guest has allocated and not freed.
    #[must_use]
    pub fn pages_in_use(&self) -> usize {
        self.0.lock().pages.len()
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        self.0.lock().now_ns += ns;
    }
}

impl Hypervisor for Fake {
    fn post_message(&self, to: ConnectionId, payload: &[u8]) -> HvStatus {
        assert!(payload.len() <= MAX_MESSAGE_BYTES);
        let mut inner = self.0.lock();
        if let Some(status) = inner.refuse.pop_front() {
            return status;
        }
        if !inner.connections.is_empty() && !inner.connections.contains(&to.0) {
            return HvStatus::INVALID_CONNECTION_ID;
        }
        inner.posted.push_back((to, payload.to_vec()));
        HvStatus::SUCCESS
    }

    fn signal_event(&self, to: ConnectionId) -> HvStatus {
        self.0.lock().signals.push_back(to);
        HvStatus::SUCCESS
    }

    fn vp_index(&self) -> u32 {
        self.0.lock().vp_index
    }

    fn now_ns(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.now_ns += inner.tick_ns;
        inner.now_ns
    }

    fn allocate<T: SharedView>(&self) -> Option<Shared<T>> {
        assert!(size_of::<T>() <= PAGE_SIZE);
        let mut inner = self.0.lock();
        inner.free_pages = inner.free_pages.checked_sub(1)?;
        let gpfn = inner.next_gpfn;
        // Not contiguous: nothing may rely on that.
        inner.next_gpfn += 3;
        let page = Shared { view: &*Box::leak(Box::new(T::new_zeroed())), gpfn };
        inner.pages.insert(gpfn, Box::new(page));
        Some(page)
    }

    fn free(&self, gpfn: u64) {
        let mut inner = self.0.lock();
        assert!(inner.pages.remove(&gpfn).is_some(), "page {gpfn:#x} is not allocated");
        inner.free_pages += 1;
    }

    fn take_message(&self, payload: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<usize> {
        let message = self.0.lock().messages.pop_front()?;
        payload[..message.len()].copy_from_slice(&message);
        Some(message.len())
    }

    fn relax(&self) {
        self.0.lock().now_ns += 1000;
    }

    fn log(&self, text: fmt::Arguments<'_>) {
        self.0.lock().log.push(text.to_string());
    }
}
