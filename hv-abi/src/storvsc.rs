//! Hyper-V's SCSI controller on VMBus: `vstor_packet` and what it carries
//! (`drivers/scsi/storvsc_drv.c`; openvmm `storvsp_protocol`).
//!
//! ```text
//! in-band or GPA-direct packet: Header | payload padded to the version's size
//! answer: completion packet of the same size, operation COMPLETE_IO
//! ```
//! Order: BEGIN_INITIALIZATION, QUERY_PROTOCOL_VERSION (until one is accepted),
//! QUERY_PROPERTIES, optionally CREATE_SUB_CHANNELS, END_INITIALIZATION; then
//! EXECUTE_SRB, with its data in one range of a GPA-direct packet.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::guid::Guid;
use crate::scsi::{CDB_BYTES, SENSE_BYTES, ScsiStatus};
use crate::vmbus::UserDefined;
use crate::vmbus::offer::interface;

pub use crate::NtStatus;

/// Class of SCSI controllers.
pub const SCSI_CLASS: Guid = interface::SCSI;
/// Class of the devices of IDE controllers, which have a channel each: Generation 1 machines' disks.
pub const IDE_CLASS: Guid = interface::IDE;

/// Which device of which IDE controller a channel is for (`storvsc_get_ide_info` of Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdePort {
    /// Controller: 0 or 1.
    pub controller: u32,
    /// Device on it: 0 or 1. The target of its requests.
    pub device: u16,
}

impl IdePort {
    /// Behind both numbers in an instance.
    const REST: [u8; 10] = [0x99, 0x88, 0, 0, 0, 0, 0, 0, 0, 0];

    /// The instance of its offer: `<controller>-<device>-8899-0000-000000000000`.
    #[must_use]
    pub const fn instance(self) -> Guid {
        let ([a, b, c, d], [e, f]) = (self.controller.to_le_bytes(), self.device.to_le_bytes());
        let [g, h, i, j, k, l, m, n, o, p] = Self::REST;
        Guid([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }

    /// Of an instance; what is behind the numbers is the host's business.
    #[must_use]
    pub const fn of_instance(instance: Guid) -> Self {
        let Guid([a, b, c, d, e, f, ..]) = instance;
        Self { controller: u32::from_le_bytes([a, b, c, d]), device: u16::from_le_bytes([e, f]) }
    }
}

/// User-defined bytes of an IDE device's offer (openvmm `storvsp_protocol`). Linux does not look at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdeProperties {
    /// Zero.
    pub reserved: u16,
    /// Controller.
    pub path: u8,
    /// Device.
    pub target: u8,
    /// Zero.
    pub reserved2: u32,
    /// [`IdeProperties::IDE_DEVICE`].
    pub flags: u32,
    /// Zero.
    pub reserved3: [u32; 3],
}
const_assert_eq!(size_of::<IdeProperties>(), 24);
const_assert_eq!(offset_of!(IdeProperties, flags), 8);

impl IdeProperties {
    /// It is an IDE device.
    pub const IDE_DEVICE: u32 = 2;

    /// Of a device.
    #[must_use]
    pub const fn new(path: u8, target: u8) -> Self {
        Self { reserved: 0, path, target, reserved2: 0, flags: Self::IDE_DEVICE, reserved3: [0; 3] }
    }
}

impl From<IdeProperties> for UserDefined {
    fn from(properties: IdeProperties) -> Self {
        let mut bytes = Self::ZERO;
        for (to, from) in bytes.0.iter_mut().zip(properties.as_bytes()) {
            *to = *from;
        }
        bytes
    }
}

/// Operation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Operation(pub u32);

impl Operation {
    /// Answer to any other.
    pub const COMPLETE_IO: Self = Self(1);
    /// From the host: look for a device that is gone.
    pub const REMOVE_DEVICE: Self = Self(2);
    /// A SCSI command: [`ScsiRequest`].
    pub const EXECUTE_SRB: Self = Self(3);
    /// Reset a unit.
    pub const RESET_LUN: Self = Self(4);
    /// Reset the controller.
    pub const RESET_ADAPTER: Self = Self(5);
    /// Reset the bus.
    pub const RESET_BUS: Self = Self(6);
    /// First packet.
    pub const BEGIN_INITIALIZATION: Self = Self(7);
    /// Last packet of the initialization.
    pub const END_INITIALIZATION: Self = Self(8);
    /// Proposes a [`ProtocolVersion`].
    pub const QUERY_PROTOCOL_VERSION: Self = Self(9);
    /// Answered by [`ChannelProperties`].
    pub const QUERY_PROPERTIES: Self = Self(10);
    /// From the host: scan for units that came or went.
    pub const ENUMERATE_BUS: Self = Self(11);
    /// Fibre Channel data.
    pub const FC_HBA_DATA: Self = Self(12);
    /// Asks for sub-channels: a `u16` count.
    pub const CREATE_SUB_CHANNELS: Self = Self(13);
}

/// Start of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Operation.
    pub operation: Operation,
    /// [`Header::COMPLETION_WANTED`].
    pub flags: u32,
    /// Of an answer.
    pub status: NtStatus,
}
const_assert_eq!(size_of::<Header>(), 12);

