//! `NTSTATUS`, the result of messages and packets between drivers of both sides
//! (MS-ERREF 2.3.1). Hypercalls have [`crate::HvStatus`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Result code; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NtStatus(pub u32);

#[allow(missing_docs, reason = "names are the specification's own")]
impl NtStatus {
    pub const SUCCESS: Self = Self(0);
    pub const BUFFER_OVERFLOW: Self = Self(0x8000_0005);
    pub const DEVICE_BUSY: Self = Self(0x8000_0011);
    pub const UNSUCCESSFUL: Self = Self(0xc000_0001);
    pub const INVALID_PARAMETER: Self = Self(0xc000_000d);
    pub const INVALID_DEVICE_REQUEST: Self = Self(0xc000_0010);
    pub const NO_MEMORY: Self = Self(0xc000_0017);
    pub const ACCESS_DENIED: Self = Self(0xc000_0022);
    pub const REVISION_MISMATCH: Self = Self(0xc000_0059);
    pub const INSUFFICIENT_RESOURCES: Self = Self(0xc000_009a);
    pub const IO_TIMEOUT: Self = Self(0xc000_00b5);
    pub const NOT_SUPPORTED: Self = Self(0xc000_00bb);
    pub const DEVICE_DOES_NOT_EXIST: Self = Self(0xc000_00c0);
    pub const INVALID_DEVICE_STATE: Self = Self(0xc000_0184);
    pub const IO_DEVICE_ERROR: Self = Self(0xc000_0185);
    pub const CONNECTION_REFUSED: Self = Self(0xc000_0236);

    /// Success.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }
}
