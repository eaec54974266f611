//! Where everything goes in the new domain's pseudo-physical memory.

use xen_abi::Pfn;

use super::{BuildError, Kernel};

/// The domain to lay out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config<'a> {
    /// Pages the domain gets (PFN 0..nr_pages).
    pub nr_pages: u64,
    /// Its command line (at most 1023 bytes; see [`super::cmdline::split`]).
    pub cmdline: &'a [u8],
    /// Bytes of initrd, 0 = none.
    pub initrd_bytes: u64,
    /// The page the initrd already begins at, if it is in the domain's memory, page-aligned.
    /// Used only by kernels with [`Kernel::mod_start_pfn`]; else it must be copied into the
    /// initial mapping, and so it is when this is `None`.
    pub initrd_pfn: Option<Pfn>,
    /// Give it a xenstore ring page.
    pub xenstore: bool,
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// First page of the initrd.
    pub initrd_pfn: Option<Pfn>,
    /// The initrd has to be copied there by [`super::populate::populate`].
    pub initrd_copy: bool,
    /// `start_info`.
    pub start_info_pfn: Pfn,
    /// Xenstore ring.
    pub store_pfn: Option<Pfn>,
    /// Console ring.
    pub console_pfn: Pfn,
    /// Pages below this one (and not part of an initrd left in place) are used or mapped at start.
    pub end_pfn: Pfn,
}

/// Lays the domain out.
///
/// # Errors
/// What does not fit.
pub fn plan(kernel: &Kernel<'_>, config: &Config<'_>) -> Result<Layout, BuildError> {
    let _ = (kernel, config);
    Err(BuildError::NoMemory)
}
