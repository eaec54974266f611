//! LZMA: the core that xz (LZMA2 chunks) and .lzma files share. Decodes straight into the
//! output, which serves as the dictionary, so there is no window to allocate.
//!
//! The names are those of the format's specification (LZMA SDK, "lzma-specification").

use alloc::vec::Vec;

use super::Bad;

const PROB_INIT: u16 = 1 << 10;
/// 12 are used; a power of two lets the compiler see that a masked index is in bounds.
const STATES: usize = 16;
const POS_STATES_MAX: usize = 16;
const MATCH_MIN: usize = 2;

/// The range decoder. Its functions are inlined, so that it lives in registers while symbols are
/// decoded. Reading past the input gives zeros and is noticed at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeDecoder<'a> {
    input: &'a [u8],
    at: usize,
    range: u32,
    code: u32,
}

impl<'a> RangeDecoder<'a> {
    /// Starts on 5 bytes of the input, the first of which is 0.
    pub(super) fn new(input: &'a [u8]) -> Result<Self, Bad> {
        let (&[zero, a, b, c, d], _) = input.split_first_chunk().ok_or(Bad)?;
        if zero != 0 {
            return Err(Bad);
        }
        let code = u32::from_be_bytes([a, b, c, d]);
        Ok(Self { input, at: 5, range: u32::MAX, code })
    }

    #[inline(always)]
    fn normalize(&mut self) {
        if self.range < 1 << 24 {
            let byte = self.input.get(self.at).copied().unwrap_or(0);
            self.at += 1;
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(byte);
        }
    }

    /// Whether all input was used, none beyond it, and the coder ended where an encoder ends it.
    pub(super) fn finished_exactly(&mut self) -> bool {
        self.normalize();
        self.at == self.input.len() && self.code == 0
    }

    fn overrun(&self) -> bool {
        self.at > self.input.len()
    }

    #[inline(always)]
    fn bit(&mut self, prob: &mut u16) -> bool {
        self.bit_onto(prob, 0) != 0
    }

    /// Decodes a bit and appends it to `m`.
    #[inline(always)]
    fn bit_onto(&mut self, prob: &mut u16, m: usize) -> usize {
        self.normalize();
        // In 32 bits, which spares the compiler widening it at each step.
        let p = u32::from(*prob);
        let bound = (self.range >> 11) * p;
        if self.code < bound {
            self.range = bound;
            *prob = (p + (((1 << 11) - p) >> 5)) as u16;
            m << 1
        } else {
            self.range -= bound;
            self.code -= bound;
            *prob = (p - (p >> 5)) as u16;
            m << 1 | 1
        }
    }

    #[inline(always)]
    fn tree<const N: usize>(&mut self, probs: &mut [u16; N]) -> usize {
        let mut m = 1;
        // A counted loop is unrolled, and then no index needs a check.
        for _ in 0..N.trailing_zeros() {
            m = self.bit_onto(&mut probs[m & (N - 1)], m);
        }
        m - N
    }

    #[inline(always)]
    fn reverse_tree(&mut self, probs: &mut [u16], bits: u32) -> usize {
        let (mut m, mut value) = (1usize, 0);
        for n in 0..bits {
            let Some(prob) = probs.get_mut(m) else { return value };
            m = self.bit_onto(prob, m);
            value |= (m & 1) << n;
        }
        value
    }

    #[inline(always)]
    fn direct(&mut self, bits: u32) -> usize {
        let mut value = 0;
        for _ in 0..bits {
            self.normalize();
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | usize::from(bit);
        }
        value
    }
}

#[derive(Clone, Debug)]
struct LengthCoder {
    choice: u16,
    choice2: u16,
    low: [[u16; 8]; POS_STATES_MAX],
    mid: [[u16; 8]; POS_STATES_MAX],
    high: [u16; 256],
}

impl LengthCoder {
    const NEW: Self = Self {
        choice: PROB_INIT,
        choice2: PROB_INIT,
        low: [[PROB_INIT; 8]; POS_STATES_MAX],
        mid: [[PROB_INIT; 8]; POS_STATES_MAX],
        high: [PROB_INIT; 256],
    };

    #[inline(always)]
    fn decode(&mut self, rc: &mut RangeDecoder<'_>, pos_state: usize) -> usize {
        let pos_state = pos_state % POS_STATES_MAX;
        MATCH_MIN
            + if !rc.bit(&mut self.choice) {
                rc.tree(&mut self.low[pos_state])
            } else if !rc.bit(&mut self.choice2) {
                8 + rc.tree(&mut self.mid[pos_state])
            } else {
                16 + rc.tree(&mut self.high)
            }
    }
}

