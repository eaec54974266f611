//! Clocks and timers. Upper bounds are wide, for emulators share their host;
//! lower bounds and order are exact.

use core::ptr;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::harness::{Check, Outcome, must};

pub const CHECKS: &[Check] = &[
    ("clock_monotonic", clock_monotonic),
    ("clock_rates_agree", clock_rates_agree),
    ("clock_vdso_agrees", clock_vdso_agrees),
    ("clock_wall", clock_wall),
    ("clock_coarse", clock_coarse),
    ("cpu_time", cpu_time),
    ("nanosleep", nanosleep),
    ("nanosleep_short", nanosleep_short),
    ("nanosleep_absolute", nanosleep_absolute),
    ("timerfd_once", timerfd_once),
    ("timerfd_periodic", timerfd_periodic),
    ("poll_timeout", poll_timeout),
    ("sleepers", sleepers),
];

/// How late a timer may be: an emulator's host may be busy.
const SLACK: Duration = Duration::from_millis(500);
/// How often in a row: a host that is busy makes it later now and then, a timer that does not work
/// is late every time.
const ATTEMPTS: u32 = 5;

fn read_clock(clock: libc::clockid_t) -> u128 {
    let mut time: libc::timespec = unsafe { core::mem::zeroed() };
    unsafe { libc::clock_gettime(clock, &mut time) };
    (time.tv_sec as u128) * 1_000_000_000 + time.tv_nsec as u128
}

/// The same clock by the system call.
fn ask_clock(clock: libc::clockid_t) -> u128 {
    let mut time: libc::timespec = unsafe { core::mem::zeroed() };
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &mut time) };
    (time.tv_sec as u128) * 1_000_000_000 + time.tv_nsec as u128
}

fn spec(ns: u128) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

fn clock_monotonic() -> Outcome {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_BOOTTIME] {
        let mut before = read_clock(clock);
        for i in 0..60_000 {
            let now = if i % 16 == 0 { ask_clock(clock) } else { read_clock(clock) };
            ensure!(now >= before, "clock {clock} went back by {} ns", before - now);
            before = now;
        }
    }
    Ok(())
}

const CLOCKS: [libc::clockid_t; 3] =
    [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_REALTIME];

/// The clocks and the TSC at one moment: of several readings the one that was interrupted least.
fn moment() -> ([u128; 3], u64) {
    let tsc = || unsafe { core::arch::x86_64::_rdtsc() };
    let reading = || {
        let start = tsc();
        (CLOCKS.map(read_clock), start, tsc() - start)
    };
    let best = (0..20).map(|_| reading()).min_by_key(|(.., took)| *took);
    best.map_or(([0; 3], 0), |(clocks, start, _)| (clocks, start))
}

/// Monotonic, raw and wall clock and the TSC tell the same interval.
fn clock_rates_agree() -> Outcome {
    let mut rates = Vec::new();
    for _ in 0..2 {
        let (start, tsc_start) = moment();
        std::thread::sleep(Duration::from_millis(300));
        let (end, tsc_end) = moment();
        let took: Vec<f64> = (0..3).map(|i| (end[i] - start[i]) as f64).collect();
        for (clock, ns) in CLOCKS.iter().zip(&took) {
            let off = (ns / took[0] - 1.0).abs();
            ensure!(off < 0.01, "clock {clock}: {ns} ns, monotonic {} ns", took[0]);
        }
        rates.push((tsc_end - tsc_start) as f64 / took[0]);
    }
    let off = (rates[0] / rates[1] - 1.0).abs();
    ensure!(off < 0.02, "TSC rate {} GHz, then {} GHz", rates[0], rates[1]);
    Ok(())
}

fn clock_vdso_agrees() -> Outcome {
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    ensure!(vdso != 0, "no vDSO");
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME] {
        for _ in 0..5000 {
            let (before, between, after) = (ask_clock(clock), read_clock(clock), ask_clock(clock));
            ensure!(
                before <= between && between <= after,
                "clock {clock}: system call {before}, vDSO {between}, system call {after}"
            );
        }
    }
    let cpu = unsafe { libc::sched_getcpu() };
    ensure!(cpu >= 0, "getcpu: {cpu}");
    Ok(())
}

fn clock_wall() -> Outcome {
    let seconds = read_clock(libc::CLOCK_REALTIME) / 1_000_000_000;
    // 2020 to 2100: the host's clock, not the epoch.
    ensure!((1_577_836_800..4_102_444_800).contains(&seconds), "the time is {seconds}");
    Ok(())
}

fn clock_coarse() -> Outcome {
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(12));
        let (fine, coarse) =
            (read_clock(libc::CLOCK_MONOTONIC), read_clock(libc::CLOCK_MONOTONIC_COARSE));
        let late = fine.saturating_sub(coarse);
        ensure!(late < SLACK.as_nanos(), "the coarse clock is {late} ns behind");
    }
    Ok(())
}

