//! The processor: descriptor tables, control registers, local state.

pub mod apic;
pub mod gdt;
pub mod idt;
pub mod ipi;
pub mod msr;
pub mod mtrr;
pub mod percpu;
pub mod smp;
pub mod tsc;
pub mod tss;

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;

use pv_frontends::vmbus::Lingering;
use translate::evtchn::Backend;
use translate::lazy::Lazy;
use translate::regs::selector;
use xen_abi::Mfn;

use percpu::{Area, PerCpu};

/// What the shim keeps of a vCPU beside the guest's own state.
pub struct Cpu {
    /// Index of the vCPU and of its area.
    pub id: u32,
    /// The vCPU has run: its state is the processor's.
    pub runs: Cell<bool>,
    /// Hyper-V's index of the virtual processor.
    pub vp_index: Cell<u32>,
    /// Physical address of the L4 in CR3.
    pub cr3: Cell<u64>,
    /// The processor has XSAVE.
    pub has_xsave: Cell<bool>,
    /// CR4 as the shim set it, less the bits the guest may change.
    pub cr4_base: Cell<u64>,
    /// The reserved GDT page.
    pub gdt_page: Cell<*mut u64>,
    /// Page-table entries of the guest's 14 GDT pages.
    pub gdt_ptes: Cell<*mut u64>,
    /// Leaf entry for an empty GDT page.
    pub gdt_empty: Cell<u64>,
    /// The guest's CR4 (FSGSBASE, TSD ...).
    pub guest_cr4: Cell<u64>,
    /// Time spent halted.
    pub halted_ns: Cell<u64>,
    /// What steal time is reckoned from: system time less run time, and time halted, at first.
    pub steal_base: Cell<Option<(u64, u64)>>,
    /// Deadline the hardware timer is armed for; `None` = not armed.
    pub armed: Cell<Option<u64>>,
    /// By which version of the clock's conversion.
    pub armed_version: Cell<u32>,
    /// Deadlines of the guest and of the devices.
    pub guest_deadline: Cell<Option<u64>>,
    /// As above.
    pub device_deadline: Cell<Option<u64>>,
    /// NMIs, machine checks seen in ring 0 and not yet passed on.
    pub nmi_seen: Cell<bool>,
    /// A backend held a request back in this hypercall.
    pub holds_now: Cell<bool>,
    /// The backend's queue that holds one back ([`crate::devices::release`]).
    pub held: Cell<Option<Backend>>,
    /// VMBus channels the processor stays with ([`crate::devices::linger`]).
    pub lingering: Cell<Lingering>,
    /// Debug exceptions that hit ring 0 (a guest's breakpoint on memory the shim touched).
    pub debug_seen: Cell<u64>,
}

/// What the boot processor can do; the same on all.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "names are CPUID's own")]
pub struct Features {
    pub x2apic: bool,
    pub tsc_deadline: bool,
    pub xsave: bool,
    pub smep: bool,
    pub umip: bool,
    pub page_1g: bool,
    pub sysenter: bool,
}

/// CPUID.
#[inline]
pub fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// EBX of leaf 0 of AMD's and Hygon's processors ("Auth", "Hygo"). They have no SYSENTER in long
/// mode. QEMU's emulation of them (7.2) has, and leaves a code segment both 64-bit and 32-bit, which
/// its own VMRUN then refuses with RIP lost: SYSENTER is closed there, as Xen does.
const AMD: [u32; 2] = [0x6874_7541, 0x6f67_7948];

/// Reads what the processor offers.
pub fn features() -> Features {
    let max = cpuid(0, 0);
    let one = cpuid(1, 0);
    let seven = if max.eax >= 7 { cpuid(7, 0) } else { cpuid(0x8000_0000, 0x7fff) };
    let has_seven = max.eax >= 7;
    let ext_max = cpuid(0x8000_0000, 0).eax;
    let ext = |leaf| if ext_max >= leaf { cpuid(leaf, 0).edx } else { 0 };
    Features {
        x2apic: one.ecx >> 21 & 1 != 0,
        tsc_deadline: one.ecx >> 24 & 1 != 0,
        xsave: one.ecx >> 26 & 1 != 0,
        smep: has_seven && seven.ebx >> 7 & 1 != 0,
        umip: has_seven && seven.ecx >> 2 & 1 != 0,
        page_1g: ext(0x8000_0001) >> 26 & 1 != 0,
        sysenter: one.edx >> 11 & 1 != 0 && !AMD.contains(&max.ebx),
    }
}

/// CR4 bits the guest switches itself (`mov cr4`), and that are off until it does: TSD, DE, FSGSBASE. A
/// kernel that does not know of the last saves no bases a program could set.
const GUEST_CR4: u64 = cr4::TSD | cr4::DE | cr4::FSGSBASE;

mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PAE: u64 = 1 << 5;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
}

/// CR0 while guests run: PG, AM, WP, NE, ET, MP, PE. WP: RING1 relies on it for copy-on-write.
const CR0: u64 = 1 << 31 | 1 << 18 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;

/// PAT as Xen defines it for PV guests: WB WT UC- UC WC WP UC UC.
pub const XEN_PAT: u64 = 0x0000_0501_0007_0406;

/// Reads CR2.
#[inline]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// A random number of the processor's, if it has any to give.
pub fn random() -> Option<u64> {
    const RDRAND: u32 = 1 << 30;
    if cpuid(1, 0).ecx & RDRAND == 0 {
        return None;
    }
    (0..10).find_map(|_| {
        let (value, valid): (u64, u8);
        // SAFETY: the processor has RDRAND.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) valid,
                options(nomem, nostack));
        }
        (valid != 0).then_some(value)
    })
}

/// Physical address of the L4 in CR3.
#[inline]
pub fn current_l4() -> u64 {
    let value: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value & crate::mm::page_table::pte::ADDRESS
}

/// Loads CR3.
///
/// # Safety
/// The L4 must map the shim.
#[inline]
pub unsafe fn write_cr3(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Flushes a page on this processor.
#[inline]
pub fn invlpg(va: u64) {
    // SAFETY: INVLPG has no effect but on the TLB.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Writes CR4.
///
/// # Safety
/// The value must keep what the shim runs on (PAE) and hold only bits the processor has.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

impl Cpu {
    /// State of a vCPU that is about to be set up.
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            runs: Cell::new(false),
            vp_index: Cell::new(0),
            cr3: Cell::new(0),
            has_xsave: Cell::new(false),
            cr4_base: Cell::new(0),
            gdt_page: Cell::new(core::ptr::null_mut()),
            gdt_ptes: Cell::new(core::ptr::null_mut()),
            gdt_empty: Cell::new(0),
            guest_cr4: Cell::new(0),
            halted_ns: Cell::new(0),
            steal_base: Cell::new(None),
            armed: Cell::new(None),
            armed_version: Cell::new(0),
            guest_deadline: Cell::new(None),
            device_deadline: Cell::new(None),
            nmi_seen: Cell::new(false),
            holds_now: Cell::new(false),
            held: Cell::new(None),
            lingering: Cell::new(Lingering::new()),
            debug_seen: Cell::new(0),
        }
    }

    /// Flushes this processor's TLB.
    #[inline]
    pub fn reload_cr3(&self) {
        // SAFETY: the L4 in CR3 stays; it was given the shim's slots when it was loaded.
        unsafe { write_cr3(self.cr3.get()) };
    }

    /// The processor, whose vCPU waits, is about to halt: nothing of the guest's is used from here on until
    /// [`Self::wake`], and flushes may wait till then.
    pub fn doze(&self) {
        self.lazy().halt();
    }

    /// It goes on, and has flushed what waited.
    #[inline]
    pub fn wake(&self) {
        if self.lazy().wake() {
            self.reload_cr3();
        }
    }

    fn lazy(&self) -> &'static Lazy<AtomicU64> {
        &crate::guest::domain().vcpus[self.id as usize % translate::domain::MAX_VCPUS].lazy
    }

    /// Loads the shim's own page tables.
    pub fn leave_guest_tables(&self) {
        self.cr3.set(smp::final_l4());
        self.reload_cr3();
    }

    /// The bits of CR4 the guest has a say in.
    pub fn set_guest_cr4(&self, value: u64) {
        self.guest_cr4.set(value);
        let wanted = self.cr4_base.get() | value & GUEST_CR4;
        // SAFETY: the base is what `init` set, the guest's bits are in every 64-bit processor.
        unsafe { write_cr4(wanted) };
    }

    /// Maps the guest's GDT frames into the window; the others become pages of zeroes.
    pub fn load_gdt(&self, frames: &[Mfn]) {
        for index in 0..selector::GUEST_GDT_PAGES {
            let entry = match frames.get(index) {
                Some(mfn) => mfn.0 << 12 | crate::mm::page_table::pte::RW,
                None => self.gdt_empty.get(),
            };
            let slot = self.gdt_ptes.get().wrapping_add(index);
            // SAFETY: `gdt_ptes` points at the 14 leaf entries of this vCPU's window.
            unsafe { slot.write_volatile(entry) };
            let va = gdt::window(self.id) + index as u64 * 4096;
            // SAFETY: INVLPG has no effect but on the TLB.
            unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
        }
    }

    /// Loads the LDT.
    pub fn load_ldt(&self, base: u64, entries: u32) {
        // SAFETY: `gdt_page` is this vCPU's reserved GDT page.
        let page = unsafe { &mut *self.gdt_page.get().cast::<[u64; 512]>() };
        gdt::set_ldt(page, base, entries);
        let selector = if entries == 0 { 0 } else { selector::LDT };
        // SAFETY: the descriptor was just written and is an LDT; what it holds is the guest's, and
        // only DPL-1 and DPL-3 descriptors matter to code outside ring 0.
        unsafe { asm!("lldt {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
    }
}

unsafe extern "C" {
    static __stub_start: u8;
    static stub_syscall: u8;
    static stub_syscall32: u8;
    static stub_sysenter: u8;
}

/// Sets this processor up to run vCPU `pc.cpu.id`: GDT, TSS, IDT, control registers, entry MSRs.
///
/// # Safety
/// The vCPU's area and GDT window must be mapped and filled, and the final page tables loaded.
pub unsafe fn init(pc: &mut PerCpu, f: &Features) {
    let area = Area::of(pc.cpu.id);
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer { limit: gdt::LIMIT, base: gdt::window(pc.cpu.id) };
    // SAFETY: the window is mapped and its reserved page holds the selectors loaded here.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {ss:e}",
            "xor {tmp:e}, {tmp:e}",
            "mov ds, {tmp:e}",
            "mov es, {tmp:e}",
            "mov fs, {tmp:e}",
            "mov gs, {tmp:e}",
            "ltr {tr:x}",
            "lldt {tmp:x}",
            pointer = in(reg) &raw const pointer,
            cs = const selector::SHIM_CS as i32,
            ss = in(reg) u32::from(selector::SHIM_SS),
            tr = in(reg) selector::TSS,
            tmp = out(reg) _,
        );
    }
    idt::load();
    let mut bits = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    for (have, bit) in [(f.xsave, cr4::OSXSAVE), (f.smep, cr4::SMEP), (f.umip, cr4::UMIP)] {
        if have {
            bits |= bit;
        }
    }
    pc.cpu.has_xsave.set(f.xsave);
    pc.cpu.cr4_base.set(bits);
    // SAFETY: every bit is one the processor has.
    unsafe { write_cr4(bits) };
    // SAFETY: the mode stays 64-bit with paging.
    unsafe { asm!("mov cr0, {}", in(reg) CR0, options(nostack)) };
    // SAFETY: clears the x87 state a loader may have left.
    unsafe { asm!("fninit", options(nostack)) };
    let star = u64::from(selector::SHIM_CS) << 32 | 0x23 << 48;
    // All flags SYSCALL can clear but the reserved ones: CF PF AF ZF SF TF IF DF OF IOPL NT RF AC ID.
    let fmask = 0x0025_7fd5;
    let entry =
        |symbol: *const u8| area.stub() + (symbol as u64 - (&raw const __stub_start) as u64);
    let registers = [
        (msr::nr::STAR, star),
        (msr::nr::LSTAR, entry(&raw const stub_syscall)),
        (msr::nr::CSTAR, entry(&raw const stub_syscall32)),
        (msr::nr::FMASK, fmask),
        (msr::nr::PAT, XEN_PAT),
        (msr::nr::FS_BASE, 0),
        (msr::nr::GS_BASE, 0),
        (msr::nr::KERNEL_GS_BASE, 0),
    ];
    let sysenter = [
        (msr::nr::SYSENTER_CS, u64::from(selector::SHIM_CS)),
        (msr::nr::SYSENTER_ESP, area.stack_top()),
        (msr::nr::SYSENTER_EIP, entry(&raw const stub_sysenter)),
    ];
    let no_sysenter = [(msr::nr::SYSENTER_CS, 0)];
    let sysenter = if f.sysenter { &sysenter[..] } else { &no_sysenter[..] };
    for (number, value) in registers.iter().chain(sysenter) {
        // SAFETY: every 64-bit processor has these; the entry points are this vCPU's copies of the
        // stubs, mapped executable.
        unsafe { msr::write(*number, *value) };
    }
    // SAFETY: SYSCALL leads to the stub now; NX is in every processor that runs this.
    unsafe { msr::set_bits(msr::nr::EFER, 1 | 1 << 11) };
}

/// Copies the stub template into a vCPU's page.
///
/// # Safety
/// `page` must be the writable frame that becomes the vCPU's stub page.
pub unsafe fn fill_stub(page: *mut u8) {
    // SAFETY: the template is 4 KiB of the image, page aligned; the caller gives a whole page.
    unsafe { page.copy_from_nonoverlapping(&raw const __stub_start, 4096) };
}
