//! From the bus to the drivers.

use core::sync::atomic::Ordering;

use hv_abi::synic::EventFlags;
use hv_abi::vmbus::{ChannelId, GpadlId, NtStatus, OfferChannel, Version};
use translate::bits::bits;

use super::{Channel, Hypervisor, OpenError, Received, VmBus};

/// Something a driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// To all: connected, and offers were asked for.
    Connected(Version),
    /// To all: every offer there was has been seen. Others may follow at any time.
    OffersDelivered,
    /// To all: no connection could be made, or the host takes no more messages.
    Disconnected,
    /// A channel that the driver wants; sub-channels, too.
    Offered(OfferChannel),
    /// The channel can be used: [`VmBus::channel`].
    Opened(ChannelId),
    /// It could not be opened, and can be tried again; after [`OpenError::TimedOut`] only once
    /// [`Event::Closed`] follows.
    OpenFailed(ChannelId, OpenError),
    /// A ring was corrupt; the channel is being closed, [`Event::Closed`] follows.
    Broken(ChannelId),
    /// The channel is closed and can be opened again.
    Closed(ChannelId),
    /// The channel is gone: no answer will come to anything, its number is given back when the
    /// driver returns. Its GPADLs are gone, too.
    Rescinded(ChannelId),
    /// Answer to [`VmBus::create_gpadl`].
    GpadlCreated(ChannelId, GpadlId, NtStatus),
    /// Answer to [`VmBus::teardown_gpadl`]: the pages are the driver's own again.
    GpadlTorndown(ChannelId, GpadlId),
    /// Answer to [`VmBus::retarget`].
    Retargeted(ChannelId, NtStatus),
}

/// A driver of some kind of channel. Called on any virtual processor, with interrupts off; must not
/// wait.
pub trait Driver<H: Hypervisor>: Send + Sync {
    /// Whether it drives this offer. The first driver that says so gets it.
    fn wants(&self, offer: &OfferChannel) -> bool;
    /// One event at a time, in their order.
    fn on_event(&self, bus: &VmBus<H>, event: &Event);
    /// The host signalled the channel: packets may be there. [`Received::More`] to be called again
    /// soon.
    fn on_signal(&self, bus: &VmBus<H>, channel: &Channel) -> Received;
    /// Time-outs. When to be called again, as [`Hypervisor::now_ns`] counts; it may be called
    /// earlier.
    fn poll(&self, bus: &VmBus<H>) -> Option<u64> {
        let _ = bus;
        None
    }
}

impl<H: Hypervisor> VmBus<H> {
    /// Takes the flags that are set and lets the drivers of those channels read. `flags` are those
    /// of the VMBus SINT on the calling virtual processor.
    pub fn on_event_flags(&self, flags: &EventFlags) {
        self.each_signal(flags, |id| self.on_signal(id));
    }

    pub(super) fn each_signal(&self, flags: &EventFlags, mut each: impl FnMut(ChannelId)) {
        // Of channels that were never open there are none.
        let used = self.flag_words.load(Ordering::Relaxed);
        for (nr, word) in flags.words.iter().enumerate().take(used) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Taken before the rings are read: a signal that comes later sets the flag again.
            for bit in bits(word.swap(0, Ordering::AcqRel)) {
                each(ChannelId(nr as u32 * 64 + bit));
            }
        }
    }

    /// The host signalled a channel. Channels that are not open are none.
    pub fn on_signal(&self, id: ChannelId) {
        if let Some(channel) = self.channel(id) {
            self.read(&channel);
        }
    }

    /// Lets a channel's driver read.
    pub(super) fn read(&self, channel: &Channel) {
        let Some(driver) = self.drivers.get(channel.driver) else { return };
        if driver.on_signal(self, channel) == Received::More {
            self.again(channel.id());
        }
    }

    /// Hands events to drivers until there are none. One processor at a time, so that drivers see
    /// them in order; another finds the flag set and leaves its events to it.
    pub(super) fn dispatch(&self) {
        loop {
            if self.dispatching.swap(true, Ordering::Acquire) {
                return;
            }
            while let Some((driver, event)) = self.next_event() {
                self.deliver(driver, &event);
            }
            self.dispatching.store(false, Ordering::Release);
            // An event that was added after the last look and before the flag was cleared, by a
            // processor that found the flag set. The lock of the state orders both.
            if !self.has_events() {
                return;
            }
        }
    }

    // Its own frame, and small: drivers need the stack.
    #[inline(never)]
    fn deliver(&self, driver: Option<usize>, event: &Event) {
        match driver {
            Some(driver) => {
                if let Some(driver) = self.drivers.get(driver) {
                    driver.on_event(self, event);
                }
            }
            None => self.drivers.iter().for_each(|driver| driver.on_event(self, event)),
        }
        match *event {
            Event::Rescinded(id) => self.release(id),
            // A signal that came before the driver knew the channel would be lost otherwise.
            Event::Opened(id) => self.again(id),
            _ => {}
        }
    }
}
