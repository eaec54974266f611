//! ptrace: single steps, breakpoints and watchpoints in another process.

use core::arch::{asm, global_asm};
use core::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ensure;
use crate::harness::{Check, Outcome, must, spawn};

pub const CHECKS: &[Check] = &[
    ("ptrace_step", step),
    ("ptrace_step_over_syscall", step_over_syscall),
    ("ptrace_step_long", step_long),
    ("ptrace_syscalls", syscalls),
    ("ptrace_registers", registers),
    ("ptrace_poke_breakpoint", poke_breakpoint),
    ("watchpoint_write", watchpoint_write),
    ("watchpoint_execute", watchpoint_execute),
    ("watchpoints_of_two", watchpoints_of_two),
];

// Straight code between two int3, for which each step is known.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    "stress_straight:",
    "int3",
    "nop",
    "xor eax, eax",
    "inc eax",
    "push rax",
    "pop rcx",
    "ret",
    "stress_over_syscall:",
    "int3",
    "mov eax, {getppid}",
    "syscall",
    "nop",
    "mov eax, {getppid}",
    "syscall",
    "nop",
    "ret",
    ".popsection",
    getppid = const libc::SYS_getppid,
);

unsafe extern "C" {
    fn stress_straight();
    fn stress_over_syscall();
}

static WATCHED: AtomicU64 = AtomicU64::new(0);
static OTHER: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
extern "C" fn executed() {
    core::hint::black_box(&OTHER);
}

/// Asks ptrace; the value it returns.
fn ptrace(request: u32, pid: i32, address: u64, data: u64) -> Result<i64, String> {
    let request = request as libc::c_uint;
    must(
        unsafe {
            libc::ptrace(
                request,
                pid,
                ptr::with_exposed_provenance_mut::<u8>(address as usize),
                ptr::with_exposed_provenance_mut::<u8>(data as usize),
            )
        },
        "ptrace",
    )
}

/// Reads a word; ptrace's result is the word itself.
fn peek(request: u32, pid: i32, address: u64) -> u64 {
    let address = ptr::with_exposed_provenance_mut::<u8>(address as usize);
    unsafe { libc::ptrace(request as libc::c_uint, pid, address, 0) }.cast_unsigned()
}

fn debug_register(index: u64) -> u64 {
    core::mem::offset_of!(libc::user, u_debugreg) as u64 + index * 8
}

fn rip(pid: i32) -> u64 {
    peek(libc::PTRACE_PEEKUSER, pid, core::mem::offset_of!(libc::user_regs_struct, rip) as u64)
}

/// The signal the tracee stopped with; None when it has ended.
fn stopped(pid: i32) -> Result<Option<i32>, String> {
    let mut status = 0;
    must(unsafe { libc::waitpid(pid, &mut status, 0) }, "waitpid")?;
    Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status)))
}

fn expect_stop(pid: i32, signal: i32) -> Outcome {
    let found = stopped(pid)?;
    ensure!(found == Some(signal), "stopped with {found:?} instead of signal {signal}");
    Ok(())
}

/// A child that stops itself, then runs `body` and ends with status 0.
fn tracee(body: impl FnOnce()) -> Result<i32, String> {
    let pid = spawn(|| {
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        body();
        0
    })?;
    expect_stop(pid, libc::SIGSTOP)?;
    Ok(pid)
}

fn resume(pid: i32) -> Outcome {
    ptrace(libc::PTRACE_CONT, pid, 0, 0).map(|_| ())
}

fn finish(pid: i32) -> Outcome {
    resume(pid)?;
    let end = stopped(pid)?;
    ensure!(end.is_none(), "stopped with {end:?} instead of ending");
    Ok(())
}

