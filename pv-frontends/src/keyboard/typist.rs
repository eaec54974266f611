//! From keystrokes to the bytes a terminal sends.
//!
//! Keys that are no characters send what Linux's console and the VT220 have in common, F1 to F5 what
//! xterm has, whose F1 to F4 are the VT220's. With Shift, Alt or Ctrl they have xterm's parameter.

use arrayvec::ArrayVec;
use hv_abi::keyboard::{KeyFlags, Keystroke, Leds};
use pc_keyboard::layouts::Us104Key;
use pc_keyboard::{
    DecodedKey, HandleControl, KeyCode, KeyState, Modifiers, PS2Keyboard, ScancodeSet1,
};

/// Most bytes of one keystroke.
pub(super) const MAX_BYTES: usize = 8;
/// Bytes of one keystroke.
pub type Bytes = ArrayVec<u8, MAX_BYTES>;

const ESC: u8 = 0x1b;
const DEL: u8 = 0x7f;
const PREFIX_E0: u8 = 0xe0;
const PREFIX_E1: u8 = 0xe1;
const RELEASED: u8 = 0x80;

/// What is held on a keyboard, and what it types: US layout, Num Lock on at first.
pub struct Typist {
    keyboard: PS2Keyboard<Us104Key, ScancodeSet1>,
    /// First half of a surrogate pair.
    lead: Option<u16>,
}

impl core::fmt::Debug for Typist {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Typist").field("lead", &self.lead).finish_non_exhaustive()
    }
}

impl Default for Typist {
    fn default() -> Self {
        Self::new()
    }
}

impl Typist {
    /// Nothing is held.
    #[must_use]
    pub const fn new() -> Self {
        let keyboard = PS2Keyboard::new(ScancodeSet1::new(), Us104Key, HandleControl::Ignore);
        Self { keyboard, lead: None }
    }

    /// What a keystroke types; `None`: no key has this code.
    pub fn stroke(&mut self, stroke: &Keystroke) -> Option<Bytes> {
        let flags = stroke.flags();
        if flags.contains(KeyFlags::UNICODE) {
            let pressed = !flags.contains(KeyFlags::BREAK);
            return Some(if pressed { self.unit(stroke.make_code) } else { Bytes::new() });
        }
        let code = u8::try_from(stroke.make_code).ok().filter(|code| *code < RELEASED)?;
        let prefix = match (flags.contains(KeyFlags::E0), flags.contains(KeyFlags::E1)) {
            (true, true) => return None,
            (true, false) => Some(PREFIX_E0),
            (false, true) => Some(PREFIX_E1),
            // Released, these would be prefixes.
            (false, false) if matches!(code | RELEASED, PREFIX_E0 | PREFIX_E1) => return None,
            (false, false) => None,
        };
        if let Some(prefix) = prefix {
            // The key follows.
            let _ = self.keyboard.add_byte(prefix);
        }
        let release = if flags.contains(KeyFlags::BREAK) { RELEASED } else { 0 };
        let event = self.keyboard.add_byte(code | release).ok()??;
        let (key, is_down) = (event.code, event.state == KeyState::Down);
        let decoded = self.keyboard.process_keyevent(event);
        let Some(decoded) = decoded.filter(|_| is_down) else { return Some(Bytes::new()) };
        Some(translate(key, decoded, self.keyboard.get_modifiers()))
    }

    /// A UTF-16 code unit. Halves of pairs that stand alone are nothing.
    fn unit(&mut self, unit: u16) -> Bytes {
        let lead = self.lead.take();
        if matches!(unit, 0xd800..0xdc00) {
            self.lead = Some(unit);
            return Bytes::new();
        }
        let mut bytes = Bytes::new();
        for character in char::decode_utf16(lead.into_iter().chain([unit])).flatten() {
            match character {
                '\0' => {}
                '\n' => bytes.push(b'\r'),
                '\u{8}' => bytes.push(DEL),
                character => put(&mut bytes, character),
            }
        }
        bytes
    }

    /// The lights.
    #[must_use]
    pub fn leds(&self) -> Leds {
        let held = self.keyboard.get_modifiers();
        let mut leds = Leds::empty();
        leds.set(Leds::NUM_LOCK, held.numlock);
        leds.set(Leds::CAPS_LOCK, held.capslock);
        leds
    }
}

/// Adds what there is room for: all, as callers see to.
fn add(bytes: &mut Bytes, more: &[u8]) {
    bytes.extend(more.iter().copied().take(bytes.remaining_capacity()));
}

