//! Interrupts to other processors, and TLB flushes there. Where the host recommends its hypercalls
//! they are used, else the local APIC, and [`Shootdown`] for flushes.

use core::sync::atomic::AtomicU64;

use translate::bits::bits;
use translate::shootdown::{Shootdown, Slot};
use xen_abi::GuestVa;

use super::idt::vector;
use super::{Cpu, apic, smp};
use crate::hv;
use crate::mm::layout::MAX_VCPUS;

static SLOTS: [Slot<AtomicU64>; MAX_VCPUS] = [const { Slot::new() }; MAX_VCPUS];
static SHOOTDOWN: Shootdown<&'static [Slot<AtomicU64>]> = Shootdown(&SLOTS);

/// Interrupts processors, by their numbers.
pub fn send(targets: u64, vector: u8) {
    if !hv::vp::send_ipi(targets, vector) {
        bits(targets).for_each(|target| apic::send(target, vector));
    }
}

/// Flushes a page, or everything, on other processors; returns when it is done. No lock may be held.
#[cold]
#[inline(never)]
pub fn flush(cpu: &Cpu, targets: u64, page: Option<GuestVa>) {
    if hv::vp::flush(targets, page) {
        return;
    }
    let me = cpu.id;
    SHOOTDOWN.ask(me, targets, page.map(|va| va.0));
    send(targets, vector::FLUSH);
    let mut spins = 0u32;
    while !SHOOTDOWN.is_done(me) {
        // Others may wait for this processor in the same way.
        serve(cpu);
        smp::stop_if_ended(me);
        core::hint::spin_loop();
        spins = spins.wrapping_add(1);
        if hv::get().is_some_and(|hv| spins.is_multiple_of(hv.spin_limit.max(1))) {
            hv::notify_long_spin_wait(spins);
        }
    }
}

/// Does the flushes others wait for.
pub fn serve(cpu: &Cpu) {
    SHOOTDOWN.serve(cpu.id, |page| match page {
        Some(va) => super::invlpg(va),
        None => cpu.reload_cr3(),
    });
}
