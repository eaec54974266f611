//! Staying with rings that were read.
//!
//! What a host sends while the guest deals with what it sent before would interrupt the guest again, for
//! each few packets. So whoever took a signal may stay: the ring is read with the host's signals
//! off, they stay off, and the ring is looked at again when the guest is done, which costs no VM
//! exit. What came meanwhile is the guest's next piece of work; a ring with nothing new is left.
//! It is what Linux's drivers do by polling (NAPI).
//!
//! Who stays must come back: [`VmBus::linger`] or [`VmBus::leave`] within a short, bounded time.

use arrayvec::ArrayVec;
use hv_abi::synic::EventFlags;
use hv_abi::vmbus::ChannelId;

use super::{Channel, Hypervisor, VmBus};

/// Channels of one virtual processor that can be stayed with at a time; others are not.
pub(super) const MAX_CHANNELS: usize = 14;

/// The channels a virtual processor stays with.
#[derive(Debug, Default)]
pub struct Lingering(pub(super) ArrayVec<ChannelId, MAX_CHANNELS>);

impl Lingering {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<H: Hypervisor> VmBus<H> {
    /// As [`Self::on_event_flags`], and stays with the channels.
    pub fn on_event_flags_lingering(&self, flags: &EventFlags, lingering: &mut Lingering) {
        self.each_signal(flags, |id| {
            let Some(channel) = self.channel(id) else { return };
            if lingering.0.contains(&id) || lingering.0.try_push(id).is_ok() {
                channel.linger();
            }
            self.read(&channel);
        });
    }

    /// Looks again: channels where something came are read, the others are left.
    pub fn linger(&self, lingering: &mut Lingering) {
        lingering.0.retain(|id| {
            // One that was closed, and perhaps opened again, has rings that are not masked.
            let Some(channel) = self.channel(*id) else { return false };
            let is_busy = channel.has_packets();
            if is_busy {
                self.read(&channel);
            } else {
                self.leave_one(&channel);
            }
            is_busy
        });
    }

    /// Leaves all channels: the host signals again.
    pub fn leave(&self, lingering: &mut Lingering) {
        for id in lingering.0.drain(..) {
            if let Some(channel) = self.channel(id) {
                self.leave_one(&channel);
            }
        }
    }

    /// The host signals again; what it sent before it knew is read.
    fn leave_one(&self, channel: &Channel) {
        if channel.leave() {
            self.read(channel);
        }
    }
}
