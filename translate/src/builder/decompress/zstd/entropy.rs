//! zstd's entropy coders: bit streams read forwards and backwards, FSE tables, Huffman codes
//! (RFC 8878, 4).

use alloc::vec::Vec;

use super::super::{Bad, Input};

/// Symbols a description may have.
const MAX_SYMBOLS: usize = 256;
/// Longest Huffman code, in bits.
const MAX_HUFFMAN_BITS: u32 = 11;
/// Largest table of Huffman weights' codes.
const WEIGHTS_LOG: u32 = 6;

/// The bits `at..at + count` of little-endian data, at most 56; 0 beyond either end.
#[inline(always)]
fn bits_at(data: &[u8], at: isize, count: u32) -> u64 {
    let byte = at.unsigned_abs() / 8;
    match data.get(byte..).and_then(<[u8]>::first_chunk::<8>) {
        Some(bytes) if at >= 0 => {
            u64::from_le_bytes(*bytes) >> (at.unsigned_abs() % 8) & ((1 << count) - 1)
        }
        _ => bits_at_an_end(data, at, count),
    }
}

/// [`bits_at`] where less than a word is left, or nothing.
#[cold]
#[inline(never)]
fn bits_at_an_end(data: &[u8], at: isize, count: u32) -> u64 {
    if at < 0 {
        let missing = at.unsigned_abs() as u32;
        return if missing >= count { 0 } else { bits_at(data, 0, count - missing) << missing };
    }
    let rest = data.get(at.unsigned_abs() / 8..).unwrap_or_default();
    let word = rest.iter().take(8).rev().fold(0, |word, &b| word << 8 | u64::from(b));
    word >> (at.unsigned_abs() % 8) & ((1 << count) - 1)
}

/// A stream read from its end towards its start. Reading past the start gives zeros and leaves
/// the position negative.
pub(super) struct Backward<'a> {
    data: &'a [u8],
    /// Bits left.
    left: isize,
}

impl<'a> Backward<'a> {
    /// The last byte's highest set bit is a mark, not data.
    pub(super) fn new(data: &'a [u8]) -> Result<Self, Bad> {
        let &last = data.last().filter(|&&byte| byte != 0).ok_or(Bad)?;
        let unused = last.leading_zeros() as isize + 1;
        Ok(Self { data, left: data.len() as isize * 8 - unused })
    }

    #[inline(always)]
    pub(super) fn read(&mut self, count: u32) -> u64 {
        self.left -= count as isize;
        bits_at(self.data, self.left, count)
    }

    /// Several numbers one after the other, at most 56 bits in all.
    #[inline(always)]
    pub(super) fn read_each<const N: usize>(&mut self, counts: [u8; N]) -> [usize; N] {
        let mut left = counts.iter().map(|&count| u32::from(count)).sum();
        let word = self.read(left);
        let mut numbers = [0; N];
        for (number, count) in numbers.iter_mut().zip(counts) {
            left -= u32::from(count);
            *number = (word >> left & ((1 << count) - 1)) as usize;
        }
        numbers
    }

    /// Whether exactly everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }
}

/// A state of an FSE table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// What it stands for.
    pub(super) symbol: u8,
    /// How many bits lead to the next one.
    pub(super) bits: u8,
    base: u16,
}

impl State {
    /// The state that its bits lead to.
    #[inline]
    pub(super) fn next(self, bits: usize) -> usize {
        usize::from(self.base) + bits
    }
}

/// An FSE decoding table.
#[derive(Clone, Debug)]
pub(super) struct Fse {
    states: Vec<State>,
    log: u32,
}

impl Fse {
    /// The table in which one symbol is all there is.
    pub(super) fn single(symbol: u8) -> Self {
        Self { states: alloc::vec![State { symbol, bits: 0, base: 0 }], log: 0 }
    }

