//! Characters and their colours.

/// One of the 16 colours, as VGA and Linux number them: 1 red, 2 green, 4 blue, 8 bright.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u8);

/// Red, green and blue of the colours.
const PALETTE: [[u8; 3]; 16] = [
    [0x00, 0x00, 0x00],
    [0xaa, 0x00, 0x00],
    [0x00, 0xaa, 0x00],
    [0xaa, 0x55, 0x00],
    [0x00, 0x00, 0xaa],
    [0xaa, 0x00, 0xaa],
    [0x00, 0xaa, 0xaa],
    [0xaa, 0xaa, 0xaa],
    [0x55, 0x55, 0x55],
    [0xff, 0x55, 0x55],
    [0x55, 0xff, 0x55],
    [0xff, 0xff, 0x55],
    [0x55, 0x55, 0xff],
    [0xff, 0x55, 0xff],
    [0x55, 0xff, 0xff],
    [0xff, 0xff, 0xff],
];

impl Colour {
    /// Black.
    pub const BLACK: Self = Self(0);
    /// What text is shown in.
    pub const WHITE: Self = Self(7);

    /// Red, green, blue.
    #[must_use]
    pub fn rgb(self) -> [u8; 3] {
        PALETTE[usize::from(self.0 & 15)]
    }

    /// The nearest of the 16.
    #[must_use]
    pub fn nearest(rgb: [u8; 3]) -> Self {
        let distance = |other: &[u8; 3]| -> u32 {
            let pairs = rgb.iter().zip(other);
            pairs.map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
        };
        let best = (0u8..).zip(&PALETTE).min_by_key(|(_, other)| distance(other));
        Self(best.map_or(0, |(index, _)| index))
    }

    /// One of xterm's 256: 16 as here, a cube of 6 x 6 x 6, 24 greys.
    #[must_use]
    pub fn of_256(index: u8) -> Self {
        let level = |step: u8| if step == 0 { 0 } else { 55 + step * 40 };
        match index {
            0..16 => Self(index),
            16..232 => {
                let cube = index - 16;
                Self::nearest([level(cube / 36), level(cube / 6 % 6), level(cube % 6)])
            }
            232.. => Self::nearest([8 + (index - 232) * 10; 3]),
        }
    }
}

/// A character in its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(u32);

impl Cell {
    /// Nothing, black.
    pub const EMPTY: Self = Self::new(' ', Colour::WHITE, Colour::BLACK);
    /// Not on any screen: differs from every cell that can be.
    pub const UNKNOWN: Self = Self(u32::MAX);

    /// A character.
    #[must_use]
    pub const fn new(character: char, ink: Colour, paper: Colour) -> Self {
        Self(character as u32 | (ink.0 as u32 & 15) << 21 | (paper.0 as u32 & 15) << 25)
    }

    /// The character.
    #[must_use]
    pub fn character(self) -> char {
        char::from_u32(self.0 & 0x1f_ffff).unwrap_or(' ')
    }

    /// Colour of the character.
    #[must_use]
    pub fn ink(self) -> Colour {
        Colour((self.0 >> 21 & 15) as u8)
    }

    /// Colour behind it.
    #[must_use]
    pub fn paper(self) -> Colour {
        Colour((self.0 >> 25 & 15) as u8)
    }

    /// With both exchanged.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self::new(self.character(), self.paper(), self.ink())
    }
}
