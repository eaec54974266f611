//! Interrupts: the timer, the serial port, kicks. Each handler runs with interrupts off, does a
//! bounded amount of work and acknowledges at the local APIC.

use translate::{console, time};

use crate::cpu::apic;
use crate::cpu::idt::vector;
use crate::cpu::percpu::PerCpu;

/// Handles one interrupt.
pub(super) fn handle(number: u8, pc: &mut PerCpu) {
    match number {
        vector::TIMER => {
            pc.cpu.armed.set(None);
            super::with_ctx(pc, time::timer_interrupt);
        }
        vector::SINT => {
            if crate::hv::synic::take_timer_message(pc.cpu.id) {
                pc.cpu.armed.set(None);
                super::with_ctx(pc, time::timer_interrupt);
            }
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
