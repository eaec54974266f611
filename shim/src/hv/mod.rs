//! Hyper-V underneath: what it offers, and the set-up of what is used. Each feature is asked for
//! by its own bit, because real hosts differ; whatever is missing has its fallback.

pub mod crash;
pub mod synic;
pub mod vmbus;
pub mod vp;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hv_abi::HvStatus;
use hv_abi::cpuid::{
    self as hvid, Features, INTERFACE_HV1, LEAF_FEATURES, LEAF_INTERFACE, LEAF_RECOMMENDATIONS,
    LEAF_VENDOR, MIN_MAX_LEAF, Privileges, Recommendations, VENDOR_MICROSOFT,
};
use hv_abi::guest_os_id::GuestOsId;
use hv_abi::hypercall::{CallCode, Control, HvResult};
use hv_abi::msr::{self as hvmsr, PageMsr, ReenlightenmentControl};
use hv_abi::reference_tsc::{ReferenceTsc, ReferenceTscPage};
use spin::{Mutex, Once};
use zerocopy::{Immutable, IntoBytes};

use crate::cpu::{cpuid, msr, percpu};
use crate::mm::layout::MAX_VCPUS;
use crate::mm::{fixmap, frames, phys_to_virt};

/// What the host offers and the shim may use.
#[derive(Clone, Copy, Debug)]
pub struct Enlightenments {
    /// The host cannot read this machine's memory, where everything is that it is to read.
    pub isolated: bool,
    /// Reference counter MSR.
    pub ref_count: bool,
    /// Reference TSC page.
    pub ref_tsc: bool,
    /// Frequency MSRs.
    pub frequencies: bool,
    /// SynIC.
    pub synic: bool,
    /// Synthetic timers.
    pub stimer: bool,
    /// ... in direct mode.
    pub stimer_direct: bool,
    /// Hypercall page.
    pub hypercall: bool,
    /// TSC invariant control MSR.
    pub tsc_invariant: bool,
    /// Re-enlightenment MSRs: the TSC keeps its rate after a move, if need be by emulation.
    pub reenlightenment: bool,
    /// VP index MSR.
    pub vp_index: bool,
    /// VP run time MSR.
    pub vp_runtime: bool,
    /// Reset MSR.
    pub reset: bool,
    /// APIC MSRs and the VP assist page.
    pub apic: bool,
    /// Crash MSRs.
    pub crash: bool,
    /// TLB flushes on other processors by hypercall are recommended.
    pub remote_flush: bool,
    /// Interrupts to other processors by hypercall are recommended.
    pub cluster_ipi: bool,
    /// The Ex forms of these.
    pub ex_masks: bool,
    /// Processors are started by hypercall.
    pub start_vp: bool,
    /// Spin count after which to tell the host; `u32::MAX` = never.
    pub spin_limit: u32,
}

static HV: Once<Enlightenments> = Once::new();
static HYPERCALL: AtomicU64 = AtomicU64::new(0);
/// Bytes of a hypercall's input, and words.
const INPUT_BYTES: u64 = 1024;
const INPUT_WORDS: usize = INPUT_BYTES as usize / 8;
/// Physical addresses of the processors' places for hypercall inputs.
static INPUTS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
static VP_INDEX: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
static REF_TSC: Once<&'static ReferenceTscPage> = Once::new();

/// What the host offers, once [`detect`] has seen it.
pub fn get() -> Option<&'static Enlightenments> {
    HV.get()
}

