//! SCSI commands as they are sent.

use hv_abi::scsi::{
    CDB_BYTES, Cdb10, Cdb16, CdbInquiry, CdbReportLuns, CdbUnmap, ModePage, Opcode,
    SERVICE_ACTION_READ_CAPACITY_16, VpdPage,
};
use hv_abi::storvsc::{Header, Operation, PACKET_BYTES_MAX, ScsiRequest, Version};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::unit::UnitAddress;

/// A command descriptor block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; CDB_BYTES],
    length: u8,
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// There is none.
    None,
    /// From the device.
    In,
    /// To the device.
    Out,
}

impl Cdb {
    fn new<T: IntoBytes + Immutable>(command: &T) -> Self {
        const { assert!(size_of::<T>() <= CDB_BYTES) };
        let mut bytes = [0; CDB_BYTES];
        if let Some(to) = bytes.get_mut(..size_of::<T>()) {
            to.copy_from_slice(command.as_bytes());
        }
        Self { bytes, length: size_of::<T>() as u8 }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    pub(super) const fn opcode(&self) -> Opcode {
        Opcode(self.bytes[0])
    }

    /// READ or WRITE, the shortest that can name the blocks.
    pub(super) fn transfer(is_write: bool, lba: u64, blocks: u32) -> Self {
        let end = lba.saturating_add(u64::from(blocks));
        if let (Ok(lba), Ok(blocks)) = (u32::try_from(lba), u16::try_from(blocks))
            && end <= 1 << 32
        {
            let opcode = if is_write { Opcode::WRITE_10 } else { Opcode::READ_10 };
            return Self::new(&Cdb10 {
                opcode,
                lba: U32::new(lba),
                blocks: U16::new(blocks),
                ..Cdb10::new_zeroed()
            });
        }
        let opcode = if is_write { Opcode::WRITE_16 } else { Opcode::READ_16 };
        Self::new(&Cdb16 {
            opcode,
            lba: U64::new(lba),
            blocks: U32::new(blocks),
            ..Cdb16::new_zeroed()
        })
    }

    /// All of the cache.
    pub(super) fn flush() -> Self {
        Self::new(&Cdb10 { opcode: Opcode::SYNCHRONIZE_CACHE_10, ..Cdb10::new_zeroed() })
    }

    pub(super) fn unmap(bytes: u16) -> Self {
        let length = U16::new(bytes);
        Self::new(&CdbUnmap { opcode: Opcode::UNMAP, length, ..CdbUnmap::new_zeroed() })
    }

    pub(super) fn test_unit_ready() -> Self {
        Self::new(&CdbInquiry { opcode: Opcode::TEST_UNIT_READY, ..CdbInquiry::new_zeroed() })
    }

    pub(super) fn inquiry(page: Option<VpdPage>, room: u16) -> Self {
        Self::new(&CdbInquiry {
            opcode: Opcode::INQUIRY,
            flags: u8::from(page.is_some()),
            page: page.unwrap_or(VpdPage(0)),
            allocation_length: U16::new(room),
            control: 0,
        })
    }

    pub(super) fn report_luns(room: u32) -> Self {
        Self::new(&CdbReportLuns {
            opcode: Opcode::REPORT_LUNS,
            allocation_length: U32::new(room),
            ..CdbReportLuns::new_zeroed()
        })
    }

    pub(super) fn read_capacity_10() -> Self {
        Self::new(&Cdb10 { opcode: Opcode::READ_CAPACITY_10, ..Cdb10::new_zeroed() })
    }

    pub(super) fn read_capacity_16(room: u32) -> Self {
        Self::new(&Cdb16 {
            opcode: Opcode::SERVICE_ACTION_IN_16,
            flags: SERVICE_ACTION_READ_CAPACITY_16,
            blocks: U32::new(room),
            ..Cdb16::new_zeroed()
        })
    }

    pub(super) fn mode_sense(page: ModePage, room: u8) -> Self {
        Self { bytes: [0x1a, 0, page.0, 0, room, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], length: 6 }
    }
}

/// A packet's payload, and how much of it is sent.
pub(super) type Payload = ([u8; PACKET_BYTES_MAX], usize);

/// A packet that carries `body` (or nothing). Its size is that of the largest one until a version
/// is agreed.
pub(super) fn control<T: IntoBytes + Immutable>(operation: Operation, body: &T) -> Payload {
    let mut bytes = [0; PACKET_BYTES_MAX];
    put(&mut bytes, 0, &header(operation));
    put(&mut bytes, size_of::<Header>(), body);
    (bytes, PACKET_BYTES_MAX)
}

/// A SCSI command's packet.
pub(super) fn execute(
    version: Version,
    unit: UnitAddress,
    cdb: &Cdb,
    direction: Direction,
    data_bytes: u32,
) -> Payload {
    /// Any tag; simple queueing (`SP_UNTAGGED`, `SRB_SIMPLE_TAG_REQUEST` of Linux).
    const UNTAGGED: u8 = 0xff;
    const SIMPLE_TAG_REQUEST: u8 = 0x20;
    /// How long the host may try, in seconds.
    const TIMEOUT_S: u32 = 60;
    let body_bytes = version.payload_bytes();
    let mut request = ScsiRequest {
        length: body_bytes as u16,
        path: unit.path,
        target: unit.target,
        lun: unit.lun,
        cdb_length: cdb.length,
        // Below 5.1 the host's room for sense data is two bytes shorter.
        sense_length: if version < Version::V5_1 { 0x12 } else { 0x14 },
        direction: match direction {
            Direction::None => ScsiRequest::DATA_UNKNOWN,
            Direction::In => ScsiRequest::DATA_IN,
            Direction::Out => ScsiRequest::DATA_OUT,
        },
        data_length: data_bytes,
        queue_tag: UNTAGGED,
        queue_action: SIMPLE_TAG_REQUEST,
        srb_flags: ScsiRequest::FLAG_DISABLE_SYNCH_TRANSFER
            | ScsiRequest::FLAG_QUEUE_ACTION_ENABLE
            | ScsiRequest::FLAG_NO_QUEUE_FREEZE
            | match direction {
                Direction::None => 0,
                Direction::In => ScsiRequest::FLAG_DATA_IN,
                Direction::Out => ScsiRequest::FLAG_DATA_OUT,
            },
        timeout_s: TIMEOUT_S,
        ..ScsiRequest::new_zeroed()
    };
    if let Some(to) = request.payload.first_chunk_mut() {
        *to = cdb.bytes;
    }
    let mut bytes = [0; PACKET_BYTES_MAX];
    put(&mut bytes, 0, &header(Operation::EXECUTE_SRB));
    put(&mut bytes, size_of::<Header>(), &request);
    (bytes, size_of::<Header>() + body_bytes)
}

fn header(operation: Operation) -> Header {
    Header { operation, flags: Header::COMPLETION_WANTED, ..Header::new_zeroed() }
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], at: usize, value: &T) {
    if let Some(to) = bytes.get_mut(at..at + size_of::<T>()) {
        to.copy_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_command_that_can_say_it() {
        let bytes = |is_write, lba, blocks| Cdb::transfer(is_write, lba, blocks).bytes().to_vec();
        assert_eq!(bytes(false, 0x1234_5678, 9), [0x28, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 9, 0]);
        assert_eq!(bytes(true, u64::from(u32::MAX), 1)[0], 0x2a);
        assert_eq!(bytes(true, u64::from(u32::MAX), 2)[0], 0x8a);
        assert_eq!(bytes(false, 0, 0x1_0000), [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(bytes(true, 1 << 32, 1)[..10], [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn requests_are_as_long_as_their_version() {
        let unit = UnitAddress { path: 0, target: 0, lun: 3 };
        let cdb = Cdb::transfer(true, 1, 1);
        let (bytes, length) = execute(Version::V6_2, unit, &cdb, Direction::Out, 512);
        assert_eq!((length, bytes[0], bytes[4]), (64, 3, 1));
        // vmscsi_request: length, lun, cdb and sense lengths, direction, data length, command.
        assert_eq!(bytes[12..14], [0x34, 0]);
        assert_eq!(bytes[19..23], [3, 10, 0x14, 0]);
        assert_eq!(bytes[24..30], [0, 2, 0, 0, 0x2a, 0]);
        assert_eq!(bytes[50..56], [0xff, 0x20, 0x8a, 1, 0, 0]);
        let (bytes, length) = execute(Version::V4_2, unit, &cdb, Direction::In, 512);
        assert_eq!((length, bytes[12], bytes[21], bytes[22]), (48, 0x24, 0x12, 1));
    }
}
