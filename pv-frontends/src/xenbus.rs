//! What backends need of xenstore.
//!
//! A device is a directory for each end: the backend's, owned by domain 0 and readable by the
//! guest, and the frontend's, owned by the guest. Each holds a `state` node its end alone writes.
//! Backends here are level-triggered: they are told that something changed, and look.

use core::fmt::{self, Write as _};

use arrayvec::ArrayString;
use xen_abi::io::xenbus::XenbusState;
use xen_abi::mm::DomId;

/// Longest absolute path (`XENSTORE_ABS_PATH_MAX` is 3072; a device's paths are far below this).
pub const PATH_MAX: usize = 160;
/// Longest value a backend reads or writes.
pub const VALUE_MAX: usize = 128;

/// A path.
pub type Path = ArrayString<PATH_MAX>;
/// A value.
pub type Value = ArrayString<VALUE_MAX>;

/// Writes into a fixed string; `None` where it does not fit.
#[must_use]
pub fn text<const N: usize>(args: fmt::Arguments<'_>) -> Option<ArrayString<N>> {
    let mut out = ArrayString::new();
    out.write_fmt(args).ok().map(|()| out)
}

/// The store did not do it (no space, no such node).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreError;

/// xenstore as domain 0 uses it, outside transactions. Paths are absolute.
pub trait Store {
    /// The value of a node; `None` where there is no node or its value is not text of at most
    /// [`VALUE_MAX`] bytes.
    fn read(&self, path: &str) -> Option<Value>;
    /// Writes a node; missing ones above it come into being, with their parent's permissions.
    ///
    /// # Errors
    /// No space.
    fn write(&self, path: &str, value: &str) -> Result<(), StoreError>;
    /// Makes an owner the owner of a node, and lets one more domain read it.
    ///
    /// # Errors
    /// No such node.
    fn set_permissions(&self, path: &str, owner: DomId, reader: DomId) -> Result<(), StoreError>;
    /// Removes a node and all below it, if it is there.
    fn remove(&self, path: &str);
}

/// A number as xenstore has it: decimal, or hexadecimal behind `0x`.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// One end's directory.
#[derive(Clone, Copy, Debug)]
pub struct Dir<'a, S: ?Sized> {
    store: &'a S,
    path: Path,
}

impl<'a, S: Store + ?Sized> Dir<'a, S> {
    /// The directory at a path.
    #[must_use]
    pub const fn new(store: &'a S, path: Path) -> Self {
        Self { store, path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A directory in it.
    #[must_use]
    pub fn sub(&self, name: fmt::Arguments<'_>) -> Option<Self> {
        Some(Self { store: self.store, path: text(format_args!("{}/{name}", self.path))? })
    }

    fn node(&self, name: &str) -> Option<Path> {
        text(format_args!("{}/{name}", self.path))
    }

    /// A node's text.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Value> {
        self.store.read(&self.node(name)?)
    }

    /// A node's number.
    #[must_use]
    pub fn read_number(&self, name: &str) -> Option<u64> {
        number(&self.read(name)?)
    }

    /// Writes a node.
    ///
    /// # Errors
    /// As [`Store::write`], and where path or value are too long.
    pub fn write(&self, name: &str, value: fmt::Arguments<'_>) -> Result<(), StoreError> {
        let path = self.node(name).ok_or(StoreError)?;
        let value: Value = text(value).ok_or(StoreError)?;
        self.store.write(&path, &value)
    }

    /// Removes a node.
    pub fn remove(&self, name: &str) {
        if let Some(path) = self.node(name) {
            self.store.remove(&path);
        }
    }

    /// The state of this end: unknown where there is none.
    #[must_use]
    pub fn state(&self) -> XenbusState {
        self.read("state").map_or(XenbusState::UNKNOWN, |text| XenbusState::parse(text.as_bytes()))
    }

    /// Sets the state of this end.
    ///
    /// # Errors
    /// As [`Dir::write`].
    pub fn set_state(&self, state: XenbusState) -> Result<(), StoreError> {
        self.write("state", format_args!("{}", state.0))
    }
}
