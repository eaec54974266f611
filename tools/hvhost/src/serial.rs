//! COM1 and COM2: 16550s (vm-superio's) between the guest and standard input and
//! output, a file or a UNIX socket.
//!
//! A writer thread takes what the guest has sent so far and writes it in one
//! piece, so a virtual processor never waits for a terminal and a chatty guest
//! costs few writes. A reader thread feeds input as the FIFO has room, once the
//! guest looks for it: bytes typed while nobody listens would be thrown away by
//! the driver that starts up later.

use crate::exit::Outcome;
use crate::ioapic::IrqLine;
use crate::options::SerialTarget;
use crate::stats::Counters;
use crate::terminal::{self, Escape, Typed};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vm_superio::Serial;
use vm_superio::serial::SerialEvents;

/// Ports of COM1.
pub const COM1: u16 = 0x3f8;
/// Ports of COM2.
pub const COM2: u16 = 0x2f8;
/// Interrupt lines of COM1 and COM2.
pub const COM_IRQ: [usize; 2] = [4, 3];

const OFFSET_DATA: u8 = 0;
const OFFSET_IER: u8 = 1;
const OFFSET_LCR: u8 = 3;
const OFFSET_LSR: u8 = 5;
const IER_RECEIVED: u8 = 1;
const LCR_DLAB: u8 = 1 << 7;
/// Status reads without a byte sent in between that mean: polling for input.
const POLLS_FOR_INPUT: u32 = 16;
/// Bytes that may wait for a slow reader before the guest has to.
const QUEUE_LIMIT: usize = 1 << 20;
/// How long the end of the run waits for the last output.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Longest text a marker is looked for in.
const MARKER_WINDOW: usize = 4096;

/// A serial port.
pub struct Com {
    inner: Mutex<Inner>,
    wanted: Arc<Condvar>,
    queue: Option<Arc<Queue>>,
}

struct Inner {
    uart: Serial<IrqLine, Wanted, Output>,
    ier: u8,
    dlab: bool,
    polls: u32,
}

/// Wakes the reader thread when the guest takes bytes.
struct Wanted(Arc<Condvar>);

impl SerialEvents for Wanted {
    fn buffer_read(&self) {
        self.0.notify_all();
    }

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {}
}

/// Output on its way to the writer thread.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct QueueState {
    bytes: Vec<u8>,
    /// The writer is busy with bytes already taken.
    writing: bool,
}

/// Watches the output for texts of interest.
struct Markers {
    texts: Vec<String>,
    window: Vec<u8>,
    counters: Arc<Counters>,
}

/// The UART's output side.
struct Output {
    queue: Option<Arc<Queue>>,
    markers: Option<Markers>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(markers) = &mut self.markers {
            markers.feed(bytes);
        }
        if let Some(queue) = &self.queue {
            queue.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.bytes.len() >= QUEUE_LIMIT {
            state = self.emptied.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.bytes.extend_from_slice(bytes);
        if !state.writing {
            self.filled.notify_one();
        }
    }

    /// The writer thread: all that is there, in one write.
    fn write_to(&self, mut write: impl FnMut(&[u8])) {
        let mut taken = Vec::new();
        let mut state = self.lock();
        loop {
            while state.bytes.is_empty() {
                state.writing = false;
                self.emptied.notify_all();
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            std::mem::swap(&mut taken, &mut state.bytes);
            self.emptied.notify_all();
            drop(state);
            write(&taken);
            taken.clear();
            state = self.lock();
        }
    }

    /// Waits until everything is written, or for [`DRAIN_LIMIT`].
    fn drain(&self) {
        let state = self.lock();
        // A reader that hangs must not keep the program from ending.
        let _ = self
            .emptied
            .wait_timeout_while(state, DRAIN_LIMIT, |s| s.writing || !s.bytes.is_empty());
    }
}

impl Markers {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.window.push(*byte);
            let seen: Vec<usize> = (0..self.texts.len())
                .filter(|n| self.texts.get(*n).is_some_and(|t| self.window.ends_with(t.as_bytes())))
                .collect();
            for n in seen.into_iter().rev() {
                self.counters.marker(&self.texts.remove(n));
            }
            if *byte == b'\n' || self.window.len() > MARKER_WINDOW {
                self.window.clear();
            }
        }
    }
}

