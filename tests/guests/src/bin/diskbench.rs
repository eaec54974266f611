//! What a disk does: reads and writes past the page cache, of several sizes, one
//! or many at a time. `diskbench DEVICE NAME...` runs the phases of those names;
//! `diskbench` alone lists them.
//!
//! Each phase says `@@ NAME begin` and `@@ NAME end`, for whoever counts in
//! between, and then one JSON line; who counts instructions finds markers around
//! its requests. It overwrites the device.
#![no_main]
#![expect(unsafe_code, reason = "every line is a system call")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "a benchmark calls libc throughout")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a benchmark calls libc throughout")]

#[path = "../marker.rs"]
mod marker;

use core::ffi::{CStr, c_char, c_int, c_long};
use core::ptr::null_mut;
use std::io::Write as _;
use std::time::Instant;

/// A kind of request, how many at a time and in all.
struct Phase {
    name: &'static str,
    bytes: usize,
    write: bool,
    random: bool,
    depth: usize,
    count: usize,
}

const fn phase(name: &'static str, bytes: usize, depth: usize, count: usize) -> Phase {
    let letters = name.as_bytes();
    Phase { name, bytes, write: letters[0] == b'w', random: bytes == 4096, depth, count }
}

const KIB: usize = 1024;
/// The first letter says what: read or write. 4 KiB at random, more in order.
const PHASES: [Phase; 12] = [
    phase("read-4k-1", 4 * KIB, 1, 2000),
    phase("read-4k-32", 4 * KIB, 32, 8000),
    phase("write-4k-1", 4 * KIB, 1, 2000),
    phase("write-4k-32", 4 * KIB, 32, 8000),
    phase("read-64k-1", 64 * KIB, 1, 1000),
    phase("read-64k-32", 64 * KIB, 32, 2000),
    phase("write-64k-1", 64 * KIB, 1, 1000),
    phase("write-64k-32", 64 * KIB, 32, 2000),
    phase("read-1m-1", KIB * KIB, 1, 120),
    phase("read-1m-32", KIB * KIB, 32, 240),
    phase("write-1m-1", KIB * KIB, 1, 120),
    phase("write-1m-32", KIB * KIB, 32, 240),
];

/// `struct iocb` of the kernel (`linux/aio_abi.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;

fn check(result: c_long, what: &str) -> c_long {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
    unsafe { libc::tcdrain(1) };
}

/// A device and the kernel's queue for it.
struct Disk {
    fd: c_int,
    bytes: u64,
    context: u64,
}

impl Disk {
    fn open(path: &CStr) -> Self {
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_DIRECT) };
        check(fd.into(), "open");
        let bytes = unsafe { libc::lseek(fd, 0, libc::SEEK_END) };
        let mut context = 0u64;
        check(unsafe { libc::syscall(libc::SYS_io_setup, 64, &raw mut context) }, "io_setup");
        Self { fd, bytes: check(bytes, "size") as u64, context }
    }

    fn run(&self, phase: &Phase) {
        let memory = phase.bytes * phase.depth;
        let buffer = unsafe {
            libc::mmap(
                null_mut(),
                memory,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        assert!(buffer != libc::MAP_FAILED, "mmap");
        say(&format!("@@ {} begin", phase.name));
        let start = Instant::now();
        marker::begin();
        self.requests(phase, buffer as u64);
        marker::end();
        let seconds = start.elapsed().as_secs_f64();
        say(&format!("@@ {} end", phase.name));
        say(&format!(
            "{{\"name\":\"{}\",\"count\":{},\"bytes\":{},\"seconds\":{seconds:.6}}}",
            phase.name, phase.count, phase.bytes
        ));
        unsafe { libc::munmap(buffer, memory) };
    }

    fn requests(&self, phase: &Phase, buffer: u64) {
        let blocks = self.bytes / phase.bytes as u64;
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut submitted = 0;
        let mut next = |slot: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let block = if phase.random { (seed >> 33) % blocks } else { submitted % blocks };
            submitted += 1;
            Iocb {
                data: slot as u64,
                opcode: if phase.write { IOCB_CMD_PWRITE } else { IOCB_CMD_PREAD },
                fd: self.fd as u32,
                buf: buffer + (slot * phase.bytes) as u64,
                nbytes: phase.bytes as u64,
                offset: (block * phase.bytes as u64) as i64,
                ..Iocb::default()
            }
        };
        let mut slots: Vec<Iocb> = (0..phase.depth).map(&mut next).collect();
        self.submit(&mut slots, &(0..phase.depth).collect::<Vec<_>>());
        let (mut done, mut started) = (0, phase.depth);
        while done < phase.count {
            let mut events = [IoEvent::default(); 64];
            let got = check(
                unsafe {
                    libc::syscall(
                        libc::SYS_io_getevents,
                        self.context,
                        1,
                        events.len(),
                        events.as_mut_ptr(),
                        0,
                    )
                },
                "io_getevents",
            ) as usize;
            let mut again = Vec::with_capacity(got);
            for event in &events[..got] {
                assert_eq!(event.res, phase.bytes as i64, "{}: request failed", phase.name);
                done += 1;
                if started < phase.count {
                    started += 1;
                    let slot = event.data as usize;
                    slots[slot] = next(slot);
                    again.push(slot);
                }
            }
            self.submit(&mut slots, &again);
        }
    }

    fn submit(&self, slots: &mut [Iocb], which: &[usize]) {
        let mut list: Vec<*mut Iocb> = which.iter().map(|&slot| &raw mut slots[slot]).collect();
        while !list.is_empty() {
            let taken = check(
                unsafe {
                    libc::syscall(libc::SYS_io_submit, self.context, list.len(), list.as_mut_ptr())
                },
                "io_submit",
            );
            list.drain(..taken as usize);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let words: Vec<&CStr> =
        (1..argc as usize).map(|at| unsafe { CStr::from_ptr(*argv.add(at)) }).collect();
    let Some((device, names)) = words.split_first() else {
        PHASES.iter().for_each(|phase| println!("{}", phase.name));
        return 0;
    };
    let disk = Disk::open(device);
    for phase in &PHASES {
        if names.is_empty() || names.iter().any(|name| name.to_bytes() == phase.name.as_bytes()) {
            disk.run(phase);
        }
    }
    say("diskbench: done");
    0
}