/// Steps through the code at `start`, expecting these instruction lengths.
fn walk(start: unsafe extern "C" fn(), lengths: &[u64]) -> Outcome {
    let base = start as *const () as u64;
    let pid = tracee(|| unsafe { start() })?;
    resume(pid)?;
    expect_stop(pid, libc::SIGTRAP)?;
    let mut expected = base + 1;
    ensure!(rip(pid) == expected, "int3 at {:x}, code at {base:x}", rip(pid));
    for (index, length) in lengths.iter().enumerate() {
        ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0)?;
        expect_stop(pid, libc::SIGTRAP)?;
        expected += length;
        ensure!(rip(pid) == expected, "step {index}: {:x} instead of {expected:x}", rip(pid));
    }
    finish(pid)
}

fn step() -> Outcome {
    for _ in 0..10 {
        walk(stress_straight, &[1, 2, 2, 1, 1])?;
    }
    Ok(())
}

fn step_over_syscall() -> Outcome {
    for _ in 0..10 {
        walk(stress_over_syscall, &[5, 2, 1, 5, 2, 1])?;
    }
    Ok(())
}

/// Steps through whatever printf-like library code does.
fn step_long() -> Outcome {
    let pid = tracee(|| {
        let text = format!("{:?}", core::hint::black_box([1u32, 2, 3]));
        unsafe { libc::_exit(i32::from(text != "[1, 2, 3]")) }
    })?;
    let mut steps = 0;
    loop {
        ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0)?;
        let mut status = 0;
        must(unsafe { libc::waitpid(pid, &mut status, 0) }, "waitpid")?;
        if libc::WIFEXITED(status) {
            ensure!(libc::WEXITSTATUS(status) == 0, "the stepped process went wrong");
            break;
        }
        ensure!(libc::WIFSTOPPED(status), "status {status:x} after {steps} steps");
        ensure!(libc::WSTOPSIG(status) == libc::SIGTRAP, "signal {}", libc::WSTOPSIG(status));
        steps += 1;
    }
    ensure!(steps > 300, "only {steps} steps");
    Ok(())
}

fn syscalls() -> Outcome {
    let pid = tracee(|| {
        for _ in 0..50 {
            crate::syscalls::raw(libc::SYS_getppid, [0; 6]);
        }
        unsafe { libc::_exit(0) }
    })?;
    let orig_rax = core::mem::offset_of!(libc::user_regs_struct, orig_rax) as u64;
    let mut calls = 0;
    loop {
        ptrace(libc::PTRACE_SYSCALL, pid, 0, 0)?;
        if stopped(pid)?.is_none() {
            break;
        }
        let number = peek(libc::PTRACE_PEEKUSER, pid, orig_rax);
        calls += u64::from(number == libc::SYS_getppid.cast_unsigned());
    }
    ensure!(calls == 100, "{calls} stops at getppid instead of 100");
    Ok(())
}

/// The tracer sees and sets registers.
fn registers() -> Outcome {
    let pid = tracee(|| unsafe {
        let mut value = 0x1234_5678_9abc_def0u64;
        asm!("int3", inout("r12") value);
        libc::_exit(i32::from(value != 0x0fed_cba9_8765_4321));
    })?;
    resume(pid)?;
    expect_stop(pid, libc::SIGTRAP)?;
    let mut regs: libc::user_regs_struct = unsafe { core::mem::zeroed() };
    let pointer = ptr::from_mut(&mut regs).expose_provenance() as u64;
    ptrace(libc::PTRACE_GETREGS, pid, 0, pointer)?;
    ensure!(regs.r12 == 0x1234_5678_9abc_def0, "R12 {:x}", regs.r12);
    ensure!(regs.cs == 0x33 && regs.ss == 0x2b, "CS {:x} SS {:x}", regs.cs, regs.ss);
    // ptrace reads it through the address above.
    unsafe { (&raw mut regs.r12).write_volatile(0x0fed_cba9_8765_4321) };
    ptrace(libc::PTRACE_SETREGS, pid, 0, pointer)?;
    resume(pid)?;
    let mut status = 0;
    must(unsafe { libc::waitpid(pid, &mut status, 0) }, "waitpid")?;
    ensure!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:x}");
    Ok(())
}

