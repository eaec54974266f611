//! The other processors: started at boot, each with a vCPU, then waiting in ring 0 until the guest
//! wants it ([`translate::vcpu_start`]). docs/smp.md has the whole story.
//!
//! They start one after the other, through one mailbox. A processor that does not answer in time is
//! reported and left out, its area goes to the next; should it come later, it finds that nobody
//! expects it, and stops.

use core::arch::global_asm;
use core::mem::size_of;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use spin::{Mutex, Once};
use translate::regs::CpuRegs;
use translate::vcpu::Vcpu;
use translate::{Ctx, vcpu_start};

use super::percpu::{Area, PerCpu};
use super::{Features, apic, mtrr, tsc};
use crate::mm::layout::MAX_VCPUS;
use crate::platform::Shim;
use crate::{hv, log, time, trap};

/// No processor is waited for: the last one has answered, or will not.
const TAKEN: u32 = u32::MAX;
const WITHDRAWN: u32 = u32::MAX - 1;
/// How long a processor may take to answer; on an emulated host it is slow.
const ANSWER_NS: u64 = 3_000_000_000;
/// How long it may then take to set itself up.
const SETUP_NS: u64 = 10_000_000_000;
/// How long one that the host starts by hypercall may take, before it is tried otherwise.
const HOST_NS: u64 = 1_000_000_000;
/// After INIT (Intel SDM 3A 9.4.4), and until the second SIPI.
const INIT_MS: u32 = 10;
const SIPI_NS: u64 = 20_000_000;

/// What a processor leaves free on top of its stack until it runs the guest: the guest's first
/// registers go there ([`trap::start`]).
const ROOM: u64 = 512;
const _: () = assert!(size_of::<CpuRegs>() as u64 <= ROOM);

/// The mailbox: APIC id waited for, its number, its stack, and the page tables for all.
static EXPECTED: AtomicU32 = AtomicU32::new(TAKEN);
static NUMBER: AtomicU32 = AtomicU32::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);
static FINAL_L4: AtomicU64 = AtomicU64::new(0);

static FEATURES: Once<Features> = Once::new();
/// How far the processor of this number is.
static STATE: [AtomicU8; MAX_VCPUS] = [const { AtomicU8::new(SETTING_UP) }; MAX_VCPUS];
const SETTING_UP: u8 = 0;
/// It waits.
const READY: u8 = 1;
/// It is not waited for, and stops.
const GIVEN_UP: u8 = 2;

/// A processor is set up, or is given up: whoever says so first.
fn move_on(number: u32, to: u8) -> bool {
    let state = &STATE[number as usize];
    state.compare_exchange(SETTING_UP, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}
/// The vCPU of this number has never run, and its processor leaves it alone while this is locked.
static NEW: [Mutex<bool>; MAX_VCPUS] = [const { Mutex::new(false) }; MAX_VCPUS];
/// There is a domain.
static DOMAIN: AtomicBool = AtomicBool::new(false);
/// Somebody ends the guest: everybody else stops.
static ENDED: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;

global_asm!(
    include_str!("trampoline.S"),
    taken = const TAKEN as i32,
    expected = sym EXPECTED,
    final_l4 = sym FINAL_L4,
    stack = sym STACK,
    number = sym NUMBER,
    processor_main = sym processor_main,
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static trampoline_far: u8;
    static trampoline_gdt_pointer: u8;
    static trampoline_cr3: u8;
    fn processor_entry();
}

/// What became of a processor that was to start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It waits for its vCPU.
    Ready,
    /// It does not come; its number is free.
    None,
    /// It came, and went wrong on what belongs to its number.
    Stuck,
}

/// What starting processors needs.
pub struct Starter {
    /// Page below 1 MiB the trampoline is in, if there is one.
    trampoline: Option<u64>,
}

impl Starter {
    /// Sets the mailbox and the trampoline up. `page` is the physical address of a free page below
    /// 1 MiB and where it is mapped, `boot_l4` the physical address of the boot's page tables,
    /// `final_l4` that of the shim's.
    pub fn new(
        features: Features,
        page: Option<(u64, *mut u8)>,
        boot_l4: u64,
        final_l4: u64,
    ) -> Self {
        FINAL_L4.store(final_l4, Ordering::SeqCst);
        FEATURES.call_once(|| features);
        let page = page.filter(|_| boot_l4 >> 32 == 0);
        if let Some((address, at)) = page {
            // SAFETY: the caller's promise: a mapped page that is nobody's.
            unsafe { fill_trampoline(at, address as u32, boot_l4 as u32) };
        }
        Self { trampoline: page.map(|(address, _)| address) }
    }

    /// Puts processors into the state in which SIPI starts them.
    pub fn init(&self, ids: &[u32]) {
        if self.trampoline.is_some() && !by_hypercall() {
            ids.iter().for_each(|&id| apic::send_init(id));
            time::wait_ms(INIT_MS);
        }
    }

