//! From text and names of keys to keystrokes, on a US keyboard.

use anyhow::{Context, Result, bail};
use hv_abi::keyboard::{KeyFlags, Keystroke};

/// The main block's rows: scan code of the first key, what the keys are without Shift and with it.
const ROWS: [(u16, &str, &str); 5] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", ""),
];

const LEFT_SHIFT: Key = Key(0x2a, false);
const ENTER: Key = Key(0x1c, false);
const TAB: Key = Key(0x0f, false);
const ESCAPE: Key = Key(0x01, false);
const BACKSPACE: Key = Key(0x0e, false);

/// Keys by their names.
const NAMED: [(&str, Key); 57] = [
    ("enter", ENTER),
    ("tab", TAB),
    ("esc", ESCAPE),
    ("backspace", BACKSPACE),
    ("space", Key(0x39, false)),
    ("up", Key(0x48, true)),
    ("down", Key(0x50, true)),
    ("left", Key(0x4b, true)),
    ("right", Key(0x4d, true)),
    ("home", Key(0x47, true)),
    ("end", Key(0x4f, true)),
    ("pgup", Key(0x49, true)),
    ("pgdn", Key(0x51, true)),
    ("ins", Key(0x52, true)),
    ("del", Key(0x53, true)),
    ("f1", Key(0x3b, false)),
    ("f2", Key(0x3c, false)),
    ("f3", Key(0x3d, false)),
    ("f4", Key(0x3e, false)),
    ("f5", Key(0x3f, false)),
    ("f6", Key(0x40, false)),
    ("f7", Key(0x41, false)),
    ("f8", Key(0x42, false)),
    ("f9", Key(0x43, false)),
    ("f10", Key(0x44, false)),
    ("f11", Key(0x57, false)),
    ("f12", Key(0x58, false)),
    ("capslock", Key(0x3a, false)),
    ("numlock", Key(0x45, false)),
    ("scrolllock", Key(0x46, false)),
    ("print", Key(0x37, true)),
    ("menu", Key(0x5d, true)),
    ("win", Key(0x5b, true)),
    ("shift", LEFT_SHIFT),
    ("rshift", Key(0x36, false)),
    ("ctrl", Key(0x1d, false)),
    ("rctrl", Key(0x1d, true)),
    ("alt", Key(0x38, false)),
    ("altgr", Key(0x38, true)),
    ("kp0", Key(0x52, false)),
    ("kp1", Key(0x4f, false)),
    ("kp2", Key(0x50, false)),
    ("kp3", Key(0x51, false)),
    ("kp4", Key(0x4b, false)),
    ("kp5", Key(0x4c, false)),
    ("kp6", Key(0x4d, false)),
    ("kp7", Key(0x47, false)),
    ("kp8", Key(0x48, false)),
    ("kp9", Key(0x49, false)),
    ("kp.", Key(0x53, false)),
    ("kp+", Key(0x4e, false)),
    ("kp-", Key(0x4a, false)),
    ("kp*", Key(0x37, false)),
    ("kp/", Key(0x35, true)),
    ("kpenter", Key(0x1c, true)),
    ("sysrq", Key(0x54, false)),
    ("102nd", Key(0x56, false)),
];
/// Keys that others are pressed with, by the names that precede theirs.
const HELD: [&str; 6] = ["shift", "rshift", "ctrl", "rctrl", "alt", "altgr"];

/// A key: its scan code, and whether that has the prefix E0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u16, bool);

impl Key {
    fn stroke(self, flags: KeyFlags) -> Keystroke {
        let prefix = if self.1 { KeyFlags::E0 } else { KeyFlags::empty() };
        Keystroke::new(self.0, prefix | flags)
    }

    fn press(self) -> Keystroke {
        self.stroke(KeyFlags::empty())
    }

    fn release(self) -> Keystroke {
        self.stroke(KeyFlags::BREAK)
    }

    fn named(name: &str) -> Option<Self> {
        NAMED.iter().find(|(other, _)| *other == name).map(|(_, key)| *key)
    }
}

/// The key of a character, and whether with Shift.
fn key_of(character: char) -> Option<(Key, bool)> {
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &str| row.chars().position(|other| other == character);
        let found = at(plain).map(|at| (at, false)).or_else(|| at(shifted).map(|at| (at, true)));
        let (at, shift) = found?;
        Some((Key(first + u16::try_from(at).ok()?, false), shift))
    })
}

/// Presses keys in turn and releases them the other way round.
fn chord(strokes: &mut Vec<Keystroke>, keys: &[Key]) {
    strokes.extend(keys.iter().map(|key| key.press()));
    strokes.extend(keys.iter().rev().map(|key| key.release()));
}

