//! What the client knows: connection, offers, GPADLs, and what is on its way.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use hv_abi::vmbus::gpadl::GpadlTeardown;
use hv_abi::vmbus::message::CloseChannel;
use hv_abi::vmbus::{
    ChannelId, ControlMessage, GpadlId, MAX_CHANNELS, OfferChannel, UserDefined, Version,
};
use translate::bits::bits;

use super::connection::{Connection, Pages};
use super::gpadl::{Gpadl, GpadlState};
use super::outbox::Outbox;
use super::{Channel, Event};

/// An offered channel.
#[derive(Debug)]
pub(super) struct Entry {
    pub offer: OfferChannel,
    pub driver: Option<usize>,
    pub state: ChannelState,
    pub rings: Option<Rings>,
    /// The host took it back; what is left is to tell the driver.
    pub rescinded: bool,
    /// Virtual processor of a MODIFYCHANNEL that was not answered.
    pub retargeting: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelState {
    Closed,
    /// The rings' GPADL is on its way; close as soon as possible where so told.
    MakingGpadl {
        cancelled: bool,
    },
    /// OPENCHANNEL is on its way.
    Opening {
        open_id: u32,
        cancelled: bool,
    },
    Open,
    /// The rings' GPADL is being taken back; the event that is due then.
    TearingDown(Option<Event>),
}

/// What an entry has while its channel is not closed.
#[derive(Debug)]
pub(super) struct Rings {
    pub channel: Arc<Channel>,
    pub gpadl: GpadlId,
    pub gpfns: Box<[u64]>,
    pub downstream_page: u32,
    pub user_data: UserDefined,
    pub deadline_ns: u64,
}

#[derive(Debug)]
pub(super) struct State {
    pub connection: Connection,
    pub pages: Option<Pages>,
    pub outbox: Outbox,
    pub events: VecDeque<(Option<usize>, Event)>,
    pub offers: BTreeMap<ChannelId, Entry>,
    pub gpadls: BTreeMap<GpadlId, Gpadl>,
    pub limbo: VecDeque<(u64, Box<[u64]>)>,
    pub next_gpadl: u32,
    pub next_open: u32,
}

impl State {
    /// A GPADL number that is free; not 0.
    pub(super) fn new_gpadl(&mut self) -> GpadlId {
        loop {
            self.next_gpadl = self.next_gpadl.wrapping_add(1).max(1);
            let id = GpadlId(self.next_gpadl);
            if !self.gpadls.contains_key(&id) {
                return id;
            }
        }
    }

    pub(super) fn new_open_id(&mut self) -> u32 {
        self.next_open = self.next_open.wrapping_add(1);
        self.next_open
    }

    pub(super) fn event(&mut self, driver: Option<usize>, event: Event) {
        if let Some(driver) = driver {
            self.events.push_back((Some(driver), event));
        }
    }

    pub(super) fn event_for_all(&mut self, event: Event) {
        self.events.push_back((None, event));
    }

    /// Takes a channel's rings back; `event` when it is done. The channel is shut already.
    pub(super) fn tear_down(&mut self, id: ChannelId, was_open: bool, event: Option<Event>) {
        let Some(entry) = self.offers.get_mut(&id) else { return };
        let Some(rings) = entry.rings.as_mut() else { return };
        entry.state = ChannelState::TearingDown(event);
        entry.retargeting = None;
        let gpadl_id = rings.gpadl;
        if was_open {
            self.outbox.push(&CloseChannel { channel_id: id, ..CloseChannel::empty() });
        }
        self.outbox.push(&GpadlTeardown { channel_id: id, gpadl_id, ..GpadlTeardown::empty() });
        if let Some(gpadl) = self.gpadls.get_mut(&gpadl_id) {
            gpadl.state = GpadlState::TearingDown;
        }
    }

    pub(super) fn version(&self) -> Option<Version> {
        match self.connection {
            Connection::Connected { version, .. } => Some(version),
            _ => None,
        }
    }
}

/// A set of channels, changed by any processor.
#[derive(Debug)]
pub(super) struct ChannelSet([AtomicU64; MAX_CHANNELS / 64]);

impl ChannelSet {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CHANNELS / 64])
    }

    pub(super) fn insert(&self, id: ChannelId) {
        if let Some(word) = self.0.get(id.0 as usize / 64) {
            word.fetch_or(1 << (id.0 % 64), Ordering::Release);
        }
    }

    /// Takes all out.
    pub(super) fn drain(&self, mut each: impl FnMut(ChannelId)) {
        for (nr, word) in self.0.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                bits(word.swap(0, Ordering::AcqRel)).for_each(|bit| {
                    each(ChannelId(nr as u32 * 64 + bit));
                });
            }
        }
    }
}
