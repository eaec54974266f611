//! The shim's own words, on the console. Until the guest starts everything up to the
//! chosen level is printed; afterwards nothing is by default but what ends the guest.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

/// Importance of a line; `pontoon.log=` names one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "level names")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets the least important level that is printed.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Collects a line so that it goes out in full FIFOs.
struct Line {
    bytes: [u8; 128],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        crate::console::write_bytes(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used + 1 >= self.bytes.len() {
                self.flush();
            }
            if byte == b'\n' {
                self.bytes[self.used] = b'\r';
                self.used += 1;
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Prints whatever the level.
pub fn print(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 128], used: 0 };
    // Writing to the line cannot fail.
    let _ = writeln!(line, "pontoon: {text}");
    line.flush();
}

/// Whether lines of this level are printed.
pub fn wants(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Prints if the level asks for it.
pub fn log(level: Level, text: fmt::Arguments<'_>) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed) {
        print(text);
    }
}

/// `log!(Info, "…")`.
#[macro_export]
macro_rules! log {
    ($level:ident, $($text:tt)*) => {
        $crate::log::log($crate::log::Level::$level, format_args!($($text)*))
    };
}
