//! Random changes to inputs, the same on every run.

/// A generator of mutations (xorshift64*).
pub struct Mutator(u64);

impl Mutator {
    /// A generator; the same seed gives the same mutations.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn random(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 where there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.random() >> 11) as usize % limit }
    }

    /// Changes `data` in one to four places. Headers are where parsers go wrong, so half of the
    /// changes hit the first 128 bytes.
    pub fn mutate(&mut self, data: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let reach = if self.below(2) == 0 { data.len().min(128) } else { data.len() };
            let at = self.below(reach);
            match self.below(8) {
                0 => {
                    let bit = self.below(8);
                    data.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
                }
                1 => {
                    let value = self.random() as u8;
                    data.get_mut(at).into_iter().for_each(|byte| *byte = value);
                }
                2 => self.number(data, at),
                3 => data.truncate(at),
                4 => {
                    let value = self.random() as u8;
                    data.insert(at, value);
                }
                5 if !data.is_empty() => {
                    let end = at + self.below((data.len() - at).min(64) + 1);
                    data.drain(at..end);
                }
                6 => {
                    let from = self.below(data.len());
                    let end = from + self.below((data.len() - from).min(64) + 1);
                    let piece = data.get(from..end).unwrap_or_default().to_vec();
                    data.splice(at..at, piece);
                }
                _ => {
                    let size = self.below(9);
                    let end = (at + size).min(data.len());
                    let value = if self.below(2) == 0 { 0 } else { 0xff };
                    data.get_mut(at..end).into_iter().for_each(|bytes| bytes.fill(value));
                }
            }
        }
    }

    /// Writes a number that lies on the edge of something.
    fn number(&mut self, data: &mut [u8], at: usize) {
        const EDGES: [u64; 12] = [
            0,
            1,
            0x7f,
            0x80,
            0xfff,
            0x1000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
        ];
        let bytes = EDGES[self.below(EDGES.len())].to_le_bytes();
        let size = 1 << self.below(4);
        for (to, from) in data.iter_mut().skip(at).zip(bytes.iter().take(size)) {
            *to = *from;
        }
    }
}