impl Com {
    /// A port connected to `target`. Threads for its input and output start at once.
    ///
    /// # Errors
    /// The file or socket cannot be opened.
    pub fn new(
        target: &SerialTarget,
        irq: IrqLine,
        markers: Vec<String>,
        counters: Arc<Counters>,
        events: &Sender<Outcome>,
    ) -> Result<Arc<Self>> {
        let queue = (*target != SerialTarget::Null).then(Arc::<Queue>::default);
        let wanted = Arc::<Condvar>::default();
        let markers =
            (!markers.is_empty()).then(|| Markers { texts: markers, window: Vec::new(), counters });
        let output = Output { queue: queue.clone(), markers };
        let uart = Serial::with_events(irq, Wanted(wanted.clone()), output);
        let inner = Mutex::new(Inner { uart, ier: 0, dlab: false, polls: 0 });
        let com = Arc::new(Self { inner, wanted, queue });
        com.connect(target, events)?;
        Ok(com)
    }

    fn connect(self: &Arc<Self>, target: &SerialTarget, events: &Sender<Outcome>) -> Result<()> {
        match target {
            SerialTarget::Null => Ok(()),
            SerialTarget::Stdio => {
                let (com, events) = (self.clone(), events.clone());
                let escapes = terminal::raw();
                spawn("stdin", move || com.read_stdin(escapes, &events))?;
                self.spawn_writer(|bytes| {
                    let mut out = io::stdout().lock();
                    // Output nobody takes is lost, as on a real line.
                    let _ = out.write_all(bytes).and_then(|()| out.flush());
                })
            }
            SerialTarget::File(path) => {
                let mut file = File::create(path)
                    .with_context(|| format!("cannot create {}", path.display()))?;
                self.spawn_writer(move |bytes| {
                    let _ = file.write_all(bytes);
                })
            }
            SerialTarget::Socket(path) => {
                let listener = listen(path)?;
                let peer = Arc::new(Mutex::new(None::<UnixStream>));
                let (com, current) = (self.clone(), peer.clone());
                spawn("socket", move || com.serve(&listener, &current))?;
                self.spawn_writer(move |bytes| {
                    let peer = peer.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(mut stream) = peer.as_ref() {
                        let _ = stream.write_all(bytes);
                    }
                })
            }
        }
    }

