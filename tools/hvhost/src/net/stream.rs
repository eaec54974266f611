//! Frames on a byte stream: a UNIX socket, or a character device such as a virtio port.
//!
//! ```text
//! length u32, big-endian | [virtio-net header, 12 bytes] | frame        length counts both
//! ```
//! Without the header it is what QEMU's `-netdev stream` and passt speak.

use crate::net::checksum::Takes;
use crate::net::frame::{ETHERNET_BYTES, FRAME_BYTES_MAX, Frame};
use crate::net::vnet::{self, VNET_BYTES};
use crate::net::wait::{self, For, Stop, Wake};
use crate::net::{Backend, Sent};
use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A peer that takes nothing for so long loses the frame.
const PATIENCE: Duration = Duration::from_secs(2);
/// A peer that takes a part of a frame and no more for so long is gone.
const LOST: Duration = Duration::from_secs(30);
/// Read at a time.
const READ_BYTES: usize = 256 << 10;

/// A byte stream with frames on it.
#[derive(Debug)]
pub struct Stream {
    file: File,
    offload: bool,
    stop: Stop,
    sending: Mutex<()>,
    received: Mutex<Received>,
}

/// What was read and is not taken yet.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    at: usize,
}

impl Received {
    /// The next frame, if all of it is there.
    fn next(&mut self, offload: bool) -> io::Result<Option<Option<Frame>>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        let header = if offload { VNET_BYTES } else { 0 };
        if !(header..=header + FRAME_BYTES_MAX).contains(&length) {
            return Err(io::Error::other(format!("a frame of {length} bytes: stream out of step")));
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        let frame = if offload {
            bytes.split_first_chunk::<VNET_BYTES>().and_then(|(header, data)| {
                Some(Frame { offload: vnet::decode(header, data)?, bytes: data.to_vec() })
            })
        } else {
            Some(Frame::plain(bytes.to_vec()))
        };
        self.at += 4 + length;
        Ok(Some(frame.filter(|frame| frame.bytes.len() >= ETHERNET_BYTES)))
    }

    fn room(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.at);
        self.at = 0;
        &mut self.bytes
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer is gone")
}

impl Stream {
    /// Takes a stream over; with `offload` there are headers on it.
    ///
    /// # Errors
    /// The system's.
    pub fn new(stream: OwnedFd, offload: bool) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&stream)?;
        rustix::fs::fcntl_setfl(&stream, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            file: stream.into(),
            offload,
            stop: Stop::new()?,
            sending: Mutex::default(),
            received: Mutex::default(),
        })
    }

    /// Connects to a UNIX socket, or opens a character device.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn open(path: &Path, offload: bool) -> Result<Self> {
        let context = || path.display().to_string();
        let is_device = fs::metadata(path).with_context(context)?.file_type().is_char_device();
        let stream: OwnedFd = if is_device {
            OpenOptions::new().read(true).write(true).open(path).with_context(context)?.into()
        } else {
            UnixStream::connect(path).with_context(context)?.into()
        };
        let stream = Self::new(stream, offload)?;
        // The far end of a virtio port comes a moment after the port.
        if is_device && !wait::comes(stream.file.as_fd(), Duration::from_secs(20))? {
            bail!("{}: nobody is at the other end", path.display());
        }
        Ok(stream)
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<Sent> {
        let (mut rest, mut progress) = (bytes, Instant::now());
        while !rest.is_empty() {
            match (&self.file).write(rest) {
                Ok(0) => return Err(gone()),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    progress = Instant::now();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let begun = rest.len() != bytes.len();
            let left = if begun { LOST } else { PATIENCE }.saturating_sub(progress.elapsed());
            match self.stop.wait(self.file.as_fd(), For::Writing, Some(left))? {
                Wake::Ready => {}
                Wake::TimedOut if !begun => return Ok(Sent::Dropped),
                // Half a frame is the end of the stream.
                Wake::TimedOut => return Err(gone()),
                Wake::Stopped => return Ok(Sent::Dropped),
            }
        }
        Ok(Sent::Yes)
    }
}

impl Backend for Stream {
    fn takes(&self) -> Takes {
        if self.offload { Takes::ALL } else { Takes::NOTHING }
    }

