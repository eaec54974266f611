//! Importing guests of Xen's: what describes one is read, and becomes a plan for a pack.
//!
//! - [`xl`]: configurations of xl and xm;
//! - [`xva`]: archives of XenServer and XCP-ng;
//! - [`ovf`]: OVF descriptions with their disks;
//! - [`bare`]: disks and partitions without any description;
//! - [`host`]: files that stand for those of the old host.
//!
//! All of this reads bytes nobody vouches for, and never writes to what it reads.

pub mod bare;
pub mod host;
pub mod options;
pub mod ovf;
pub mod xl;
pub mod xva;
pub mod xva_xml;

use crate::image::bytes::{Image, ReadAt};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// What a file describes a guest by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A configuration of xl or xm.
    Xl,
    /// An XVA archive.
    Xva,
    /// An OVF description.
    Ovf,
    /// A disk or a partition.
    Disk,
}

/// Descriptions are not longer than this.
pub const MAX_TEXT: u64 = 16 << 20;

/// What the file is.
///
/// # Errors
/// It cannot be read, or is something that has to be unpacked first.
pub fn kind(path: &Path) -> Result<Kind> {
    const TAR: usize = 257;
    let name = || path.display().to_string();
    let meta = std::fs::metadata(path).with_context(name)?;
    ensure!(!meta.is_dir(), "{} is a directory", name());
    let image = Image::open(path).with_context(name)?;
    ensure!(!image.is_empty(), "{} is empty", name());
    let len = usize::try_from(image.len().min(4096))?;
    let mut head = vec![0; len];
    image.read_at(0, &mut head).with_context(name)?;
    match head.as_slice() {
        [0x1f, 0x8b, ..] => bail!("{} is compressed: unpack it first, by gunzip", name()),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            bail!("{} is compressed: unpack it first, by unzstd", name())
        }
        [0xfd, b'7', b'z', ..] => bail!("{} is compressed: unpack it first, by unxz", name()),
        [b'P', b'K', 3, 4, ..] => bail!("{} is compressed: unpack it first, by unzip", name()),
        _ => {}
    }
    if head.get(TAR..TAR + 5) == Some(b"ustar") {
        return Ok(Kind::Xva);
    }
    // VMDK's descriptions are text, too.
    if head.contains(&0) || image.len() > MAX_TEXT || head.starts_with(b"# Disk DescriptorFile") {
        return Ok(Kind::Disk);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head).trim_ascii_start();
    Ok(if text.starts_with(b"<") { Kind::Ovf } else { Kind::Xl })
}

/// What pygrub is told by its options (`tools/pygrub/src/pygrub`): the menu's entry, words for the
/// kernel, and what of it has no meaning here.
#[must_use]
pub fn pygrub_options(text: &str) -> (Option<String>, Option<String>, Vec<String>) {
    let (mut entry, mut args, mut left_out) = (None, None, Vec::new());
    let plain = |text: &str| text.trim_matches(['[', ']', '\'', '"', ' ']).to_owned();
    for word in text.split([',', ' ']).map(plain).filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("--entry", value)) => entry = Some(value.to_owned()),
            Some(("--args", value)) => args = Some(value.to_owned()),
            _ if matches!(word.as_str(), "-q" | "--quiet" | "--not-really") => {}
            _ => left_out
                .push(format!("{word} of the boot loader: --kernel and --initrd say it here")),
        }
    }
    (entry, args, left_out)
}

/// Refuses a guest that Xen did not run as PV guest, unless that is wanted.
///
/// # Errors
/// It is not wanted.
pub fn check_mode(mode: &str, as_pv: bool) -> Result<()> {
    ensure!(
        as_pv,
        "this is {mode} guest, and PV guests run here: --as-pv tries whether its kernel can be one"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        for (data, expected) in [
            (b"name = 'x'\n".to_vec(), Kind::Xl),
            (b"\xef\xbb\xbf <?xml version='1.0'?>".to_vec(), Kind::Ovf),
            (tar, Kind::Xva),
            (vec![0; 1024], Kind::Disk),
            (b"# Disk DescriptorFile\nversion=1\n".to_vec(), Kind::Disk),
        ] {
            std::fs::write(&path, data).unwrap();
            assert_eq!(kind(&path).unwrap(), expected);
        }
        for (data, said) in
            [(&b""[..], "empty"), (b"\x1f\x8b\x08", "gunzip"), (b"PK\x03\x04", "unzip")]
        {
            std::fs::write(&path, data).unwrap();
            assert!(kind(&path).unwrap_err().to_string().contains(said));
        }
        assert!(kind(dir.path()).unwrap_err().to_string().contains("directory"));
        assert!(kind(&dir.path().join("none")).is_err());
    }

    #[test]
    fn options_of_pygrub() {
        let (entry, args, left_out) =
            pygrub_options("['--entry=2', '-q', \"--args=single\", '--kernel=/k']");
        assert_eq!((entry.as_deref(), args.as_deref()), (Some("2"), Some("single")));
        assert_eq!(left_out.len(), 1);
        assert_eq!(pygrub_options("").0, None);
    }
}
