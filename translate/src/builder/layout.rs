//! Where everything goes in the new domain's pseudo-physical memory.
//!
//! By page frame number, rising (the order of Xen's toolstack):
//!
//! ```text
//! 0 .............. ordinary RAM, mapped
//! p_paddr ........ kernel
//!                  initrd (kernels without MOD_START_PFN)
//!                  p2m (kernels without INIT_P2M)
//!                  start_info, xenstore ring, console ring
//!                  page tables: L4, L3s, L2s, L1s
//!                  boot stack, 1 page
//! mapped_pages ... end of the initial mapping, a multiple of 4 MiB
//!                  initrd, if it has to be copied and need not be mapped
//!                  p2m and its own page tables (at INIT_P2M)
//! end_pfn
//! ```
//!
//! Two promises meet at the end of the mapping. The ABI (`xen.h`) leaves at least 512 KiB mapped
//! behind the last element. Linux cleans its mapping only up to the 4 MiB boundary behind the page
//! tables, and takes what is mapped beyond for a writable and executable leftover. So when the
//! 512 KiB make the mapping reach over one more boundary, the page tables move up over it too.

use core::ops::RangeInclusive;
use xen_abi::start_info::MAX_GUEST_CMDLINE;
use xen_abi::{GuestVa, PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::{BuildError, Kernel};

/// Pages the initial mapping is a multiple of (4 MiB).
const MAPPING_PAGES: u64 = 1024;
/// Pages mapped behind the last element (512 KiB).
const SPARE_PAGES: u64 = 128;
/// Entries of a page table, and 8-byte words in a page.
const ENTRIES: u64 = 512;
/// L4 slots of the hypervisor.
const HOLE_SLOTS: RangeInclusive<u64> = 256..=271;

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
    /// Used only for kernels with [`Kernel::mod_start_pfn`]; else, and when this is `None`, it is
    /// copied ([`Initrd::copy`]).
    pub initrd_pfn: Option<Pfn>,
    /// Give it a xenstore ring page.
    pub xenstore: bool,
}

/// A virtually contiguous mapping and the tables below L4 that make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub va: GuestVa,
    /// Pages mapped.
    pub pages: u64,
    /// Page mapped first; the others follow.
    pub pfn: Pfn,
    /// The tables: all L3s, then all L2s, then all L1s.
    pub tables_pfn: Pfn,
}

impl Mapping {
    /// First and number of the units of `1 << shift` bytes the mapping touches.
    pub(super) const fn units(&self, shift: u32) -> (u64, u64) {
        let first = self.va.0 >> shift;
        let last = self.va.0.wrapping_add(self.pages.wrapping_mul(PAGE_SIZE)).wrapping_sub(1);
        (first, (last >> shift).wrapping_sub(first).wrapping_add(1))
    }

    /// Tables below L4.
    #[must_use]
    pub const fn nr_tables(&self) -> u64 {
        self.units(39).1 + self.units(30).1 + self.units(21).1
    }

    fn slots(&self) -> RangeInclusive<u64> {
        let (first, count) = self.units(39);
        first % ENTRIES..=(first + count - 1) % ENTRIES
    }

    /// The mapping is canonical, in one half of the address space and not in the hypervisor's
    /// part of it.
    fn check(&self) -> Result<(), BuildError> {
        let bytes = self.pages.checked_mul(PAGE_SIZE).ok_or(BuildError::BadAddress)?;
        let last = self.va.0.checked_add(bytes - 1).ok_or(BuildError::BadAddress)?;
        let canonical = |va: u64| (va as i64) << 16 >> 16 == va as i64;
        let slots = self.slots();
        let in_hole = slots.start() <= HOLE_SLOTS.end() && slots.end() >= HOLE_SLOTS.start();
        let aligned = self.va.0.is_multiple_of(PAGE_SIZE);
        let one_half = self.va.0 >> 63 == last >> 63;
        if !canonical(self.va.0) || !canonical(last) || !one_half || in_hole || !aligned {
            return Err(BuildError::BadAddress);
        }
        Ok(())
    }
}

