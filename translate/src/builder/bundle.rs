//! The bundle: kernel, initrd and command line in one uncompressed newc cpio
//! archive, for boot protocols with a single payload slot (docs/boot.md).
//!
//! An entry is a 110-byte header of ASCII hexadecimal fields, the name with
//! its NUL, padding to 4 bytes, the data, padding to 4 bytes; all offsets count
//! from the archive's first byte. The last entry is named `TRAILER!!!`.

use alloc::vec::Vec;
use core::fmt;

const HEADER_BYTES: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &[u8] = b"TRAILER!!!";
const PREFIX: &[u8] = b"pontoon/";
const PAD_NAME: &[u8] = b"pontoon/.pad";
const MODE_FILE: u32 = 0o100_644;
/// Data the writer aligns when the archive itself is page-aligned.
const ALIGN: usize = 4096;

/// What a bundle holds. Everything borrows from the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle<'a> {
    /// `pontoon/kernel`.
    pub kernel: &'a [u8],
    /// `pontoon/initrd`, where there is one.
    pub initrd: Option<&'a [u8]>,
    /// `pontoon/cmdline` without trailing newlines and NULs.
    pub cmdline: Option<&'a [u8]>,
    /// `pontoon/config`, uninterpreted.
    pub config: Option<&'a [u8]>,
}

/// Why an archive is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// Not a newc archive at all, or one without any `pontoon/` entry (an ordinary initrd).
    NotABundle,
    /// The archive ends inside an entry, or without a trailer.
    Truncated,
    /// A header field is not hexadecimal, or a name has no NUL.
    BadHeader,
    /// `pontoon/` entries, but no `pontoon/kernel`.
    NoKernel,
    /// The same name twice.
    Duplicate,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotABundle => "not a bundle: no cpio archive with pontoon/kernel",
            Self::Truncated => "the bundle is truncated",
            Self::BadHeader => "the bundle has a malformed cpio header",
            Self::NoKernel => "the bundle has no pontoon/kernel",
            Self::Duplicate => "the bundle holds a file twice",
        })
    }
}

impl core::error::Error for BundleError {}

struct Entry<'a> {
    name: &'a [u8],
    data: &'a [u8],
    next: usize,
}

fn hex8(field: &[u8]) -> Option<usize> {
    field.iter().try_fold(0usize, |sum, &c| {
        let digit = char::from(c).to_digit(16)?;
        Some(sum << 4 | usize::try_from(digit).ok()?)
    })
}

fn align4(n: usize) -> Option<usize> {
    n.checked_next_multiple_of(4)
}

fn entry(archive: &[u8], at: usize) -> Result<Entry<'_>, BundleError> {
    use BundleError::{BadHeader, Truncated};
    let body = at.checked_add(HEADER_BYTES).ok_or(Truncated)?;
    let header = archive.get(at..body).ok_or(Truncated)?;
    if !header.starts_with(MAGIC) {
        return Err(BadHeader);
    }
    // Fields of 8 digits follow the magic; c_filesize is the 7th, c_namesize the 12th.
    let field = |n: usize| {
        let from = MAGIC.len() + n * 8;
        header.get(from..from + 8).and_then(hex8).ok_or(BadHeader)
    };
    let (size, name_size) = (field(6)?, field(11)?);
    let name_end = body.checked_add(name_size).ok_or(Truncated)?;
    let name = archive.get(body..name_end).ok_or(Truncated)?;
    let (&last, name) = name.split_last().ok_or(BadHeader)?;
    if last != 0 {
        return Err(BadHeader);
    }
    let data_at = align4(name_end).ok_or(Truncated)?;
    let data_end = data_at.checked_add(size).ok_or(Truncated)?;
    let data = archive.get(data_at..data_end).ok_or(Truncated)?;
    Ok(Entry { name, data, next: align4(data_end).ok_or(Truncated)? })
}

fn trim_end(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|c| !matches!(c, b'\n' | b'\r' | 0)).map_or(0, |n| n + 1);
    text.get(..end).unwrap_or(text)
}

impl<'a> Bundle<'a> {
    /// Reads an archive. Unknown entries are skipped; `./` before a name is allowed.
    ///
    /// # Errors
    /// [`BundleError::NotABundle`] for what was never meant to be one.
    pub fn parse(archive: &'a [u8]) -> Result<Self, BundleError> {
        if !archive.starts_with(MAGIC) {
            return Err(BundleError::NotABundle);
        }
        let (mut kernel, mut initrd, mut cmdline, mut config) = (None, None, None, None);
        let mut ours = false;
        let mut at = 0;
        loop {
            let e = match entry(archive, at) {
                // What an ordinary initrd looks like from here on is not ours to judge.
                Err(_) if !ours => return Err(BundleError::NotABundle),
                other => other?,
            };
            at = e.next;
            if e.name == TRAILER {
                break;
            }
            let name = e.name.strip_prefix(b"./").unwrap_or(e.name);
            let Some(name) = name.strip_prefix(PREFIX) else { continue };
            ours = true;
            let slot = match name {
                b"kernel" => &mut kernel,
                b"initrd" => &mut initrd,
                b"cmdline" => &mut cmdline,
                b"config" => &mut config,
                _ => continue,
            };
            if slot.replace(e.data).is_some() {
                return Err(BundleError::Duplicate);
            }
        }
        if !ours {
            return Err(BundleError::NotABundle);
        }
        let kernel = kernel.ok_or(BundleError::NoKernel)?;
        Ok(Self { kernel, initrd, cmdline: cmdline.map(trim_end), config })
    }
}

