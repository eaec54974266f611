//! Event channels: ports, their states, and who gets told.
//!
//! A port's state is one word, read without a lock on the way of every event; binding, closing
//! and moving happen under [`EventChannels::config`]. An event that races with the close of its
//! port may leave a stray pending bit behind: a guest must tolerate spurious events, and a
//! FIFO word that is still linked keeps its port from being allocated again, as in Xen.
//!
//! Which bits an event sets depends on the ABI in force: [`two_level`] until the guest
//! registers a control block, [`fifo`] then. Backends live in the shim: a kick is a call
//! ([`Backend`]), a notification is [`notify`].
//!
//! Lock order: `config`, then FIFO queues by (vCPU, priority), then `VcpuShared::info`. None is
//! held over a call of the platform that can reach another processor, nor over a backend.
//!
//! Facts: `xen/common/event_channel.c`, `event_2l.c`, `event_fifo.c`.

mod fifo;
mod op;
mod port;
#[cfg(test)]
mod tests;
mod two_level;

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use spin::{Mutex, MutexGuard};
use xen_abi::Errno;
use xen_abi::event_channel::{NR_VIRQS, Virq, fifo as abi};
use xen_abi::mm::DomId;
use xen_abi::shared_info::{EVTCHN_2L_NR_CHANNELS, VcpuInfo};

use crate::domain::{Domain, MAX_VCPUS};
use crate::platform::Platform;

pub use op::{event_channel_op, event_channel_op_compat};
use port::Port;
pub use port::{Backend, Kind, PortState};

/// Ports a domain has, under either ABI. Xen's toolstack gives a guest 1023 by default.
pub const MAX_PORTS: usize = EVTCHN_2L_NR_CHANNELS as usize;
/// Ports come into being in blocks of this many (`EVTCHNS_PER_BUCKET`): a port of a block not
/// yet there is `EINVAL` where a free port of an existing block is not.
const PORTS_PER_BUCKET: u32 = 64;

/// The id the guest has.
pub const GUEST_DOMID: DomId = DomId(1);
/// The domain backends appear to be in.
pub const BACKEND_DOMID: DomId = DomId(0);

/// A domain a guest named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The caller.
    Own,
    /// Domain 0: it exists, and a guest may do nothing to it.
    Backend,
}

/// Finds a domain by id, `DOMID_SELF` allowed (`rcu_lock_domain_by_any_id`).
///
/// # Errors
/// `ESRCH` where there is none.
pub const fn domain_by_any_id(dom: DomId) -> Result<Named, Errno> {
    match dom {
        DomId::SELF | GUEST_DOMID => Ok(Named::Own),
        BACKEND_DOMID => Ok(Named::Backend),
        _ => Err(Errno::ESRCH),
    }
}

/// Who raises an event: the vCPU whose processor this is, so that it is not kicked.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    vcpu: u32,
    info: Option<&'a VcpuInfo>,
}

impl<'a> Here<'a> {
    /// The processor of `vcpu`, in a hypercall or an interrupt of it.
    #[must_use]
    pub const fn on(vcpu: &'a crate::vcpu::Vcpu) -> Self {
        Self { vcpu: vcpu.id, info: Some(vcpu.entry.info) }
    }
    /// The processor of the vCPU with this id.
    #[must_use]
    pub const fn on_id(vcpu: u32) -> Self {
        Self { vcpu, info: None }
    }
    /// A processor without a vCPU.
    pub const NOWHERE: Self = Self { vcpu: u32::MAX, info: None };
}

/// The domain's event channels.
#[derive(Debug)]
pub struct EventChannels {
    /// Serialises every change of a port's state.
    config: Mutex<()>,
    /// The guest uses the FIFO ABI.
    fifo_abi: AtomicBool,
    /// Ports that exist; grows by [`PORTS_PER_BUCKET`].
    valid: AtomicU32,
    ports: [Port; MAX_PORTS],
    /// Port bound to a VIRQ, by vCPU; 0 = none. Global ones are on vCPU 0.
    virqs: [[AtomicU16; NR_VIRQS]; MAX_VCPUS],
    fifo: fifo::Fifo,
}

impl Default for EventChannels {
    fn default() -> Self {
        Self::new()
    }
}

