//! The Linux/x86 boot protocol's file header: where a bzImage's payload is.

use super::BuildError;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Protocol version that brought the payload fields.
const PAYLOAD_VERSION: u16 = 0x0208;

fn field<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

/// Whether the file has the boot protocol's header.
#[must_use]
pub fn is_bzimage(file: &[u8]) -> bool {
    field(file, HEADER_MAGIC) == Some(*b"HdrS")
}

/// The compressed kernel in a bzImage.
///
/// # Errors
/// [`BuildError::NoPayload`], [`BuildError::Truncated`].
pub fn payload(file: &[u8]) -> Result<&[u8], BuildError> {
    let version = field(file, VERSION).map(u16::from_le_bytes).ok_or(BuildError::Truncated)?;
    if version < PAYLOAD_VERSION {
        return Err(BuildError::NoPayload);
    }
    let u32_at = |at| {
        let value = field(file, at).map(u32::from_le_bytes).ok_or(BuildError::Truncated)?;
        usize::try_from(value).map_err(|_| BuildError::Truncated)
    };
    // 0 means 4, for historical reasons; the boot sector comes on top.
    let sectors = match file.get(SETUP_SECTS) {
        Some(0) | None => 4,
        Some(&n) => usize::from(n),
    };
    let from = u32_at(PAYLOAD_OFFSET)?.checked_add((sectors + 1) * 512);
    let length = u32_at(PAYLOAD_LENGTH)?;
    if length == 0 {
        return Err(BuildError::NoPayload);
    }
    let from = from.ok_or(BuildError::Truncated)?;
    let end = from.checked_add(length).ok_or(BuildError::Truncated)?;
    file.get(from..end).ok_or(BuildError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    pub(crate) fn bzimage(version: u16, payload: &[u8]) -> Vec<u8> {
        let mut file = alloc::vec![0u8; 1024 + 16];
        file[SETUP_SECTS] = 1;
        file[HEADER_MAGIC..][..4].copy_from_slice(b"HdrS");
        file[VERSION..][..2].copy_from_slice(&version.to_le_bytes());
        file[PAYLOAD_OFFSET..][..4].copy_from_slice(&16u32.to_le_bytes());
        file[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn payload_is_found() {
        let file = bzimage(0x20f, b"the payload");
        assert!(is_bzimage(&file));
        assert_eq!(payload(&file), Ok(&b"the payload"[..]));
    }

    #[test]
    fn bad_headers() {
        assert!(!is_bzimage(b"MZ"));
        assert_eq!(payload(&bzimage(0x207, b"x")), Err(BuildError::NoPayload));
        assert_eq!(payload(&bzimage(0x20f, b"")), Err(BuildError::NoPayload));
        let mut file = bzimage(0x20f, b"payload");
        file.pop();
        assert_eq!(payload(&file), Err(BuildError::Truncated));
        file[PAYLOAD_OFFSET..][..4].fill(0xff);
        assert_eq!(payload(&file), Err(BuildError::Truncated));
    }
}
