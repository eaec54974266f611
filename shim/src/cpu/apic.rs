//! Local APIC, in x2APIC mode where the processor has it, else through its registers in memory;
//! and the IOAPIC input of the serial port.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::idt::vector;
use super::{Features, msr, percpu};
use crate::mm::fixmap;
use crate::mm::layout::MAX_VCPUS;

const MODE_X2APIC: u8 = 1;
const MODE_XAPIC: u8 = 2;
static MODE: AtomicU8 = AtomicU8::new(0);
/// The timer counts TSC deadlines.
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Timer ticks per millisecond, for the counting mode.
static TICKS_PER_MS: AtomicU32 = AtomicU32::new(0);
/// Virtual addresses of the VP assist pages, by processor; 0 = none.
static VP_ASSIST: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
/// APIC ids, by processor.
static IDS: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];

/// Registers, by their offset in the xAPIC page.
mod reg {
    pub const ID: u32 = 0x20;
    pub const TPR: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const SVR: u32 = 0xf0;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}
const MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const LVT_NMI: u32 = 4 << 8;

fn read(register: u32) -> u32 {
    if MODE.load(Ordering::Relaxed) == MODE_X2APIC {
        // SAFETY: in x2APIC mode every register used here has its MSR.
        unsafe { msr::read(msr::nr::X2APIC_BASE + (register >> 4)) as u32 }
    } else {
        let address = (fixmap::LAPIC + u64::from(register)) as *const u32;
        // SAFETY: the boot mapped the APIC's page there before choosing this mode.
        unsafe { address.read_volatile() }
    }
}

fn write(register: u32, value: u32) {
    if MODE.load(Ordering::Relaxed) == MODE_X2APIC {
        // SAFETY: as above; the effects are those of interrupts, which the IDT is ready for.
        unsafe { msr::write(msr::nr::X2APIC_BASE + (register >> 4), u64::from(value)) };
    } else {
        let address = (fixmap::LAPIC + u64::from(register)) as *mut u32;
        // SAFETY: as above.
        unsafe { address.write_volatile(value) };
    }
}

/// Physical address of the register page, as the processor has it.
pub fn base() -> u64 {
    // SAFETY: every 64-bit processor has this MSR.
    unsafe { msr::read(msr::nr::APIC_BASE) & 0x000f_ffff_ffff_f000 }
}

/// Switches the local APIC on. In xAPIC mode its page must be mapped at [`fixmap::LAPIC`].
pub fn init(f: &Features) {
    if f.x2apic {
        // SAFETY: CPUID offers x2APIC; the APIC is enabled in the same write.
        unsafe { msr::set_bits(msr::nr::APIC_BASE, 3 << 10) };
        MODE.store(MODE_X2APIC, Ordering::Relaxed);
    } else {
        // SAFETY: sets only the global enable bit.
        unsafe { msr::set_bits(msr::nr::APIC_BASE, 1 << 11) };
        MODE.store(MODE_XAPIC, Ordering::Relaxed);
    }
    write(reg::TPR, 0);
    for lvt in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_ERROR] {
        write(lvt, MASKED);
    }
    write(reg::LVT_LINT1, LVT_NMI);
    write(reg::SVR, 0x100 | u32::from(vector::SPURIOUS));
}

/// This processor's APIC id.
pub fn id() -> u32 {
    let value = read(reg::ID);
    if MODE.load(Ordering::Relaxed) == MODE_X2APIC { value } else { value >> 24 }
}

/// Remembers this processor's APIC id under its number.
pub fn note_id(number: u32) {
    IDS[number as usize].store(id(), Ordering::Relaxed);
}

/// Delivery modes and the like of an interrupt to another processor (Intel SDM 3A 11.6.1).
mod icr {
    pub const ASSERT: u32 = 1 << 14;
    pub const PENDING: u32 = 1 << 12;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
}

/// Whether there is a way to interrupt the processor with an APIC id: an xAPIC knows 8 bits of it, all of
/// them set are everybody's.
pub fn reaches(apic_id: u32) -> bool {
    MODE.load(Ordering::Relaxed) == MODE_X2APIC || apic_id < 255
}

/// Sends an interrupt to the processor with an APIC id.
fn send_command(apic_id: u32, command: u32) {
    if MODE.load(Ordering::Relaxed) == MODE_X2APIC {
        let value = u64::from(apic_id) << 32 | u64::from(command);
        // Unlike other writes to registers this one may overtake stores before it.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: in x2APIC mode the register is there; what the interrupt leads to is the shim's.
        unsafe { msr::write(msr::nr::X2APIC_BASE + (reg::ICR >> 4), value) };
        return;
    }
    // The one before must have gone out. It has, at once, on every APIC that is emulated.
    for _ in 0..1_000_000 {
        if read(reg::ICR) & icr::PENDING == 0 {
            break;
        }
        core::hint::spin_loop();
    }
    write(reg::ICR_HIGH, apic_id << 24);
    write(reg::ICR, command);
}