fn put(bytes: &mut Bytes, character: char) {
    add(bytes, character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What a pressed key sends.
fn translate(key: KeyCode, decoded: DecodedKey, held: &Modifiers) -> Bytes {
    // The US layout has no third level: the right Alt key is one, too.
    let (alt, ctrl) = (held.is_alt(), held.is_ctrl());
    // Of the keypad, what the layout makes of the lock.
    let key = match (key, decoded) {
        (KeyCode::NumpadPeriod, _) if !held.numlock => KeyCode::Delete,
        (_, DecodedKey::RawKey(other)) => other,
        _ => key,
    };
    let character = match (key, decoded) {
        (KeyCode::Return | KeyCode::NumpadEnter, _) => '\r',
        (KeyCode::Backspace, _) if ctrl => '\u{8}',
        (KeyCode::Backspace, _) => char::from(DEL),
        (KeyCode::Tab, _) if held.is_shifted() => return sequence(&[ESC, b'[', b'Z']),
        (KeyCode::Numpad5, _) if !held.numlock => return sequence(&[ESC, b'[', b'G']),
        (KeyCode::Delete, _) | (_, DecodedKey::RawKey(_)) => return special(key, held),
        (_, DecodedKey::Unicode(character)) if ctrl => control(character),
        (_, DecodedKey::Unicode(character)) => character,
    };
    let mut bytes = Bytes::new();
    if alt {
        bytes.push(ESC);
    }
    put(&mut bytes, character);
    bytes
}

fn sequence(of: &[u8]) -> Bytes {
    let mut bytes = Bytes::new();
    add(&mut bytes, of);
    bytes
}

/// A character with Ctrl, as on a VT220.
fn control(character: char) -> char {
    match character {
        '@'..='_' | 'a'..='z' => char::from(character as u8 & 0x1f),
        ' ' | '`' | '2' => '\0',
        '3'..='7' => char::from(character as u8 - b'3' + ESC),
        '/' => '\u{1f}',
        '8' | '?' => char::from(DEL),
        other => other,
    }
}

/// A key that is no character.
fn special(key: KeyCode, held: &Modifiers) -> Bytes {
    let modifiers = 1
        + u8::from(held.is_shifted())
        + 2 * u8::from(held.is_alt())
        + 4 * u8::from(held.is_ctrl());
    let is_plain = modifiers == 1;
    let letter = |letter: u8| match is_plain {
        true => sequence(&[ESC, b'[', letter]),
        false => sequence(&[ESC, b'[', b'1', b';', b'0' + modifiers, letter]),
    };
    let number = |number: u8| {
        let mut bytes = sequence(&[ESC, b'[']);
        if number >= 10 {
            bytes.push(b'0' + number / 10);
        }
        bytes.push(b'0' + number % 10);
        if !is_plain {
            add(&mut bytes, &[b';', b'0' + modifiers]);
        }
        add(&mut bytes, b"~");
        bytes
    };
    let function = |letter_of: u8| match is_plain {
        true => sequence(&[ESC, b'O', letter_of]),
        false => letter(letter_of),
    };
    match key {
        KeyCode::ArrowUp => letter(b'A'),
        KeyCode::ArrowDown => letter(b'B'),
        KeyCode::ArrowRight => letter(b'C'),
        KeyCode::ArrowLeft => letter(b'D'),
        KeyCode::Home if is_plain => number(1),
        KeyCode::Home => letter(b'H'),
        KeyCode::Insert => number(2),
        KeyCode::Delete => number(3),
        KeyCode::End if is_plain => number(4),
        KeyCode::End => letter(b'F'),
        KeyCode::PageUp => number(5),
        KeyCode::PageDown => number(6),
        KeyCode::F1 => function(b'P'),
        KeyCode::F2 => function(b'Q'),
        KeyCode::F3 => function(b'R'),
        KeyCode::F4 => function(b'S'),
        KeyCode::F5 => number(15),
        KeyCode::F6 => number(17),
        KeyCode::F7 => number(18),
        KeyCode::F8 => number(19),
        KeyCode::F9 => number(20),
        KeyCode::F10 => number(21),
        KeyCode::F11 => number(23),
        KeyCode::F12 => number(24),
        KeyCode::PauseBreak => sequence(&[ESC, b'[', b'P']),
        _ => Bytes::new(),
    }
}