fn push_header(out: &mut Vec<u8>, ino: usize, name: &[u8], size: usize) {
    let is_file = name != TRAILER;
    let fields = [
        ino,
        if is_file { MODE_FILE as usize } else { 0 },
        0,
        0,
        1,
        0,
        size,
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    out.extend_from_slice(MAGIC);
    for value in fields {
        for shift in (0..8u32).rev() {
            let digit = value >> (shift * 4) & 15;
            out.push(b"0123456789abcdef"[digit]);
        }
    }
    out.extend_from_slice(name);
    out.push(0);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn header_bytes(name: &[u8]) -> usize {
    (HEADER_BYTES + name.len() + 1).next_multiple_of(4)
}

fn push_file(out: &mut Vec<u8>, ino: &mut usize, name: &[u8], data: &[u8], aligned: bool) {
    if aligned && !(out.len() + header_bytes(name)).is_multiple_of(ALIGN) {
        // A padding file in between brings the data to a page boundary.
        let before = out.len() + header_bytes(PAD_NAME) + header_bytes(name);
        let fill = before.next_multiple_of(ALIGN) - before;
        push_header(out, *ino, PAD_NAME, fill);
        out.resize(out.len() + fill, 0);
        *ino += 1;
    }
    push_header(out, *ino, name, data.len());
    out.extend_from_slice(data);
    pad(out, 4);
    *ino += 1;
}

/// Writes a bundle. Kernel and initrd data begin on page boundaries of the archive, and the
/// archive is whole pages long, so that a page-aligned load leaves the initrd page-aligned.
#[must_use]
pub fn write(bundle: &Bundle<'_>) -> Vec<u8> {
    let files = [
        (&b"pontoon/cmdline"[..], bundle.cmdline, false),
        (b"pontoon/config", bundle.config, false),
        (b"pontoon/kernel", Some(bundle.kernel), true),
        (b"pontoon/initrd", bundle.initrd, true),
    ];
    let bytes: usize = files.iter().map(|f| f.1.map_or(0, <[u8]>::len) + 3 * ALIGN).sum();
    let mut out = Vec::with_capacity(bytes);
    let mut ino = 1;
    for (name, data, aligned) in files {
        if let Some(data) = data {
            push_file(&mut out, &mut ino, name, data, aligned);
        }
    }
    push_header(&mut out, ino, TRAILER, 0);
    pad(&mut out, ALIGN);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Bundle<'static> {
        Bundle {
            kernel: b"a kernel",
            initrd: Some(b"an initrd"),
            cmdline: Some(b"console=hvc0 quiet"),
            config: None,
        }
    }

    fn archive(names: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (ino, name) in names.iter().enumerate() {
            push_header(&mut out, ino, name, 3);
            out.extend_from_slice(b"abc");
            pad(&mut out, 4);
        }
        push_header(&mut out, 0, TRAILER, 0);
        out
    }

    #[test]
    fn written_bundles_read_back_aligned() {
        let bytes = write(&sample());
        let read = Bundle::parse(&bytes).unwrap();
        assert_eq!(read, sample());
        for part in [read.kernel, read.initrd.unwrap()] {
            assert_eq!((part.as_ptr() as usize - bytes.as_ptr() as usize) % ALIGN, 0);
        }
        assert_eq!(bytes.len() % ALIGN, 0);
    }

    #[test]
    fn leading_dot_and_foreign_entries_are_accepted() {
        let bytes = archive(&[b".", b"pontoon", b"./pontoon/kernel", b"pontoon/other"]);
        assert_eq!(Bundle::parse(&bytes).unwrap().kernel, b"abc");
    }

    #[test]
    fn errors_are_told_apart() {
        assert_eq!(Bundle::parse(b""), Err(BundleError::NotABundle));
        assert_eq!(Bundle::parse(b"\x1f\x8b\x08"), Err(BundleError::NotABundle));
        assert_eq!(Bundle::parse(&archive(&[b"init", b"bin"])), Err(BundleError::NotABundle));
        assert_eq!(Bundle::parse(&archive(&[b"pontoon/initrd"])), Err(BundleError::NoKernel));
        let twice = archive(&[b"pontoon/kernel", b"./pontoon/kernel"]);
        assert_eq!(Bundle::parse(&twice), Err(BundleError::Duplicate));
        let mut bytes = archive(&[b"pontoon/kernel"]);
        bytes.truncate(bytes.len() - 8);
        assert_eq!(Bundle::parse(&bytes), Err(BundleError::Truncated));
        let mut bytes = archive(&[b"pontoon/kernel", b"x"]);
        bytes[HEADER_BYTES + 18 + 4 + 54] = b'g';
        assert_eq!(Bundle::parse(&bytes), Err(BundleError::BadHeader));
    }

    #[test]
    fn command_line_loses_its_newline() {
        let bytes = write(&Bundle { cmdline: Some(b"quiet\n\0"), ..sample() });
        assert_eq!(Bundle::parse(&bytes).unwrap().cmdline, Some(&b"quiet"[..]));
    }

    proptest! {
        #[test]
        fn any_content_reads_back(k in proptest::collection::vec(any::<u8>(), 0..9000),
                                  i in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let bundle = Bundle { kernel: &k, initrd: Some(&i), cmdline: None, config: Some(b"c") };
            let bytes = write(&bundle);
            prop_assert_eq!(Bundle::parse(&bytes).unwrap(), bundle);
        }

        #[test]
        fn damage_never_panics(at in 0usize..13000, value in any::<u8>(), cut in 0usize..13000) {
            let mut bytes = write(&sample());
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            let _ = Bundle::parse(&bytes);
        }
    }
}
