//! Where a network adapter's frames go: back ends, and what they cannot do by themselves.
//!
//! ```text
//! netvsp ── Backend ──┬── Tap      a TAP of this machine, with virtio-net headers
//!                     ├── Stream   frames on a UNIX socket or a character device
//!                     └── User     a Stream at whose other end is Slirp
//! ```
//! A back end is shared by the workers of an adapter's channels, which send, and one
//! thread that receives.

pub mod checksum;
pub mod frame;
pub mod options;
mod paced;
pub mod slirp;
pub mod stream;
pub mod tap;
pub mod vnet;
mod wait;

pub use checksum::Takes;
pub use frame::{Frame, Mac};
pub use options::{BackendOptions, NetOptions};
pub use slirp::Slirp;
pub use stream::Stream;
pub use tap::Tap;

use paced::Paced;

use anyhow::{Context, Result};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The other side takes nothing.
    Dropped,
}

/// The other side of a network adapter.
pub trait Backend: Send + Sync {
    /// What may be left undone in frames that are sent.
    fn takes(&self) -> Takes;

    /// Sends a frame of which nothing is left to be done but what [`Self::takes`] allows.
    /// Waits for room, but not for ever.
    ///
    /// # Errors
    /// The other side is gone.
    fn send(&self, frame: &Frame) -> io::Result<Sent>;

    /// Waits for a frame; `false`: [`Self::stop`] was called. Frames that make no sense are
    /// passed over.
    ///
    /// # Errors
    /// The other side is gone.
    fn receive(&self, frame: &mut Frame) -> io::Result<bool>;

    /// Ends all waiting, for good.
    fn stop(&self);
}

/// Opens what an adapter's options name.
///
/// # Errors
/// One line that says why not.
pub fn open(options: &NetOptions) -> Result<Arc<dyn Backend>> {
    let backend = open_backend(&options.backend)?;
    Ok(match options.pps {
        Some(pps) => Arc::new(Paced::new(backend, pps)),
        None => backend,
    })
}

fn open_backend(options: &BackendOptions) -> Result<Arc<dyn Backend>> {
    Ok(match options {
        BackendOptions::Tap { ifname, offload } => Arc::new(Tap::open(ifname, *offload)?),
        BackendOptions::Socket { path, offload } => Arc::new(Stream::open(path, *offload)?),
        BackendOptions::User { forwards } => {
            let (ours, theirs) = UnixStream::pair().context("socket pair")?;
            let _slirp = Slirp::start(theirs.into(), forwards)?;
            Arc::new(User { stream: Stream::new(ours.into(), false)?, _slirp })
        }
    })
}

/// A stream at whose other end is a network stack.
struct User {
    stream: Stream,
    _slirp: Slirp,
}

impl Backend for User {
    fn takes(&self) -> Takes {
        self.stream.takes()
    }

    fn send(&self, frame: &Frame) -> io::Result<Sent> {
        self.stream.send(frame)
    }

    fn receive(&self, frame: &mut Frame) -> io::Result<bool> {
        self.stream.receive(frame)
    }

    fn stop(&self) {
        self.stream.stop();
    }
}

/// Carries frames between two back ends until one of them is gone or stopped; stops both.
pub fn relay(one: Arc<dyn Backend>, other: Arc<dyn Backend>) {
    thread::scope(|scope| {
        scope.spawn(|| carry(&*one, &*other));
        carry(&*other, &*one);
    });
}

fn carry(from: &dyn Backend, to: &dyn Backend) {
    let takes = to.takes();
    let mut frame = Frame::default();
    while let Ok(true) = from.receive(&mut frame) {
        let mut gone = false;
        // What cannot be reduced is no packet; nobody would want it.
        let _ = checksum::reduce(std::mem::take(&mut frame), takes, |frame| {
            gone |= to.send(&frame).is_err();
        });
        if gone {
            break;
        }
    }
    from.stop();
    to.stop();
}
