//! What blkback asks of the device below it.

use xen_abi::Mfn;
use xen_abi::io::blkif::SECTOR_BYTES;

/// A piece of a guest page: it goes to the device as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The VM's page frame.
    pub gpfn: Mfn,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes; `offset + len` is at most a page.
    pub len: u16,
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the device into the segments.
    Read,
    /// From the segments to the device.
    Write,
    /// Everything completed before is on stable storage once this completes. No segments.
    Flush,
    /// The sectors hold nothing worth keeping. No segments.
    Discard {
        /// Sectors of 512 bytes.
        sectors: u64,
        /// Nothing of their contents may be left.
        secure: bool,
    },
}

/// One request to a device.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// What to do.
    pub operation: Operation,
    /// First sector, in units of 512 bytes, from the device's beginning.
    pub sector: u64,
    /// Where the data is; their lengths are multiples of the logical sector size.
    pub segments: &'a [Segment],
}

impl Io<'_> {
    /// Bytes of data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.len)).sum()
    }
}

/// Names a request until its completion; chosen by the caller, given back as it is. Several
/// requests may have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The medium, the transport, or a request the device does not take.
    Io,
    /// The device has no such operation.
    Unsupported,
    /// There is no space where the data should go.
    NoSpace,
    /// The device is gone.
    Removed,
}

/// A completion's result.
pub type IoResult = Result<(), IoError>;

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It is with the device; its completion follows, on any processor, possibly before this
    /// returns to the caller's next line.
    Accepted,
    /// The device takes nothing now. Nothing happened; submit again after the next completion,
    /// of this or another request, or after the device said it goes on.
    Busy,
    /// It failed at once; no completion follows.
    Failed(IoError),
}

/// Discarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Unit of discarding, in bytes.
    pub granularity: u32,
    /// First such unit's offset from the device's beginning, in bytes.
    pub alignment: u32,
    /// [`Operation::Discard`] may be secure.
    pub secure: bool,
    /// Most sectors of 512 bytes one request may name.
    pub max_sectors: u64,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes: a power of two from 512 to 4096.
    pub logical_bytes: u32,
    /// Physical sector size in bytes: a multiple of the logical one.
    pub physical_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD or DVD drive.
    pub cdrom: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// There is a volatile cache that [`Operation::Flush`] writes back.
    pub flush: bool,
    /// Discarding, if the device does it.
    pub discard: Option<Discard>,
    /// Most bytes of data in one request: at least a page.
    pub max_transfer_bytes: u32,
    /// Most segments in one request: at least one.
    pub max_segments: u16,
    /// The segments of one request must be a run: all but the first begin at their page's first
    /// byte, all but the last end at its last.
    pub no_gaps: bool,
    /// Requests it is worth to have at the device at once.
    pub depth: u16,
}

impl DeviceInfo {
    /// Whether the numbers make sense: what a host reported wrongly is refused, not worked with.
    #[must_use]
    pub const fn is_sane(&self) -> bool {
        let logical = self.logical_bytes;
        logical.is_power_of_two()
            && logical >= SECTOR_BYTES
            && logical <= 4096
            && self.physical_bytes >= logical
            && self.physical_bytes.is_multiple_of(logical)
            && self.sectors.is_multiple_of((logical / SECTOR_BYTES) as u64)
            && self.sectors <= u64::MAX / SECTOR_BYTES as u64
            && self.max_transfer_bytes >= 4096
            && self.max_segments > 0
            && self.depth > 0
    }
}

/// A block device. All methods may be called on several processors at once, with interrupts off;
/// none waits. Completions are delivered to the vbd, never from inside `submit`.
pub trait BlockDevice: Sync {
    /// What it is, as of now.
    fn info(&self) -> DeviceInfo;
    /// Hands a request over, to be started before, after or beside others. `vcpu` is the one that
    /// the frontend has told of completions: one that ends there takes no interrupt more.
    fn submit(&self, vcpu: u32, io: &Io<'_>, tag: Tag) -> Submitted;
    /// The last of a batch for this vCPU has been submitted: tell the host if it has to be told.
    fn commit(&self, vcpu: u32);
}
