//! What backends need of xenstore.
//!
//! A device is a directory for each end: the backend's, owned by domain 0 and readable by the
//! guest, and the frontend's, owned by the guest. Each holds a `state` node its end alone writes.
//! Backends here are level-triggered: they are told that something changed, and look.

use core::fmt::{self, Write as _};

use arrayvec::{ArrayString, ArrayVec};
use translate::xenstore;
use xen_abi::io::xenbus::XenbusState;

/// Longest absolute path of a device's nodes (`XENSTORE_ABS_PATH_MAX` is 3072).
pub const PATH_MAX: usize = 160;
/// Longest value a backend reads or writes.
pub const VALUE_MAX: usize = 128;
/// Nodes a device's directory starts with, at most.
const NODES_MAX: usize = 16;

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

/// xenstore as domain 0 uses it. Paths are absolute.
pub trait Store {
    /// The value of a node; `None` where there is no node or its value is not text of at most
    /// [`VALUE_MAX`] bytes.
    fn read(&mut self, path: &str) -> Option<Value>;
    /// Writes a node; missing ones above it come into being.
    ///
    /// # Errors
    /// No space.
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError>;
    /// Makes the directories of a device of the guest's, each with its standard nodes and those
    /// given, both ends in state 1.
    ///
    /// # Errors
    /// No space.
    fn add_device(
        &mut self,
        kind: &str,
        id: u32,
        front: &[(&str, &str)],
        back: &[(&str, &str)],
    ) -> Result<(), StoreError>;
    /// Removes both directories of a device.
    ///
    /// # Errors
    /// There are none.
    fn remove_device(&mut self, kind: &str, id: u32) -> Result<(), StoreError>;
}

impl Store for xenstore::Store {
    fn read(&mut self, path: &str) -> Option<Value> {
        let mut buf = [0; VALUE_MAX];
        let value = Self::read(self, path.as_bytes(), &mut buf).ok()?;
        Value::from(core::str::from_utf8(value).ok()?).ok()
    }
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        Self::write(self, path.as_bytes(), value.as_bytes()).map_err(|_| StoreError)
    }
    fn add_device(
        &mut self,
        kind: &str,
        id: u32,
        front: &[(&str, &str)],
        back: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        type Nodes<'a> = ArrayVec<(&'a str, &'a [u8]), NODES_MAX>;
        fn nodes<'a>(nodes: &[(&'a str, &'a str)]) -> Nodes<'a> {
            nodes.iter().take(NODES_MAX).map(|(name, value)| (*name, value.as_bytes())).collect()
        }
        let (front, back) = (nodes(front), nodes(back));
        let device = xenstore::Device { kind, id, front: &front, back: &back };
        Self::add_device(self, &device).map_err(|_| StoreError)
    }
    fn remove_device(&mut self, kind: &str, id: u32) -> Result<(), StoreError> {
        Self::remove_device(self, kind, id).map_err(|_| StoreError)
    }
}

/// The way to the store: it is locked while `f` runs, which may not call backends nor come here.
pub trait Stores {
    /// Runs `f` on the store; `None` where there is none.
    fn with<R>(&self, f: impl FnOnce(&mut dyn Store) -> R) -> Option<R>;
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

/// A directory of the store.
pub struct Dir<'a> {
    store: &'a mut dyn Store,
    path: Path,
}

impl<'a> Dir<'a> {
    /// The directory at a path.
    #[must_use]
    pub fn new(store: &'a mut dyn Store, path: Path) -> Self {
        Self { store, path }
    }

    /// Goes into a directory in it; `None`, and nothing happens, where the path gets too long.
    pub fn enter(&mut self, name: fmt::Arguments<'_>) -> Option<()> {
        self.path = text(format_args!("{}/{name}", self.path))?;
        Some(())
    }

    /// Goes back to the directory this one is in.
    pub fn leave(&mut self) {
        let end = self.path.rfind('/').unwrap_or(0);
        self.path.truncate(end);
    }

    fn node(&self, name: &str) -> Option<Path> {
        text(format_args!("{}/{name}", self.path))
    }

    /// A node's text.
    #[must_use]
    pub fn read(&mut self, name: &str) -> Option<Value> {
        let path = self.node(name)?;
        self.store.read(&path)
    }

    /// A node's number.
    #[must_use]
    pub fn read_number(&mut self, name: &str) -> Option<u64> {
        number(&self.read(name)?)
    }

    /// Writes a node.
    ///
    /// # Errors
    /// As [`Store::write`], and where path or value are too long.
    pub fn write(&mut self, name: &str, value: fmt::Arguments<'_>) -> Result<(), StoreError> {
        let path = self.node(name).ok_or(StoreError)?;
        let value: Value = text(value).ok_or(StoreError)?;
        self.store.write(&path, &value)
    }

    /// The state of this end: unknown where there is none.
    #[must_use]
    pub fn state(&mut self) -> XenbusState {
        self.read("state").map_or(XenbusState::UNKNOWN, |text| XenbusState::parse(text.as_bytes()))
    }

    /// Sets the state of this end.
    ///
    /// # Errors
    /// As [`Dir::write`].
    pub fn set_state(&mut self, state: XenbusState) -> Result<(), StoreError> {
        self.write("state", format_args!("{}", state.0))
    }
}