fn leaf_bytes(leaf: u32) -> [u32; 4] {
    let r = cpuid(leaf, 0);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Looks for Hyper-V. `without` says which features to leave alone.
pub fn detect(without: impl Fn(&str) -> bool) -> Option<&'static Enlightenments> {
    if cpuid(1, 0).ecx & hvid::CPUID_1_ECX_HYPERVISOR == 0 {
        return None;
    }
    let [max, vendor @ ..] = leaf_bytes(LEAF_VENDOR);
    if vendor != VENDOR_MICROSOFT
        || max < MIN_MAX_LEAF
        || cpuid(LEAF_INTERFACE, 0).eax != INTERFACE_HV1
    {
        return None;
    }
    let [eax, ebx, _, edx] = leaf_bytes(LEAF_FEATURES);
    let privileges = Privileges::from_eax_ebx(eax, ebx);
    let features = Features::from_bits_retain(edx);
    let [hints, spin_limit, ..] = leaf_bytes(LEAF_RECOMMENDATIONS);
    let hints = Recommendations::from_bits_retain(hints);
    let has = |privilege, name| privileges.contains(privilege) && !without(name);
    let hypercall = has(Privileges::ACCESS_HYPERCALL_MSRS, "hypercall");
    let synic = has(Privileges::ACCESS_SYNIC_REGS, "synic");
    let stimer = has(Privileges::ACCESS_SYNTHETIC_TIMER_REGS, "stimer");
    let vp_index = has(Privileges::ACCESS_VP_INDEX, "vp-index");
    let names_processors = hypercall && vp_index;
    Some(HV.call_once(|| Enlightenments {
        isolated: privileges.contains(Privileges::ISOLATION),
        ref_count: has(Privileges::ACCESS_PARTITION_REFERENCE_COUNTER, "ref-count"),
        ref_tsc: has(Privileges::ACCESS_PARTITION_REFERENCE_TSC, "ref-tsc"),
        frequencies: has(Privileges::ACCESS_FREQUENCY_REGS, "frequencies")
            && features.contains(Features::FREQUENCY_MSRS),
        synic,
        stimer,
        stimer_direct: stimer
            && features.contains(Features::DIRECT_SYNTHETIC_TIMERS)
            && !without("stimer-direct"),
        hypercall,
        tsc_invariant: has(Privileges::ACCESS_TSC_INVARIANT_CONTROLS, "tsc-invariant"),
        reenlightenment: has(Privileges::ACCESS_REENLIGHTENMENT_CONTROLS, "reenlightenment"),
        vp_index,
        vp_runtime: has(Privileges::ACCESS_VP_RUN_TIME_REG, "vp-runtime"),
        reset: has(Privileges::ACCESS_RESET_REG, "reset"),
        apic: has(Privileges::ACCESS_INTR_CTRL_REGS, "apic-assist"),
        crash: features.contains(Features::GUEST_CRASH_MSRS) && !without("crash"),
        // Their inputs name processors by VP index.
        remote_flush: names_processors
            && hints.contains(Recommendations::REMOTE_TLB_FLUSH)
            && !without("tlbflush"),
        cluster_ipi: names_processors
            && hints.contains(Recommendations::CLUSTER_IPI)
            && !without("ipi"),
        ex_masks: hints.contains(Recommendations::EX_PROCESSOR_MASKS) && !without("ex-masks"),
        start_vp: hypercall && has(Privileges::START_VIRTUAL_PROCESSOR, "start-vp"),
        spin_limit,
    }))
}

/// The build number in the guest OS id: this crate's version.
const OS_VERSION: u32 = 0x0001_0000;

