//! Several processors: mappings that go while other processors use them, processors that go and come.
//! On one processor there is nothing to check.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::ensure;
use crate::harness::{Check, Outcome};

pub const CHECKS: &[Check] = &[
    ("processors_remap", processors_remap),
    ("processors_tables", processors_tables),
    ("processors_go_and_come", processors_go_and_come),
    ("processors_clocks", processors_clocks),
];

const PAGE: usize = 4096;

/// Processors that are up.
fn count() -> usize {
    (unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).max(1) as usize
}

/// Puts the calling thread on a processor.
fn pin(cpu: usize) {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    unsafe { libc::CPU_SET(cpu, &mut set) };
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// Maps pages, at an address if that is not 0.
fn map(at: usize, pages: usize) -> Result<usize, String> {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let got =
        unsafe { libc::mmap(at as *mut libc::c_void, pages * PAGE, rights, flags, -1, 0) } as usize;
    if got as isize == -1 { Err(crate::harness::os_error("mmap")) } else { Ok(got) }
}

fn word(at: usize) -> *mut u64 {
    at as *mut u64
}

/// A page is replaced by another one again and again, each with a higher number in it; readers on the
/// other processors must never see a lower number than one that was there before they looked. An entry
/// that outlives its flush shows the old page.
fn processors_remap() -> Outcome {
    let cpus = count();
    if cpus < 2 {
        return Ok(());
    }
    // One page is moved over the other, so that there is no moment without one.
    let at = map(0, 2)?;
    unsafe { word(at).write_volatile(0) };
    let (now, stop, stale) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let looks = AtomicU64::new(0);
    thread::scope(|scope| {
        for cpu in 1..cpus {
            let (now, stop, stale, looks) = (&now, &stop, &stale, &looks);
            scope.spawn(move || {
                pin(cpu);
                while !stop.load(Ordering::Relaxed) {
                    let least = now.load(Ordering::SeqCst);
                    let seen = unsafe { word(at).read_volatile() };
                    if seen < least {
                        stale.fetch_add(1, Ordering::Relaxed);
                    }
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        pin(0);
        let end = Instant::now() + Duration::from_secs(6);
        let mut number = 0;
        let mut result = Ok(());
        while number < 4000 && Instant::now() < end && result.is_ok() {
            number += 1;
            result = replace(at, number);
            now.store(number, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    let stale = stale.into_inner();
    ensure!(stale == 0, "{stale} of {} looks saw a page that had gone", looks.into_inner());
    ensure!(now.into_inner() > 50, "too few turns to say anything");
    Ok(())
}

/// Puts a new page with a number in it in the place of the one at `at`; the next page is where it is made.
fn replace(at: usize, number: u64) -> Outcome {
    let fresh = map(at + PAGE, 1)?;
    unsafe { word(fresh).write_volatile(number) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (from, to) = (fresh as *mut libc::c_void, at as *mut libc::c_void);
    let got = unsafe { libc::mremap(from, PAGE, PAGE, flags, to) };
    ensure!(got == to, "mremap gave {got:?}");
    Ok(())
}

/// Page tables come and go: one thread maps and unmaps far-apart pages, so that whole tables are freed and
/// used for other things, while the others touch pages of their own through the same L4.
fn processors_tables() -> Outcome {
    const FAR: usize = 1 << 30;
    let cpus = count();
    if cpus < 2 {
        return Ok(());
    }
    let base = 0x1000_0000_0000;
    let (stop, bad) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for cpu in 1..cpus {
            let (stop, bad) = (&stop, &bad);
            scope.spawn(move || {
                pin(cpu);
                let mut turn = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let at = base + cpu * 64 * FAR + (turn as usize % 8) * FAR;
                    let Ok(at) = map(at, 2) else { continue };
                    for page in 0..2 {
                        unsafe { word(at + page * PAGE).write_volatile(turn << 8 | cpu as u64) };
                    }
                    thread::yield_now();
                    for page in 0..2 {
                        let seen = unsafe { word(at + page * PAGE).read_volatile() };
                        if seen != turn << 8 | cpu as u64 {
                            bad.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    unsafe { libc::munmap(at as *mut libc::c_void, 2 * PAGE) };
                }
            });
        }
        pin(0);
        let end = Instant::now() + Duration::from_secs(4);
        let mut turn = 0usize;
        let mut result = Ok(());
        while Instant::now() < end && result.is_ok() {
            turn += 1;
            result = map(base + (turn % 16) * FAR, 1).map(|at| {
                // A new page is empty, whatever its frame was before.
                if unsafe { word(at + 8).read_volatile() } != 0 {
                    bad.fetch_add(1, Ordering::Relaxed);
                }
                unsafe { word(at + 8).write_volatile(turn as u64) };
                unsafe { libc::munmap(at as *mut libc::c_void, PAGE) };
            });
        }
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    let bad = bad.into_inner();
    ensure!(bad == 0, "{bad} words were not what was written");
    Ok(())
}

fn online(cpu: usize, up: bool) -> Outcome {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(&path, if up { "1" } else { "0" }).map_err(|e| format!("{path} = {up}: {e}"))
}

/// Each processor but the first goes and comes a few times, under load.
fn processors_go_and_come() -> Outcome {
    let cpus = count();
    if cpus < 2 || unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                    (0..2000u64).for_each(|n| {
                        std::hint::black_box(n);
                    });
                }
            });
        }
        let turn = || -> Outcome {
            for round in 0..3 {
                for cpu in 1..cpus {
                    online(cpu, false)?;
                    ensure!(count() == cpus - 1, "round {round}: cpu {cpu} did not go");
                    online(cpu, true)?;
                    ensure!(count() == cpus, "round {round}: cpu {cpu} did not come");
                }
            }
            Ok(())
        };
        let result = turn();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// The time by the vDSO.
fn monotonic_ns() -> u64 {
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// No processor's clock is behind what another one's said before; `clocks` does the same for long.
fn processors_clocks() -> Outcome {
    let cpus = count();
    let (latest, back, looks) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for cpu in 0..cpus {
            let (latest, back, looks) = (&latest, &back, &looks);
            scope.spawn(move || {
                pin(cpu);
                while Instant::now() < end {
                    for _ in 0..1000 {
                        let least = latest.load(Ordering::SeqCst);
                        let now = monotonic_ns();
                        back.fetch_max(least.saturating_sub(now), Ordering::SeqCst);
                        latest.fetch_max(now, Ordering::SeqCst);
                    }
                    looks.fetch_add(1000, Ordering::Relaxed);
                }
            });
        }
    });
    let (back, looks) = (back.into_inner(), looks.into_inner());
    ensure!(back == 0, "a clock went back by {back} ns in {looks} looks");
    ensure!(looks > 1000, "too few looks to say anything");
    Ok(())
}
