//! Disk and network at once, and how long either stands still:
//!
//! ```text
//! pressure flows SECONDS DEVICE ADDRESS:PORT
//! pressure hog MIB
//! ```
//! `flows` reads and writes blocks of DEVICE at random, around the page cache, and moves data
//! both ways over TCP (`tests/src/traffic.rs`), all checked. Of each it says what it did and the
//! longest time, in milliseconds, in which nothing of it got ahead. A watcher with a real-time
//! priority looks every few milliseconds; time in which even that did not run is the machine's and
//! not counted. `hog` touches so much memory, over and over, and does not end.

#![allow(unsafe_code, reason = "memory is locked and a priority set by libc")]

#[path = "../../../src/traffic.rs"]
#[allow(dead_code, reason = "one of its ways")]
mod traffic;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use traffic::Direction;

/// Bytes of a request to the disk, and of what a connection moves.
const BLOCK: usize = 16 << 10;
const LENGTH: u64 = 2 << 20;
const SEND_BUFFER: libc::c_int = 64 << 10;
/// Most bytes of a step up.
const STEP: usize = 4 << 10;
/// Blocks of a thread's.
const PLACES: usize = 16;
/// Until everything runs.
const WARM_UP: Duration = Duration::from_secs(2);
/// Threads of each kind.
const ROWS: u64 = 3;
/// Between two steps of a thread: the processor is not to be what everybody waits for.
const PAUSE: Duration = Duration::from_millis(10);
/// How often the watcher looks, and how late it may be.
const TICK: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_millis(10);

/// Something that is to get ahead.
struct Flow {
    name: &'static str,
    steps: AtomicU64,
}

static FLOWS: [Flow; 4] = [flow("disk-read"), flow("disk-write"), flow("net-down"), flow("net-up")];
static ENDS: AtomicBool = AtomicBool::new(false);

const fn flow(name: &'static str) -> Flow {
    Flow { name, steps: AtomicU64::new(0) }
}

impl Flow {
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

fn ends() -> bool {
    ENDS.load(Ordering::Relaxed)
}

/// A connection whose reads and writes are steps.
struct Watched {
    stream: TcpStream,
    flow: &'static Flow,
}

impl Read for Watched {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        thread::sleep(PAUSE);
        self.stream.read(to).inspect(|_| self.flow.step())
    }
}

impl Write for Watched {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        thread::sleep(PAUSE);
        // In small steps, for all to be seen.
        let part = from.get(..from.len().min(STEP)).unwrap_or_default();
        self.stream.write(part).inspect(|_| self.flow.step())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match args.as_slice() {
        ["flows", seconds, device, to] => {
            let to = to.parse().map_err(io::Error::other)?;
            flows(Duration::from_secs(number(seconds)?), device, to)
        }
        ["hog", mib] => hog(number(mib)? << 20),
        _ => Err(io::Error::other("pressure flows SECONDS DEVICE ADDRESS:PORT | hog MIB")),
    }
}

fn flows(time: Duration, device: &str, to: SocketAddr) -> io::Result<()> {
    // SAFETY: locks this process' memory; touches none of it.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let [reads, writes, downs, ups] = &FLOWS;
    let result = thread::scope(|scope| {
        let mut threads = Vec::new();
        let spawn = |body: Box<dyn FnOnce() -> io::Result<()> + Send>| {
            thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, body)
        };
        for row in 0..ROWS {
            // Each has blocks of its own, so that what was written is known.
            let file = direct.try_clone()?;
            threads.push(spawn(Box::new(move || disk(&file, row, reads, writes)))?);
            threads.push(spawn(Box::new(move || net(to, Direction::Down, row, downs)))?);
            threads.push(spawn(Box::new(move || net(to, Direction::Up, row, ups)))?);
        }
        thread::sleep(WARM_UP);
        let stalls = watch(time);
        ENDS.store(true, Ordering::Relaxed);
        let gone = |_| io::Error::other("a thread is gone");
        threads.into_iter().try_for_each(|thread| thread.join().map_err(gone)?)?;
        stalls
    });
    for (flow, stall) in FLOWS.iter().zip(result?) {
        let steps = flow.steps.load(Ordering::Relaxed);
        println!("@@ {} {} {steps}", flow.name, stall.as_millis());
    }
    Ok(())
}