    /// The table of a distribution: how many states each symbol has, -1 standing for one state
    /// at the end.
    pub(super) fn new(counts: &[i16], log: u32) -> Result<Self, Bad> {
        let size = 1usize << log;
        let mut states = alloc::vec![State::default(); size];
        let mut next = [0u32; MAX_SYMBOLS];
        let mut high = size;
        for (symbol, (&count, next)) in counts.iter().zip(&mut next).enumerate() {
            *next = u32::from(count.unsigned_abs());
            if count == -1 {
                high = high.checked_sub(1).ok_or(Bad)?;
                states[high].symbol = symbol as u8;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            for _ in 0..count {
                states.get_mut(at).ok_or(Bad)?.symbol = symbol as u8;
                at = (at + step) & (size - 1);
                let mut tries = 0;
                while at >= high {
                    at = (at + step) & (size - 1);
                    tries += 1;
                    // Only where every state is a low-probability one, and counts are wrong.
                    if tries > size {
                        return Err(Bad);
                    }
                }
            }
        }
        if at != 0 {
            return Err(Bad);
        }
        for state in &mut states {
            let next = &mut next[usize::from(state.symbol)];
            let bits = log.checked_sub(next.checked_ilog2().ok_or(Bad)?).ok_or(Bad)?;
            state.bits = bits as u8;
            state.base = (*next << bits).checked_sub(size as u32).ok_or(Bad)? as u16;
            *next += 1;
        }
        Ok(Self { states, log })
    }

    /// Reads a table's description; moves the input behind it.
    pub(super) fn read(input: &mut Input<'_>, max_log: u32) -> Result<Self, Bad> {
        let data = input.data.get(input.at..).ok_or(Bad)?;
        let mut at = 4isize;
        let log = bits_at(data, 0, 4) as u32 + 5;
        if log > max_log {
            return Err(Bad);
        }
        let mut counts = [0i16; MAX_SYMBOLS];
        let mut symbol = 0;
        let mut left = 1i32 << log;
        while left > 0 {
            // Values up to `left + 1` in as few bits as will do: small ones take one bit less.
            let bits = (left + 1).ilog2() + 1;
            let low_mask = (1 << (bits - 1)) - 1;
            let threshold = (1 << bits) - 1 - (left + 1);
            let mut value = bits_at(data, at, bits) as i32;
            at += bits as isize;
            if value & low_mask < threshold {
                value &= low_mask;
                at -= 1;
            } else if value > low_mask {
                value -= threshold;
            }
            let count = value - 1;
            left -= count.abs();
            *counts.get_mut(symbol).ok_or(Bad)? = count as i16;
            symbol += 1;
            let mut repeat = if count == 0 { 3 } else { 0 };
            while repeat == 3 {
                repeat = bits_at(data, at, 2) as usize;
                at += 2;
                symbol += repeat;
                if symbol > MAX_SYMBOLS {
                    return Err(Bad);
                }
            }
        }
        if left != 0 {
            return Err(Bad);
        }
        input.take(at.unsigned_abs().div_ceil(8))?;
        Self::new(&counts[..symbol], log)
    }

    /// The first state.
    pub(super) fn start(&self, bits: &mut Backward<'_>) -> usize {
        bits.read(self.log) as usize
    }

    /// A state by its number.
    #[inline]
    pub(super) fn state(&self, at: usize) -> State {
        // States are below the table's size: bases and bits were made so.
        self.states.get(at).copied().unwrap_or_default()
    }
}

/// A Huffman code: for every value of the longest code's bits, the symbol and its length.
#[derive(Clone, Debug)]
pub(super) struct Huffman {
    table: Vec<(u8, u8)>,
    bits: u32,
}

impl Huffman {
    /// Reads a code's description: weights, packed or FSE-coded.
    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, Bad> {
        let mut weights = [0u8; MAX_SYMBOLS];
        let header = usize::from(input.u8()?);
        let count = if header >= 128 {
            let count = header - 127;
            let packed = input.take(count.div_ceil(2))?;
            for (pair, byte) in weights.chunks_exact_mut(2).zip(packed) {
                pair.copy_from_slice(&[byte >> 4, byte & 15]);
            }
            count
        } else {
            coded_weights(input.take(header)?, &mut weights)?
        };
        Self::new(&mut weights, count)
    }

