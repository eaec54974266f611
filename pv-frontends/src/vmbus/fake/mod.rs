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
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use hv_abi::vmbus::{ConnectionId, InterruptPage, MAX_MESSAGE_BYTES, MonitorPage, RingControl};
use hv_abi::{HvStatus, PAGE_SIZE, SharedView};
use spin::{Mutex, MutexGuard};
use translate::platform::PageWords;

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
    freed: Vec<Box<dyn Any + Send>>,
    next_gpfn: u64,
}

/// Pages of machines that are gone, for those to come: what is `'static` cannot be given back to
/// the allocator, and fuzzers make many machines.
static USED: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

impl Drop for Inner {
    fn drop(&mut self) {
        let pages = core::mem::take(&mut self.pages).into_values();
        USED.lock().extend(pages.chain(core::mem::take(&mut self.freed)));
    }
}

/// A used page of a type, zeroed.
fn reuse<T: SharedView>() -> Option<&'static T> {
    let page = {
        let mut used = USED.lock();
        let at = used.iter().rposition(|page| page.is::<Shared<T>>())?;
        used.swap_remove(at)
    };
    let view = page.downcast_ref::<Shared<T>>()?.view;
    zero(view).then_some(view)
}

/// Zeroes a page; `false` where its type is not known here.
fn zero(view: &'static dyn Any) -> bool {
    let clear = |word: &AtomicU64| word.store(0, Relaxed);
    if let Some(page) = view.downcast_ref::<PageWords>() {
        page.iter().for_each(clear);
    } else if let Some(page) = view.downcast_ref::<InterruptPage>() {
        page.host_to_guest.iter().chain(&page.guest_to_host).for_each(clear);
    } else if let Some(page) = view.downcast_ref::<RingControl>() {
        let RingControl {
            write_index,
            read_index,
            interrupt_mask,
            pending_send_size,
            reserved,
            feature_bits,
            reserved2,
        } = page;
        [write_index, read_index, interrupt_mask, pending_send_size, feature_bits]
            .into_iter()
            .chain(reserved)
            .chain(reserved2)
            .for_each(|word| word.store(0, Relaxed));
    } else {
        // Monitor pages are never written to.
        return view.is::<MonitorPage>();
    }
    true
}

/// Ring 0 in plain memory. Clones are the same.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Inner>>);

impl Default for Fake {
    fn default() -> Self {
        let mut inner = Inner::default();
        (inner.free_pages, inner.next_gpfn) = (10_000, 0x1000);
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
        let view = reuse().unwrap_or_else(|| Box::leak(Box::new(T::new_zeroed())));
        let page: Shared<T> = Shared { view, gpfn };
        inner.pages.insert(gpfn, Box::new(page));
        Some(page)
    }

    fn free(&self, gpfn: u64) {
        let mut inner = self.0.lock();
        let page = inner.pages.remove(&gpfn);
        inner.freed.push(page.unwrap_or_else(|| panic!("page {gpfn:#x} is not allocated")));
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