/// What a debugger does: an int3 written into text, hit, taken out again.
fn poke_breakpoint() -> Outcome {
    let pid = tracee(|| {
        for _ in 0..10 {
            executed();
        }
    })?;
    let at = executed as *const () as u64;
    let original = peek(libc::PTRACE_PEEKTEXT, pid, at);
    for round in 0..10 {
        ptrace(libc::PTRACE_POKETEXT, pid, at, original & !0xff | 0xcc)?;
        resume(pid)?;
        expect_stop(pid, libc::SIGTRAP)?;
        ensure!(rip(pid) == at + 1, "round {round}: RIP {:x}, breakpoint {at:x}", rip(pid));
        ptrace(libc::PTRACE_POKETEXT, pid, at, original)?;
        let offset = core::mem::offset_of!(libc::user_regs_struct, rip) as u64;
        ptrace(libc::PTRACE_POKEUSER, pid, offset, at)?;
        ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0)?;
        expect_stop(pid, libc::SIGTRAP)?;
    }
    finish(pid)
}

/// DR7 for register 0: enabled, `kind` (0 execute, 1 write, 3 access), length.
fn arm(pid: i32, address: u64, kind: u64, length: u64) -> Outcome {
    ptrace(libc::PTRACE_POKEUSER, pid, debug_register(0), address)?;
    let control = 1 | kind << 16 | (length - 1) << 18;
    ptrace(libc::PTRACE_POKEUSER, pid, debug_register(7), control).map(|_| ())
}

fn watchpoint_write() -> Outcome {
    let pid = tracee(|| {
        for i in 0..20 {
            OTHER.store(i, Ordering::Relaxed);
            WATCHED.store(i + 1, Ordering::Relaxed);
        }
    })?;
    let address = WATCHED.as_ptr().expose_provenance() as u64;
    arm(pid, address, 1, 8)?;
    for round in 1..=20 {
        resume(pid)?;
        expect_stop(pid, libc::SIGTRAP).map_err(|why| format!("write {round}: {why}"))?;
        let status = peek(libc::PTRACE_PEEKUSER, pid, debug_register(6));
        ensure!(status & 0xf == 1, "DR6 {status:x} at write {round}");
        let value = peek(libc::PTRACE_PEEKDATA, pid, address);
        ensure!(value == round, "the variable is {value} at write {round}");
    }
    finish(pid)
}

fn watchpoint_execute() -> Outcome {
    let pid = tracee(|| {
        for _ in 0..10 {
            executed();
        }
    })?;
    arm(pid, executed as *const () as u64, 0, 1)?;
    for round in 0..10 {
        resume(pid)?;
        expect_stop(pid, libc::SIGTRAP).map_err(|why| format!("call {round}: {why}"))?;
        ensure!(rip(pid) == executed as *const () as u64, "stopped at {:x}", rip(pid));
    }
    finish(pid)
}

/// Debug registers belong to a process: another one runs over the same
/// addresses untouched, while both are switched to and fro.
fn watchpoints_of_two() -> Outcome {
    let work = || {
        for i in 0..30 {
            WATCHED.store(i, Ordering::Relaxed);
            OTHER.store(i, Ordering::Relaxed);
            unsafe { libc::sched_yield() };
        }
    };
    let first = tracee(work)?;
    let second = tracee(work)?;
    arm(first, WATCHED.as_ptr().expose_provenance() as u64, 1, 8)?;
    arm(second, OTHER.as_ptr().expose_provenance() as u64, 1, 8)?;
    let bystander = spawn(|| {
        work();
        0
    })?;
    for round in 0..30 {
        for pid in [first, second] {
            resume(pid)?;
        }
        for pid in [first, second] {
            expect_stop(pid, libc::SIGTRAP).map_err(|why| format!("round {round}: {why}"))?;
        }
    }
    finish(first)?;
    finish(second)?;
    let ending = crate::harness::wait(bystander)?;
    ensure!(ending == crate::harness::Ending::Exited(0), "bystander: {ending:?}");
    Ok(())
}