/// Sets up what is per VM: guest OS id, hypercall page, reference TSC page. The frames' mappings
/// are made by the caller through `map_hypercall(physical address)`.
pub fn init_vm(hv: &Enlightenments, map_hypercall: impl FnOnce(u64) -> bool) {
    if hv.hypercall {
        let id = GuestOsId::open_source(GuestOsId::OS_TYPE_XEN, 0, OS_VERSION, 0);
        // SAFETY: the host offers the hypercall MSRs; the id only tells who we are.
        unsafe { msr::write(hvmsr::HV_X64_MSR_GUEST_OS_ID, id.0) };
        if let Some(page) = frames::alloc(1, 4096).filter(|&page| map_hypercall(page)) {
            // SAFETY: the page is the shim's and mapped executable, read-only.
            unsafe { msr::write(hvmsr::HV_X64_MSR_HYPERCALL, PageMsr::enabled_at(page).0) };
            HYPERCALL.store(fixmap::HYPERCALL_PAGE, Ordering::Release);
        }
    }
    if hv.tsc_invariant {
        // From here on CPUID shows the invariant TSC, and the host scales it wherever the VM runs.
        // SAFETY: offered by the host.
        unsafe {
            msr::write(hvmsr::HV_X64_MSR_TSC_INVARIANT_CONTROL, hvmsr::TSC_INVARIANT_EXPOSE);
        }
    }
    if hv.ref_tsc
        && let Some(page) = frames::alloc(1, 4096)
    {
        // SAFETY: the page is the shim's own; the host writes clock parameters into it.
        unsafe { msr::write(hvmsr::HV_X64_MSR_REFERENCE_TSC, PageMsr::enabled_at(page).0) };
        // SAFETY: a page of atomics in the direct map, never given back.
        let page = unsafe { &*phys_to_virt(page).cast::<ReferenceTscPage>() };
        REF_TSC.call_once(|| page);
    }
}

/// Sets up what is per processor: VP index, hypercall input, VP assist page. Returns the VP index.
pub fn init_cpu(cpu: u32, hv: &Enlightenments) -> u32 {
    let index = vp_index(hv);
    VP_INDEX[cpu as usize].store(index, Ordering::Relaxed);
    if hv.hypercall {
        INPUTS[cpu as usize].store(input_place().unwrap_or(0), Ordering::Release);
    }
    if hv.apic
        && let Some(page) = frames::alloc(1, 4096)
    {
        // SAFETY: the page is the shim's own; the host writes the EOI hint into it.
        unsafe { msr::write(hvmsr::HV_X64_MSR_VP_ASSIST_PAGE, PageMsr::enabled_at(page).0) };
        // SAFETY: a page of atomics in the direct map, never given back.
        let page = unsafe { &*phys_to_virt(page).cast::<hv_abi::synic::VpAssistPage>() };
        crate::cpu::apic::set_vp_assist(cpu, page);
    }
    index
}

/// The calling processor's VP index.
pub fn current_vp_index() -> u32 {
    VP_INDEX[percpu::current_id() as usize].load(Ordering::Relaxed)
}

/// This processor's VP index; 0 where the host does not say.
fn vp_index(hv: &Enlightenments) -> u32 {
    if !hv.vp_index {
        return 0;
    }
    // SAFETY: offered by the host.
    unsafe { msr::read(hvmsr::HV_X64_MSR_VP_INDEX) as u32 }
}

/// Asks the host to emulate the TSC at its present rate after a move to a host of another rate,
/// and to tell this processor so by `vector`. `false` where it does not offer that.
pub fn keep_tsc_rate(vector: u8) -> bool {
    let Some(hv) = get().filter(|hv| hv.reenlightenment) else { return false };
    let notify = ReenlightenmentControl::notify(vector, vp_index(hv));
    for (number, value) in [
        (hvmsr::HV_X64_MSR_REENLIGHTENMENT_CONTROL, notify.0),
        (hvmsr::HV_X64_MSR_TSC_EMULATION_CONTROL, hvmsr::TSC_EMULATION_ENABLED),
    ] {
        // SAFETY: offered by the host; the vector has its handler.
        unsafe { msr::write(number, value) };
    }
    true
}

/// The reference TSC page's conversion, if the host gives one that is valid now.
pub fn reference_tsc() -> Option<ReferenceTsc> {
    REF_TSC.get()?.read()
}

/// The reference counter by its MSR, in 100 ns (a VM exit).
pub fn reference_count() -> Option<u64> {
    // SAFETY: offered by the host.
    get().filter(|hv| hv.ref_count).map(|_| unsafe { msr::read(hvmsr::HV_X64_MSR_TIME_REF_COUNT) })
}

/// TSC frequency in Hz as the host states it.
pub fn tsc_frequency() -> Option<u64> {
    // SAFETY: offered by the host.
    get()
        .filter(|hv| hv.frequencies)
        .map(|_| unsafe { msr::read(hvmsr::HV_X64_MSR_TSC_FREQUENCY) })
        .filter(|&hz| hz != 0)
}

