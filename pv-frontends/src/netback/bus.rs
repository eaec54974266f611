//! The handshake with the frontend through xenstore.
//!
//! Level-triggered: [`Vif::frontend_changed`] looks at the frontend's state and does what is due, as
//! Linux's netback does it. Where that has to wait for packets at the device it is called again
//! after the last one.

use core::sync::atomic::Ordering;

use translate::platform::Platform;
use xen_abi::io::xenbus::XenbusState;

use super::connection::{self, Connection, Refusal, Wanted};
use super::ctrl::{CTRL_ENTRY_BYTES, Ctrl};
use super::line::{Line, Port};
use super::rx::{GsoForm, RX_ENTRY_BYTES};
use super::tx::TX_ENTRY_BYTES;
use super::ways::Direction;
use super::{Env, Queue, Rings, Vif};
use crate::net::{NetDevice, NetInfo};
use crate::xenbus::{Dir, Path, Store, StoreError, Stores, Value, text};

/// This end of the handshake.
#[derive(Debug)]
pub(super) struct Bus {
    /// What the `state` node of the backend holds.
    state: XenbusState,
    /// The device is gone: never connect again.
    removed: bool,
    /// The frontend's hash is, or was, in the device.
    hash_set: bool,
    /// What the store says of the device.
    told: Option<(bool, u32)>,
}

impl Bus {
    pub(super) const fn new() -> Self {
        Self { state: XenbusState::INITIALISING, removed: false, hash_set: false, told: None }
    }
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Store
    }
}

impl<D: NetDevice> Vif<D> {
    fn front_path(&self) -> Option<Path> {
        text(format_args!("/local/domain/1/device/vif/{}", self.config.handle))
    }

    fn back_path(&self) -> Option<Path> {
        text(format_args!("/local/domain/0/backend/vif/1/{}", self.config.handle))
    }

    /// The nodes whose changes [`Self::frontend_changed`] wants to hear of.
    #[must_use]
    pub fn watched(&self) -> Option<[Path; 2]> {
        let front = self.front_path()?;
        let path = |name| text(format_args!("{front}/{name}"));
        Some([path("state")?, path("request-multicast-control")?])
    }

    /// Makes both directories as Xen's toolstack does, and says what the backend can do. The
    /// frontend may connect from here on.
    ///
    /// # Errors
    /// No space in the store.
    pub fn announce<S: Stores>(&self, stores: &S) -> Result<(), StoreError> {
        let mut info = self.device.info();
        if let Some(mtu) = self.config.mtu
            && info.mtu != mtu.into()
            && self.device.set_mtu(mtu.into()).is_ok()
        {
            info.mtu = mtu.into();
        }
        let handle: Value = text(format_args!("{}", self.config.handle)).ok_or(StoreError)?;
        let mac = self.config.mac.unwrap_or(info.mac);
        let mac: Value = text(format_args!("{mac}")).ok_or(StoreError)?;
        let mtu: Value = text(format_args!("{}", info.mtu)).ok_or(StoreError)?;
        let front = [("handle", handle.as_str()), ("mac", &mac), ("mtu", &mtu), ("trusted", "1")];
        let back = [
            ("handle", handle.as_str()),
            ("mac", &mac),
            ("mtu", &mtu),
            ("type", "vif"),
            ("bridge", ""),
            ("script", ""),
            ("hotplug-status", "connected"),
        ];
        let mut bus = self.bus.lock();
        let done = stores.with(|store| {
            store.add_device("vif", self.config.handle, &front, &back)?;
            self.offer(store, &info)
        });
        done.ok_or(StoreError)??;
        bus.state = XenbusState::INIT_WAIT;
        bus.told = Some((info.link, info.mtu));
        Ok(())
    }

