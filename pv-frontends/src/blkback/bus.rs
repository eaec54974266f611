//! The handshake with the frontend through xenstore (`blkif.h`, "STATE DIAGRAMS").
//!
//! Level-triggered: [`Vbd::frontend_changed`] looks at the frontend's state and does what is due.
//! Where that has to wait for requests at the device it is called again after the last one.

use core::sync::atomic::Ordering;

use translate::platform::Platform;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::{VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use xen_abi::io::xenbus::XenbusState;

use super::queue::{Connection, Queue};
use super::request::Layout;
use super::{BlockDevice, DeviceInfo, Env, Vbd};
use crate::vbd::Vdev;
use crate::xenbus::{Dir, Path, Store, StoreError, Stores, text};

/// This end of the handshake.
#[derive(Debug)]
pub(super) struct Bus {
    /// What the `state` node of the backend holds.
    state: XenbusState,
    /// The device is gone: never connect again.
    removed: bool,
    /// Sectors the frontend was told of.
    sectors: u64,
}

impl Bus {
    pub(super) const fn new() -> Self {
        Self { state: XenbusState::INITIALISING, removed: false, sectors: 0 }
    }
}

/// Why a frontend cannot be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Protocol,
    Queues,
    RingOrder,
    MissingNode,
    Ring,
    EventChannel,
    Store,
    Device,
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Store
    }
}

/// What a frontend asked for.
struct Wanted {
    layout: Layout,
    queues: u16,
}

impl<D: BlockDevice> Vbd<D> {
    fn front_path(&self) -> Option<Path> {
        text(format_args!("/local/domain/1/device/vbd/{}", self.config.number))
    }

    fn back_path(&self) -> Option<Path> {
        text(format_args!("/local/domain/0/backend/vbd/1/{}", self.config.number))
    }

    /// The node whose changes [`Self::frontend_changed`] wants to hear of.
    #[must_use]
    pub fn watched(&self) -> Option<Path> {
        text(format_args!("{}/state", self.front_path()?))
    }

    /// Makes both directories as Xen's toolstack does, and says what the backend can do. The
    /// frontend may connect from here on.
    ///
    /// # Errors
    /// No space in the store, or a device whose description makes no sense.
    pub fn announce<S: Stores>(&self, stores: &S) -> Result<(), StoreError> {
        let info = self.info();
        if !info.is_sane() {
            return Err(StoreError);
        }
        let name = Vdev::from_number(self.config.number).ok_or(StoreError)?.name();
        let number: Path = text(format_args!("{}", self.config.number)).ok_or(StoreError)?;
        let kind = if info.cdrom { "cdrom" } else { "disk" };
        let removable = if info.cdrom || info.removable { "1" } else { "0" };
        let front = [("virtual-device", number.as_str()), ("device-type", kind), ("trusted", "1")];
        let back = [
            ("removable", removable),
            ("bootable", "1"),
            ("dev", name.as_str()),
            ("type", "phy"),
            ("mode", if info.read_only { "r" } else { "w" }),
            ("device-type", kind),
            ("discard-enable", "1"),
            ("params", name.as_str()),
            ("physical-device", "0:0"),
        ];
        let mut bus = self.bus.lock();
        let done = stores.with(|store| {
            store.add_device("vbd", self.config.number, &front, &back)?;
            self.offer(store)
        });
        done.ok_or(StoreError)??;
        bus.state = XenbusState::INIT_WAIT;
        Ok(())
    }

