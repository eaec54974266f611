//! The yardstick: what the commonest kernel operations cost, as seen from user
//! space. One JSON line per operation.
//!
//! Times are TSC ticks. Under QEMU's `-icount shift=0` the TSC counts executed
//! guest instructions, whichever of kernel, hypervisor and user ran them (1
//! instruction = 1 ns of virtual time, TSC at 1 GHz), and the figures repeat to
//! 1 %. Huge pages are off, since a PV kernel has none.
//!
//! An operation is repeated a few times per sample; a round is the median of
//! its samples (which drops the ones a timer interrupt hit); the figure is the
//! smallest of the rounds.
//!
//! It is a C program in Rust's clothes (`no_main`), so that exec and fork
//! measure a small process.
#![no_main]
#![expect(unsafe_code, reason = "every line is a system call")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "a benchmark calls libc throughout")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a benchmark calls libc throughout")]

use core::arch::asm;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use std::ffi::CString;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

const ROUNDS: usize = 5;
const SAMPLES: usize = 41;
const PAGE: usize = 4096;

fn ticks() -> u64 {
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

fn check(result: c_int, what: &str) -> c_int {
    if result < 0 {
        panic!("{what}: {}", std::io::Error::last_os_error());
    }
    result
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

/// Prints the figure of `name`; `sample` returns the ticks of `ops` operations.
fn measure(name: &str, ops: u64, mut sample: impl FnMut() -> u64) {
    sample();
    let mut best = u64::MAX;
    for _ in 0..ROUNDS {
        let mut samples: Vec<u64> = (0..SAMPLES).map(|_| sample()).collect();
        best = best.min(median(&mut samples));
    }
    report(name, best as f64 / ops as f64);
}

fn report(name: &str, per_op: f64) {
    println!("{{\"name\":\"{name}\",\"per_op\":{per_op:.1}}}");
    let _ = std::io::stdout().flush();
}

/// Ticks `ops` calls of `op` take.
fn timed(ops: u64, mut op: impl FnMut()) -> u64 {
    let start = ticks();
    for _ in 0..ops {
        op();
    }
    ticks() - start
}

fn raw_getpid() {
    unsafe {
        asm!("syscall", inout("rax") libc::SYS_getpid => _, lateout("rcx") _, lateout("r11") _,
             options(nostack));
    }
}

fn getpid() {
    measure("getpid", 1000, || timed(1000, raw_getpid));
}

fn stat() {
    let mut data: libc::stat = unsafe { core::mem::zeroed() };
    measure("stat", 100, || {
        timed(100, || {
            check(unsafe { libc::stat(c"/".as_ptr(), &mut data) }, "stat");
        })
    });
}

fn map(pages: usize, flags: c_int) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let area = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, prot, flags, -1, 0) };
    assert!(area != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    area.cast()
}

fn unmap(area: *mut u8, pages: usize) {
    check(unsafe { libc::munmap(area.cast(), pages * PAGE) }, "munmap");
}

/// Anonymous page faults (4 KiB each, clearing included) and their undoing.
fn faults() {
    const PAGES: usize = 128;
    measure("page_fault", PAGES as u64, || {
        let area = map(PAGES, 0);
        let start = ticks();
        for page in 0..PAGES {
            unsafe { area.add(page * PAGE).write_volatile(1) };
        }
        let taken = ticks() - start;
        unmap(area, PAGES);
        taken
    });
    measure("munmap_page", PAGES as u64, || {
        let area = map(PAGES, 0);
        for page in 0..PAGES {
            unsafe { area.add(page * PAGE).write_volatile(1) };
        }
        let start = ticks();
        unmap(area, PAGES);
        ticks() - start
    });
    const FEW: usize = 16;
    measure("mmap_mprotect", 8, || {
        timed(8, || {
            let area = map(FEW, libc::MAP_POPULATE);
            check(unsafe { libc::mprotect(area.cast(), FEW * PAGE, libc::PROT_READ) }, "mprotect");
            unmap(area, FEW);
        })
    });
}

fn wait_for(pid: c_int) {
    let mut status = 0;
    check(unsafe { libc::waitpid(pid, &mut status, 0) }, "waitpid");
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "child status {status:#x}");
}

fn fork_exit() {
    measure("fork_exit", 2, || {
        timed(2, || {
            let pid = check(unsafe { libc::fork() }, "fork");
            if pid == 0 {
                unsafe { libc::_exit(0) };
            }
            wait_for(pid);
        })
    });
}

extern "C" fn exec_self(path: *mut c_void) -> c_int {
    let path: *const c_char = path.cast_const().cast();
    let argv = [path, c"--exit".as_ptr(), ptr::null()];
    let envp = [ptr::null()];
    unsafe {
        libc::execve(path, argv.as_ptr(), envp.as_ptr());
        libc::_exit(99)
    }
}

