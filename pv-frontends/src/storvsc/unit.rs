//! A logical unit: a disk or a CD drive.

use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use hv_abi::Guid;
use spin::RwLock;
use xen_abi::io::blkif::SECTOR_BYTES;

use super::command::{Cdb, Direction};
use super::controller::Controller;
use crate::blkback::{BlockDevice, DeviceInfo, Io, IoError, Operation, Submitted, Tag};
use crate::vmbus::{Hypervisor, VmBus};

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitAddress {
    /// Bus.
    pub path: u8,
    /// Target.
    pub target: u8,
    /// Unit.
    pub lun: u8,
}

/// A unit's designator of page 0x83, as far as it fits; nothing where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identifier {
    bytes: [u8; Self::MAX],
    length: u8,
}

impl Identifier {
    /// Most bytes kept: an NAA name has 8 or 16.
    pub const MAX: usize = 32;

    /// None.
    pub const NONE: Self = Self { bytes: [0; Self::MAX], length: 0 };

    pub(super) fn new(from: &[u8]) -> Self {
        let mut id = Self::default();
        for (to, from) in id.bytes.iter_mut().zip(from) {
            *to = *from;
        }
        id.length = from.len().min(Self::MAX) as u8;
        id
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// What a scan found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// As a block device.
    pub device: DeviceInfo,
    /// Its name for good.
    pub identifier: Identifier,
    /// The page with its names was answered; where it was not, [`Self::identifier`] is none.
    pub(super) is_identified: bool,
    /// It turns; `None` where it does not say.
    pub rotates: Option<bool>,
}

impl UnitInfo {
    /// What is known after a scan that found `new` in the same place; `None`: that is another disk.
    pub(super) fn updated(&self, new: Self) -> Option<Self> {
        if self.device.cdrom != new.device.cdrom {
            return None;
        }
        let Self { identifier, is_identified, .. } = *self;
        match (is_identified, new.is_identified) {
            (_, false) => Some(Self { identifier, is_identified, ..new }),
            (false, true) => (self.device.sectors == new.device.sectors).then_some(new),
            (true, true) => (identifier == new.identifier).then_some(new),
        }
    }
}

/// A logical unit.
#[derive(Debug)]
pub struct Unit {
    pub(super) controller: Arc<Controller>,
    address: UnitAddress,
    info: RwLock<UnitInfo>,
    present: AtomicBool,
    /// Requests ended, or one was refused for want of room: the sink is to hear that it goes on.
    unsettled: AtomicBool,
}

impl Unit {
    pub(super) fn new(controller: Arc<Controller>, address: UnitAddress, info: UnitInfo) -> Self {
        Self {
            controller,
            address,
            info: RwLock::new(info),
            present: AtomicBool::new(true),
            unsettled: AtomicBool::new(false),
        }
    }

    /// Where it is on its controller.
    #[must_use]
    pub const fn address(&self) -> UnitAddress {
        self.address
    }

    /// Its controller's instance.
    #[must_use]
    pub fn controller(&self) -> Guid {
        self.controller.instance()
    }

    /// What is known of it.
    #[must_use]
    pub fn info(&self) -> UnitInfo {
        *self.info.read()
    }

    pub(super) fn set_info(&self, info: UnitInfo) {
        *self.info.write() = info;
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.present.load(Ordering::Relaxed)
    }

    pub(super) fn set_gone(&self) {
        self.present.store(false, Ordering::Relaxed);
    }

    /// [`Sink::settled`](super::Sink::settled) is due. What it is about has been done before: another
    /// processor may take this at once, and then does all there is.
    pub(super) fn unsettle(&self) {
        self.unsettled.store(true, Ordering::Release);
    }