/// The longest each of the flows stood still.
fn watch(time: Duration) -> io::Result<[Duration; 4]> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is whole, and is only read.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let begin = Instant::now();
    let (mut before, mut stalls) = (begin, [Duration::ZERO; 4]);
    let mut seen =
        FLOWS.each_ref().map(|flow| (flow.steps.load(Ordering::Relaxed), Duration::ZERO));
    while begin.elapsed() < time {
        thread::sleep(TICK);
        let now = Instant::now();
        let passed = (now - before).min(TICK + LATE);
        before = now;
        for ((flow, (steps, still)), stall) in FLOWS.iter().zip(&mut seen).zip(&mut stalls) {
            let new = flow.steps.load(Ordering::Relaxed);
            // What is not over counts, too.
            *still += passed;
            *stall = (*stall).max(*still);
            if new != *steps {
                (*steps, *still) = (new, Duration::ZERO);
            }
        }
    }
    Ok(stalls)
}

/// Writes blocks and reads back those that were written.
fn disk(file: &File, row: u64, reads: &Flow, writes: &Flow) -> io::Result<()> {
    // The disk is given it straight.
    let mut memory = vec![0; BLOCK + 4096];
    let begin = memory.as_ptr().align_offset(4096);
    let block = memory.get_mut(begin..begin + BLOCK).unwrap_or_default();
    let mut written = [0u64; PLACES];
    let mut random = row + 1;
    let mut number = 0;
    while !ends() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(PAUSE);
        let nr = random as usize % PLACES;
        let at = (nr as u64 * ROWS + row) * BLOCK as u64;
        let is_write = written[nr] == 0 || random >> 32 & 1 == 0;
        if is_write {
            number += 1;
            written[nr] = number;
            for (place, word) in (0u64..).zip(block.chunks_exact_mut(8)) {
                word.copy_from_slice(&(number << 32 | place ^ row << 24).to_le_bytes());
            }
            file.write_all_at(block, at)?;
            writes.step();
        } else {
            file.read_exact_at(block, at)?;
            reads.step();
            let number = written[nr];
            let wanted = |place: u64| (number << 32 | place ^ row << 24).to_le_bytes();
            if (0..).zip(block.chunks_exact(8)).any(|(place, word)| word != wanted(place)) {
                return Err(io::Error::other(format!("other data at {at}")));
            }
        }
    }
    Ok(())
}

fn net(to: SocketAddr, direction: Direction, row: u64, flow: &'static Flow) -> io::Result<()> {
    for turn in 0.. {
        if ends() {
            break;
        }
        let stream = traffic::connect(to)?;
        // Else all of it is written at once, and nothing is seen of how it goes.
        set_send_buffer(&stream, SEND_BUFFER)?;
        let shut = stream.try_clone()?;
        let mut watched = Watched { stream, flow };
        traffic::converse(&mut watched, &shut, direction, LENGTH, turn * ROWS + row)?;
    }
    Ok(())
}

fn set_send_buffer(stream: &TcpStream, bytes: libc::c_int) -> io::Result<()> {
    let (fd, size) = (stream.as_raw_fd(), size_of_val(&bytes) as libc::socklen_t);
    // SAFETY: the value is whole, and is only read.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const bytes).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn hog(bytes: u64) -> ! {
    let mut memory = vec![0u8; bytes as usize];
    loop {
        for page in memory.chunks_mut(4096) {
            page[0] = page[0].wrapping_add(1);
        }
    }
}
