//! An open channel, as the worker that serves it holds it.

use crate::synic::Synic;
use crate::vmbus::Bus;
use crate::vmbus::gpadl::Gpadl;
use crate::vmbus::packet::Packet;
use crate::vmbus::ring::{Incoming, Outbound, Outgoing, RingError};
use hv_abi::vmbus::message::VP_INDEX_NO_INTERRUPT;
use hv_abi::vmbus::{ChannelId, GpadlId, PacketType};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// Counters of a channel, kept over closing and opening.
#[derive(Debug, Default)]
pub struct ChannelCounters {
    /// Requests served.
    pub requests: AtomicU64,
    /// Bytes read by the guest.
    pub bytes_read: AtomicU64,
    /// Bytes written by the guest.
    pub bytes_written: AtomicU64,
    /// Signals from the guest.
    pub host_signals: AtomicU64,
    /// Interrupts sent to the guest.
    pub interrupts: AtomicU64,
    /// Packets that made no sense.
    pub malformed: AtomicU64,
}

/// JSON form of [`ChannelCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Requests served.
    pub requests: u64,
    /// Bytes read by the guest.
    pub bytes_read: u64,
    /// Bytes written by the guest.
    pub bytes_written: u64,
    /// Signals from the guest.
    pub host_signals: u64,
    /// Interrupts sent to the guest.
    pub interrupts: u64,
    /// Packets that made no sense.
    pub malformed: u64,
}

impl ChannelCounters {
    /// Values as they stand.
    #[must_use]
    pub fn report(&self) -> ChannelReport {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        ChannelReport {
            requests: get(&self.requests),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
            host_signals: get(&self.host_signals),
            interrupts: get(&self.interrupts),
            malformed: get(&self.malformed),
        }
    }
}

/// What others hold of an open channel: they wake its worker or stop it.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
    stop: AtomicBool,
    withdrawn: AtomicBool,
    /// Wakes that were not the guest's.
    own: AtomicU64,
    target_vp: AtomicU32,
}

impl Waker {
    /// For a channel that interrupts `target_vp`.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn new(target_vp: u32) -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            withdrawn: AtomicBool::new(false),
            own: AtomicU64::new(0),
            target_vp: AtomicU32::new(target_vp),
        })
    }

    /// What the guest's signals go to.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// A signal of the guest's that did not come through [`Self::event`].
    pub fn signal(&self) {
        // The counter of an eventfd overflows after 2^64 signals.
        let _ = self.event.write(1);
    }

    /// Wakes the worker for the device's own reasons.
    pub fn wake(&self) {
        self.own.fetch_add(1, Ordering::SeqCst);
        self.signal();
    }

    /// Asks the worker to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Tells the worker that its device is taken away.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Interrupts another virtual processor from now on.
    pub fn retarget(&self, vp: u32) {
        self.target_vp.store(vp, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Why a channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelError {
    /// The worker was asked to end.
    Stopped,
    /// The guest's ring makes no sense.
    Broken(RingError),
}

impl From<RingError> for ChannelError {
    fn from(error: RingError) -> Self {
        Self::Broken(error)
    }
}

/// An open channel.
pub struct Channel {
    /// Channel.
    pub id: ChannelId,
    /// 0: the primary channel.
    pub sub_channel: u16,
    /// Counters.
    pub counters: Arc<ChannelCounters>,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) waker: Arc<Waker>,
    pub(super) synic: Arc<Synic>,
    pub(super) sint: u8,
    pub(super) bus: Weak<Bus>,
}

impl Channel {
    /// Takes the next packet; `false`: there is none.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn receive(&mut self, packet: &mut Packet) -> Result<bool, ChannelError> {
        if self.waker.is_stopped() {
            return Err(ChannelError::Stopped);
        }
        Ok(self.incoming.next(packet)?)
    }

    /// Sends a packet; the guest sees it at the next [`Self::flush`]. Waits for
    /// room where there is none.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn send(&mut self, packet: &Outbound<'_>) -> Result<(), ChannelError> {
        while !self.outgoing.put(packet)? {
            // What is there already may be what the guest waits for.
            self.flush();
            self.outgoing.wait_for(Some(packet));
            if self.outgoing.put(packet)? {
                break;
            }
            self.sleep()?;
        }
        self.outgoing.wait_for(None);
        Ok(())
    }

    /// As [`Self::send`], without waiting. `false`: there is no room; the guest signals when
    /// there is.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn try_send(&mut self, packet: &Outbound<'_>) -> Result<bool, ChannelError> {
        if !self.outgoing.put(packet)? {
            self.flush();
            self.outgoing.wait_for(Some(packet));
            if !self.outgoing.put(packet)? {
                return Ok(false);
            }
        }
        self.outgoing.wait_for(None);
        Ok(true)
    }

    /// Answers a transaction.
    ///
    /// # Errors
    /// The channel cannot go on.
    pub fn complete(&mut self, transaction: u64, payload: &[u8]) -> Result<(), ChannelError> {
        let kind = PacketType::COMPLETION;
        self.send(&Outbound { kind, flags: 0, transaction, more: &[], payload })
    }

    /// Shows the guest all that was sent and taken, and interrupts it if needed.
    pub fn flush(&mut self) {
        let (space, packets) = (self.incoming.commit(), self.outgoing.commit());
        if space || packets {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        let vp = self.waker.target_vp.load(Ordering::SeqCst);
        // The flag's number is the channel's, below 2048.
        if vp != VP_INDEX_NO_INTERRUPT && self.synic.signal(vp, self.sint, self.id.0 as u16) {
            self.counters.interrupts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for packets or a wake. With both it may return without either.
    ///
    /// # Errors
    /// The worker was asked to end.
    pub fn wait(&mut self) -> Result<(), ChannelError> {
        self.flush();
        self.incoming.want_signals(true);
        if !self.incoming.has_work() {
            // Of a worker that is to end the ring may be no more.
            self.sleep()?;
        }
        self.incoming.want_signals(false);
        Ok(())
    }

    /// Whether the device is taken away, and the guest knows: it may be answered still.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.waker.withdrawn.load(Ordering::SeqCst)
    }

    /// Waits until the worker is to end: for channels that cannot go on.
    pub fn wait_for_stop(&mut self) {
        while self.sleep().is_ok() {}
    }

    fn sleep(&self) -> Result<(), ChannelError> {
        if self.waker.is_stopped() {
            return Err(ChannelError::Stopped);
        }
        // An interrupted wait is a spurious wake-up.
        let signals = self.waker.event.read().unwrap_or(0);
        let own = self.waker.own.swap(0, Ordering::SeqCst);
        self.counters.host_signals.fetch_add(signals.saturating_sub(own), Ordering::Relaxed);
        if self.waker.is_stopped() { Err(ChannelError::Stopped) } else { Ok(()) }
    }

    /// What others may wake this channel's worker with.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Offers sub-channels 1 to `count`; `false`: that is not possible.
    #[must_use]
    pub fn offer_sub_channels(&self, count: u16) -> bool {
        self.bus.upgrade().is_some_and(|bus| bus.offer_sub_channels(self.id, count))
    }

    /// Memory the guest has shown to this channel.
    #[must_use]
    pub fn gpadl(&self, id: GpadlId) -> Option<Arc<Gpadl>> {
        self.bus.upgrade()?.gpadl(self.id, id)
    }

    /// Counts a packet that makes no sense.
    pub fn malformed(&self) {
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
    }
}
