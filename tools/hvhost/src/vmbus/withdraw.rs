//! Taking a device away: its workers end and then the guest is told; or, for devices that
//! go on answering what their guest has sent, the other way round.
//!
//! Linux' network driver waits for such answers before it lets a rescinded channel go. So
//! the guest is told first, and the channel's worker ends when the guest closes the channel
//! or releases its number; until then it writes no more than answers.

use super::{Action, ChannelId, ChannelState, RescindChannelOffer, Server};
use hv_abi::vmbus::ControlMessage;

impl Server {
    /// Takes a device away, all its channels.
    pub fn revoke(&mut self, device: usize) {
        let ids: Vec<_> =
            self.channels.iter().filter(|(_, c)| c.device == device).map(|(id, _)| *id).collect();
        // Sub-channels first, as their primary's end would take them along.
        for id in ids.into_iter().rev() {
            self.revoke_channel(id);
        }
    }

    pub(super) fn revoke_channel(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if std::mem::replace(&mut channel.revoked, true) {
            return;
        }
        if let ChannelState::Open { ring } = channel.state {
            channel.state = ChannelState::Closing { ring };
            self.actions.push(Action::Close(id));
        }
        if channel.state == ChannelState::Closed {
            self.rescind(id);
        }
    }

    /// Tells the guest of a revoked channel whose worker has ended: from then on
    /// it may use the rings' memory for other things.
    pub(super) fn rescind(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.told {
            self.channels.remove(&id);
        } else if !std::mem::replace(&mut channel.rescinded, true) {
            self.send(&RescindChannelOffer { channel_id: id, ..RescindChannelOffer::empty() });
        }
    }

    /// As [`Server::revoke`], for devices that go on answering.
    pub fn withdraw(&mut self, device: usize) {
        let of_device = self.channels.iter().filter(|(_, c)| c.device == device);
        let ids: Vec<_> = of_device.map(|(id, _)| *id).collect();
        // Sub-channels first, as their primary's end would take them along.
        for id in ids.into_iter().rev() {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            if std::mem::replace(&mut channel.revoked, true) {
                continue;
            }
            match channel.state {
                ChannelState::Open { .. } => {
                    self.actions.push(Action::Withdraw(id));
                    self.rescind(id);
                }
                ChannelState::Closed => self.rescind(id),
                // The guest is told when the worker has ended.
                ChannelState::Closing { .. } => {}
            }
        }
    }

    /// The guest has released the number of a channel it never closed.
    pub(super) fn withdrawn_is_released(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id)
            && let ChannelState::Open { ring } = channel.state
        {
            channel.state = ChannelState::Closing { ring };
            self.actions.push(Action::Close(id));
        }
    }
}
