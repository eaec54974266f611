//! Coming and going: version negotiation, UNLOAD.

use core::sync::atomic::Ordering;

use hv_abi::synic::VMBUS_SINT;
use hv_abi::vmbus::version::{ConnectionState, TargetInfo};
use hv_abi::vmbus::{
    ConnectionId, ControlMessage, FeatureFlags, InitiateContact, InterruptPage, MAX_MESSAGE_BYTES,
    MessageHeader, MessageType, MonitorPage, Version, VersionResponse,
};
use hv_abi::{HvStatus, PAGE_SIZE};
use spin::MutexGuard;
use zerocopy::{FromBytes, IntoBytes};

use super::outbox::Flush;
use super::state::State;
use super::{Counter, Event, Hypervisor, Shared, VmBus};

/// What is proposed, newest first.
const VERSIONS: [Version; 7] = [
    Version::V5_3,
    Version::V5_2,
    Version::V5_1,
    Version::V5_0,
    Version::V4_1,
    Version::V4_0,
    Version::V3_0,
];
/// How long the host may take for the answer to a proposal.
const CONTACT_TIMEOUT_NS: u64 = 10_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    Disconnected,
    /// The proposal of `VERSIONS[nr]` is on its way.
    Negotiating {
        nr: usize,
        deadline_ns: u64,
    },
    Connected {
        version: Version,
        delivered: bool,
    },
}

/// Pages of the connection as a whole.
#[derive(Debug)]
pub(super) struct Pages {
    interrupt: Shared<InterruptPage>,
    /// Written by the host, written by the guest.
    monitor: [Shared<MonitorPage>; 2],
    /// The interrupt page's address went to the host.
    uses_interrupt_page: bool,
}

impl Pages {
    fn new<H: Hypervisor>(hv: &H) -> Option<Self> {
        let interrupt: Shared<InterruptPage> = hv.allocate()?;
        let Some(first) = hv.allocate() else {
            hv.free(interrupt.gpfn);
            return None;
        };
        let Some(second) = hv.allocate() else {
            hv.free(interrupt.gpfn);
            hv.free(first.gpfn);
            return None;
        };
        Some(Self { interrupt, monitor: [first, second], uses_interrupt_page: false })
    }

    /// The interrupt page, where the host knows of one.
    pub(super) fn interrupt_page(&self) -> Option<&'static InterruptPage> {
        self.uses_interrupt_page.then_some(self.interrupt.view)
    }
}

impl<H: Hypervisor> VmBus<H> {
    /// Begins to connect: [`Event::Connected`] or [`Event::Disconnected`] follows, then offers. The
    /// host's messages will come to the calling virtual processor. Does nothing while connected.
    pub fn connect(&self) {
        let mut state = self.state.lock();
        if state.connection != Connection::Disconnected {
            return;
        }
        if state.pages.is_none() {
            state.pages = Pages::new(&self.hv);
        }
        self.unloaded.store(false, Ordering::Relaxed);
        self.propose(&mut state, 0);
        self.finish(state);
    }

    /// Proposes `VERSIONS[nr]`; after the last, it is over.
    fn propose(&self, state: &mut State, nr: usize) {
        let (Some(&version), Some(pages)) = (VERSIONS.get(nr), state.pages.as_mut()) else {
            self.lost(state);
            return;
        };
        let address = |gpfn: u64| gpfn * PAGE_SIZE as u64;
        pages.uses_interrupt_page = version < Version::V5_0;
        let third = if pages.uses_interrupt_page {
            address(pages.interrupt.gpfn)
        } else {
            TargetInfo::new(VMBUS_SINT, 0, FeatureFlags::empty()).0
        };
        let contact = InitiateContact {
            version,
            target_vp: self.hv.vp_index(),
            interrupt_page_or_target_info: third,
            parent_to_child_monitor_page: address(pages.monitor[0].gpfn),
            child_to_parent_monitor_page: address(pages.monitor[1].gpfn),
            ..InitiateContact::empty()
        };
        state.outbox.clear();
        state.outbox.push(&contact);
        let to =
            if version >= Version::V5_0 { ConnectionId::MESSAGE_V5 } else { ConnectionId::MESSAGE };
        self.message_connection.store(to.0, Ordering::Relaxed);
        let deadline_ns = self.hv.now_ns().saturating_add(CONTACT_TIMEOUT_NS);
        state.connection = Connection::Negotiating { nr, deadline_ns };
        self.poll_at(deadline_ns);
    }

    /// There is no connection.
    fn lost(&self, state: &mut State) {
        self.message_connection.store(0, Ordering::Relaxed);
        state.connection = Connection::Disconnected;
        state.outbox.clear();
        state.event_for_all(Event::Disconnected);
    }

