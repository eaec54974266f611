//! Threads and what they wait on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::thread;

use crate::ensure;
use crate::harness::{Check, Outcome, must};

pub const CHECKS: &[Check] = &[
    ("threads_storm", threads_storm),
    ("threads_mutex", threads_mutex),
    ("threads_ping_pong", threads_ping_pong),
    ("threads_channels", threads_channels),
    ("threads_barrier", threads_barrier),
    ("threads_mappings", threads_mappings),
    ("futex_wait_times_out", futex_wait_times_out),
    ("eventfd_epoll", eventfd_epoll),
    ("thread_signals", thread_signals),
];

fn joined<T>(handle: thread::JoinHandle<T>) -> Result<T, String> {
    handle.join().map_err(|_| "a thread panicked".to_owned())
}

fn threads_storm() -> Outcome {
    for round in 0..20u64 {
        let workers: Vec<_> = (0..16u64).map(|i| thread::spawn(move || i * round)).collect();
        let mut sum = 0;
        for worker in workers {
            sum += joined(worker)?;
        }
        ensure!(sum == 120 * round, "round {round}: {sum}");
    }
    Ok(())
}

fn threads_mutex() -> Outcome {
    let total = Arc::new(Mutex::new(0u64));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let total = Arc::clone(&total);
            thread::spawn(move || {
                for i in 0..3000 {
                    if let Ok(mut total) = total.lock() {
                        *total += 1;
                    }
                    if i % 100 == 0 {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        joined(worker)?;
    }
    let total = total.lock().map(|t| *t).unwrap_or(0);
    ensure!(total == 24_000, "{total} of 24000");
    Ok(())
}

fn threads_ping_pong() -> Outcome {
    let ball = Arc::new((Mutex::new(0u32), Condvar::new()));
    let other = Arc::clone(&ball);
    let play = |ball: &(Mutex<u32>, Condvar), side: u32| {
        let (lock, signal) = ball;
        let Ok(mut count) = lock.lock() else { return };
        while *count < 4000 {
            if *count % 2 == side {
                *count += 1;
                signal.notify_one();
            } else {
                match signal.wait(count) {
                    Ok(next) => count = next,
                    Err(_) => return,
                }
            }
        }
        signal.notify_all();
    };
    let second = thread::spawn(move || play(&other, 1));
    play(&ball, 0);
    joined(second)?;
    let count = ball.0.lock().map(|c| *c).unwrap_or(0);
    ensure!(count == 4000, "{count} strokes");
    Ok(())
}

fn threads_channels() -> Outcome {
    let (to_first, mut input) = mpsc::channel::<u64>();
    for _ in 0..6 {
        let (to_next, next) = mpsc::channel();
        let from = core::mem::replace(&mut input, next);
        thread::spawn(move || {
            for value in from {
                if to_next.send(value + 1).is_err() {
                    return;
                }
            }
        });
    }
    for i in 0..500 {
        to_first.send(i).map_err(|e| e.to_string())?;
        let got = input.recv().map_err(|e| e.to_string())?;
        ensure!(got == i + 6, "{got} instead of {}", i + 6);
    }
    Ok(())
}

fn threads_barrier() -> Outcome {
    let barrier = Arc::new(Barrier::new(6));
    let steps = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..6)
        .map(|_| {
            let (barrier, steps) = (Arc::clone(&barrier), Arc::clone(&steps));
            thread::spawn(move || {
                (0..100).all(|round| {
                    steps.fetch_add(1, Ordering::Relaxed);
                    barrier.wait();
                    let right = steps.load(Ordering::Relaxed) == (round + 1) * 6;
                    barrier.wait();
                    right
                })
            })
        })
        .collect();
    for worker in workers {
        ensure!(joined(worker)?, "a thread passed the barrier early");
    }
    Ok(())
}

/// Threads map and unmap in one address space.
fn threads_mappings() -> Outcome {
    let workers: Vec<_> = (0..4u8)
        .map(|id| {
            thread::spawn(move || -> Outcome {
                for round in 0..100 {
                    let area = crate::memory::map(16 * 4096, 0)?;
                    for page in 0..16 {
                        unsafe { area.add(page * 4096).write_volatile(id) };
                    }
                    thread::yield_now();
                    for page in 0..16 {
                        let found = unsafe { area.add(page * 4096).read_volatile() };
                        ensure!(found == id, "thread {id} round {round} page {page}: {found}");
                    }
                    must(unsafe { libc::munmap(area.cast(), 16 * 4096) }, "munmap")?;
                }
                Ok(())
            })
        })
        .collect();
    for worker in workers {
        joined(worker)??;
    }
    Ok(())
}

fn futex_wait_times_out() -> Outcome {
    let word = 7u32;
    for ms in [1, 10, 30] {
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        let start = std::time::Instant::now();
        let result = unsafe {
            libc::syscall(libc::SYS_futex, &word, libc::FUTEX_WAIT, 7, &timeout, 0usize, 0)
        };
        let error = std::io::Error::last_os_error().raw_os_error();
        ensure!(result == -1 && error == Some(libc::ETIMEDOUT), "futex: {result} {error:?}");
        let taken = start.elapsed().as_micros();
        ensure!(taken >= ms as u128 * 1000, "{ms} ms took {taken} us");
    }
    Ok(())
}

fn eventfd_epoll() -> Outcome {
    let (event, poll) = unsafe { (libc::eventfd(0, 0), libc::epoll_create1(0)) };
    must(event, "eventfd")?;
    must(poll, "epoll_create1")?;
    let mut wanted = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 42 };
    must(unsafe { libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, event, &mut wanted) }, "epoll_ctl")?;
    let writer = thread::spawn(move || {
        for i in 1..=200u64 {
            unsafe { libc::write(event, core::ptr::from_ref(&i).cast(), 8) };
            thread::yield_now();
        }
    });
    let mut sum = 0;
    while sum < 20_100 {
        let mut got = libc::epoll_event { events: 0, u64: 0 };
        let ready = unsafe { libc::epoll_wait(poll, &mut got, 1, 20_000) };
        let tag = got.u64;
        ensure!(ready == 1 && tag == 42, "epoll_wait: {ready}, tag {tag}");
        let mut value = 0u64;
        unsafe { libc::read(event, core::ptr::from_mut(&mut value).cast(), 8) };
        sum += value;
    }
    ensure!(sum == 20_100, "{sum}");
    joined(writer)
}

/// Signals directed at one thread among several.
fn thread_signals() -> Outcome {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    crate::fault::on_signal(libc::SIGUSR1, count, libc::SA_RESTART)?;
    let (tell, told) = mpsc::channel();
    let worker = thread::spawn(move || {
        let _ = tell.send(unsafe { libc::gettid() });
        while COUNT.load(Ordering::Relaxed) < 200 {
            core::hint::spin_loop();
        }
    });
    let thread = told.recv().map_err(|e| e.to_string())?;
    for i in 0..200u64 {
        let pid = unsafe { libc::getpid() };
        unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGUSR1) };
        while COUNT.load(Ordering::Relaxed) <= i {
            thread::yield_now();
        }
    }
    joined(worker)
}
