//! 16550 serial ports: the guest's console device and the shim's own log.

use core::sync::atomic::{AtomicU16, Ordering};

use spin::{Mutex, MutexGuard};

use crate::port;

/// COM1, COM2.
pub const COM1: u16 = 0x3f8;
/// See [`COM1`].
pub const COM2: u16 = 0x2f8;
/// Bytes the transmitter takes when it is empty.
const FIFO: usize = 16;
const LSR_DATA: u8 = 1;
const LSR_EMPTY: u8 = 1 << 5;

/// One processor at a time uses the port.
static BUSY: Mutex<()> = Mutex::new(());
/// How often a processor looks whether the port is free. A report of a crash gets out even if the one that
/// has the port stopped with it.
const PATIENCE: u32 = 10_000_000;

/// Port of the console, 0 = none.
static CONSOLE: AtomicU16 = AtomicU16::new(0);

fn read(register: u16) -> u8 {
    port::read(register)
}

fn write(register: u16, value: u8) {
    port::write(register, value);
}

/// Whether a 16550 answers at `base` (its scratch register keeps what is written).
fn present(base: u16) -> bool {
    write(base + 7, 0x5a);
    let first = read(base + 7);
    write(base + 7, 0xa5);
    first == 0x5a && read(base + 7) == 0xa5
}

/// Makes the port at `base` the console, 115200 8n1, FIFOs on; `false` where there is none.
pub fn init(base: u16) -> bool {
    if !present(base) {
        return false;
    }
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        write(base + register, value);
    }
    CONSOLE.store(base, Ordering::Relaxed);
    true
}

/// The console's port and its ISA interrupt.
pub fn interrupt_line() -> Option<u8> {
    match CONSOLE.load(Ordering::Relaxed) {
        COM1 => Some(4),
        COM2 => Some(3),
        _ => None,
    }
}

/// Lets received bytes interrupt.
pub fn enable_interrupt() {
    let base = CONSOLE.load(Ordering::Relaxed);
    if base != 0 {
        write(base + 1, 1);
    }
}

/// Waits until the transmitter is empty; gives up on one that does not move.
fn wait_empty(base: u16) -> bool {
    (0..200_000).any(|_| {
        let empty = read(base + 5) & LSR_EMPTY != 0;
        if !empty {
            core::hint::spin_loop();
        }
        empty
    })
}

fn take() -> Option<MutexGuard<'static, ()>> {
    (0..PATIENCE).find_map(|_| {
        let free = BUSY.try_lock();
        if free.is_none() {
            core::hint::spin_loop();
        }
        free
    })
}

/// Writes to the console: one status read for each FIFO's worth, as every access is a VM exit.
pub fn write_bytes(bytes: &[u8]) {
    let base = CONSOLE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    let _busy = take();
    for chunk in bytes.chunks(FIFO) {
        if !wait_empty(base) {
            return;
        }
        // Not a string instruction: hypervisors emulate that, and leave for each byte all the same.
        chunk.iter().for_each(|&byte| write(base, byte));
    }
}

/// Takes what was received.
pub fn read_bytes(into: &mut [u8]) -> usize {
    let base = CONSOLE.load(Ordering::Relaxed);
    let _busy = take();
    let mut count = 0;
    while base != 0 && count < into.len() && read(base + 5) & LSR_DATA != 0 {
        into[count] = read(base);
        count += 1;
    }
    count
}
