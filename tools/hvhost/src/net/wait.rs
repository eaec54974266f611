//! Waiting for a file descriptor, or for being told to stop.
#![allow(unsafe_code, reason = "poll(2)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready, or in error.
    Ready,
    /// The time is over.
    TimedOut,
    /// It was told to stop.
    Stopped,
}

/// What one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Something to read.
    Reading,
    /// Room to write.
    Writing,
}

/// Ends waits for good.
#[derive(Debug)]
pub struct Stop(EventFd);

impl Stop {
    /// Not yet.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Self)
    }

    /// From here on every wait ends.
    pub fn stop(&self) {
        // It is never read, so that it stays readable.
        let _ = self.0.write(1);
    }

    /// Waits for `fd`.
    pub fn wait(&self, fd: BorrowedFd<'_>, what: For, limit: Option<Duration>) -> io::Result<Wake> {
        let events = match what {
            For::Reading => libc::POLLIN,
            For::Writing => libc::POLLOUT,
        };
        let mut list = [
            libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 },
        ];
        let millis = limit.map_or(-1, |t| libc::c_int::try_from(t.as_millis()).unwrap_or(-1));
        // SAFETY: `list` is an array of that many entries, and both descriptors are open for
        // the length of the call.
        let count = unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, millis) };
        if count < 0 {
            let error = io::Error::last_os_error();
            // As if it were ready: whoever waits tries again.
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(Wake::Ready)
            } else {
                Err(error)
            };
        }
        Ok(match list {
            [stop, _] if stop.revents != 0 => Wake::Stopped,
            [_, fd] if fd.revents != 0 => Wake::Ready,
            _ => Wake::TimedOut,
        })
    }
}

/// Waits until there is another end; `false`: none came in time.
pub fn comes(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: it is one entry, and its descriptor is open for the length of the call.
        if unsafe { libc::poll(&raw mut entry, 1, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if entry.revents & libc::POLLHUP == 0 {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
