//! What is around blkback: a device, and a store.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use pv_frontends::blkback::{BlockDevice, DeviceInfo, Io, Operation, Submitted, Tag};
use pv_frontends::xenbus::{Store as StoreTrait, Stores};
use translate::fake::mfn;
use translate::xenstore::{Config, DomainConfig, Store};

use super::FRONT;

/// 512 bytes of work: to the device or not, its sector, frame and offset; or a discarded sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    Data(bool, u64, u64, u16),
    Discard(u64),
}

/// When a unit was done, and how many of these times were answered for.
#[derive(Default)]
pub(super) struct Done {
    times: Vec<u64>,
    answered: usize,
}

impl Done {
    /// Takes one for a request placed at that time: when that was at the earliest. Requests may
    /// have units in common, and whose was done first is not known.
    pub(super) fn answer(&mut self, placed: u64) -> Option<u64> {
        self.answered += 1;
        let is_done = self.answered <= self.times.len();
        self.times.iter().copied().find(|at| is_done && *at > placed)
    }
}

/// What the device was given, and what it has done; `clock` counts both.
#[derive(Default)]
pub(super) struct Book {
    pub(super) pending: Vec<(Tag, Vec<Unit>, bool, u64)>,
    pub(super) done: BTreeMap<Unit, Done>,
    /// When flushes that succeeded were submitted.
    pub(super) flushes: Vec<u64>,
    pub(super) clock: u64,
    pub(super) has_failed: bool,
    pub(super) is_busy: bool,
}

/// A disk without data, that knows what it may be asked.
pub(super) struct Disk {
    pub(super) info: Mutex<DeviceInfo>,
    pub(super) book: Mutex<Book>,
}

impl Disk {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next completion: its tag, and whether it succeeded.
    pub(super) fn finish(&self, which: usize, well: bool) -> Option<Tag> {
        let mut book = self.book();
        if book.pending.is_empty() {
            return None;
        }
        let which = which % book.pending.len();
        let (tag, units, is_flush, submitted) = book.pending.swap_remove(which);
        book.clock += 1;
        let now = book.clock;
        if well {
            units.into_iter().for_each(|unit| book.done.entry(unit).or_default().times.push(now));
            if is_flush {
                book.flushes.push(submitted);
            }
        }
        book.has_failed |= !well;
        Some(tag)
    }
}

impl BlockDevice for Disk {
    fn info(&self) -> DeviceInfo {
        *self.info.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn submit(&self, _vcpu: u32, io: &Io<'_>, tag: Tag) -> Submitted {
        let info = self.info();
        let mut units = Vec::new();
        let sectors = match io.operation {
            Operation::Discard { sectors, secure } => {
                let discard = info.discard.expect("the device discards");
                assert!(sectors <= discard.max_sectors.max(8) && (discard.secure || !secure));
                units.extend((0..sectors).map(|nr| Unit::Discard(io.sector + nr)));
                sectors
            }
            _ => io.bytes() / 512,
        };
        assert!(io.sector + sectors <= info.sectors);
        let per_block = u64::from(info.logical_bytes / 512);
        assert!((io.sector % per_block, sectors % per_block) == (0, 0));
        assert!(io.segments.len() <= usize::from(info.max_segments));
        assert!(io.segments.len() == 1 || io.bytes() <= u64::from(info.max_transfer_bytes));
        let is_write = io.operation == Operation::Write;
        let changes = is_write || matches!(io.operation, Operation::Discard { .. });
        assert!(!changes || !info.read_only);
        let mut sector = io.sector;
        for (nr, segment) in io.segments.iter().enumerate() {
            assert!(segment.offset + segment.len <= 4096 && segment.len > 0);
            assert!((mfn(0)..mfn(64)).contains(&segment.gpfn));
            let joined = (nr == 0 || segment.offset == 0)
                && (nr + 1 == io.segments.len() || segment.offset + segment.len == 4096);
            assert!(joined || !info.no_gaps);
            for at in (segment.offset..segment.offset + segment.len).step_by(512) {
                units.push(Unit::Data(is_write, sector, segment.gpfn.0, at));
                sector += 1;
            }
        }
        let mut book = self.book();
        if book.is_busy || book.pending.len() >= usize::from(info.depth) {
            return Submitted::Busy;
        }
        book.clock += 1;
        let now = book.clock;
        book.pending.push((tag, units, io.operation == Operation::Flush, now));
        Submitted::Accepted
    }

    fn commit(&self, _vcpu: u32) {}
}

/// The real store.
pub(super) struct Shared(pub(super) Mutex<Store>);

impl Stores for Shared {
    fn with<R>(&self, f: impl FnOnce(&mut dyn StoreTrait) -> R) -> Option<R> {
        Some(f(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        let config = Config { bytes: 256 << 10, ..Config::default() };
        let mut store = Store::new(&config).expect("a store of this size");
        let domain = DomainConfig {
            name: b"fuzz",
            uuid: [7; 16],
            max_kib: 1 << 20,
            target_kib: 1 << 20,
            nr_vcpus: 1,
            console: (1, 1),
            store: (2, 2),
        };
        store.add_domain(&domain).expect("room for a domain");
        Self(Mutex::new(store))
    }

    pub(super) fn set_front(&self, name: &str, value: &str) {
        let path = format!("{FRONT}/{name}");
        self.with(|store| store.write(&path, value)).expect("a store").expect("room");
    }

    pub(super) fn back_state(&self) -> Option<String> {
        let path = "/local/domain/0/backend/vbd/1/51712/state";
        self.with(|store| store.read(path)).flatten().map(|state| state.as_str().to_owned())
    }
}
