//! bzip2: Huffman codes, move-to-front, the Burrows-Wheeler transform, two run-length layers.

use alloc::vec::Vec;

use super::Bad;

const BLOCK_MAGIC: u64 = 0x3141_5926_5359;
const END_MAGIC: u64 = 0x1772_4538_5090;
const GROUP_SYMBOLS: usize = 50;
const MAX_CODE_BITS: usize = 20;
const MAX_SYMBOLS: usize = 258;
const RUN_A: usize = 0;
const RUN_B: usize = 1;

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = (n as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

static CRC: [u32; 256] = crc_table();

struct Bits<'a> {
    input: &'a [u8],
    at: usize,
    held: u64,
    nr_held: u32,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32, Bad> {
        while self.nr_held < count {
            self.held = self.held << 8 | u64::from(*self.input.get(self.at).ok_or(Bad)?);
            self.at += 1;
            self.nr_held += 8;
        }
        self.nr_held -= count;
        Ok((self.held >> self.nr_held & ((1 << count) - 1)) as u32)
    }

    fn bit(&mut self) -> Result<bool, Bad> {
        Ok(self.take(1)? == 1)
    }

    fn magic(&mut self) -> Result<u64, Bad> {
        Ok(u64::from(self.take(24)?) << 24 | u64::from(self.take(24)?))
    }
}

/// A canonical Huffman code: for each length, the first code behind its codes and what to
/// subtract from a code to get its index in `symbols`.
struct Code {
    limit: [u32; MAX_CODE_BITS + 1],
    base: [u32; MAX_CODE_BITS + 1],
    symbols: [u16; MAX_SYMBOLS],
    nr_symbols: usize,
}

impl Code {
    fn new(lengths: &[u8]) -> Self {
        let mut code = Self {
            limit: [0; MAX_CODE_BITS + 1],
            base: [0; MAX_CODE_BITS + 1],
            symbols: [0; MAX_SYMBOLS],
            nr_symbols: 0,
        };
        let mut next = 0u32;
        for bits in 1..=MAX_CODE_BITS {
            code.base[bits] = next.wrapping_sub(code.nr_symbols as u32);
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, n)| usize::from(**n) == bits)
            {
                code.symbols[code.nr_symbols] = symbol as u16;
                code.nr_symbols += 1;
                next += 1;
            }
            code.limit[bits] = next;
            next <<= 1;
        }
        code
    }

    fn decode(&self, bits: &mut Bits<'_>) -> Result<usize, Bad> {
        let mut code = 0;
        for n in 1..=MAX_CODE_BITS {
            code = code << 1 | bits.take(1)?;
            if code < self.limit[n] {
                let index = code.wrapping_sub(self.base[n]) as usize;
                let symbols = self.symbols.get(..self.nr_symbols).ok_or(Bad)?;
                return symbols.get(index).map(|&s| usize::from(s)).ok_or(Bad);
            }
        }
        Err(Bad)
    }
}

/// The bytes a block uses, in order.
fn used_bytes(bits: &mut Bits<'_>) -> Result<([u8; 256], usize), Bad> {
    let (mut list, mut count) = ([0; 256], 0);
    let groups = bits.take(16)?;
    for group in 0..16u8 {
        if groups >> (15 - group) & 1 == 0 {
            continue;
        }
        let members = bits.take(16)?;
        for member in 0..16u8 {
            if members >> (15 - member) & 1 == 1 {
                list[count] = group << 4 | member;
                count += 1;
            }
        }
    }
    if count == 0 { Err(Bad) } else { Ok((list, count)) }
}

fn selectors(bits: &mut Bits<'_>, nr_codes: usize) -> Result<Vec<u8>, Bad> {
    let nr_selectors = bits.take(15)? as usize;
    let mut order = [0u8, 1, 2, 3, 4, 5];
    let mut list = Vec::new();
    list.try_reserve_exact(nr_selectors).map_err(|_| Bad)?;
    for _ in 0..nr_selectors {
        let mut index = 0;
        while bits.bit()? {
            index += 1;
            if index >= nr_codes {
                return Err(Bad);
            }
        }
        order[..=index].rotate_right(1);
        list.push(order[0]);
    }
    Ok(list)
}

fn codes(bits: &mut Bits<'_>, nr_codes: usize, nr_symbols: usize) -> Result<Vec<Code>, Bad> {
    let mut list = Vec::with_capacity(nr_codes);
    for _ in 0..nr_codes {
        let mut lengths = [0u8; MAX_SYMBOLS];
        let mut length = bits.take(5)?;
        for slot in lengths.get_mut(..nr_symbols).ok_or(Bad)? {
            loop {
                if !(1..=MAX_CODE_BITS as u32).contains(&length) {
                    return Err(Bad);
                }
                if !bits.bit()? {
                    break;
                }
                length = if bits.bit()? { length - 1 } else { length + 1 };
            }
            *slot = length as u8;
        }
        list.push(Code::new(&lengths[..nr_symbols]));
    }
    Ok(list)
}

