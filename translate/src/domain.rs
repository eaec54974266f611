//! Domain-wide state, shared by all vCPUs.
//!
//! Lock order (take left before right): `gnttab` -> `evtchn` -> `VcpuShared::info` -> `console`.
//! `taken` stands alone, but that a frame is given up while it is held.
//! The store's lock stands alone: a backend may hold its own when it takes it, nothing is taken
//! while it is held, and events are sent after it was given back.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;
use spin::Mutex;
use xen_abi::PAGE_SIZE;
use xen_abi::memory::{E820_RAM, E820Entry};
use xen_abi::shared_info::{SharedInfo, VcpuInfo};

use crate::bits::bits;
use crate::console::Console;
use crate::evtchn::EventChannels;
use crate::gnttab::GrantTable;
use crate::lazy::{Lazy, Tables};
use crate::requests::Requests;
use crate::version::Identity;
use crate::xenstore::Xenstore;

/// vCPUs a domain may have.
pub const MAX_VCPUS: usize = 64;
/// Entries the domain's memory map may have.
pub const MEMORY_MAP_ENTRIES: usize = 32;

/// What other vCPUs may touch of a vCPU.
#[derive(Debug)]
pub struct VcpuShared {
    /// Where this vCPU's `vcpu_info` is; `None` until it has one (ids >= 32 before registration).
    pub info: Mutex<Option<&'static VcpuInfo>>,
    /// Running or startable (VCPUOP_up); false = VCPUOP_is_up answers 0.
    pub online: AtomicBool,
    /// The page table its processor uses: nothing may overwrite or take it. None of the guest's: and so
    /// nothing of them in its TLB.
    pub roots: crate::mmu::Roots,
    /// TLB flushes that wait while its processor is halted.
    pub lazy: Lazy<AtomicU64>,
    /// A [`Stage`].
    stage: AtomicU8,
    /// Its runstate, for the others.
    pub runstate: crate::time::SharedRunstate,
    /// What other vCPUs ask of it.
    pub requests: Requests,
    /// Set while the vCPU is in SCHEDOP_block or SCHEDOP_poll: an event must kick it.
    pub blocked: AtomicBool,
}

/// How far a vCPU has come ([`crate::vcpu_start`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// It has no context.
    New = 0,
    /// Somebody gives it one.
    Initialising = 1,
    /// It may go up.
    Initialised = 2,
}

/// The one guest.
#[derive(Debug)]
pub struct Domain {
    /// The `shared_info` page.
    pub shared_info: &'static SharedInfo,
    /// Machine address of `shared_info`.
    pub shared_info_at: xen_abi::MachineAddr,
    /// Frames the guest has now.
    pub nr_pages: AtomicU64,
    /// Frames it may have.
    pub max_pages: u64,
    /// VM assists switched on, by VMASST_TYPE bit.
    pub vm_assist: AtomicU64,
    /// Number of vCPUs.
    pub nr_vcpus: u32,
    /// The vCPUs; entries from `nr_vcpus` on are unused.
    pub vcpus: [VcpuShared; MAX_VCPUS],
    /// The E820 map shown to the guest (`XENMEM_memory_map`).
    pub memory_map: ArrayVec<E820Entry, MEMORY_MAP_ENTRIES>,
    /// Event channels.
    pub evtchn: EventChannels,
    /// Grant table.
    pub gnttab: GrantTable,
    /// PV console.
    pub console: Console,
    /// The store.
    pub xenstore: Xenstore,
    /// Version strings, features, UUID.
    pub identity: Identity,
    /// Pollers and watchdogs.
    pub sched: crate::sched::DomainSched,
    /// Interrupt lines.
    pub physdev: crate::physdev::Physdev,
    /// A frame that must not become an L4 now.
    pub taken: crate::mmu::Taken,
    /// What the guest has taken out of its page tables.
    pub tables: Tables,
}

impl VcpuShared {
    /// A vCPU that is not up and has no `vcpu_info`.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            info: Mutex::new(None),
            online: AtomicBool::new(false),
            roots: crate::mmu::Roots::new(),
            lazy: Lazy::new(),
            stage: AtomicU8::new(Stage::New as u8),
            runstate: crate::time::SharedRunstate::new(),
            requests: Requests::new(),
            blocked: AtomicBool::new(false),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::SeqCst) {
            0 => Stage::New,
            1 => Stage::Initialising,
            _ => Stage::Initialised,
        }
    }

    /// Moves on from a stage; `false` where it is in another one.
    pub fn move_on(&self, from: Stage, to: Stage) -> bool {
        let (from, to) = (from as u8, to as u8);
        self.stage.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Makes it a vCPU that runs without having been started: the first one.
    pub fn begin(&self) {
        self.stage.store(Stage::Initialised as u8, Ordering::SeqCst);
        self.online.store(true, Ordering::SeqCst);
    }
}

impl Default for VcpuShared {
    fn default() -> Self {
        Self::new()
    }
}

impl Domain {
    /// Flushes TLBs of these vCPUs, as far as they are on the guest's page tables and may have something of
    /// them: those that must flush at once by `flush`, which says whether it emptied them, the others when
    /// they go on.
    pub fn flush_tlbs(&self, targets: u64, flush: impl FnOnce(u64) -> bool) {
        // What the caller has changed is there for all before it is looked who may have the old.
        fence(Ordering::SeqCst);
        let count = self.tables.count();
        let mut now = 0;
        for (vcpu, id) in self.vcpus.iter().take(self.nr_vcpus as usize).zip(0u32..) {
            if targets >> id & 1 != 0 && vcpu.roots.any() && !vcpu.lazy.put_off(count) {
                now |= 1 << id;
            }
        }
        if now != 0 && flush(now) {
            let flushed = bits(now).filter_map(|id| self.vcpus.get(id as usize));
            flushed.for_each(|vcpu| vcpu.lazy.emptied(count));
        }
    }

    /// A domain of `nr_pages` frames, none of its vCPUs up yet. The memory map is one region of
    /// RAM; the builder replaces it where the guest's frames are not contiguous.
    #[must_use]
    pub fn new(
        shared_info: &'static SharedInfo,
        shared_info_at: xen_abi::MachineAddr,
        nr_pages: u64,
        nr_vcpus: u32,
    ) -> Self {
        let mut memory_map = ArrayVec::new();
        memory_map.push(E820Entry {
            addr: 0,
            size: nr_pages.saturating_mul(PAGE_SIZE),
            type_: E820_RAM,
        });
        Self {
            shared_info,
            shared_info_at,
            nr_pages: AtomicU64::new(nr_pages),
            max_pages: nr_pages,
            vm_assist: AtomicU64::new(0),
            nr_vcpus,
            vcpus: [const { VcpuShared::new() }; MAX_VCPUS],
            memory_map,
            evtchn: EventChannels::default(),
            gnttab: GrantTable::default(),
            console: Console::default(),
            xenstore: Xenstore::default(),
            identity: Identity::default(),
            sched: crate::sched::DomainSched::default(),
            physdev: crate::physdev::Physdev::default(),
            taken: crate::mmu::Taken::new(),
            tables: Tables::new(),
        }
    }
}