    /// A weight of w stands for 2^(w-1) parts of the whole; the last symbol's is what is missing.
    fn new(weights: &mut [u8; MAX_SYMBOLS], count: usize) -> Result<Self, Bad> {
        let given = weights.get(..count).ok_or(Bad)?;
        let mut sum = 0u32;
        for &weight in given.iter().filter(|weight| **weight != 0) {
            sum += 1u32.checked_shl(u32::from(weight) - 1).filter(|&n| n < 1 << 16).ok_or(Bad)?;
        }
        let bits = sum.checked_ilog2().ok_or(Bad)? + 1;
        let missing = (1u32 << bits) - sum;
        if bits > MAX_HUFFMAN_BITS || !missing.is_power_of_two() {
            return Err(Bad);
        }
        *weights.get_mut(count).ok_or(Bad)? = missing.ilog2() as u8 + 1;
        let mut table = Vec::with_capacity(1 << bits);
        for weight in 1..=bits {
            let of_weight =
                weights[..=count].iter().enumerate().filter(|w| u32::from(*w.1) == weight);
            for (symbol, _) in of_weight {
                let entry = (symbol as u8, (bits + 1 - weight) as u8);
                table.resize(table.len() + (1 << (weight - 1)), entry);
            }
        }
        if table.len() != 1 << bits {
            return Err(Bad);
        }
        Ok(Self { table, bits })
    }

    /// Decodes a stream that fills `out` exactly.
    pub(super) fn decode(&self, data: &[u8], out: &mut [u8]) -> Result<(), Bad> {
        let mut stream = Backward::new(data)?;
        let (fours, rest) = out.as_chunks_mut::<4>();
        for four in fours {
            self.symbols(&mut stream, four)?;
        }
        for byte in rest {
            self.symbols(&mut stream, core::array::from_mut(byte))?;
        }
        if stream.is_empty() { Ok(()) } else { Err(Bad) }
    }

    /// Decodes symbols out of one word: `N` of the longest are at most 56 bits.
    #[inline(always)]
    fn symbols<const N: usize>(
        &self,
        stream: &mut Backward<'_>,
        out: &mut [u8; N],
    ) -> Result<(), Bad> {
        let longest = self.bits * N as u32;
        let word = bits_at(stream.data, stream.left - longest as isize, longest);
        let mut left = longest;
        for byte in out {
            let code = word >> (left - self.bits) & ((1 << self.bits) - 1);
            let (symbol, bits) = *self.table.get(code as usize).ok_or(Bad)?;
            left -= u32::from(bits);
            *byte = symbol;
        }
        stream.left -= (longest - left) as isize;
        Ok(())
    }
}

/// Weights coded with FSE, by two states in turn, until the stream has run out.
fn coded_weights(data: &[u8], weights: &mut [u8; MAX_SYMBOLS]) -> Result<usize, Bad> {
    let mut input = Input::new(data);
    let table = Fse::read(&mut input, WEIGHTS_LOG)?;
    let mut bits = Backward::new(data.get(input.at..).ok_or(Bad)?)?;
    let mut states = [table.start(&mut bits), table.start(&mut bits)];
    let mut count = 0;
    loop {
        let turn = count % 2;
        // The last weight is the missing one, so one place must stay free.
        let state = table.state(states[turn]);
        *weights.get_mut(count).filter(|_| count < MAX_SYMBOLS - 2).ok_or(Bad)? = state.symbol;
        count += 1;
        states[turn] = state.next(bits.read(state.bits.into()) as usize);
        if bits.left < 0 {
            *weights.get_mut(count).ok_or(Bad)? = table.state(states[1 - turn]).symbol;
            return Ok(count + 1);
        }
    }
}