/// Reads a block's symbols into `tt` (one byte of the transform's last column each).
fn symbols(bits: &mut Bits<'_>, tt: &mut Vec<u32>, max: usize) -> Result<(), Bad> {
    let (mut front, nr_used) = used_bytes(bits)?;
    let end_of_block = nr_used + 1;
    let nr_codes = bits.take(3)? as usize;
    if !(2..=6).contains(&nr_codes) {
        return Err(Bad);
    }
    let selectors = selectors(bits, nr_codes)?;
    let codes = codes(bits, nr_codes, nr_used + 2)?;
    tt.clear();
    let (mut run, mut run_weight) = (0usize, 1usize);
    for &selector in &selectors {
        let code = codes.get(usize::from(selector)).ok_or(Bad)?;
        for _ in 0..GROUP_SYMBOLS {
            let symbol = code.decode(bits)?;
            if symbol == RUN_A || symbol == RUN_B {
                run += run_weight << symbol;
                run_weight <<= 1;
                if run > max {
                    return Err(Bad);
                }
                continue;
            }
            if tt.len() + run + 1 > max + usize::from(symbol == end_of_block) {
                return Err(Bad);
            }
            tt.resize(tt.len() + run, u32::from(front[0]));
            (run, run_weight) = (0, 1);
            if symbol == end_of_block {
                return Ok(());
            }
            front.get_mut(..symbol).ok_or(Bad)?.rotate_right(1);
            tt.push(u32::from(front[0]));
        }
    }
    Err(Bad)
}

/// Turns the last column into links: the low byte stays, the rest says where the next byte is.
fn link(tt: &mut [u32]) {
    let mut starts = [0u32; 256];
    for &entry in tt.iter() {
        starts[(entry & 0xff) as usize] += 1;
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += core::mem::replace(start, sum);
    }
    for n in 0..tt.len() {
        let start = &mut starts[(tt[n] & 0xff) as usize];
        tt[*start as usize] |= (n as u32) << 8;
        *start += 1;
    }
}

/// Follows the links and undoes the outer run-length layer (4 equal bytes and a count).
fn unwind(tt: &[u32], origin: usize, out: &mut [u8], at: &mut usize) -> Result<u32, Bad> {
    let mut crc = !0u32;
    let mut put = |byte: u8, count: usize| {
        let end = at.checked_add(count).ok_or(Bad)?;
        out.get_mut(*at..end).ok_or(Bad)?.fill(byte);
        *at = end;
        for _ in 0..count {
            crc = crc << 8 ^ CRC[(crc >> 24 ^ u32::from(byte)) as usize];
        }
        Ok(())
    };
    let mut link = *tt.get(origin).ok_or(Bad)? >> 8;
    let (mut last, mut repeats) = (None, 0);
    for _ in 0..tt.len() {
        let entry = *tt.get(link as usize).ok_or(Bad)?;
        link = entry >> 8;
        let byte = (entry & 0xff) as u8;
        if repeats == 4 {
            put(last.unwrap_or(0), usize::from(byte))?;
            (last, repeats) = (None, 0);
            continue;
        }
        repeats = if last == Some(byte) { repeats + 1 } else { 1 };
        last = Some(byte);
        put(byte, 1)?;
    }
    Ok(!crc)
}

/// Decodes a bzip2 stream.
pub(super) fn decode(input: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    let (&[b'B', b'Z', b'h', level @ b'1'..=b'9'], _) = input.split_first_chunk().ok_or(Bad)?
    else {
        return Err(Bad);
    };
    let max = usize::from(level - b'0') * 100_000;
    let mut bits = Bits { input, at: 4, held: 0, nr_held: 0 };
    let mut tt = Vec::new();
    tt.try_reserve_exact(max).map_err(|_| Bad)?;
    let mut at = 0;
    loop {
        match bits.magic()? {
            BLOCK_MAGIC => {}
            END_MAGIC => return Ok(at),
            _ => return Err(Bad),
        }
        let crc = bits.take(16)? << 16 | bits.take(16)?;
        // The "randomised" mode of ancient encoders is not supported.
        if bits.bit()? {
            return Err(Bad);
        }
        let origin = bits.take(24)? as usize;
        symbols(&mut bits, &mut tt, max)?;
        link(&mut tt);
        if unwind(&tt, origin, out, &mut at)? != crc {
            return Err(Bad);
        }
    }
}
