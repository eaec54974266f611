//! A shared ring with its grant and its event channel.

use translate::evtchn::{self, Backend};
use translate::gnttab;
use translate::platform::Platform;
use xen_abi::PAGE_SIZE;
use xen_abi::grant_table::GrantRef;
use zerocopy::{Immutable, IntoBytes};

use super::Env;
use crate::ring::{BackRing, Pages};

/// An event channel of a backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u32,
    pub(super) backend: Backend,
}

impl Port {
    /// Tells the frontend.
    pub(super) fn notify<P: Platform>(self, env: &Env<'_, P>) {
        evtchn::notify(env.dom, env.plat, env.here, self.number, self.backend);
    }

    /// The vCPU that hears of it.
    pub(super) fn vcpu<P: Platform>(self, env: &Env<'_, P>) -> Option<u32> {
        env.dom.evtchn.state(self.number).map(evtchn::PortState::vcpu)
    }

    /// Binds it; `None` where it does not wait for this.
    pub(super) fn bind<P: Platform>(self, env: &Env<'_, P>) -> Option<Self> {
        env.dom.evtchn.bind_backend(self.number, self.backend).ok().map(|()| self)
    }

    pub(super) fn unbind<P: Platform>(self, env: &Env<'_, P>) {
        env.dom.evtchn.unbind_backend(self.number, self.backend);
    }
}

/// A connected ring. The event channel may be another's, too: binding it is the caller's.
pub(super) struct Line {
    pub(super) ring: BackRing<Pages>,
    gref: GrantRef,
    pub(super) port: Port,
    /// Nothing is taken any more: the frontend is gone, or what it says cannot be.
    pub(super) stopped: bool,
}

impl Line {
    /// Pins a ring's page and looks at it.
    pub(super) fn attach<P: Platform>(
        env: &Env<'_, P>,
        gref: GrantRef,
        entry_bytes: usize,
        port: Port,
    ) -> Option<Self> {
        let mfn = gnttab::map_page(env.dom, env.plat, gref, true).ok()?;
        let ring = env.plat.view(mfn.base()).and_then(|page| {
            let mut pages = Pages::default();
            pages.0.push(page);
            BackRing::attach(pages, PAGE_SIZE as usize, entry_bytes).ok()
        });
        if ring.is_none() {
            gnttab::release(env.dom, gref, true);
        }
        Some(Self { ring: ring?, gref, port, stopped: false })
    }

    /// Lets go of the page.
    pub(super) fn release<P: Platform>(self, env: &Env<'_, P>) {
        gnttab::release(env.dom, self.gref, true);
    }

    /// Puts a response: at most as long as an entry.
    pub(super) fn put<T: IntoBytes + Immutable>(&mut self, response: &T) {
        let mut words = [0u32; 4];
        let bytes = response.as_bytes();
        if let Some(to) = words.as_mut_bytes().get_mut(..bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self.ring.put(words.get(..bytes.len() / 4).unwrap_or_default());
    }

    /// Shows the responses, without telling of them: [`Self::push`] follows.
    pub(super) fn publish(&mut self) {
        self.ring.publish();
    }

    /// Shows the responses; the port to notify, if the frontend wants to be.
    #[must_use]
    pub(super) fn push(&mut self) -> Option<Port> {
        self.ring.push().then_some(self.port)
    }
}
