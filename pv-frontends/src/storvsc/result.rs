//! What an answer means.

use hv_abi::scsi::{AdditionalSense, Opcode, ScsiStatus, Sense, SenseKey};
use hv_abi::storvsc::{Header, NtStatus, Operation, PACKET_BYTES_MAX, ScsiRequest, SrbStatus};
use zerocopy::FromBytes;

use crate::blkback::IoError;
use crate::vmbus::Packet;
use crate::vmbus::ring::RingMemory;

/// An answer, copied out of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub header: Header,
    pub body: [u8; size_of::<ScsiRequest>()],
}

impl Answer {
    /// `None` where the packet is too short to be one.
    pub(super) fn of<M: RingMemory>(packet: &Packet<'_, M>) -> Option<Self> {
        let mut bytes = [0; PACKET_BYTES_MAX];
        let there = packet.copy_payload(0, &mut bytes);
        if there < size_of::<Header>() {
            return None;
        }
        let (header, rest) = Header::read_from_prefix(&bytes).ok()?;
        Some(Self { header, body: *rest.first_chunk()? })
    }

    /// The body as a structure it begins with.
    pub(super) fn body<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.body).ok().map(|(value, _)| value)
    }

    /// What became of a command that was to move `wanted` bytes.
    pub(super) fn outcome(&self, wanted: u32) -> Outcome {
        if self.header.operation != Operation::COMPLETE_IO {
            return Outcome::Failed(IoError::Io);
        }
        let Some(request) = self.body::<ScsiRequest>() else {
            return Outcome::Failed(IoError::Io);
        };
        outcome(self.header.status, &request, wanted)
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done, with this many bytes.
    Done(u32),
    /// Again at once: the device only had news.
    News(AdditionalSense),
    /// Again, a little later.
    Busy,
    /// The host gave up on it, and may not the next time.
    Aborted,
    /// It failed.
    Failed(IoError),
}

/// The bus was reset while the device had it (`SRB_STATUS_BUS_RESET` of Windows' `srb.h`).
const BUS_RESET: SrbStatus = SrbStatus(0x0e);

fn outcome(status: NtStatus, request: &ScsiRequest, wanted: u32) -> Outcome {
    let moved = request.data_length.min(wanted);
    let srb = request.srb_status;
    let has_sense = srb.has_sense() || request.scsi_status == ScsiStatus::CHECK_CONDITION;
    match (srb.code(), request.scsi_status) {
        (SrbStatus::SUCCESS, ScsiStatus::GOOD) if status == NtStatus::SUCCESS => {
            return Outcome::Done(moved);
        }
        (SrbStatus::INVALID_LUN | SrbStatus::NO_DEVICE | SrbStatus::INVALID_PATH_ID, _) => {
            return Outcome::Failed(IoError::Removed);
        }
        (_, ScsiStatus::BUSY | ScsiStatus::TASK_SET_FULL) => return Outcome::Busy,
        (SrbStatus::BUSY, _) => return Outcome::Busy,
        // Less data than there was room for: INQUIRY and the like.
        (SrbStatus::DATA_OVERRUN, ScsiStatus::GOOD) => return Outcome::Done(moved),
        _ => {}
    }
    if let Ok((sense, _)) = Sense::read_from_prefix(&request.payload)
        && has_sense
        && sense.response_code & 0x7e == Sense::CURRENT
    {
        return by_sense(&sense, moved);
    }
    match srb.code() {
        // For reasons of its own, or for a RESET_BUS.
        SrbStatus::ABORTED | SrbStatus::TIMEOUT | BUS_RESET => Outcome::Aborted,
        SrbStatus::INVALID_REQUEST => Outcome::Failed(IoError::Unsupported),
        _ => Outcome::Failed(IoError::Io),
    }
}

fn by_sense(sense: &Sense, moved: u32) -> Outcome {
    /// Space allocation failed, write protect (SPC-4 annex D).
    const NO_SPACE: AdditionalSense = AdditionalSense(0x2707);
    /// Logical unit is in process of becoming ready.
    const BECOMING_READY: AdditionalSense = AdditionalSense(0x0401);
    match (sense.sense_key(), sense.additional()) {
        (SenseKey::NO_SENSE | SenseKey::RECOVERED_ERROR, _) => Outcome::Done(moved),
        (SenseKey::UNIT_ATTENTION, news) => Outcome::News(news),
        (SenseKey::ABORTED_COMMAND, _) => Outcome::Aborted,
        (SenseKey::NOT_READY, BECOMING_READY) => Outcome::Busy,
        (SenseKey::DATA_PROTECT, NO_SPACE) => Outcome::Failed(IoError::NoSpace),
        (SenseKey::ILLEGAL_REQUEST, AdditionalSense::INVALID_COMMAND_OPERATION_CODE) => {
            Outcome::Failed(IoError::Unsupported)
        }
        (SenseKey::ILLEGAL_REQUEST, AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED) => {
            Outcome::Failed(IoError::Removed)
        }
        _ => Outcome::Failed(IoError::Io),
    }
}