#[derive(Clone, Debug)]
struct Probs {
    is_match: [[u16; POS_STATES_MAX]; STATES],
    is_rep: [u16; STATES],
    is_rep_g0: [u16; STATES],
    is_rep_g1: [u16; STATES],
    is_rep_g2: [u16; STATES],
    is_rep0_long: [[u16; POS_STATES_MAX]; STATES],
    pos_slot: [[u16; 64]; 4],
    pos_special: [u16; 115],
    align: [u16; 16],
    len: LengthCoder,
    rep_len: LengthCoder,
}

impl Probs {
    const NEW: Self = Self {
        is_match: [[PROB_INIT; POS_STATES_MAX]; STATES],
        is_rep: [PROB_INIT; STATES],
        is_rep_g0: [PROB_INIT; STATES],
        is_rep_g1: [PROB_INIT; STATES],
        is_rep_g2: [PROB_INIT; STATES],
        is_rep0_long: [[PROB_INIT; POS_STATES_MAX]; STATES],
        pos_slot: [[PROB_INIT; 64]; 4],
        pos_special: [PROB_INIT; 115],
        align: [PROB_INIT; 16],
        len: LengthCoder::NEW,
        rep_len: LengthCoder::NEW,
    };
}

/// What the symbols of a stream ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The output range is full.
    Full,
    /// The stream's own end marker.
    Marker,
}

/// Probabilities of a literal: without a match byte, and with each value of its bit.
type LiteralProbs = [[u16; 0x100]; 3];
const LITERAL_INIT: LiteralProbs = [[PROB_INIT; 0x100]; 3];

/// Decoder state that lasts over LZMA2 chunks.
#[derive(Debug)]
pub(super) struct Lzma {
    lc: u32,
    lp_mask: usize,
    pb_mask: usize,
    state: usize,
    rep: [usize; 4],
    probs: Probs,
    literal: Vec<LiteralProbs>,
    /// Output position where the dictionary begins.
    pub(super) dict_start: usize,
}

impl Lzma {
    /// A decoder with `lc = lp = pb = 0`; set the real ones with [`Self::set_props`].
    pub(super) fn new() -> Self {
        Self {
            lc: 0,
            lp_mask: 0,
            pb_mask: 0,
            state: 0,
            rep: [0; 4],
            probs: Probs::NEW,
            literal: Vec::new(),
            dict_start: 0,
        }
    }

    /// Sets the properties byte `(pb * 5 + lp) * 9 + lc` and resets the state. `lc + lp` may be
    /// at most `lc_lp_max` (4 in LZMA2, 12 in .lzma).
    pub(super) fn set_props(&mut self, byte: u8, lc_lp_max: u32) -> Result<(), Bad> {
        let (lc, lp, pb) = (byte % 9, byte / 9 % 5, byte / 45);
        let lc_lp = u32::from(lc + lp);
        if pb > 4 || lc_lp > lc_lp_max {
            return Err(Bad);
        }
        self.lc = u32::from(lc);
        self.lp_mask = (1 << lp) - 1;
        self.pb_mask = (1 << pb) - 1;
        self.literal.clear();
        self.literal.try_reserve_exact(1 << lc_lp).map_err(|_| Bad)?;
        self.literal.resize(1 << lc_lp, LITERAL_INIT);
        self.reset_state();
        Ok(())
    }

    /// A state reset: probabilities and repeats, not the dictionary.
    pub(super) fn reset_state(&mut self) {
        self.state = 0;
        self.rep = [0; 4];
        self.probs = Probs::NEW;
        self.literal.fill(LITERAL_INIT);
    }

    #[inline(always)]
    fn literal(&mut self, rc: &mut RangeDecoder<'_>, out: &[u8], at: usize) -> Result<u8, Bad> {
        let previous = if at > self.dict_start { out.get(at - 1).copied().unwrap_or(0) } else { 0 };
        let context = ((at - self.dict_start) & self.lp_mask) << self.lc
            | usize::from(previous) >> (8 - self.lc);
        let probs = self.literal.get_mut(context).ok_or(Bad)?;
        let mut symbol = 1usize;
        if self.state < 7 {
            symbol = rc.tree(&mut probs[0]);
        } else {
            // After a match the byte that would have continued it is context, until it differs.
            let from = at.checked_sub(self.rep[0] + 1).ok_or(Bad)?;
            let mut matched = usize::from(*out.get(from).ok_or(Bad)?);
            while symbol < 0x100 {
                matched <<= 1;
                let match_bit = matched >> 8 & 1;
                symbol = rc.bit_onto(&mut probs[1 + match_bit][symbol & 0xff], symbol);
                if match_bit != symbol & 1 {
                    break;
                }
            }
            while symbol < 0x100 {
                symbol = rc.bit_onto(&mut probs[0][symbol & 0xff], symbol);
            }
        }
        self.state = match self.state {
            0..=3 => 0,
            4..=9 => self.state - 3,
            _ => self.state - 6,
        };
        Ok(symbol as u8)
    }