impl EventChannels {
    /// Port 0 reserved, all others free, 2-level ABI. It is 80 KiB: make it where it stays.
    #[must_use]
    #[allow(clippy::large_stack_arrays, reason = "made once, in place, before the guest runs")]
    pub const fn new() -> Self {
        let mut ports = [const { Port::new() }; MAX_PORTS];
        ports[0] = Port::with(PortState::new(Kind::Reserved));
        Self {
            config: Mutex::new(()),
            fifo_abi: AtomicBool::new(false),
            valid: AtomicU32::new(PORTS_PER_BUCKET),
            ports,
            virqs: [const { [const { AtomicU16::new(0) }; NR_VIRQS] }; MAX_VCPUS],
            fifo: fifo::Fifo::new(),
        }
    }

    /// The port, if it exists (`port_is_valid`); free ones included.
    #[inline]
    fn port(&self, port: u32) -> Option<&Port> {
        // The store that made the bucket valid needs no pairing: ports are never uninitialised.
        if port < self.valid.load(Ordering::Relaxed) { self.ports.get(port as usize) } else { None }
    }

    /// The state of a port, if it exists.
    #[inline]
    #[must_use]
    pub fn state(&self, port: u32) -> Option<PortState> {
        self.port(port).map(Port::state)
    }

    fn uses_fifo(&self) -> bool {
        // Pairs with the store in `init_control`: the array and queues are set up before it.
        self.fifo_abi.load(Ordering::Acquire)
    }

    /// Finds a free port and takes it (`get_free_port`); the caller holds `config` and gives
    /// the port its state.
    fn free_port<P: Platform>(&self, plat: &P, _config: &MutexGuard<'_, ()>) -> Result<u32, Errno> {
        let valid = self.valid.load(Ordering::Relaxed);
        for (port, slot) in (0u32..).zip(&self.ports) {
            if port >= valid {
                self.valid.store(valid.saturating_add(PORTS_PER_BUCKET), Ordering::Relaxed);
                return Ok(port);
            }
            if slot.state().kind() == Kind::Free
                && !(self.uses_fifo() && self.fifo.is_linked(plat, port))
            {
                return Ok(port);
            }
        }
        Err(Errno::ENOSPC)
    }

    /// Gives a port a state and the default priority (`evtchn_port_init`).
    fn init_port(&self, port: u32, state: PortState) {
        if let Some(slot) = self.ports.get(port as usize) {
            slot.set_state(state.with_priority(abi::PRIORITY_DEFAULT));
        }
    }

    /// Makes a port that a backend owns, as a toolstack and xenconsoled do together.
    ///
    /// # Errors
    /// `ENOSPC` when no port is free.
    pub fn alloc_backend<P: Platform>(&self, plat: &P, backend: Backend) -> Result<u32, Errno> {
        let config = self.config.lock();
        let port = self.free_port(plat, &config)?;
        self.init_port(port, PortState::new(Kind::Backend).with_data(backend.encode()));
        Ok(port)
    }

    /// Binds a backend to a port the guest allocated for its domain (`EVTCHNOP_bind_interdomain`
    /// as a backend in domain 0 issues it).
    ///
    /// # Errors
    /// `EINVAL` where the port does not wait for domain 0.
    pub fn bind_backend(&self, port: u32, backend: Backend) -> Result<(), Errno> {
        let _config = self.config.lock();
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        let state = slot.state();
        if state.kind() != Kind::Unbound || state.data() != u32::from(BACKEND_DOMID.0) {
            return Err(Errno::EINVAL);
        }
        slot.set_state(state.with_kind(Kind::Backend).with_data(backend.encode()));
        Ok(())
    }

    /// The backend lets go of its port, which waits for domain 0 again. Nothing happens where
    /// the guest closed it before.
    pub fn unbind_backend(&self, port: u32, backend: Backend) {
        let _config = self.config.lock();
        if let Some(slot) = self.port(port) {
            let state = slot.state();
            if state.backend() == Some(backend) {
                let unbound = state.with_kind(Kind::Unbound);
                slot.set_state(unbound.with_data(u32::from(BACKEND_DOMID.0)));
            }
        }
    }

    /// The port a VIRQ is bound to on a vCPU.
    fn virq(&self, vcpu: u32, virq: Virq) -> Option<&AtomicU16> {
        let vcpu = if virq.is_global() { 0 } else { vcpu };
        self.virqs.get(vcpu as usize)?.get(virq.0 as usize)
    }
}

