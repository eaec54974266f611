//! File systems, as far as a boot loader needs them: for reading.

use super::bytes::ReadAt;
use super::format::{Content, content};
use super::{ext, fat};
use anyhow::{Result, bail};
use std::rc::Rc;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of so many bytes.
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
    /// A device, a socket, a pipe.
    Special,
}

/// A file system. Paths are absolute, without `.`, `..` and double slashes, and
/// no directory in them is a link.
pub trait FileSystem {
    /// Its UUID as `search --fs-uuid` wants it.
    fn uuid(&self) -> String;

    /// Its label; empty if it has none.
    fn label(&self) -> String;

    /// What `path` is, links not followed; `None` if there is nothing.
    fn kind(&self, path: &str) -> Result<Option<Kind>>;

    /// Where the link `path` leads.
    fn link(&self, path: &str) -> Result<String>;

    /// All of the file `path`, if it is not longer than `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>>;

    /// Names in the directory `path`, without `.` and `..`. Names that are not
    /// UTF-8 are left out: no boot loader's configuration has such.
    fn list(&self, path: &str) -> Result<Vec<String>>;
}

/// Opens what `part` holds. Errors name the file system.
pub fn open(part: Rc<dyn ReadAt>) -> Result<Box<dyn FileSystem>> {
    match content(&*part) {
        Some(Content::Ext) => Ok(Box::new(ext::Ext::open(part)?)),
        Some(Content::Fat) => Ok(Box::new(fat::Fat::open(part)?)),
        Some(Content::Other(name)) => bail!("{name}, which is not read here"),
        None => bail!("nothing that is recognised"),
    }
}

/// Refuses a file that is longer than any of its sort.
pub(super) fn check_len(path: &str, len: u64, limit: u64) -> Result<usize> {
    if len > limit {
        bail!("{path} has {} MiB; at most {} MiB are read", len >> 20, limit >> 20);
    }
    Ok(usize::try_from(len)?)
}
