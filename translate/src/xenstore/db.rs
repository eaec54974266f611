//! The tree, as flat as in xenstored: every node is found by its whole path.
//!
//! A transaction sees its own copies (Xen's `transaction.c`): the first look at a node copies it,
//! or remembers that there was none; all later looks and changes are at the copy.

use xen_abi::Errno;

use super::node::{DOM0, GUEST, Generation, Node, Perms, size};
use super::path::{below, name, parent};
use super::pool::{Buf, Chain, NIL, Payer, blocks};
use super::store::Store;
use super::watch::Match;

/// Who asks, and in which transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) dom: u16,
    /// 0 = none, else 1 + its index.
    pub(super) space: u16,
}

impl Caller {
    /// A backend.
    pub(super) const DOM0: Self = Self { dom: DOM0, space: 0 };
    /// The guest, outside of transactions.
    pub(super) const GUEST: Self = Self { dom: GUEST, space: 0 };

    pub(super) const fn privileged(self) -> bool {
        self.dom == DOM0
    }

    pub(super) const fn payer(self) -> Payer {
        if self.privileged() { Payer::Dom0 } else { Payer::Guest }
    }
}

impl Store {
    /// Hash of a node's key: FNV-1a, from a seed the guest does not know.
    fn hash(&self, space: u16, path: impl Iterator<Item = u8>) -> (usize, u16) {
        let start = self.seed ^ u32::from(space).wrapping_mul(0x9e37_79b9);
        let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let hash = path.fold(start, mix);
        let hash = (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d);
        ((hash as usize) % self.buckets.len().max(1), (hash >> 16) as u16)
    }

