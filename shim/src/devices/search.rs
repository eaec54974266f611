//! Looking for a partition: the reads that [`Finder`] asks for, one at a time.

use alloc::sync::Arc;

use pv_frontends::blkback::{BlockDevice, Io, Operation, Segment, Submitted, Tag, port_of, tag_of};
use pv_frontends::disk::{Extent, Finder, NoPartition, READ_BYTES, Step};
use pv_frontends::storvsc::Unit;
use pv_frontends::vbd::Entry;
use xen_abi::Mfn;

use super::block::{Device, SEARCH};
use crate::mm::{phys_to_virt, pool};

/// Where the read is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Not with the host.
    Due,
    /// With the host.
    Out,
    /// It has ended, well or not.
    Back(bool),
}

/// A search.
pub(super) struct Search {
    unit: Arc<Unit>,
    entry: Entry,
    finder: Finder,
    /// Frame that is read into.
    page: u64,
    read: Read,
}

/// Told apart from everything else by its vbd, from other searches by its page.
fn tag(page: u64) -> Tag {
    tag_of(port_of(SEARCH, 0), page as u32, 0)
}

impl Search {
    /// A search on a unit for a partition, from 1. `None` where there is no memory for it.
    pub(super) fn new(unit: &Arc<Unit>, entry: Entry, number: u16) -> Option<Self> {
        let page = pool::alloc()?;
        let finder = Finder::new(&unit.info().device, number);
        Some(Self { unit: Arc::clone(unit), entry, finder, page, read: Read::Due })
    }

    /// Whether it looks at this unit.
    pub(super) fn is_of(&self, unit: &Arc<Unit>) -> bool {
        Arc::ptr_eq(&self.unit, unit)
    }

    /// A read of this unit ended.
    pub(super) fn completed(&mut self, of: Tag, good: bool) {
        if of == tag(self.page) && self.read == Read::Out {
            self.read = Read::Back(good);
        }
    }

    /// Does what can be done now; whether that is the end.
    pub(super) fn advance(&mut self) -> bool {
        loop {
            if let Read::Back(good) = self.read {
                self.feed(good);
            }
            let Step::Read { sector, bytes } = self.finder.step() else { return true };
            if self.read == Read::Out {
                return false;
            }
            let segment =
                Segment { gpfn: Mfn(self.page), offset: 0, len: bytes.min(READ_BYTES) as u16 };
            let io = Io { operation: Operation::Read, sector, segments: &[segment] };
            let device = Device::new(super::bus(), Arc::clone(&self.unit));
            match device.submit(0, &io, tag(self.page)) {
                Submitted::Accepted => {
                    device.commit(0);
                    self.read = Read::Out;
                    return false;
                }
                Submitted::Busy => return false,
                Submitted::Failed(_) => self.finder.feed(None),
            }
        }
    }

    /// Gives the finder what was read. The copy is not to be on the stack while anything else goes on.
    #[inline(never)]
    fn feed(&mut self, good: bool) {
        let mut bytes = [0; READ_BYTES];
        // SAFETY: the page is the search's own, and the host is done with it.
        unsafe { bytes.as_mut_ptr().copy_from(phys_to_virt(self.page << 12), READ_BYTES) };
        self.finder.feed(good.then_some(&bytes));
        self.read = Read::Due;
    }

    /// What was found.
    pub(super) fn into_parts(self) -> (Arc<Unit>, Entry, Result<Extent, NoPartition>) {
        let result = match self.finder.step() {
            Step::Done(result) => result,
            Step::Read { .. } => Err(NoPartition::NoTable),
        };
        (Arc::clone(&self.unit), self.entry, result)
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        // A host that still has the page writes into nobody's: see `pool`.
        if self.read != Read::Out {
            pool::free(self.page);
        }
    }
}
