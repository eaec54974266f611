//! Messages to the host, in order. The host has room for few; what it refuses for now is posted
//! again later, by [`VmBus::poll`](super::VmBus::poll).

use alloc::collections::VecDeque;

use hv_abi::HvStatus;
use hv_abi::vmbus::{ConnectionId, ControlMessage, GpadlId, MessageHeader, MessageType};
use zerocopy::FromBytes;

use super::gpadl::{Posted, Sending, append};
use super::{Counter, Counters, Hypervisor};

/// First wait after a refusal; it doubles.
const FIRST_WAIT_NS: u64 = 100_000;
/// Longest wait.
const MAX_WAIT_NS: u64 = 100_000_000;
/// A host that refuses for this long has given up, and so does the client.
const GIVE_UP_NS: u64 = 60_000_000_000;
/// Messages posted in one go: each is a hypercall, with interrupts off.
const BATCH: usize = 32;
/// Messages that may wait. Only a host that plays games gets there.
const MAX_WAITING: usize = 8192;

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are messages, and a box would be a second one")]
enum Out {
    Message(Posted),
    Gpadl(Sending),
}

/// What became of [`Outbox::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// Everything is posted.
    Done,
    /// Again at this time.
    Later(u64),
    /// A proposal of a version was refused: its connection does not exist.
    NoConnection,
    /// The host takes no messages any more.
    Dead,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Out>,
    wait_ns: u64,
    refused_since_ns: Option<u64>,
    overflown: bool,
}

impl Outbox {
    pub(super) fn push<T: ControlMessage>(&mut self, message: &T) {
        let mut posted = Posted::new();
        append(&mut posted, message.as_bytes());
        self.put(Out::Message(posted));
    }

    /// A message without arguments.
    pub(super) fn push_bare(&mut self, message_type: MessageType) {
        let mut posted = Posted::new();
        append(&mut posted, zerocopy::IntoBytes::as_bytes(&MessageHeader::new(message_type)));
        self.put(Out::Message(posted));
    }

    pub(super) fn push_gpadl(&mut self, gpadl: Sending) {
        self.put(Out::Gpadl(gpadl));
    }

    fn put(&mut self, out: Out) {
        if self.queue.len() < MAX_WAITING {
            self.queue.push_back(out);
        } else {
            self.overflown = true;
        }
    }

    /// Drops the rest of a list nobody waits for any more.
    pub(super) fn forget_gpadl(&mut self, id: GpadlId) {
        self.queue.retain(|out| !matches!(out, Out::Gpadl(gpadl) if gpadl.id == id));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Posts what the host takes.
    pub(super) fn flush<H: Hypervisor>(
        &mut self,
        hv: &H,
        to: ConnectionId,
        counters: &Counters,
    ) -> Flush {
        if self.overflown {
            return Flush::Dead;
        }
        for _ in 0..BATCH {
            let (message, words) = match self.queue.front() {
                None => return Flush::Done,
                Some(Out::Message(message)) => (message.clone(), 0),
                Some(Out::Gpadl(gpadl)) => gpadl.message(),
            };
            let status = hv.post_message(to, &message);
            if !status.is_success() {
                return self.refused(hv, &message, status, counters);
            }
            (self.wait_ns, self.refused_since_ns) = (0, None);
            let is_last = match self.queue.front_mut() {
                Some(Out::Gpadl(gpadl)) => gpadl.posted(words),
                _ => true,
            };
            if is_last {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() { Flush::Done } else { Flush::Later(hv.now_ns()) }
    }

    fn refused<H: Hypervisor>(
        &mut self,
        hv: &H,
        message: &[u8],
        status: HvStatus,
        counters: &Counters,
    ) -> Flush {
        let header = MessageHeader::read_from_prefix(message).map(|(header, _)| header);
        let message_type = header.map_or(MessageType::INVALID, |header| header.message_type);
        let is_proposal = message_type == MessageType::INITIATE_CONTACT;
        let transient = match status {
            HvStatus::INSUFFICIENT_BUFFERS | HvStatus::INSUFFICIENT_MEMORY => true,
            // Also what a host says that gets too many messages.
            HvStatus::INVALID_CONNECTION_ID => !is_proposal,
            _ => false,
        };
        if !transient {
            let what = format_args!("message type {} status {:#x}", message_type.0, status.0);
            counters.add(hv, Counter::PostFailed, what);
            return if is_proposal { Flush::NoConnection } else { Flush::Dead };
        }
        counters.add(hv, Counter::PostRetry, format_args!("status {:#x}", status.0));
        let now = hv.now_ns();
        let since = *self.refused_since_ns.get_or_insert(now);
        if now.saturating_sub(since) > GIVE_UP_NS {
            return Flush::Dead;
        }
        self.wait_ns = (self.wait_ns * 2).clamp(FIRST_WAIT_NS, MAX_WAIT_NS);
        Flush::Later(now.saturating_add(self.wait_ns))
    }
}
