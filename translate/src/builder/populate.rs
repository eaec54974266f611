//! Writes the planned domain into its memory.

use xen_abi::start_info::{MAGIC_X86_64, MAX_GUEST_CMDLINE, SIF_MOD_START_PFN, StartInfo};
use xen_abi::{GuestVa, MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
use zerocopy::{FromZeros, IntoBytes};

use super::layout::Mapping;
use super::{BuildError, Kernel, Layout, hypercall_page};

/// Present, writable, accessed, dirty; no user bit: the guest kernel runs in ring 1.
const L1_FLAGS: u64 = 0x63;
/// The same with the user bit, which upper levels need for the user's own mappings.
const TABLE_FLAGS: u64 = 0x67;
const ENTRIES: u64 = 512;

/// The new domain's memory, by page frame number.
pub trait BuildMemory {
    /// The machine frame behind a page, and how many pages from it on are machine-contiguous
    /// (at least 1).
    fn run(&self, pfn: Pfn) -> (Mfn, u64);
    /// Writes bytes at a byte offset from a page's start; both may go over page boundaries.
    fn write(&mut self, pfn: Pfn, offset: u64, bytes: &[u8]);
    /// Zeroes bytes, likewise.
    fn zero(&mut self, pfn: Pfn, offset: u64, bytes: u64);
    /// The machine frame behind a page.
    fn mfn(&self, pfn: Pfn) -> Mfn {
        self.run(pfn).0
    }
}

/// What the domain is told about its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Machine address of `shared_info`.
    pub shared_info: MachineAddr,
    /// Event channel of the console, 0 = none.
    pub console_evtchn: u32,
    /// Event channel of xenstore, 0 = none.
    pub store_evtchn: u32,
    /// `SIF_*`.
    pub flags: u32,
}

/// How vCPU 0 starts. All other registers are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// First instruction.
    pub rip: GuestVa,
    /// Top of the boot stack.
    pub rsp: GuestVa,
    /// Address of `start_info`.
    pub rsi: GuestVa,
    /// The L4 table; its slots 256..=271 are zero, the shim's to fill.
    pub cr3: Mfn,
    /// Page of `start_info`.
    pub start_info: Pfn,
    /// The console ring.
    pub console: Mfn,
    /// The xenstore ring.
    pub store: Option<Mfn>,
    /// Page-table pages of the initial mapping (first one = L4) and their number.
    pub page_tables: (Pfn, u64),
    /// The hypercall page, already filled.
    pub hypercall_page: Option<Pfn>,
}

/// Machine frames of rising pages, asking for each run once.
struct Frames {
    at: u64,
    mfn: u64,
    left: u64,
}

impl Frames {
    const fn from(pfn: Pfn) -> Self {
        Self { at: pfn.0, mfn: 0, left: 0 }
    }
    #[inline]
    fn next<M: BuildMemory>(&mut self, memory: &M) -> u64 {
        if self.left == 0 {
            let (mfn, count) = memory.run(Pfn(self.at));
            (self.mfn, self.left) = (mfn.0, count.max(1));
        }
        let mfn = self.mfn;
        self.at += 1;
        self.mfn = self.mfn.wrapping_add(1);
        self.left -= 1;
        mfn
    }
}

/// Writes kernel, initrd (where it has to be copied), p2m, `start_info` and page tables.
///
/// # Errors
/// [`BuildError::InitrdNeedsCopy`] where the layout copies an initrd and `initrd` is not it.
pub fn populate<M: BuildMemory>(
    layout: &Layout,
    kernel: &Kernel<'_>,
    cmdline: &[u8],
    initrd: Option<&[u8]>,
    machine: &Machine,
    memory: &mut M,
) -> Result<Start, BuildError> {
    if cmdline.len() >= MAX_GUEST_CMDLINE {
        return Err(BuildError::CommandLineTooLong);
    }
    for segment in &kernel.segments {
        let bytes = kernel.bytes(segment);
        let (pfn, offset) = (Pfn(segment.addr >> PAGE_SHIFT), segment.addr % PAGE_SIZE);
        let written = bytes.len() as u64;
        memory.write(pfn, offset, bytes);
        memory.zero(pfn, offset + written, segment.mem_bytes.saturating_sub(written));
    }
    let hypercall_pfn =
        kernel.hypercall_page.map(|va| Pfn(va.0.wrapping_sub(kernel.virt_base.0) >> PAGE_SHIFT));
    if let Some(pfn) = hypercall_pfn {
        memory.write(pfn, 0, &hypercall_page());
    }
    if let Some(place) = layout.initrd.filter(|place| place.copy) {
        let bytes = initrd.filter(|bytes| bytes.len() as u64 == place.bytes);
        let bytes = bytes.ok_or(BuildError::InitrdNeedsCopy)?;
        memory.write(place.pfn, 0, bytes);
        memory.zero(place.pfn, place.bytes, place.bytes.wrapping_neg() % PAGE_SIZE);
    }
    p2m(layout, memory);
    for pfn in [layout.console_pfn, layout.stack_pfn].into_iter().chain(layout.store_pfn) {
        memory.zero(pfn, 0, PAGE_SIZE);
    }
    start_info(layout, cmdline, machine, memory);
    page_tables(layout, memory);
    Ok(Start {
        rip: kernel.entry,
        rsp: layout.va(layout.stack_pfn).add(PAGE_SIZE),
        rsi: layout.va(layout.start_info_pfn),
        cr3: memory.mfn(layout.l4_pfn),
        start_info: layout.start_info_pfn,
        console: memory.mfn(layout.console_pfn),
        store: layout.store_pfn.map(|pfn| memory.mfn(pfn)),
        page_tables: (layout.l4_pfn, layout.nr_pt_frames()),
        hypercall_page: hypercall_pfn,
    })
}

