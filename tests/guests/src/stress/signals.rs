//! Delivery of signals and the way back.

use core::arch::asm;
use core::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::ensure;
use crate::fault::{alternate_stack, on_signal};
use crate::harness::{Check, Ending, Outcome, in_child, must, spawn, wait};

pub const CHECKS: &[Check] = &[
    ("signal_count", signal_count),
    ("signal_info", signal_info),
    ("signal_registers", signal_registers),
    ("signal_flags", signal_flags),
    ("signal_altstack", signal_altstack),
    ("signal_nested", signal_nested),
    ("signal_masked", signal_masked),
    ("signal_interrupts_syscall", signal_interrupts_syscall),
    ("signal_between_processes", signal_between_processes),
    ("itimer_real", itimer_real),
    ("itimer_virtual", itimer_virtual),
    ("itimer_storm", itimer_storm),
];

static COUNT: AtomicUsize = AtomicUsize::new(0);
static NOTE: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

fn send_to_self(signal: i32) {
    unsafe { libc::kill(libc::getpid(), signal) };
}

fn signal_count() -> Outcome {
    on_signal(libc::SIGUSR1, count, 0)?;
    for i in 1..=2000 {
        send_to_self(libc::SIGUSR1);
        let seen = COUNT.load(Ordering::Relaxed);
        ensure!(seen == i, "{seen} of {i}");
    }
    Ok(())
}

fn signal_info() -> Outcome {
    extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let value = unsafe { (*info).si_value().sival_ptr.expose_provenance() as u64 };
        NOTE.store(value ^ signal as u64, Ordering::Relaxed);
    }
    on_signal(libc::SIGRTMIN(), handler, 0)?;
    for i in 0..100usize {
        let value = libc::sigval { sival_ptr: ptr::without_provenance_mut(i * 0x1_0001) };
        must(unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) }, "sigqueue")?;
        let found = NOTE.load(Ordering::Relaxed) ^ libc::SIGRTMIN() as u64;
        ensure!(found == i as u64 * 0x1_0001, "value {found:x} in round {i}");
    }
    Ok(())
}

/// Overwrites what a handler is free to overwrite.
extern "C" fn trash(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    unsafe {
        asm!("mov rax, -1", "mov rcx, -1", "mov rdx, -1", "mov rsi, -1", "mov rdi, -1",
             "mov r8, -1", "mov r9, -1", "mov r10, -1", "mov r11, -1", "std", "cld",
             out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
             out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
}

/// A signal taken on the way out of kill() leaves all registers but the three
/// of the system call alone.
fn signal_registers() -> Outcome {
    on_signal(libc::SIGUSR1, trash, 0)?;
    let pid = unsafe { libc::getpid() };
    for round in 0..500u64 {
        let (mut r8, mut r9, mut r10, mut rdx) = (round, round + 1, round + 2, round + 3);
        let (mut r12, mut r13, mut r14, mut r15) = (round + 4, round + 5, round + 6, round + 7);
        let result: i64;
        unsafe {
            asm!("syscall", inout("rax") libc::SYS_kill => result, in("rdi") pid,
                 in("rsi") libc::SIGUSR1, inout("rdx") rdx, inout("r8") r8, inout("r9") r9,
                 inout("r10") r10, inout("r12") r12, inout("r13") r13, inout("r14") r14,
                 inout("r15") r15, out("rcx") _, out("r11") _);
        }
        ensure!(result == 0, "kill: {result}");
        let found = [r8, r9, r10, rdx, r12, r13, r14, r15];
        let wanted: Vec<u64> = (0..8).map(|i| round + i).collect();
        ensure!(found.as_slice() == wanted.as_slice(), "round {round}: {found:?}");
    }
    ensure!(COUNT.load(Ordering::Relaxed) == 500, "signals lost");
    Ok(())
}

fn signal_flags() -> Outcome {
    on_signal(libc::SIGTRAP, trash, 0)?;
    // Carry, direction and sign in all combinations, over an int3.
    for wanted in [0x2u64, 0x3, 0x82, 0x403, 0x483, 0x8d7, 0x20_0202] {
        let found: u64;
        unsafe {
            asm!("push {wanted}", "popfq", "int3", "pushfq", "cld", "pop {found}",
                 wanted = in(reg) wanted, found = out(reg) found);
        }
        let mask = 0x20_0cd5;
        ensure!(found & mask == wanted & mask, "flags {wanted:x} became {found:x}");
        ensure!(found & 0x200 != 0, "IF is clear: {found:x}");
    }
    Ok(())
}

fn signal_altstack() -> Outcome {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let local = 0u8;
        NOTE.store(ptr::from_ref(&local).expose_provenance() as u64, Ordering::Relaxed);
    }
    let base = alternate_stack()?;
    on_signal(libc::SIGUSR1, handler, libc::SA_ONSTACK)?;
    on_signal(libc::SIGUSR2, handler, 0)?;
    for _ in 0..200 {
        send_to_self(libc::SIGUSR1);
        let on = NOTE.load(Ordering::Relaxed);
        ensure!(on.wrapping_sub(base) < 128 * 1024, "handler ran at {on:x}, stack at {base:x}");
        send_to_self(libc::SIGUSR2);
        let off = NOTE.load(Ordering::Relaxed);
        ensure!(off.wrapping_sub(base) >= 128 * 1024, "handler without SA_ONSTACK at {off:x}");
    }
    Ok(())
}

fn signal_nested() -> Outcome {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        if COUNT.fetch_add(1, Ordering::Relaxed) % 20 != 19 {
            send_to_self(libc::SIGUSR1);
            NOTE.fetch_add(1, Ordering::Relaxed);
        }
    }
    on_signal(libc::SIGUSR1, handler, libc::SA_NODEFER)?;
    for _ in 0..50 {
        send_to_self(libc::SIGUSR1);
    }
    let (count, inner) = (COUNT.load(Ordering::Relaxed), NOTE.load(Ordering::Relaxed));
    ensure!(count == 1000 && inner == 950, "{count} signals, {inner} returns");
    Ok(())
}

