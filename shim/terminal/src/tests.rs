//! Text in, characters and pixels out.

extern crate std;

use std::string::String;
use std::vec;
use std::vec::Vec;

use boot_abi::{Channel, Framebuffer, PixelFormat};
use proptest::prelude::*;

use crate::{Cell, Colour, Pixels, Screen, Terminal};

fn terminal(columns: u32, rows: u32) -> Terminal {
    let mut terminal = Terminal::new();
    terminal.grid.resize(columns, rows);
    terminal.grid.cursor_is_shown = false;
    terminal
}

/// The rows, with blanks at their ends cut off.
fn rows(terminal: &Terminal) -> Vec<String> {
    let (columns, _) = terminal.grid.size();
    let text: Vec<char> = terminal.grid.cells().map(Cell::character).collect();
    let row = |row: &[char]| row.iter().collect::<String>().trim_end().into();
    text.chunks(columns).map(row).collect()
}

fn after(columns: u32, lines: u32, text: &str) -> Vec<String> {
    let mut terminal = terminal(columns, lines);
    terminal.write(text.as_bytes());
    rows(&terminal)
}

#[test]
fn text_wraps_and_scrolls() {
    assert_eq!(after(5, 3, "abcdefg\r\nh"), ["abcde", "fg", "h"]);
    assert_eq!(after(5, 2, "a\r\nb\r\nc"), ["b", "c"]);
    assert_eq!(after(5, 2, "abcde\r\nf"), ["abcde", "f"], "a full line does not make two");
    assert_eq!(after(12, 1, "a\tb\x08c"), ["a       c"]);
    assert_eq!(after(5, 2, "\x1b[?7labcdefg"), ["abcdg", ""]);
}

#[test]
fn the_cursor_goes_where_it_is_sent() {
    assert_eq!(after(6, 3, "\x1b[2;3Hx\x1b[Ay\x1b[1Gz\x1b[Bw"), ["z  y", " wx", ""]);
    assert_eq!(after(4, 2, "\x1b[99;99Hx\x1b[Hy\x1b[99Dz"), ["z", "   x"]);
    assert_eq!(after(4, 2, "ab\x1b7\x1b[2;1Hc\x1b8d"), ["abd", "c"]);
}

#[test]
fn parts_are_erased_moved_and_made() {
    assert_eq!(after(5, 2, "abcde\r\nfghij\x1b[1;3H\x1b[K"), ["ab", "fghij"]);
    assert_eq!(after(5, 2, "abcde\r\nfghij\x1b[1;3H\x1b[1K"), ["   de", "fghij"]);
    assert_eq!(after(5, 2, "abcde\r\nfghij\x1b[1;3H\x1b[J"), ["ab", ""]);
    assert_eq!(after(5, 2, "abcde\x1b[2J"), ["", ""]);
    assert_eq!(after(5, 1, "abcd\x1b[2G\x1b[2P"), ["ad"]);
    assert_eq!(after(5, 1, "abcd\x1b[2G\x1b[2@"), ["a  bc"]);
    assert_eq!(after(5, 1, "abcd\x1b[2G\x1b[2X"), ["a  d"]);
    assert_eq!(after(2, 4, "a\r\nb\r\nc\r\nd\x1b[2H\x1b[L"), ["a", "", "b", "c"]);
    assert_eq!(after(2, 4, "a\r\nb\r\nc\r\nd\x1b[2H\x1b[M"), ["a", "c", "d", ""]);
}

#[test]
fn some_rows_scroll_alone() {
    let region = "a\r\nb\r\nc\r\nd\x1b[2;3r";
    assert_eq!(after(2, 4, &std::format!("{region}\x1b[3H\n")), ["a", "c", "", "d"]);
    assert_eq!(after(2, 4, &std::format!("{region}\x1b[2H\x1bM")), ["a", "", "b", "d"]);
    assert_eq!(after(2, 4, &std::format!("{region}\x1b[4H\n")), ["a", "b", "c", "d"]);
}

#[test]
fn lines_and_letters_of_the_world() {
    assert_eq!(after(8, 1, "\x1b(0lqk\x1b(Bq"), ["┌─┐q"]);
    let mut terminal = terminal(8, 1);
    // In the middle of a character.
    terminal.write(b"\xc3");
    terminal.write(b"\xa9\xff!");
    assert_eq!(rows(&terminal), ["é\u{fffd}!"]);
}