impl Header {
    /// `flags`: an answer is wanted.
    pub const COMPLETION_WANTED: u32 = 1;
}

/// Protocol version: major in the high byte, minor in the low.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Version(pub u16);

impl Version {
    /// Windows 7.
    pub const V4_2: Self = Self(0x0402);
    /// Windows 8: larger requests, sub-channels.
    pub const V5_1: Self = Self(0x0501);
    /// Windows 8.1.
    pub const V6_0: Self = Self(0x0600);
    /// Windows 10.
    pub const V6_2: Self = Self(0x0602);
    /// All that guests still ask for, newest first.
    pub const ALL: [Self; 4] = [Self::V6_2, Self::V6_0, Self::V5_1, Self::V4_2];

    /// Bytes of [`ScsiRequest`] that travel in this version, and to which every
    /// payload is filled up.
    #[must_use]
    pub const fn payload_bytes(self) -> usize {
        if self.0 < Self::V5_1.0 { ScsiRequest::SHORT_BYTES } else { size_of::<ScsiRequest>() }
    }

    /// Whether there are sub-channels.
    #[must_use]
    pub const fn has_sub_channels(self) -> bool {
        self.0 >= Self::V5_1.0
    }
}

/// Payload of [`Operation::QUERY_PROTOCOL_VERSION`], both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProtocolVersion {
    /// Version.
    pub version: Version,
    /// Reserved.
    pub revision: u16,
}
const_assert_eq!(size_of::<ProtocolVersion>(), 4);

/// Answer to [`Operation::QUERY_PROPERTIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelProperties {
    /// Reserved.
    pub reserved: u32,
    /// Sub-channels that can be asked for.
    pub max_sub_channels: u16,
    /// Reserved.
    pub reserved2: u16,
    /// [`ChannelProperties::MULTI_CHANNEL`].
    pub flags: u32,
    /// Most bytes of one command.
    pub max_transfer_bytes: u32,
    /// Reserved.
    pub reserved3: [u32; 2],
}
const_assert_eq!(size_of::<ChannelProperties>(), 24);
const_assert_eq!(offset_of!(ChannelProperties, max_transfer_bytes), 12);

impl ChannelProperties {
    /// `flags`: sub-channels are possible.
    pub const MULTI_CHANNEL: u32 = 1;
}

/// SRB status: low six bits; [`SrbStatus::AUTOSENSE_VALID`], [`SrbStatus::QUEUE_FROZEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SrbStatus(pub u8);

impl SrbStatus {
    /// Done.
    pub const SUCCESS: Self = Self(0x01);
    /// Aborted.
    pub const ABORTED: Self = Self(0x02);
    /// Failed; sense data may say why.
    pub const ERROR: Self = Self(0x04);
    /// Busy.
    pub const BUSY: Self = Self(0x05);
    /// The request makes no sense.
    pub const INVALID_REQUEST: Self = Self(0x06);
    /// No such path.
    pub const INVALID_PATH_ID: Self = Self(0x07);
    /// No device.
    pub const NO_DEVICE: Self = Self(0x08);
    /// Timed out.
    pub const TIMEOUT: Self = Self(0x09);
    /// The buffer is too small.
    pub const DATA_OVERRUN: Self = Self(0x12);
    /// No such unit.
    pub const INVALID_LUN: Self = Self(0x20);
    /// Flag: the host's queue is frozen.
    pub const QUEUE_FROZEN: u8 = 0x40;
    /// Flag: sense data is in the packet.
    pub const AUTOSENSE_VALID: u8 = 0x80;

    /// Without its flags.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & 0x3f)
    }

    /// With the mark that sense data is in the packet.
    #[must_use]
    pub const fn with_sense(self) -> Self {
        Self(self.0 | Self::AUTOSENSE_VALID)
    }

    /// Whether sense data is in the packet.
    #[must_use]
    pub const fn has_sense(self) -> bool {
        self.0 & Self::AUTOSENSE_VALID != 0
    }
}

