//! SCSI commands, decoded. Pure: bytes in, a command or sense codes out.

use crate::storvsp::unit::Failure;
use hv_abi::scsi::{
    AdditionalSense, BlockFlags, CDB_BYTES, Cdb10, Cdb12, Cdb16, CdbInquiry, CdbReportLuns,
    CdbUnmap, ModePage, Opcode, SERVICE_ACTION_READ_CAPACITY_16,
    SERVICE_ACTION_REPORT_SUPPORTED_OPCODES, VpdPage,
};
use zerocopy::FromBytes;

/// Blocks a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First.
    pub lba: u64,
    /// How many.
    pub count: u64,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY, and what else needs nothing done.
    Nothing,
    /// REQUEST SENSE with this much room.
    RequestSense(u64),
    /// Standard INQUIRY with this much room.
    Inquiry(u64),
    /// A vital product data page.
    Vpd(VpdPage, u64),
    /// MODE SENSE.
    ModeSense {
        /// Page.
        page: ModePage,
        /// 0 current, 1 changeable, 2 default, 3 saved.
        control: u8,
        /// The longer header.
        ten: bool,
        /// Room.
        room: u64,
    },
    /// READ CAPACITY(10).
    Capacity10,
    /// READ CAPACITY(16) with this much room.
    Capacity16(u64),
    /// Read.
    Read(Blocks),
    /// Write; `true`: to the medium.
    Write(Blocks, bool),
    /// VERIFY of blocks without comparing.
    Verify(Blocks),
    /// SYNCHRONIZE CACHE.
    Flush(Blocks),
    /// WRITE SAME.
    WriteSame {
        /// Where.
        blocks: Blocks,
        /// Deallocate where that leaves zeros.
        unmap: bool,
        /// No data: zeros.
        zeros: bool,
    },
    /// UNMAP with this much parameter data.
    Unmap(u64),
    /// REPORT LUNS with this much room.
    ReportLuns(u64),
    /// REPORT SUPPORTED OPERATION CODES.
    ReportOpcodes {
        /// 0: all; 1 to 3: one.
        options: u8,
        /// That one.
        opcode: Opcode,
        /// And its service action.
        action: u16,
        /// Room.
        room: u64,
    },
    /// READ TOC.
    ReadToc {
        /// Format.
        format: u8,
        /// Minutes, seconds, frames in place of blocks.
        msf: bool,
        /// First track.
        track: u8,
        /// Room.
        room: u64,
    },
    /// GET CONFIGURATION with this much room.
    GetConfiguration(u64),
    /// READ DISC INFORMATION with this much room.
    DiscInformation(u64),
    /// READ TRACK INFORMATION with this much room.
    TrackInformation(u64),
    /// GET EVENT STATUS NOTIFICATION: polled, classes, room.
    GetEvent(bool, u8, u64),
}

/// A command of the table: code, length, service action.
type Known = (Opcode, u8, Option<u8>);

/// Commands of every device.
const COMMON: [Known; 13] = [
    (Opcode::TEST_UNIT_READY, 6, None),
    (Opcode::REQUEST_SENSE, 6, None),
    (Opcode::INQUIRY, 6, None),
    (Opcode::MODE_SENSE_6, 6, None),
    (Opcode::START_STOP_UNIT, 6, None),
    (Opcode::PREVENT_ALLOW_MEDIUM_REMOVAL, 6, None),
    (Opcode::READ_CAPACITY_10, 10, None),
    (Opcode::READ_10, 10, None),
    (Opcode::MODE_SENSE_10, 10, None),
    (Opcode::SYNCHRONIZE_CACHE_10, 10, None),
    (Opcode::REPORT_LUNS, 12, None),
    (Opcode::MAINTENANCE_IN, 12, Some(SERVICE_ACTION_REPORT_SUPPORTED_OPCODES)),
    (Opcode::READ_12, 12, None),
];

