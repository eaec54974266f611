//! The xz container (xz file format 1.2): blocks of LZMA2, optionally behind the x86 branch
//! filter, as kernels are packed. The index behind the last block is not needed.

use super::crc32::crc32;
use super::lzma::{Lzma, RangeDecoder};
use super::{Bad, Input};

const MAGIC: &[u8] = b"\xfd7zXZ\0";
const CHECK_CRC32: u8 = 1;
const FILTER_X86: u64 = 4;
const FILTER_LZMA2: u64 = 0x21;

/// A variable-length integer: 7 bits a byte, lowest first, at most 9 bytes.
fn varint(input: &mut Input<'_>) -> Result<u64, Bad> {
    let mut value = 0;
    for n in 0..9 {
        let byte = input.u8()?;
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Bad)
}

/// What a block header says: whether the x86 filter was applied.
fn block_header(header: &[u8]) -> Result<bool, Bad> {
    let (body, crc) = header.split_last_chunk::<4>().ok_or(Bad)?;
    if crc32(body) != u32::from_le_bytes(*crc) {
        return Err(Bad);
    }
    let mut input = Input::new(body);
    input.u8()?;
    let flags = input.u8()?;
    if flags & 0x3c != 0 {
        return Err(Bad);
    }
    if flags & 0x40 != 0 {
        varint(&mut input)?;
    }
    if flags & 0x80 != 0 {
        varint(&mut input)?;
    }
    let filters = (flags & 3) + 1;
    let mut x86 = false;
    for n in 1..=filters {
        let id = varint(&mut input)?;
        let props = usize::try_from(varint(&mut input)?).map_err(|_| Bad)?;
        let props = input.take(props)?;
        match (id, n == filters) {
            (FILTER_LZMA2, true) if props.len() == 1 => {}
            // A start offset is allowed by the format; nobody uses one.
            (FILTER_X86, false) if !x86 && props.iter().all(|&b| b == 0) => x86 = true,
            _ => return Err(Bad),
        }
    }
    Ok(x86)
}

/// Decodes LZMA2 chunks into `out[*at..]` until their end mark.
fn lzma2(input: &mut Input<'_>, out: &mut [u8], at: &mut usize) -> Result<(), Bad> {
    let mut lzma = Lzma::new();
    // What the first chunk must bring: a dictionary reset, and with LZMA symbols, properties.
    let (mut have_dict, mut have_props) = (false, false);
    loop {
        let control = input.u8()?;
        if control == 0 {
            return Ok(());
        }
        if control >= 0xe0 || control == 1 {
            lzma.dict_start = *at;
            have_dict = true;
        }
        if !have_dict {
            return Err(Bad);
        }
        if control < 0x80 {
            if control > 2 {
                return Err(Bad);
            }
            let size = usize::from(input.u16_be()?) + 1;
            let end = at.checked_add(size).ok_or(Bad)?;
            out.get_mut(*at..end).ok_or(Bad)?.copy_from_slice(input.take(size)?);
            *at = end;
            continue;
        }
        let size = (usize::from(control & 0x1f) << 16) + usize::from(input.u16_be()?) + 1;
        let packed = usize::from(input.u16_be()?) + 1;
        match control >> 5 & 3 {
            0 => {}
            1 => lzma.reset_state(),
            _ => {
                lzma.set_props(input.u8()?, 4)?;
                have_props = true;
            }
        }
        let end = at.checked_add(size).filter(|&end| end <= out.len()).ok_or(Bad)?;
        if !have_props {
            return Err(Bad);
        }
        let mut rc = RangeDecoder::new(input.take(packed)?)?;
        lzma.decode(&mut rc, out, at, end)?;
        if *at != end || !rc.finished_exactly() {
            return Err(Bad);
        }
    }
}