    fn send(&self, frame: &Frame) -> io::Result<Sent> {
        let header = if self.offload { VNET_BYTES } else { 0 };
        let length = u32::try_from(header + frame.bytes.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(4 + header + frame.bytes.len());
        bytes.extend(length.to_be_bytes());
        if self.offload {
            bytes.extend(vnet::encode(frame));
        }
        bytes.extend_from_slice(&frame.bytes);
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_all(&bytes)
    }

    fn receive(&self, frame: &mut Frame) -> io::Result<bool> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(next) = received.next(self.offload)? {
                if let Some(next) = next {
                    *frame = next;
                    return Ok(true);
                }
            }
            let bytes = received.room();
            let have = bytes.len();
            bytes.resize(have + READ_BYTES, 0);
            let result = (&self.file).read(bytes.get_mut(have..).unwrap_or_default());
            bytes.truncate(have + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return Err(gone()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.wait(self.file.as_fd(), For::Reading, None)? == Wake::Stopped {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn stop(&self) {
        self.stop.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::tests::packet;
    use crate::net::frame::{Offload, Partial, Version, protocol};
    use std::sync::Arc;
    use std::thread;

    fn pair(one: bool, other: bool) -> (Arc<Stream>, Arc<Stream>) {
        let (a, b) = UnixStream::pair().unwrap();
        let make = |s: UnixStream, offload| Arc::new(Stream::new(s.into(), offload).unwrap());
        (make(a, one), make(b, other))
    }

    fn large() -> Frame {
        let bytes = packet(Version::V4, protocol::TCP, &vec![7; 60_000]);
        let checksum = Some(Partial { start: 34, offset: 16 });
        Frame { offload: Offload { checksum, segment: Some(1400), valid: false }, bytes }
    }

    #[test]
    fn frames_come_with_what_is_left_to_do() {
        let (one, other) = pair(true, true);
        let sender =
            thread::spawn(move || (0..50).all(|_| one.send(&large()).unwrap() == Sent::Yes));
        let mut frame = Frame::default();
        for _ in 0..50 {
            assert!(other.receive(&mut frame).unwrap());
            assert_eq!(frame, large());
        }
        assert!(sender.join().unwrap());
        assert!(other.receive(&mut frame).is_err(), "its end");
        assert!(other.send(&frame).is_err());
    }

    #[test]
    fn nonsense_ends_it_or_is_passed_over() {
        let (a, b) = UnixStream::pair().unwrap();
        let stream = Stream::new(b.into(), false).unwrap();
        (&a).write_all(&[0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 14]).unwrap();
        (&a).write_all(&[9; 14]).unwrap();
        let mut frame = Frame::default();
        assert!(stream.receive(&mut frame).unwrap());
        assert_eq!(frame.bytes, [9; 14]);
        (&a).write_all(&[0, 2, 0, 0]).unwrap();
        assert!(stream.receive(&mut frame).unwrap_err().to_string().contains("out of step"));
    }

    #[test]
    fn stopping_ends_waits() {
        let (one, other) = pair(false, false);
        let waits = {
            let one = one.clone();
            thread::spawn(move || one.receive(&mut Frame::default()).unwrap())
        };
        thread::sleep(Duration::from_millis(20));
        one.stop();
        assert!(!waits.join().unwrap());
        // Nobody reads: it is full at some time, and nothing waits any more.
        while one.send(&Frame::plain(vec![0; 60_000])).unwrap() == Sent::Yes {}
        drop(other);
    }

    #[test]
    fn a_relay_does_what_its_ends_cannot() {
        let (user, near) = pair(true, true);
        let (far, wire) = pair(false, false);
        let relay = thread::spawn(move || crate::net::relay(near, far));
        user.send(&large()).unwrap();
        let mut frame = Frame::default();
        let mut bytes = 0;
        while bytes < 60_000 {
            assert!(wire.receive(&mut frame).unwrap());
            assert!(frame.bytes.len() <= 54 + 1400);
            bytes += frame.bytes.len() - 54;
        }
        wire.send(&frame).unwrap();
        assert!(user.receive(&mut frame).unwrap());
        drop(user);
        relay.join().unwrap();
        assert!(wire.receive(&mut frame).is_err());
    }
}
