//! Hypercall status codes, `HV_STATUS` (TLFS appendix B).

/// A hypercall's result code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HvStatus(pub u16);

#[allow(missing_docs, reason = "names are the specification's own")]
impl HvStatus {
    pub const SUCCESS: Self = Self(0x0000);
    pub const INVALID_HYPERCALL_CODE: Self = Self(0x0002);
    pub const INVALID_HYPERCALL_INPUT: Self = Self(0x0003);
    pub const INVALID_ALIGNMENT: Self = Self(0x0004);
    pub const INVALID_PARAMETER: Self = Self(0x0005);
    pub const ACCESS_DENIED: Self = Self(0x0006);
    pub const INVALID_PARTITION_STATE: Self = Self(0x0007);
    pub const OPERATION_DENIED: Self = Self(0x0008);
    pub const UNKNOWN_PROPERTY: Self = Self(0x0009);
    pub const PROPERTY_VALUE_OUT_OF_RANGE: Self = Self(0x000a);
    pub const INSUFFICIENT_MEMORY: Self = Self(0x000b);
    pub const PARTITION_TOO_DEEP: Self = Self(0x000c);
    pub const INVALID_PARTITION_ID: Self = Self(0x000d);
    pub const INVALID_VP_INDEX: Self = Self(0x000e);
    pub const INVALID_PORT_ID: Self = Self(0x0011);
    pub const INVALID_CONNECTION_ID: Self = Self(0x0012);
    pub const INSUFFICIENT_BUFFERS: Self = Self(0x0013);
    pub const NOT_ACKNOWLEDGED: Self = Self(0x0014);
    pub const INVALID_VP_STATE: Self = Self(0x0015);
    pub const ACKNOWLEDGED: Self = Self(0x0016);
    pub const INVALID_SAVE_RESTORE_STATE: Self = Self(0x0017);
    pub const INVALID_SYNIC_STATE: Self = Self(0x0018);
    pub const OBJECT_IN_USE: Self = Self(0x0019);
    pub const INVALID_PROXIMITY_DOMAIN_INFO: Self = Self(0x001a);
    pub const NO_DATA: Self = Self(0x001b);
    pub const INACTIVE: Self = Self(0x001c);
    pub const NO_RESOURCES: Self = Self(0x001d);
    pub const FEATURE_UNAVAILABLE: Self = Self(0x001e);
    pub const PARTIAL_PACKET: Self = Self(0x001f);
    pub const TIME_OUT: Self = Self(0x0078);
}

impl HvStatus {
    /// Whether the call succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// `Ok(())` for success.
    ///
    /// # Errors
    /// The status itself when it is anything else.
    pub const fn ok(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}
