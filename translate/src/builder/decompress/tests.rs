//! Every format against samples made by its own packer: `sample()` through gzip -9n, xz
//! --check=crc32 --x86 --lzma2=preset=9e,dict=64KiB, lzma -9, bzip2 -1, lz4 -l -9, zstd -19 --ultra
//! and lzop -9, and all but the first with the size behind them.

use super::*;

const SAMPLES: [(Compression, &[u8]); 7] = [
    (Compression::Gzip, include_bytes!("samples/sample.gz")),
    (Compression::Xz, include_bytes!("samples/sample.xz")),
    (Compression::Lzma, include_bytes!("samples/sample.lzma")),
    (Compression::Bzip2, include_bytes!("samples/sample.bz2")),
    (Compression::Lzo, include_bytes!("samples/sample.lzo")),
    (Compression::Lz4, include_bytes!("samples/sample.lz4")),
    (Compression::Zstd, include_bytes!("samples/sample.zst")),
];
const SAMPLE_BYTES: usize = 200_000;

/// Text, code with CALLs, zeros, noise and repeats from far back.
fn sample() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::new();
    while out.len() < SAMPLE_BYTES {
        let r = random();
        let n = (r >> 8 & 0xff) as usize;
        match r & 7 {
            0..=2 => {
                let line = alloc::format!("the quick brown fox {n} jumps over the lazy dog\n");
                out.extend_from_slice(line.as_bytes());
            }
            3 | 4 => {
                let target = (0x1000 * (n as u32 & 15)).wrapping_sub(out.len() as u32 + 5);
                out.extend_from_slice(b"\x48\x89\xe5\xe8");
                out.extend_from_slice(&target.to_le_bytes());
                out.extend_from_slice(b"\xe9\xe8\x00");
            }
            5 => out.resize(out.len() + n * 4, 0),
            6 => out.extend_from_slice(&random().to_le_bytes()),
            _ => {
                let from = out.len().saturating_sub(n * 64 + 1);
                out.extend_from_within(from..(from + n).min(out.len()));
            }
        }
    }
    out.truncate(SAMPLE_BYTES);
    out
}

#[test]
fn every_format() {
    let expected = sample();
    assert_eq!(crc32::crc32(&expected), 0xf67b_d4d1);
    for (format, data) in SAMPLES {
        assert_eq!(detect(data), Some(format));
        assert!(decompress(data) == Ok(expected.clone()), "{format}");
    }
}

#[test]
fn damage_is_told() {
    for (format, data) in SAMPLES {
        // Cut short, with the size still behind it.
        let (body, size) = data.split_at(data.len() - 4);
        let cut = [&body[..body.len() / 2], size].concat();
        assert_eq!(decompress(&cut), Err(BuildError::Corrupt(format)), "{format} cut");
        // The size says less, and more.
        for wrong in [SAMPLE_BYTES - 1, SAMPLE_BYTES + 1, 0] {
            let mut other = data.to_vec();
            let at = other.len() - 4;
            other[at..].copy_from_slice(&(wrong as u32).to_le_bytes());
            assert_eq!(decompress(&other), Err(BuildError::Corrupt(format)), "{format} {wrong}");
        }
    }
    assert_eq!(decompress(b"PK\x03\x04aaaa"), Err(BuildError::UnknownCompression));
    assert_eq!(decompress(b"BZh"), Err(BuildError::Truncated));
    assert_eq!(decompress(b"BZh9\xff\xff\xff\xff"), Err(BuildError::TooLarge));
}

#[test]
fn flipped_bits_are_caught_where_there_is_a_checksum() {
    for format in [Compression::Gzip, Compression::Xz, Compression::Bzip2] {
        let (_, data) = SAMPLES[SAMPLES.iter().position(|s| s.0 == format).unwrap()];
        for at in [data.len() / 5, data.len() / 3, data.len() / 2] {
            let mut flipped = data.to_vec();
            flipped[at] ^= 0x10;
            assert_eq!(decompress(&flipped), Err(BuildError::Corrupt(format)), "{format} {at}");
        }
    }
}

#[test]
fn matches_overlap_and_stay_inside() {
    let mut out = *b"abc.......";
    assert_eq!(copy_match(&mut out, 3, 3, 7), Ok(()));
    assert_eq!(&out, b"abcabcabca");
    assert_eq!(copy_match(&mut out, 3, 4, 1), Err(Bad));
    assert_eq!(copy_match(&mut out, 3, 0, 1), Err(Bad));
    assert_eq!(copy_match(&mut out, 9, 1, 2), Err(Bad));
    let mut out = [7; 100];
    out[50..].fill(0);
    assert_eq!(copy_match(&mut out, 50, 50, 40), Ok(()));
    assert_eq!(out[50..91], [&[7; 40][..], &[0]].concat());
}

#[test]
fn matches_of_every_shape() {
    const AT: usize = 80;
    for (distance, length) in (1..=AT).flat_map(|d| (0..3 * AT).map(move |l| (d, l))) {
        // With room behind it, and without.
        for room in [0, 1, 7, 8, 100] {
            let mut out: Vec<u8> = (0..AT + length + room).map(|n| n as u8 ^ 0x5a).collect();
            let mut expected = out.clone();
            for n in AT..AT + length {
                expected[n] = expected[n - distance];
            }
            assert_eq!(copy_match(&mut out, AT, distance, length), Ok(()));
            let end = AT + length;
            assert_eq!(out[..end], expected[..end], "{distance} {length} {room}");
        }
    }
}
