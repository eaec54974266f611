//! The console on the screen firmware or boot loader has set up, where there is no serial port.
//!
//! Output is kept from the first byte on and drawn as soon as the framebuffer can be reached: with the
//! boot page tables if it lies below 4 GiB, else with the shim's own.

use core::sync::atomic::{AtomicBool, Ordering};

use boot_abi::Framebuffer;
use spin::{Mutex, MutexGuard};
use terminal::{Pixels, Screen, Terminal};

use crate::mm::fixmap;

struct State {
    terminal: Terminal,
    screen: Screen,
    memory: Memory,
}

/// The framebuffer.
struct Memory {
    /// Where it is mapped; 0 while it is not.
    address: u64,
    bytes: u64,
}

impl Pixels for Memory {
    fn store(&mut self, offset: usize, value: u32, bytes: usize) {
        let end = offset.checked_add(bytes).map_or(u64::MAX, |end| end as u64);
        if self.address == 0 || end > self.bytes {
            return;
        }
        let at = (self.address + offset as u64) as *mut u8;
        match bytes {
            // SAFETY: inside the framebuffer, which is mapped; it is nobody else's.
            4 => unsafe { at.cast::<u32>().write_volatile(value) },
            // SAFETY: as above; rows begin where the pitch says, so two bytes may lie askew.
            2 => unsafe { at.cast::<u16>().write_unaligned(value as u16) },
            _ => {
                for (n, byte) in value.to_le_bytes().into_iter().take(bytes).enumerate() {
                    // SAFETY: as above.
                    unsafe { at.wrapping_add(n).write_volatile(byte) };
                }
            }
        }
    }
}

static STATE: Mutex<State> = Mutex::new(State {
    terminal: Terminal::new(),
    screen: Screen::new(),
    memory: Memory { address: 0, bytes: 0 },
});

static IS_USED: AtomicBool = AtomicBool::new(false);

/// How often a processor looks whether the screen is free, as with the serial port.
const PATIENCE: u32 = 10_000_000;

fn take() -> Option<MutexGuard<'static, State>> {
    (0..PATIENCE).find_map(|_| {
        let free = STATE.try_lock();
        if free.is_none() {
            core::hint::spin_loop();
        }
        free
    })
}

impl State {
    fn draw(&mut self) {
        if self.memory.address != 0 {
            self.screen.draw(&self.terminal.grid, &mut self.memory);
        }
    }
}

/// Makes the screen the console, if it is one that can be drawn on.
pub fn init(layout: &Framebuffer) {
    let Some(mut state) = take() else { return };
    let Some((columns, rows)) = state.screen.attach(layout) else { return };
    let Some(bytes) = layout.bytes().filter(|&bytes| bytes <= fixmap::SCREEN_BYTES) else { return };
    state.terminal.grid.resize(columns, rows);
    state.memory.bytes = bytes;
    if layout.address + bytes <= crate::boot::IDENTITY_END {
        state.memory.address = layout.address;
        let State { screen, memory, .. } = &mut *state;
        screen.blank(memory);
    }
    IS_USED.store(true, Ordering::Relaxed);
}

/// Whether the screen is the console.
pub fn is_used() -> bool {
    IS_USED.load(Ordering::Relaxed)
}

/// From now on the framebuffer is at its place in the shim's own tables.
pub fn is_mapped(layout: &Framebuffer) {
    let Some(mut state) = take() else { return };
    let was_drawn = state.memory.address != 0;
    state.memory.address = fixmap::SCREEN + (layout.address & 0xfff);
    if !was_drawn {
        let State { screen, memory, .. } = &mut *state;
        screen.blank(memory);
        state.draw();
    }
}

/// Shows output.
pub fn write_bytes(bytes: &[u8]) {
    if is_used()
        && let Some(mut state) = take()
    {
        state.terminal.write(bytes);
        state.draw();
    }
}