    fn back<'s>(&self, store: &'s mut dyn Store) -> Result<Dir<'s>, StoreError> {
        self.back_path().map(|path| Dir::new(store, path)).ok_or(StoreError)
    }

    /// What a frontend reads before it sets up its rings; then waits for it.
    fn offer(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        let mut back = self.back(store)?;
        let (limits, order) = (&self.limits, self.limits.ring_page_order);
        back.write("feature-max-indirect-segments", format_args!("{}", limits.max_segments))?;
        back.write("multi-queue-max-queues", format_args!("{}", limits.queues))?;
        back.write("max-ring-page-order", format_args!("{order}"))?;
        back.write("max-ring-pages", format_args!("{}", 1 << order))?;
        back.set_state(XenbusState::INIT_WAIT)
    }

    /// What a frontend reads once connected.
    fn describe(&self, store: &mut dyn Store, info: &DeviceInfo) -> Result<(), StoreError> {
        let mut back = self.back(store)?;
        let flush = u8::from(info.flush);
        back.write("feature-flush-cache", format_args!("{flush}"))?;
        back.write("feature-barrier", format_args!("{flush}"))?;
        let enabled = back.read_number("discard-enable") != Some(0);
        if let Some(discard) = info.discard.filter(|_| enabled && !info.read_only) {
            back.write("discard-granularity", format_args!("{}", discard.granularity))?;
            back.write("discard-alignment", format_args!("{}", discard.alignment))?;
            back.write("discard-secure", format_args!("{}", u8::from(discard.secure)))?;
            back.write("feature-discard", format_args!("1"))?;
        } else {
            back.write("feature-discard", format_args!("0"))?;
        }
        back.write("feature-persistent", format_args!("0"))?;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let bits = flag(info.cdrom, VDISK_CDROM)
            | flag(info.removable, VDISK_REMOVABLE)
            | flag(info.read_only, VDISK_READONLY);
        back.write("sectors", format_args!("{}", info.sectors))?;
        back.write("info", format_args!("{bits}"))?;
        back.write("sector-size", format_args!("{}", info.logical_bytes))?;
        back.write("physical-sector-size", format_args!("{}", info.physical_bytes))?;
        back.set_state(XenbusState::CONNECTED)
    }

    fn set_state<S: Stores>(&self, bus: &mut Bus, stores: &S, state: XenbusState) {
        if bus.state != state {
            bus.state = state;
            // Where the directory is gone there is nobody to tell.
            let _ = stores.with(|store| self.back(store)?.set_state(state));
        }
    }

    /// The frontend's state may have changed.
    pub fn frontend_changed<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) {
        let mut bus = self.bus.lock();
        let state =
            self.front_path().and_then(|path| stores.with(|store| Dir::new(store, path).state()));
        match state.unwrap_or(XenbusState::UNKNOWN) {
            XenbusState::INITIALISING => {
                let waits =
                    bus.state == XenbusState::CLOSED || bus.state == XenbusState::INITIALISING;
                if waits && !bus.removed && self.disconnect(env) {
                    let _ = stores.with(|store| self.offer(store));
                    bus.state = XenbusState::INIT_WAIT;
                }
            }
            XenbusState::INITIALISED | XenbusState::CONNECTED
                if bus.state != XenbusState::CONNECTED && !bus.removed && self.disconnect(env) =>
            {
                self.connect(env, stores, &mut bus);
            }
            XenbusState::CLOSING => self.set_state(&mut bus, stores, XenbusState::CLOSING),
            XenbusState::CLOSED | XenbusState::UNKNOWN if self.disconnect(env) => {
                self.set_state(&mut bus, stores, XenbusState::CLOSED);
                if bus.removed {
                    let _ = stores.with(|store| store.remove_device("vbd", self.config.number));
                }
            }
            // Nothing is due, or not yet: requests are still at the device.
            _ => {}
        }
    }

    /// Stops all queues and lets go of their rings, once nothing of theirs is at the device;
    /// whether that is so. If not, [`Vbd::settle`] comes back to it.
    fn disconnect<P: Platform>(&self, env: &Env<'_, P>) -> bool {
        self.closing.store(true, Ordering::Release);
        let mut idle = true;
        for (number, queue) in (0..).zip(&self.queues) {
            queue.lock().stop(env);
            self.run(env, number, queue, false);
            let mut queue = queue.lock();
            if !queue.is_idle() {
                idle = false;
            } else if let Some(port) = queue.disconnect(env) {
                env.dom.evtchn.unbind_backend(port, self.backend(number));
            }
        }
        if idle {
            self.closing.store(false, Ordering::Release);
        }
        idle
    }

    fn connect<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S, bus: &mut Bus) {
        let info = self.info();
        let connected = self.connect_queues(env, stores).and_then(|()| {
            if !info.is_sane() {
                return Err(Refusal::Device);
            }
            stores
                .with(|store| self.describe(store, &info))
                .ok_or(Refusal::Store)?
                .map_err(Refusal::from)
        });
        match connected {
            Ok(()) => {
                bus.state = XenbusState::CONNECTED;
                bus.sectors = info.sectors;
                // The frontend may have put requests into its rings before: what fits in is
                // taken now. Who adds bad ones faster than they are refused waits for `settle`.
                for (number, queue) in (0..).zip(&self.queues) {
                    let more =
                        (0..=Queue::PASSES).all(|_| self.run(env, number, queue, false).more);
                    if more {
                        self.unsettle(number);
                    }
                }
            }
            Err(why) => {
                env.plat.log(format_args!("vbd {}: not connected: {why:?}", self.config.number));
                self.disconnect(env);
                self.set_state(bus, stores, XenbusState::CLOSING);
            }
        }
    }

    fn connect_queues<P: Platform, S: Stores>(
        &self,
        env: &Env<'_, P>,
        stores: &S,
    ) -> Result<(), Refusal> {
        let path = self.front_path().ok_or(Refusal::Store)?;
        let wanted = stores
            .with(|store| wanted(&mut Dir::new(store, path), self.limits.queues))
            .ok_or(Refusal::Store)??;
        for (number, queue) in (0..wanted.queues).zip(&self.queues) {
            let connection = stores
                .with(|store| {
                    let mut front = Dir::new(store, path);
                    connection(&mut front, number, wanted.queues, self.limits.ring_page_order)
                })
                .ok_or(Refusal::Store)??;
            let backend = self.backend(number);
            let bound = env.dom.evtchn.bind_backend(connection.port, backend);
            bound.map_err(|_| Refusal::EventChannel)?;
            let connected = queue.lock().connect(env, &connection, wanted.layout);
            if connected.is_err() {
                env.dom.evtchn.unbind_backend(connection.port, backend);
                return Err(Refusal::Ring);
            }
        }
        Ok(())
    }

    /// The device was taken away. Nothing of its requests may reach the guest's memory any more:
    /// what has not completed fails, as does what still comes, and the frontend is asked to close.
    pub fn remove<P: Platform, S: Stores>(&self, env: &Env<'_, P>, stores: &S) {
        let mut bus = self.bus.lock();
        bus.removed = true;
        for (number, queue) in (0..).zip(&self.queues) {
            queue.lock().give_up(env);
            let more = (0..=Queue::PASSES).all(|_| self.run(env, number, queue, false).more);
            if more {
                self.unsettle(number);
            }
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

    /// The device's size may have changed: tells the frontend, which looks again when the state
    /// is written again.
    pub fn resized<S: Stores>(&self, stores: &S) {
        let mut bus = self.bus.lock();
        let info = self.info();
        if bus.state != XenbusState::CONNECTED || info.sectors == bus.sectors || !info.is_sane() {
            return;
        }
        let written = stores.with(|store| {
            let mut back = self.back(store)?;
            back.write("sectors", format_args!("{}", info.sectors))?;
            back.set_state(XenbusState::CONNECTED)
        });
        if written == Some(Ok(())) {
            bus.sectors = info.sectors;
        }
    }

    /// The device does not flush, whatever it said before: says so to frontends to come.
    pub(super) fn report_unsupported<S: Stores>(&self, stores: &S) {
        let found = self.unsupported.swap(false, Ordering::AcqRel);
        if found {
            let _ = stores.with(|store| {
                let mut back = self.back(store)?;
                back.write("feature-flush-cache", format_args!("0"))?;
                back.write("feature-barrier", format_args!("0"))
            });
        }
    }
}

/// Reads what holds for all queues.
fn wanted(front: &mut Dir<'_>, most: u16) -> Result<Wanted, Refusal> {
    let protocol = front.read("protocol");
    let layout = Layout::of_protocol(protocol.as_deref()).ok_or(Refusal::Protocol)?;
    let queues = front.read_number("multi-queue-num-queues").unwrap_or(1);
    let queues = u16::try_from(queues).ok().filter(|queues| (1..=most).contains(queues));
    Ok(Wanted { layout, queues: queues.ok_or(Refusal::Queues)? })
}

/// Reads where a queue's ring and event channel are: in the frontend's directory where there is
/// one queue, else in one of its own.
fn connection(
    front: &mut Dir<'_>,
    number: u16,
    queues: u16,
    max_order: u8,
) -> Result<Connection, Refusal> {
    let pages = match (front.read_number("ring-page-order"), front.read_number("num-ring-pages")) {
        (Some(order), _) if order <= max_order.into() => Some(1 << order),
        (Some(_), _) => return Err(Refusal::RingOrder),
        (None, Some(pages)) if pages.is_power_of_two() && pages <= 1 << max_order => Some(pages),
        (None, Some(_)) => return Err(Refusal::RingOrder),
        (None, None) => None,
    };
    if queues > 1 {
        front.enter(format_args!("queue-{number}")).ok_or(Refusal::MissingNode)?;
    }
    let mut number_of = |name: &str| {
        let number = front.read_number(name).and_then(|number| u32::try_from(number).ok());
        number.ok_or(Refusal::MissingNode)
    };
    let mut connection = Connection { port: number_of("event-channel")?, ..Connection::default() };
    match pages {
        None => connection.grefs.push(GrantRef(number_of("ring-ref")?)),
        Some(pages) => {
            for page in 0..pages {
                let name: Path =
                    text(format_args!("ring-ref{page}")).ok_or(Refusal::MissingNode)?;
                let gref = match number_of(&name) {
                    // A ring of one page may use either name.
                    Err(_) if pages == 1 => number_of("ring-ref")?,
                    found => found?,
                };
                connection.grefs.push(GrantRef(gref));
            }
        }
    }
    if queues > 1 {
        front.leave();
    }
    Ok(connection)
}
