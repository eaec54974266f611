//! event_channel_op.

use core::sync::atomic::Ordering;

use xen_abi::event_channel::{
    EVTCHN_OP_SIZE, EVTCHN_OP_U_OFFSET, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindIpi,
    EvtchnBindPirq, EvtchnBindVcpu, EvtchnBindVirq, EvtchnExpandArray, EvtchnInitControl, EvtchnOp,
    EvtchnPort, EvtchnReset, EvtchnSetPriority, EvtchnStat, EvtchnStatus, NR_VIRQS, Virq,
    fifo as abi,
};
use xen_abi::mm::DomId;
use xen_abi::{Errno, GuestVa};

use super::{
    BACKEND_DOMID, Backend, GUEST_DOMID, Here, Kind, Named, PortState, domain_by_any_id, fifo,
    set_pending, two_level,
};
use crate::Ctx;
use crate::domain::Domain;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::physdev::NR_PIRQS;
use crate::platform::Platform;

/// `event_channel_op(cmd, arg)`.
///
/// # Errors
/// Xen's.
#[inline]
pub fn event_channel_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    let arg = GuestVa(arg);
    if EvtchnOp(cmd as u32) == EvtchnOp::SEND {
        let port: EvtchnPort = cx.plat.read_guest(arg).map_err(efault)?;
        return send(cx, port.0);
    }
    other_op(cx, EvtchnOp(cmd as u32), arg)
}

/// `event_channel_op_compat(op)`: command and argument in one structure.
///
/// # Errors
/// Xen's.
pub fn event_channel_op_compat<P: Platform>(cx: &mut Ctx<'_, P>, uop: u64) -> HcResult {
    // Xen copies the whole structure, whatever the command needs of it.
    let mut op = [0; EVTCHN_OP_SIZE];
    cx.plat.copy_from_guest(&mut op, GuestVa(uop)).map_err(efault)?;
    let [b0, b1, b2, b3, ..] = op;
    let cmd = u32::from_le_bytes([b0, b1, b2, b3]);
    if cmd > EvtchnOp::UNMASK.0 {
        return Err(Errno::ENOSYS);
    }
    event_channel_op(cx, cmd.into(), uop.wrapping_add(EVTCHN_OP_U_OFFSET))
}

/// `EVTCHNOP_send`.
#[inline]
fn send<P: Platform>(cx: &mut Ctx<'_, P>, port: u32) -> HcResult {
    let state = cx.dom.evtchn.state(port).ok_or(Errno::EINVAL)?;
    match state.kind() {
        Kind::Ipi => set_pending(cx.dom, cx.plat, Here::on(cx.vcpu), port, state),
        Kind::Backend => {
            if let Some(backend) = state.backend()
                && kick_backend(cx, backend)
            {
                // The guest kicks again, after it has taken its events.
                return Ok(Outcome::Continue);
            }
        }
        Kind::Loopback => {
            let peer = state.data();
            if let Some(state) = cx.dom.evtchn.state(peer)
                && state.kind() == Kind::Loopback
            {
                set_pending(cx.dom, cx.plat, Here::on(cx.vcpu), peer, state);
            }
        }
        // Nobody is there yet: dropped.
        Kind::Unbound => {}
        Kind::Free | Kind::Reserved | Kind::Virq => return Err(Errno::EINVAL),
    }
    ret(0)
}

/// The guest kicked a backend; whether that has more to do.
fn kick_backend<P: Platform>(cx: &mut Ctx<'_, P>, backend: Backend) -> bool {
    match backend {
        Backend::Console => crate::console::kicked(cx.dom, cx.plat, Here::on(cx.vcpu)),
        Backend::Xenstore => {
            let more = crate::xenstore::kicked(cx.dom, cx.plat, Here::on(cx.vcpu));
            let watched = cx.dom.xenstore.internal_pending();
            return watched && cx.plat.kick_backend(cx.dom, Here::on(cx.vcpu), backend) || more;
        }
        Backend::Blk(_) | Backend::Net(_) => {
            return cx.plat.kick_backend(cx.dom, Here::on(cx.vcpu), backend);
        }
    }
    false
}

