//! Ring entries: what a request says, in either layout.

use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::{
    BlkifOp, BlkifRequest, BlkifRequest32, BlkifRequestDiscard, BlkifRequestDiscard32,
    BlkifRequestIndirect, BlkifRequestIndirect32, BlkifResponse, BlkifResponse32, BlkifSegment,
    BlkifStatus, DISCARD_SECURE, MAX_INDIRECT_PAGES, MAX_SEGMENTS_PER_REQUEST, PROTOCOL_X86_32,
    PROTOCOL_X86_64, SECTOR_BYTES, SEGMENTS_PER_INDIRECT_PAGE,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::DeviceInfo;

/// How the frontend lays its ring out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `x86_64-abi`.
    X86_64,
    /// `x86_32-abi`.
    X86_32,
}

/// 32-bit words of the larger entry.
pub const ENTRY_WORDS: usize = size_of::<BlkifRequest>() / 4;

/// An entry as it was copied out of the ring.
pub type Entry = [u32; ENTRY_WORDS];

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data, in segments that are in the entry.
    Direct {
        /// `nr_segments`, as the frontend said.
        nr_segments: u8,
        /// The segments there is room for.
        segments: [BlkifSegment; MAX_SEGMENTS_PER_REQUEST],
    },
    /// Data, in segments that lie in granted pages.
    Indirect {
        /// `nr_segments`, as the frontend said.
        nr_segments: u16,
        /// The pages.
        pages: [GrantRef; MAX_INDIRECT_PAGES],
    },
    /// Discards.
    Discard {
        /// Sectors of 512 bytes.
        sectors: u64,
        /// So that nothing of them is left.
        secure: bool,
    },
    /// What this backend does not know.
    Unknown,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the response repeats.
    pub id: u64,
    /// As above; also what to do. For an indirect request that is the operation inside: Linux
    /// answers so, and its frontend insists on it.
    pub operation: BlkifOp,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// The rest.
    pub kind: Kind,
}

const fn wide(halves: [u32; 2]) -> u64 {
    halves[0] as u64 | (halves[1] as u64) << 32
}

/// Reads the head of an entry as a wire structure.
fn view<T: FromBytes + Immutable>(entry: &Entry) -> Option<T> {
    T::read_from_prefix(entry.as_bytes()).ok().map(|(value, _)| value)
}

impl Layout {
    /// The layout of a frontend's `protocol` node; a frontend without one means its own.
    #[must_use]
    pub fn of_protocol(protocol: Option<&str>) -> Option<Self> {
        match protocol {
            None | Some(PROTOCOL_X86_64) => Some(Self::X86_64),
            Some(PROTOCOL_X86_32) => Some(Self::X86_32),
            Some(_) => None,
        }
    }

    /// Bytes of a ring entry.
    #[must_use]
    pub const fn entry_bytes(self) -> usize {
        match self {
            Self::X86_64 => size_of::<BlkifRequest>(),
            Self::X86_32 => size_of::<BlkifRequest32>(),
        }
    }

    /// What an entry says. Any words have a meaning; whether it is allowed is decided later.
    #[must_use]
    pub fn parse(self, entry: &Entry) -> Request {
        let unknown = || Request {
            id: 0,
            operation: BlkifOp(entry[0] as u8),
            sector: 0,
            kind: Kind::Unknown,
        };
        let parsed = match self {
            Self::X86_64 => parse::<BlkifRequest, BlkifRequestIndirect, BlkifRequestDiscard>(entry),
            Self::X86_32 => {
                parse::<BlkifRequest32, BlkifRequestIndirect32, BlkifRequestDiscard32>(entry)
            }
        };
        parsed.unwrap_or_else(unknown)
    }

    /// A response's words, and how many there are.
    #[must_use]
    pub fn response(self, request: (u64, BlkifOp), status: BlkifStatus) -> ([u32; 4], usize) {
        let (id, operation) = request;
        let mut words = [0; 4];
        match self {
            Self::X86_64 => {
                let response = BlkifResponse { id, operation, pad: 0, status, pad2: 0 };
                words.as_mut_bytes().copy_from_slice(response.as_bytes());
                (words, 4)
            }
            Self::X86_32 => {
                let id = [id as u32, (id >> 32) as u32];
                let response = BlkifResponse32 { id, operation, pad: 0, status };
                let bytes = size_of::<BlkifResponse32>();
                if let Some(to) = words.as_mut_bytes().get_mut(..bytes) {
                    to.copy_from_slice(response.as_bytes());
                }
                (words, bytes / 4)
            }
        }
    }
}

/// The fields of an entry, in either layout.
trait Rw: FromBytes + Immutable {
    /// Id, operation, sector.
    fn head(&self) -> (u64, BlkifOp, u64);
    fn segments(&self) -> (u8, [BlkifSegment; MAX_SEGMENTS_PER_REQUEST]);
}

trait Indirect: FromBytes + Immutable {
    fn inner(&self) -> BlkifOp;
    fn segments(&self) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]);
}

trait Discards: FromBytes + Immutable {
    fn flag(&self) -> u8;
    fn sectors(&self) -> u64;
}

