//! Interrupt descriptor table: one for all vCPUs. Every gate leads to its 16-byte stub.

use core::arch::asm;
use core::cell::UnsafeCell;

use translate::regs::selector;

use crate::cpu::percpu::{IST_DB, IST_DF, IST_MC, IST_NMI};

/// Vectors the shim takes for interrupts; all below are the guest's to name.
pub mod vector {
    /// First vector a device or processor interrupt may have; exceptions and guest software
    /// interrupts end here, so a guest's INT n never looks like one (its gates are DPL 0).
    pub const FIRST_IRQ: u32 = 0xe8;
    /// Timer (synthetic timer in direct mode, or the local APIC's).
    pub const TIMER: u8 = 0xec;
    /// Serial port.
    pub const SERIAL: u8 = 0xe8;
    /// The VM was moved to a host of another TSC rate (re-enlightenment).
    pub const TSC_CHANGED: u8 = 0xee;
    /// SynIC messages and events (SINT 2: VMBus, and timers in message mode).
    pub const SINT: u8 = 0xf3;
    /// A TLB flush another vCPU waits for.
    pub const FLUSH: u8 = 0xfa;
    /// Kick from another vCPU.
    pub const KICK: u8 = 0xfb;
    /// Spurious interrupt of the local APIC.
    pub const SPURIOUS: u8 = 0xff;
}

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gate([u64; 2]);

#[repr(C, align(4096))]
struct Table(UnsafeCell<[Gate; 256]>);

// SAFETY: written before other processors run, later only gate by gate with aligned 8-byte stores
// (the DPL lies in the low word), which the processor reads whole.
unsafe impl Sync for Table {}

/// The boot's, and the vCPUs'.
static BOOT_IDT: Table = Table(UnsafeCell::new([Gate([0; 2]); 256]));
static IDT: Table = Table(UnsafeCell::new([Gate([0; 2]); 256]));

unsafe extern "C" {
    static trap_stubs: u8;
}

fn low_word(address: u64, ist: u8, dpl: u8) -> u64 {
    (address & 0xffff)
        | u64::from(selector::SHIM_CS) << 16
        | u64::from(ist) << 32
        | (0x8e | u64::from(dpl) << 5) << 40
        | (address >> 16 & 0xffff) << 48
}

fn ist_of(vector: u8) -> u8 {
    match vector {
        1 => IST_DB,
        2 => IST_NMI,
        8 => IST_DF,
        18 => IST_MC,
        _ => 0,
    }
}

fn write_gate(table: &Table, vector: u8, cs: u16, ist: u8, dpl: u8) {
    let address = (&raw const trap_stubs) as u64 + u64::from(vector) * 16;
    let low = low_word(address, ist, dpl) & !(0xffff << 16) | u64::from(cs) << 16;
    let gate = table.0.get().cast::<Gate>().wrapping_add(usize::from(vector));
    // SAFETY: `vector` < 256 keeps the pointer in the table; see `Sync` above for other readers.
    unsafe { gate.write_volatile(Gate([low, address >> 32])) };
}

/// Fills the table for the boot GDT (code selector 8), without separate stacks, and loads it.
pub fn init_boot() {
    for vector in 0..=255 {
        write_gate(&BOOT_IDT, vector, 8, 0, 0);
    }
    load_table(&BOOT_IDT);
}

/// Fills the table for the vCPUs' GDTs and stacks.
pub fn init() {
    for vector in 0..=255 {
        write_gate(&IDT, vector, selector::SHIM_CS, ist_of(vector), 0);
    }
}

/// Whether INT n may come through the gate of a vector: not where the stub expects what only the
/// processor pushes, an error code, or has a stack of its own. Those INT n are #GP, and emulated.
fn may_be_open(vector: u8) -> bool {
    u32::from(vector) < vector::FIRST_IRQ && ist_of(vector) == 0 && !has_error_code(vector)
}

/// Whether the processor pushes an error code for an exception.
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Lets guest user mode reach a vector by INT n, or not.
pub fn set_user(vector: u8, user: bool) {
    if may_be_open(vector) {
        write_gate(&IDT, vector, selector::SHIM_CS, 0, if user { 3 } else { 0 });
    }
}

/// Whether guest user mode reaches a vector by INT n.
pub fn is_user(vector: u8) -> bool {
    let gate = IDT.0.get().cast::<Gate>().wrapping_add(usize::from(vector));
    // SAFETY: `vector` < 256 keeps the pointer in the table, which is written by whole words.
    let Gate([low, _]) = unsafe { gate.read_volatile() };
    low >> 45 & 3 == 3
}

/// Loads the vCPUs' table on this processor, whose GDT is loaded.
pub fn load() {
    load_table(&IDT);
}

fn load_table(table: &'static Table) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer { limit: 4095, base: table.0.get() as u64 };
    // SAFETY: the table is static and every gate in it leads to a stub.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack)) };
}