/// Room for a command or for sense data.
pub const PAYLOAD_BYTES: usize = 20;
const_assert_eq!(PAYLOAD_BYTES > CDB_BYTES && PAYLOAD_BYTES > SENSE_BYTES, true);

/// A SCSI command and its result (`struct vmscsi_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScsiRequest {
    /// Bytes of this structure.
    pub length: u16,
    /// Result.
    pub srb_status: SrbStatus,
    /// Result.
    pub scsi_status: ScsiStatus,
    /// Controller, as the guest numbers it.
    pub port: u8,
    /// Bus.
    pub path: u8,
    /// Target.
    pub target: u8,
    /// Unit.
    pub lun: u8,
    /// Bytes of the command.
    pub cdb_length: u8,
    /// Room for, or bytes of, sense data.
    pub sense_length: u8,
    /// [`ScsiRequest::DATA_IN`] or [`ScsiRequest::DATA_OUT`].
    pub direction: u8,
    /// Reserved.
    pub reserved: u8,
    /// Bytes to transfer; in an answer, bytes transferred.
    pub data_length: u32,
    /// Command; in an answer, sense data.
    pub payload: [u8; PAYLOAD_BYTES],
    /// Reserved. From here on: version 5.1 and later.
    pub reserved2: u16,
    /// Queue tag.
    pub queue_tag: u8,
    /// Queue action.
    pub queue_action: u8,
    /// [`ScsiRequest::FLAG_DATA_IN`] and others.
    pub srb_flags: u32,
    /// Seconds.
    pub timeout_s: u32,
    /// Queue sort key.
    pub queue_sort_key: u32,
}
const_assert_eq!(size_of::<ScsiRequest>(), 0x34);
const_assert_eq!(offset_of!(ScsiRequest, payload), 16);
const_assert_eq!(offset_of!(ScsiRequest, reserved2), ScsiRequest::SHORT_BYTES);

impl ScsiRequest {
    /// Bytes before version 5.1.
    pub const SHORT_BYTES: usize = 0x24;
    /// `direction`: to the device, or no data.
    pub const DATA_OUT: u8 = 0;
    /// `direction`: from the device.
    pub const DATA_IN: u8 = 1;
    /// `direction`: none known.
    pub const DATA_UNKNOWN: u8 = 2;
    /// `srb_flags`: commands are queued by tag.
    pub const FLAG_QUEUE_ACTION_ENABLE: u32 = 0x2;
    /// `srb_flags`: do not negotiate synchronous transfers.
    pub const FLAG_DISABLE_SYNCH_TRANSFER: u32 = 0x8;
    /// `srb_flags`: from the device.
    pub const FLAG_DATA_IN: u32 = 0x40;
    /// `srb_flags`: to the device.
    pub const FLAG_DATA_OUT: u32 = 0x80;
    /// `srb_flags`: do not freeze the queue on errors.
    pub const FLAG_NO_QUEUE_FREEZE: u32 = 0x100;
}

/// Largest packet.
pub const PACKET_BYTES_MAX: usize = size_of::<Header>() + size_of::<ScsiRequest>();
const_assert_eq!(PACKET_BYTES_MAX, 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_grew_with_5_1() {
        assert_eq!(Version::V4_2.payload_bytes(), 36);
        assert!(!Version::V4_2.has_sub_channels());
        for version in [Version::V5_1, Version::V6_0, Version::V6_2] {
            assert_eq!(version.payload_bytes(), 52);
            assert!(version.has_sub_channels());
        }
    }

    #[test]
    fn ide_ports_are_in_instances() {
        let port = IdePort { controller: 1, device: 0 };
        assert_eq!(Some(port.instance()), Guid::parse("00000001-0000-8899-0000-000000000000"));
        for (controller, device) in [(0, 1), (1, 1), (0x0102_0304, 0x0506)] {
            let port = IdePort { controller, device };
            assert_eq!(IdePort::of_instance(port.instance()), port);
        }
        let bytes = UserDefined::from(IdeProperties::new(1, 0));
        assert_eq!(bytes.0[..9], [0, 0, 1, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn srb_status_and_its_flags() {
        let status = SrbStatus::ERROR.with_sense();
        assert_eq!((status.0, status.code(), status.has_sense()), (0x84, SrbStatus::ERROR, true));
        assert!(!SrbStatus::SUCCESS.has_sense());
    }
}
