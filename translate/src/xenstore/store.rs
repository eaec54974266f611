//! The store.

use xen_abi::Errno;

/// Sizes and limits of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes for nodes, watches, transactions and events together.
    pub pool_bytes: usize,
}

/// The store, as domain 0 sees it. Paths are absolute (or special, `@…`).
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// A store with an empty tree.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(config: &Config) -> Result<Self, Errno> {
        let _ = config;
        Ok(Self {})
    }

    /// Reads a node's value into `buf`; what was read.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` for a bad path; `E2BIG` where `buf` is too small.
    pub fn read<'b>(&mut self, path: &[u8], buf: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let _ = (path, buf);
        Err(Errno::ENOSYS)
    }

    /// Writes a node's value, creating it and its parents where needed.
    ///
    /// # Errors
    /// `EINVAL` for a bad path, `ENOMEM`.
    pub fn write(&mut self, path: &[u8], value: &[u8]) -> Result<(), Errno> {
        let _ = (path, value);
        Err(Errno::ENOSYS)
    }

    /// Creates a node that may exist already.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn mkdir(&mut self, path: &[u8]) -> Result<(), Errno> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// Removes a node and all below it. It is no error where it does not exist, but its parent
    /// must.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`.
    pub fn rm(&mut self, path: &[u8]) -> Result<(), Errno> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// Calls `f` with the name of each child, oldest first.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`.
    pub fn directory(&mut self, path: &[u8], f: impl FnMut(&[u8])) -> Result<(), Errno> {
        let _ = (path, f);
        Err(Errno::ENOSYS)
    }

    /// Sets a node's permissions, in the protocol's text form (`n1`, `r0`).
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`, `ENOSPC` for too many.
    pub fn set_perms(&mut self, path: &[u8], perms: &[&[u8]]) -> Result<(), Errno> {
        let _ = (path, perms);
        Err(Errno::ENOSYS)
    }

    /// Watches a path and all below it; an event for the path itself comes at once. Events come
    /// with `token`, which need not be unique.
    ///
    /// # Errors
    /// `EINVAL`, `EEXIST` for the same path and token, `ENOMEM`.
    pub fn watch(&mut self, path: &[u8], token: u32) -> Result<(), Errno> {
        let _ = (path, token);
        Err(Errno::ENOSYS)
    }

    /// Removes a watch. Events it caused already still come.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`.
    pub fn unwatch(&mut self, path: &[u8], token: u32) -> Result<(), Errno> {
        let _ = (path, token);
        Err(Errno::ENOSYS)
    }

    /// The next event of domain 0's watches: token and path (its first bytes where `buf` is too
    /// small). Events are merged where many are waiting: look at the whole of what was watched.
    pub fn next_internal_event<'b>(&mut self, buf: &'b mut [u8]) -> Option<(u32, &'b [u8])> {
        let _ = buf;
        None
    }
}