/// A backend notifies the guest on its port. Nothing happens where the port is no longer its.
#[inline]
pub fn notify<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, port: u32, backend: Backend) {
    if let Some(state) = dom.evtchn.state(port)
        && state.backend() == Some(backend)
    {
        set_pending(dom, plat, here, port, state);
    }
}

/// Raises a VIRQ on a vCPU (a global one wherever the guest bound it), if it is bound.
/// `current_vcpu_id` is the vCPU this processor runs: it is not kicked.
pub fn send_virq<P: Platform>(
    dom: &Domain,
    plat: &P,
    vcpu_id: u32,
    current_vcpu_id: u32,
    virq: Virq,
) {
    send_virq_from(dom, plat, Here::on_id(current_vcpu_id), vcpu_id, virq);
}

/// [`send_virq`] where more is known about the processor.
pub fn send_virq_from<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    vcpu_id: u32,
    virq: Virq,
) {
    let Some(bound) = dom.evtchn.virq(vcpu_id, virq) else { return };
    let port = u32::from(bound.load(Ordering::Acquire));
    if port == 0 {
        return;
    }
    if let Some(state) = dom.evtchn.state(port)
        && state.kind() == Kind::Virq
    {
        set_pending(dom, plat, here, port, state);
    }
}

/// Makes a port pending on the vCPU its state names and tells that vCPU.
#[inline]
pub fn set_pending<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    port: u32,
    state: PortState,
) {
    if dom.evtchn.uses_fifo() {
        fifo::set_pending(dom, plat, here, port, state);
    } else {
        two_level::set_pending(dom, plat, here, port, state.vcpu());
    }
}

/// Whether a usable port is pending (`evtchn_port_poll`).
///
/// # Errors
/// `EINVAL` where the port is not in use.
pub fn poll<P: Platform>(dom: &Domain, plat: &P, port: u32) -> Result<bool, Errno> {
    let state = dom.evtchn.state(port).ok_or(Errno::EINVAL)?;
    if matches!(state.kind(), Kind::Free | Kind::Reserved) {
        return Err(Errno::EINVAL);
    }
    Ok(if dom.evtchn.uses_fifo() {
        dom.evtchn.fifo.is_pending(plat, port)
    } else {
        two_level::is_pending(dom, port)
    })
}

/// Runs `f` on a vCPU's `vcpu_info`, if it has one. This vCPU's own cannot move under us; that
/// of another is held in place by its lock.
fn with_info<R>(
    dom: &Domain,
    here: Here<'_>,
    vcpu: u32,
    f: impl FnOnce(&VcpuInfo) -> R,
) -> Option<R> {
    if let Some(info) = here.info
        && vcpu == here.vcpu
    {
        return Some(f(info));
    }
    let shared = dom.vcpus.get(vcpu as usize)?;
    let info = shared.info.lock();
    (*info).map(f)
}

/// The upcall bit of a vCPU goes on: its poll ends, and it must look (`vcpu_kick`). The kick is
/// due even while the guest masks upcalls: it unmasks with plain stores and loads, so only an
/// interrupt makes sure that it sees the bit.
fn tell<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, vcpu: u32) {
    dom.sched.end_poll(vcpu);
    if vcpu != here.vcpu
        && let Some(shared) = dom.vcpus.get(vcpu as usize)
        && shared.online.load(Ordering::Relaxed)
    {
        plat.kick(vcpu);
    }
}

/// Marks events pending on a vCPU (`vcpu_mark_events_pending`).
pub(crate) fn mark_events_pending<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, vcpu: u32) {
    let first =
        with_info(dom, here, vcpu, |info| info.evtchn_upcall_pending.swap(1, Ordering::SeqCst));
    if first == Some(0) {
        tell(dom, plat, here, vcpu);
    }
}

/// A port became pending: ends the polls that wait for it.
#[inline]
fn check_pollers<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>, port: u32) {
    // The pending bit was set by a locked instruction just before, so this load is after it; a
    // poller sets its bit in the mask before it looks at the pending bits.
    if dom.sched.pollers() != 0 {
        dom.sched.wake_pollers(port, |vcpu| {
            if vcpu != here.vcpu {
                plat.kick(vcpu);
            }
        });
    }
}