/// Types text. What the keyboard has no key for comes as characters.
///
/// # Errors
/// A control character, or a backslash before something else than `n`, `t`, `e`, `b` and `\`.
pub fn text(text: &str) -> Result<Vec<Keystroke>> {
    let mut strokes = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let (key, shift) = match character {
            '\\' => match characters.next() {
                Some('n') => (ENTER, false),
                Some('t') => (TAB, false),
                Some('e') => (ESCAPE, false),
                Some('b') => (BACKSPACE, false),
                Some('\\') => key_of('\\').context("no key of this name")?,
                _ => bail!("type takes \\n, \\t, \\e, \\b and \\\\"),
            },
            character if character.is_control() => bail!("type takes no control characters"),
            character => match key_of(character) {
                Some(key) => key,
                None => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        for flags in [KeyFlags::empty(), KeyFlags::BREAK] {
                            strokes.push(Keystroke::new(*unit, KeyFlags::UNICODE | flags));
                        }
                    }
                    continue;
                }
            },
        };
        match shift {
            true => chord(&mut strokes, &[LEFT_SHIFT, key]),
            false => chord(&mut strokes, &[key]),
        }
    }
    Ok(strokes)
}

/// Presses keys by name, one after the other: `up`, `ctrl-c`, `ctrl-alt-del`.
///
/// # Errors
/// An unknown name.
pub fn keys(names: &str) -> Result<Vec<Keystroke>> {
    let mut strokes = Vec::new();
    for name in names.split_whitespace() {
        // E1 1D, 45, and released again.
        if name == "pause" {
            let (first, second) = (Key(0x1d, false), Key(0x45, false));
            strokes.extend([first.stroke(KeyFlags::E1), second.press()]);
            strokes.extend([first.stroke(KeyFlags::E1 | KeyFlags::BREAK), second.release()]);
            continue;
        }
        let (mut pressed, mut rest) = (Vec::new(), name);
        while let Some((held, behind)) =
            rest.split_once('-').filter(|(held, _)| HELD.contains(held))
        {
            pressed.extend(Key::named(held));
            rest = behind;
        }
        let mut one = rest.chars();
        let key = match (one.next(), one.next()) {
            (Some(character), None) => key_of(character),
            _ => Key::named(rest).map(|key| (key, false)),
        };
        let (key, shift) = key.with_context(|| format!("{name:?} is no key"))?;
        if shift {
            pressed.push(LEFT_SHIFT);
        }
        pressed.push(key);
        chord(&mut strokes, &pressed);
    }
    if strokes.is_empty() {
        bail!("key wants names of keys");
    }
    Ok(strokes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(strokes: Result<Vec<Keystroke>>) -> Vec<(u16, u32)> {
        strokes.unwrap().iter().map(|stroke| (stroke.make_code, stroke.flags)).collect()
    }

    #[test]
    fn text_is_typed() {
        assert_eq!(codes(text("a")), [(0x1e, 0), (0x1e, 2)]);
        assert_eq!(codes(text("A")), [(0x2a, 0), (0x1e, 0), (0x1e, 2), (0x2a, 2)]);
        assert_eq!(codes(text(r"\n\\")), [(0x1c, 0), (0x1c, 2), (0x2b, 0), (0x2b, 2)]);
        assert_eq!(codes(text("ß")), [(0xdf, 1), (0xdf, 3)]);
        let smile = [(0xd83d, 1), (0xd83d, 3), (0xde00, 1), (0xde00, 3)];
        assert_eq!(codes(text("\u{1f600}")), smile);
        assert!((' '..='~').filter(|c| *c != '\\').all(|c| key_of(c).is_some()));
        for wrong in [r"\x", "\\", "\u{7}"] {
            assert!(text(wrong).is_err());
        }
    }

    #[test]
    fn keys_are_pressed() {
        assert_eq!(codes(keys("up")), [(0x48, 4), (0x48, 6)]);
        let all = [(0x1d, 0), (0x38, 0), (0x53, 4), (0x53, 6), (0x38, 2), (0x1d, 2)];
        assert_eq!(codes(keys("ctrl-alt-del")), all);
        assert_eq!(codes(keys("ctrl--")), [(0x1d, 0), (0x0c, 0), (0x0c, 2), (0x1d, 2)]);
        assert_eq!(codes(keys("shift")), [(0x2a, 0), (0x2a, 2)]);
        assert_eq!(codes(keys("kp- f12")), [(0x4a, 0), (0x4a, 2), (0x58, 0), (0x58, 2)]);
        assert_eq!(codes(keys("pause")), [(0x1d, 8), (0x45, 0), (0x1d, 10), (0x45, 2)]);
        for wrong in ["", "hyper", "ctrl-", "hyper-a", "ß"] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }
}
