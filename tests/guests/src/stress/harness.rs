//! Runs each check in a child process with a time limit.

use std::io::Write as _;

/// What a check found: nothing wrong, or what.
pub type Outcome = Result<(), String>;

/// A name and the check behind it.
pub type Check = (&'static str, fn() -> Outcome);

/// No check may take longer, not even in three levels of emulation.
const LIMIT_MS: i32 = 180_000;

/// Fails the check with a message unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($message)+));
        }
    };
}

/// The error of the last system call, as text.
pub fn os_error(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// A system call that must not fail.
pub fn must(result: impl Into<i64>, what: &str) -> Result<i64, String> {
    let result = result.into();
    if result < 0 { Err(os_error(what)) } else { Ok(result) }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Waits until child `pid` has ended.
pub fn wait(pid: libc::pid_t) -> Result<Ending, String> {
    let mut status = 0;
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Err(os_error("waitpid"));
        }
    }
    Ok(if libc::WIFSIGNALED(status) {
        Ending::Killed(libc::WTERMSIG(status))
    } else {
        Ending::Exited(libc::WEXITSTATUS(status))
    })
}

/// Forks a child that ends with the status `body` returns.
pub fn spawn(body: impl FnOnce() -> i32) -> Result<libc::pid_t, String> {
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = body();
        unsafe { libc::_exit(status) };
    }
    must(pid, "fork")?;
    Ok(pid)
}

/// Runs `body` in a child and reports how that ended.
pub fn in_child(body: impl FnOnce() -> i32) -> Result<Ending, String> {
    wait(spawn(body)?)
}

/// A pipe: (read end, write end).
pub fn pipe() -> Result<(i32, i32), String> {
    let mut ends = [0; 2];
    must(unsafe { libc::pipe(ends.as_mut_ptr()) }, "pipe")?;
    Ok((ends[0], ends[1]))
}

/// Closes a descriptor.
pub fn close(fd: i32) {
    unsafe { libc::close(fd) };
}

/// A small generator of numbers, the same in every run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

fn child_body(check: fn() -> Outcome, report: i32) -> i32 {
    match check() {
        Ok(()) => 0,
        Err(why) => {
            unsafe { libc::write(report, why.as_ptr().cast(), why.len()) };
            1
        }
    }
}

/// Runs one check; the error is what it said or how it died.
fn run(check: fn() -> Outcome) -> Outcome {
    let (from, to) = pipe()?;
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        unsafe { libc::setpgid(0, 0) };
        close(from);
        let status = child_body(check, to);
        unsafe { libc::_exit(status) };
    }
    close(to);
    must(pid, "fork")?;
    let mut text = Vec::new();
    let in_time = read_until_end(from, &mut text);
    close(from);
    if !in_time {
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let ending = wait(pid)?;
    // What the check left behind goes with it.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    match ending {
        _ if !in_time => Err(format!("still running after {} s", LIMIT_MS / 1000)),
        Ending::Exited(0) => Ok(()),
        Ending::Exited(1) if !text.is_empty() => Err(String::from_utf8_lossy(&text).into_owned()),
        other => Err(format!("{other:?}")),
    }
}

/// Reads to the end of file; false if that does not come in time.
fn read_until_end(fd: i32, text: &mut Vec<u8>) -> bool {
    let mut buffer = [0u8; 512];
    loop {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        if unsafe { libc::poll(&mut poll, 1, LIMIT_MS) } <= 0 {
            return false;
        }
        let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if got <= 0 {
            return true;
        }
        text.extend_from_slice(buffer.get(..got as usize).unwrap_or_default());
    }
}

/// Runs the checks in order; the number that failed. A check in `known` may.
pub fn run_all(checks: &[Check], known: &[String]) -> usize {
    let mut failed = 0;
    for (name, check) in checks {
        match run(*check) {
            Ok(()) => println!("ok {name}"),
            Err(why) if known.iter().any(|k| k == name) => println!("known {name}: {why}"),
            Err(why) => {
                failed += 1;
                println!("FAIL {name}: {why}");
            }
        }
        let _ = std::io::stdout().flush();
    }
    failed
}