/// Commands of disks only.
const DISK: [Known; 13] = [
    (Opcode::READ_6, 6, None),
    (Opcode::WRITE_6, 6, None),
    (Opcode::WRITE_10, 10, None),
    (Opcode::VERIFY_10, 10, None),
    (Opcode::WRITE_SAME_10, 10, None),
    (Opcode::UNMAP, 10, None),
    (Opcode::WRITE_12, 12, None),
    (Opcode::READ_16, 16, None),
    (Opcode::WRITE_16, 16, None),
    (Opcode::VERIFY_16, 16, None),
    (Opcode::SYNCHRONIZE_CACHE_16, 16, None),
    (Opcode::WRITE_SAME_16, 16, None),
    (Opcode::SERVICE_ACTION_IN_16, 16, Some(SERVICE_ACTION_READ_CAPACITY_16)),
];

/// Commands of DVDs only.
const DVD: [Known; 5] = [
    (Opcode::READ_TOC, 10, None),
    (Opcode::GET_CONFIGURATION, 10, None),
    (Opcode::GET_EVENT_STATUS_NOTIFICATION, 10, None),
    (Opcode::READ_DISC_INFORMATION, 10, None),
    (Opcode::READ_TRACK_INFORMATION, 10, None),
];

/// Commands a device knows.
pub fn known(dvd: bool) -> impl Iterator<Item = &'static Known> {
    let own: &[Known] = if dvd { &DVD } else { &DISK };
    COMMON.iter().chain(own)
}

const FIELD: Failure = Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);

fn prefix<T: FromBytes>(cdb: &[u8; CDB_BYTES]) -> Result<T, Failure> {
    T::read_from_prefix(cdb).map(|(value, _)| value).map_err(|_| FIELD)
}

/// Number of blocks of the shortest READ and WRITE, where 0 stands for 256.
fn six(cdb: &[u8; CDB_BYTES]) -> Blocks {
    let [_, high, middle, low, count, ..] = *cdb;
    let lba = u32::from_be_bytes([0, high & 0x1f, middle, low]);
    let count = if count == 0 { 256 } else { u64::from(count) };
    Blocks { lba: lba.into(), count }
}

fn ten(cdb: &[u8; CDB_BYTES]) -> Result<(Blocks, BlockFlags), Failure> {
    let c: Cdb10 = prefix(cdb)?;
    let blocks = Blocks { lba: c.lba.get().into(), count: c.blocks.get().into() };
    Ok((blocks, BlockFlags::from_bits_retain(c.flags)))
}

fn twelve(cdb: &[u8; CDB_BYTES]) -> Result<(Blocks, BlockFlags), Failure> {
    let c: Cdb12 = prefix(cdb)?;
    let blocks = Blocks { lba: c.lba.get().into(), count: c.blocks.get().into() };
    Ok((blocks, BlockFlags::from_bits_retain(c.flags)))
}

fn sixteen(cdb: &[u8; CDB_BYTES]) -> Result<(Blocks, BlockFlags), Failure> {
    let c: Cdb16 = prefix(cdb)?;
    let blocks = Blocks { lba: c.lba.get(), count: c.blocks.get().into() };
    Ok((blocks, BlockFlags::from_bits_retain(c.flags)))
}

fn write((blocks, flags): (Blocks, BlockFlags)) -> Command {
    Command::Write(blocks, flags.contains(BlockFlags::FUA))
}

/// VERIFY that compares with data is not known.
fn verify((blocks, flags): (Blocks, BlockFlags)) -> Result<Command, Failure> {
    const COMPARE: u8 = 0x06;
    if flags.bits() & COMPARE != 0 { Err(FIELD) } else { Ok(Command::Verify(blocks)) }
}

fn write_same((blocks, flags): (Blocks, BlockFlags), long: bool) -> Result<Command, Failure> {
    // Anchors, and the relative addresses of old, do not exist.
    let known = BlockFlags::UNMAP | BlockFlags::NO_DATA_OUT;
    let zeros = flags.contains(BlockFlags::NO_DATA_OUT);
    if !known.contains(flags) || zeros && !long {
        return Err(FIELD);
    }
    Ok(Command::WriteSame { blocks, unmap: flags.contains(BlockFlags::UNMAP), zeros })
}

