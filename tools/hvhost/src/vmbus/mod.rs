//! VMBus, the host's side: how a guest finds its devices and talks to them.
//!
//! ```text
//! vCPU exits (HvPostMessage, HvSignalEvent) ──> Bus ── server: what it means
//!                                                │        actions
//!   messages to the guest  <── synic <───────────┤
//!   one thread for each open channel <───────────┘
//!     channel: ring, packet, gpadl     device: storvsp, …
//! ```
//!
//! A device implements [`Device`] and is given to [`Bus::offer`]. For each channel
//! the guest opens, [`Device::run`] is called on a thread of its own; it serves
//! [`Channel`] until that says [`ChannelError::Stopped`]. The guest's signals reach
//! the thread through an eventfd which KVM writes itself where it can.

pub mod action;
pub mod channel;
pub mod gpadl;
pub mod monitor;
pub mod packet;
pub mod ring;
pub mod server;
#[cfg(test)]
pub(crate) mod test_guest;

pub use action::Offer;
pub use channel::{Channel, ChannelCounters, ChannelError, ChannelReport, Waker};
pub use packet::{Packet, PageRange};
pub use ring::Outbound;

use crate::kvm_ext;
use crate::memory::Memory;
use crate::stats::Counters;
use crate::synic::Synic;
use action::{Action, Opening};
use gpadl::Gpadl;
use hv_abi::hypercall::{CallCode, Control};
use hv_abi::synic::MessageType;
use hv_abi::vmbus::{ChannelId, ConnectionId, GpadlId, MAX_MESSAGE_BYTES};
use hv_abi::{HvStatus, PAGE_SIZE};
use kvm_ioctls::VmFd;
use monitor::Monitor;
use ring::{Incoming, Outgoing, RingPages};
use server::Server;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A device on the bus.
pub trait Device: Send + Sync {
    /// Name for counters and messages, such as "scsi0".
    fn name(&self) -> String;

    /// What the guest is told of it.
    fn offer(&self) -> Offer;

    /// Serves an open channel until [`ChannelError::Stopped`].
    fn run(&self, channel: &mut Channel);

    /// Whether it goes on answering when it is taken away ([`Channel::is_withdrawn`]), until
    /// the guest lets go. Else its workers end before the guest is told.
    fn answers_to_the_end(&self) -> bool {
        false
    }
}

/// Input of HvPostMessage (TLFS 11.10.1).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PostMessage {
    connection: ConnectionId,
    reserved: u32,
    message_type: u32,
    payload_bytes: u32,
    payload: [u8; MAX_MESSAGE_BYTES],
}

/// Connection ids have 24 bits.
const CONNECTION_MASK: u32 = 0xff_ffff;

struct Worker {
    waker: Arc<Waker>,
    connection: ConnectionId,
    /// KVM signals the worker itself.
    in_kernel: bool,
    monitor: Option<u8>,
}

#[derive(Default)]
struct Inner {
    devices: Vec<Option<Arc<dyn Device>>>,
    workers: BTreeMap<ChannelId, Worker>,
}

/// The bus.
pub struct Bus {
    me: std::sync::Weak<Self>,
    memory: Memory,
    synic: Arc<Synic>,
    vm: Option<Arc<VmFd>>,
    counters: Arc<Counters>,
    state: Mutex<(Server, Inner)>,
    monitor: Arc<Monitor>,
}

