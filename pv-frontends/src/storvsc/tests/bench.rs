//! A controller beside its host, and what it tells.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use hv_abi::storvsc::Version;
use hv_abi::vmbus::offer::interface;
use spin::Mutex;
use translate::platform::PageWords;
use xen_abi::Mfn;

use super::super::*;
use super::host::{Host, Medium};
use crate::blkback::{BlockDevice, Io, IoResult, Operation as Op, Segment, Submitted, Tag};
use crate::vmbus::fake::Fake;
use crate::vmbus::{Driver, Hypervisor, VmBus};

/// Writes down what it is told.
#[derive(Debug, Default)]
pub struct Notes {
    pub units: Mutex<BTreeMap<u8, Arc<Unit>>>,
    pub changed: Mutex<Vec<u8>>,
    pub removed: Mutex<Vec<u8>>,
    pub completed: Mutex<Vec<(u64, IoResult)>>,
    pub settled: Mutex<usize>,
    /// Completions since something settled last.
    open: Mutex<usize>,
}

impl Sink for Notes {
    fn added(&self, unit: &Arc<Unit>) {
        assert!(self.units.lock().insert(unit.address().lun, Arc::clone(unit)).is_none());
    }
    fn changed(&self, unit: &Arc<Unit>) {
        self.changed.lock().push(unit.address().lun);
    }
    fn removed(&self, unit: &Arc<Unit>) {
        assert!(self.units.lock().remove(&unit.address().lun).is_some());
        self.removed.lock().push(unit.address().lun);
        *self.open.lock() = 0;
    }
    fn completed(&self, unit: &Arc<Unit>, tag: Tag, result: IoResult) {
        // Another processor settles just before: that is not about this completion.
        if unit.take_unsettled() {
            self.settled(unit);
        }
        self.completed.lock().push((tag.0, result));
        *self.open.lock() += 1;
    }
    fn settled(&self, _: &Arc<Unit>) {
        *self.settled.lock() += 1;
        *self.open.lock() = 0;
    }
}

pub struct Bench {
    pub host: Host,
    pub fake: Fake,
    pub notes: Arc<Notes>,
    pub driver: Arc<StorVsc<Arc<Notes>>>,
    pub bus: Arc<VmBus<Fake>>,
}

pub const PRIMARY: u32 = 5;

impl Bench {
    pub fn new(config: Config, version: Version, media: Vec<(u8, Medium)>) -> Self {
        let fake = Fake::default();
        let notes = Arc::new(Notes::default());
        let driver = Arc::new(StorVsc::new(Arc::clone(&notes), config));
        let drivers: Box<[Arc<dyn Driver<Fake>>]> = Box::new([Arc::clone(&driver) as _]);
        let bus = Arc::new(VmBus::new(fake.clone(), drivers));
        let mut host = Host::new(fake.clone(), version);
        host.media.extend(media);
        host.server.offer(PRIMARY, interface::SCSI, 1, 0);
        bus.connect();
        Self { host, fake, notes, driver, bus }
    }

    /// Initialized and scanned, with one disk at 0.
    pub fn ready() -> Self {
        let mut bench = Self::new(Config::default(), Version::V6_2, vec![(0, Medium::disk(4096))]);
        bench.run();
        assert!(bench.driver.is_settled());
        bench
    }

    pub fn run(&mut self) {
        self.host.run(&self.bus);
        assert_eq!(*self.notes.open.lock(), 0, "completions that nobody settles");
    }

    pub fn disk(&self, lun: u8) -> Disk<Arc<VmBus<Fake>>> {
        let unit = Arc::clone(self.notes.units.lock().get(&lun).expect("the unit was added"));
        Disk::new(Arc::clone(&self.bus), unit)
    }

    /// A guest's page.
    pub fn page(&self) -> (u64, &'static PageWords) {
        let page = self.fake.allocate::<PageWords>().expect("there is memory");
        (page.gpfn, page.view)
    }

    pub fn completed(&self) -> Vec<(u64, IoResult)> {
        core::mem::take(&mut *self.notes.completed.lock())
    }

    /// Submits, lets the host work, and gives the result.
    pub fn io(&mut self, operation: Op, sector: u64, segments: &[Segment]) -> IoResult {
        let disk = self.disk(0);
        let io = Io { operation, sector, segments };
        match disk.submit(0, &io, Tag(77)) {
            Submitted::Accepted => {}
            Submitted::Failed(error) => return Err(error),
            Submitted::Busy => panic!("busy"),
        }
        disk.commit(0);
        self.run();
        let completed = self.completed();
        assert_eq!(completed.len(), 1, "{completed:?}");
        assert_eq!(completed[0].0, 77);
        completed[0].1
    }

    pub fn pass(&mut self, ns: u64) {
        self.fake.advance(ns);
        self.run();
    }
}

pub const fn segment(gpfn: u64, offset: u16, len: u16) -> Segment {
    Segment { gpfn: Mfn(gpfn), offset, len }
}
