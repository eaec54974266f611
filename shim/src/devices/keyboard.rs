//! The keyboard of the machine's window: what is typed there is input of the guest's console, beside
//! what comes by a serial port.

use alloc::sync::Arc;

use pv_frontends::keyboard::{Keyboard, Sink};
use spin::Once;
use translate::console;

use crate::cpu::Cpu;
use crate::{hv, time};

static KEYBOARD: Once<Arc<Keyboard<Input>>> = Once::new();

/// The guest's console.
pub(super) struct Input;

impl Sink for Input {
    fn typed(&self) {
        // What is typed before there is a guest waits.
        super::with_env(|env| console::input_on(env.dom, env.plat, env.here));
    }
}

/// The driver.
pub(super) fn start() -> Arc<Keyboard<Input>> {
    let first = hv::vp::indices(1).first().copied().unwrap_or_default();
    Arc::clone(KEYBOARD.call_once(|| Arc::new(Keyboard::new(Input, first))))
}

/// Takes what was typed; how many bytes there were. The console may be locked: what waits for the room
/// this makes is read later.
pub fn read_bytes(cpu: &Cpu, into: &mut [u8]) -> usize {
    let (Some(keyboard), Some(bus)) = (KEYBOARD.get(), super::BUS.get()) else { return 0 };
    let count = keyboard.take(bus, into);
    if count > 0 && bus.next_poll_ns() == 0 {
        time::set_device_timer(cpu, Some(0));
    }
    count
}
