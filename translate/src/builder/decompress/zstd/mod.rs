//! zstd (RFC 8878), straight into the output, which serves as the window. Kernels are packed with
//! windows of 128 MiB: a decoder with a buffer of its own would need that on top.

use alloc::vec::Vec;

use super::{Bad, Input};
use entropy::{Backward, Fse, Huffman};

mod entropy;

const MAGIC: u32 = 0xfd2f_b528;
/// Magic of frames to skip, and the bits of it that vary.
const SKIPPABLE: u32 = 0x184d_2a50;
const SKIPPABLE_MASK: u32 = 0xf;
/// Most a block produces.
const BLOCK_BYTES: usize = 128 << 10;

/// Bases and extra bits of literal-length codes.
const LITERAL_LENGTHS: [(u32, u8); 36] = {
    let mut codes = [(0, 0); 36];
    let bits = [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let mut n = 0;
    let mut base = 0;
    while n < 36 {
        let extra = if n < 16 { 0 } else { bits[n - 16] };
        codes[n] = (base, extra);
        base += 1 << extra;
        n += 1;
    }
    codes
};
/// Bases and extra bits of match-length codes.
const MATCH_LENGTHS: [(u32, u8); 53] = {
    let mut codes = [(0, 0); 53];
    let bits = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let mut n = 0;
    let mut base = 3;
    while n < 53 {
        let extra = if n < 32 { 0 } else { bits[n - 32] };
        codes[n] = (base, extra);
        base += 1 << extra;
        n += 1;
    }
    codes
};

/// A kind of sequence code.
struct Kind {
    /// The predefined distribution and its table's size.
    counts: &'static [i16],
    log: u32,
    /// Largest table a block may describe.
    max_log: u32,
}

const LITERAL: Kind = Kind {
    counts: &[
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1,
        1, 1, -1, -1, -1, -1,
    ],
    log: 6,
    max_log: 9,
};
const OFFSET: Kind = Kind {
    counts: &[
        1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
    ],
    log: 5,
    max_log: 8,
};
const MATCH: Kind = Kind {
    counts: &[
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
    log: 6,
    max_log: 9,
};

/// What a frame carries from block to block.
struct Frame {
    /// Where in the output it began: matches reach back no further.
    start: usize,
    literals: Vec<u8>,
    huffman: Option<Huffman>,
    tables: [Option<Fse>; 3],
    offsets: [usize; 3],
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Decodes all frames.
pub(super) fn decode(data: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    let mut input = Input::new(data);
    let mut at = 0;
    while input.at < data.len() {
        let magic = input.u32_le()?;
        if magic == MAGIC {
            frame(&mut input, out, &mut at)?;
        } else if magic & !SKIPPABLE_MASK == SKIPPABLE {
            let size = input.u32_le()? as usize;
            input.take(size)?;
        } else {
            return Err(Bad);
        }
    }
    Ok(at)
}

fn frame(input: &mut Input<'_>, out: &mut [u8], at: &mut usize) -> Result<(), Bad> {
    let descriptor = input.u8()?;
    let single = descriptor & 1 << 5 != 0;
    if descriptor & 1 << 3 != 0 {
        return Err(Bad);
    }
    if !single {
        // The window's size does not matter: the whole output is the window.
        input.u8()?;
    }
    let dictionary = input.take([0, 1, 2, 4][usize::from(descriptor & 3)])?;
    if le(dictionary) != 0 {
        return Err(Bad);
    }
    let size = match descriptor >> 6 {
        0 if !single => None,
        0 => Some(input.u8()?.into()),
        1 => Some(u64::from(input.u16_le()?) + 256),
        2 => Some(input.u32_le()?.into()),
        _ => Some(le(input.take(8)?)),
    };
    let mut frame = Frame {
        start: *at,
        literals: Vec::new(),
        huffman: None,
        tables: [None, None, None],
        offsets: [1, 4, 8],
    };
    while !frame.block(input, out, at)? {}
    let content = out.get(frame.start..*at).ok_or(Bad)?;
    if size.is_some_and(|size| size != content.len() as u64) {
        return Err(Bad);
    }
    if descriptor & 1 << 2 != 0 && input.u32_le()? != xxh64(content) as u32 {
        return Err(Bad);
    }
    Ok(())
}

/// Appends `count` literals.
fn put(out: &mut [u8], at: &mut usize, bytes: &[u8]) -> Result<(), Bad> {
    let end = at.checked_add(bytes.len()).ok_or(Bad)?;
    let to = out.get_mut(*at..end).ok_or(Bad)?;
    // A block move costs more than it saves on the few bytes most are.
    if bytes.len() < 32 {
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    } else {
        to.copy_from_slice(bytes);
    }
    *at = end;
    Ok(())
}

impl Frame {
    /// Decodes a block; true after the last.
    fn block(
        &mut self,
        input: &mut Input<'_>,
        out: &mut [u8],
        at: &mut usize,
    ) -> Result<bool, Bad> {
        let header = le(input.take(3)?) as usize;
        let size = header >> 3;
        match header >> 1 & 3 {
            0 => put(out, at, input.take(size)?)?,
            1 => {
                let byte = input.u8()?;
                let end = at.checked_add(size).ok_or(Bad)?;
                out.get_mut(*at..end).ok_or(Bad)?.fill(byte);
                *at = end;
            }
            2 if size <= BLOCK_BYTES => {
                let mut block = Input::new(input.take(size)?);
                let mut literals = core::mem::take(&mut self.literals);
                self.read_literals(&mut block, &mut literals)?;
                self.sequences(&mut block, &literals, out, at)?;
                self.literals = literals;
            }
            _ => return Err(Bad),
        }
        Ok(header & 1 == 1)
    }

    /// The literals section.
    fn read_literals(&mut self, input: &mut Input<'_>, to: &mut Vec<u8>) -> Result<(), Bad> {
        let first = *input.data.get(input.at).ok_or(Bad)?;
        let (kind, format) = (first & 3, first >> 2 & 3);
        let (header_bytes, shift, bits) = match (kind, format) {
            (0 | 1, 0 | 2) => (1, 3, 5),
            (0 | 1, 1) => (2, 4, 12),
            (0 | 1, _) => (3, 4, 20),
            (_, 0 | 1) => (3, 4, 10),
            (_, 2) => (4, 4, 14),
            _ => (5, 4, 18),
        };
        let header = le(input.take(header_bytes)?) >> shift;
        let size = (header & ((1 << bits) - 1)) as usize;
        if size > BLOCK_BYTES {
            return Err(Bad);
        }
        to.clear();
        match kind {
            0 => to.extend_from_slice(input.take(size)?),
            1 => to.resize(size, input.u8()?),
            _ => {
                let packed = (header >> bits & ((1 << bits) - 1)) as usize;
                let mut packed = Input::new(input.take(packed)?);
                if kind == 2 {
                    self.huffman = Some(Huffman::read(&mut packed)?);
                }
                let code = self.huffman.as_ref().ok_or(Bad)?;
                to.resize(size, 0);
                streams(code, &mut packed, to, format != 0)?;
            }
        }
        Ok(())
    }

    /// The sequences section: literals and matches in turn.
    fn sequences(
        &mut self,
        input: &mut Input<'_>,
        literals: &[u8],
        out: &mut [u8],
        at: &mut usize,
    ) -> Result<(), Bad> {
        let count = match usize::from(input.u8()?) {
            n @ 0..=127 => n,
            n @ 128..=254 => (n - 128) << 8 | usize::from(input.u8()?),
            _ => usize::from(input.u16_le()?) + 0x7f00,
        };
        if count == 0 {
            let done = input.at == input.data.len();
            return if done { put(out, at, literals) } else { Err(Bad) };
        }
        let modes = input.u8()?;
        if modes & 3 != 0 {
            return Err(Bad);
        }
        for (table, (kind, shift)) in
            self.tables.iter_mut().zip([(LITERAL, 6), (OFFSET, 4), (MATCH, 2)])
        {
            match modes >> shift & 3 {
                0 => *table = Some(Fse::new(kind.counts, kind.log)?),
                1 => *table = Some(Fse::single(input.u8()?)),
                2 => *table = Some(Fse::read(input, kind.max_log)?),
                _ => {}
            }
        }
        let [Some(ll), Some(of), Some(ml)] = &self.tables else { return Err(Bad) };
        let mut bits = Backward::new(input.data.get(input.at..).ok_or(Bad)?)?;
        let (mut l, mut o, mut m) = (ll.start(&mut bits), of.start(&mut bits), ml.start(&mut bits));
        let mut literals = literals;
        for left in (0..count).rev() {
            let (ls, os, ms) = (ll.state(l), of.state(o), ml.state(m));
            let offset_bits = u32::from(os.symbol);
            if offset_bits > 31 {
                return Err(Bad);
            }
            let offset = (1 << offset_bits) + bits.read(offset_bits) as usize;
            let (length, extra) = *MATCH_LENGTHS.get(usize::from(ms.symbol)).ok_or(Bad)?;
            let (literal, literal_extra) =
                *LITERAL_LENGTHS.get(usize::from(ls.symbol)).ok_or(Bad)?;
            let [extra, literal_extra] = bits.read_each([extra, literal_extra]);
            let (length, nr_literals) = (length as usize + extra, literal as usize + literal_extra);
            if left != 0 {
                let [to_l, to_m, to_o] = bits.read_each([ls.bits, ms.bits, os.bits]);
                (l, m, o) = (ls.next(to_l), ms.next(to_m), os.next(to_o));
            }
            let (now, later) = literals.split_at_checked(nr_literals).ok_or(Bad)?;
            literals = later;
            put(out, at, now)?;
            let distance = resolve(&mut self.offsets, offset, nr_literals == 0)?;
            if distance > *at - self.start {
                return Err(Bad);
            }
            super::copy_match(out, *at, distance, length)?;
            *at += length;
        }
        if bits.is_empty() { put(out, at, literals) } else { Err(Bad) }
    }
}

/// The distance an offset value means: small ones name an earlier distance.
fn resolve(recent: &mut [usize; 3], value: usize, no_literals: bool) -> Result<usize, Bad> {
    if value > 3 {
        recent.rotate_right(1);
        recent[0] = value - 3;
        return Ok(value - 3);
    }
    let index = value - 1 + usize::from(no_literals);
    let distance = match index {
        0..=2 => recent[index],
        _ => recent[0].checked_sub(1).filter(|&distance| distance != 0).ok_or(Bad)?,
    };
    recent[..=index.min(2)].rotate_right(1);
    recent[0] = distance;
    Ok(distance)
}

/// Literals in one Huffman stream or in four of equal output.
fn streams(code: &Huffman, input: &mut Input<'_>, to: &mut [u8], four: bool) -> Result<(), Bad> {
    if !four {
        return code.decode(input.data.get(input.at..).ok_or(Bad)?, to);
    }
    let sizes = [input.u16_le()?, input.u16_le()?, input.u16_le()?];
    let part = to.len().div_ceil(4);
    let mut rest = to;
    for size in sizes {
        let (now, later) = rest.split_at_mut_checked(part).ok_or(Bad)?;
        code.decode(input.take(size.into())?, now)?;
        rest = later;
    }
    code.decode(input.data.get(input.at..).ok_or(Bad)?, rest)
}

/// XXH64 with seed 0, whose low half is a frame's checksum.
fn xxh64(data: &[u8]) -> u64 {
    const P1: u64 = 0x9e37_79b1_85eb_ca87;
    const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
    const P3: u64 = 0x1656_67b1_9e37_79f9;
    const P4: u64 = 0x85eb_ca77_c2b2_ae63;
    const P5: u64 = 0x27d4_eb2f_1656_67c5;
    let round = |acc: u64, lane: u64| {
        acc.wrapping_add(lane.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
    };
    let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
    let (stripes, rest) = data.as_chunks::<32>();
    for stripe in stripes {
        for (lane, bytes) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*bytes));
        }
    }
    let mut hash = if stripes.is_empty() {
        P5
    } else {
        let sum = lanes.iter().zip([1, 7, 12, 18]);
        let sum = sum.fold(0u64, |sum, (lane, by)| sum.wrapping_add(lane.rotate_left(by)));
        lanes
            .iter()
            .fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4))
    };
    hash = hash.wrapping_add(data.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(P2);
    hash = (hash ^ hash >> 29).wrapping_mul(P3);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_tables_are_the_formats() {
        assert_eq!(LITERAL_LENGTHS[16], (16, 1));
        assert_eq!(LITERAL_LENGTHS[24], (48, 4));
        assert_eq!(LITERAL_LENGTHS[25], (64, 6));
        assert_eq!(LITERAL_LENGTHS[35], (65536, 16));
        assert_eq!(MATCH_LENGTHS[31], (34, 0));
        assert_eq!(MATCH_LENGTHS[42], (99, 5));
        assert_eq!(MATCH_LENGTHS[43], (131, 7));
        assert_eq!(MATCH_LENGTHS[52], (65539, 16));
    }

    #[test]
    fn checksum_values() {
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn recent_distances() {
        let mut recent = [1, 4, 8];
        assert_eq!(resolve(&mut recent, 13, false), Ok(10));
        assert_eq!(recent, [10, 1, 4]);
        assert_eq!(resolve(&mut recent, 2, false), Ok(1));
        assert_eq!(recent, [1, 10, 4]);
        assert_eq!(resolve(&mut recent, 2, true), Ok(4));
        assert_eq!(recent, [4, 1, 10]);
        assert_eq!(resolve(&mut recent, 3, true), Ok(3));
        assert_eq!(recent, [3, 4, 1]);
        assert_eq!(resolve(&mut recent, 1, false), Ok(3));
        assert_eq!(recent, [3, 4, 1]);
        let mut recent = [1, 4, 8];
        assert_eq!(resolve(&mut recent, 3, true), Err(Bad));
    }
}