    /// Starts a processor as number `number`, whose area is mapped and filled.
    pub fn start(&self, number: u32, apic_id: u32) -> Answer {
        NUMBER.store(number, Ordering::SeqCst);
        STACK.store(Area::of(number).stack_top() - ROOM, Ordering::SeqCst);
        EXPECTED.store(apic_id, Ordering::SeqCst);
        let begin = time::now_ns();
        let entry = processor_entry as *const () as u64;
        if by_hypercall() {
            if hv::vp::start(apic_id, entry) {
                let answer = answers(number, apic_id, HOST_NS);
                if answer != Answer::None {
                    return answer;
                }
            }
            // The host does not, or means something else by it: as on hosts without that.
            if self.trampoline.is_some() {
                apic::send_init(apic_id);
                time::wait_ms(INIT_MS);
            }
        }
        let Some(page) = self.trampoline else { return late(number, apic_id) };
        apic::send_sipi(apic_id, page);
        let answer = answers(number, apic_id, SIPI_NS);
        if answer != Answer::None {
            return answer;
        }
        if EXPECTED.load(Ordering::SeqCst) == apic_id {
            // The first one may get lost (Intel SDM 3A 9.4.4).
            apic::send_sipi(apic_id, page);
        }
        let left = ANSWER_NS.saturating_sub(time::now_ns().saturating_sub(begin));
        match answers(number, apic_id, left) {
            Answer::None => late(number, apic_id),
            answer => answer,
        }
    }
}

/// Gives a processor up, unless it was quicker.
fn late(number: u32, apic_id: u32) -> Answer {
    if withdraw(apic_id) { Answer::None } else { answers(number, apic_id, 0) }
}

/// Waits so long for a processor; one that has taken itself out of the mailbox is on the stack it was
/// given, and has longer.
fn answers(number: u32, apic_id: u32, limit_ns: u64) -> Answer {
    let state = &STATE[number as usize];
    let mut begin = time::now_ns();
    let mut came = false;
    while state.load(Ordering::SeqCst) == SETTING_UP {
        tsc::answer();
        if !came && EXPECTED.load(Ordering::SeqCst) != apic_id {
            came = true;
            begin = time::now_ns();
        }
        let limit_ns = if came { SETUP_NS } else { limit_ns };
        if time::now_ns().saturating_sub(begin) >= limit_ns {
            if !came {
                return Answer::None;
            }
            move_on(number, GIVEN_UP);
        }
        core::hint::spin_loop();
    }
    if state.load(Ordering::SeqCst) == READY { Answer::Ready } else { Answer::Stuck }
}

/// Whether the host starts processors by hypercall.
fn by_hypercall() -> bool {
    hv::get().is_some_and(|hv| hv.start_vp)
}