/// Computing takes CPU time, sleeping takes none.
fn cpu_time() -> Outcome {
    let clock = libc::CLOCK_PROCESS_CPUTIME_ID;
    let (cpu, wall) = (read_clock(clock), Instant::now());
    while wall.elapsed() < Duration::from_millis(200) {
        core::hint::spin_loop();
    }
    let busy = read_clock(clock) - cpu;
    ensure!((20_000_000..1_000_000_000).contains(&busy), "200 ms of work are {busy} ns");
    let cpu = read_clock(clock);
    std::thread::sleep(Duration::from_millis(200));
    let idle = read_clock(clock) - cpu;
    ensure!(idle < 100_000_000, "200 ms of sleep are {idle} ns of CPU time");
    Ok(())
}

/// Waits until a wait was not late. None may be early.
fn punctual(what: &str, wanted: Duration, mut wait: impl FnMut() -> Outcome) -> Outcome {
    let mut taken = Duration::ZERO;
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        wait()?;
        taken = start.elapsed();
        ensure!(taken >= wanted, "{what}: {taken:?} instead of {wanted:?}");
        if taken < wanted + SLACK {
            return Ok(());
        }
    }
    Err(format!("{what}: {taken:?} instead of {wanted:?}, {ATTEMPTS} times too late"))
}

fn sleep(wanted: Duration) -> Outcome {
    punctual("nanosleep", wanted, || {
        std::thread::sleep(wanted);
        Ok(())
    })
}

fn nanosleep() -> Outcome {
    for ms in [1u64, 5, 20, 50, 100, 250] {
        sleep(Duration::from_millis(ms))?;
    }
    Ok(())
}

fn nanosleep_short() -> Outcome {
    let start = Instant::now();
    for us in 0..200 {
        sleep(Duration::from_micros(us))?;
    }
    // 20 ms asked for in all; each wake-up costs something.
    let taken = start.elapsed();
    ensure!(taken >= Duration::from_millis(19), "200 short sleeps in {taken:?}");
    ensure!(taken < 10 * SLACK, "200 short sleeps in {taken:?}");
    Ok(())
}

fn nanosleep_absolute() -> Outcome {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME] {
        for _ in 0..5 {
            punctual("clock_nanosleep", Duration::ZERO, || {
                let until = read_clock(clock) + 15_000_000;
                let result = unsafe {
                    libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &spec(until), ptr::null_mut())
                };
                ensure!(result == 0, "clock_nanosleep: {result}");
                let now = read_clock(clock);
                ensure!(now >= until, "clock {clock} woke {} ns early", until - now);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn timerfd(first_ns: u128, interval_ns: u128) -> Result<i32, String> {
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
    must(fd, "timerfd_create")?;
    let setting = libc::itimerspec { it_value: spec(first_ns), it_interval: spec(interval_ns) };
    must(unsafe { libc::timerfd_settime(fd, 0, &setting, ptr::null_mut()) }, "timerfd_settime")?;
    Ok(fd)
}

fn expirations(fd: i32) -> u64 {
    let mut count = 0u64;
    unsafe { libc::read(fd, ptr::from_mut(&mut count).cast(), 8) };
    count
}

fn timerfd_once() -> Outcome {
    for ms in [2u64, 10, 40] {
        punctual("timerfd", Duration::from_millis(ms), || {
            let fd = timerfd(u128::from(ms) * 1_000_000, 0)?;
            let count = expirations(fd);
            ensure!(count == 1, "{count} expirations");
            crate::harness::close(fd);
            Ok(())
        })?;
    }
    Ok(())
}

fn timerfd_periodic() -> Outcome {
    let start = Instant::now();
    let fd = timerfd(10_000_000, 10_000_000)?;
    let (mut total, mut late) = (0, 0);
    while total < 30 {
        total += expirations(fd);
        let (wanted, taken) = (Duration::from_millis(10) * total as u32, start.elapsed());
        ensure!(taken >= wanted, "{total} expirations in {taken:?}");
        // One that comes late counts those it missed.
        late += u32::from(taken >= wanted + SLACK);
        ensure!(late < ATTEMPTS, "{total} expirations in {taken:?}, the {late}th too late");
    }
    Ok(())
}

fn poll_timeout() -> Outcome {
    for ms in [1, 10, 30] {
        punctual("poll", Duration::from_millis(ms as u64), || {
            let result = unsafe { libc::poll(ptr::null_mut(), 0, ms) };
            ensure!(result == 0, "poll: {result}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Many timers at once, in several processes.
fn sleepers() -> Outcome {
    let children: Result<Vec<_>, _> = (0..12u64)
        .map(|i| {
            crate::harness::spawn(move || {
                for round in 0..10 {
                    if sleep(Duration::from_millis(1 + (i * 7 + round * 3) % 20)).is_err() {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = crate::harness::wait(pid)?;
        ensure!(ending == crate::harness::Ending::Exited(0), "a sleeper was off: {ending:?}");
    }
    Ok(())
}
