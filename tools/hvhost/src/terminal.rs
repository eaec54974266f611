//! The user's terminal: raw while the guest owns it, put back however the
//! program ends.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::stdin;
use std::sync::{Mutex, PoisonError};

/// Settings found at the start, while they are replaced.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts standard input into raw mode if it is a terminal; `true` if it is.
pub fn raw() -> bool {
    let input = stdin();
    if !isatty(&input) {
        return false;
    }
    let Ok(found) = tcgetattr(&input) else { return false };
    let mut raw = found.clone();
    raw.make_raw();
    *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    // A terminal that cannot be raw still works, line by line.
    let _ = tcsetattr(&input, OptionalActions::Now, &raw);
    true
}

/// Puts the terminal back. Harmless when nothing was changed.
pub fn restore() {
    if let Some(found) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing more can be done if the terminal has gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &found);
    }
}

/// Has a panic of any thread put the terminal back before its message.
pub fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
    }));
}

/// What a byte typed means, after Ctrl-A as in QEMU's `-nographic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// For the guest.
    Byte(u8),
    /// Ctrl-A x.
    Quit,
    /// Nothing for anybody.
    Nothing,
}

/// Finds Ctrl-A sequences in what is typed.
#[derive(Debug, Default)]
pub struct Escape {
    armed: bool,
}

const CTRL_A: u8 = 1;

impl Escape {
    /// Takes one byte.
    pub fn take(&mut self, byte: u8) -> Typed {
        if !self.armed {
            self.armed = byte == CTRL_A;
            return if self.armed { Typed::Nothing } else { Typed::Byte(byte) };
        }
        self.armed = false;
        match byte {
            b'x' => Typed::Quit,
            b'c' | CTRL_A => Typed::Byte(CTRL_A),
            _ => Typed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut e = Escape::default();
        let all: Vec<Typed> = b"a\x01cb\x01\x01\x01qd\x01x".iter().map(|b| e.take(*b)).collect();
        let seen: Vec<Typed> = all.into_iter().filter(|t| *t != Typed::Nothing).collect();
        assert_eq!(
            seen,
            [
                Typed::Byte(b'a'),
                Typed::Byte(1),
                Typed::Byte(b'b'),
                Typed::Byte(1),
                Typed::Byte(b'd'),
                Typed::Quit
            ]
        );
    }
}
