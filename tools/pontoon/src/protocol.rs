//! What `pontoon` and its agent in the emulated Linux say to each other.
//!
//! One byte stream in each direction, cut into frames: a kind byte, a
//! little-endian `u32` length, the payload. Everything about a run (its
//! console, its error output, its result) travels in one stream, so the result
//! always comes after the last console byte.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Largest payload accepted; a length above it means the stream is out of step.
const MAX_PAYLOAD: u32 = 16 << 20;
/// Size of the pieces files are sent in.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u8);

impl Kind {
    /// To the agent: create a file (payload: path); data follows in `DATA`.
    pub const FILE: Self = Self(b'F');
    /// To the agent: append to the file begun by `FILE`.
    pub const DATA: Self = Self(b'D');
    /// To the agent: remove a file (payload: path).
    pub const FORGET: Self = Self(b'G');
    /// To the agent: start a program (payload: [`Run`] as JSON).
    pub const RUN: Self = Self(b'R');
    /// To the agent: where is the disk with this serial number?
    pub const DISK: Self = Self(b'S');
    /// From the agent: the path of that disk; empty: it does not appear.
    pub const DISK_AT: Self = Self(b'A');
    /// To the agent: where is the virtio port of this name?
    pub const PORT: Self = Self(b'P');
    /// From the agent: the path of that port; empty: it does not appear.
    pub const PORT_AT: Self = Self(b'Q');
    /// To the agent: bytes for the program's standard input.
    pub const INPUT: Self = Self(b'I');
    /// To the agent: end the running program.
    pub const KILL: Self = Self(b'K');
    /// From the agent: ready (payload: a word about the machine).
    pub const HELLO: Self = Self(b'H');
    /// From the agent: standard output of the program.
    pub const OUTPUT: Self = Self(b'O');
    /// From the agent: standard error of the program.
    pub const ERROR: Self = Self(b'E');
    /// From the agent: the file asked for by [`Run::give_back`].
    pub const FILE_BACK: Self = Self(b'B');
    /// From the agent: the program ended (payload: [`Exit`] as JSON).
    pub const EXIT: Self = Self(b'X');
}

/// A program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The program is ended after this many milliseconds.
    pub timeout_ms: Option<u64>,
    /// A file the program writes, to be sent back after its end.
    pub give_back: Option<String>,
}

/// How a program ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status; absent when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was ended because its time was over.
    pub timed_out: bool,
    /// It could not be started; why.
    pub failure: Option<String>,
    /// Run time.
    pub wall_ms: u64,
}

/// Writes one frame.
pub fn send(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind.0);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)?;
    out.flush()
}

/// Reads one frame; `None` at the end of the stream.
pub fn receive(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0];
    // As `read_exact` does, which cannot tell the end from half a frame.
    let count = loop {
        match from.read(&mut kind) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if count == 0 {
        return Ok(None);
    }
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > MAX_PAYLOAD {
        return Err(io::Error::other(format!("frame of {len} bytes: stream out of step")));
    }
    let mut payload = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    from.read_exact(&mut payload)?;
    Ok(Some((Kind(kind[0]), payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::OUTPUT, b"hello").unwrap();
        send(&mut wire, Kind::EXIT, b"").unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::OUTPUT, b"hello".to_vec())));
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::EXIT, Vec::new())));
        assert_eq!(receive(&mut from).unwrap(), None);
    }

    #[test]
    fn nonsense_lengths_are_refused() {
        let wire = [b'O', 0xff, 0xff, 0xff, 0xff];
        assert!(receive(&mut wire.as_slice()).is_err());
    }
}
