//! Decompression of kernels, straight into a buffer of the right size.
//!
//! A bzImage's payload ends in its decompressed size (4 bytes, little-endian; gzip's own
//! trailer happens to be that), so the output is allocated once. gzip and lz4 blocks are decoded by
//! established crates. The rest is here: what `no_std` crates there are keep windows of their own
//! (a kernel's zstd window is 128 MiB, its xz dictionary 32 MiB), and this runs in a machine
//! whose memory is the guest's.

mod bzip2;
mod crc32;
mod lzma;
mod lzo;
#[cfg(test)]
mod tests;
mod xz;
mod zstd;

use alloc::vec::Vec;

use super::BuildError;
use super::error::Compression;

/// The data is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad;

/// Largest decompressed kernel accepted, in bytes.
pub const MAX_BYTES: usize = 1 << 30;
/// Output of one block of lz4's legacy frames.
const LZ4_BLOCK_BYTES: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;

/// Bytes taken one after the other.
struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    const fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }
    fn take(&mut self, count: usize) -> Result<&'a [u8], Bad> {
        let end = self.at.checked_add(count).ok_or(Bad)?;
        let bytes = self.data.get(self.at..end).ok_or(Bad)?;
        self.at = end;
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        self.take(N)?.try_into().map_err(|_| Bad)
    }
    #[inline]
    fn u8(&mut self) -> Result<u8, Bad> {
        let byte = *self.data.get(self.at).ok_or(Bad)?;
        self.at += 1;
        Ok(byte)
    }
    fn u16_be(&mut self) -> Result<u16, Bad> {
        self.array().map(u16::from_be_bytes)
    }
    fn u16_le(&mut self) -> Result<u16, Bad> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32_be(&mut self) -> Result<u32, Bad> {
        self.array().map(u32::from_be_bytes)
    }
    fn u32_le(&mut self) -> Result<u32, Bad> {
        self.array().map(u32::from_le_bytes)
    }
}

/// What [`copy_match`] moves at a time.
const WORD: usize = 8;
/// From this length on it moves blocks.
const BLOCK: usize = 64;

/// Copies `length` bytes from `distance` before `at`; they may overlap, as repeats do. A few bytes
/// behind them may change, too: they are still to come.
#[inline]
fn copy_match(out: &mut [u8], at: usize, distance: usize, length: usize) -> Result<(), Bad> {
    let from = at.checked_sub(distance).ok_or(Bad)?;
    let end = at.checked_add(length).ok_or(Bad)?;
    if distance == 0 || end > out.len() {
        return Err(Bad);
    }
    // A block move costs more than it saves on the short matches most are. What overlaps is moved
    // in pieces that double.
    if length >= BLOCK {
        let mut done = 0;
        while done < length {
            let piece = (distance + done).min(length - done);
            out.copy_within(from..from + piece, at + done);
            done += piece;
        }
        return Ok(());
    }
    if distance >= WORD
        && let Some(piece) = out.get_mut(from..end + WORD)
    {
        let mut done = 0;
        while done < length
            && let Some(&word) = piece.get(done..).and_then(<[u8]>::first_chunk::<WORD>)
            && let Some(to) = piece.get_mut(done + distance..).and_then(<[u8]>::first_chunk_mut)
        {
            *to = word;
            done += WORD;
        }
        return Ok(());
    }
    let piece = out.get_mut(from..end).ok_or(Bad)?;
    for n in distance..piece.len() {
        piece[n] = piece[n - distance];
    }
    Ok(())
}

