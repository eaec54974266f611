//! The console: a serial port where there is one, else the screen. What is typed on the machine's own
//! keyboard is input whichever it is.

use boot_abi::Framebuffer;
use translate::builder::cmdline::ConsoleDevice;

use crate::cpu::Cpu;
use crate::devices::keyboard;
use crate::{screen, serial};

/// Chooses the console. A serial port that was asked for and is not there is as good as none: what is
/// to be said is better said on the screen than nowhere.
pub fn init(wanted: ConsoleDevice, layout: Option<&Framebuffer>) {
    let ports: &[u16] = match wanted {
        ConsoleDevice::Auto => &[serial::COM1, serial::COM2],
        ConsoleDevice::Com1 => &[serial::COM1],
        ConsoleDevice::Com2 => &[serial::COM2],
        ConsoleDevice::Screen | ConsoleDevice::None => &[],
    };
    let has_port = ports.iter().any(|&port| serial::init(port));
    if let Some(layout) = layout.filter(|_| !has_port && wanted != ConsoleDevice::None) {
        screen::init(layout);
    }
}

/// Writes to it.
pub fn write_bytes(bytes: &[u8]) {
    serial::write_bytes(bytes);
    screen::write_bytes(bytes);
}

/// Takes what came for it; how many bytes there were.
pub fn read_bytes(cpu: &Cpu, into: &mut [u8]) -> usize {
    let count = serial::read_bytes(into);
    count + keyboard::read_bytes(cpu, into.get_mut(count..).unwrap_or_default())
}
