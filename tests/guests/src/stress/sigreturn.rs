//! Signal frames a program has tampered with. A kernel must end the program,
//! never itself: the final IRET faults on what was put there, in ring 0 or in
//! the hypervisor, at the worst place of all.
//!
//! Real Xen fails `sigreturn_bad_cs`: it raises the kernel's own descriptors to
//! DPL 3.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ensure;
use crate::fault::on_signal;
use crate::harness::{Check, Ending, Outcome, in_child};

pub const CHECKS: &[Check] = &[
    ("sigreturn_bad_cs", bad_cs),
    ("sigreturn_bad_ss", bad_ss),
    ("sigreturn_bad_rip", bad_rip),
    ("sigreturn_bad_rsp", bad_rsp),
    ("sigreturn_bad_flags", bad_flags),
    ("sigreturn_bad_fpu_state", bad_fpu_state),
    ("sigreturn_garbage", garbage),
    ("sigreturn_storm", storm),
];

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Field {
    Cs,
    Ss,
    Rip,
    Rsp,
    Flags,
    FpState,
}

static FIELD: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);

extern "C" fn tamper(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let value = VALUE.load(Ordering::Relaxed).cast_signed();
    let context: *mut libc::ucontext_t = context.cast();
    unsafe {
        let regs = &mut (*context).uc_mcontext.gregs;
        let selectors = &mut regs[libc::REG_CSGSFS as usize];
        match FIELD.load(Ordering::Relaxed) {
            f if f == Field::Cs as u64 => *selectors = *selectors & !0xffff | value & 0xffff,
            f if f == Field::Ss as u64 => *selectors = *selectors & !(0xffff << 48) | value << 48,
            f if f == Field::Rip as u64 => regs[libc::REG_RIP as usize] = value,
            f if f == Field::Rsp as u64 => {
                regs[libc::REG_RSP as usize] = value;
                regs[libc::REG_RIP as usize] = touch_stack as *const () as i64;
            }
            f if f == Field::Flags as u64 => regs[libc::REG_EFL as usize] |= value,
            _ => {
                let state: *mut u8 = (*context).uc_mcontext.fpregs.cast();
                // MXCSR with reserved bits, then garbage in the header.
                state.add(24).cast::<u32>().write_unaligned(0xffff_ffff);
                state.add(512).cast::<u64>().write_unaligned(value.cast_unsigned());
            }
        }
    }
}

extern "C" fn touch_stack() {
    unsafe {
        core::arch::asm!("push rax", "pop rax");
        libc::_exit(0);
    }
}

fn with(field: Field, value: u64) -> Result<Ending, String> {
    in_child(|| {
        FIELD.store(field as u64, Ordering::Relaxed);
        VALUE.store(value, Ordering::Relaxed);
        if on_signal(libc::SIGUSR1, tamper, 0).is_err() {
            return 99;
        }
        unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
        0
    })
}

fn all_killed(field: Field, values: &[u64]) -> Outcome {
    let mut wrong = Vec::new();
    for &value in values {
        let ending = with(field, value)?;
        // A stack fault is SIGBUS.
        if !matches!(ending, Ending::Killed(libc::SIGSEGV | libc::SIGBUS)) {
            wrong.push(format!("{value:#x}: {ending:?}"));
        }
    }
    ensure!(wrong.is_empty(), "not ended by SIGSEGV: {}", wrong.join(", "));
    Ok(())
}

fn bad_cs() -> Outcome {
    // Null, data, kernel, beyond the table, absent LDT, the ones Xen and the
    // ring below may own.
    all_killed(
        Field::Cs,
        &[
            0, 0x3, 0x8, 0x10, 0x13, 0x18, 0x2b, 0x7, 0xf, 0x4f, 0xfff8, 0xfffb, 0xe008, 0xe00b,
            0xe010, 0xe013, 0xe019, 0xe020, 0xe021, 0xe028, 0xe029, 0xe040,
        ],
    )?;
    // Xen lends every program its flat 64-bit code segment, and Linux forces
    // RPL 3: harmless there, an end anywhere else.
    for value in [0xe030, 0xe031, 0xe033] {
        let ending = with(Field::Cs, value)?;
        ensure!(
            matches!(ending, Ending::Killed(libc::SIGSEGV) | Ending::Exited(0)),
            "{value:#x}: {ending:?}"
        );
    }
    Ok(())
}

