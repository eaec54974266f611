//! A unit: what its disk makes of SCSI commands.

use crate::storvsp::buffer::Buffer;
use crate::storvsp::command::{Blocks, Command, decode};
use crate::storvsp::disk::Disk;
use crate::storvsp::inquiry;
use crate::storvsp::io::Transfer;
use hv_abi::scsi::{
    AdditionalSense, CDB_BYTES, SENSE_BYTES, ScsiStatus, Sense, SenseKey, UnmapDescriptor,
    UnmapHeader,
};
use hv_abi::storvsc::SrbStatus;
use zerocopy::{FromBytes, IntoBytes};

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SRB status, without flags.
    pub srb: SrbStatus,
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense.
    pub sense: AdditionalSense,
    /// The sector of a medium error.
    pub lba: Option<u64>,
}

impl Failure {
    /// The command makes no sense.
    #[must_use]
    pub const fn illegal(sense: AdditionalSense) -> Self {
        Self { srb: SrbStatus::ERROR, key: SenseKey::ILLEGAL_REQUEST, sense, lba: None }
    }

    /// The request's buffer and its command do not fit.
    pub const OVERRUN: Self = Self {
        srb: SrbStatus::DATA_OVERRUN,
        ..Self::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)
    };

    fn medium(kind: Transfer, lba: u64) -> Self {
        let sense = match kind {
            Transfer::Read => AdditionalSense::UNRECOVERED_READ_ERROR,
            Transfer::Write => AdditionalSense::WRITE_ERROR,
        };
        Self { srb: SrbStatus::ERROR, key: SenseKey::MEDIUM_ERROR, sense, lba: Some(lba) }
    }

    /// Sense data.
    #[must_use]
    pub fn sense(&self) -> Sense {
        let mut sense = Sense::new(self.key, self.sense);
        // A sector beyond 32 bits does not fit, and is left out.
        if let Some(Ok(lba)) = self.lba.map(u32::try_from) {
            sense.response_code |= Sense::VALID;
            sense.information = lba.into();
        }
        sense
    }
}

/// Result of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// SRB status, with its flags.
    pub srb: SrbStatus,
    /// SCSI status.
    pub scsi: ScsiStatus,
    /// Sense data.
    pub sense: Option<Sense>,
    /// Bytes transferred.
    pub transferred: u32,
}

impl From<Result<u32, Failure>> for Done {
    fn from(result: Result<u32, Failure>) -> Self {
        match result {
            Ok(transferred) => {
                Self { srb: SrbStatus::SUCCESS, scsi: ScsiStatus::GOOD, sense: None, transferred }
            }
            Err(failure) => Self {
                srb: failure.srb.with_sense(),
                scsi: ScsiStatus::CHECK_CONDITION,
                sense: Some(failure.sense()),
                transferred: 0,
            },
        }
    }
}

/// A unit, as a command sees it.
#[derive(Clone, Copy)]
pub struct Unit<'a> {
    /// Disk.
    pub disk: &'a Disk,
}

