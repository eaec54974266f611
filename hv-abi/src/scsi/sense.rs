//! Statuses and sense data.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SCSI status (SAM-5 5.3.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct ScsiStatus(pub u8);

impl ScsiStatus {
    /// Done.
    pub const GOOD: Self = Self(0x00);
    /// Sense data tells why it was not done.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// Try again.
    pub const BUSY: Self = Self(0x08);
    /// Reserved by another initiator.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// No room for another command.
    pub const TASK_SET_FULL: Self = Self(0x28);
}

/// Sense key (SPC-4 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct SenseKey(pub u8);

#[allow(missing_docs, reason = "names are the specification's own")]
impl SenseKey {
    pub const NO_SENSE: Self = Self(0x0);
    pub const RECOVERED_ERROR: Self = Self(0x1);
    pub const NOT_READY: Self = Self(0x2);
    pub const MEDIUM_ERROR: Self = Self(0x3);
    pub const HARDWARE_ERROR: Self = Self(0x4);
    pub const ILLEGAL_REQUEST: Self = Self(0x5);
    pub const UNIT_ATTENTION: Self = Self(0x6);
    pub const DATA_PROTECT: Self = Self(0x7);
    pub const ABORTED_COMMAND: Self = Self(0xb);
}

/// Additional sense code (high byte) and qualifier (low byte), SPC-4 annex D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct AdditionalSense(pub u16);

#[allow(missing_docs, reason = "names are the specification's own")]
impl AdditionalSense {
    pub const NONE: Self = Self(0x0000);
    pub const WRITE_ERROR: Self = Self(0x0c00);
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x1100);
    pub const PARAMETER_LIST_LENGTH_ERROR: Self = Self(0x1a00);
    pub const INVALID_COMMAND_OPERATION_CODE: Self = Self(0x2000);
    pub const LBA_OUT_OF_RANGE: Self = Self(0x2100);
    pub const INVALID_FIELD_IN_CDB: Self = Self(0x2400);
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self(0x2500);
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self(0x2600);
    pub const WRITE_PROTECTED: Self = Self(0x2700);
    pub const CAPACITY_DATA_CHANGED: Self = Self(0x2a09);
    pub const INCOMPATIBLE_MEDIUM: Self = Self(0x3000);
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self = Self(0x3900);
    pub const MEDIUM_NOT_PRESENT: Self = Self(0x3a00);
    pub const REPORTED_LUNS_DATA_CHANGED: Self = Self(0x3f0e);
    pub const INTERNAL_TARGET_FAILURE: Self = Self(0x4400);
}

/// Bytes of [`Sense`].
pub const SENSE_BYTES: usize = size_of::<Sense>();

/// Sense data, fixed format (SPC-4 4.5.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Sense {
    /// [`Sense::CURRENT`]; bit 7: `information` is valid.
    pub response_code: u8,
    /// Obsolete.
    pub segment: u8,
    /// [`SenseKey`] in the low half.
    pub key: u8,
    /// Depends on the command; the block of a medium error.
    pub information: U32,
    /// Bytes that follow this one.
    pub additional_length: u8,
    /// Depends on the command.
    pub command_specific: U32,
    /// [`AdditionalSense`].
    pub additional_sense: U16,
    /// Field replaceable unit.
    pub unit: u8,
    /// Depends on the key.
    pub key_specific: [u8; 3],
}
const_assert_eq!(size_of::<Sense>(), 18);
const_assert_eq!(offset_of!(Sense, additional_sense), 12);

impl Sense {
    /// Response code: current error, fixed format.
    pub const CURRENT: u8 = 0x70;
    /// `response_code` bit: `information` is valid.
    pub const VALID: u8 = 0x80;

    /// Sense data with these codes.
    #[must_use]
    pub const fn new(key: SenseKey, additional: AdditionalSense) -> Self {
        Self {
            response_code: Self::CURRENT,
            segment: 0,
            key: key.0,
            information: U32::ZERO,
            additional_length: 10,
            command_specific: U32::ZERO,
            additional_sense: U16::new(additional.0),
            unit: 0,
            key_specific: [0; 3],
        }
    }

    /// Key.
    #[must_use]
    pub const fn sense_key(&self) -> SenseKey {
        SenseKey(self.key & 0xf)
    }

    /// Additional code and qualifier.
    #[must_use]
    pub fn additional(&self) -> AdditionalSense {
        AdditionalSense(self.additional_sense.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_codes_come_back() {
        let sense = Sense::new(SenseKey::ILLEGAL_REQUEST, AdditionalSense::LBA_OUT_OF_RANGE);
        let bytes = sense.as_bytes();
        assert_eq!((bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]), (0x70, 5, 10, 0x21, 0));
        assert_eq!(sense.sense_key(), SenseKey::ILLEGAL_REQUEST);
        assert_eq!(sense.additional(), AdditionalSense::LBA_OUT_OF_RANGE);
    }
}
