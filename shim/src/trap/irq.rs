//! Interrupts: the timer, the serial port, kicks. Each handler runs with interrupts off, does a
//! bounded amount of work and acknowledges at the local APIC.

use translate::evtchn::Here;
use translate::{console, time};

use crate::cpu::apic;
use crate::cpu::idt::vector;
use crate::cpu::percpu::PerCpu;
use crate::cpu::{Cpu, ipi, smp};
use crate::devices;

fn timer(pc: &mut PerCpu) {
    crate::time::fired(&pc.cpu);
    super::with_ctx(pc, time::timer_interrupt);
    if crate::time::watch::look() {
        super::with_ctx(pc, time::scale_changed);
    }
}

/// An interrupt on a vector below the shim's own: one that the firmware left behind.
#[cold]
pub(super) fn stray(vector: u8) {
    crate::log!(Warn, "interrupt on vector {vector:#x}, which nothing uses");
    apic::eoi();
}

/// Handles one interrupt of a processor whose vCPU has never run.
///
/// It serves devices once there is a guest: channels of the host may be bound to it.
pub(super) fn handle_new(number: u8, cpu: &Cpu) {
    smp::stop_if_ended(cpu.id);
    apic::eoi();
    match number {
        vector::FLUSH => ipi::serve(cpu),
        vector::SINT | vector::KICK if smp::has_domain() => {
            if devices::message(cpu) {
                crate::time::fired(cpu);
            }
            devices::signals(cpu);
            devices::leave(cpu);
        }
        vector::TIMER => {
            crate::time::fired(cpu);
            if smp::has_domain() {
                devices::settle_after_timer(cpu);
            }
        }
        _ => {}
    }
}

/// Handles one interrupt.
pub(super) fn handle(number: u8, pc: &mut PerCpu) {
    match number {
        vector::TIMER => {
            // First: the handler may arm the timer, and over that VM exit the host takes back its word
            // that it needs no EOI.
            apic::eoi();
            timer(pc);
            devices::settle_after_timer(&pc.cpu);
            super::look_again(pc);
            return;
        }
        vector::SINT => {
            // First, as above.
            apic::eoi();
            let is_timer = devices::message(&pc.cpu);
            if is_timer {
                timer(pc);
            }
            let stays = devices::signals(&pc.cpu);
            if is_timer {
                devices::settle_after_timer(&pc.cpu);
            } else {
                devices::settle(&pc.cpu);
            }
            if stays {
                super::stay(pc);
            }
            return;
        }
        vector::SERIAL => super::with_ctx(pc, |cx| {
            console::input_on(cx.dom, cx.plat, Here::on(cx.vcpu));
        }),
        vector::TSC_CHANGED => crate::time::tsc_changed(),
        vector::KICK => super::kicked(pc),
        vector::FLUSH => ipi::serve(&pc.cpu),
        vector::SPURIOUS => return,
        other => {
            crate::log!(Warn, "interrupt on vector {other:#x}, which nothing uses");
        }
    }
    apic::eoi();
}
