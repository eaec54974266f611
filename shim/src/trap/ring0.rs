//! Exceptions that hit ring 0 itself.

use core::mem::size_of;

use translate::platform::Shutdown;
use translate::regs::CpuRegs;

use crate::cpu::idt;
use crate::cpu::percpu::{DATA_OFFSET, PerCpu};
use crate::mm::layout::{MAX_VCPUS, PERCPU_BASE, PERCPU_STRIDE};

unsafe extern "C" {
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
    static __stub_start: u8;
    static stub_fast_iretq: u8;
    static stub_hypercall_iretq: u8;
    static stub_fast_hypercall_iretq: u8;
    static trap_page_fault_iretq: u8;
    static trap_iretq: u8;
    static idle_done: u8;
}

/// Where a guarded access that faulted at `rip` goes on.
fn fixup(rip: u64) -> Option<u64> {
    let start = &raw const __ex_table_start;
    let count = (&raw const __ex_table_end as usize - start as usize) / size_of::<[u64; 2]>();
    // SAFETY: the linker script puts the table's pairs between these symbols, aligned to 8.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().find(|pair| pair[0] == rip).map(|pair| pair[1])
}

/// Offset of `rip` in a vCPU's stub page.
fn stub_offset(rip: u64) -> Option<u64> {
    let offset = rip.wrapping_sub(PERCPU_BASE);
    let in_page = offset % PERCPU_STRIDE;
    (offset < PERCPU_STRIDE * MAX_VCPUS as u64 && in_page < DATA_OFFSET).then_some(in_page)
}

/// Whether the instruction at `rip` is an IRETQ to the guest.
fn is_final_iretq(rip: u64) -> bool {
    let of_stub = |symbol: *const u8| symbol as u64 - (&raw const __stub_start) as u64;
    match stub_offset(rip) {
        Some(offset) => [
            &raw const stub_fast_iretq,
            &raw const stub_fast_hypercall_iretq,
            &raw const stub_hypercall_iretq,
        ]
        .into_iter()
        .any(|symbol| of_stub(symbol) == offset),
        None => [&raw const trap_iretq, &raw const trap_page_fault_iretq]
            .into_iter()
            .any(|symbol| symbol as u64 == rip),
    }
}

/// An interrupt on the way into the idle HLT ends it: what the HLT would wait for has come, and was
/// looked for before. On a processor only an NMI can come there, because STI keeps interrupts off
/// until the HLT is executed. A nested guest on QEMU is worse off: VMRUN there does not bring the
/// interrupt shadow of its VMCB back, so an exit between the two lets an interrupt in behind the STI.
fn leave_idle(frame: &mut CpuRegs) {
    let done = (&raw const idle_done) as u64;
    // The function's own declaration: a second one, as data, is another symbol to the linker.
    if (super::idle_hlt as *const () as u64..done).contains(&frame.rip) {
        frame.rip = done;
    }
}

/// A vector without a stack of its own. Returns null to resume, or the frame that replaces the
/// interrupted one.
pub(super) unsafe extern "C" fn trap_from_ring0(
    regs: *mut CpuRegs,
    pc: *mut PerCpu,
) -> *mut CpuRegs {
    // SAFETY: the stub's frame.
    let frame = unsafe { &mut *regs };
    // SAFETY: reading a cell of the area.
    let runs = unsafe { &(*pc).cpu.runs };
    if frame.vector >= idt::vector::FIRST_IRQ && !runs.get() {
        // The vCPU is others' to fill: no reference to it.
        // SAFETY: the part of the area that is the processor's own.
        super::irq::handle_new(frame.vector as u8, unsafe { &(*pc).cpu });
        leave_idle(frame);
        return core::ptr::null_mut();
    }
    if frame.vector >= idt::vector::FIRST_IRQ {
        // SAFETY: interrupts are on in ring 0 only in the idle HLT, which holds no reference to
        // the area and runs on a stack in it.
        let pc = unsafe { &mut *pc };
        pc.cpu.wake();
        super::irq::handle(frame.vector as u8, pc);
        leave_idle(frame);
        return core::ptr::null_mut();
    }
    if frame.vector >= 32 {
        // Ring 0 has no INT n.
        super::irq::stray(frame.vector as u8);
        leave_idle(frame);
        return core::ptr::null_mut();
    }
    if let Some(resume) = fixup(frame.rip) {
        frame.rip = resume;
        return core::ptr::null_mut();
    }
    if is_final_iretq(frame.rip) {
        // SAFETY: the IRETQ ran on the vCPU's stack with its five words at RSP.
        return unsafe { rebuild(frame, pc) };
    }
    if stub_offset(frame.rip).is_some() {
        stub_fault(frame);
    }
    bug(frame)
}

/// Makes the guest's context again out of the registers, which IRETQ has not changed, and the
/// words it was to load, at the top of the vCPU's stack.
///
/// # Safety
/// `frame` must be the fault of a final IRETQ of the vCPU `pc`.
unsafe fn rebuild(frame: &CpuRegs, pc: *const PerCpu) -> *mut CpuRegs {
    // SAFETY: IRETQ's operand: the five words it failed to load.
    let words = unsafe { (frame.rsp as *const [u64; 5]).read() };
    let [rip, cs, rflags, rsp, ss] = words;
    let guest = CpuRegs { rip, cs, rflags, rsp, ss, ..*frame };
    // SAFETY: reading a field of the vCPU's area.
    let top = unsafe { (*pc).stack_top };
    let target = (top - size_of::<CpuRegs>() as u64) as *mut CpuRegs;
    // SAFETY: the top of the vCPU's stack; what lay there has been copied.
    unsafe { target.write(guest) };
    target
}

/// The guest's kernel stack is not there.
fn stub_fault(frame: &CpuRegs) -> ! {
    crate::fatal::shutdown(
        Shutdown::DomainCrash("the guest kernel's stack is not writable memory"),
        Some(frame),
    )
}

/// #DB, NMI, #DF, #MC while ring 0 ran, on their own stacks.
pub(super) unsafe extern "C" fn ist_from_ring0(regs: *mut CpuRegs, pc: *mut PerCpu) {
    // SAFETY: the stub's frame.
    let frame = unsafe { &mut *regs };
    match frame.vector {
        1 => {
            // A breakpoint of the guest's on memory the shim touched, or TF through SYSENTER.
            frame.rflags &= !0x100;
            let dr6 = super::take_dr6();
            // SAFETY: the cell is read only with this vector off the processor (same CPU).
            let seen = unsafe { &(*pc).cpu.debug_seen };
            seen.set(seen.get() | dr6);
        }
        2 => {
            // SAFETY: as above.
            unsafe { &(*pc).cpu.nmi_seen }.set(true);
            leave_idle(frame);
        }
        8 if stub_offset(frame.rip).is_some() => stub_fault(frame),
        _ => bug(frame),
    }
}

/// A fault of the shim's own.
fn bug(frame: &CpuRegs) -> ! {
    crate::fatal::exception(frame)
}