/// Decodes a command for a disk or a DVD.
///
/// # Errors
/// The sense data to answer with.
pub fn decode(cdb: &[u8; CDB_BYTES], dvd: bool) -> Result<Command, Failure> {
    let [code, one, two, three, four, _, six_, seven, eight, ..] = *cdb;
    let opcode = Opcode(code);
    if !known(dvd).any(|(known, ..)| *known == opcode) {
        return Err(Failure::illegal(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
    }
    let room10 = u64::from(u16::from_be_bytes([seven, eight]));
    Ok(match opcode {
        // There is nothing to start, stop or lock.
        Opcode::TEST_UNIT_READY
        | Opcode::START_STOP_UNIT
        | Opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => Command::Nothing,
        // Descriptor format is not known.
        Opcode::REQUEST_SENSE if one & 1 != 0 => return Err(FIELD),
        Opcode::REQUEST_SENSE => Command::RequestSense(four.into()),
        Opcode::INQUIRY => {
            let c: CdbInquiry = prefix(cdb)?;
            let room = u64::from(c.allocation_length.get());
            match (c.flags, c.page) {
                (0, VpdPage(0)) => Command::Inquiry(room),
                (1, page) => Command::Vpd(page, room),
                _ => return Err(FIELD),
            }
        }
        Opcode::MODE_SENSE_6 | Opcode::MODE_SENSE_10 => {
            let long = opcode == Opcode::MODE_SENSE_10;
            let room = if long { room10 } else { u64::from(four) };
            // Subpages: none, or all there are.
            if three != 0 && three != 0xff {
                return Err(FIELD);
            }
            Command::ModeSense { page: ModePage(two & 0x3f), control: two >> 6, ten: long, room }
        }
        Opcode::READ_CAPACITY_10 => Command::Capacity10,
        Opcode::SERVICE_ACTION_IN_16 if one & 0x1f == SERVICE_ACTION_READ_CAPACITY_16 => {
            Command::Capacity16(sixteen(cdb)?.0.count)
        }
        Opcode::READ_6 => Command::Read(six(cdb)),
        Opcode::WRITE_6 => Command::Write(six(cdb), false),
        Opcode::READ_10 => Command::Read(ten(cdb)?.0),
        Opcode::READ_12 => Command::Read(twelve(cdb)?.0),
        Opcode::READ_16 => Command::Read(sixteen(cdb)?.0),
        Opcode::WRITE_10 => write(ten(cdb)?),
        Opcode::WRITE_12 => write(twelve(cdb)?),
        Opcode::WRITE_16 => write(sixteen(cdb)?),
        Opcode::VERIFY_10 => verify(ten(cdb)?)?,
        Opcode::VERIFY_16 => verify(sixteen(cdb)?)?,
        Opcode::SYNCHRONIZE_CACHE_10 => Command::Flush(ten(cdb)?.0),
        Opcode::SYNCHRONIZE_CACHE_16 => Command::Flush(sixteen(cdb)?.0),
        Opcode::WRITE_SAME_10 => write_same(ten(cdb)?, false)?,
        Opcode::WRITE_SAME_16 => write_same(sixteen(cdb)?, true)?,
        Opcode::UNMAP if one & 1 == 0 => {
            Command::Unmap(prefix::<CdbUnmap>(cdb)?.length.get().into())
        }
        Opcode::REPORT_LUNS => {
            let c: CdbReportLuns = prefix(cdb)?;
            if c.select > 2 {
                return Err(FIELD);
            }
            Command::ReportLuns(c.allocation_length.get().into())
        }
        Opcode::MAINTENANCE_IN if one & 0x1f == SERVICE_ACTION_REPORT_SUPPORTED_OPCODES => {
            let c: CdbReportLuns = prefix(cdb)?;
            Command::ReportOpcodes {
                options: two & 7,
                opcode: Opcode(three),
                action: u16::from_be_bytes([four, cdb.get(5).copied().unwrap_or(0)]),
                room: c.allocation_length.get().into(),
            }
        }
        Opcode::READ_TOC => {
            Command::ReadToc { format: two & 0xf, msf: one & 2 != 0, track: six_, room: room10 }
        }
        Opcode::GET_CONFIGURATION => Command::GetConfiguration(room10),
        // Other kinds of information are of discs that can be written.
        Opcode::READ_DISC_INFORMATION if one & 7 == 0 => Command::DiscInformation(room10),
        // Every block is of the one track, however it is asked for.
        Opcode::READ_TRACK_INFORMATION => Command::TrackInformation(room10),
        Opcode::GET_EVENT_STATUS_NOTIFICATION => Command::GetEvent(one & 1 != 0, four, room10),
        _ => return Err(FIELD),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cdb(bytes: &[u8]) -> [u8; CDB_BYTES] {
        let mut cdb = [0; CDB_BYTES];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    fn disk(bytes: &[u8]) -> Result<Command, Failure> {
        decode(&cdb(bytes), false)
    }

    #[test]
    fn blocks_of_all_lengths() {
        let blocks = |lba, count| Blocks { lba, count };
        assert_eq!(disk(&[0x08, 0xff, 1, 2, 0]), Ok(Command::Read(blocks(0x1f_0102, 256))));
        assert_eq!(disk(&[0x0a, 0, 0, 9, 3]), Ok(Command::Write(blocks(9, 3), false)));
        let bytes = [0x2a, 8, 0, 1, 0, 0, 0, 0x12, 0x34, 0];
        assert_eq!(disk(&bytes), Ok(Command::Write(blocks(0x1_0000, 0x1234), true)));
        let bytes = [0x88, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0];
        assert_eq!(disk(&bytes), Ok(Command::Read(blocks(1 << 56 | 2, 0x1_0000))));
        let bytes = [0xa8, 0, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0];
        assert_eq!(disk(&bytes), Ok(Command::Read(blocks(5, 256))));
        assert_eq!(decode(&cdb(&bytes), true), Ok(Command::Read(blocks(5, 256))));
    }

    #[test]
    fn what_is_not_known() {
        let opcode = Failure::illegal(AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
        assert_eq!(disk(&[0x85]), Err(opcode));
        assert_eq!(disk(&[0x43]), Err(opcode), "of DVDs");
        assert_eq!(decode(&cdb(&[0x2a]), true), Err(opcode), "of disks");
        for bytes in [
            &[0x12, 0, 0x80][..],
            &[0x12, 2],
            &[0x2f, 2],
            &[0x41, 1],
            &[0x93, 0x10],
            &[0x42, 1],
            &[0x9e, 0x12],
            &[0xa3, 0x0d],
            &[0xa0, 0, 3],
            &[0x1a, 0, 8, 1],
            &[0x03, 1],
        ] {
            assert_eq!(disk(bytes), Err(FIELD), "{bytes:x?}");
        }
    }

    #[test]
    fn others() {
        assert_eq!(disk(&[0x12, 1, 0x83, 1, 0]), Ok(Command::Vpd(VpdPage(0x83), 256)));
        let same = disk(&[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8]);
        let blocks = Blocks { lba: 1, count: 8 };
        assert_eq!(same, Ok(Command::WriteSame { blocks, unmap: true, zeros: true }));
        let sense = disk(&[0x5a, 0, 0x7f, 0, 0, 0, 0, 1, 2]);
        let page = ModePage::ALL;
        assert_eq!(sense, Ok(Command::ModeSense { page, control: 1, ten: true, room: 0x102 }));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in any::<[u8; 16]>(), dvd in any::<bool>()) {
            let listed = known(dvd).any(|(code, ..)| code.0 == bytes[0]);
            match decode(&bytes, dvd) {
                Ok(_) => prop_assert!(listed),
                Err(failure) => prop_assert!(listed == (failure == FIELD)),
            }
        }
    }
}
