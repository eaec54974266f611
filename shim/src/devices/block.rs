//! The guest's disks: which of the host's it sees as which, and the way from one to the other.
//!
//! Units of the host's controllers come and go ([`Sink`]). Before there is a guest they are only
//! noted; [`attach`] makes virtual block devices of them, in the order of their addresses. From
//! then on a new unit becomes one at once.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use hv_abi::Guid;
use pv_frontends::blkback::{
    BlockDevice, Env, IoResult, Kicked, Limits, MAX_VBDS, Tag, Vbd, VbdConfig, of_port, of_tag,
};
use pv_frontends::disk::{Extent, Part};
use pv_frontends::storvsc::{self, Sink, Unit};
use pv_frontends::vbd::{self, Controller, Entry, Lun};
use pv_frontends::vmbus::VmBus;
use spin::{Mutex, RwLock};

use super::search::Search;
use super::store::{Access, Watcher};
use crate::hv::vmbus::Hv;
use crate::log;
use crate::platform::Shim;

/// A unit as a block device.
pub type Device = storvsc::Disk<&'static VmBus<Hv>>;

/// The vbd whose tags are those of searches for partitions; no vbd is it.
pub(super) const SEARCH: u16 = MAX_VBDS - 1;

/// Heap a vbd takes beside its queues, the heap's own books included.
const VBD_BYTES: usize = 4 << 10;

/// A vbd and what it is made of.
struct Disk {
    entry: Entry,
    unit: Arc<Unit>,
    vbd: Vbd<Part<Device>>,
}

/// What is known of the host's disks.
struct Known {
    /// SCSI controllers in the order of their offers.
    controllers: Vec<Guid>,
    units: Vec<Arc<Unit>>,
    /// What the option names; `None`: every unit is a disk.
    wanted: Option<ArrayVec<Entry, { vbd::MAX_ENTRIES }>>,
    searches: Vec<Search>,
    /// Entries whose number a vbd has that is still closing.
    waiting: Vec<(Entry, Arc<Unit>)>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known {
    controllers: Vec::new(),
    units: Vec::new(),
    wanted: None,
    searches: Vec::new(),
    waiting: Vec::new(),
});
/// The vbds by index.
static DISKS: RwLock<Vec<Option<Arc<Disk>>>> = RwLock::new(Vec::new());
/// There is a domain to attach disks to.
static STARTED: AtomicBool = AtomicBool::new(false);
/// Some vbd has more to do.
static AGAIN: AtomicBool = AtomicBool::new(false);

fn disk(index: u16) -> Option<Arc<Disk>> {
    DISKS.read().get(usize::from(index))?.clone()
}

/// Calls `f` for every vbd of a unit, or for all, with no lock held.
fn each(unit: Option<&Arc<Unit>>, mut f: impl FnMut(&Disk)) {
    for index in 0.. {
        let Some(slot) = DISKS.read().get(index).cloned() else { break };
        if let Some(disk) = slot.filter(|disk| unit.is_none_or(|u| Arc::ptr_eq(u, &disk.unit))) {
            f(&disk);
        }
    }
}

/// The host's side.
pub(super) struct Units;

impl Sink for Units {
    fn added(&self, unit: &Arc<Unit>) {
        KNOWN.lock().units.push(Arc::clone(unit));
        if STARTED.load(Ordering::Acquire) {
            super::with_env(|env| attach_unit(env, unit));
        }
    }

    fn changed(&self, unit: &Arc<Unit>) {
        super::with_env(|env| each(Some(unit), |disk| disk.vbd.resized(&Access(env))));
    }

    fn removed(&self, unit: &Arc<Unit>) {
        {
            let mut known = KNOWN.lock();
            known.units.retain(|other| !Arc::ptr_eq(other, unit));
            known.searches.retain(|search| !search.is_of(unit));
            known.waiting.retain(|(_, other)| !Arc::ptr_eq(other, unit));
        }
        super::with_env(|env| {
            each(Some(unit), |disk| disk.vbd.remove(env, &Access(env)));
            reap(env);
        });
    }

    fn completed(&self, unit: &Arc<Unit>, tag: Tag, result: IoResult) {
        let (index, _) = of_tag(tag);
        if index == SEARCH {
            searched(unit, tag, result);
        } else if let Some(disk) = disk(index) {
            super::with_env(|env| disk.vbd.complete(env, tag, result));
        }
    }

    fn settled(&self, unit: &Arc<Unit>) {
        super::with_env(|env| {
            each(Some(unit), |disk| settle_one(env, disk));
            if !unit.is_present() {
                // The last of its requests may have been all that a vbd waited for.
                reap(env);
            }
            // A search may have found the queue full.
            if is_searching() {
                go_on(env);
            }
        });
    }
}

fn settle_one(env: &Env<'_, Shim<'_>>, disk: &Disk) {
    if disk.vbd.settle(env, &Access(env)) {
        AGAIN.store(true, Ordering::Release);
    }
}

/// Before anything is offered: `wanted` is `pontoon.vbd=`.
pub(super) fn start(wanted: &[u8]) {
    KNOWN.lock().wanted = parse(wanted);
}

