//! Little-endian fields of byte slices.

fn get<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

pub fn u8_at(data: &[u8], at: usize) -> Option<u8> {
    data.get(at).copied()
}

pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    get(data, at).map(u16::from_le_bytes)
}

pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    get(data, at).map(u32::from_le_bytes)
}

pub fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    get(data, at).map(u64::from_le_bytes)
}

/// What is before the first NUL, or all of it.
pub fn until_nul(data: &[u8]) -> &[u8] {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    data.get(..end).unwrap_or(data)
}