/// Where the initrd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// First page.
    pub pfn: Pfn,
    /// Bytes.
    pub bytes: u64,
    /// In the initial mapping: the guest is told its address, else its page.
    pub mapped: bool,
    /// [`super::populate::populate`] copies it there; else it is there already.
    pub copy: bool,
}

impl Initrd {
    const fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE)
    }
    fn overlaps(&self, from: u64, end: u64) -> bool {
        self.pfn.0 < end && self.pfn.0.saturating_add(self.pages()) > from
    }
}

/// Where everything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pages of the domain.
    pub nr_pages: u64,
    /// The initial mapping, from PFN 0 on.
    pub window: Mapping,
    /// The initrd.
    pub initrd: Option<Initrd>,
    /// First page of the p2m.
    pub p2m_pfn: Pfn,
    /// Pages of the p2m.
    pub p2m_pages: u64,
    /// The p2m's own mapping, where it is not in the window.
    pub p2m_mapping: Option<Mapping>,
    /// `start_info`.
    pub start_info_pfn: Pfn,
    /// Xenstore ring.
    pub store_pfn: Option<Pfn>,
    /// Console ring.
    pub console_pfn: Pfn,
    /// The L4; the window's other tables follow it.
    pub l4_pfn: Pfn,
    /// The boot stack's page.
    pub stack_pfn: Pfn,
    /// All that is used at the start is below this page, except an initrd left in place.
    pub end_pfn: Pfn,
}

impl Layout {
    /// Pages of the window's tables, the L4 included.
    #[must_use]
    pub const fn nr_pt_frames(&self) -> u64 {
        1 + self.window.nr_tables()
    }

    /// Address of a page of the window.
    #[must_use]
    pub const fn va(&self, pfn: Pfn) -> GuestVa {
        self.window.va.add(pfn.0 << PAGE_SHIFT)
    }
}

/// Hands out pages one after the other.
struct Cursor(u64);

impl Cursor {
    fn take(&mut self, pages: u64) -> Result<Pfn, BuildError> {
        let at = self.0;
        self.0 = at.checked_add(pages).ok_or(BuildError::TooLittleMemory(u64::MAX))?;
        Ok(Pfn(at))
    }
}

/// The window, given the first page free for its tables, and the page its tables begin at.
fn window(va: GuestVa, free: u64) -> Result<(Mapping, Pfn), BuildError> {
    let mut pages = 0;
    loop {
        let wanted = Mapping { va, pages, pfn: Pfn(0), tables_pfn: Pfn(0) };
        let tables = if pages == 0 { 0 } else { 1 + wanted.nr_tables() };
        let end = free + tables + 1 + SPARE_PAGES;
        let rounded = end.next_multiple_of(MAPPING_PAGES);
        if rounded > pages {
            pages = rounded;
            Mapping { pages, ..wanted }.check()?;
            continue;
        }
        // See the module's header: the tables end in the mapping's last 4 MiB.
        let l4 = free.max(pages - MAPPING_PAGES + 1 - tables.min(pages - MAPPING_PAGES));
        return Ok((Mapping { tables_pfn: Pfn(l4 + 1), ..wanted }, Pfn(l4)));
    }
}

/// The p2m outside the window; `None` where it would share an L4 slot with it.
fn p2m_mapping(kernel: &Kernel<'_>, window: &Mapping, pages: u64) -> Option<Mapping> {
    let va = kernel.init_p2m?;
    let mapping = Mapping { va, pages, pfn: Pfn(0), tables_pfn: Pfn(0) };
    mapping.check().ok()?;
    let (ours, other) = (mapping.slots(), window.slots());
    (ours.start() > other.end() || ours.end() < other.start()).then_some(mapping)
}

