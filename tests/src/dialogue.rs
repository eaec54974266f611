//! Typing at a guest's console: answers to the texts it waits with.

use crate::images::{HOSTNAME, PASSWORD};
use pontoon::host::Input;
use std::collections::VecDeque;

/// What is to be typed, and when.
pub struct Dialogue {
    keyboard: Input,
    steps: VecDeque<(String, String)>,
    /// The console since the last answer.
    seen: String,
}

impl Dialogue {
    /// When the first text of a pair appears, the second is typed; then the next
    /// pair is waited for, in what the console says from there on.
    #[must_use]
    pub fn new(keyboard: &Input, steps: &[(&str, &str)]) -> Self {
        let owned = |(text, answer): &(&str, &str)| ((*text).to_owned(), format!("{answer}\n"));
        let steps = steps.iter().map(owned).collect();
        Self { keyboard: keyboard.clone(), steps, seen: String::new() }
    }

    /// Logs in as root on a system of [`crate::images`] and types a command there.
    #[must_use]
    pub fn login(keyboard: &Input, command: &str) -> Self {
        let steps = [
            (&*format!("{HOSTNAME} login: "), "root"),
            ("Password: ", PASSWORD),
            (&format!("root@{HOSTNAME}:~# "), command),
        ];
        Self::new(keyboard, &steps)
    }

    /// The console said `bytes`.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.seen.push_str(&String::from_utf8_lossy(bytes));
        while let Some((text, answer)) = self.steps.front() {
            let Some(at) = self.seen.find(text.as_str()) else { return };
            self.seen.drain(..at + text.len());
            self.keyboard.send(answer.as_bytes());
            self.steps.pop_front();
        }
    }

    /// The text that has not appeared, if there is one.
    #[must_use]
    pub fn waits_for(&self) -> Option<&str> {
        self.steps.front().map(|(text, _)| text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Typed(Arc<Mutex<Vec<u8>>>);

    impl Write for Typed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn answers_come_in_order_and_once() {
        let (input, typed) = (Input::default(), Typed::default());
        input.open(Box::new(typed.clone()));
        let mut dialogue = Dialogue::new(&input, &[("login: ", "root"), ("word: ", "x")]);
        for bytes in [&b"word: log"[..], b"in", b": ", b"login: "] {
            dialogue.hear(bytes);
        }
        assert_eq!(dialogue.waits_for(), Some("word: "));
        dialogue.hear(b"Password: # ");
        assert_eq!(dialogue.waits_for(), None);
        assert_eq!(*typed.0.lock().unwrap(), b"root\nx\n");
    }
}
