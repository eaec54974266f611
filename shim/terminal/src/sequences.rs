//! What control characters and escape sequences do (ECMA-48, VT102, `console_codes(4)`).

use vte::{Params, Perform};

use crate::grid::{Grid, Pen, Place};
use crate::{Cell, Colour};

/// DEC's line drawing characters, for '`' to '~'.
const LINES: [char; 31] = [
    '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼', '⎺', '⎻', '─', '⎼',
    '⎽', '├', '┤', '┴', '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
];

impl Perform for Grid {
    fn print(&mut self, character: char) {
        let drawn = u32::from(character).checked_sub(u32::from('`')).filter(|_| self.pen.lines);
        let drawn = drawn.and_then(|index| LINES.get(index as usize));
        self.put(*drawn.unwrap_or(&character));
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            0x08 => {
                let column = self.cursor.column.saturating_sub(1);
                self.go(Place { column, ..self.cursor });
            }
            b'\t' => self.tab(),
            b'\n' | 0x0b | 0x0c => self.line_feed(),
            b'\r' => self.go(Place { column: 0, ..self.cursor }),
            0x0e => self.pen.lines = true,
            0x0f => self.pen.lines = false,
            _ => {}
        }
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _ignore: bool, byte: u8) {
        match (intermediates, byte) {
            ([], b'7') => self.saved = (self.cursor, self.pen),
            ([], b'8') => self.restore(),
            ([], b'c') => self.reset(),
            ([], b'D') => self.line_feed(),
            ([], b'E') => {
                self.line_feed();
                self.go(Place { column: 0, ..self.cursor });
            }
            ([], b'M') => self.reverse_line_feed(),
            ([b'('], set) => self.pen.lines = set == b'0',
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        let number = |index: usize| params.iter().nth(index)?.first().copied().filter(|&n| n != 0);
        let count = usize::from(number(0).unwrap_or(1));
        let second = usize::from(number(1).unwrap_or(1));
        let Place { column, row } = self.cursor;
        match (intermediates, action) {
            _ if ignore => {}
            ([b'?'], 'h' | 'l') => self.private_modes(params, action == 'h'),
            ([], 'A') => self.go(Place { row: row.saturating_sub(count), column }),
            ([], 'B' | 'e') => self.go(Place { row: row + count, column }),
            ([], 'C' | 'a') => self.go(Place { column: column + count, row }),
            ([], 'D') => self.go(Place { column: column.saturating_sub(count), row }),
            ([], 'E') => self.go(Place { row: row + count, column: 0 }),
            ([], 'F') => self.go(Place { row: row.saturating_sub(count), column: 0 }),
            ([], 'G' | '`') => self.go(Place { column: count - 1, row }),
            ([], 'd') => self.go(Place { row: count - 1, column }),
            ([], 'H' | 'f') => self.go(Place { row: count - 1, column: second - 1 }),
            ([], 'J') => self.erase(self.all(), number(0)),
            ([], 'K') => self.erase(self.line(), number(0)),
            ([], 'X') => {
                let end = (self.here() + count).min(self.line().end);
                self.clear(self.here()..end);
            }
            ([], 'P') => self.delete(count),
            ([], '@') => self.insert(count),
            ([], 'L') => {
                if let Some(rows) = self.rest_of_region() {
                    self.scroll_down(rows, count);
                }
            }
            ([], 'M') => {
                if let Some(rows) = self.rest_of_region() {
                    self.scroll_up(rows, count);
                }
            }
            ([], 'S') => self.scroll_up(self.region.clone(), count),
            ([], 'T') => self.scroll_down(self.region.clone(), count),
            ([], 'r') => self.set_region(count - 1, number(1)),
            ([], 's') => self.saved = (self.cursor, self.pen),
            ([], 'u') => self.restore(),
            ([], 'm') => self.select_graphics(params),
            _ => {}
        }
    }
}

impl Grid {
    fn restore(&mut self) {
        let (cursor, pen) = self.saved;
        self.pen = pen;
        self.go(cursor);
    }

    fn private_modes(&mut self, params: &Params, on: bool) {
        for mode in params.iter().filter_map(|mode| mode.first()) {
            match mode {
                7 => self.autowrap = on,
                25 => self.cursor_is_shown = on,
                _ => {}
            }
        }
    }

    /// Of some cells those from the cursor on, or up to it, or all.
    fn erase(&mut self, cells: core::ops::Range<usize>, which: Option<u16>) {
        let here = self.here();
        match which {
            None => self.clear(here..cells.end),
            Some(1) => self.clear(cells.start..here + 1),
            Some(_) => self.clear(cells),
        }
    }

    fn set_region(&mut self, start: usize, end: Option<u16>) {
        let (_, rows) = self.size();
        let end = end.map_or(rows, usize::from).min(rows);
        if start + 1 < end {
            self.region = start..end;
            self.go(Place::default());
        }
    }

    fn select_graphics(&mut self, params: &Params) {
        let lines = self.pen.lines;
        let mut codes = params.iter().flatten().copied();
        while let Some(code) = codes.next() {
            let pen = &mut self.pen;
            match code {
                0 => *pen = Pen { lines, ..Pen::PLAIN },
                1 => pen.bold = true,
                2 | 22 => pen.bold = false,
                7 => pen.reverse = true,
                27 => pen.reverse = false,
                30..38 => pen.ink = Colour((code - 30) as u8),
                38 => pen.ink = of_more(&mut codes).unwrap_or(pen.ink),
                39 => pen.ink = Colour::WHITE,
                40..48 => pen.paper = Colour((code - 40) as u8),
                48 => pen.paper = of_more(&mut codes).unwrap_or(pen.paper),
                49 => pen.paper = Colour::BLACK,
                90..98 => pen.ink = Colour((code - 90 + 8) as u8),
                100..108 => pen.paper = Colour((code - 100 + 8) as u8),
                _ => {}
            }
        }
    }
}

/// `5;N`, one of 256, or `2;R;G;B`.
fn of_more(codes: &mut impl Iterator<Item = u16>) -> Option<Colour> {
    let mut byte = || Some(codes.next()?.min(255) as u8);
    match byte()? {
        5 => Some(Colour::of_256(byte()?)),
        2 => Some(Colour::nearest([byte()?, byte()?, byte()?])),
        _ => None,
    }
}

const _: () = assert!(size_of::<Cell>() == 4);
