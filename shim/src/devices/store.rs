//! xenstore as backends' devices use it: the nodes they watch, and whose a watch is.

use pv_frontends::blkback::Env;
use pv_frontends::xenbus::{Store, Stores};
use translate::xenstore;

use super::{block, net};
use crate::platform::Shim;

/// Events of the store taken at a time.
const EVENTS: usize = 32;
/// Where a token says whose it is; below is the device's index.
const KIND_SHIFT: u32 = 16;

/// Who watches a node.
#[derive(Clone, Copy)]
pub(super) enum Watcher {
    /// The vbd with this index.
    Vbd(u16),
    /// The vif with this index.
    Vif(u16),
}

impl Watcher {
    const fn token(self) -> u32 {
        match self {
            Self::Vbd(index) => index as u32,
            Self::Vif(index) => 1 << KIND_SHIFT | index as u32,
        }
    }

    const fn of(token: u32) -> Option<Self> {
        let index = token as u16;
        match token >> KIND_SHIFT {
            0 => Some(Self::Vbd(index)),
            1 => Some(Self::Vif(index)),
            _ => None,
        }
    }

    /// Watches a node. Whether there was room for it.
    pub(super) fn watch(self, env: &Env<'_, Shim<'_>>, path: &str) -> bool {
        let Env { dom, plat, here } = *env;
        xenstore::with(dom, plat, here, |store| store.watch(path.as_bytes(), self.token()))
            == Some(Ok(()))
    }

    /// Watches it no longer.
    pub(super) fn unwatch(self, env: &Env<'_, Shim<'_>>, path: &str) {
        let Env { dom, plat, here } = *env;
        xenstore::with(dom, plat, here, |store| {
            // The watch may be gone with the node.
            let _ = store.unwatch(path.as_bytes(), self.token());
        });
    }
}

/// The store, for backends.
pub(super) struct Access<'a, 'b>(pub &'a Env<'b, Shim<'b>>);

impl Stores for Access<'_, '_> {
    fn with<R>(&self, f: impl FnOnce(&mut dyn Store) -> R) -> Option<R> {
        let Env { dom, plat, here } = self.0;
        xenstore::with(dom, *plat, *here, |store| f(store))
    }
}

/// Nodes that are watched were written. Whether there are more.
pub(super) fn changed(env: &Env<'_, Shim<'_>>) -> bool {
    let Env { dom, plat, here } = *env;
    let mut buf = [0; 16];
    for _ in 0..EVENTS {
        if !dom.xenstore.internal_pending() {
            return false;
        }
        let event = xenstore::with(dom, plat, here, |store| {
            store.next_internal_event(&mut buf).map(|(token, _)| token)
        });
        let Some(token) = event.flatten() else { return false };
        match Watcher::of(token) {
            Some(Watcher::Vbd(index)) => block::frontend_changed(env, index),
            Some(Watcher::Vif(index)) => net::frontend_changed(env, index),
            None => {}
        }
    }
    dom.xenstore.internal_pending()
}
