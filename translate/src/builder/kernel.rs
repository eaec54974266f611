//! A guest kernel: out of its file into a parsed ELF image.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use xen_abi::{GuestVa, Pfn};

use super::BuildError;

/// A loadable piece of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Offset of its bytes in the image.
    pub file_offset: usize,
    /// Bytes in the image.
    pub file_bytes: usize,
    /// Bytes in memory; what the file does not give is zero.
    pub mem_bytes: u64,
}

/// A parsed PV kernel.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    /// The ELF image, decompressed where it was compressed.
    pub image: Cow<'a, [u8]>,
    /// What to load.
    pub segments: Vec<Segment>,
    /// Virtual address of guest-physical 0.
    pub virt_base: GuestVa,
    /// First instruction.
    pub entry: GuestVa,
    /// Where the hypercall page goes, if the kernel wants one.
    pub hypercall_page: Option<GuestVa>,
    /// Where the p2m goes, if not into the initial mapping.
    pub init_p2m: Option<GuestVa>,
    /// The initrd may stay unmapped (`MOD_START_PFN`).
    pub mod_start_pfn: bool,
    /// Features the kernel knows (XENFEAT submap 0).
    pub supported_features: u32,
}

impl<'a> Kernel<'a> {
    /// Parses a bzImage, an ELF file or a compressed ELF file.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn load(file: &'a [u8]) -> Result<Self, BuildError> {
        let _ = file;
        Err(BuildError::UnknownFormat)
    }

    /// First and end page frame of the segments.
    #[must_use]
    pub fn pfns(&self) -> (Pfn, Pfn) {
        (Pfn(0), Pfn(0))
    }
}
