//! Interrupts: the timer, the serial port, kicks. Each handler runs with interrupts off, does a
//! bounded amount of work and acknowledges at the local APIC.

use hv_abi::synic::MESSAGE_PAYLOAD_BYTES;
use translate::{console, time};

use crate::cpu::apic;
use crate::cpu::idt::vector;
use crate::cpu::percpu::PerCpu;
use crate::devices;
use crate::hv::synic::{self, Taken};

fn timer(pc: &mut PerCpu) {
    crate::time::fired(&pc.cpu);
    super::with_ctx(pc, time::timer_interrupt);
}

/// Handles one interrupt.
pub(super) fn handle(number: u8, pc: &mut PerCpu) {
    match number {
        vector::TIMER => {
            // First: the handler may arm the timer, and over that VM exit the host takes back its word
            // that it needs no EOI.
            apic::eoi();
            timer(pc);
            devices::settle(&pc.cpu);
            return;
        }
        vector::SINT => {
            // One message: for the next one the host interrupts again.
            let mut payload = [0; MESSAGE_PAYLOAD_BYTES];
            match synic::take_message(pc.cpu.id, &mut payload) {
                Taken::Timer => timer(pc),
                Taken::Channel(bytes) => {
                    devices::message(&pc.cpu, payload.get(..bytes).unwrap_or_default());
                }
                Taken::Nothing | Taken::Other => {}
            }
            devices::signals(&pc.cpu);
            devices::settle(&pc.cpu);
        }
        vector::SERIAL => super::with_ctx(pc, |cx| console::input(cx.dom, cx.plat)),
        vector::TSC_CHANGED => crate::time::tsc_changed(),
        vector::KICK => {}
        vector::SPURIOUS => return,
        other => {
            crate::log!(Warn, "interrupt on vector {other:#x}, which nothing uses");
        }
    }
    apic::eoi();
}