    #[inline(always)]
    fn distance(&mut self, rc: &mut RangeDecoder<'_>, len: usize) -> usize {
        let len_state = (len - MATCH_MIN).min(3);
        let slot = rc.tree(&mut self.probs.pos_slot[len_state]);
        if slot < 4 {
            return slot;
        }
        let bits = (slot >> 1) as u32 - 1;
        let base = (2 | slot & 1) << bits;
        if slot < 14 {
            let probs = self.probs.pos_special.get_mut(base - slot..).unwrap_or(&mut []);
            base + rc.reverse_tree(probs, bits)
        } else {
            base + (rc.direct(bits - 4) << 4) + rc.reverse_tree(&mut self.probs.align, 4)
        }
    }

    /// Brings a repeated match's distance to `rep[0]`; true for the short repeat, of one byte.
    #[inline(always)]
    fn repeat(&mut self, rc: &mut RangeDecoder<'_>, pos_state: usize) -> bool {
        let state = self.state % STATES;
        let p = &mut self.probs;
        if !rc.bit(&mut p.is_rep_g0[state]) {
            return !rc.bit(&mut p.is_rep0_long[state][pos_state]);
        }
        if !rc.bit(&mut p.is_rep_g1[state]) {
            self.rep[..2].rotate_right(1);
        } else if !rc.bit(&mut p.is_rep_g2[state]) {
            self.rep[..3].rotate_right(1);
        } else {
            self.rep.rotate_right(1);
        }
        false
    }

    /// A match's length, its distance in `rep[0]`; `None` for the end marker.
    #[inline(always)]
    fn a_match(&mut self, rc: &mut RangeDecoder<'_>, pos_state: usize) -> Option<usize> {
        let after_literal = self.state < 7;
        let repeated = rc.bit(&mut self.probs.is_rep[self.state % STATES]);
        if repeated {
            if self.repeat(rc, pos_state) {
                self.state = if after_literal { 9 } else { 11 };
                return Some(1);
            }
            self.state = if after_literal { 8 } else { 11 };
        } else {
            self.rep.rotate_right(1);
            self.state = if after_literal { 7 } else { 10 };
        }
        let p = &mut self.probs;
        let coder = if repeated { &mut p.rep_len } else { &mut p.len };
        let len = coder.decode(rc, pos_state);
        if !repeated {
            self.rep[0] = self.distance(rc, len);
            if self.rep[0] == u32::MAX as usize {
                return None;
            }
        }
        Some(len)
    }

    /// Decodes symbols into `out[*at..end]`.
    pub(super) fn decode(
        &mut self,
        coder: &mut RangeDecoder<'_>,
        out: &mut [u8],
        at: &mut usize,
        end: usize,
    ) -> Result<End, Bad> {
        let mut rc = *coder;
        let mut ended = End::Full;
        let mut pos = *at;
        while pos < end {
            let pos_state = (pos - self.dict_start) & self.pb_mask & (POS_STATES_MAX - 1);
            if !rc.bit(&mut self.probs.is_match[self.state % STATES][pos_state]) {
                let byte = self.literal(&mut rc, out, pos)?;
                *out.get_mut(pos).ok_or(Bad)? = byte;
                pos += 1;
                continue;
            }
            let Some(len) = self.a_match(&mut rc, pos_state) else {
                ended = End::Marker;
                break;
            };
            if self.rep[0] >= pos - self.dict_start || len > end - pos || rc.overrun() {
                return Err(Bad);
            }
            super::copy_match(out, pos, self.rep[0] + 1, len)?;
            pos += len;
        }
        *coder = rc;
        *at = pos;
        if rc.overrun() { Err(Bad) } else { Ok(ended) }
    }
}

/// Decodes a .lzma ("LZMA alone") file.
pub(super) fn decode(input: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    // Properties, dictionary size (4 bytes), uncompressed size (8 bytes, all ones = unknown).
    let (header, rest) = input.split_first_chunk::<13>().ok_or(Bad)?;
    let (&[props, _, _, _, _], size) = header.split_first_chunk::<5>().ok_or(Bad)?;
    let size = u64::from_le_bytes(size.try_into().map_err(|_| Bad)?);
    if size != u64::MAX && size != out.len() as u64 {
        return Err(Bad);
    }
    let mut lzma = Lzma::new();
    lzma.set_props(props, 12)?;
    let mut rc = RangeDecoder::new(rest)?;
    let mut at = 0;
    let end = out.len();
    let ended = lzma.decode(&mut rc, out, &mut at, end)?;
    // A stream of unknown size ends in a marker; anything else finds no room.
    if size == u64::MAX && ended == End::Full {
        lzma.decode(&mut rc, out, &mut at, end + 1)?;
    }
    Ok(at)
}