    pub(super) fn check_negotiation(&self, state: &mut State, now: u64) {
        let Connection::Negotiating { nr, deadline_ns } = state.connection else { return };
        if now < deadline_ns {
            self.poll_at(deadline_ns);
            return;
        }
        let version = VERSIONS.get(nr).copied().unwrap_or(Version(0));
        self.counters.add(&self.hv, Counter::TimedOut, format_args!("version {version}"));
        self.lost(state);
    }

    pub(super) fn on_version_response(&self, state: &mut State, response: &VersionResponse) {
        let Connection::Negotiating { nr, .. } = state.connection else {
            self.unexpected(MessageType::VERSION_RESPONSE, 0);
            return;
        };
        let version = VERSIONS.get(nr).copied().unwrap_or(Version(0));
        if response.version_supported == 0 {
            self.propose(state, nr + 1);
            return;
        }
        if response.connection_state != ConnectionState::SUCCESSFUL {
            self.hv.log(format_args!(
                "vmbus: version {version} refused, state {}",
                response.connection_state.0
            ));
            self.lost(state);
            return;
        }
        if version >= Version::V5_0 {
            let id = response.connection_id_or_version;
            if id == 0 || id > 0xff_ffff {
                let what = format_args!("message connection {id:#x}");
                self.counters.add(&self.hv, Counter::Malformed, what);
                self.lost(state);
                return;
            }
            self.message_connection.store(id, Ordering::Relaxed);
        }
        self.hv.log(format_args!("vmbus: version {version}"));
        state.connection = Connection::Connected { version, delivered: false };
        state.outbox.push_bare(MessageType::REQUEST_OFFERS);
        state.event_for_all(Event::Connected(version));
    }

    /// Posts what waits and lets the state go. Ends every call that changed something. Events are
    /// left to [`Self::poll`] or whoever received a message: the caller may be a driver that holds
    /// its own locks.
    pub(super) fn finish(&self, mut state: MutexGuard<'_, State>) {
        while !state.outbox.is_empty() {
            let to = ConnectionId(self.message_connection.load(Ordering::Relaxed));
            if to.0 == 0 {
                state.outbox.clear();
                break;
            }
            match state.outbox.flush(&self.hv, to, &self.counters) {
                Flush::Done => break,
                Flush::Later(ns) => {
                    self.poll_at(ns);
                    break;
                }
                // Each turn proposes an older version; after the last the outbox is empty.
                Flush::NoConnection => match state.connection {
                    Connection::Negotiating { nr, .. } => self.propose(&mut state, nr + 1),
                    _ => self.lost(&mut state),
                },
                Flush::Dead => self.lost(&mut state),
            }
        }
        if !state.events.is_empty() {
            self.poll_at(0);
        }
    }

    /// Tells the host that this guest is done with everything, and waits, polling, for its answer:
    /// before a reset, before another kernel takes over, or in a crash. Takes no lock and needs no
    /// interrupts. `true`: the host answered, or there was no connection. Afterwards the bus is
    /// dead.
    pub fn unload(&self, timeout_ns: u64) -> bool {
        /// Turns for each nanosecond allowed would outlive any clock; this bounds a clock that
        /// stands still.
        const MAX_TURNS: u32 = 100_000_000;
        let to = ConnectionId(self.message_connection.swap(0, Ordering::Relaxed));
        if to.0 == 0 {
            return true;
        }
        let deadline = self.hv.now_ns().saturating_add(timeout_ns);
        let unload = MessageHeader::new(MessageType::UNLOAD);
        let mut posted = false;
        let mut payload = [0; MAX_MESSAGE_BYTES];
        for _ in 0..MAX_TURNS {
            if !posted {
                match self.hv.post_message(to, unload.as_bytes()) {
                    HvStatus::SUCCESS => posted = true,
                    HvStatus::INSUFFICIENT_BUFFERS
                    | HvStatus::INSUFFICIENT_MEMORY
                    | HvStatus::INVALID_CONNECTION_ID => {}
                    _ => return false,
                }
            }
            // Messages of any kind are taken: they stand before the answer.
            while posted && let Some(bytes) = self.hv.take_message(&mut payload) {
                let header = payload.get(..bytes.min(MAX_MESSAGE_BYTES)).unwrap_or_default();
                if MessageHeader::read_from_prefix(header)
                    .is_ok_and(|(header, _)| header.message_type == MessageType::UNLOAD_RESPONSE)
                {
                    self.unloaded.store(true, Ordering::Release);
                    break;
                }
                if self.hv.now_ns() >= deadline {
                    break;
                }
            }
            // Or another processor's interrupt handler got it.
            if self.unloaded.load(Ordering::Acquire) {
                return true;
            }
            if self.hv.now_ns() >= deadline {
                return false;
            }
            self.hv.relax();
        }
        false
    }
}
