//! The xenstore daemon.
//!
//! Backends in the shim go through [`with`]: under the store's lock, with the rights of domain 0,
//! as one atomic batch. The guest's requests come in by [`kicked`].

mod device;
mod store;

pub use device::{Device, DomainConfig};
pub use store::{Config, Store};

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use xen_abi::{Errno, MachineAddr};

use crate::domain::Domain;
use crate::evtchn::Here;
use crate::platform::Platform;

/// No ring.
const NONE: u64 = u64::MAX;

/// The domain's store and its connection.
#[derive(Debug)]
pub struct Xenstore {
    store: Mutex<Option<Store>>,
    /// Machine address of the ring, whose page is the guest's.
    ring: AtomicU64,
    port: AtomicU32,
    /// Events wait for backends.
    internal: AtomicBool,
}

impl Default for Xenstore {
    fn default() -> Self {
        Self::new()
    }
}

impl Xenstore {
    /// No store yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            store: Mutex::new(None),
            ring: AtomicU64::new(NONE),
            port: AtomicU32::new(0),
            internal: AtomicBool::new(false),
        }
    }

    /// Allocates the store; nothing is allocated later.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn start(&self, config: &Config) -> Result<(), Errno> {
        let store = Store::new(config)?;
        *self.store.lock() = Some(store);
        Ok(())
    }

    /// Connects the ring page of `start_info` with the port that
    /// [`crate::evtchn::EventChannels::alloc_backend`] gave.
    pub fn connect(&self, ring: MachineAddr, port: u32) {
        self.port.store(port, Ordering::Relaxed);
        self.ring.store(ring.0, Ordering::Release);
    }

    /// Whether a backend has an event to take by [`Store::next_internal_event`]; no lock is taken.
    #[must_use]
    pub fn internal_pending(&self) -> bool {
        self.internal.load(Ordering::Relaxed)
    }
}

/// The guest kicked the store, or its work goes on. Returns whether work is left: call it again
/// soon.
pub fn kicked<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>) -> bool {
    let _ = (dom, plat, here);
    false
}

/// Runs `f` on the store with the rights of domain 0, then sends the guest the events it caused.
/// `None` where there is no store. The store is locked while `f` runs: it may not call a backend,
/// send events or call this function.
pub fn with<P: Platform, R>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    f: impl FnOnce(&mut Store) -> R,
) -> Option<R> {
    let _ = (plat, here);
    dom.xenstore.store.lock().as_mut().map(f)
}