impl Bus {
    /// A bus without devices; `vm` is asked to signal workers itself.
    #[must_use]
    pub fn new(
        memory: &Memory,
        synic: Arc<Synic>,
        vm: Option<Arc<VmFd>>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let server = Server::new(memory.clone(), synic.vp_count());
        let monitor = Monitor::new(memory.clone());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            memory: memory.clone(),
            synic,
            vm,
            counters,
            state: Mutex::new((server, Inner::default())),
            monitor,
        })
    }

    fn lock(&self) -> MutexGuard<'_, (Server, Inner)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a device. The number returned is for [`Self::revoke`]; `None`: no
    /// channel is left.
    pub fn offer(&self, device: Arc<dyn Device>) -> Option<usize> {
        let mut state = self.lock();
        let (server, inner) = &mut *state;
        let number = inner.devices.len();
        let offer = device.offer();
        inner.devices.push(Some(device));
        let offered = server.offer(number, &offer);
        self.act(&mut state);
        offered.map(|_| number)
    }

    /// Takes a device away from the guest.
    pub fn revoke(&self, device: usize) {
        let mut state = self.lock();
        let (server, inner) = &mut *state;
        let gone = inner.devices.get_mut(device).and_then(Option::take);
        if gone.is_some_and(|device| device.answers_to_the_end()) {
            server.withdraw(device);
        } else {
            server.revoke(device);
        }
        self.act(&mut state);
    }

    /// Result of a hypercall KVM hands on; `parameter` is its first (RDX).
    #[must_use]
    pub fn hypercall(&self, control: Control, parameter: u64) -> HvStatus {
        match control.code() {
            CallCode::POST_MESSAGE => self.post_message(control, parameter),
            CallCode::SIGNAL_EVENT => self.signal_event(control, parameter),
            _ => HvStatus::INVALID_HYPERCALL_CODE,
        }
    }

    fn post_message(&self, control: Control, input: u64) -> HvStatus {
        if control != Control::new(CallCode::POST_MESSAGE) {
            return HvStatus::INVALID_HYPERCALL_INPUT;
        }
        let offset = input as usize % PAGE_SIZE;
        if !input.is_multiple_of(8) || offset + size_of::<PostMessage>() > PAGE_SIZE {
            return HvStatus::INVALID_ALIGNMENT;
        }
        let mut bytes = [0u8; size_of::<PostMessage>()];
        if self.memory.read_slice(&mut bytes, GuestAddress(input)).is_err() {
            return HvStatus::INVALID_PARAMETER;
        }
        let post: PostMessage = zerocopy::transmute!(bytes);
        let Some(payload) = post.payload.get(..post.payload_bytes as usize) else {
            return HvStatus::INVALID_PARAMETER;
        };
        if MessageType(post.message_type).is_hypervisor() || post.message_type == 0 {
            return HvStatus::INVALID_PARAMETER;
        }
        let port = ConnectionId(post.connection.0 & CONNECTION_MASK);
        if !Server::is_message_connection(port) {
            return HvStatus::INVALID_CONNECTION_ID;
        }
        let mut state = self.lock();
        let before = state.0.malformed();
        state.0.message(port, payload);
        self.counters.vmbus_malformed(state.0.malformed() - before);
        self.act(&mut state);
        HvStatus::SUCCESS
    }

    /// Signals KVM does not deliver itself.
    fn signal_event(&self, control: Control, parameter: u64) -> HvStatus {
        let plain = Control::new(CallCode::SIGNAL_EVENT);
        let value = if control == plain.fast() {
            parameter
        } else if control != plain {
            return HvStatus::INVALID_HYPERCALL_INPUT;
        } else if !parameter.is_multiple_of(8) {
            return HvStatus::INVALID_ALIGNMENT;
        } else {
            match self.memory.read_obj::<u64>(GuestAddress(parameter)) {
                Ok(value) => value,
                Err(_) => return HvStatus::INVALID_PARAMETER,
            }
        };
        let (connection, flag) = (ConnectionId(value as u32 & CONNECTION_MASK), value >> 32);
        if flag != 0 {
            return HvStatus::INVALID_PORT_ID;
        }
        let state = self.lock();
        match state.1.workers.values().find(|worker| worker.connection == connection) {
            Some(worker) => worker.waker.signal(),
            None if state.0.is_event_connection(connection) => {}
            None => return HvStatus::INVALID_CONNECTION_ID,
        }
        HvStatus::SUCCESS
    }

    /// Offers sub-channels of an open channel.
    pub(crate) fn offer_sub_channels(&self, primary: ChannelId, count: u16) -> bool {
        let mut state = self.lock();
        let done = state.0.offer_sub_channels(primary, count);
        self.act(&mut state);
        done
    }

    /// Memory the guest has shown to a channel.
    pub(crate) fn gpadl(&self, channel: ChannelId, id: GpadlId) -> Option<Arc<Gpadl>> {
        self.lock().0.gpadl(channel, id)
    }

    /// Does what the server wants.
    fn act(&self, state: &mut (Server, Inner)) {
        loop {
            let mut actions = state.0.take_actions();
            if actions.is_empty() {
                return;
            }
            actions.reverse();
            while let Some(action) = actions.pop() {
                match action {
                    Action::Send { vp, sint, message } => self.synic.post(vp, sint, &message),
                    Action::Open(opening) => {
                        let id = opening.channel;
                        if let Err(error) = self.open(&mut state.1, &opening) {
                            eprintln!("hvhost: VMBus channel {}: {error:#}\r", id.0);
                            actions.reverse();
                            state.0.not_opened(id, &mut actions);
                            actions.reverse();
                        }
                    }
                    Action::Close(id) => {
                        if let Some(worker) = state.1.workers.get(&id) {
                            worker.waker.stop();
                        }
                    }
                    Action::Withdraw(id) => {
                        if let Some(worker) = state.1.workers.get(&id) {
                            worker.waker.withdraw();
                        }
                    }
                    Action::Retarget(id, vp) => {
                        if let Some(worker) = state.1.workers.get(&id) {
                            worker.waker.retarget(vp);
                        }
                    }
                    Action::Monitor(page) => self.monitor.set_page(page),
                }
            }
        }
    }

    fn open(&self, inner: &mut Inner, opening: &Opening) -> anyhow::Result<()> {
        use anyhow::{Context, anyhow};
        let device = inner.devices.get(opening.device).cloned().flatten().context("no device")?;
        let pages = opening.ring.whole_pages().context("the ring is not of whole pages")?;
        let bad = |e: ring::RingError| anyhow!("the rings are unusable: {e:?}");
        let (up, down) = pages
            .split_at_checked(opening.downstream_page)
            .context("the second ring lies outside of its memory")?;
        let incoming =
            Incoming::new(RingPages::new(&self.memory, up).map_err(bad)?).map_err(bad)?;
        let outgoing =
            Outgoing::new(RingPages::new(&self.memory, down).map_err(bad)?).map_err(bad)?;
        let waker = Arc::new(Waker::new(opening.target_vp)?);
        let id = opening.channel;
        let mut name = device.name();
        if opening.sub_channel != 0 {
            name.push_str(&format!(".{}", opening.sub_channel));
        }
        let mut channel = Channel {
            id,
            sub_channel: opening.sub_channel,
            counters: self.counters.channel(&name),
            incoming,
            outgoing,
            waker: waker.clone(),
            synic: self.synic.clone(),
            sint: opening.sint,
            bus: self.me.clone(),
        };
        let connection = opening.connection;
        let me = self.me.clone();
        thread::Builder::new().name(name).spawn(move || {
            device.run(&mut channel);
            // A device that gave up early still waits for its guest to close.
            channel.wait_for_stop();
            drop(channel);
            if let Some(bus) = me.upgrade() {
                bus.closed(id);
            }
        })?;
        let in_kernel = self
            .vm
            .as_ref()
            .is_some_and(|vm| kvm_ext::hyperv_eventfd(vm, connection.0, waker.event(), true));
        if let Some(number) = opening.monitor {
            self.monitor.add(number, waker.clone());
        }
        let worker = Worker { waker, connection, in_kernel, monitor: opening.monitor };
        inner.workers.insert(id, worker);
        Ok(())
    }

    /// The worker of a channel has ended.
    fn closed(&self, id: ChannelId) {
        let mut state = self.lock();
        if let Some(worker) = state.1.workers.remove(&id) {
            if let (true, Some(vm)) = (worker.in_kernel, &self.vm) {
                kvm_ext::hyperv_eventfd(vm, worker.connection.0, worker.waker.event(), false);
            }
            if let Some(number) = worker.monitor {
                self.monitor.remove(number);
            }
        }
        state.0.closed(id);
        self.act(&mut state);
    }
}
