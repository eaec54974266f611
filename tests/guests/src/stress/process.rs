//! fork, exec, wait and pipes.

use core::ptr;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;

use crate::ensure;
use crate::harness::{Check, Ending, Outcome, Random, close, in_child, must, pipe, spawn, wait};
use crate::memory::{PAGE, map};

pub const CHECKS: &[Check] = &[
    ("fork_storm", fork_storm),
    ("fork_many_at_once", fork_many_at_once),
    ("fork_tree", fork_tree),
    ("exec_storm", exec_storm),
    ("kill_child", kill_child),
    ("cow", cow),
    ("cow_chain", cow_chain),
    ("pipe_stream", pipe_stream),
    ("pipe_ping_pong", pipe_ping_pong),
    ("pipe_broken", pipe_broken),
];

fn fork_storm() -> Outcome {
    for i in 0..200 {
        let ending = in_child(|| i & 0x7f)?;
        ensure!(ending == Ending::Exited(i & 0x7f), "fork {i}: {ending:?}");
    }
    Ok(())
}

fn fork_many_at_once() -> Outcome {
    for round in 0..4 {
        let children: Result<Vec<_>, _> = (0..24)
            .map(|i| {
                spawn(|| {
                    for _ in 0..20 {
                        unsafe { libc::sched_yield() };
                    }
                    i
                })
            })
            .collect();
        for (i, pid) in children?.into_iter().enumerate() {
            let ending = wait(pid)?;
            ensure!(ending == Ending::Exited(i as i32), "round {round} child {i}: {ending:?}");
        }
    }
    Ok(())
}

/// Counts the leaves of a tree of processes through their exit statuses.
fn tree(depth: u32) -> i32 {
    if depth == 0 {
        return 1;
    }
    let children = [spawn(|| tree(depth - 1)), spawn(|| tree(depth - 1))];
    let mut leaves = 0;
    for child in children {
        match child.and_then(wait) {
            Ok(Ending::Exited(below)) => leaves += below,
            _ => return 0,
        }
    }
    leaves
}

fn fork_tree() -> Outcome {
    let leaves = tree(6);
    ensure!(leaves == 64, "64 leaves, counted {leaves}");
    Ok(())
}

/// Runs this program again as `stress --exit STATUS`.
fn exec(status: i32) -> i32 {
    let Ok(path) = std::env::current_exe() else { return 98 };
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return 98 };
    let Ok(number) = CString::new(status.to_string()) else { return 98 };
    let argv = [path.as_ptr(), c"--exit".as_ptr(), number.as_ptr(), ptr::null()];
    unsafe { libc::execv(path.as_ptr(), argv.as_ptr()) };
    99
}

fn exec_storm() -> Outcome {
    for i in 1..40 {
        let ending = in_child(|| exec(i))?;
        ensure!(ending == Ending::Exited(i), "exec {i}: {ending:?}");
    }
    Ok(())
}

fn kill_child() -> Outcome {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let pid = spawn(|| {
            loop {
                core::hint::spin_loop();
            }
        })?;
        unsafe {
            libc::usleep(2000);
            libc::kill(pid, signal);
        }
        let ending = wait(pid)?;
        ensure!(ending == Ending::Killed(signal), "{ending:?} instead of signal {signal}");
    }
    Ok(())
}

fn fill(area: *mut u8, pages: usize, seed: u64) {
    let mut random = Random(seed);
    for page in 0..pages {
        unsafe { area.add(page * PAGE).cast::<u64>().write_volatile(random.next()) };
    }
}

fn filled(area: *mut u8, pages: usize, seed: u64) -> bool {
    let mut random = Random(seed);
    (0..pages)
        .all(|page| unsafe { area.add(page * PAGE).cast::<u64>().read_volatile() == random.next() })
}

