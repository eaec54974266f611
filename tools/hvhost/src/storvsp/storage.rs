//! All controllers and disks of a machine, and the commands that change them.

use crate::memory::Memory;
use crate::options::Options;
use crate::storvsp::fault::parse_scsi;
use crate::storvsp::options::{CONTROLLERS_MAX, DiskOptions, Place, place};
use crate::storvsp::{Controller, Disk, Fault};
use crate::vmbus::Bus;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A controller, and its number on the bus while it is offered.
struct Entry {
    controller: Arc<Controller>,
    offered: Option<usize>,
}

/// The storage of a machine.
pub struct Storage {
    bus: Arc<Bus>,
    controllers: Mutex<BTreeMap<u32, Entry>>,
    /// The devices of IDE controllers, which stay.
    ide: BTreeMap<Place, Arc<Controller>>,
    /// Disks that are plugged in later.
    detached: BTreeMap<(u32, u8), DiskOptions>,
    faults: Vec<Fault>,
}

impl Storage {
    /// Opens the disks of the options and offers their controllers.
    ///
    /// # Errors
    /// A disk that cannot be used.
    pub fn new(bus: Arc<Bus>, memory: &Memory, options: &Options) -> Result<Arc<Self>> {
        let places = place(&options.disk)?;
        let number = |place: &Place| match place {
            Place::Scsi(controller, _) => Some(controller + 1),
            Place::Ide(..) => None,
        };
        let needed = places.iter().filter_map(number).max().unwrap_or(0);
        // For disks that come later.
        let commands = options.control.is_some() || !options.at.is_empty();
        let count = options.scsi_controllers.unwrap_or(u32::from(commands)).max(needed);
        let default = u16::try_from(options.cpus - 1).unwrap_or(u16::MAX);
        let sub_channels = options.scsi_sub_channels.unwrap_or(default);
        let mut controllers = BTreeMap::new();
        for number in 0..count.min(CONTROLLERS_MAX) {
            let controller = Controller::new(number, memory, sub_channels, options.vmbus_monitor);
            let entry = Entry { controller: Arc::new(controller), offered: None };
            controllers.insert(number, entry);
        }
        let (mut detached, mut ide) = (BTreeMap::new(), BTreeMap::new());
        for (disk, place) in options.disk.iter().zip(places) {
            let open = || Disk::open(disk, place, &options.disk_fault);
            match place {
                Place::Scsi(controller, lun) if disk.detached => {
                    detached.insert((controller, lun), disk.clone());
                }
                Place::Scsi(controller, lun) => {
                    let entry = controllers.get(&controller).context("no such controller")?;
                    entry.controller.add(lun, open()?);
                }
                Place::Ide(bus, device) => {
                    let monitored = options.vmbus_monitor;
                    let controller = Controller::ide(bus, device, memory, monitored);
                    controller.add(0, open()?);
                    ide.insert(place, Arc::new(controller));
                }
            }
        }
        for device in ide.values() {
            bus.offer(device.clone()).context("no channel is left")?;
        }
        for entry in controllers.values_mut() {
            entry.offered = bus.offer(entry.controller.clone());
        }
        let faults = options.disk_fault.clone();
        Ok(Arc::new(Self { bus, controllers: Mutex::new(controllers), ide, detached, faults }))
    }

    fn controllers(&self) -> MutexGuard<'_, BTreeMap<u32, Entry>> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes everything out, at the end of the machine.
    ///
    /// # Errors
    /// A disk whose data may be lost.
    pub fn settle(&self) -> Result<()> {
        for (number, entry) in &*self.controllers() {
            for (lun, disk) in entry.controller.units() {
                disk.settle()
                    .with_context(|| format!("disk {number}:{lun} cannot be written out"))?;
            }
        }
        for (place, device) in &self.ide {
            for (_, disk) in device.units() {
                disk.settle().with_context(|| format!("disk {place} cannot be written out"))?;
            }
        }
        Ok(())
    }

