//! What keys send.

use alloc::string::String;
use alloc::vec::Vec;

use super::*;

/// The US layout by its rows: first scan code, plain and shifted characters.
const ROWS: [(u16, &str, &str); 7] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
    (0x37, "*", "*"),
    (0x0f, "\t", ""),
];

const SHIFT: Keystroke = Keystroke::new(0x2a, KeyFlags::empty());
const CTRL: Keystroke = Keystroke::new(0x1d, KeyFlags::empty());
const ALT: Keystroke = Keystroke::new(0x38, KeyFlags::empty());
const RIGHT_ALT: Keystroke = Keystroke::new(0x38, KeyFlags::E0);
const CAPS_LOCK: Keystroke = Keystroke::new(0x3a, KeyFlags::empty());
const NUM_LOCK: Keystroke = Keystroke::new(0x45, KeyFlags::empty());

fn gray(code: u16) -> Keystroke {
    Keystroke::new(code, KeyFlags::E0)
}

/// What a new keyboard types.
fn typed(strokes: &[Keystroke]) -> Vec<u8> {
    let mut typist = Typist::new();
    strokes.iter().flat_map(|stroke| typist.stroke(stroke).expect("a key")).collect()
}

fn text(strokes: &[Keystroke]) -> String {
    String::from_utf8(typed(strokes)).expect("UTF-8")
}

#[test]
fn the_us_layout() {
    let mut seen = Vec::new();
    for (first, plain, shifted) in ROWS {
        for (code, character) in (first..).zip(plain.bytes()) {
            assert_eq!(typed(&[make(code)]), [character], "{code:#x}");
            seen.push(character);
        }
        for (code, character) in (first..).zip(shifted.bytes()) {
            assert_eq!(typed(&[SHIFT, make(code)]), [character], "shift {code:#x}");
            seen.push(character);
        }
    }
    // Every printable character can be typed.
    assert!((b' '..=b'~').all(|character| seen.contains(&character)));
}

#[test]
fn modifiers_hold_until_they_are_released() {
    let a = make(0x1e);
    assert_eq!(typed(&[SHIFT, a, release(0x2a), a]), b"Aa");
    assert_eq!(typed(&[SHIFT, make(0x36), release(0x2a), a, release(0x36), a]), b"Aa");
    assert_eq!(typed(&[CTRL, gray(0x1d), release(0x1d), a]), [1]);
    // Caps Lock is for letters; with it Shift is the other way round.
    let caps = [CAPS_LOCK, release(0x3a), a, make(0x02), SHIFT, a, make(0x02)];
    assert_eq!(typed(&caps), b"A1a!");
    assert_eq!(typed(&[a, a, a]), b"aaa", "what is held repeats");
}

#[test]
fn control_characters() {
    for (code, byte) in [(0x2e, 3), (0x20, 4), (0x10, 17), (0x2c, 26), (0x1a, 27), (0x1b, 29)] {
        assert_eq!(typed(&[CTRL, make(code)]), [byte]);
        assert_eq!(typed(&[CTRL, CAPS_LOCK, make(code)]), [byte]);
    }
    for (code, byte) in [(0x39, 0), (0x03, 0), (0x04, 27), (0x07, 30), (0x09, 127), (0x2b, 28)] {
        assert_eq!(typed(&[CTRL, make(code)]), [byte]);
    }
    assert_eq!(typed(&[CTRL, SHIFT, make(0x0c)]), [31]);
    assert_eq!(typed(&[ALT, make(0x1e), CTRL, make(0x1e)]), b"\x1ba\x1b\x01");
    assert_eq!(typed(&[RIGHT_ALT, make(0x34)]), b"\x1b.");
}

#[test]
fn keys_with_bytes_of_their_own() {
    let enter = [make(0x1c), gray(0x1c)];
    assert_eq!(typed(&enter), b"\r\r");
    assert_eq!(typed(&[ALT, make(0x1c), make(0x0e)]), b"\x1b\r\x1b\x7f");
    assert_eq!(typed(&[make(0x0e), CTRL, make(0x0e)]), b"\x7f\x08");
    assert_eq!(typed(&[make(0x01), make(0x0f), SHIFT, make(0x0f)]), b"\x1b\t\x1b[Z");
}