/// Run time of this VP in ns.
pub fn vp_runtime_ns() -> Option<u64> {
    // SAFETY: offered by the host.
    get()
        .filter(|hv| hv.vp_runtime)
        .map(|_| unsafe { msr::read(hvmsr::HV_X64_MSR_VP_RUNTIME) }.wrapping_mul(100))
}

/// A hypercall; `first` and `second` are what RDX and R8 are to hold.
///
/// # Safety
/// They must be inputs that let the host change no memory but what the call is about.
unsafe fn call(control: Control, first: u64, second: u64) -> HvStatus {
    let page = HYPERCALL.load(Ordering::Acquire);
    if page == 0 {
        return HvStatus::INVALID_HYPERCALL_CODE;
    }
    let result: u64;
    // SAFETY: the hypercall page is set up; the rest is the caller's promise.
    unsafe {
        core::arch::asm!("call {page}", page = in(reg) page,
            in("rcx") control.0, in("rdx") first, in("r8") second, lateout("rax") result,
            lateout("rcx") _, lateout("rdx") _, lateout("r8") _, lateout("r9") _,
            lateout("r10") _, lateout("r11") _);
    }
    HvResult(result).status()
}

/// A fast hypercall with one or two register inputs and no output.
fn fast_hypercall(code: CallCode, first: u64, second: u64) -> HvStatus {
    // SAFETY: the inputs are values, not addresses.
    unsafe { call(Control::new(code).fast(), first, second) }
}

/// A hypercall whose input is a structure; it has no output.
fn hypercall<T: IntoBytes + Immutable>(code: CallCode, input: &T) -> HvStatus {
    hypercall_with(Control::new(code), input.as_bytes())
}

/// Copies an input to this processor's place for it; `None`: there is none, or less room.
fn put_input(bytes: &[u8], room: u64) -> Option<u64> {
    let place = INPUTS[percpu::current_id() as usize].load(Ordering::Acquire);
    if place == 0 || bytes.len() as u64 > room {
        return None;
    }
    // SAFETY: this processor's place, which only this module uses, with interrupts off.
    unsafe { phys_to_virt(place).copy_from(bytes.as_ptr(), bytes.len()) };
    Some(place)
}

/// A hypercall with its input in memory; it has no output.
fn hypercall_with(control: Control, bytes: &[u8]) -> HvStatus {
    let Some(place) = put_input(bytes, INPUT_BYTES) else {
        return HvStatus::INVALID_HYPERCALL_INPUT;
    };
    // SAFETY: the input lies where RDX says, and there is no output.
    unsafe { call(control, place, 0) }
}

/// A hypercall of one rep with one word of output.
fn hypercall_for_u32<T: IntoBytes + Immutable>(code: CallCode, input: &T) -> Option<u32> {
    let room = INPUT_BYTES - 8;
    let place = put_input(input.as_bytes(), room)?;
    let output = place + room;
    // SAFETY: the input lies where RDX says, the output goes behind it into the same place.
    unsafe { call(Control::new(code).with_reps(1, 0), place, output) }.ok().ok()?;
    // SAFETY: behind the input in this processor's place; the host has written it.
    Some(unsafe { phys_to_virt(output).cast::<u32>().read_volatile() })
}

/// A processor's place for hypercall inputs: several share a page.
fn input_place() -> Option<u64> {
    static NEXT: Mutex<u64> = Mutex::new(0);
    let mut next = NEXT.lock();
    if next.is_multiple_of(4096) {
        *next = frames::alloc(1, 4096)?;
    }
    let place = *next;
    *next += INPUT_BYTES;
    Some(place)
}

/// Tells the host that this processor spins.
pub fn notify_long_spin_wait(spins: u32) {
    if get().is_some_and(|hv| hv.spin_limit != u32::MAX) {
        fast_hypercall(CallCode::NOTIFY_LONG_SPIN_WAIT, u64::from(spins), 0);
    }
}
