//! The part of a device that a vbd is: all of it, or one partition.

mod partition;
#[cfg(test)]
mod tests;

pub use partition::{Extent, Finder, NoPartition, READ_BYTES, Step};

use xen_abi::io::blkif::SECTOR_BYTES;

use crate::blkback::{BlockDevice, DeviceInfo, Io, IoError, Operation, Submitted, Tag};

/// A device, or a part of one.
#[derive(Debug)]
pub struct Part<D> {
    device: D,
    extent: Option<Extent>,
}

impl<D> Part<D> {
    /// All of a device, also when it grows.
    #[must_use]
    pub const fn whole(device: D) -> Self {
        Self { device, extent: None }
    }

    /// The sectors of a partition.
    #[must_use]
    pub const fn of(device: D, extent: Extent) -> Self {
        Self { device, extent: Some(extent) }
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }
}

impl<D: BlockDevice> BlockDevice for Part<D> {
    fn info(&self) -> DeviceInfo {
        let info = self.device.info();
        let Some(extent) = self.extent else { return info };
        // A device that shrank has less of the partition, or nothing.
        let sectors = info.sectors.saturating_sub(extent.start).min(extent.sectors);
        let discard = info.discard.map(|discard| {
            let granularity = u64::from(discard.granularity.max(1));
            let start = extent.start.wrapping_mul(SECTOR_BYTES.into()) % granularity;
            let alignment = (u64::from(discard.alignment) + granularity - start) % granularity;
            crate::blkback::Discard { alignment: alignment as u32, ..discard }
        });
        DeviceInfo { sectors, discard, ..info }
    }

    fn submit(&self, vcpu: u32, io: &Io<'_>, tag: Tag) -> Submitted {
        let Some(extent) = self.extent else { return self.device.submit(vcpu, io, tag) };
        let sectors = match io.operation {
            Operation::Flush => 0,
            Operation::Discard { sectors, .. } => sectors,
            Operation::Read | Operation::Write => io.bytes() / u64::from(SECTOR_BYTES),
        };
        // Whatever was asked of this part, nothing beside it is touched.
        let inside = io.sector.checked_add(sectors).is_some_and(|end| end <= extent.sectors);
        match io.sector.checked_add(extent.start).filter(|_| inside) {
            Some(sector) => self.device.submit(vcpu, &Io { sector, ..*io }, tag),
            None => Submitted::Failed(IoError::Io),
        }
    }

    fn commit(&self, vcpu: u32) {
        self.device.commit(vcpu);
    }
}