/// After fork each side sees its own writes only.
fn cow() -> Outcome {
    const PAGES: usize = 512;
    let area = map(PAGES * PAGE, 0)?;
    fill(area, PAGES, 1);
    let (wait_end, go_end) = pipe()?;
    let pid = spawn(|| {
        let before = filled(area, PAGES, 1);
        let mut byte = 0u8;
        unsafe { libc::read(wait_end, ptr::from_mut(&mut byte).cast(), 1) };
        // The parent has written all pages by now.
        let after = filled(area, PAGES, 1);
        fill(area, PAGES, 3);
        let own = filled(area, PAGES, 3);
        i32::from(!before) | i32::from(!after) << 1 | i32::from(!own) << 2
    })?;
    fill(area, PAGES, 2);
    must(unsafe { libc::write(go_end, c"x".as_ptr().cast(), 1) } as i64, "write")?;
    let ending = wait(pid)?;
    ensure!(ending == Ending::Exited(0), "the child saw wrong data: {ending:?}");
    ensure!(filled(area, PAGES, 2), "the parent saw wrong data");
    Ok(())
}

/// A chain of processes, each forked by the one before, sharing pages.
fn cow_chain() -> Outcome {
    const PAGES: usize = 32;
    fn link(area: *mut u8, depth: u64) -> i32 {
        if !filled(area, PAGES, depth + 1) {
            return 100 + depth as i32;
        }
        if depth == 12 {
            return 0;
        }
        let below = in_child(|| {
            fill(area, PAGES, depth + 2);
            link(area, depth + 1)
        });
        match below {
            Ok(Ending::Exited(0)) if filled(area, PAGES, depth + 1) => 0,
            Ok(Ending::Exited(status)) if status != 0 => status,
            _ => 50 + depth as i32,
        }
    }
    let area = map(PAGES * PAGE, 0)?;
    fill(area, PAGES, 1);
    let status = link(area, 0);
    ensure!(status == 0, "status {status}");
    Ok(())
}

fn pipe_stream() -> Outcome {
    const BYTES: usize = 2 << 20;
    let (from, to) = pipe()?;
    let pid = spawn(|| {
        close(from);
        let mut random = Random(7);
        let data: Vec<u8> = (0..BYTES).map(|_| random.next() as u8).collect();
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let wrote = unsafe { libc::write(to, rest.as_ptr().cast(), rest.len().min(5000)) };
            if wrote <= 0 {
                return 1;
            }
            rest = rest.get(wrote as usize..).unwrap_or_default();
        }
        0
    })?;
    close(to);
    let mut random = Random(7);
    let mut buffer = [0u8; 7001];
    let mut total = 0;
    loop {
        let got = unsafe { libc::read(from, buffer.as_mut_ptr().cast(), buffer.len()) };
        must(got as i64, "read")?;
        if got == 0 {
            break;
        }
        for byte in buffer.iter().take(got as usize) {
            ensure!(*byte == random.next() as u8, "wrong byte near {total}");
        }
        total += got as usize;
    }
    ensure!(total == BYTES, "{total} bytes of {BYTES}");
    let ending = wait(pid)?;
    ensure!(ending == Ending::Exited(0), "writer: {ending:?}");
    Ok(())
}

fn pipe_ping_pong() -> Outcome {
    let (there, back) = (pipe()?, pipe()?);
    let pid = spawn(|| {
        close(there.1);
        let mut value = 0u32;
        let pointer = ptr::from_mut(&mut value);
        loop {
            if unsafe { libc::read(there.0, pointer.cast(), 4) } != 4 {
                return 0;
            }
            value = value.wrapping_mul(3);
            unsafe { libc::write(back.1, ptr::from_ref(&value).cast(), 4) };
        }
    })?;
    for i in 0..2000u32 {
        let mut value = i;
        unsafe {
            libc::write(there.1, ptr::from_ref(&value).cast(), 4);
            libc::read(back.0, ptr::from_mut(&mut value).cast(), 4);
        }
        ensure!(value == i.wrapping_mul(3), "round {i}: {value}");
    }
    close(there.1);
    let ending = wait(pid)?;
    ensure!(ending == Ending::Exited(0), "{ending:?}");
    Ok(())
}

fn pipe_broken() -> Outcome {
    let (from, to) = pipe()?;
    close(from);
    let ending = in_child(|| {
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::write(to, c"x".as_ptr().cast(), 1);
        }
        0
    })?;
    ensure!(ending == Ending::Killed(libc::SIGPIPE), "{ending:?} instead of SIGPIPE");
    Ok(())
}
