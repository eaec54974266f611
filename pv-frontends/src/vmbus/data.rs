//! The data path: sending and receiving on open channels.

use hv_abi::vmbus::ChannelId;

use super::client::VmBus;
use super::ring::{OutPacket, Packet, PagedRing, Received, RingError};
use super::state::ChannelState;
use super::{Channel, Counter, Event, Hypervisor, SendError, Span};

impl<H: Hypervisor> VmBus<H> {
    /// Sends a packet and signals the host where it sleeps.
    ///
    /// # Errors
    /// [`SendError`]; a corrupt ring closes the channel.
    pub fn send<S: Span>(
        &self,
        channel: &Channel,
        packet: &OutPacket<'_, S>,
    ) -> Result<(), SendError> {
        if self.send_quietly(channel, packet)? {
            self.signal(channel);
        }
        Ok(())
    }

    /// Sends a packet. `true`: the caller owes [`Self::signal`], now or after more packets.
    ///
    /// # Errors
    /// [`SendError`]; a corrupt ring closes the channel.
    pub fn send_quietly<S: Span>(
        &self,
        channel: &Channel,
        packet: &OutPacket<'_, S>,
    ) -> Result<bool, SendError> {
        let sent = channel.write(packet);
        if let Err(SendError::Ring(error)) = sent {
            self.corrupt(channel, error);
        }
        sent
    }

    /// Signals the host: there is something in the channel's ring.
    pub fn signal(&self, channel: &Channel) {
        let connection = channel.prepare_signal();
        let status = self.hv.signal_event(connection);
        if !status.is_success() {
            let what = format_args!("channel {} status {:#x}", channel.id().0, status.0);
            self.counters.add(&self.hv, Counter::SignalFailed, what);
        }
    }

    /// Hands up to `budget` packets of a channel to `each`. A corrupt ring closes the channel.
    pub fn receive(
        &self,
        channel: &Channel,
        budget: u32,
        each: impl FnMut(&Packet<'_, PagedRing>),
    ) -> Received {
        match channel.read(budget, each) {
            Ok((received, signal)) => {
                if signal {
                    self.signal(channel);
                }
                received
            }
            Err(error) => {
                self.corrupt(channel, error);
                Received::All
            }
        }
    }

    /// A ring is corrupt: nobody uses the channel any more, and the next [`Self::poll`] closes it.
    /// Not here: the caller may hold locks that the driver wants when it is told.
    fn corrupt(&self, channel: &Channel, error: RingError) {
        let id = channel.id();
        channel.set_open(false);
        let what = format_args!("channel {}: {error:?}", id.0);
        self.counters.add(&self.hv, Counter::RingCorrupt, what);
        self.corrupt.insert(id);
        self.poll_at(0);
    }

    pub(super) fn close_corrupt(&self, id: ChannelId) {
        let mut state = self.state.lock();
        let Some(entry) = state.offers.get(&id) else { return };
        // It may have been closed, even opened again, since.
        let is_open = entry.rings.as_ref().is_some_and(|rings| rings.channel.is_open());
        if entry.state != ChannelState::Open || entry.rescinded || is_open {
            return;
        }
        let driver = entry.driver;
        state.event(driver, Event::Broken(id));
        self.shut(&mut state, id, Event::Closed(id));
        self.finish(state);
    }
}
