//! Floating-point and vector state across switches, signals and forks.

use core::arch::asm;

use crate::ensure;
use crate::fault::on_signal;
use crate::harness::{Check, Ending, Outcome, in_child, spawn, wait};

pub const CHECKS: &[Check] = &[
    ("fpu_sse_processes", sse_processes),
    ("fpu_avx_processes", avx_processes),
    ("fpu_avx512_processes", avx512_processes),
    ("fpu_x87_processes", x87_processes),
    ("fpu_control_words", control_words),
    ("fpu_threads", threads),
    ("fpu_preempted", preempted),
    ("fpu_signal", signal),
    ("fpu_fork", fork),
];

/// The registers of one kind, as bytes.
type Image = [u8; 32 * 64];

fn image(seed: u64) -> Image {
    let mut random = crate::harness::Random(seed * 2 + 1);
    core::array::from_fn(|_| random.next() as u8)
}

/// Loads all registers of a kind, makes a system call, stores them.
macro_rules! through {
    ($name:ident, $insn:literal, $prefix:literal, $size:literal, $count:literal, $feature:literal) => {
        #[target_feature(enable = $feature)]
        fn $name(load: &Image, store: &mut Image, syscall: i64) {
            unsafe {
                asm!(
                    concat!(".altmacro\n.macro ", stringify!($name), "_load i\n", $insn, " ", $prefix,
                        "\\i, [rsi + \\i * ", $size, "]\n.endm\n.macro ", stringify!($name),
                        "_store i\n", $insn, " [rdi + \\i * ", $size, "], ", $prefix, "\\i\n.endm\n",
                        ".set n, 0\n.rept ", $count, "\n", stringify!($name), "_load %n\n",
                        ".set n, n + 1\n.endr"),
                    "push rsi", "push rdi", "syscall", "pop rdi", "pop rsi",
                    concat!(".set n, 0\n.rept ", $count, "\n", stringify!($name), "_store %n\n",
                        ".set n, n + 1\n.endr\n.purgem ", stringify!($name), "_load\n.purgem ",
                        stringify!($name), "_store\n.noaltmacro"),
                    in("rsi") load.as_ptr(), in("rdi") store.as_mut_ptr(),
                    inout("rax") syscall => _, out("rcx") _, out("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                    out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
                    out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
                    out("xmm14") _, out("xmm15") _,
                );
            }
        }
    };
}

through!(through_sse, "movdqu", "xmm", "16", "16", "sse2");
through!(through_avx, "vmovdqu", "ymm", "32", "16", "avx");
through!(through_avx512, "vmovdqu64", "zmm", "64", "32", "avx512f");

/// Several processes, each with values of its own, yield to each other.
fn processes(bytes: usize, pass: fn(&Image, &mut Image, i64)) -> Outcome {
    let children: Result<Vec<_>, _> = (0..5u64)
        .map(|seed| {
            spawn(|| {
                for round in 0..200 {
                    let load = image(seed * 1000 + round);
                    let mut store = [0; 32 * 64];
                    pass(&load, &mut store, libc::SYS_sched_yield);
                    if load.get(..bytes) != store.get(..bytes) {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "registers changed: {ending:?}");
    }
    Ok(())
}

fn sse_processes() -> Outcome {
    processes(16 * 16, |load, store, nr| unsafe { through_sse(load, store, nr) })
}

fn avx_processes() -> Outcome {
    if !is_x86_feature_detected!("avx") {
        return Ok(());
    }
    processes(16 * 32, |load, store, nr| unsafe { through_avx(load, store, nr) })
}

fn avx512_processes() -> Outcome {
    if !is_x86_feature_detected!("avx512f") {
        return Ok(());
    }
    processes(32 * 64, |load, store, nr| unsafe { through_avx512(load, store, nr) })
}

/// Eight values on the x87 stack over a system call.
fn through_x87(seed: i64) -> bool {
    let mut values: [i64; 8] = core::array::from_fn(|i| seed * 1_000_003 + i as i64);
    let wanted = values;
    unsafe {
        asm!("fninit",
             "fild qword ptr [{0}]", "fild qword ptr [{0} + 8]", "fild qword ptr [{0} + 16]",
             "fild qword ptr [{0} + 24]", "fild qword ptr [{0} + 32]", "fild qword ptr [{0} + 40]",
             "fild qword ptr [{0} + 48]", "fild qword ptr [{0} + 56]", "syscall",
             "fistp qword ptr [{0} + 56]", "fistp qword ptr [{0} + 48]",
             "fistp qword ptr [{0} + 40]", "fistp qword ptr [{0} + 32]",
             "fistp qword ptr [{0} + 24]", "fistp qword ptr [{0} + 16]",
             "fistp qword ptr [{0} + 8]", "fistp qword ptr [{0}]",
             in(reg) values.as_mut_ptr(), inout("rax") libc::SYS_sched_yield => _,
             out("rcx") _, out("r11") _, out("st(0)") _, out("st(1)") _, out("st(2)") _,
             out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
    }
    values == wanted
}

fn x87_processes() -> Outcome {
    let children: Result<Vec<_>, _> = (0..4)
        .map(|seed| spawn(|| i32::from(!(0..200).all(|i| through_x87(seed * 1000 + i)))))
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "x87 stack changed: {ending:?}");
    }
    Ok(())
}

/// Rounding modes of SSE and x87 belong to the process.
fn control_words() -> Outcome {
    let children: Result<Vec<_>, _> = (0..4u32)
        .map(|mode| {
            spawn(|| {
                let mxcsr = 0x1f80 | mode << 13;
                let control = 0x37fu16 | (mode << 10) as u16;
                let (mut mxcsr_now, mut control_now) = (0u32, 0u16);
                for _ in 0..200 {
                    unsafe {
                        asm!("ldmxcsr [{0}]", "fldcw [{1}]", "syscall", "stmxcsr [{2}]",
                             "fnstcw [{3}]", "fninit", in(reg) &raw const mxcsr,
                             in(reg) &raw const control, in(reg) &raw mut mxcsr_now,
                             in(reg) &raw mut control_now,
                             inout("rax") libc::SYS_sched_yield => _, out("rcx") _, out("r11") _);
                    }
                    if mxcsr_now & !0x3f != mxcsr || control_now != control {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "control words changed: {ending:?}");
    }
    Ok(())
}

fn threads() -> Outcome {
    let workers: Vec<_> = (0..6u64)
        .map(|seed| {
            std::thread::spawn(move || {
                (0..150).all(|round| {
                    let load = image(seed * 777 + round);
                    let mut store = [0; 32 * 64];
                    unsafe { through_sse(&load, &mut store, libc::SYS_sched_yield) };
                    load.get(..256) == store.get(..256) && through_x87((seed * 5 + round) as i64)
                })
            })
        })
        .collect();
    for worker in workers {
        ensure!(worker.join().unwrap_or(false), "registers changed in a thread");
    }
    Ok(())
}

/// Arithmetic in several processes at once, switched by the timer alone.
fn preempted() -> Outcome {
    fn compute(seed: u64) -> f64 {
        let mut value = 1.0 + seed as f64 / 7.0;
        for i in 0..400_000u32 {
            value = (value * 1.000_001 + f64::from(i).sqrt()) / 1.000_002;
        }
        value
    }
    let wanted: Vec<u64> = (0..4).map(|seed| compute(seed).to_bits()).collect();
    let children: Result<Vec<_>, _> = wanted
        .iter()
        .enumerate()
        .map(|(seed, bits)| spawn(move || i32::from(compute(seed as u64).to_bits() != *bits)))
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "a computation went wrong: {ending:?}");
    }
    Ok(())
}

/// A handler that uses every vector register.
fn signal() -> Outcome {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let (load, mut store) = (image(4711), [0; 32 * 64]);
        if is_x86_feature_detected!("avx") {
            unsafe { through_avx(&load, &mut store, libc::SYS_getppid) };
        } else {
            unsafe { through_sse(&load, &mut store, libc::SYS_getppid) };
        }
        through_x87(99);
    }
    on_signal(libc::SIGALRM, handler, 0)?;
    // Repeated, so that one that comes before pause() does no harm; not so often that a busy
    // emulator does nothing but signals.
    let ms = libc::timeval { tv_sec: 0, tv_usec: 4000 };
    let timer = libc::itimerval { it_interval: ms, it_value: ms };
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, core::ptr::null_mut()) };
    for round in 0..200 {
        let load = image(round);
        let mut store = [0; 32 * 64];
        unsafe { through_sse(&load, &mut store, libc::SYS_pause) };
        ensure!(load.get(..256) == store.get(..256), "round {round}: registers changed");
        if is_x86_feature_detected!("avx") {
            unsafe { through_avx(&load, &mut store, libc::SYS_pause) };
            ensure!(load.get(..512) == store.get(..512), "round {round}: registers changed");
        }
    }
    Ok(())
}

fn fork() -> Outcome {
    for round in 0..30 {
        let load = image(round + 5);
        let mut store = [0; 32 * 64];
        let ending = in_child(|| {
            // A fork inside: both sides go on with the same registers.
            unsafe { through_sse(&load, &mut store, libc::SYS_fork) };
            i32::from(load.get(..256) != store.get(..256))
        })?;
        ensure!(ending == Ending::Exited(0), "registers changed over fork: {ending:?}");
    }
    Ok(())
}
