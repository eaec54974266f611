//! SCSI as Hyper-V's synthetic disks speak it: commands, statuses, sense data
//! and the parameter data both sides read and write (SPC-4, SBC-3, MMC-6; the
//! Microsoft pages as Hyper-V gives them). Numbers in SCSI are big-endian.

pub mod command;
pub mod inquiry;
pub mod parameter;
pub mod sense;

pub use command::{
    BlockFlags, CDB_BYTES, Cdb10, Cdb12, Cdb16, CdbInquiry, CdbReportLuns, CdbUnmap, Opcode,
    SERVICE_ACTION_READ_CAPACITY_16, SERVICE_ACTION_REPORT_SUPPORTED_OPCODES,
};
pub use inquiry::{
    BlockDeviceCharacteristics, BlockLimits, BlockProvisioning, Designator, DeviceType,
    InquiryData, VpdHeader, VpdPage,
};
pub use parameter::{
    CachingPage, Capacity10, Capacity16, LunListHeader, MODE_FUA, MODE_WRITE_PROTECTED,
    ModeHeader6, ModeHeader10, ModePage, UnmapDescriptor, UnmapHeader,
};
pub use sense::{AdditionalSense, SENSE_BYTES, ScsiStatus, Sense, SenseKey};
