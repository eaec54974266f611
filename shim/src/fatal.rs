//! The end: reports of the shim's own faults and of guest crashes, power-off and reset.

use core::fmt::Write;

use arrayvec::ArrayString;
use translate::platform::Shutdown;
use translate::regs::CpuRegs;

use crate::cpu::{percpu, smp};
use crate::log;

/// An exception of the shim's own: prints it and ends the VM.
pub fn exception(frame: &CpuRegs) -> ! {
    let mut text = ArrayString::<160>::new();
    // A text that does not fit is cut, which is all right.
    let _ = write!(
        text,
        "shim fault: vector {} error {:#x} rip {:#x} cr2 {:#x}",
        frame.vector,
        frame.error_code,
        frame.rip,
        crate::cpu::read_cr2()
    );
    crash(&text, Some(frame))
}

/// A panic of the shim's own.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut text = ArrayString::<300>::new();
    let _ = write!(text, "shim bug: {info}");
    crash(&text, None)
}

/// Logs what was counted: the guest is about to end.
fn report() {
    crate::devices::report();
    let cpus = 0..crate::guest::domain().nr_vcpus;
    if let Some((used, bytes)) = cpus.map(|cpu| percpu::Area::of(cpu).stack_used()).max() {
        log!(Info, "stack: {used} of {bytes} bytes used at most");
    }
}

/// The domain ends.
pub fn shutdown(why: Shutdown, regs: Option<&CpuRegs>) -> ! {
    smp::end_others(percpu::current_id());
    match why {
        Shutdown::Poweroff => {
            report();
            crate::power::off()
        }
        Shutdown::Reboot => {
            report();
            crate::devices::unload();
            crate::power::reset()
        }
        Shutdown::GuestCrash => crash("the guest kernel reported a crash", None),
        Shutdown::Watchdog => crash("the guest's watchdog fired", None),
        Shutdown::DomainCrash(text) => crash(text, regs),
    }
}

fn print_regs(frame: &CpuRegs) {
    log::print(format_args!(
        "rip {:x}:{:016x} rsp {:x}:{:016x} rflags {:x} vector {} error {:x}",
        frame.cs,
        frame.rip,
        frame.ss,
        frame.rsp,
        frame.rflags,
        frame.vector as i32,
        frame.error_code
    ));
    log::print(format_args!(
        "rax {:016x} rcx {:016x} rdx {:016x} rsi {:016x} rdi {:016x}",
        frame.rax, frame.rcx, frame.rdx, frame.rsi, frame.rdi
    ));
    log::print(format_args!(
        "r8 {:016x} r9 {:016x} r10 {:016x} r11 {:016x}",
        frame.r8, frame.r9, frame.r10, frame.r11
    ));
    if frame.vector != CpuRegs::VECTOR_SYSCALL {
        // A hypercall's frame does not hold the registers Rust preserves.
        log::print(format_args!(
            "rbx {:016x} rbp {:016x} r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}",
            frame.rbx, frame.rbp, frame.r12, frame.r13, frame.r14, frame.r15
        ));
    }
}

/// Prints the text, hands it to the host's crash registers, and ends the VM. Without crash
/// registers it ends by a triple fault, which hosts report as a crash too.
fn crash(text: &str, regs: Option<&CpuRegs>) -> ! {
    smp::end_others(percpu::current_id());
    log::print(format_args!("{text}"));
    if let Some(frame) = regs {
        print_regs(frame);
    }
    crate::trace::dump();
    crate::devices::unload();
    let parameters = regs.map_or([0; 3], |r| [r.rip, r.rsp, r.rax]);
    crate::hv::crash::report(text, parameters);
    crate::power::triple_fault()
}