fn bad_ss() -> Outcome {
    // The kernel repairs some of them; what it lets through must fault.
    for value in
        [0u64, 0x3, 0x10, 0x13, 0x18, 0x33, 0x7, 0xf, 0xfffb, 0xe00b, 0xe013, 0xe029, 0xe031]
    {
        let ending = with(Field::Ss, value)?;
        ensure!(
            matches!(
                ending,
                Ending::Killed(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) | Ending::Exited(0)
            ),
            "SS {value:#x}: {ending:?}"
        );
    }
    Ok(())
}

fn bad_rip() -> Outcome {
    all_killed(
        Field::Rip,
        &[
            0,
            0x8000_0000_0000,
            0x7fff_ffff_f000,
            0x8000_0000_0000_0000,
            0xffff_7fff_ffff_ffff,
            0xffff_8000_0000_0000,
            0xffff_8080_0000_0000,
            0xffff_ffff_8100_0000,
            0xffff_ffff_ffff_ffff,
            0xdead_beef_0000_0000,
        ],
    )
}

fn bad_rsp() -> Outcome {
    all_killed(
        Field::Rsp,
        &[0, 8, 0x8000_0000_0008, 0xffff_8000_0000_1000, 0xffff_ffff_8100_0000, u64::MAX - 6],
    )
}

fn bad_flags() -> Outcome {
    // IOPL, NT, VM, VIF, VIP, RF: masked by the kernel, harmless.
    for value in [0x3000u64, 0x4000, 0x2_0000, 0x8_0000, 0x10_0000, 0x1_0000, 0xffff_ffff_0000_0000]
    {
        let ending = with(Field::Flags, value)?;
        ensure!(ending == Ending::Exited(0), "flags {value:#x}: {ending:?}");
    }
    // TF traps right after the return; AC may.
    let ending = with(Field::Flags, 0x100)?;
    ensure!(ending == Ending::Killed(libc::SIGTRAP), "TF: {ending:?}");
    Ok(())
}

fn bad_fpu_state() -> Outcome {
    for value in [0u64, u64::MAX, 1 << 63, 0x7] {
        let ending = with(Field::FpState, value)?;
        // Refused (SIGSEGV) or repaired; which is the kernel's choice.
        ensure!(
            matches!(ending, Ending::Killed(libc::SIGSEGV) | Ending::Exited(0)),
            "header {value:#x}: {ending:?}"
        );
    }
    Ok(())
}

/// rt_sigreturn without any frame.
fn garbage() -> Outcome {
    for fill in [0u8, 0xff, 0x41] {
        let ending = in_child(|| {
            let frame = vec![fill; 8192];
            unsafe {
                core::arch::asm!("mov rsp, {0}", "syscall", "ud2", in(reg) frame.as_ptr(),
                    in("rax") libc::SYS_rt_sigreturn, options(noreturn))
            }
        })?;
        ensure!(matches!(ending, Ending::Killed(libc::SIGSEGV)), "fill {fill:#x}: {ending:?}");
    }
    Ok(())
}

/// The same again and again: nothing may be left behind in the kernel.
fn storm() -> Outcome {
    for i in 0..60 {
        let (field, value) =
            [(Field::Cs, 0x2b), (Field::Rip, 0x8000_0000_0000), (Field::Cs, 0xfffb)][i % 3];
        let ending = with(field, value)?;
        ensure!(matches!(ending, Ending::Killed(libc::SIGSEGV)), "round {i}: {ending:?}");
    }
    Ok(())
}
