//! The store's state, and what backends do with it.

use alloc::vec::Vec;
use core::mem::size_of;

use xen_abi::Errno;
use xen_abi::io::xs_wire::{ABS_PATH_MAX, PAYLOAD_MAX};

use super::connection::Connection;
use super::db::Caller;
use super::node::Perms;
use super::path;
use super::pool::{Buf, NIL, Payer, Pool, SLOT_BYTES};
use super::transaction::Transaction;
use super::watch::{Match, Side, Wanted, Watcher};

/// Buckets of the hash table.
const BUCKETS: usize = 1024;
/// Bytes of the buffers beside the pool: a request, a reply, two paths, an event.
const BUFFERS: usize = 2 * (PAYLOAD_MAX + 32) + 2 * ABS_PATH_MAX + PAYLOAD_MAX;

/// What a guest may have. Where Xen's daemon has a quota, the default is its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes it owns.
    pub nodes: u32,
    /// A node with permissions, value and children's names is smaller, in bytes.
    pub node_size: usize,
    /// Watches.
    pub watches: u32,
    /// Transactions at a time.
    pub transactions: u16,
    /// Nodes a transaction looks at.
    pub transaction_nodes: u32,
    /// Events waiting for it.
    pub events: u32,
    /// Watches of backends.
    pub backend_watches: u32,
    /// Events waiting for backends.
    pub backend_events: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 1000,
            node_size: 2048,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            events: 256,
            backend_watches: 256,
            backend_events: 128,
        }
    }
}

/// What a store takes by default: some 1300 nodes of ordinary length.
pub const DEFAULT_BYTES: usize = 256 << 10;

/// Sizes and limits of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes the store takes, once and for all. A quarter is kept for backends. At most 3 MiB
    /// are of use, and less than 64 KiB leave no room for a domain.
    pub bytes: usize,
    /// A number the guest does not know.
    pub seed: u32,
    /// What the guest may have.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes: DEFAULT_BYTES, seed: 0, limits: Limits::default() }
    }
}

/// The store. Its public methods are domain 0's; paths are absolute, or special (`@…`).
#[derive(Debug)]
pub struct Store {
    pub(super) pool: Pool,
    pub(super) buckets: Vec<u16>,
    pub(super) seed: u32,
    pub(super) limits: Limits,
    /// The last given.
    pub(super) generation: u64,
    /// Nodes of the store that the guest owns.
    pub(super) guest_nodes: u32,
    pub(super) transactions: Vec<Transaction>,
    pub(super) next_transaction: u32,
    pub(super) guest: Watcher,
    pub(super) dom0: Watcher,
    pub(super) connection: Connection,
    /// The path a walk is at.
    pub(super) walk: Buf,
    /// A watch's path.
    pub(super) path: Buf,
    /// An event's text.
    pub(super) text: Buf,
}

impl Store {
    /// A store with an empty tree (`setup_structure` of xenstored).
    ///
    /// # Errors
    /// `ENOMEM`, also where `config.bytes` is too small for any tree.
    pub fn new(config: &Config) -> Result<Self, Errno> {
        let nr_transactions = usize::from(config.limits.transactions);
        let fixed = BUFFERS + BUCKETS * 2 + nr_transactions * size_of::<Transaction>();
        let slots = config.bytes.checked_sub(fixed).ok_or(Errno::ENOMEM)? / SLOT_BYTES;
        let mut buckets = Vec::new();
        buckets.try_reserve_exact(BUCKETS).map_err(|_| Errno::ENOMEM)?;
        buckets.resize(BUCKETS, NIL);
        let mut transactions = Vec::new();
        transactions.try_reserve_exact(nr_transactions).map_err(|_| Errno::ENOMEM)?;
        transactions.resize(nr_transactions, Transaction::UNUSED);
        let mut store = Self {
            pool: Pool::new(slots, slots / 4)?,
            buckets,
            seed: config.seed,
            limits: config.limits,
            generation: 0,
            guest_nodes: 0,
            transactions,
            next_transaction: 1,
            guest: Watcher::new(config.limits.events),
            dom0: Watcher::new(config.limits.backend_events),
            connection: Connection::new()?,
            walk: Buf::new(ABS_PATH_MAX)?,
            path: Buf::new(ABS_PATH_MAX)?,
            text: Buf::new(PAYLOAD_MAX)?,
        };
        store.insert(Payer::Dom0, 0, b"/", Perms::private())?;
        store.write(b"/tool/xenstored", b"")?;
        store.insert(Payer::Dom0, 0, b"@introduceDomain", Perms::private())?;
        store.insert(Payer::Dom0, 0, b"@releaseDomain", Perms::readable_by_all())?;
        Ok(store)
    }

