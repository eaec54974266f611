//! The guest OS identity a guest writes into `HV_X64_MSR_GUEST_OS_ID` before it
//! may enable the hypercall page (TLFS 2.6).
//!
//! ```text
//! open source:  63 = 1 | 62:56 OS type | 55:48 OS id | 47:16 version | 15:0 build
//! proprietary:  63 = 0 | 62:48 vendor | 47:40 OS id | 39:32 major | 31:24 minor
//!                      | 23:16 service version | 15:0 build
//! ```

/// Contents of the guest OS id MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct GuestOsId(pub u64);

impl GuestOsId {
    /// OS type of open-source guests: Linux.
    pub const OS_TYPE_LINUX: u8 = 1;
    /// OS type of open-source guests: FreeBSD.
    pub const OS_TYPE_FREEBSD: u8 = 2;
    /// OS type of open-source guests: Xen.
    pub const OS_TYPE_XEN: u8 = 3;
    /// OS type of open-source guests: illumos.
    pub const OS_TYPE_ILLUMOS: u8 = 4;
    /// Vendor of proprietary guests: Microsoft.
    pub const VENDOR_MICROSOFT: u16 = 1;

    /// Composes an open-source identity; `os_type` keeps its low 7 bits.
    #[must_use]
    pub const fn open_source(os_type: u8, os_id: u8, version: u32, build: u16) -> Self {
        Self(
            1 << 63
                | ((os_type & 0x7f) as u64) << 56
                | (os_id as u64) << 48
                | (version as u64) << 16
                | build as u64,
        )
    }

    /// Whether the identity is in the open-source form.
    #[must_use]
    pub const fn is_open_source(self) -> bool {
        self.0 >> 63 != 0
    }

    /// OS type of an open-source identity.
    #[must_use]
    pub const fn os_type(self) -> u8 {
        (self.0 >> 56) as u8 & 0x7f
    }

    /// OS id (distribution) of an open-source identity.
    #[must_use]
    pub const fn os_id(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Version of an open-source identity; Linux puts its version code here.
    #[must_use]
    pub const fn version(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Build number.
    #[must_use]
    pub const fn build(self) -> u16 {
        self.0 as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_identity() {
        let id = GuestOsId::open_source(GuestOsId::OS_TYPE_LINUX, 0, 0x0006_01c0, 0);
        assert_eq!(id.0, 0x8100_0006_01c0_0000);
        assert!(id.is_open_source());
        assert_eq!((id.os_type(), id.os_id(), id.version(), id.build()), (1, 0, 0x601c0, 0));
    }

    #[test]
    fn xen_identity_keeps_fields_apart() {
        let id = GuestOsId::open_source(0xff, 0xab, u32::MAX, 0x1234);
        assert_eq!(
            (id.os_type(), id.os_id(), id.version(), id.build()),
            (0x7f, 0xab, u32::MAX, 0x1234)
        );
    }
}
