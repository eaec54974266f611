//! The xenstore daemon.
//!
//! Backends in the shim go through [`with`]: under the store's lock, with the rights of domain 0,
//! as one atomic batch. The guest's requests come in by [`kicked`].

mod check;
mod connection;
mod db;
mod device;
mod node;
mod path;
mod pool;
mod request;
mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod watch;

pub use connection::Served;
pub use device::{Device, DomainConfig};
pub use pool::SLOT_BYTES;
pub use store::{Config, DEFAULT_BYTES, Limits, Store};

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use xen_abi::io::xs_wire::XenstoreDomainInterface;
use xen_abi::{Errno, MachineAddr};

use crate::domain::Domain;
use crate::evtchn::{self, Backend, Here};
use crate::platform::Platform;

/// Short requests carried out at a time; longer ones count more, and removals end the turn.
const BUDGET: usize = 16;
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
    /// [`crate::evtchn::EventChannels::alloc_backend`] gave, and says what is offered.
    pub fn connect<P: Platform>(&self, plat: &P, ring: MachineAddr, port: u32) {
        self.port.store(port, Ordering::Relaxed);
        self.ring.store(ring.0, Ordering::Release);
        let mut store = self.store.lock();
        if let (Some(ring), Some(store)) = (self.ring(plat), store.as_mut()) {
            store.introduce(ring);
            self.internal.store(store.internal_waiting(), Ordering::Relaxed);
        }
    }

    /// Whether a backend has an event to take by [`Store::next_internal_event`]; no lock is taken.
    #[must_use]
    pub fn internal_pending(&self) -> bool {
        self.internal.load(Ordering::Relaxed)
    }

    fn ring<P: Platform>(&self, plat: &P) -> Option<&'static XenstoreDomainInterface> {
        match self.ring.load(Ordering::Acquire) {
            NONE => None,
            at => plat.view(MachineAddr(at)),
        }
    }

    /// Runs `f` on the store, then serves the ring; what `f` said, and whether work is left.
    fn run<P: Platform, R>(
        dom: &Domain,
        plat: &P,
        here: Here<'_>,
        budget: usize,
        f: impl FnOnce(&mut Store) -> R,
    ) -> Option<(R, bool)> {
        let this = &dom.xenstore;
        let (result, served) = {
            let mut store = this.store.lock();
            let store = store.as_mut()?;
            let result = f(store);
            let served = this.ring(plat).map(|ring| store.serve(ring, budget)).unwrap_or_default();
            this.internal.store(store.internal_waiting(), Ordering::Relaxed);
            (result, served)
        };
        if served.notify {
            evtchn::notify(dom, plat, here, this.port.load(Ordering::Relaxed), Backend::Xenstore);
        }
        Some((result, served.more))
    }
}

/// The guest kicked the store: carries out its requests, at most 16 short ones or one large one.
/// Returns whether some are left: call it again, after events have been looked at.
pub fn kicked<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>) -> bool {
    Xenstore::run(dom, plat, here, BUDGET, |_| ()).is_some_and(|((), more)| more)
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
    Xenstore::run(dom, plat, here, 0, f).map(|(result, _)| result)
}