/// Interrupts a processor, by its number.
pub fn send(number: u32, vector: u8) {
    let id = IDS.get(number as usize).map_or(0, |id| id.load(Ordering::Relaxed));
    send_command(id, icr::ASSERT | u32::from(vector));
}

/// INIT to the processor with an APIC id.
pub fn send_init(apic_id: u32) {
    send_command(apic_id, icr::ASSERT | icr::INIT);
}

/// SIPI: it starts in real mode at a page below 1 MiB.
pub fn send_sipi(apic_id: u32, page: u64) {
    send_command(apic_id, icr::ASSERT | icr::STARTUP | (page >> 12) as u32 & 0xff);
}

/// Uses a processor's VP assist page to leave out EOIs the hypervisor does not need (TLFS 10.3.5).
pub fn set_vp_assist(number: u32, page: &'static hv_abi::synic::VpAssistPage) {
    VP_ASSIST[number as usize].store(core::ptr::from_ref(page) as u64, Ordering::Relaxed);
}

/// End of interrupt.
#[inline]
pub fn eoi() {
    let assist = VP_ASSIST[percpu::current_id() as usize].load(Ordering::Relaxed);
    let assist = assist as *const hv_abi::synic::VpAssistPage;
    // SAFETY: null or the static page `set_vp_assist` got.
    if unsafe { assist.as_ref() }.is_some_and(hv_abi::synic::VpAssistPage::take_no_eoi) {
        return;
    }
    write(reg::EOI, 0);
}

/// Prepares the timer: by TSC deadline where there is one, else counting with the rate measured
/// against `wait_ms`, which waits that many milliseconds.
pub fn init_timer(f: &Features, wait_ms: impl Fn(u32)) {
    if f.tsc_deadline {
        write(reg::LVT_TIMER, LVT_TSC_DEADLINE | u32::from(vector::TIMER));
        TSC_DEADLINE.store(true, Ordering::Relaxed);
        return;
    }
    write(reg::TIMER_DIVIDE, 0b1011);
    if TICKS_PER_MS.load(Ordering::Relaxed) != 0 {
        // Measured on the first processor.
        write(reg::LVT_TIMER, u32::from(vector::TIMER));
        return;
    }
    write(reg::LVT_TIMER, MASKED | u32::from(vector::TIMER));
    write(reg::TIMER_INITIAL, u32::MAX);
    wait_ms(10);
    let ticks = u32::MAX - read(reg::TIMER_CURRENT);
    write(reg::TIMER_INITIAL, 0);
    TICKS_PER_MS.store((ticks / 10).max(1), Ordering::Relaxed);
    write(reg::LVT_TIMER, u32::from(vector::TIMER));
}

/// Arms the timer for a TSC value that is `ns` away, or disarms it. A count too long for the
/// counter fires early; the caller arms again.
pub fn arm_timer(deadline: Option<(u64, u64)>) {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        let tsc = deadline.map_or(0, |(tsc, _)| tsc.max(1));
        // SAFETY: CPUID offers the MSR; the interrupt it leads to is the shim's.
        unsafe { msr::write(msr::nr::TSC_DEADLINE, tsc) };
        return;
    }
    let count = deadline.map_or(0, |(_, ns)| {
        let ticks = u128::from(ns) * u128::from(TICKS_PER_MS.load(Ordering::Relaxed)) / 1_000_000;
        (ticks as u64).clamp(1, u64::from(u32::MAX)) as u32
    });
    write(reg::TIMER_INITIAL, count);
}

/// Routes an IOAPIC input to a vector of this processor; edge, active high as ISA lines are unless
/// `flags` (MADT interrupt source override, ACPI 6.5 5.2.12.5) say otherwise. `page` is the mapped
/// IOAPIC.
///
/// # Safety
/// `page` must be the mapped registers of an IOAPIC with input `input`.
pub unsafe fn route(page: u64, input: u32, flags: u16, vector: u8, apic_id: u32) {
    let select = page as *mut u32;
    let window = (page + 0x10) as *mut u32;
    let mut low = u32::from(vector);
    if flags & 3 == 3 {
        low |= 1 << 13;
    }
    if flags >> 2 & 3 == 3 {
        low |= 1 << 15;
    }
    for (register, value) in [(0x11, apic_id << 24), (0x10, low)] {
        // SAFETY: the caller's promise: index and window registers of an IOAPIC.
        unsafe { select.write_volatile(register + input * 2) };
        // SAFETY: as above.
        unsafe { window.write_volatile(value) };
    }
}