macro_rules! layout {
    ($rw:ty, $indirect:ty, $discard:ty, $wide:expr) => {
        impl Rw for $rw {
            fn head(&self) -> (u64, BlkifOp, u64) {
                ($wide(self.id), self.operation, $wide(self.sector_number))
            }
            fn segments(&self) -> (u8, [BlkifSegment; MAX_SEGMENTS_PER_REQUEST]) {
                (self.nr_segments, self.seg)
            }
        }
        impl Indirect for $indirect {
            fn inner(&self) -> BlkifOp {
                self.indirect_op
            }
            fn segments(&self) -> (u16, [GrantRef; MAX_INDIRECT_PAGES]) {
                (self.nr_segments, self.indirect_grefs)
            }
        }
        impl Discards for $discard {
            fn flag(&self) -> u8 {
                self.flag
            }
            fn sectors(&self) -> u64 {
                $wide(self.nr_sectors)
            }
        }
    };
}
layout!(BlkifRequest, BlkifRequestIndirect, BlkifRequestDiscard, core::convert::identity::<u64>);
layout!(BlkifRequest32, BlkifRequestIndirect32, BlkifRequestDiscard32, wide);

fn parse<R: Rw, I: Indirect, D: Discards>(entry: &Entry) -> Option<Request> {
    let rw: R = view(entry)?;
    let (id, mut operation, sector) = rw.head();
    let kind = match operation {
        BlkifOp::INDIRECT => {
            let indirect: I = view(entry)?;
            operation = indirect.inner();
            let (nr_segments, pages) = indirect.segments();
            Kind::Indirect { nr_segments, pages }
        }
        BlkifOp::DISCARD => {
            let discard: D = view(entry)?;
            let secure = discard.flag() & DISCARD_SECURE != 0;
            Kind::Discard { sectors: discard.sectors(), secure }
        }
        _ if is_data(operation) => {
            let (nr_segments, segments) = rw.segments();
            Kind::Direct { nr_segments, segments }
        }
        _ => Kind::Unknown,
    };
    Some(Request { id, operation, sector, kind })
}

/// Operations whose entries hold segments.
const fn is_data(operation: BlkifOp) -> bool {
    matches!(
        operation,
        BlkifOp::READ | BlkifOp::WRITE | BlkifOp::WRITE_BARRIER | BlkifOp::FLUSH_DISKCACHE
    )
}

/// A request that was checked: what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Read or write.
    Transfer(Transfer),
    /// Discard.
    Discard {
        /// Sectors.
        sectors: u64,
        /// Securely.
        secure: bool,
    },
    /// Answer with this at once.
    Answer(BlkifStatus),
}

/// A transfer, perhaps of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// To the device.
    pub write: bool,
    /// After everything before, and before everything after.
    pub barrier: bool,
    /// With what is in the device's cache before, and this too.
    pub flush: bool,
    /// Segments; the frontend's claim, within bounds.
    pub nr_segments: u16,
}

/// What a request asks for, as far as its entry shows; segments are checked one by one as they
/// are read ([`check_segment`]), the range once their sum is known ([`check_range`]). As Linux's
/// blkback decides it.
#[must_use]
pub fn plan(request: &Request, info: &DeviceInfo, max_segments: u16) -> Plan {
    let error = Plan::Answer(BlkifStatus::ERROR);
    let (nr_segments, most) = match request.kind {
        Kind::Unknown => return Plan::Answer(BlkifStatus::EOPNOTSUPP),
        Kind::Discard { sectors, secure } => return plan_discard(request, info, sectors, secure),
        Kind::Direct { nr_segments, .. } => (nr_segments.into(), MAX_SEGMENTS_PER_REQUEST as u16),
        Kind::Indirect { nr_segments, .. } => {
            let room = MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE;
            (nr_segments, max_segments.min(room as u16))
        }
    };
    let indirect = matches!(request.kind, Kind::Indirect { .. });
    let (write, barrier, flush) = match request.operation {
        BlkifOp::READ => (false, false, false),
        BlkifOp::WRITE => (true, false, false),
        BlkifOp::WRITE_BARRIER if !indirect => (true, true, true),
        BlkifOp::FLUSH_DISKCACHE if !indirect => (true, false, true),
        _ => return error,
    };
    if nr_segments > most || nr_segments == 0 && !flush {
        return error;
    }
    if write && nr_segments > 0 && info.read_only {
        return error;
    }
    Plan::Transfer(Transfer { write, barrier, flush, nr_segments })
}

fn plan_discard(request: &Request, info: &DeviceInfo, sectors: u64, secure: bool) -> Plan {
    let Some(discard) = info.discard else {
        return Plan::Answer(BlkifStatus::EOPNOTSUPP);
    };
    if info.read_only || !check_range(info, request.sector, sectors) {
        return Plan::Answer(BlkifStatus::ERROR);
    }
    if sectors == 0 {
        return Plan::Answer(BlkifStatus::OKAY);
    }
    Plan::Discard { sectors, secure: secure && discard.secure }
}

/// A segment's first byte in its page and its bytes; `None` where it is empty, leaves the page or
/// is no multiple of the device's sectors.
#[must_use]
pub const fn check_segment(info: &DeviceInfo, segment: &BlkifSegment) -> Option<(u16, u16)> {
    let (first, last) = (segment.first_sect as u32, segment.last_sect as u32);
    if last < first || last >= 4096 / SECTOR_BYTES {
        return None;
    }
    let bytes = (last - first + 1) * SECTOR_BYTES;
    // A power of two: see `DeviceInfo::is_sane`.
    if bytes & info.logical_bytes.wrapping_sub(1) != 0 {
        return None;
    }
    Some(((first * SECTOR_BYTES) as u16, bytes as u16))
}

/// Whether the device has these sectors and they are whole ones of its.
#[must_use]
pub const fn check_range(info: &DeviceInfo, sector: u64, sectors: u64) -> bool {
    let unit = (info.logical_bytes / SECTOR_BYTES) as u64;
    match sector.checked_add(sectors) {
        Some(end) => end <= info.sectors && sector.is_multiple_of(unit) && end.is_multiple_of(unit),
        None => false,
    }
}
