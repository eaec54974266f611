//! Reading a screen back: QEMU's picture of it, and the shim's font.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Takes pictures as long as the machine is there.
pub struct Camera {
    rolls: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    text: Arc<Mutex<String>>,
}

impl Camera {
    /// For a machine whose control socket will be at `socket`.
    pub fn new(socket: &Path, dir: &Path) -> Self {
        let (rolls, text) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<String>>::default());
        let (go_on, last) = (Arc::clone(&rolls), Arc::clone(&text));
        let (socket, picture) = (socket.to_owned(), dir.join("screen.ppm"));
        let thread = std::thread::spawn(move || {
            while go_on.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(500));
                // Not there yet, not there any more, or no picture yet.
                if let Ok(text) = take(&socket, &picture).and_then(|()| read(&picture)) {
                    last.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                }
            }
        });
        Self { rolls, thread, text }
    }

    /// All that was seen.
    pub fn stop(self) -> String {
        self.rolls.store(false, Ordering::Relaxed);
        let _ = self.thread.join();
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Has QEMU write a picture.
fn take(socket: &Path, picture: &PathBuf) -> Result<()> {
    let file = serde_json::to_string(picture)?;
    qmp(socket, &format!(r#"{{"execute":"screendump","arguments":{{"filename":{file}}}}}"#))
}

/// Has QEMU do a command.
pub fn qmp(socket: &Path, command: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    for command in [r#"{"execute":"qmp_capabilities"}"#, command] {
        writeln!(stream, "{command}")?;
    }
    let mut answers = 0;
    for line in BufReader::new(stream).lines() {
        answers += usize::from(line?.contains("\"return\""));
        if answers == 2 {
            return Ok(());
        }
    }
    bail!("QEMU does not answer")
}

/// The characters of a picture, as far as they are letters of the font in light on dark.
fn read(picture: &Path) -> Result<String> {
    let file = fs::read(picture)?;
    let mut at = 0;
    let mut word = || -> Result<&str> {
        let rest = file.get(at..).context("a header")?;
        let end = rest.iter().position(u8::is_ascii_whitespace).context("a header")?;
        at += end + 1;
        Ok(std::str::from_utf8(&rest[..end])?)
    };
    if word()? != "P6" {
        bail!("not a picture");
    }
    let (width, height): (usize, usize) = (word()?.parse()?, word()?.parse()?);
    word()?;
    let pixels = file.get(at..at + width * height * 3).context("pixels")?;
    let is_lit = |x: usize, y: usize| pixels[(y * width + x) * 3..][..3].iter().any(|&c| c > 0x7f);
    Ok(hvhost::screen::read(width, height, is_lit))
}