/// Bytes, in eights, without an E8 or E9 among them.
#[inline]
fn skip(buf: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut skipped = 0;
    for chunk in buf.as_chunks::<8>().0 {
        // A zero byte where one is; the borrow finds zero bytes, and at worst one too many.
        let v = (u64::from_le_bytes(*chunk) & (0xfe * ONES)) ^ (0xe8 * ONES);
        if v.wrapping_sub(ONES) & !v & (0x80 * ONES) != 0 {
            break;
        }
        skipped += 8;
    }
    skipped
}

/// Undoes the x86 branch filter: CALL and JMP targets that were made absolute become relative
/// again. A candidate is an E8 or E9 byte whose operand's top byte is 00 or FF; `mask` remembers
/// which of the three bytes before were candidates too, in which case the operand may overlap
/// theirs and the encoder was careful.
fn unfilter_x86(buf: &mut [u8]) {
    const ALLOWED: [bool; 8] = [true, true, true, false, true, false, false, false];
    const BIT_NUMBER: [usize; 8] = [0, 1, 2, 2, 3, 3, 3, 3];
    let sign = |b: u8| b == 0 || b == 0xff;
    let (mut mask, mut previous) = (0usize, None::<usize>);
    let mut i = 0;
    while i + 4 < buf.len() {
        if buf[i] & 0xfe != 0xe8 {
            i += 1;
            i += skip(buf.get(i..).unwrap_or_default());
            continue;
        }
        match previous.map(|p| i - p) {
            Some(distance @ 1..=3) => {
                mask = mask << (distance - 1) & 7;
                if mask != 0 && (!ALLOWED[mask] || sign(buf[i + 4 - BIT_NUMBER[mask]])) {
                    previous = Some(i);
                    mask = mask << 1 | 1;
                    i += 1;
                    continue;
                }
            }
            _ => mask = 0,
        }
        previous = Some(i);
        if !sign(buf[i + 4]) {
            mask = mask << 1 | 1;
            i += 1;
            continue;
        }
        let mut source = u32::from_le_bytes([buf[i + 1], buf[i + 2], buf[i + 3], buf[i + 4]]);
        let mut target;
        loop {
            target = source.wrapping_sub(i as u32 + 5);
            if mask == 0 {
                break;
            }
            let shift = BIT_NUMBER[mask & 7] as u32 * 8;
            if !sign((target >> (24 - shift)) as u8) {
                break;
            }
            source = target ^ ((1u32 << (32 - shift)) - 1);
        }
        // Bit 24 is the sign of what was a 25-bit quantity.
        target = target & 0x01ff_ffff | 0u32.wrapping_sub(target & 0x0100_0000);
        buf[i + 1..i + 5].copy_from_slice(&target.to_le_bytes());
        i += 5;
    }
}

/// Decodes an xz stream.
pub(super) fn decode(data: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    let mut input = Input::new(data);
    if input.take(MAGIC.len())? != MAGIC {
        return Err(Bad);
    }
    let flags = input.take(2)?;
    if crc32(flags) != input.u32_le()? {
        return Err(Bad);
    }
    let &[0, check] = flags else { return Err(Bad) };
    let check_bytes = match check {
        0 => 0,
        1..=15 => 4usize << ((check - 1) / 3),
        _ => return Err(Bad),
    };
    let mut at = 0;
    loop {
        let header_at = input.at;
        let size_byte = input.u8()?;
        if size_byte == 0 {
            return Ok(at);
        }
        input.at = header_at;
        let x86 = block_header(input.take((usize::from(size_byte) + 1) * 4)?)?;
        let (data_at, block_at) = (input.at, at);
        lzma2(&mut input, out, &mut at)?;
        input.take((input.at - data_at).wrapping_neg() & 3)?;
        let block = out.get_mut(block_at..at).ok_or(Bad)?;
        if x86 {
            unfilter_x86(block);
        }
        let expected = input.take(check_bytes)?;
        if check == CHECK_CRC32 && crc32(block).to_le_bytes() != expected {
            return Err(Bad);
        }
    }
}