    pub(super) fn take_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed) && self.unsettled.swap(false, Ordering::AcqRel)
    }

    /// Hands a request to the host; see [`BlockDevice::submit`].
    pub fn submit<H: Hypervisor>(
        self: &Arc<Self>,
        bus: &VmBus<H>,
        vcpu: u32,
        io: &Io<'_>,
        tag: Tag,
    ) -> Submitted {
        if !self.is_present() {
            return Submitted::Failed(IoError::Removed);
        }
        let device = self.info.read().device;
        let request = match Request::new(&device, io) {
            Ok(request) => request,
            Err(error) => return Submitted::Failed(error),
        };
        self.controller.submit(bus, self, vcpu, io, &request, tag)
    }

    /// Signals the host if it has to be; see [`BlockDevice::commit`].
    pub fn commit<H: Hypervisor>(&self, bus: &VmBus<H>, vcpu: u32) {
        self.controller.commit(bus, vcpu);
    }
}

/// A block request as a SCSI command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub cdb: Cdb,
    pub direction: Direction,
    /// Of UNMAP: first block, blocks.
    pub unmap: Option<(u64, u32)>,
}

impl Request {
    fn new(device: &DeviceInfo, io: &Io<'_>) -> Result<Self, IoError> {
        let per_block = u64::from(device.logical_bytes / SECTOR_BYTES);
        let blocks_of = |sectors: u64| {
            let whole = io.sector.is_multiple_of(per_block) && sectors.is_multiple_of(per_block);
            let inside = io.sector.checked_add(sectors).is_some_and(|end| end <= device.sectors);
            let count = sectors / per_block;
            if whole && inside {
                u32::try_from(count).map_err(|_| IoError::Io)
            } else {
                Err(IoError::Io)
            }
        };
        let lba = io.sector / per_block;
        match io.operation {
            Operation::Read | Operation::Write => {
                let bytes = io.bytes();
                let is_write = io.operation == Operation::Write;
                if bytes == 0
                    || !bytes.is_multiple_of(u64::from(SECTOR_BYTES))
                    || bytes > u64::from(device.max_transfer_bytes)
                    || is_write && device.read_only
                {
                    return Err(IoError::Io);
                }
                let blocks = blocks_of(bytes / u64::from(SECTOR_BYTES))?;
                let direction = if is_write { Direction::Out } else { Direction::In };
                Ok(Self { cdb: Cdb::transfer(is_write, lba, blocks), direction, unmap: None })
            }
            Operation::Flush => {
                Ok(Self { cdb: Cdb::flush(), direction: Direction::None, unmap: None })
            }
            Operation::Discard { sectors, secure } => {
                let discard = device.discard.ok_or(IoError::Unsupported)?;
                if secure {
                    return Err(IoError::Unsupported);
                }
                if sectors == 0 || sectors > discard.max_sectors || device.read_only {
                    return Err(IoError::Io);
                }
                let blocks = blocks_of(sectors)?;
                let cdb = Cdb::unmap(super::queue::UNMAP_BYTES as u16);
                Ok(Self { cdb, direction: Direction::Out, unmap: Some((lba, blocks)) })
            }
        }
    }
}

/// A unit as the block backend's device. `B` is how the bus is held: a reference or an `Arc`.
#[derive(Debug)]
pub struct Disk<B> {
    bus: B,
    unit: Arc<Unit>,
}

impl<B> Disk<B> {
    /// The device of a unit.
    #[must_use]
    pub const fn new(bus: B, unit: Arc<Unit>) -> Self {
        Self { bus, unit }
    }

    /// The unit.
    pub const fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }
}

impl<H: Hypervisor, B: Deref<Target = VmBus<H>> + Sync> BlockDevice for Disk<B> {
    fn info(&self) -> DeviceInfo {
        self.unit.info().device
    }

    fn submit(&self, vcpu: u32, io: &Io<'_>, tag: Tag) -> Submitted {
        self.unit.submit(&self.bus, vcpu, io, tag)
    }

    fn commit(&self, vcpu: u32) {
        self.unit.commit(&self.bus, vcpu);
    }
}
