//! The network adapters of a guest whose hvhost runs in the emulated machine: their frames
//! come out here.
//!
//! ```text
//! hvhost ── /dev/vport… ── virtio port ── QEMU ── UNIX socket ──┬── libslirp
//!                                                               ├── a TAP, by a thread of ours
//!                                                               └── whatever the user has there
//! ```
//! What the guest leaves undone in its frames travels along where the far end has use for it.

use anyhow::{Context, Result, bail};
use hvhost::net::{self, Backend, BackendOptions, NetOptions, Slirp, Stream, Tap};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// A network that is led here, as long as this lives.
pub struct Wire {
    relayed: Option<Arc<dyn Backend>>,
    _slirp: Option<Slirp>,
}

/// What QEMU is to connect to, and what comes behind it.
pub struct Plan<'a> {
    options: &'a NetOptions,
    socket: PathBuf,
    listener: Option<UnixListener>,
    tap: Option<Arc<dyn Backend>>,
}

impl Wire {
    /// Makes ready for an adapter; a socket of ours is made at `socket` where one is needed.
    pub fn plan<'a>(options: &'a NetOptions, socket: &Path) -> Result<Plan<'a>> {
        let mut plan = Plan { options, socket: socket.to_owned(), listener: None, tap: None };
        match &options.backend {
            BackendOptions::Socket { path, .. } => {
                plan.socket = path.canonicalize().with_context(|| path.display().to_string())?;
                return Ok(plan);
            }
            BackendOptions::Tap { ifname, offload } => {
                plan.tap = Some(Arc::new(Tap::open(ifname, *offload)?));
            }
            BackendOptions::User { .. } => {}
        }
        // One of a guest before.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket);
        plan.listener = Some(listener.with_context(|| socket.display().to_string())?);
        Ok(plan)
    }
}

impl Plan<'_> {
    /// What QEMU is to connect to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Goes on once QEMU has connected. The second value: whether frames come with what is
    /// left to be done to them.
    pub fn connect(self) -> Result<(Wire, bool)> {
        let accept = |listener: &UnixListener| -> Result<UnixStream> {
            // It connected before it said that the port is there.
            listener.set_nonblocking(true)?;
            let (stream, _) = listener.accept().context("QEMU has not connected a network")?;
            stream.set_nonblocking(false)?;
            Ok(stream)
        };
        match (&self.options.backend, &self.listener, self.tap) {
            (BackendOptions::User { forwards }, Some(listener), _) => {
                let slirp = Slirp::start(accept(listener)?.into(), forwards)?;
                Ok((Wire { relayed: None, _slirp: Some(slirp) }, false))
            }
            (BackendOptions::Socket { offload, .. }, ..) => {
                Ok((Wire { relayed: None, _slirp: None }, *offload))
            }
            (BackendOptions::Tap { .. }, Some(listener), Some(tap)) => {
                // What the TAP does not take is done on this side, which is the faster one.
                let stream: Arc<dyn Backend> =
                    Arc::new(Stream::new(accept(listener)?.into(), true)?);
                let near = tap.clone();
                thread::Builder::new()
                    .name("relay".into())
                    .spawn(move || net::relay(stream, near))?;
                Ok((Wire { relayed: Some(tap), _slirp: None }, true))
            }
            _ => bail!("a network without its socket"),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(backend) = &self.relayed {
            backend.stop();
        }
    }
}