fn signal_masked() -> Outcome {
    on_signal(libc::SIGUSR1, count, 0)?;
    let mut set: libc::sigset_t = unsafe { core::mem::zeroed() };
    for round in 1..200 {
        unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
        }
        send_to_self(libc::SIGUSR1);
        send_to_self(libc::SIGUSR1);
        let early = COUNT.load(Ordering::Relaxed);
        ensure!(early == round - 1, "a blocked signal arrived");
        unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
        let seen = COUNT.load(Ordering::Relaxed);
        ensure!(seen == round, "round {round}: {seen}");
    }
    Ok(())
}

fn set_timer(which: i32, first_us: i64, interval_us: i64) -> Outcome {
    let time = |us: i64| libc::timeval { tv_sec: us / 1_000_000, tv_usec: us % 1_000_000 };
    let value = libc::itimerval { it_value: time(first_us), it_interval: time(interval_us) };
    must(unsafe { libc::setitimer(which, &value, ptr::null_mut()) }, "setitimer").map(|_| ())
}

fn signal_interrupts_syscall() -> Outcome {
    on_signal(libc::SIGALRM, count, 0)?;
    for _ in 0..5 {
        // Repeated: on a busy host the first may come before pause().
        set_timer(0, 20_000, 20_000)?;
        let result = unsafe { libc::pause() };
        let error = std::io::Error::last_os_error().raw_os_error();
        ensure!(result == -1 && error == Some(libc::EINTR), "pause: {result} {error:?}");
    }
    Ok(())
}

fn signal_between_processes() -> Outcome {
    on_signal(libc::SIGUSR1, count, 0)?;
    let mut set: libc::sigset_t = unsafe { core::mem::zeroed() };
    unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
    let parent = unsafe { libc::getpid() };
    let mut signal = 0;
    let pid = spawn(|| {
        for _ in 0..300 {
            let mut got = 0;
            unsafe {
                libc::sigwait(&set, &mut got);
                libc::kill(parent, libc::SIGUSR1);
            }
        }
        0
    })?;
    for _ in 0..300 {
        unsafe {
            libc::kill(pid, libc::SIGUSR1);
            libc::sigwait(&set, &mut signal);
        }
    }
    let ending = wait(pid)?;
    ensure!(ending == Ending::Exited(0), "{ending:?}");
    Ok(())
}

fn spin_until(enough: usize, limit_ms: u128) -> bool {
    let start = std::time::Instant::now();
    while COUNT.load(Ordering::Relaxed) < enough {
        if start.elapsed().as_millis() > limit_ms {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Ticks arrive while the process computes, so they come by the interrupt path.
fn itimer_real() -> Outcome {
    on_signal(libc::SIGALRM, count, 0)?;
    let start = std::time::Instant::now();
    set_timer(0, 10_000, 10_000)?;
    ensure!(spin_until(20, 20_000), "{} of 20 ticks", COUNT.load(Ordering::Relaxed));
    let taken = start.elapsed().as_millis();
    ensure!(taken >= 195, "20 ticks of 10 ms in {taken} ms");
    Ok(())
}

fn itimer_virtual() -> Outcome {
    on_signal(libc::SIGVTALRM, count, 0)?;
    on_signal(libc::SIGPROF, count, 0)?;
    set_timer(1, 20_000, 20_000)?;
    set_timer(2, 20_000, 20_000)?;
    ensure!(spin_until(6, 20_000), "{} of 6 ticks", COUNT.load(Ordering::Relaxed));
    Ok(())
}

/// Signals at every possible instruction of a loop that checks its registers.
fn itimer_storm() -> Outcome {
    on_signal(libc::SIGALRM, trash, 0)?;
    set_timer(0, 500, 500)?;
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 600 {
        for seed in 0..2000u64 {
            let (mut a, mut b, mut c, mut d) = (seed, seed ^ 0x55, !seed, seed << 32);
            unsafe {
                asm!("mov rcx, 50", "4:", "xchg {a}, {b}", "xchg {c}, {d}", "xchg {a}, {b}",
                     "xchg {c}, {d}", "dec rcx", "jnz 4b", out("rcx") _,
                     a = inout(reg) a, b = inout(reg) b, c = inout(reg) c, d = inout(reg) d);
            }
            ensure!([a, b, c, d] == [seed, seed ^ 0x55, !seed, seed << 32], "registers changed");
        }
    }
    set_timer(0, 0, 0)?;
    let ticks = COUNT.load(Ordering::Relaxed);
    ensure!(ticks >= 10, "only {ticks} signals");
    let ending = in_child(|| 0)?;
    ensure!(ending == Ending::Exited(0), "{ending:?}");
    Ok(())
}