/// Whether the device tells of itself, not of one command: it is looked at again.
pub(super) const fn asks_for_scan(news: AdditionalSense) -> bool {
    matches!(
        news,
        AdditionalSense::CAPACITY_DATA_CHANGED | AdditionalSense::REPORTED_LUNS_DATA_CHANGED
    )
}

/// Whether a command is one that moves blocks, all of them or none.
pub(super) const fn moves_blocks(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::READ_10 | Opcode::READ_16 | Opcode::WRITE_10 | Opcode::WRITE_16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    fn judge(srb: u8, scsi: ScsiStatus, sense: Option<(SenseKey, u16)>) -> Outcome {
        let mut request = ScsiRequest {
            srb_status: SrbStatus(srb),
            scsi_status: scsi,
            data_length: 100,
            ..ScsiRequest::new_zeroed()
        };
        if let Some((key, additional)) = sense {
            let sense = Sense::new(key, AdditionalSense(additional));
            request.payload[..18].copy_from_slice(sense.as_bytes());
        }
        outcome(NtStatus::SUCCESS, &request, 64)
    }

    #[test]
    fn results() {
        let (good, check) = (ScsiStatus::GOOD, ScsiStatus::CHECK_CONDITION);
        let failed = Outcome::Failed;
        assert_eq!(judge(0x01, good, None), Outcome::Done(64), "never more than wanted");
        assert_eq!(judge(0x12, good, None), Outcome::Done(64));
        assert_eq!(judge(0x20, good, None), failed(IoError::Removed));
        assert_eq!(judge(0x08, good, None), failed(IoError::Removed));
        assert_eq!(judge(0x05, good, None), Outcome::Busy);
        assert_eq!(judge(0x04, ScsiStatus::TASK_SET_FULL, None), Outcome::Busy);
        assert_eq!(judge(0x04, good, None), failed(IoError::Io));
        for aborted in [0x02, 0x09, 0x0e] {
            assert_eq!(judge(aborted, good, None), Outcome::Aborted);
        }
        assert_eq!(judge(0x00, good, None), failed(IoError::Io), "not answered at all");
        assert_eq!(judge(0x06, good, None), failed(IoError::Unsupported));
        let sense = |key, code| judge(0x84, check, Some((key, code)));
        assert_eq!(sense(SenseKey::RECOVERED_ERROR, 0), Outcome::Done(64));
        assert_eq!(
            sense(SenseKey::UNIT_ATTENTION, 0x2a09),
            Outcome::News(AdditionalSense::CAPACITY_DATA_CHANGED)
        );
        assert_eq!(sense(SenseKey::MEDIUM_ERROR, 0x1100), failed(IoError::Io));
        assert_eq!(sense(SenseKey::DATA_PROTECT, 0x2707), failed(IoError::NoSpace));
        assert_eq!(sense(SenseKey::DATA_PROTECT, 0x2700), failed(IoError::Io));
        assert_eq!(sense(SenseKey::ILLEGAL_REQUEST, 0x2000), failed(IoError::Unsupported));
        assert_eq!(sense(SenseKey::ILLEGAL_REQUEST, 0x2500), failed(IoError::Removed));
        assert_eq!(sense(SenseKey::ABORTED_COMMAND, 0), Outcome::Aborted);
        assert_eq!(sense(SenseKey::NOT_READY, 0x0401), Outcome::Busy);
        assert_eq!(sense(SenseKey::NOT_READY, 0x3a00), failed(IoError::Io));
        // The host as a whole failed it.
        let request = ScsiRequest { srb_status: SrbStatus::SUCCESS, ..ScsiRequest::new_zeroed() };
        let answer = outcome(NtStatus::INVALID_PARAMETER, &request, 0);
        assert_eq!(answer, failed(IoError::Io));
    }
}
