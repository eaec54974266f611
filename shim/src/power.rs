//! Power-off and reset: ACPI, then Hyper-V's reset register, then the oldest ways.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use crate::acpi::{Gas, Power};
use crate::port;

static POWER: Once<Power> = Once::new();
static HV_RESET: AtomicBool = AtomicBool::new(false);

/// What ACPI says.
pub fn init(power: Power) {
    POWER.call_once(|| power);
}

/// The reset register of Hyper-V may be used.
pub fn use_hv_reset() {
    HV_RESET.store(true, Ordering::Relaxed);
}

fn write(register: &Gas, value: u32) {
    match register.space {
        Gas::IO if register.bits == 8 => port::write(register.address as u16, value as u8),
        Gas::IO => port::write(register.address as u16, value as u16),
        _ => crate::log!(Warn, "ACPI register in space {} is not supported", register.space),
    }
}

/// Powers the machine off.
pub fn off() -> ! {
    const SLP_EN: u32 = 1 << 13;
    if let Some(power) = POWER.get()
        && let (Some(pm1a), Some((type_a, type_b))) = (&power.pm1a_control, power.s5)
    {
        write(pm1a, u32::from(type_a) << 10 | SLP_EN);
        if let Some(pm1b) = &power.pm1b_control {
            write(pm1b, u32::from(type_b) << 10 | SLP_EN);
        }
    }
    wait_for_it();
    crate::log::print(format_args!("ACPI power-off had no effect; halted"));
    halt()
}

/// Resets the machine.
pub fn reset() -> ! {
    if HV_RESET.load(Ordering::Relaxed) {
        // SAFETY: the host offers the register; it ends this run.
        unsafe {
            crate::cpu::msr::try_write(hv_abi::msr::HV_X64_MSR_RESET, hv_abi::msr::RESET_ENABLE)
        };
        wait_for_it();
    }
    if let Some((register, value)) = POWER.get().and_then(|p| p.reset.as_ref()) {
        write(register, u32::from(*value));
        wait_for_it();
    }
    // The PCI reset register, then the keyboard controller's reset line.
    port::write(0xcf9, 6u8);
    port::write(0x64, 0xfeu8);
    wait_for_it();
    triple_fault()
}

fn wait_for_it() {
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
}

/// Ends the VM by a fault the processor cannot deliver.
pub fn triple_fault() -> ! {
    let empty = [0u16; 5];
    // SAFETY: with an empty IDT the UD2 cannot be delivered and the processor shuts down; nothing
    // runs after it.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) empty.as_ptr(), options(noreturn)) }
}

/// The boot cannot go on: time to read the message, then a reset.
pub fn reset_after_failure() -> ! {
    reset()
}

/// Stops this processor.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off; HLT waits for nothing.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
