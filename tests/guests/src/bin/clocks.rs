//! Hunts for steps back of the clocks between processors.
//!
//! `clocks SECONDS [THREADS]`: each thread reads one clock after the other and compares it with the
//! latest time that any thread has read before; half of the threads stay on a processor, half go round.
//! A line for each clock: its name, readings, steps back, the worst in its own units. The exit status
//! is 1 if there was any.
#![expect(unsafe_code, reason = "clocks are read and threads placed by libc")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How a clock is read.
type Reading = fn() -> u64;

/// Clocks that must not go back between any two processors. Both ways to read the same one are
/// compared with each other.
const CLOCKS: [(&str, &[Reading]); 4] = [
    ("monotonic", &[|| by_vdso(libc::CLOCK_MONOTONIC), || by_call(libc::CLOCK_MONOTONIC)]),
    ("raw", &[|| by_vdso(libc::CLOCK_MONOTONIC_RAW), || by_call(libc::CLOCK_MONOTONIC_RAW)]),
    ("boottime", &[|| by_vdso(libc::CLOCK_BOOTTIME), || by_call(libc::CLOCK_BOOTTIME)]),
    ("tsc", &[tsc]),
];
/// How often a thread that goes round moves, in rounds.
const ROUNDS: u64 = 2000;

/// What is known of a clock.
struct Seen {
    latest: AtomicU64,
    readings: AtomicU64,
    back: AtomicU64,
    worst: AtomicU64,
}

static SEEN: [Seen; CLOCKS.len()] = [const {
    Seen {
        latest: AtomicU64::new(0),
        readings: AtomicU64::new(0),
        back: AtomicU64::new(0),
        worst: AtomicU64::new(0),
    }
}; CLOCKS.len()];

fn ns(read: impl FnOnce(*mut libc::timespec) -> i64) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert!(read(&raw mut time) == 0, "no such clock");
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn by_vdso(clock: libc::clockid_t) -> u64 {
    // SAFETY: the kernel writes the structure.
    ns(|time| unsafe { libc::clock_gettime(clock, time) }.into())
}

fn by_call(clock: libc::clockid_t) -> u64 {
    // SAFETY: as above.
    ns(|time| unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) })
}

fn tsc() -> u64 {
    // SAFETY: neither has an effect; the fence keeps what was read before in front.
    unsafe { core::arch::x86_64::_mm_lfence() };
    // SAFETY: as above.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Puts the calling thread on a processor; one that is not there changes nothing.
fn stay_on(cpu: usize) {
    // SAFETY: a set of processors is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes into the set, below its size.
    unsafe { libc::CPU_SET(cpu % 64, &mut set) };
    // SAFETY: reads the set.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

fn hunt(number: usize, cpus: usize, end: Instant) {
    let mut round = 0;
    while Instant::now() < end {
        if round == 0 || number % 2 == 1 {
            stay_on((number / 2 + round as usize) % cpus);
        }
        for _ in 0..ROUNDS {
            for ((_, readings), seen) in CLOCKS.iter().zip(&SEEN) {
                for read in *readings {
                    look(seen, read);
                }
            }
        }
        round += 1;
    }
}

fn look(seen: &Seen, read: &Reading) {
    let least = seen.latest.load(SeqCst);
    let now = read();
    if now < least {
        seen.back.fetch_add(1, SeqCst);
        seen.worst.fetch_max(least - now, SeqCst);
    }
    seen.latest.fetch_max(now, SeqCst);
    seen.readings.fetch_add(1, SeqCst);
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(8);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let end = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        for number in 0..threads {
            scope.spawn(move || hunt(number, cpus, end));
        }
    });
    let mut back = 0;
    for ((name, _), seen) in CLOCKS.iter().zip(&SEEN) {
        let [readings, steps, worst] =
            [&seen.readings, &seen.back, &seen.worst].map(|count| count.load(SeqCst));
        println!("{name} {readings} {steps} {worst}");
        back += steps;
    }
    ExitCode::from(u8::from(back != 0))
}