fn gzip(data: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    const HAS_CRC: u8 = 1 << 1;
    const HAS_EXTRA: u8 = 1 << 2;
    const HAS_NAME: u8 = 1 << 3;
    const HAS_COMMENT: u8 = 1 << 4;
    let mut input = Input::new(data);
    let header = input.take(10)?;
    let flags = *header.get(3).ok_or(Bad)?;
    if header.get(2) != Some(&8) {
        return Err(Bad);
    }
    if flags & HAS_EXTRA != 0 {
        let extra_bytes = usize::from(input.u16_le()?);
        input.take(extra_bytes)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        while flags & text != 0 && input.u8()? != 0 {}
    }
    if flags & HAS_CRC != 0 {
        input.take(2)?;
    }
    let body = data.get(input.at..).ok_or(Bad)?;
    let mut state = alloc::boxed::Box::<DecompressorOxide>::default();
    let (status, used, written) = decompress(
        &mut state,
        body,
        out,
        0,
        inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
    );
    if status != TINFLStatus::Done {
        return Err(Bad);
    }
    input.take(used)?;
    let crc = input.u32_le()?;
    if crc32::crc32(out.get(..written).ok_or(Bad)?) != crc {
        return Err(Bad);
    }
    Ok(written)
}

fn lz4(data: &[u8], out: &mut [u8]) -> Result<usize, Bad> {
    let mut input = Input::new(data);
    let mut at = 0usize;
    while input.at < data.len() {
        let packed = input.u32_le()?;
        // Also between concatenated frames.
        if packed == LZ4_LEGACY_MAGIC {
            continue;
        }
        let bytes = input.take(usize::try_from(packed).map_err(|_| Bad)?)?;
        let end = at.saturating_add(LZ4_BLOCK_BYTES).min(out.len());
        let block = out.get_mut(at..end).ok_or(Bad)?;
        at += lz4_flex::block::decompress_into(bytes, block).map_err(|_| Bad)?;
    }
    Ok(at)
}

/// What the data is compressed with, by its first bytes.
#[must_use]
pub fn detect(data: &[u8]) -> Option<Compression> {
    const MAGICS: [(&[u8], Compression); 8] = [
        (b"\x1f\x8b", Compression::Gzip),
        (b"\xfd7zXZ\0", Compression::Xz),
        (b"\x5d\0\0", Compression::Lzma),
        (b"BZh", Compression::Bzip2),
        (b"\x89LZO", Compression::Lzo),
        (b"\x02\x21\x4c\x18", Compression::Lz4),
        (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        (b"\x6d\0\0", Compression::Lzma),
    ];
    MAGICS.iter().find(|(magic, _)| data.starts_with(magic)).map(|&(_, format)| format)
}

/// The size packed data says it unpacks to.
///
/// # Errors
/// [`BuildError::Truncated`], [`BuildError::TooLarge`].
pub fn unpacked_bytes(data: &[u8]) -> Result<usize, BuildError> {
    let size = data.last_chunk::<4>().ok_or(BuildError::Truncated)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| BuildError::TooLarge)?;
    if size > MAX_BYTES { Err(BuildError::TooLarge) } else { Ok(size) }
}

/// Decompresses data that ends in its decompressed size, as bzImage payloads and gzip files do.
///
/// # Errors
/// [`BuildError::Corrupt`], [`BuildError::TooLarge`], [`BuildError::NoMemory`],
/// [`BuildError::UnknownCompression`].
pub fn decompress(data: &[u8]) -> Result<Vec<u8>, BuildError> {
    let format = detect(data).ok_or(BuildError::UnknownCompression)?;
    let size = unpacked_bytes(data)?;
    let (body, _) = data.split_last_chunk::<4>().ok_or(BuildError::Truncated)?;
    let mut out = Vec::new();
    out.try_reserve_exact(size).map_err(|_| BuildError::NoMemory)?;
    out.resize(size, 0);
    let written = match format {
        Compression::Gzip => gzip(data, &mut out),
        Compression::Xz => xz::decode(body, &mut out),
        Compression::Lzma => lzma::decode(body, &mut out),
        Compression::Bzip2 => bzip2::decode(body, &mut out),
        Compression::Lzo => lzo::decode(body, &mut out),
        Compression::Lz4 => lz4(body, &mut out),
        Compression::Zstd => zstd::decode(body, &mut out),
    };
    if written != Ok(size) {
        return Err(BuildError::Corrupt(format));
    }
    Ok(out)
}