#[test]
fn cursor_keys() {
    let keys = [0x48, 0x50, 0x4d, 0x4b, 0x47, 0x4f, 0x49, 0x51, 0x52, 0x53];
    let sent = ["A", "B", "C", "D", "1~", "4~", "5~", "6~", "2~", "3~"];
    for (code, sent) in keys.into_iter().zip(sent) {
        assert_eq!(text(&[gray(code)]), std::format!("\x1b[{sent}"));
        // On the keypad, too, without the lock.
        assert_eq!(text(&[NUM_LOCK, make(code)]), std::format!("\x1b[{sent}"));
    }
    assert_eq!(text(&[SHIFT, gray(0x48)]), "\x1b[1;2A");
    assert_eq!(text(&[CTRL, gray(0x4d)]), "\x1b[1;5C");
    assert_eq!(text(&[CTRL, ALT, gray(0x53)]), "\x1b[3;7~");
    assert_eq!(text(&[CTRL, gray(0x47), gray(0x4f)]), "\x1b[1;5H\x1b[1;5F");
}

#[test]
fn keypad() {
    let digits = [0x52, 0x4f, 0x50, 0x51, 0x4b, 0x4c, 0x4d, 0x47, 0x48, 0x49];
    for (digit, code) in (b'0'..).zip(digits) {
        assert_eq!(typed(&[make(code)]), [digit]);
    }
    assert_eq!(typed(&[make(0x53), gray(0x35), make(0x37), make(0x4a), make(0x4e)]), b"./*-+");
    assert_eq!(text(&[NUM_LOCK, make(0x4c), make(0x4a), gray(0x35)]), "\x1b[G-/");
    let twice = [NUM_LOCK, release(0x45), NUM_LOCK, release(0x45), make(0x4f)];
    assert_eq!(typed(&twice), b"1");
}

#[test]
fn function_keys() {
    let codes = (0x3b..=0x44).chain([0x57, 0x58]);
    let sent = ["OP", "OQ", "OR", "OS"].into_iter().map(String::from);
    let numbers = [15, 17, 18, 19, 20, 21, 23, 24].map(|n| std::format!("[{n}~"));
    for (code, sent) in codes.zip(sent.chain(numbers)) {
        assert_eq!(text(&[make(code)]), std::format!("\x1b{sent}"));
    }
    assert_eq!(text(&[SHIFT, make(0x3b), make(0x58)]), "\x1b[1;2P\x1b[24;2~");
}

/// Pause is Ctrl with another prefix, then Num Lock; Print Screen may have a shift of its own.
#[test]
fn keys_with_codes_of_others() {
    let e1 = KeyFlags::E1;
    let pause = [
        Keystroke::new(0x1d, e1),
        make(0x45),
        Keystroke::new(0x1d, e1 | KeyFlags::BREAK),
        release(0x45),
    ];
    let after = [make(0x4f), make(0x1e)];
    assert_eq!(typed(&[&pause[..], &after].concat()), b"\x1b[P1a");
    for nothing in [make(0x46), gray(0x37), gray(0x5b), gray(0x5d), make(0x54)] {
        assert_eq!(typed(&[nothing, make(0x1e)]), b"a");
    }
    let released = Keystroke::new(0x37, KeyFlags::E0 | KeyFlags::BREAK);
    assert_eq!(typed(&[gray(0x2a), gray(0x37), released, make(0x1e)]), b"a");
}

#[test]
fn codes_of_no_key() {
    let mut typist = Typist::new();
    let both = KeyFlags::E0 | KeyFlags::E1;
    for stroke in [
        make(0),
        make(0x59),
        make(0x80),
        make(0x11e),
        release(0x60),
        release(0x61),
        gray(0x60),
        Keystroke::new(0x1e, both),
        Keystroke::new(0x1e, KeyFlags::E1),
    ] {
        assert_eq!(typist.stroke(&stroke), None, "{stroke:?}");
    }
    assert_eq!(typist.stroke(&make(0x1e)).expect("a key").as_slice(), b"a");
}

#[test]
fn characters() {
    let unicode = |units: &[u16]| {
        let pairs = [KeyFlags::UNICODE, KeyFlags::UNICODE | KeyFlags::BREAK];
        let strokes = units.iter().flat_map(|unit| pairs.map(|flags| Keystroke::new(*unit, flags)));
        typed(&strokes.collect::<Vec<_>>())
    };
    assert_eq!(
        unicode(&"aß€\u{1f600}z".encode_utf16().collect::<Vec<_>>()),
        "aß€\u{1f600}z".as_bytes()
    );
    assert_eq!(unicode(&[0x0a, 0x0d, 0x08, 0x09, 0x1b, 0]), b"\r\r\x7f\t\x1b");
    // Halves alone are nothing, and what follows them is not lost.
    assert_eq!(unicode(&[0xd83d, 0x61, 0xde00, 0xd83d, 0xd83d, 0xde00]), "a\u{1f600}".as_bytes());
    // They are characters whatever is held.
    let held = [SHIFT, CTRL, Keystroke::new(0x61, KeyFlags::UNICODE)];
    assert_eq!(typed(&held), b"a");
}
