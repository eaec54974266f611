//! LZO1X in lzop's container, as kernels are packed with it.

use super::{Bad, Input};

const MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";
const HAS_ADLER32_DATA: u32 = 1;
const HAS_ADLER32_PACKED: u32 = 1 << 1;
const HAS_EXTRA: u32 = 1 << 6;
const HAS_CRC32_DATA: u32 = 1 << 8;
const HAS_CRC32_PACKED: u32 = 1 << 9;
const HAS_FILTER: u32 = 1 << 11;

/// A length whose field was 0: 255 for every zero byte, then the last byte, above `base`.
fn long_length(input: &mut Input<'_>, base: usize) -> Result<usize, Bad> {
    let mut length = base;
    loop {
        match input.u8()? {
            0 => length = length.checked_add(255).ok_or(Bad)?,
            last => return length.checked_add(usize::from(last)).ok_or(Bad),
        }
    }
}

fn copy_literals(
    input: &mut Input<'_>,
    out: &mut [u8],
    at: &mut usize,
    count: usize,
) -> Result<(), Bad> {
    let end = at.checked_add(count).ok_or(Bad)?;
    out.get_mut(*at..end).ok_or(Bad)?.copy_from_slice(input.take(count)?);
    *at = end;
    Ok(())
}

/// Decodes one LZO1X block, which must fill `out`.
///
/// `literals` is how many literals the last instruction copied (4 stands for more): it decides
/// what an instruction byte below 16 means.
fn block(data: &[u8], out: &mut [u8]) -> Result<(), Bad> {
    let mut input = Input::new(data);
    let (mut at, mut literals) = (0, 0usize);
    let first = input.u8()?;
    if first >= 18 {
        let count = usize::from(first) - 17;
        copy_literals(&mut input, out, &mut at, count)?;
        literals = count.min(4);
    } else {
        input.at = 0;
    }
    loop {
        let byte = usize::from(input.u8()?);
        let (length, distance, trailing);
        if byte < 16 && literals == 0 {
            // A long run of literals.
            let count = 3 + if byte == 0 { long_length(&mut input, 15)? } else { byte };
            copy_literals(&mut input, out, &mut at, count)?;
            literals = 4;
            continue;
        } else if byte < 16 {
            // A short match, further away after a long run.
            let high = usize::from(input.u8()?) << 2;
            let far = literals == 4;
            length = if far { 3 } else { 2 };
            distance = (byte >> 2) + high + if far { 0x801 } else { 1 };
            trailing = byte & 3;
        } else if byte >= 64 {
            let high = usize::from(input.u8()?) << 3;
            length = (byte >> 5) + 1;
            distance = (byte >> 2 & 7) + high + 1;
            trailing = byte & 3;
        } else {
            let (mask, far) = if byte >= 32 { (31, 0) } else { (7, (byte & 8) << 11) };
            length = 2 + match byte & mask {
                0 => long_length(&mut input, mask)?,
                n => n,
            };
            let low = usize::from(input.u16_le()?);
            trailing = low & 3;
            if byte < 32 {
                if far == 0 && low >> 2 == 0 {
                    // The end mark.
                    return if length == 3 && at == out.len() { Ok(()) } else { Err(Bad) };
                }
                distance = (low >> 2) + far + 0x4000;
            } else {
                distance = (low >> 2) + 1;
            }
        }
        super::copy_match(out, at, distance, length)?;
        at += length;
        copy_literals(&mut input, out, &mut at, trailing)?;
        literals = trailing;
    }
}

/// Skips lzop's file header; returns its flags.
fn header(input: &mut Input<'_>) -> Result<u32, Bad> {
    if input.take(MAGIC.len())? != MAGIC {
        return Err(Bad);
    }
    let version = input.u16_be()?;
    input.take(2)?;
    let newer = version >= 0x0940;
    if newer {
        input.take(2)?;
    }
    input.take(if newer { 2 } else { 1 })?;
    let flags = input.u32_be()?;
    if flags & HAS_FILTER != 0 {
        input.take(4)?;
    }
    // Mode, time (32 or 64 bits), name, checksum.
    input.take(if newer { 12 } else { 8 })?;
    let name_bytes = usize::from(input.u8()?);
    input.take(name_bytes)?;
    input.take(4)?;
    if flags & HAS_EXTRA != 0 {
        let extra_bytes = usize::try_from(input.u32_be()?).map_err(|_| Bad)?;
        input.take(extra_bytes)?;
        input.take(4)?;
    }
    Ok(flags)
}

/// Decodes an lzop file.
pub(super) fn decode(data: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    let mut input = Input::new(data);
    let flags = header(&mut input)?;
    let words = |mask: u32| (flags & mask).count_ones() as usize * 4;
    let mut at = 0usize;
    loop {
        let size = usize::try_from(input.u32_be()?).map_err(|_| Bad)?;
        if size == 0 {
            return Ok(at);
        }
        let packed = usize::try_from(input.u32_be()?).map_err(|_| Bad)?;
        input.take(words(HAS_ADLER32_DATA | HAS_CRC32_DATA))?;
        if packed < size {
            input.take(words(HAS_ADLER32_PACKED | HAS_CRC32_PACKED))?;
        }
        let end = at.checked_add(size).ok_or(Bad)?;
        let target = out.get_mut(at..end).ok_or(Bad)?;
        let bytes = input.take(packed)?;
        if packed == size {
            target.copy_from_slice(bytes);
        } else {
            block(bytes, target)?;
        }
        at = end;
    }
}
