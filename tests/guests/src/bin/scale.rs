//! Loops of several threads of one process, each on a processor of its own: how they get on beside each
//! other. `scale` lists its phases; `scale SECONDS PHASE…` runs them, each between two lines `@@ PHASE
//! begin` and `@@ PHASE end`, and says how often its loop went round.
//!
//! - `fault-N`: N threads map, touch and unmap 256 KiB each; counted are pages.
//! - `mmap-N`: they map, touch and unmap one page each.
//! - `futex-N`: N pairs of threads wake each other in turn; the two of a pair are on neighbouring
//!   processors, or on the same one where there is only one. Who is woken quickly finds the other still
//!   awake.
//! - `wake-N`: the same, but each works for a while before its turn is over, so that the other is asleep.
#![expect(unsafe_code, reason = "memory, threads' places and futexes by system calls")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One turn of a thread's loop; what it did.
type Turn = fn() -> u64;

const THREADS: [usize; 3] = [1, 2, 4];
const KINDS: [&str; 4] = ["fault", "mmap", "futex", "wake"];
/// How long a turn of `wake` takes at least: the other one sleeps by then.
const WORK: Duration = Duration::from_millis(1);
const PAGE: usize = 4096;
const PAGES: usize = 64;
/// A processor waits so long for its other half before it looks at the time.
static PATIENCE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };

static STOP: AtomicBool = AtomicBool::new(false);

fn stay_on(cpu: usize) {
    // SAFETY: a set of processors is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes into the set, below its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: reads the set.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// Maps pages, writes to each, unmaps them.
fn pages(count: usize) -> u64 {
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the kernel chooses the place.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), count * PAGE, rights, flags, -1, 0) };
    assert!(at != libc::MAP_FAILED, "mmap");
    for page in 0..count {
        // SAFETY: just mapped.
        unsafe { at.cast::<u8>().wrapping_add(page * PAGE).write_volatile(1) };
    }
    // SAFETY: nobody else uses it.
    unsafe { libc::munmap(at, count * PAGE) };
    count as u64
}

/// Runs a turn over and over on each of so many processors; how much was done.
fn beside_each_other(threads: usize, cpus: usize, turn: Turn) -> u64 {
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..threads {
            let done = &done;
            scope.spawn(move || {
                stay_on(number % cpus);
                let mut own = 0;
                while !STOP.load(Ordering::Relaxed) {
                    own += turn();
                }
                done.fetch_add(own, Ordering::Relaxed);
            });
        }
    });
    done.into_inner()
}

fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    let place = word.as_ptr();
    // SAFETY: the word lives as long as the call; the time is a constant.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            place,
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            &raw const PATIENCE,
        )
    };
}

fn busy_for(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Pairs that wake each other in turn, and work so long in each; how often.
fn ping_pong(pairs: usize, cpus: usize, work: Duration) -> u64 {
    let words: Vec<AtomicU32> = (0..pairs).map(|_| AtomicU32::new(0)).collect();
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..2 * pairs {
            let (word, done) = (&words[number / 2], &done);
            scope.spawn(move || {
                stay_on(number % cpus);
                let (mine, mut own) = ((number % 2) as u32, 0);
                while !STOP.load(Ordering::Relaxed) {
                    if word.load(Ordering::SeqCst) != mine {
                        futex(word, libc::FUTEX_WAIT, 1 - mine);
                        continue;
                    }
                    if !work.is_zero() {
                        busy_for(work);
                    }
                    word.store(1 - mine, Ordering::SeqCst);
                    futex(word, libc::FUTEX_WAKE, 1);
                    own += 1;
                }
                done.fetch_add(own, Ordering::Relaxed);
            });
        }
    });
    done.into_inner()
}

fn phase(name: &str, seconds: u64) -> Option<()> {
    let (kind, threads) = name.split_once('-')?;
    let threads: usize = threads.parse().ok().filter(|threads| THREADS.contains(threads))?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    STOP.store(false, Ordering::SeqCst);
    println!("@@ {name} begin");
    let begin = Instant::now();
    let timer = thread::spawn(move || {
        thread::sleep(Duration::from_secs(seconds));
        STOP.store(true, Ordering::SeqCst);
    });
    let count = match kind {
        "fault" => beside_each_other(threads, cpus, || pages(PAGES)),
        "mmap" => beside_each_other(threads, cpus, || pages(1)),
        "futex" => ping_pong(threads, cpus, Duration::ZERO),
        "wake" => ping_pong(threads, cpus, WORK),
        _ => return None,
    };
    let took = begin.elapsed().as_secs_f64();
    println!("@@ {name} end");
    println!("{{\"name\":\"{name}\",\"count\":{count},\"seconds\":{took:.6}}}");
    timer.join().ok()
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(seconds) = args.next().and_then(|n| n.parse().ok()) else {
        for kind in KINDS {
            THREADS.iter().for_each(|threads| println!("{kind}-{threads}"));
        }
        return ExitCode::SUCCESS;
    };
    for name in args {
        if phase(&name, seconds).is_none() {
            eprintln!("no phase {name}");
            return ExitCode::FAILURE;
        }
    }
    println!("scale: done");
    ExitCode::SUCCESS
}
