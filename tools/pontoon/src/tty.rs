//! The user's terminal as the guest's console.

use crate::host::Input;
use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Stdin};
use std::sync::Mutex;
use std::thread;

/// The terminal's settings before we touched them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
/// Ctrl-A, then x: leave the guest, as in QEMU.
const ESCAPE: u8 = 1;

/// Terminal in raw mode until dropped. Does nothing where standard input is no
/// terminal.
pub struct Raw {
    _private: (),
}

impl Raw {
    /// Switches to raw mode.
    pub fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            *SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(before);
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        }
        Ok(Self { _private: () })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(before) = saved {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

/// Passes standard input to the guest's console from a thread; `leave` is
/// called when the user types Ctrl-A x.
pub fn feed(input: Input, leave: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        let stdin = std::io::stdin();
        let interactive = stdin.is_terminal();
        if copy(stdin, interactive, &input) {
            leave();
        }
    });
}

/// Copies until the end of the input; tells whether the user wants to leave.
fn copy(mut stdin: Stdin, interactive: bool, input: &Input) -> bool {
    let mut buffer = [0; 4096];
    let mut escaped = false;
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default();
        if !interactive {
            input.send(bytes);
            continue;
        }
        let (kept, leave) = filter(bytes, &mut escaped);
        input.send(&kept);
        if leave {
            return true;
        }
    }
    false
}

/// Takes the escape sequences out: Ctrl-A x leaves, Ctrl-A Ctrl-A is Ctrl-A.
fn filter(bytes: &[u8], escaped: &mut bool) -> (Vec<u8>, bool) {
    let mut kept = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match (*escaped, byte) {
            (false, ESCAPE) => *escaped = true,
            (true, b'x') => return (kept, true),
            (true, byte) => {
                *escaped = false;
                kept.push(byte);
            }
            (false, byte) => kept.push(byte),
        }
    }
    (kept, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_leaves_and_everything_else_passes() {
        let mut escaped = false;
        assert_eq!(filter(b"ab\x03", &mut escaped), (b"ab\x03".to_vec(), false));
        assert_eq!(filter(b"c\x01", &mut escaped), (b"c".to_vec(), false));
        assert_eq!(filter(b"\x01d", &mut escaped), (b"\x01d".to_vec(), false));
        assert_eq!(filter(b"e\x01xf", &mut escaped), (b"e".to_vec(), true));
    }
}