/// Lays the domain out.
///
/// # Errors
/// What does not fit.
pub fn plan(kernel: &Kernel<'_>, config: &Config<'_>) -> Result<Layout, BuildError> {
    if config.cmdline.len() >= MAX_GUEST_CMDLINE {
        return Err(BuildError::CommandLineTooLong);
    }
    let p2m_pages = config.nr_pages.div_ceil(ENTRIES);
    if config.nr_pages == 0 || config.nr_pages > 1 << 34 {
        return Err(BuildError::TooLittleMemory(1));
    }
    let layout = plan_with(kernel, config, p2m_pages, kernel.init_p2m.is_some())?;
    match layout {
        Some(layout) => Ok(layout),
        // INIT_P2M is unusable: the p2m can always go into the window.
        None => plan_with(kernel, config, p2m_pages, false)?.ok_or(BuildError::BadAddress),
    }
}

/// The layout with the p2m outside or inside the window; `None` where outside does not work.
fn plan_with(
    kernel: &Kernel<'_>,
    config: &Config<'_>,
    p2m_pages: u64,
    p2m_outside: bool,
) -> Result<Option<Layout>, BuildError> {
    let (kernel_start, kernel_end) = kernel.pfns();
    let mut next = Cursor(kernel_end.0);
    let mut initrd = (config.initrd_bytes != 0).then_some(Initrd {
        pfn: Pfn(0),
        bytes: config.initrd_bytes,
        mapped: !kernel.mod_start_pfn,
        copy: true,
    });
    if let Some(initrd) = initrd.as_mut().filter(|initrd| initrd.mapped) {
        initrd.pfn = next.take(initrd.pages())?;
    }
    let mut p2m_pfn = Pfn(0);
    if !p2m_outside {
        p2m_pfn = next.take(p2m_pages)?;
    }
    let start_info_pfn = next.take(1)?;
    let store_pfn = if config.xenstore { Some(next.take(1)?) } else { None };
    let console_pfn = next.take(1)?;
    if next.0 > config.nr_pages {
        return Err(BuildError::TooLittleMemory(next.0));
    }
    let (window, l4_pfn) = window(kernel.virt_base, next.0)?;
    let stack_pfn = Pfn(l4_pfn.0 + 1 + window.nr_tables());
    let used_end = stack_pfn.0 + 1;
    next.0 = window.pages;
    if let Some(initrd) = initrd.as_mut().filter(|initrd| !initrd.mapped) {
        match config.initrd_pfn {
            Some(pfn) => {
                (initrd.pfn, initrd.copy) = (pfn, false);
                if initrd.overlaps(kernel_start.0, used_end) {
                    return Err(BuildError::InitrdOverlaps);
                }
                if initrd.overlaps(config.nr_pages, u64::MAX) {
                    return Err(BuildError::TooLittleMemory(pfn.0.saturating_add(initrd.pages())));
                }
            }
            None => initrd.pfn = next.take(initrd.pages())?,
        }
    }
    let mut p2m = None;
    if p2m_outside {
        let Some(mut mapping) = p2m_mapping(kernel, &window, p2m_pages) else { return Ok(None) };
        let pages = p2m_pages + mapping.nr_tables();
        if let Some(initrd) = initrd.filter(|i| i.overlaps(next.0, next.0 + pages)) {
            next.0 = initrd.pfn.0 + initrd.pages();
        }
        p2m_pfn = next.take(pages)?;
        mapping.pfn = p2m_pfn;
        mapping.tables_pfn = Pfn(p2m_pfn.0 + p2m_pages);
        p2m = Some(mapping);
    }
    if next.0 > config.nr_pages {
        return Err(BuildError::TooLittleMemory(next.0));
    }
    Ok(Some(Layout {
        nr_pages: config.nr_pages,
        window,
        initrd,
        p2m_pfn,
        p2m_pages,
        p2m_mapping: p2m,
        start_info_pfn,
        store_pfn,
        console_pfn,
        l4_pfn,
        stack_pfn,
        end_pfn: Pfn(next.0),
    }))
}
