//! What is in an initrd: cpio archives one behind the other, of which the last may be packed.

use crate::kernel::pipe_through;
use anyhow::{Context, Result, bail};

/// Names of the files in it.
///
/// # Errors
/// It is damaged, or packed in a way unknown here.
pub fn names(initrd: &[u8]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = initrd;
    while rest.starts_with(b"070701") || rest.starts_with(b"070702") {
        rest = one_archive(rest, &mut names)?;
        let zeroes = rest.iter().take_while(|&&b| b == 0).count();
        rest = rest.get(zeroes..).unwrap_or_default();
    }
    let (program, args): (&str, &[&str]) = match rest {
        [] => return Ok(names),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dcq"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0xfd, b'7', b'z', ..] => ("xz", &["-dc"]),
        [b'B', b'Z', b'h', ..] => ("bzip2", &["-dc"]),
        [0x02, 0x21, ..] => ("lz4", &["-dc"]),
        [0x5d, 0, 0, ..] => ("xz", &["-dc", "--format=lzma"]),
        _ => bail!("an initrd packed in a way unknown here"),
    };
    let unpacked = pipe_through(program, args, rest)?;
    one_archive(&unpacked, &mut names)?;
    Ok(names)
}

/// Adds the names in the newc archive `bytes` begins with; gives what is behind.
fn one_archive<'a>(bytes: &'a [u8], names: &mut Vec<String>) -> Result<&'a [u8]> {
    const HEADER: usize = 110;
    let mut at: usize = 0;
    loop {
        let end = at.checked_add(HEADER).context("an archive without an end")?;
        let header = bytes.get(at..end).context("an archive cut short")?;
        let field = |index: usize| -> Result<usize> {
            let hex = header.get(6 + 8 * index..14 + 8 * index).unwrap_or_default();
            let hex = std::str::from_utf8(hex).context("an archive's header")?;
            usize::from_str_radix(hex, 16).context("an archive's header")
        };
        let (data, name) = (field(6)?, field(11)?);
        let name_end = end.checked_add(name).context("a name without an end")?;
        let name = bytes.get(end..name_end.saturating_sub(1)).context("a name cut short")?;
        at = name_end.next_multiple_of(4).checked_add(data).context("a file without an end")?;
        at = at.next_multiple_of(4);
        if name == b"TRAILER!!!" {
            return Ok(bytes.get(at..).unwrap_or_default());
        }
        names.push(String::from_utf8_lossy(name).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::Archive;

    #[test]
    fn archives_are_read() {
        let mut archive = Archive::new(Vec::new());
        archive.dir("lib").unwrap();
        archive.file("lib/a.ko", 0o644, b"abc").unwrap();
        let one = archive.finish().unwrap();
        assert_eq!(names(&one).unwrap(), ["lib", "lib/a.ko"]);
        let two = [one.as_slice(), &[0; 512], &one].concat();
        assert_eq!(names(&two).unwrap().len(), 4);
        for cut in [50, 115, 130] {
            assert!(names(&one[..cut]).is_err());
        }
        assert!(names(b"something else").is_err());
        assert!(names(&[]).unwrap().is_empty());
        let mut wild = one;
        wild[6 + 8 * 6..14 + 8 * 6].copy_from_slice(b"ffffffff");
        assert!(names(&wild).is_err());
    }
}