#[test]
fn colours() {
    let mut terminal = terminal(8, 1);
    terminal
        .write(b"\x1b[31;44ma\x1b[1mb\x1b[7mc\x1b[0md\x1b[38;5;196me\x1b[48;2;0;170;0mf\x1b[97mg");
    let cells: Vec<_> = terminal.grid.cells().map(|c| (c.ink().0, c.paper().0)).collect();
    assert_eq!(cells[..7], [(1, 4), (9, 4), (4, 9), (7, 0), (1, 0), (1, 2), (15, 2)]);
}

struct Memory(Vec<u8>);

impl Pixels for Memory {
    fn store(&mut self, offset: usize, value: u32, bytes: usize) {
        self.0[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
}

fn layout(bpp: u8, width: u32, height: u32) -> Framebuffer {
    let channels = |bits: [(u8, u8); 3]| {
        let [r, g, b] = bits.map(|(shift, bits)| Channel { shift, bits });
        PixelFormat::Rgb(r, g, b)
    };
    let format = match bpp {
        16 => channels([(11, 5), (5, 6), (0, 5)]),
        _ => channels([(16, 8), (8, 8), (0, 8)]),
    };
    let pitch = width * u32::from(bpp.div_ceil(8)) + 12;
    Framebuffer { address: 0x1000, pitch, width, height, bpp, format }
}

#[test]
fn what_changes_is_drawn() {
    for (bpp, white, red) in [
        (32, &[0xaa, 0xaa, 0xaa, 0][..], &[0, 0, 0xaa, 0][..]),
        (24, &[0xaa; 3], &[0, 0, 0xaa]),
        (16, &[0x55, 0xad], &[0, 0xa8]),
    ] {
        let layout = layout(bpp, 20, 35);
        let mut memory = Memory(vec![1; layout.bytes().expect("sensible") as usize]);
        let mut screen = Screen::new();
        assert_eq!(screen.attach(&layout), Some((2, 2)));
        screen.blank(&mut memory);
        let mut terminal = terminal(2, 2);
        terminal.write("\x1b[31m█\x1b[37m█".as_bytes());
        screen.draw(&terminal.grid, &mut memory);
        let bytes = white.len();
        let at = |x: usize, y: usize| {
            let start = y * layout.pitch as usize + x * bytes;
            &memory.0[start..start + bytes]
        };
        assert_eq!((at(0, 8), at(15, 15)), (red, white));
        assert_eq!(at(16, 0), &[0; 4][..bytes], "beside the characters");
        assert_eq!(at(19, 34), &[0; 4][..bytes], "below them");
        // Nothing to do, nothing done.
        memory.0.fill(1);
        screen.draw(&terminal.grid, &mut memory);
        assert!(memory.0.iter().all(|&byte| byte == 1));
    }
}

#[test]
fn a_screen_that_cannot_be_drawn_on_is_none() {
    let mut text = layout(16, 80, 25);
    text.format = PixelFormat::Text;
    let mut wrong = layout(32, 640, 480);
    wrong.format =
        PixelFormat::Rgb(Channel { shift: 30, bits: 8 }, Channel::default(), Channel::default());
    for layout in [text, wrong, layout(32, 7, 100)] {
        assert_eq!(Screen::new().attach(&layout), None);
    }
}

#[test]
fn colours_have_neighbours() {
    assert_eq!(Colour::of_256(231), Colour(15));
    assert_eq!(Colour::of_256(9), Colour(9));
    assert_eq!(Colour::of_256(255), Colour(15));
    assert_eq!(Colour::of_256(240), Colour(8));
}

proptest! {
    #[test]
    fn any_output_is_survived(
        columns in 0u32..200,
        lines in 0u32..200,
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                "\\x1b\\[[?]?[0-9;]{0,12}[@-~]".prop_map(String::into_bytes),
                "[a-z\\n\\r]{0,60}".prop_map(String::into_bytes),
            ],
            0..40,
        ),
    ) {
        let mut terminal = Terminal::new();
        terminal.grid.resize(columns, lines);
        for piece in pieces {
            terminal.write(&piece);
        }
        let (columns, lines) = terminal.grid.size();
        prop_assert_eq!(terminal.grid.cells().count(), columns * lines);
    }
}
