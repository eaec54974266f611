//! Address and frame-number newtypes.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);
    };
}
number!(/// A machine frame number: a page frame of the VM.
    Mfn);
number!(/// A guest ("pseudo-physical") frame number: 0..nr_pages.
    Pfn);
number!(/// A byte address in the VM's physical memory (`mfn << 12 | offset`).
    MachineAddr);
number!(/// A guest virtual address: an allegation until an access succeeds.
    GuestVa);

impl Mfn {
    /// M2P value of a frame that is not the guest's (`INVALID_M2P_ENTRY`).
    pub const INVALID: Self = Self(u64::MAX);
    /// Address of the frame's first byte.
    #[must_use]
    pub const fn base(self) -> MachineAddr {
        MachineAddr(self.0 << PAGE_SHIFT)
    }
}

impl MachineAddr {
    /// The frame the address lies in.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }
    /// Offset within the frame, in bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl GuestVa {
    /// The address `bytes` further on, wrapping (a wrapped address then fails the access).
    #[must_use]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}