/// vfork is clone with these flags; a stack of its own keeps Rust's frames out
/// of the child's way.
fn vfork_exec(path: &CStr) {
    const STACK: usize = 16;
    let stack = map(STACK, 0);
    let top = unsafe { stack.add(STACK * PAGE) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    measure("vfork_exec", 1, || {
        timed(1, || {
            let arg = path.as_ptr().cast_mut().cast();
            let pid = check(unsafe { libc::clone(exec_self, top.cast(), flags, arg) }, "clone");
            wait_for(pid);
        })
    });
    unmap(stack, STACK);
}

fn pipe() -> [c_int; 2] {
    let mut ends = [0; 2];
    check(unsafe { libc::pipe(ends.as_mut_ptr()) }, "pipe");
    ends
}

fn transfer(ends: (c_int, c_int)) -> bool {
    let mut byte = 0u8;
    unsafe {
        libc::read(ends.0, ptr::from_mut(&mut byte).cast(), 1) == 1
            && libc::write(ends.1, ptr::from_ref(&byte).cast(), 1) == 1
    }
}

fn pipe_round_trip() {
    let (there, back) = (pipe(), pipe());
    let child = check(unsafe { libc::fork() }, "fork");
    if child == 0 {
        unsafe { libc::close(there[1]) };
        while transfer((there[0], back[1])) {}
        unsafe { libc::_exit(0) };
    }
    unsafe {
        libc::close(there[0]);
        libc::close(back[1]);
    }
    let mut byte = 0u8;
    measure("pipe_round_trip", 20, || {
        timed(20, || unsafe {
            assert!(libc::write(there[1], ptr::from_ref(&byte).cast(), 1) == 1, "pipe write");
            assert!(libc::read(back[0], ptr::from_mut(&mut byte).cast(), 1) == 1, "pipe read");
        })
    });
    unsafe {
        libc::close(there[1]);
        libc::close(back[0]);
    }
    wait_for(child);
}

/// A flag both processes see.
fn shared_flag() -> &'static AtomicBool {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let area = unsafe { libc::mmap(ptr::null_mut(), PAGE, prot, flags, -1, 0) };
    assert!(area != libc::MAP_FAILED, "mmap");
    unsafe { &*area.cast::<AtomicBool>() }
}

fn switches() -> u64 {
    let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    (usage.ru_nvcsw + usage.ru_nivcsw).cast_unsigned()
}

fn set_policy(policy: c_int, priority: c_int) -> c_int {
    let mut param: libc::sched_param = unsafe { core::mem::zeroed() };
    param.sched_priority = priority;
    unsafe { libc::sched_setscheduler(0, policy, &param) }
}

/// Two processes yield to each other; the figure is per switch, there or back.
/// SCHED_FIFO makes every yield a switch; an ordinary user goes without.
fn context_switch() {
    const YIELDS: u64 = 100;
    set_policy(libc::SCHED_FIFO, 1);
    let stop = shared_flag();
    let child = check(unsafe { libc::fork() }, "fork");
    if child == 0 {
        while !stop.load(Ordering::Relaxed) {
            unsafe { libc::sched_yield() };
        }
        unsafe { libc::_exit(0) };
    }
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let mut samples: Vec<u64> = (0..SAMPLES)
            .map(|_| {
                let before = switches();
                let taken = timed(YIELDS, || {
                    unsafe { libc::sched_yield() };
                });
                // Each switch away is also one back. Tenths of a tick.
                taken * 10 / (2 * (switches() - before)).max(1)
            })
            .collect();
        best = best.min(median(&mut samples) as f64 / 10.0);
    }
    stop.store(true, Ordering::Relaxed);
    wait_for(child);
    set_policy(libc::SCHED_OTHER, 0);
    report("context_switch", best);
}

extern "C" fn on_signal(_: c_int) {}

fn signal() {
    let handler: extern "C" fn(c_int) = on_signal;
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    check(unsafe { libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()) }, "sigaction");
    let me = unsafe { libc::getpid() };
    measure("signal", 50, || {
        timed(50, || {
            unsafe { libc::kill(me, libc::SIGUSR1) };
        })
    });
}

/// The TSC against the kernel's clock: 1000 MHz under `-icount shift=0`.
fn tsc_mhz() {
    let now = || {
        let mut time: libc::timespec = unsafe { core::mem::zeroed() };
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    let (clock, tsc) = (now(), ticks());
    while now() - clock < 50_000_000 {}
    let (clock, tsc) = (now() - clock, ticks() - tsc);
    report("tsc_mhz", tsc as f64 * 1000.0 / clock as f64);
}

/// C's entry: `micro` measures, `micro --exit` is what the exec test runs.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, _argv: *const *const c_char) -> c_int {
    if argc > 1 {
        return 0;
    }
    // What is measured is one processor; the second of a pair would distort it.
    let mut cpus: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    unsafe {
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &cpus);
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
    tsc_mhz();
    getpid();
    stat();
    faults();
    fork_exit();
    let path = std::env::current_exe().expect("/proc is mounted");
    vfork_exec(&CString::new(path.into_os_string().into_encoded_bytes()).expect("a path"));
    pipe_round_trip();
    signal();
    context_switch();
    println!("micro: done");
    0
}