/// Heap that [`attach`] takes, for so many vCPUs.
pub(super) fn heap_bytes(vcpus: u32) -> usize {
    let units = KNOWN.lock().units.clone();
    let bytes = units.iter().map(|unit| {
        let device = Device::new(super::bus(), Arc::clone(unit));
        let limits = Limits::new(vcpus, &device.info());
        entries(unit).len() * (limits.heap_bytes() + VBD_BYTES)
    });
    bytes.sum()
}

/// A SCSI controller was offered.
pub(super) fn controller_offered(instance: Guid) {
    let controllers = &mut KNOWN.lock().controllers;
    if !controllers.contains(&instance) {
        controllers.push(instance);
    }
}

/// The guest notified a vbd's queue.
pub(super) fn kicked(env: &Env<'_, Shim<'_>>, port: u16) -> Kicked {
    let (index, queue) = of_port(port);
    disk(index).map_or_else(Kicked::default, |disk| disk.vbd.kicked_holding(env, queue))
}

/// Hands over what a vbd's queue held back.
pub(super) fn release(env: &Env<'_, Shim<'_>>, port: u16) {
    let (index, queue) = of_port(port);
    if disk(index).is_some_and(|disk| disk.vbd.kicked(env, queue)) {
        AGAIN.store(true, Ordering::Release);
    }
}

/// Nodes that a vbd watches were written.
pub(super) fn frontend_changed(env: &Env<'_, Shim<'_>>, index: u16) {
    if let Some(disk) = disk(index) {
        disk.vbd.frontend_changed(env, &Access(env));
        if disk.vbd.is_unsettled() {
            AGAIN.store(true, Ordering::Release);
        }
    }
    reap(env);
}

/// Whether [`again`] may have something to do.
pub(super) fn has_more() -> bool {
    AGAIN.load(Ordering::Relaxed)
}

/// Goes on with vbds that were not done. Whether some still are not.
pub(super) fn again(env: &Env<'_, Shim<'_>>) -> bool {
    if AGAIN.load(Ordering::Relaxed) && AGAIN.swap(false, Ordering::AcqRel) {
        each(None, |disk| settle_one(env, disk));
    }
    AGAIN.load(Ordering::Relaxed)
}

/// Forgets vbds that are gone for good, and makes those that had to wait for their numbers.
fn reap(env: &Env<'_, Shim<'_>>) {
    let mut gone = ArrayVec::<Arc<Disk>, 8>::new();
    {
        let mut disks = DISKS.write();
        for slot in disks.iter_mut().filter(|s| s.as_ref().is_some_and(|d| d.vbd.is_gone())) {
            if gone.is_full() {
                break;
            }
            gone.extend(slot.take());
        }
    }
    for disk in &gone {
        let index = disk.vbd.index();
        if let Some(path) = disk.vbd.watched() {
            Watcher::Vbd(index).unwatch(env, &path);
        }
        let waiting = {
            let waiting = &mut KNOWN.lock().waiting;
            let at = waiting.iter().position(|(entry, _)| entry.vdev == disk.entry.vdev);
            at.map(|at| waiting.remove(at))
        };
        if let Some((entry, unit)) = waiting {
            attach_entry(env, &unit, entry);
        }
    }
}

/// Makes vbds of all units found so far, and of later ones from now on.
pub(super) fn attach(env: &Env<'_, Shim<'_>>) {
    let mut units = KNOWN.lock().units.clone();
    units.sort_by_key(|unit| address(unit));
    STARTED.store(true, Ordering::Release);
    for unit in &units {
        attach_unit(env, unit);
    }
}

/// Entries whose disk was not found.
pub(super) fn missing(mut report: impl FnMut(&Entry)) {
    let known = KNOWN.lock();
    for entry in known.wanted.iter().flatten() {
        let is_it = |disk: &Arc<Disk>| disk.entry.vdev == entry.vdev;
        if !DISKS.read().iter().flatten().any(is_it) {
            report(entry);
        }
    }
}

/// Whether a partition is still being looked for.
pub(super) fn is_searching() -> bool {
    !KNOWN.lock().searches.is_empty()
}

fn parse(wanted: &[u8]) -> Option<ArrayVec<Entry, { vbd::MAX_ENTRIES }>> {
    if wanted.is_empty() {
        return None;
    }
    let entries = core::str::from_utf8(wanted).ok().and_then(|text| {
        vbd::parse(text)
            .inspect_err(|error| log!(Error, "pontoon.vbd={text}: {error:?} (from 0)"))
            .ok()
    });
    // With an option that says nothing sensible the guest gets no disks: better than wrong ones.
    Some(entries.unwrap_or_default())
}

/// Where a unit is, by the order of the controllers.
fn address(unit: &Unit) -> Lun {
    let controller = match storvsc::ide_port_of(unit) {
        Some(port) => Controller::Ide(u16::try_from(port.controller).unwrap_or(u16::MAX)),
        None => {
            let known = KNOWN.lock();
            let nr = known.controllers.iter().position(|guid| *guid == unit.controller());
            Controller::Scsi(nr.and_then(|nr| u16::try_from(nr).ok()).unwrap_or(u16::MAX))
        }
    };
    Lun { controller, target: unit.address().target, lun: unit.address().lun }
}

