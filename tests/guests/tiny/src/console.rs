//! Formatted text to the hypervisor's console, a line per hypercall.

use core::fmt;

use crate::hypercall::console_write;

/// Collects text and writes it by lines: Xen prefixes each write with "(d1)".
#[derive(Debug)]
pub struct Console {
    line: [u8; 128],
    used: usize,
}

impl Console {
    /// An empty line.
    pub const fn new() -> Self {
        Self { line: [0; 128], used: 0 }
    }

    fn flush(&mut self) {
        if let Some(text) = self.line.get(..self.used) {
            console_write(text);
        }
        self.used = 0;
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if let Some(slot) = self.line.get_mut(self.used) {
                *slot = byte;
                self.used += 1;
            }
            if byte == b'\n' || self.used == self.line.len() {
                self.flush();
            }
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.used != 0 {
            self.flush();
        }
    }
}

/// One line on the console.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::Console::new(), $($arg)*);
    }};
}