impl Unit<'_> {
    /// Does a command. REPORT LUNS is the controller's and fails here.
    ///
    /// # Errors
    /// Why it is not done.
    pub fn execute(&self, cdb: &[u8; CDB_BYTES], buffer: &Buffer<'_>) -> Result<u32, Failure> {
        let disk = self.disk;
        // An answer is cut to the room the command names, then to the buffer.
        let put = |data: &[u8], room: u64| {
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            buffer.put(data.get(..room).unwrap_or_default())
        };
        Ok(match decode(cdb, disk.is_dvd())? {
            Command::Nothing => 0,
            // Sense data always comes with the command it is about.
            Command::RequestSense(room) => {
                put(Sense::new(SenseKey::NO_SENSE, AdditionalSense::NONE).as_bytes(), room)
            }
            Command::Inquiry(room) => put(inquiry::standard(disk).as_bytes(), room),
            Command::Vpd(page, room) => put(&inquiry::vpd(disk, page)?, room),
            Command::ModeSense { page, control, ten, room } => {
                put(&inquiry::mode(disk, page, control, ten)?, room)
            }
            Command::Capacity10 => put(inquiry::capacity10(disk).as_bytes(), u64::MAX),
            Command::Capacity16(room) => put(inquiry::capacity16(disk).as_bytes(), room),
            Command::Read(blocks) => self.transfer(Transfer::Read, blocks, buffer)?,
            Command::Write(blocks, through) => {
                let done = self.transfer(Transfer::Write, blocks, buffer)?;
                if through {
                    self.flush()?;
                }
                done
            }
            Command::Verify(blocks) => {
                self.check(blocks)?;
                0
            }
            Command::Flush(blocks) => {
                self.check(blocks)?;
                self.flush()?;
                0
            }
            Command::WriteSame { blocks, unmap, zeros } => {
                self.write_same(blocks, unmap, zeros, buffer)?
            }
            Command::Unmap(length) => self.unmap(length, buffer)?,
            Command::ReportOpcodes { options, opcode, action, room } => {
                put(&inquiry::opcodes(disk, options, opcode, action)?, room)
            }
            Command::ReadToc { format, msf, track, room } => {
                put(&inquiry::toc(disk, format, msf, track)?, room)
            }
            Command::DiscInformation(room) => put(&inquiry::disc_information(), room),
            Command::TrackInformation(room) => put(&inquiry::track_information(disk), room),
            Command::GetConfiguration(room) => put(&inquiry::configuration(), room),
            Command::GetEvent(true, classes, room) => put(&inquiry::event(classes), room),
            // Nobody is told of events later.
            Command::GetEvent(false, ..) => {
                return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
            }
            Command::ReportLuns(_) => {
                return Err(Failure::illegal(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
            }
        })
    }

    /// The blocks are on the disk.
    fn check(&self, blocks: Blocks) -> Result<(), Failure> {
        match blocks.lba.checked_add(blocks.count) {
            Some(end) if end <= self.disk.sectors() => Ok(()),
            _ => Err(Failure::illegal(AdditionalSense::LBA_OUT_OF_RANGE)),
        }
    }

    fn writable(&self) -> Result<(), Failure> {
        if !self.disk.is_read_only() {
            return Ok(());
        }
        let sense = AdditionalSense::WRITE_PROTECTED;
        Err(Failure { srb: SrbStatus::ERROR, key: SenseKey::DATA_PROTECT, sense, lba: None })
    }

    fn bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.disk.sector_bytes().into())
    }

    fn transfer(
        &self,
        kind: Transfer,
        blocks: Blocks,
        buffer: &Buffer<'_>,
    ) -> Result<u32, Failure> {
        self.check(blocks)?;
        if kind == Transfer::Write {
            self.writable()?;
        }
        if self.bytes(blocks.count) > buffer.len() {
            return Err(Failure::OVERRUN);
        }
        if blocks.count == 0 {
            return Ok(0);
        }
        let done = self
            .disk
            .transfer(kind, blocks.lba, blocks.count, |bytes| buffer.slices(bytes))
            .map_err(|_: std::io::Error| Failure::medium(kind, blocks.lba))?;
        // At most the buffer, whose length is 32 bits.
        Ok(self.bytes(done) as u32)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.disk.flush().map_err(|_| Failure { lba: None, ..Failure::medium(Transfer::Write, 0) })
    }

    fn write_same(
        &self,
        blocks: Blocks,
        unmap: bool,
        zeros: bool,
        buffer: &Buffer<'_>,
    ) -> Result<u32, Failure> {
        // No number means: to the end.
        let rest = self.disk.sectors().saturating_sub(blocks.lba);
        let count = if blocks.count == 0 { rest } else { blocks.count };
        let blocks = Blocks { count, ..blocks };
        self.check(blocks)?;
        self.writable()?;
        if count > inquiry::write_same_max(self.disk) {
            return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
        }
        let size = self.disk.sector_bytes() as usize;
        let block = match zeros {
            true => vec![0; size],
            false => buffer.get(size).ok_or(Failure::OVERRUN)?,
        };
        let blank = block.iter().all(|b| *b == 0);
        let failed = |_: std::io::Error| Failure::medium(Transfer::Write, blocks.lba);
        if unmap && blank && self.disk.can_unmap() {
            // Where nothing could be given back, old data would still be there.
            self.disk.write_same(blocks.lba, count, &block).map_err(failed)?;
            self.disk.unmap(blocks.lba, count).map_err(failed)?;
        } else {
            self.disk.write_same(blocks.lba, count, &block).map_err(failed)?;
        }
        Ok(if zeros { 0 } else { self.disk.sector_bytes() })
    }

    fn unmap(&self, length: u64, buffer: &Buffer<'_>) -> Result<u32, Failure> {
        self.writable()?;
        let list = |sense| Failure::illegal(sense);
        if length == 0 {
            return Ok(0);
        }
        let length = usize::try_from(length).map_err(|_| Failure::OVERRUN)?;
        let bytes = buffer.get(length).ok_or(Failure::OVERRUN)?;
        let (header, rest) = UnmapHeader::read_from_prefix(bytes.as_slice())
            .map_err(|_| list(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR))?;
        let rest = rest
            .get(..usize::from(header.descriptor_length.get()))
            .ok_or(list(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR))?;
        let (descriptors, odd) = rest.as_chunks::<{ size_of::<UnmapDescriptor>() }>();
        if !odd.is_empty() || descriptors.len() > inquiry::UNMAP_DESCRIPTORS_MAX as usize {
            return Err(list(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST));
        }
        let ranges: Vec<Blocks> = descriptors
            .iter()
            .map(|bytes| {
                let descriptor: UnmapDescriptor = zerocopy::transmute!(*bytes);
                Blocks { lba: descriptor.lba.get(), count: descriptor.blocks.get().into() }
            })
            .collect();
        // All or nothing.
        for range in &ranges {
            self.check(*range)?;
        }
        for range in ranges {
            self.disk
                .unmap(range.lba, range.count)
                .map_err(|_| Failure::medium(Transfer::Write, range.lba))?;
        }
        Ok(length as u32)
    }
}

const _: () = assert!(SENSE_BYTES == 18);

#[cfg(test)]
#[path = "unit_tests.rs"]
mod tests;