    fn back<'s>(&self, store: &'s mut dyn Store) -> Result<Dir<'s>, StoreError> {
        self.back_path().map(|path| Dir::new(store, path)).ok_or(StoreError)
    }

    /// What a frontend reads before it sets up its rings; then waits for it.
    fn offer(&self, store: &mut dyn Store, info: &NetInfo) -> Result<(), StoreError> {
        let mut back = self.back(store)?;
        let mut write = |name, value: u32| back.write(name, format_args!("{value}"));
        write("feature-sg", 1)?;
        write("feature-gso-tcpv4", u32::from(info.tx.gso_v4_bytes > 0))?;
        write("feature-gso-tcpv6", u32::from(info.tx.gso_v6_bytes > 0))?;
        write("feature-ipv6-csum-offload", 1)?;
        write("feature-rx-copy", 1)?;
        // Frontends that can do both are to copy; those that know of no choice flip.
        write("feature-rx-flip", 0)?;
        write("feature-multicast-control", 1)?;
        write("feature-dynamic-multicast-control", 1)?;
        write("feature-xdp-headroom", 1)?;
        write("feature-split-event-channels", 1)?;
        write("feature-ctrl-ring", 1)?;
        write("multi-queue-max-queues", self.queues.len() as u32)?;
        write("carrier", info.link.into())?;
        back.set_state(XenbusState::INIT_WAIT)
    }

    fn set_state<S: Stores>(&self, bus: &mut Bus, stores: &S, state: XenbusState) {
        if bus.state != state {
            bus.state = state;
            // Where the directory is gone there is nobody to tell.
            let _ = stores.with(|store| self.back(store)?.set_state(state));
        }
    }

    fn with_front<S: Stores, R>(&self, stores: &S, f: impl FnOnce(&mut Dir<'_>) -> R) -> Option<R> {
        let path = self.front_path()?;
        stores.with(|store| f(&mut Dir::new(store, path)))
    }

    /// The frontend's state may have changed, or what it wants of groups.
    pub fn frontend_changed<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) {
        let mut bus = self.bus.lock();
        self.close_broken(env, stores, &mut bus);
        let state = self.with_front(stores, |front| front.state()).unwrap_or(XenbusState::UNKNOWN);
        match state {
            // Also of a kernel that took over from one that closed nothing.
            XenbusState::INITIALISING
                if bus.state != XenbusState::INIT_WAIT && !bus.removed && self.disconnect(env) =>
            {
                let info = self.device.info();
                let _ = stores.with(|store| self.offer(store, &info));
                bus.state = XenbusState::INIT_WAIT;
                bus.told = bus.told.map(|(_, mtu)| (info.link, mtu));
            }
            XenbusState::CONNECTED => match bus.state {
                XenbusState::INIT_WAIT | XenbusState::CLOSED
                    if !bus.removed && self.disconnect(env) =>
                {
                    self.connect(env, stores, &mut bus);
                }
                XenbusState::CONNECTED => self.refresh(stores),
                XenbusState::RECONFIGURED => {
                    self.set_state(&mut bus, stores, XenbusState::CONNECTED);
                }
                _ => {}
            },
            XenbusState::RECONFIGURING if bus.state == XenbusState::CONNECTED => {
                let headroom = self.with_front(stores, connection::headroom).unwrap_or(0);
                for queue in &self.queues {
                    queue.rx.lock().config.headroom = headroom;
                }
                self.set_state(&mut bus, stores, XenbusState::RECONFIGURED);
            }
            XenbusState::CLOSING => {
                self.disconnect(env);
                self.set_state(&mut bus, stores, XenbusState::CLOSING);
            }
            XenbusState::CLOSED | XenbusState::UNKNOWN if self.disconnect(env) => {
                self.set_state(&mut bus, stores, XenbusState::CLOSED);
                if bus.removed {
                    let _ = stores.with(|store| store.remove_device("vif", self.config.handle));
                }
            }
            // Nothing is due, or not yet: packets are still at the device.
            _ => {}
        }
        // By what it had in its rings when it connected.
        self.close_broken(env, stores, &mut bus);
    }

    /// Lets go of a frontend that did what none does, and asks it to close.
    fn close_broken<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S, bus: &mut Bus) {
        if !self.broken.load(Ordering::Acquire) {
            return;
        }
        self.disconnect(env);
        if [XenbusState::CONNECTED, XenbusState::RECONFIGURED].contains(&bus.state) {
            self.set_state(bus, stores, XenbusState::CLOSING);
        }
    }

    /// What a frontend may change while it is connected.
    fn refresh<S: Stores>(&self, stores: &S) {
        let control = self.with_front(stores, connection::multicast_control).unwrap_or(false);
        if self.steering.read().multicast_control != control {
            self.steering.write().multicast_control = control;
            self.steer(0, false);
        }
    }

    /// Stops all queues and lets go of their rings, once nothing of theirs is at the device;
    /// whether that is so. If not, [`Vif::settled`] comes back to it.
    fn disconnect<P: Platform>(&self, env: &Env<'_, P>) -> bool {
        self.closing.store(true, Ordering::Release);
        self.connected.store(0, Ordering::Release);
        self.reception(|reception| (reception.connected, reception.stalled) = (false, 0));
        let mut idle = true;
        for (number, queue) in (0..).zip(&self.queues) {
            let woken = queue.rx.lock().stop();
            self.act_on(number, woken);
            queue.tx.lock().stop(env);
            self.run_tx(env, number, queue);
            idle &= queue.tx.lock().is_idle();
        }
        if idle {
            self.queues.iter().for_each(|queue| release(env, queue));
            let line = self.ctrl.lock().line.take();
            if let Some(line) = line {
                line.port.unbind(env);
                line.release(env);
            }
            self.steering.write().reset();
            self.steered.store(false, Ordering::Release);
            self.broken.store(false, Ordering::Release);
            self.closing.store(false, Ordering::Release);
        }
        idle
    }

    fn connect<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S, bus: &mut Bus) {
        let info = self.device.info();
        let connected = self.connect_queues(env, stores, &info).and_then(|wanted| {
            let back = stores.with(|store| {
                let mut back = self.back(store)?;
                back.write("carrier", format_args!("{}", u32::from(info.link)))?;
                back.set_state(XenbusState::CONNECTED)
            });
            back.ok_or(Refusal::Store)??;
            Ok(wanted)
        });
        match connected {
            Ok(wanted) => {
                bus.state = XenbusState::CONNECTED;
                self.steering.write().multicast_control = wanted.multicast_control;
                bus.hash_set |= wanted.ctrl.is_some();
                self.steer(wanted.queues, bus.hash_set);
                let wants = |form| form != GsoForm::None && wanted.rx.can_sg;
                let (v4, v6) = (wants(wanted.rx.gso_v4), wants(wanted.rx.gso_v6));
                // A device that does not makes nothing of several packets.
                let _ = self.device.set_coalescing(v4, v6);
                self.connected.store(wanted.queues, Ordering::Release);
                self.reception(|reception| reception.connected = true);
                // The frontend may have filled its rings before.
                for (number, queue) in (0..wanted.queues).zip(&self.queues) {
                    let more = self.run_tx(env, number, queue);
                    self.tx_unsettled.fetch_or(u64::from(more) << number, Ordering::AcqRel);
                }
                // As many as fit in.
                let _ = (0..Ctrl::PASSES).all(|_| self.run_ctrl(env));
            }
            Err(why) => {
                env.plat.log(format_args!("vif {}: not connected: {why:?}", self.config.handle));
                self.disconnect(env);
                self.set_state(bus, stores, XenbusState::CLOSING);
            }
        }
    }

    fn connect_queues<P: Platform, S: Stores>(
        &self,
        env: &Env<'_, P>,
        stores: &S,
        info: &NetInfo,
    ) -> Result<Wanted, Refusal> {
        let most = self.queues.len() as u16;
        let wanted = self
            .with_front(stores, |front| connection::wanted(front, most))
            .ok_or(Refusal::Store)??;
        for (number, queue) in (0..wanted.queues).zip(&self.queues) {
            let connection = self
                .with_front(stores, |front| connection::connection(front, number, wanted.queues))
                .ok_or(Refusal::Store)??;
            self.connect_queue(env, number, queue, &wanted, &connection)?;
        }
        self.ways.resize(wanted.queues, info.queues);
        if let Some((gref, number)) = wanted.ctrl {
            let port = Port { number, backend: self.backend(Rings::Ctrl, 0) };
            let port = port.bind(env).ok_or(Refusal::EventChannel)?;
            let Some(line) = Line::attach(env, gref, CTRL_ENTRY_BYTES, port) else {
                port.unbind(env);
                return Err(Refusal::CtrlRing);
            };
            self.ctrl.lock().line = Some(line);
        }
        Ok(wanted)
    }

    fn connect_queue<P: Platform>(
        &self,
        env: &Env<'_, P>,
        number: u16,
        queue: &Queue,
        wanted: &Wanted,
        connection: &Connection,
    ) -> Result<(), Refusal> {
        let is_split = connection.tx_port != connection.rx_port;
        let rings = |own| if is_split { own } else { Rings::Both };
        let port =
            |number_of, own| Port { number: number_of, backend: self.backend(rings(own), number) };
        let (tx_port, rx_port) =
            (port(connection.tx_port, Rings::Tx), port(connection.rx_port, Rings::Rx));
        tx_port.bind(env).ok_or(Refusal::EventChannel)?;
        let Some(tx) = Line::attach(env, connection.tx, TX_ENTRY_BYTES, tx_port) else {
            tx_port.unbind(env);
            return Err(Refusal::TxRing);
        };
        // From here on the line has its port: letting go of one lets go of the other.
        queue.tx.lock().connect(tx);
        for (direction, port) in [(Direction::Tx, tx_port), (Direction::Rx, rx_port)] {
            self.ways.heard(direction, number, port.vcpu(env).unwrap_or_default());
        }
        if is_split {
            rx_port.bind(env).ok_or(Refusal::EventChannel)?;
        }
        let Some(rx) = Line::attach(env, connection.rx, RX_ENTRY_BYTES, rx_port) else {
            if is_split {
                rx_port.unbind(env);
            }
            return Err(Refusal::RxRing);
        };
        queue.rx.lock().connect(rx, wanted.rx);
        Ok(())
    }

    /// The device was taken away, and has nothing of the guest's any more. What still comes fails,
    /// and the frontend is asked to close.
    pub fn remove<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) {
        let mut bus = self.bus.lock();
        bus.removed = true;
        self.connected.store(0, Ordering::Release);
        for (number, queue) in (0..).zip(&self.queues) {
            let woken = queue.rx.lock().stop();
            self.act_on(number, woken);
            queue.tx.lock().give_up(env);
            let more = self.run_tx(env, number, queue);
            self.tx_unsettled.fetch_or(u64::from(more) << number, Ordering::AcqRel);
        }
        let _ = stores.with(|store| self.back(store)?.write("online", format_args!("0")));
        self.set_state(&mut bus, stores, XenbusState::CLOSING);
        drop(bus);
        self.frontend_changed(env, stores);
    }

    /// Whether it was removed and the frontend has let go of it: it can be dropped.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let bus = self.bus.lock();
        bus.removed && bus.state == XenbusState::CLOSED
    }

    /// What the device is changed: its link, MTU or queues.
    pub fn changed<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) {
        let mut bus = self.bus.lock();
        let info = self.device.info();
        let queues = self.connected.load(Ordering::Acquire);
        self.ways.resize(queues, info.queues);
        for (number, queue) in (0..).zip(&self.queues) {
            self.run_tx(env, number, queue);
        }
        if queues > 0 && bus.hash_set {
            self.steer(queues, true);
        }
        let Some((link, mtu)) = bus.told else { return };
        let written = stores.with(|store| {
            if link != info.link {
                self.back(store)?.write("carrier", format_args!("{}", u32::from(info.link)))?;
            }
            if mtu != info.mtu {
                self.back(store)?.write("mtu", format_args!("{}", info.mtu))?;
                let path = self.front_path().ok_or(StoreError)?;
                Dir::new(store, path).write("mtu", format_args!("{}", info.mtu))?;
            }
            Ok::<(), StoreError>(())
        });
        if written == Some(Ok(())) {
            bus.told = Some((info.link, info.mtu));
        }
    }
}

/// Lets go of a queue's rings and event channels.
fn release<P: Platform>(env: &Env<'_, P>, queue: &Queue) {
    let lines = [queue.tx.lock().disconnect(), queue.rx.lock().disconnect()];
    for line in lines.into_iter().flatten() {
        // Where both have one channel the second finds nothing to do.
        line.port.unbind(env);
        line.release(env);
    }
}