/// All but send.
fn other_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: EvtchnOp, arg: GuestVa) -> HcResult {
    let (dom, plat, here) = (cx.dom, cx.plat, Here::on(cx.vcpu));
    match cmd {
        EvtchnOp::ALLOC_UNBOUND => {
            let mut op: EvtchnAllocUnbound = plat.read_guest(arg).map_err(efault)?;
            op.port = alloc_unbound(dom, plat, op.dom, op.remote_dom)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::BIND_INTERDOMAIN => {
            let mut op: EvtchnBindInterdomain = plat.read_guest(arg).map_err(efault)?;
            op.local_port = bind_interdomain(dom, plat, here, op.remote_dom, op.remote_port.0)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::BIND_VIRQ => {
            let mut op: EvtchnBindVirq = plat.read_guest(arg).map_err(efault)?;
            op.port = bind_virq(dom, plat, op.virq, op.vcpu)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::BIND_IPI => {
            let mut op: EvtchnBindIpi = plat.read_guest(arg).map_err(efault)?;
            op.port = bind_ipi(dom, plat, op.vcpu)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::BIND_PIRQ => {
            let op: EvtchnBindPirq = plat.read_guest(arg).map_err(efault)?;
            // A guest without devices is permitted none of its interrupt lines.
            return Err(if op.pirq >= NR_PIRQS { Errno::EINVAL } else { Errno::EPERM });
        }
        EvtchnOp::CLOSE => {
            let port: EvtchnPort = plat.read_guest(arg).map_err(efault)?;
            close(dom, plat, port.0)?;
            return ret(0);
        }
        EvtchnOp::STATUS => {
            let mut op: EvtchnStatus = plat.read_guest(arg).map_err(efault)?;
            status(dom, &mut op)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::BIND_VCPU => {
            let op: EvtchnBindVcpu = plat.read_guest(arg).map_err(efault)?;
            bind_vcpu(dom, op.port.0, op.vcpu)?;
            return ret(0);
        }
        EvtchnOp::UNMASK => {
            let port: EvtchnPort = plat.read_guest(arg).map_err(efault)?;
            let state = dom.evtchn.state(port.0).ok_or(Errno::EINVAL)?;
            if dom.evtchn.uses_fifo() {
                fifo::unmask(dom, plat, here, port.0, state);
            } else {
                two_level::unmask(dom, plat, here, port.0, state.vcpu());
            }
            return ret(0);
        }
        EvtchnOp::RESET | EvtchnOp::RESET_CONT => {
            let op: EvtchnReset = plat.read_guest(arg).map_err(efault)?;
            if domain_by_any_id(op.dom)? != Named::Own {
                return Err(Errno::EPERM);
            }
            // A reset is never cut here, so there is none to go on with.
            if cmd == EvtchnOp::RESET_CONT {
                return Err(Errno::EBUSY);
            }
            reset(dom, plat);
            return ret(0);
        }
        EvtchnOp::INIT_CONTROL => {
            let mut op: EvtchnInitControl = plat.read_guest(arg).map_err(efault)?;
            op.link_bits = abi::LINK_BITS as u8;
            fifo::init_control(dom, plat, op.vcpu, op.control_gfn, op.offset)?;
            plat.write_guest(arg, &op)
        }
        EvtchnOp::EXPAND_ARRAY => {
            let op: EvtchnExpandArray = plat.read_guest(arg).map_err(efault)?;
            fifo::expand_array(dom, plat, here, op.array_gfn)?;
            return ret(0);
        }
        EvtchnOp::SET_PRIORITY => {
            let op: EvtchnSetPriority = plat.read_guest(arg).map_err(efault)?;
            set_priority(dom, op.port.0, op.priority)?;
            return ret(0);
        }
        _ => return Err(Errno::ENOSYS),
    }
    // The port stays bound where its number cannot be told, as in Xen.
    .map_err(efault)?;
    ret(0)
}

/// `EVTCHNOP_alloc_unbound`.
fn alloc_unbound<P: Platform>(
    dom: &Domain,
    plat: &P,
    of: DomId,
    remote: DomId,
) -> Result<EvtchnPort, Errno> {
    if domain_by_any_id(of)? != Named::Own {
        return Err(Errno::EPERM);
    }
    let config = dom.evtchn.config.lock();
    let port = dom.evtchn.free_port(plat, &config)?;
    let remote = if remote == DomId::SELF { GUEST_DOMID } else { remote };
    let state = PortState::new(Kind::Unbound).with_data(u32::from(remote.0));
    dom.evtchn.init_port(port, state);
    Ok(EvtchnPort(port))
}

/// `EVTCHNOP_bind_interdomain`: between the guest's own ports.
fn bind_interdomain<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    remote_dom: DomId,
    remote_port: u32,
) -> Result<EvtchnPort, Errno> {
    let remote_dom = domain_by_any_id(remote_dom)?;
    let (port, state) = {
        let config = dom.evtchn.config.lock();
        let port = dom.evtchn.free_port(plat, &config)?;
        // Domain 0 has no port that waits for the guest: backends bind to frontends' ports.
        if remote_dom != Named::Own {
            return Err(Errno::EINVAL);
        }
        let remote = dom.evtchn.port(remote_port).ok_or(Errno::EINVAL)?;
        let remote_state = remote.state();
        if remote_state.kind() != Kind::Unbound || remote_state.data() != u32::from(GUEST_DOMID.0) {
            return Err(Errno::EINVAL);
        }
        let state = PortState::new(Kind::Loopback).with_data(remote_port);
        dom.evtchn.init_port(port, state);
        remote.set_state(remote_state.with_kind(Kind::Loopback).with_data(port));
        (port, state.with_priority(abi::PRIORITY_DEFAULT))
    };
    // Notifications may have been dropped while the remote port was unbound.
    set_pending(dom, plat, here, port, state);
    Ok(EvtchnPort(port))
}

/// `EVTCHNOP_bind_virq`.
fn bind_virq<P: Platform>(
    dom: &Domain,
    plat: &P,
    virq: u32,
    vcpu: u32,
) -> Result<EvtchnPort, Errno> {
    if virq as usize >= NR_VIRQS || (Virq(virq).is_global() && vcpu != 0) {
        return Err(Errno::EINVAL);
    }
    if vcpu >= dom.nr_vcpus {
        return Err(Errno::ENOENT);
    }
    let bound = dom.evtchn.virq(vcpu, Virq(virq)).ok_or(Errno::ENOENT)?;
    let config = dom.evtchn.config.lock();
    if bound.load(Ordering::Relaxed) != 0 {
        return Err(Errno::EEXIST);
    }
    let port = dom.evtchn.free_port(plat, &config)?;
    let state = PortState::new(Kind::Virq).with_vcpu(vcpu).with_data(virq);
    dom.evtchn.init_port(port, state);
    bound.store(port as u16, Ordering::Release);
    Ok(EvtchnPort(port))
}

/// `EVTCHNOP_bind_ipi`.
fn bind_ipi<P: Platform>(dom: &Domain, plat: &P, vcpu: u32) -> Result<EvtchnPort, Errno> {
    if vcpu >= dom.nr_vcpus {
        return Err(Errno::ENOENT);
    }
    let config = dom.evtchn.config.lock();
    let port = dom.evtchn.free_port(plat, &config)?;
    dom.evtchn.init_port(port, PortState::new(Kind::Ipi).with_vcpu(vcpu));
    Ok(EvtchnPort(port))
}

/// `EVTCHNOP_close`.
fn close<P: Platform>(dom: &Domain, plat: &P, port: u32) -> Result<(), Errno> {
    let _config = dom.evtchn.config.lock();
    close_locked(dom, plat, port)
}

/// Closes a port with `config` held.
fn close_locked<P: Platform>(dom: &Domain, plat: &P, port: u32) -> Result<(), Errno> {
    let channels = &dom.evtchn;
    let slot = channels.port(port).ok_or(Errno::EINVAL)?;
    let state = slot.state();
    match state.kind() {
        Kind::Free | Kind::Reserved => return Err(Errno::EINVAL),
        Kind::Virq => {
            if let Some(bound) = channels.virq(state.vcpu(), Virq(state.data())) {
                bound.store(0, Ordering::Release);
            }
        }
        Kind::Loopback => {
            if let Some(peer) = channels.port(state.data()) {
                let unbound = peer.state().with_kind(Kind::Unbound);
                peer.set_state(unbound.with_data(u32::from(GUEST_DOMID.0)));
            }
        }
        // A backend finds its port unbound when it looks; XenbusState tells it before.
        Kind::Unbound | Kind::Backend | Kind::Ipi => {}
    }
    // Free first, so that a sender that looks from now on adds no pending bit.
    slot.set_state(PortState::new(Kind::Free));
    if channels.uses_fifo() {
        slot.saved_pending.store(false, Ordering::Relaxed);
        channels.fifo.clear_pending(plat, port);
    } else {
        two_level::clear_pending(dom, port);
    }
    Ok(())
}

/// `EVTCHNOP_status`.
fn status(dom: &Domain, op: &mut EvtchnStatus) -> Result<(), Errno> {
    if domain_by_any_id(op.dom)? != Named::Own {
        return Err(Errno::EPERM);
    }
    let state = dom.evtchn.state(op.port.0).ok_or(Errno::EINVAL)?;
    // Only the low half of `u0` is written where a domain id is meant.
    let with_dom = |old: u32, dom: u32| old & 0xffff_0000 | dom & 0xffff;
    match state.kind() {
        Kind::Free | Kind::Reserved => op.status = EvtchnStat::CLOSED,
        Kind::Unbound => {
            op.status = EvtchnStat::UNBOUND;
            op.u0 = with_dom(op.u0, state.data());
        }
        Kind::Loopback => {
            op.status = EvtchnStat::INTERDOMAIN;
            op.u0 = with_dom(op.u0, GUEST_DOMID.0.into());
            op.u1 = state.data();
        }
        Kind::Backend => {
            op.status = EvtchnStat::INTERDOMAIN;
            op.u0 = with_dom(op.u0, BACKEND_DOMID.0.into());
            // The backend's own port; any number that is not 0 does.
            op.u1 = op.port.0;
        }
        Kind::Virq => {
            op.status = EvtchnStat::VIRQ;
            op.u0 = state.data();
        }
        Kind::Ipi => op.status = EvtchnStat::IPI,
    }
    op.vcpu = state.vcpu();
    Ok(())
}

/// `EVTCHNOP_bind_vcpu`.
fn bind_vcpu(dom: &Domain, port: u32, vcpu: u32) -> Result<(), Errno> {
    if vcpu >= dom.nr_vcpus {
        return Err(Errno::ENOENT);
    }
    let slot = dom.evtchn.port(port).ok_or(Errno::EINVAL)?;
    let _config = dom.evtchn.config.lock();
    let state = slot.state();
    let movable = match state.kind() {
        Kind::Unbound | Kind::Loopback | Kind::Backend => true,
        Kind::Virq => Virq(state.data()).is_global(),
        Kind::Free | Kind::Reserved | Kind::Ipi => false,
    };
    if !movable {
        return Err(Errno::EINVAL);
    }
    slot.set_state(state.with_vcpu(vcpu));
    Ok(())
}

/// `EVTCHNOP_reset`: closes every port, the backends' too, and goes back to 2-level.
fn reset<P: Platform>(dom: &Domain, plat: &P) {
    let config = dom.evtchn.config.lock();
    let valid = dom.evtchn.valid.load(Ordering::Relaxed);
    for port in 1..valid {
        // Free ports say EINVAL; that is fine.
        let _ = close_locked(dom, plat, port);
    }
    if dom.evtchn.uses_fifo() {
        fifo::leave(dom, &config);
    }
}

/// `EVTCHNOP_set_priority`.
fn set_priority(dom: &Domain, port: u32, priority: u32) -> Result<(), Errno> {
    let slot = dom.evtchn.port(port).ok_or(Errno::EINVAL)?;
    let _config = dom.evtchn.config.lock();
    if !dom.evtchn.uses_fifo() {
        return Err(Errno::ENOSYS);
    }
    if priority > abi::PRIORITY_MIN {
        return Err(Errno::EINVAL);
    }
    slot.set_state(slot.state().with_priority(priority));
    Ok(())
}