/// What is to be made of a unit.
fn entries(unit: &Unit) -> ArrayVec<Entry, { vbd::MAX_ENTRIES }> {
    let lun = address(unit);
    match &KNOWN.lock().wanted {
        Some(wanted) => wanted.iter().filter(|entry| entry.source.lun == lun).copied().collect(),
        None => {
            let cdrom = unit.info().device.cdrom;
            let free = (0..).find(|&index| {
                let vdev = vbd::Vdev::xvd(index);
                !DISKS.read().iter().flatten().any(|disk| disk.entry.vdev == vdev)
            });
            free.map(|index| vbd::default_entry(index, lun, cdrom)).into_iter().collect()
        }
    }
}

/// Makes the vbds of a unit.
fn attach_unit(env: &Env<'_, Shim<'_>>, unit: &Arc<Unit>) {
    for entry in entries(unit) {
        attach_entry(env, unit, entry);
    }
}

/// Makes a vbd of a unit, or begins to look for its partition.
fn attach_entry(env: &Env<'_, Shim<'_>>, unit: &Arc<Unit>, entry: Entry) {
    match entry.source.partition {
        None => make(env, unit, entry, None),
        Some(number) => {
            let search = Search::new(unit, entry, number);
            KNOWN.lock().searches.extend(search);
            go_on(env);
        }
    }
}

/// A read of a search ended.
fn searched(unit: &Arc<Unit>, tag: Tag, result: IoResult) {
    for search in KNOWN.lock().searches.iter_mut().filter(|search| search.is_of(unit)) {
        search.completed(tag, result.is_ok());
    }
    super::with_env(go_on);
}

/// Goes on with searches: reads that are due, and vbds of partitions that were found.
fn go_on(env: &Env<'_, Shim<'_>>) {
    loop {
        let found = {
            let mut known = KNOWN.lock();
            let searches = &mut known.searches;
            let done = searches.iter_mut().position(Search::advance);
            done.map(|at| searches.remove(at))
        };
        let Some(search) = found else { return };
        let (unit, entry, result) = search.into_parts();
        match result {
            Ok(extent) => make(env, &unit, entry, Some(extent)),
            Err(why) => log!(Error, "{}: {why:?}", entry.vdev.name()),
        }
    }
}

/// Makes a vbd and shows it to the guest.
fn make(env: &Env<'_, Shim<'_>>, unit: &Arc<Unit>, entry: Entry, extent: Option<Extent>) {
    let name = entry.vdev.name();
    let Some(number) = entry.vdev.number() else {
        log!(Error, "{name}: there is no such device number");
        return;
    };
    let device = Device::new(super::bus(), Arc::clone(unit));
    let part = match extent {
        Some(extent) => Part::of(device, extent),
        None => Part::whole(device),
    };
    let limits = Limits::new(env.dom.nr_vcpus, &part.info());
    let config = VbdConfig { number, read_only: entry.flags.read_only, cdrom: entry.flags.cdrom };
    let Some(disk) = create(unit, entry, config, limits, part) else { return };
    let watcher = Watcher::Vbd(disk.vbd.index());
    let announced = disk.vbd.announce(&Access(env)).is_ok()
        && disk.vbd.watched().is_some_and(|path| watcher.watch(env, &path));
    let sectors = disk.vbd.device().info().sectors;
    if announced {
        log!(Info, "{name}: {} MiB, {}", sectors >> 11, entry.source.lun);
    } else {
        log!(Error, "{name}: no room in xenstore, or a disk that makes no sense");
        DISKS.write()[usize::from(disk.vbd.index())] = None;
    }
}

/// Makes a vbd that nobody sees yet; says why it cannot. What this takes of the stack is not to be
/// there while the store is written.
#[inline(never)]
fn create(
    unit: &Arc<Unit>,
    entry: Entry,
    config: VbdConfig,
    limits: Limits,
    part: Part<Device>,
) -> Option<Arc<Disk>> {
    let name = entry.vdev.name();
    let mut disks = DISKS.write();
    if disks.iter().flatten().any(|disk| disk.entry.vdev == entry.vdev) {
        drop(disks);
        KNOWN.lock().waiting.push((entry, Arc::clone(unit)));
        return None;
    }
    let free = disks.iter().position(Option::is_none).unwrap_or(disks.len());
    let Some(index) = u16::try_from(free).ok().filter(|&index| index < SEARCH) else {
        log!(Error, "{name}: too many disks");
        return None;
    };
    let Some(vbd) = Vbd::new(index, config, limits, part) else {
        log!(Error, "{name}: no memory for its queues");
        return None;
    };
    let disk = Arc::new(Disk { entry, unit: Arc::clone(unit), vbd });
    if free == disks.len() {
        disks.push(None);
    }
    disks[free] = Some(Arc::clone(&disk));
    Some(disk)
}
