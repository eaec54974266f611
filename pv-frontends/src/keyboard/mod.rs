//! The keyboard of a Hyper-V machine's window, as what a terminal sends.
//!
//! ```text
//! VMBus offer ─> Board: version asked for, answered ─> keystrokes
//! keystroke (scan code of set 1, or UTF-16) ─> Typist ─> bytes ─> queue ─> Keyboard::take
//! ```
//!
//! [`Keyboard`] is the VMBus driver of all keyboards; what is typed on any of them is one stream of
//! bytes. Scan codes and the layout are `pc-keyboard`'s, the bytes of keys that are no characters are
//! [`Typist`]'s.
//!
//! Nothing is lost for want of room: when the queue is full, keystrokes stay in the ring, which the
//! host sees.
//!
//! Lock order: a channel's incoming ring, then a board, then the queue. None of them is held while the
//! [`Sink`] is called.

mod driver;
#[cfg(test)]
mod tests;
mod typist;

pub use driver::{Counter, Keyboard, Sink};
pub use typist::{Bytes, Typist};