/// The machine frame of every page; the words behind the last are invalid entries.
fn p2m<M: BuildMemory>(layout: &Layout, memory: &mut M) {
    let mut frames = Frames::from(Pfn(0));
    let mut words = [0u64; ENTRIES as usize];
    for page in 0..layout.p2m_pages {
        for word in &mut words {
            *word = if frames.at < layout.nr_pages { frames.next(memory) } else { u64::MAX };
        }
        memory.write(Pfn(layout.p2m_pfn.0 + page), 0, words.as_bytes());
    }
}

fn start_info<M: BuildMemory>(layout: &Layout, cmdline: &[u8], machine: &Machine, memory: &mut M) {
    let mut info = StartInfo::new_zeroed();
    for (to, from) in info.magic.iter_mut().zip(MAGIC_X86_64) {
        *to = *from;
    }
    for (to, from) in info.cmd_line.iter_mut().zip(cmdline) {
        *to = *from;
    }
    info.nr_pages = layout.nr_pages;
    info.shared_info = machine.shared_info.0;
    info.flags = machine.flags;
    if let Some(pfn) = layout.store_pfn {
        info.store_mfn = memory.mfn(pfn).0;
        info.store_evtchn = machine.store_evtchn;
    }
    info.console_mfn = memory.mfn(layout.console_pfn).0;
    info.console_evtchn = machine.console_evtchn;
    info.pt_base = layout.va(layout.l4_pfn).0;
    info.nr_pt_frames = layout.nr_pt_frames();
    info.mfn_list = match &layout.p2m_mapping {
        Some(mapping) => {
            info.first_p2m_pfn = layout.p2m_pfn.0;
            info.nr_p2m_frames = layout.p2m_pages + mapping.nr_tables();
            mapping.va.0
        }
        None => layout.va(layout.p2m_pfn).0,
    };
    if let Some(initrd) = &layout.initrd {
        info.mod_len = initrd.bytes;
        if initrd.mapped {
            info.mod_start = layout.va(initrd.pfn).0;
        } else {
            info.mod_start = initrd.pfn.0;
            info.flags |= SIF_MOD_START_PFN;
        }
    }
    memory.zero(layout.start_info_pfn, 0, PAGE_SIZE);
    memory.write(layout.start_info_pfn, 0, info.as_bytes());
}

/// Writes the tables of one level: those whose entries are units of `1 << shift` bytes.
/// `children` are the pages the entries point at. Returns the first page behind the tables.
fn level<M: BuildMemory>(
    mapping: &Mapping,
    shift: u32,
    tables: Pfn,
    children: Pfn,
    flags: u64,
    memory: &mut M,
) -> Pfn {
    let (first_unit, nr_units) = mapping.units(shift);
    let (first_table, nr_tables) = mapping.units(shift + 9);
    let mut frames = Frames::from(children);
    for table in 0..nr_tables {
        let mut words = [0u64; ENTRIES as usize];
        let unit = (first_table + table) * ENTRIES;
        for (n, word) in (0u64..).zip(&mut words) {
            if (unit + n).wrapping_sub(first_unit) < nr_units {
                *word = frames.next(memory) << PAGE_SHIFT | flags;
            }
        }
        memory.write(Pfn(tables.0 + table), 0, words.as_bytes());
    }
    Pfn(tables.0 + nr_tables)
}

fn page_tables<M: BuildMemory>(layout: &Layout, memory: &mut M) {
    let mut l4 = [0u64; ENTRIES as usize];
    for mapping in [Some(layout.window), layout.p2m_mapping].into_iter().flatten() {
        let (first_slot, nr_l3) = mapping.units(39);
        let l3 = mapping.tables_pfn;
        let l2 = Pfn(l3.0 + nr_l3);
        let l1 = Pfn(l2.0 + mapping.units(30).1);
        level(&mapping, 30, l3, l2, TABLE_FLAGS, memory);
        level(&mapping, 21, l2, l1, TABLE_FLAGS, memory);
        level(&mapping, 12, l1, mapping.pfn, L1_FLAGS, memory);
        for n in 0..nr_l3 {
            let slot = ((first_slot + n) % ENTRIES) as usize;
            l4[slot] = memory.mfn(Pfn(l3.0 + n)).0 << PAGE_SHIFT | TABLE_FLAGS;
        }
    }
    memory.write(layout.l4_pfn, 0, l4.as_bytes());
}
