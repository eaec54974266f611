//! An open channel: its two rings, and how the host is signalled.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hv_abi::vmbus::{ChannelId, ConnectionId, InterruptPage, OfferChannel};
use spin::Mutex;

use super::ring::{Incoming, OutPacket, Outgoing, Packet, PagedRing, Received, RingError};
use super::{SendError, Span};

/// Both ends of a channel: towards the host, and from it.
pub(super) type RingPair = (Outgoing<PagedRing>, Incoming<PagedRing>);

/// A channel that is, or was, open. Drivers keep it in an `Arc`; once it is closed or rescinded it
/// refuses everything.
#[derive(Debug)]
pub struct Channel {
    offer: OfferChannel,
    /// Which driver has it.
    pub(super) driver: usize,
    /// Where a bit is to be set besides the signal, for hosts that want it.
    interrupt_page: Option<&'static InterruptPage>,
    /// The host answered that it is open, and it was not closed since.
    open: AtomicBool,
    target_vp: AtomicU32,
    /// The host is not to signal when all was read: somebody looks again ([`super::Lingering`]).
    lingers: AtomicBool,
    /// The rings; taken away when the channel closes, so that nobody uses their pages after.
    outgoing: Mutex<Option<Outgoing<PagedRing>>>,
    incoming: Mutex<Option<Incoming<PagedRing>>>,
}

impl Channel {
    pub(super) fn new(
        offer: OfferChannel,
        driver: usize,
        interrupt_page: Option<&'static InterruptPage>,
        target_vp: u32,
        rings: RingPair,
    ) -> Self {
        Self {
            offer,
            driver,
            interrupt_page,
            open: AtomicBool::new(false),
            target_vp: AtomicU32::new(target_vp),
            lingers: AtomicBool::new(false),
            outgoing: Mutex::new(Some(rings.0)),
            incoming: Mutex::new(Some(rings.1)),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> ChannelId {
        self.offer.channel_id
    }

    /// What was offered.
    #[must_use]
    pub const fn offer(&self) -> &OfferChannel {
        &self.offer
    }

    /// Virtual processor its signals come to.
    #[must_use]
    pub fn target_vp(&self) -> u32 {
        self.target_vp.load(Ordering::Relaxed)
    }

    pub(super) fn set_target_vp(&self, vp: u32) {
        self.target_vp.store(vp, Ordering::Relaxed);
    }

    /// Whether packets can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }

    /// Takes the rings away; when this returns, nobody touches their memory any more.
    pub(super) fn shut(&self) {
        self.set_open(false);
        drop(self.outgoing.lock().take());
        drop(self.incoming.lock().take());
    }

    /// Most bytes of a packet, header and footer included; 0 when closed.
    #[must_use]
    pub fn max_packet_bytes(&self) -> u32 {
        self.outgoing.lock().as_ref().map_or(0, Outgoing::max_packet_bytes)
    }

    /// Connection of the signal, after the bit beside it was set where one is wanted.
    pub(super) fn prepare_signal(&self) -> ConnectionId {
        if let Some(page) = self.interrupt_page
            && !self.offer.has_dedicated_interrupt()
        {
            let id = self.id().0;
            if let Some(word) = page.guest_to_host.get(id as usize / 64) {
                word.fetch_or(1 << (id % 64), Ordering::Release);
            }
        }
        self.offer.connection_id
    }

    pub(super) fn write<S: Span>(&self, packet: &OutPacket<'_, S>) -> Result<bool, SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        self.outgoing.lock().as_mut().ok_or(SendError::Closed)?.write(packet)
    }

    pub(super) fn read(
        &self,
        budget: u32,
        each: impl FnMut(&Packet<'_, PagedRing>),
    ) -> Result<(Received, bool), RingError> {
        if !self.is_open() {
            return Ok((Received::All, false));
        }
        match self.incoming.lock().as_mut() {
            Some(ring) if self.lingers.load(Ordering::Relaxed) => {
                ring.receive_and_stay(budget, each)
            }
            Some(ring) => ring.receive(budget, each),
            None => Ok((Received::All, false)),
        }
    }

    /// From now on its ring is read with the host's signals off, and they stay off.
    pub(super) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// Whether there is something to read. A corrupt ring is: reading it finds that out.
    pub(super) fn has_packets(&self) -> bool {
        self.incoming.lock().as_mut().is_some_and(|ring| ring.has_packets().unwrap_or(true))
    }

    /// The host is to signal again. `true`: there is something to read.
    pub(super) fn leave(&self) -> bool {
        self.lingers.store(false, Ordering::Relaxed);
        self.incoming.lock().as_mut().is_some_and(|ring| ring.unmask().unwrap_or(true))
    }
}