/// Nobody expects the processor any more. `false`: it was quicker.
fn withdraw(apic_id: u32) -> bool {
    EXPECTED.compare_exchange(apic_id, WITHDRAWN, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// Copies the trampoline and fills in what depends on where it is.
///
/// # Safety
/// `at` must be the mapped page at `address`, a page of the shim's.
unsafe fn fill_trampoline(at: *mut u8, address: u32, boot_l4: u32) {
    let start = &raw const trampoline_start;
    let offset = |symbol: *const u8| symbol as usize - start as usize;
    let len = offset(&raw const trampoline_end);
    // SAFETY: the trampoline is shorter than a page; the page is the caller's promise.
    unsafe { at.copy_from_nonoverlapping(start, len) };
    let add = |offset: usize, value: u32| {
        let word = at.wrapping_add(offset).cast::<u32>();
        // SAFETY: inside the page.
        let old = unsafe { word.read_unaligned() };
        // SAFETY: as above.
        unsafe { word.write_unaligned(old.wrapping_add(value)) };
    };
    add(offset(&raw const trampoline_far), address);
    add(offset(&raw const trampoline_gdt_pointer) + 2, address);
    add(offset(&raw const trampoline_cr3), boot_l4);
}

/// A started processor, on its stack and the shim's page tables.
extern "C" fn processor_main(number: u32) -> ! {
    let pc = Area::of(number).data() as *mut PerCpu;
    if let Some(features) = FEATURES.get() {
        // SAFETY: the starter has filled the area and waits for this processor, whose it is.
        let own = unsafe { &mut *pc };
        // SAFETY: area and GDT window are mapped and filled; the final page tables are loaded.
        unsafe { super::init(own, features) };
        own.cpu.cr3.set(FINAL_L4.load(Ordering::SeqCst));
        // First of all: what follows tells the time.
        if !tsc::follow(number) {
            move_on(number, GIVEN_UP);
            crate::power::halt();
        }
        apic::init(features);
        apic::note_id(number);
        let hv = hv::get();
        own.cpu.vp_index.set(hv.map_or(0, |hv| hv::init_cpu(number, hv)));
        let synic = hv.is_some_and(|hv| hv::synic::init_cpu(number, hv));
        time::init_timer(features, synic);
        if mtrr::follow() {
            log!(Warn, "processor {number} had other MTRRs than the first: they are the same now");
        }
    }
    *NEW[number as usize].lock() = true;
    if !move_on(number, READY) {
        crate::power::halt();
    }
    // SAFETY: the processor's own area, to which nobody has a reference now.
    unsafe { wait_for_guest(number, pc) }
}

/// Waits until the vCPU is up, then runs it.
///
/// # Safety
/// `pc` must be the processor's area with no live reference to it.
unsafe fn wait_for_guest(number: u32, pc: *mut PerCpu) -> ! {
    let is_up = || {
        DOMAIN.load(Ordering::SeqCst)
            && crate::guest::domain().vcpus[number as usize].online.load(Ordering::SeqCst)
    };
    // An interrupt that comes between the look and the halt ends the halt at once.
    while !is_up() {
        // SAFETY: interrupts are off: nobody else uses the cells of the processor's own part.
        time::before_halt(unsafe { &(*pc).cpu });
        trap::halt();
    }
    *NEW[number as usize].lock() = false;
    let regs = {
        // SAFETY: the vCPU is this processor's from here on: see `with_new_vcpu`.
        let own = unsafe { &mut *pc };
        own.cpu.runs.set(true);
        let plat = Shim { cpu: &own.cpu };
        let mut cx = Ctx { dom: crate::guest::domain(), vcpu: &mut own.vcpu, plat: &plat };
        vcpu_start::enter(&mut cx)
    };
    // SAFETY: the processor is set up, the area its own, and the registers the guest's.
    unsafe { trap::start(pc, regs) }
}

/// Other processors may look at the domain, and serve devices: what the host has signalled them until
/// now has not been looked at.
pub fn domain_is_there() {
    DOMAIN.store(true, Ordering::SeqCst);
    let others = others(0);
    if others != 0 {
        super::ipi::send(others, super::idt::vector::KICK);
    }
}

/// There is a domain, and it is complete.
pub fn has_domain() -> bool {
    DOMAIN.load(Ordering::SeqCst)
}

/// Runs `f` on a vCPU that has never run. `false` where there is none with this number.
pub fn with_new_vcpu(number: u32, f: &mut dyn FnMut(&mut Vcpu)) -> bool {
    let Some(new) = NEW.get(number as usize) else { return false };
    let is_new = new.lock();
    if !*is_new {
        return false;
    }
    let pc = Area::of(number).data() as *mut PerCpu;
    // SAFETY: the area of a processor that answered. While it is marked as new its processor makes no
    // reference to the vCPU (`wait_for_guest` and the interrupts meanwhile), and others only here,
    // under the lock.
    let vcpu = unsafe { &mut (*pc).vcpu };
    f(vcpu);
    true
}

/// The guest ends on this processor: the others stop. The second who wants to end it stops, too.
pub fn end_others(me: u32) {
    if ENDED.compare_exchange(NOBODY, me, Ordering::SeqCst, Ordering::SeqCst) == Err(me) {
        return;
    }
    stop_if_ended(me);
    let others = others(me);
    if others != 0 {
        super::ipi::send(others, super::idt::vector::KICK);
    }
}

/// Stops this processor for good if another one ends the guest.
#[inline]
pub fn stop_if_ended(me: u32) {
    let by = ENDED.load(Ordering::Relaxed);
    if by != NOBODY && by != me {
        crate::power::halt();
    }
}

/// Physical address of the shim's own L4.
pub fn final_l4() -> u64 {
    FINAL_L4.load(Ordering::Relaxed)
}

/// Processors that were started, but for one.
fn others(me: u32) -> u64 {
    let is_ready = |state: &AtomicU8| state.load(Ordering::Relaxed) == READY;
    let ready = STATE.iter().zip(0u32..).filter(|(state, _)| is_ready(state));
    ready.fold(1, |set, (_, number)| set | 1 << number) & !(1 << me)
}

/// Says that a processor is left out.
pub fn report_missing(apic_id: u32) {
    log!(Error, "the processor with APIC id {apic_id} does not start: the guest goes without it");
}

/// Says that a processor went wrong, and that it was the last.
pub fn report_stuck(apic_id: u32) {
    log!(
        Error,
        "the processor with APIC id {apic_id} is stuck, or its TSC is: the guest goes without it \
         and those behind it"
    );
}

const _: () = assert!(u64::BITS as usize == MAX_VCPUS, "sets of vCPUs are words");