    /// Reads a node's value into `buf`; what was read.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` for a bad path; `E2BIG` where `buf` is too small.
    pub fn read<'b>(&self, path: &[u8], buf: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        path::check(path, false, true)?;
        let node = self.find(0, path).and_then(|at| self.pool.node(at)).ok_or(Errno::ENOENT)?;
        let value = buf.get_mut(..node.value.len()).ok_or(Errno::E2BIG)?;
        self.pool.read_at(node.value, 0, value);
        Ok(value)
    }

    /// Whether there is a node.
    #[must_use]
    pub fn exists(&self, path: &[u8]) -> bool {
        self.find(0, path).is_some()
    }

    /// Writes a node's value, creating it and its parents where needed.
    ///
    /// # Errors
    /// `EINVAL` for a bad path, `E2BIG` for a value no message can hold, `ENOMEM`.
    pub fn write(&mut self, path: &[u8], value: &[u8]) -> Result<(), Errno> {
        path::check(path, false, true)?;
        if value.len() > PAYLOAD_MAX {
            return Err(Errno::E2BIG);
        }
        match self.find(0, path) {
            Some(at) => self.set_value(Caller::DOM0, at, value)?,
            None => self.create(Caller::DOM0, path, value)?,
        }
        self.changed(path, None);
        Ok(())
    }

    /// Fires the watches for a node that exists.
    fn changed(&mut self, path: &[u8], before: Option<Perms>) {
        let now = self.find(0, path).and_then(|at| self.pool.node(at)).map(|node| node.perms);
        self.fire(Caller::DOM0, path, Match::Subtree, now, before);
    }

    /// Creates a node that may exist already.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn mkdir(&mut self, path: &[u8]) -> Result<(), Errno> {
        path::check(path, false, true)?;
        if self.exists(path) {
            return Ok(());
        }
        self.create(Caller::DOM0, path, b"")?;
        self.changed(path, None);
        Ok(())
    }

    /// Removes a node and all below it. It is no error where it does not exist, but its parent
    /// must.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`.
    pub fn rm(&mut self, path: &[u8]) -> Result<(), Errno> {
        path::check(path, false, true)?;
        if path == b"/" {
            return Err(Errno::EINVAL);
        }
        if self.exists(path) {
            return self.remove(Caller::DOM0, path);
        }
        if self.exists(path::parent(path)) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// Calls `f` with the name of each child, oldest first.
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`.
    pub fn directory(&mut self, path: &[u8], mut f: impl FnMut(&[u8])) -> Result<(), Errno> {
        path::check(path, false, true)?;
        let node = self.find(0, path).and_then(|at| self.pool.node(at)).ok_or(Errno::ENOENT)?;
        let children = node.children;
        let mut name = core::mem::take(&mut self.walk);
        let mut offset = 0;
        while offset < children.len() {
            name.clear();
            let Some(len) = self.pool.string_at(children, offset, &mut name) else { break };
            f(name.get());
            offset += len + 1;
        }
        self.walk = name;
        Ok(())
    }

    /// Sets a node's permissions, in the protocol's text form (`n1`, `r0`).
    ///
    /// # Errors
    /// `ENOENT`, `EINVAL`, `ENOSPC` for too many.
    pub fn set_perms(&mut self, path: &[u8], perms: &[&[u8]]) -> Result<(), Errno> {
        path::check(path, true, true)?;
        let mut new = Perms::ABSENT;
        perms.iter().try_for_each(|entry| new.add(entry))?;
        if new.len() == 0 {
            return Err(Errno::EINVAL);
        }
        if !new.owner_exists() {
            return Err(Errno::ENOENT);
        }
        let at = self.find(0, path).ok_or(Errno::ENOENT)?;
        let before = self.pool.node(at).map(|node| node.perms);
        self.set_node_perms(Caller::DOM0, at, new)?;
        self.changed(path, before);
        Ok(())
    }

    /// Watches a path and all below it; an event for the path itself comes at once. Events come
    /// with `token`, which need not be unique.
    ///
    /// # Errors
    /// `EINVAL`, `EEXIST` for the same path and token, `ENOSPC` for too many, `ENOMEM`.
    pub fn watch(&mut self, path: &[u8], token: u32) -> Result<(), Errno> {
        path::check(path, true, true)?;
        let wanted = Wanted { path, token: b"", number: token };
        let at = self.add_watch(Side::Dom0, &wanted, None, false)?;
        self.announce(Side::Dom0, at);
        Ok(())
    }

    /// Removes a watch. Events it caused already still come.
    ///
    /// # Errors
    /// `EINVAL`, `ENOENT`.
    pub fn unwatch(&mut self, path: &[u8], token: u32) -> Result<(), Errno> {
        path::check(path, true, true)?;
        self.remove_watch(Side::Dom0, &Wanted { path, token: b"", number: token })
    }

    /// The next event of domain 0's watches: token and path (its first bytes where `buf` is too
    /// small). Events are merged where many are waiting: look at the whole of what was watched.
    pub fn next_internal_event<'b>(&mut self, buf: &'b mut [u8]) -> Option<(u32, &'b [u8])> {
        self.find_lost(Side::Dom0);
        let event = self.first_event(Side::Dom0)?;
        let len = self.pool.read_at(event.text, 0, buf);
        let token = self.pop_event(Side::Dom0)?;
        Some((token, buf.get(..len).unwrap_or_default()))
    }

    /// Whether [`Self::next_internal_event`] has one.
    pub(super) const fn internal_waiting(&self) -> bool {
        self.watcher(Side::Dom0).waiting() != 0
    }
}
