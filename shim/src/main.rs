//! Pontoon's ring 0: the layer between a Hyper-V VM and a Xen PV guest. The only crate with
//! `unsafe` and assembly.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "ring 0: every block says why it holds")]

extern crate alloc;

mod acpi;
mod boot;
mod console;
mod cpu;
mod devices;
mod fatal;
mod guest;
mod hv;
mod log;
mod mm;
mod platform;
mod port;
mod power;
mod rtc;
mod screen;
mod serial;
mod time;
mod trace;
mod trap;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fatal::panic(info)
}
