//! The characters, and what happens to them.

use core::ops::Range;

use crate::{Cell, Colour};

/// Most characters of a screen: 160 columns of 50 rows. On larger ones the rest stays black.
pub const MAX_CELLS: usize = 8000;
/// Most columns.
const MAX_COLUMNS: usize = 160;
/// Columns between tabulator stops.
const TAB: usize = 8;

/// How characters are written from here on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pen {
    pub ink: Colour,
    pub paper: Colour,
    pub bold: bool,
    pub reverse: bool,
    /// DEC's line drawing in place of small letters.
    pub lines: bool,
}

impl Pen {
    pub const PLAIN: Self = Self {
        ink: Colour::WHITE,
        paper: Colour::BLACK,
        bold: false,
        reverse: false,
        lines: false,
    };

    fn cell(self, character: char) -> Cell {
        let ink = if self.bold { Colour(self.ink.0 | 8) } else { self.ink };
        let cell = Cell::new(character, ink, self.paper);
        if self.reverse { cell.reversed() } else { cell }
    }
}

/// A place: column and row, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub column: usize,
    pub row: usize,
}

/// A grid of characters with a cursor.
pub struct Grid {
    cells: [Cell; MAX_CELLS],
    columns: usize,
    rows: usize,
    pub(crate) cursor: Place,
    /// The cursor is behind the last column: the next character begins a line.
    pub(crate) wraps: bool,
    pub(crate) pen: Pen,
    pub(crate) saved: (Place, Pen),
    /// Rows that scroll.
    pub(crate) region: Range<usize>,
    pub(crate) cursor_is_shown: bool,
    pub(crate) autowrap: bool,
}

impl Grid {
    #[allow(clippy::large_stack_arrays, reason = "made once, in a static")]
    pub(crate) const fn new() -> Self {
        Self {
            cells: [Cell::EMPTY; MAX_CELLS],
            columns: 1,
            rows: 1,
            cursor: Place { column: 0, row: 0 },
            wraps: false,
            pen: Pen::PLAIN,
            saved: (Place { column: 0, row: 0 }, Pen::PLAIN),
            region: 0..1,
            cursor_is_shown: true,
            autowrap: true,
        }
    }

    /// Makes it that large, or as large as there is room for, and empty.
    pub fn resize(&mut self, columns: u32, rows: u32) {
        self.columns = (columns as usize).clamp(1, MAX_COLUMNS);
        self.rows = (rows as usize).clamp(1, MAX_CELLS / self.columns);
        self.reset();
    }

    /// As it was at first.
    pub(crate) fn reset(&mut self) {
        self.pen = Pen::PLAIN;
        self.saved = (Place::default(), Pen::PLAIN);
        self.region = 0..self.rows;
        (self.cursor_is_shown, self.autowrap) = (true, true);
        self.go(Place::default());
        self.clear(0..self.rows * self.columns);
    }

    /// Columns and rows.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.columns, self.rows)
    }

    /// The characters, row by row, the one under the cursor reversed.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        let cursor = self.cursor.row * self.columns + self.cursor.column;
        let cells = self.cells.iter().take(self.rows * self.columns).enumerate();
        cells.map(
            move |(at, &cell)| {
                if self.cursor_is_shown && at == cursor { cell.reversed() } else { cell }
            },
        )
    }

    /// Empties cells, in the pen's background.
    pub(crate) fn clear(&mut self, cells: Range<usize>) {
        let empty = Cell::new(' ', self.pen.ink, self.pen.paper);
        if let Some(cells) = self.cells.get_mut(cells) {
            cells.fill(empty);
        }
    }

    /// Number of a row's first cell.
    fn start(&self, row: usize) -> usize {
        row * self.columns
    }

    /// Number of the cell under the cursor.
    pub(crate) fn here(&self) -> usize {
        self.start(self.cursor.row) + self.cursor.column
    }

    /// Cells of the cursor's row.
    pub(crate) fn line(&self) -> Range<usize> {
        self.start(self.cursor.row)..self.start(self.cursor.row + 1)
    }

    /// Cells of the whole grid.
    pub(crate) fn all(&self) -> Range<usize> {
        0..self.start(self.rows)
    }

    /// Moves the cursor, as far as there is room.
    pub(crate) fn go(&mut self, to: Place) {
        self.wraps = false;
        self.cursor.column = to.column.min(self.columns - 1);
        self.cursor.row = to.row.min(self.rows - 1);
    }

    /// Writes a character.
    pub(crate) fn put(&mut self, character: char) {
        if self.wraps {
            self.cursor.column = 0;
            self.line_feed();
        }
        let at = self.here();
        self.cells[at] = self.pen.cell(character);
        if self.cursor.column + 1 < self.columns {
            self.cursor.column += 1;
        } else {
            self.wraps = self.autowrap;
        }
    }

    /// One row down; the last one of those that scroll makes them.
    pub(crate) fn line_feed(&mut self) {
        self.wraps = false;
        if self.cursor.row + 1 == self.region.end {
            self.scroll_up(self.region.clone(), 1);
        } else if self.cursor.row + 1 < self.rows {
            self.cursor.row += 1;
        }
    }

    /// One row up, likewise.
    pub(crate) fn reverse_line_feed(&mut self) {
        self.wraps = false;
        if self.cursor.row == self.region.start {
            self.scroll_down(self.region.clone(), 1);
        } else {
            self.cursor.row = self.cursor.row.saturating_sub(1);
        }
    }

    /// To the next tabulator stop.
    pub(crate) fn tab(&mut self) {
        let column = (self.cursor.column / TAB + 1) * TAB;
        self.go(Place { column, row: self.cursor.row });
    }

    /// Moves rows up by `count`; empty ones come in below.
    pub(crate) fn scroll_up(&mut self, rows: Range<usize>, count: usize) {
        let count = count.min(rows.len());
        let (start, end) = (self.start(rows.start), self.start(rows.end));
        self.cells.copy_within(start + count * self.columns..end, start);
        self.clear(end - count * self.columns..end);
    }

    /// Moves rows down by `count`; empty ones come in above.
    pub(crate) fn scroll_down(&mut self, rows: Range<usize>, count: usize) {
        let count = count.min(rows.len());
        let (start, end) = (self.start(rows.start), self.start(rows.end));
        self.cells.copy_within(start..end - count * self.columns, start + count * self.columns);
        self.clear(start..start + count * self.columns);
    }

    /// Rows from the cursor's to the last that scrolls, if it is one of those.
    pub(crate) fn rest_of_region(&self) -> Option<Range<usize>> {
        self.region.contains(&self.cursor.row).then_some(self.cursor.row..self.region.end)
    }

    /// Takes `count` characters out at the cursor.
    pub(crate) fn delete(&mut self, count: usize) {
        let (here, end) = (self.here(), self.line().end);
        let count = count.min(end - here);
        self.cells.copy_within(here + count..end, here);
        self.clear(end - count..end);
    }

    /// Makes room for `count` characters at the cursor.
    pub(crate) fn insert(&mut self, count: usize) {
        let (here, end) = (self.here(), self.line().end);
        let count = count.min(end - here);
        self.cells.copy_within(here..end - count, here + count);
        self.clear(here..here + count);
    }
}