    /// A node of the store (space 0) or of a transaction's view.
    pub(super) fn find(&self, space: u16, path: &[u8]) -> Option<u16> {
        let (bucket, tag) = self.hash(space, path.iter().copied());
        let mut at = *self.buckets.get(bucket)?;
        while let Some(node) = self.pool.node(at) {
            if node.tag == tag && node.space == space && self.pool.is(node.path, path) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    /// A node of another space with the path of this one.
    pub(super) fn find_same(&self, space: u16, like: &Node) -> Option<u16> {
        let (bucket, tag) = self.hash(space, self.pool.pieces(like.path).flatten().copied());
        let mut at = *self.buckets.get(bucket)?;
        while let Some(node) = self.pool.node(at) {
            if node.tag == tag && node.space == space && self.pool.same(node.path, like.path) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    fn key(&self, node: &Node) -> (usize, u16) {
        self.hash(node.space, self.pool.pieces(node.path).flatten().copied())
    }

    /// Puts a node into its bucket.
    fn link(&mut self, at: u16) {
        let Some(node) = self.pool.node(at) else { return };
        let (bucket, tag) = self.key(node);
        let Some(head) = self.buckets.get_mut(bucket) else { return };
        if let Some(node) = self.pool.node_mut(at) {
            (node.tag, node.next) = (tag, *head);
            *head = at;
        }
    }

    /// Takes a node out of its bucket.
    fn unlink(&mut self, at: u16) {
        let Some(node) = self.pool.node(at).copied() else { return };
        let (bucket, _) = self.key(&node);
        let Some(head) = self.buckets.get_mut(bucket) else { return };
        if *head == at {
            *head = node.next;
            return;
        }
        let mut before = *head;
        while let Some(other) = self.pool.node_mut(before) {
            if other.next == at {
                other.next = node.next;
                return;
            }
            before = other.next;
        }
    }

    pub(super) fn next_generation(&mut self) -> Generation {
        self.generation += 1;
        Generation::new(self.generation)
    }

    /// Makes a node without value and children; its slots have been asked for.
    pub(super) fn insert(
        &mut self,
        payer: Payer,
        space: u16,
        path: &[u8],
        perms: Perms,
    ) -> Result<u16, Errno> {
        self.pool.need(payer, 1 + blocks(path.len()))?;
        let node = Node {
            generation: self.next_generation(),
            tag: 0,
            next: NIL,
            space,
            access: NIL,
            path: self.pool.store(payer, path)?,
            value: Chain::EMPTY,
            children: Chain::EMPTY,
            perms,
        };
        let at = self.pool.put_node(payer, node)?;
        self.link(at);
        if space == 0 && perms.owner() == GUEST {
            self.guest_nodes += 1;
        }
        Ok(at)
    }

    /// Removes a node for good, from the store or from a transaction's view.
    pub(super) fn discard(&mut self, at: u16) {
        self.unlink(at);
        let Some(node) = self.pool.node(at).copied() else { return };
        if node.space == 0 && node.perms.owner() == GUEST {
            self.guest_nodes = self.guest_nodes.saturating_sub(1);
        }
        for text in [node.path, node.value, node.children] {
            self.pool.drop_text(text);
        }
        self.pool.give(at);
    }

    /// Makes the view's node at `at` the store's: it replaces the one at `old`, if any.
    pub(super) fn publish(&mut self, at: u16, old: Option<u16>) {
        if let Some(old) = old {
            self.discard(old);
        }
        self.unlink(at);
        let generation = self.next_generation();
        if let Some(node) = self.pool.node_mut(at) {
            (node.space, node.access, node.generation) = (0, NIL, generation);
            self.guest_nodes += u32::from(node.perms.owner() == GUEST);
        }
        self.link(at);
    }

    /// The node the caller sees; in a transaction this makes it one the transaction depends on.
    pub(super) fn lookup(&mut self, c: Caller, path: &[u8]) -> Result<Option<u16>, Errno> {
        if c.space == 0 {
            return Ok(self.find(0, path));
        }
        let at = match self.find(c.space, path) {
            Some(at) => at,
            None => self.enter(c, path)?,
        };
        Ok(self.pool.node(at).is_some_and(Node::exists).then_some(at))
    }

    /// A node changes: it gets a generation, and its transaction knows.
    fn touch(&mut self, at: u16) {
        let generation = self.next_generation();
        let Some(node) = self.pool.node_mut(at) else { return };
        node.generation = generation;
        let access = node.access;
        if let Some(access) = self.pool.access_mut(access) {
            access.modified = true;
        }
    }

    /// What a node may grow to.
    fn check_size(
        &self,
        c: Caller,
        perms: usize,
        value: usize,
        children: usize,
    ) -> Result<(), Errno> {
        if !c.privileged() && size(perms, value, children) >= self.limits.node_size {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// Gives a node that exists a value.
    pub(super) fn set_value(&mut self, c: Caller, at: u16, value: &[u8]) -> Result<(), Errno> {
        let node = *self.pool.node(at).ok_or(Errno::ENOENT)?;
        let checked = self.check_size(c, node.perms.len(), value.len(), node.children.len());
        let new = checked.and_then(|()| self.pool.store(c.payer(), value));
        let new = new.inspect_err(|_| self.fail(c))?;
        self.pool.drop_text(node.value);
        if let Some(node) = self.pool.node_mut(at) {
            node.value = new;
        }
        self.touch(at);
        Ok(())
    }

    /// Gives a node that exists permissions.
    pub(super) fn set_node_perms(&mut self, c: Caller, at: u16, perms: Perms) -> Result<(), Errno> {
        let node = *self.pool.node(at).ok_or(Errno::ENOENT)?;
        let checked = self.check_size(c, perms.len(), node.value.len(), node.children.len());
        checked.inspect_err(|_| self.fail(c))?;
        if let Some(node) = self.pool.node_mut(at) {
            let owned = |perms: Perms| i32::from(perms.owner() == GUEST);
            let change = owned(perms) - owned(node.perms);
            node.perms = perms;
            self.count_nodes(c, change);
        }
        self.touch(at);
        Ok(())
    }

    /// The guest owns more or fewer nodes.
    fn count_nodes(&mut self, c: Caller, change: i32) {
        match self.transaction_mut(c) {
            Some(transaction) => transaction.nodes += change,
            None => self.guest_nodes = self.guest_nodes.saturating_add_signed(change),
        }
    }

    /// Creates a node, and its parents where needed, with the permissions of the nearest parent
    /// that exists; the guest owns what it creates. All or nothing.
    pub(super) fn create(&mut self, c: Caller, path: &[u8], value: &[u8]) -> Result<(), Errno> {
        let mut base = parent(path);
        let mut missing = 1;
        let top = loop {
            match self.lookup(c, base)? {
                Some(at) => break at,
                None if base == b"/" => return Err(Errno::ENOENT),
                None => (base, missing) = (parent(base), missing + 1),
            }
        };
        if let Some(transaction) = self.transaction_mut(c) {
            transaction.created = true;
        }
        let top_node = *self.pool.node(top).ok_or(Errno::ENOENT)?;
        let mut perms = top_node.perms;
        if !c.privileged() {
            perms = perms.owned_by(c.dom);
            let in_transaction = self.transaction_mut(c).map_or(0, |transaction| transaction.nodes);
            let owned = self.guest_nodes.saturating_add_signed(in_transaction);
            if owned.saturating_add(missing) > self.limits.nodes {
                return Err(Errno::ENOSPC);
            }
        }
        let first = below(base, path);
        let children = top_node.children.len() + name(first).len() + 1;
        self.check_size(c, top_node.perms.len(), top_node.value.len(), children)?;
        let mut slots = blocks(children) - blocks(top_node.children.len()) + blocks(value.len());
        let mut level = first;
        while level != path {
            let next = below(level, path);
            self.check_size(c, perms.len(), 0, name(next).len() + 1)?;
            slots += 1 + blocks(level.len()) + blocks(name(next).len() + 1);
            level = next;
        }
        self.check_size(c, perms.len(), value.len(), 0)?;
        slots += 1 + blocks(path.len());
        self.pool.need(c.payer(), slots).inspect_err(|_| self.fail(c))?;
        self.create_levels(c, top, base, path, perms).inspect_err(|_| self.fail(c))?;
        if c.space != 0 && perms.owner() == GUEST {
            self.count_nodes(c, missing.cast_signed());
        }
        let at = self.lookup(c, path)?.ok_or(Errno::EIO)?;
        self.set_value(c, at, value)
    }

    /// Creates what is missing below `base`, whose node is `top`.
    fn create_levels(
        &mut self,
        c: Caller,
        top: u16,
        base: &[u8],
        path: &[u8],
        perms: Perms,
    ) -> Result<(), Errno> {
        let (mut above, mut level) = (top, base);
        while level != path {
            level = below(level, path);
            self.add_child(c, above, name(level))?;
            above = if c.space == 0 {
                self.insert(c.payer(), 0, level, perms)?
            } else {
                // Looking for it has made its place.
                let at = self.find(c.space, level).ok_or(Errno::EIO)?;
                if let Some(node) = self.pool.node_mut(at) {
                    node.perms = perms;
                }
                self.touch(at);
                at
            };
        }
        Ok(())
    }

    fn add_child(&mut self, c: Caller, at: u16, name: &[u8]) -> Result<(), Errno> {
        let mut children = self.pool.node(at).ok_or(Errno::EIO)?.children;
        let len = children.len() + name.len() + 1;
        if len > usize::from(u16::MAX) {
            return Err(Errno::ENOSPC);
        }
        self.pool.need(c.payer(), blocks(len) - blocks(children.len()))?;
        self.pool.append(c.payer(), &mut children, name)?;
        self.pool.append(c.payer(), &mut children, b"\0")?;
        if let Some(node) = self.pool.node_mut(at) {
            node.children = children;
        }
        self.touch(at);
        Ok(())
    }

    fn remove_child(&mut self, at: u16, name: &[u8]) {
        let Some(mut children) = self.pool.node(at).map(|node| node.children) else { return };
        // Names hold no NUL, so one is found where it follows the start or a NUL.
        let (mut offset, mut start, mut same) = (0, 0, true);
        let mut found = None;
        for byte in self.pool.pieces(children).flatten() {
            if *byte == 0 {
                if same && offset - start == name.len() {
                    found = Some(start);
                    break;
                }
                (start, same) = (offset + 1, true);
            } else {
                same = same && name.get(offset - start) == Some(byte);
            }
            offset += 1;
        }
        let Some(start) = found else { return };
        self.pool.cut(&mut children, start, name.len() + 1);
        if let Some(node) = self.pool.node_mut(at) {
            node.children = children;
        }
        self.touch(at);
    }

    /// Removes a node that exists and all below it, children first; each fires its watches.
    pub(super) fn remove(&mut self, c: Caller, path: &[u8]) -> Result<(), Errno> {
        let above = self.lookup(c, parent(path))?.ok_or(Errno::EINVAL)?;
        let mut walk = core::mem::take(&mut self.walk);
        walk.clear();
        let done = walk.add(path).and_then(|()| self.remove_tree(c, &mut walk, path.len()));
        self.walk = walk;
        done.inspect_err(|_| self.fail(c))?;
        self.remove_child(above, name(path));
        Ok(())
    }

    fn remove_tree(&mut self, c: Caller, walk: &mut Buf, root: usize) -> Result<(), Errno> {
        let mut arrived = true;
        loop {
            // Only in a transaction that cannot succeed any more can a child be missing.
            let at = self.lookup(c, walk.get())?.ok_or(Errno::EIO)?;
            let Some(node) = self.pool.node(at) else { return Err(Errno::EIO) };
            // The generation of a node that goes means nothing: it says which child is next.
            let child = if arrived { 0 } else { node.generation.count() as usize };
            let (children, perms) = (node.children, node.perms);
            let len = walk.get().len();
            if child < children.len() {
                walk.add(b"/")?;
                let name = self.pool.string_at(children, child, walk).ok_or(Errno::EIO)?;
                if let Some(node) = self.pool.node_mut(at) {
                    node.generation = Generation::new((child + name + 1) as u64);
                }
                arrived = true;
                continue;
            }
            arrived = false;
            let what = if len == root { Match::Subtree } else { Match::Exact };
            self.fire(c, walk.get(), what, Some(perms), None);
            self.delete(c, at);
            if len == root {
                return Ok(());
            }
            walk.cut(parent(walk.get()).len());
        }
    }

    /// Removes a node without children.
    fn delete(&mut self, c: Caller, at: u16) {
        if c.space == 0 {
            return self.discard(at);
        }
        self.touch(at);
        let Some(node) = self.pool.node_mut(at) else { return };
        let old = *node;
        (node.value, node.children, node.perms) = (Chain::EMPTY, Chain::EMPTY, Perms::ABSENT);
        self.pool.drop_text(old.value);
        self.pool.drop_text(old.children);
        if old.perms.owner() == GUEST {
            self.count_nodes(c, -1);
        }
    }

    /// The node, if the caller may do all of `need` with it. Else an error that says no more than
    /// the permissions of the nearest parent allow.
    pub(super) fn permitted(&mut self, c: Caller, path: &[u8], need: u8) -> Result<u16, Errno> {
        let found = self.lookup(c, path)?;
        let error = match found.and_then(|at| self.pool.node(at).map(|node| (at, node.perms))) {
            Some((at, perms)) if perms.of(c.dom) & need == need => return Ok(at),
            Some(_) => Errno::EACCES,
            None => Errno::ENOENT,
        };
        let mut above = path;
        while above != b"/" {
            above = parent(above);
            if let Some(at) = self.lookup(c, above)? {
                let allowed = self.pool.node(at).map_or(0, |node| node.perms.of(c.dom));
                return Err(if allowed & need != 0 { error } else { Errno::EACCES });
            }
        }
        Err(Errno::EACCES)
    }
}