    /// Does a command; `docs/hvhost.md` lists them. The answer may have lines.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn command(&self, line: &str) -> Result<String> {
        let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match verb {
            "disk-add" => self.add(&rest.trim().parse()?),
            "disk-attach" => self.attach(rest.trim()),
            "disk-remove" => self.remove(rest.trim()),
            "controller-remove" => self.offer(rest.trim(), false),
            "controller-add" => self.offer(rest.trim(), true),
            "list" => Ok(self.list()),
            _ => bail!(
                "{verb:?}: expected disk-add, disk-attach, disk-remove, controller-add, controller-remove or list"
            ),
        }
    }

    fn attach(&self, text: &str) -> Result<String> {
        let place = parse_scsi(text)?;
        let disk = self.detached.get(&place);
        let disk = disk.with_context(|| format!("no --disk …,detached for {text}"))?;
        self.add(&DiskOptions { place: Some(place.into()), ..disk.clone() })
    }

    fn add(&self, options: &DiskOptions) -> Result<String> {
        let controllers = self.controllers();
        let (number, lun) = match options.place {
            Some(Place::Scsi(controller, lun)) => (controller, lun),
            Some(place @ Place::Ide(..)) => bail!("{place}: no disk is plugged in there"),
            None => {
                let first = controllers.get(&0).context("there is no controller 0")?;
                let taken: Vec<u8> = first.controller.units().iter().map(|u| u.0).collect();
                let free = (0..64).find(|lun| !taken.contains(lun));
                (0, free.context("controller 0 is full")?)
            }
        };
        let entry = controllers.get(&number).with_context(|| no_controller(number))?;
        let disk = Disk::open(options, (number, lun), &self.faults)?;
        if !entry.controller.add(lun, disk) {
            bail!("{number}:{lun} is taken");
        }
        Ok(format!("{number}:{lun}"))
    }

    fn remove(&self, text: &str) -> Result<String> {
        let (number, lun) = parse_scsi(text)?;
        let controllers = self.controllers();
        let entry = controllers.get(&number).with_context(|| no_controller(number))?;
        let settled = entry.controller.remove(lun);
        settled.with_context(|| format!("no disk at {number}:{lun}"))??;
        Ok(format!("{number}:{lun}"))
    }

    fn offer(&self, text: &str, wanted: bool) -> Result<String> {
        let number: u32 = text.parse().with_context(|| format!("{text:?} is no controller"))?;
        let mut controllers = self.controllers();
        let entry = controllers.get_mut(&number).with_context(|| no_controller(number))?;
        match (entry.offered, wanted) {
            (Some(_), true) => bail!("controller {number} is there already"),
            (None, false) => bail!("controller {number} is not there"),
            (None, true) => {
                let offered = self.bus.offer(entry.controller.clone());
                entry.offered = Some(offered.context("no channel is left")?);
            }
            (Some(device), false) => {
                entry.offered = None;
                self.bus.revoke(device);
            }
        }
        Ok(number.to_string())
    }

    fn list(&self) -> String {
        let mut text = String::new();
        for (number, entry) in &*self.controllers() {
            let state = if entry.offered.is_some() { "" } else { " removed" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "controller {number}{state}");
            for (lun, disk) in entry.controller.units() {
                let _ = writeln!(text, "disk {number}:{lun} {}", describe(&disk));
            }
        }
        for (place, device) in &self.ide {
            for (_, disk) in device.units() {
                let _ = writeln!(text, "disk {place} {}", describe(&disk));
            }
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn describe(disk: &Disk) -> String {
    format!(
        "sectors={} sector={}{}{}{}",
        disk.sectors(),
        disk.sector_bytes(),
        if disk.is_read_only() { " ro" } else { "" },
        if disk.is_dvd() { " dvd" } else { "" },
        if disk.is_direct() { " direct" } else { "" },
    )
}

fn no_controller(number: u32) -> String {
    format!("there is no controller {number}")
}