    fn spawn_writer(&self, write: impl FnMut(&[u8]) + Send + 'static) -> Result<()> {
        match self.queue.clone() {
            Some(queue) => spawn("serial", move || queue.write_to(write)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guest read of register `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        let mut inner = self.lock();
        if offset == OFFSET_LSR {
            inner.polls = inner.polls.saturating_add(1);
            if inner.polls == POLLS_FOR_INPUT {
                self.wanted.notify_all();
            }
        }
        inner.uart.read(offset)
    }

    /// Guest writes of register `offset`.
    pub fn write(&self, offset: u8, values: &[u8]) {
        let mut inner = self.lock();
        for value in values {
            match offset {
                OFFSET_DATA => inner.polls = 0,
                OFFSET_IER if !inner.dlab => {
                    inner.ier = *value;
                    self.wanted.notify_all();
                }
                OFFSET_LCR => inner.dlab = *value & LCR_DLAB != 0,
                _ => {}
            }
            // The output side never fails, nor does the interrupt line.
            let _ = inner.uart.write(offset, *value);
        }
    }

    /// Feeds bytes from outside, waiting for the guest to take them.
    fn feed(&self, mut bytes: &[u8]) {
        let mut inner = self.lock();
        while !bytes.is_empty() {
            let listening = inner.ier & IER_RECEIVED != 0 || inner.polls >= POLLS_FOR_INPUT;
            if !listening || inner.uart.fifo_capacity() == 0 {
                inner = self.wanted.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            match inner.uart.enqueue_raw_bytes(bytes) {
                Ok(count) if count > 0 => bytes = bytes.get(count..).unwrap_or_default(),
                // Loop-back: the driver is probing; the line is deaf meanwhile.
                _ => {
                    drop(inner);
                    thread::sleep(Duration::from_millis(1));
                    inner = self.lock();
                }
            }
        }
    }

    fn read_stdin(&self, escapes: bool, events: &Sender<Outcome>) {
        let mut escape = Escape::default();
        let mut buffer = [0u8; 256];
        loop {
            let bytes = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if !escapes {
                self.feed(bytes);
                continue;
            }
            let mut typed = Vec::with_capacity(bytes.len());
            for byte in bytes {
                match escape.take(*byte) {
                    Typed::Byte(byte) => typed.push(byte),
                    // The other end is gone only when the program ends anyway.
                    Typed::Quit => drop(events.send(Outcome::Quit)),
                    Typed::Nothing => {}
                }
            }
            self.feed(&typed);
        }
    }

    fn serve(&self, listener: &UnixListener, current: &Mutex<Option<UnixStream>>) {
        for stream in listener.incoming().flatten() {
            let Ok(mut input) = stream.try_clone() else { continue };
            *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
            let mut buffer = [0u8; 256];
            while let Ok(count @ 1..) = input.read(&mut buffer) {
                self.feed(buffer.get(..count).unwrap_or_default());
            }
            *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Waits until all output is written.
    pub fn drain(&self) {
        if let Some(queue) = &self.queue {
            queue.drain();
        }
    }
}

/// Listens at `path`, taking the place of a socket an earlier run left there.
fn listen(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        // If it stays, bind says why.
        let _ = fs::remove_file(path);
    }
    UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.into()).spawn(body).context("cannot start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::{IoApic, Msi, MsiSink, PINS};
    use std::sync::mpsc;

    struct Nobody;

    impl MsiSink for Nobody {
        fn inject(&self, _: Msi) {}
        fn routes(&self, _: &[Msi; PINS]) {}
    }

    fn com(target: &SerialTarget, markers: &[&str]) -> (Arc<Com>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        let ioapic = Arc::new(IoApic::new(Box::new(Nobody), counters.clone()));
        let markers = markers.iter().map(ToString::to_string).collect();
        let (events, _) = mpsc::channel();
        let irq = IrqLine::new(ioapic, 4);
        (Com::new(target, irq, markers, counters.clone(), &events).unwrap(), counters)
    }

    #[test]
    fn output_reaches_a_file_and_markers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let (com, counters) = com(&SerialTarget::File(path.clone()), &["login:", "never"]);
        com.write(OFFSET_DATA, b"hello\nhost ");
        com.write(OFFSET_DATA, b"login: ");
        com.drain();
        assert_eq!(fs::read(&path).unwrap(), b"hello\nhost login: ");
        let seen = counters.report("", None).markers_ms;
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["login:"]);
    }

    #[test]
    fn socket_carries_both_ways_and_waits_for_a_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let (com, _) = com(&SerialTarget::Socket(path.clone()), &[]);
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(b"ab").unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(com.read(OFFSET_LSR) & 1, 0, "nobody listens yet");
        com.write(OFFSET_IER, &[IER_RECEIVED]);
        while com.read(OFFSET_LSR) & 1 == 0 {
            thread::yield_now();
        }
        assert_eq!((com.read(OFFSET_DATA), com.read(OFFSET_DATA)), (b'a', b'b'));
        com.write(OFFSET_DATA, b"xyz");
        let mut back = [0u8; 3];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"xyz");
        assert!(listen(&path).is_err(), "in use");
    }

    #[test]
    fn more_input_than_the_fifo_holds_is_not_lost() {
        let (com, _) = com(&SerialTarget::Null, &[]);
        com.write(OFFSET_IER, &[IER_RECEIVED]);
        let feeder = com.clone();
        let sent: Vec<u8> = (0..=255).collect();
        let bytes = sent.clone();
        let thread = thread::spawn(move || feeder.feed(&bytes));
        let mut got = Vec::new();
        while got.len() < sent.len() {
            if com.read(OFFSET_LSR) & 1 != 0 {
                got.push(com.read(OFFSET_DATA));
            }
        }
        thread.join().unwrap();
        assert_eq!(got, sent);
    }

    #[test]
    fn polling_counts_as_listening() {
        let (com, _) = com(&SerialTarget::Null, &[]);
        let feeder = com.clone();
        let thread = thread::spawn(move || feeder.feed(b"z"));
        for _ in 0..POLLS_FOR_INPUT {
            com.read(OFFSET_LSR);
        }
        thread.join().unwrap();
        assert_eq!(com.read(OFFSET_DATA), b'z');
    }

    #[test]
    fn divisor_latch_is_not_the_interrupt_register() {
        let (com, _) = com(&SerialTarget::Null, &[]);
        com.write(OFFSET_LCR, &[0x83]);
        com.write(OFFSET_IER, &[1]);
        com.write(OFFSET_LCR, &[3]);
        assert_eq!(com.lock().ier, 0);
    }
}
