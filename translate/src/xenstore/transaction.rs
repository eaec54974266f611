//! Transactions of the guest.
//!
//! Optimistic, as in xenstored: a transaction works on copies and remembers the generation each
//! node had when it was first looked at. It succeeds if none of them has changed since; what it
//! changed then becomes the store's, by moving, so that nothing can fail half-way.
//!
//! Backends need none: what they do under one lock is atomic.

use xen_abi::Errno;

use super::db::Caller;
use super::node::{Generation, Perms};
use super::pool::{Chain, NIL, Payer, blocks};
use super::store::Store;
use super::watch::Match;

/// A node a transaction has looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Next of the transaction.
    next: u16,
    /// The transaction's view of it.
    node: u16,
    /// What it was; [`Generation::NONE`] where there was none.
    generation: Generation,
    perms: Perms,
    pub(super) modified: bool,
    /// Watches fire when the transaction succeeds.
    fire: Option<Match>,
}

/// A transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    /// 0 = not in use.
    pub(super) id: u32,
    first: u16,
    last: u16,
    accesses: u32,
    /// Nodes the guest will own more, or fewer.
    pub(super) nodes: i32,
    /// It created something.
    pub(super) created: bool,
    /// It cannot succeed: something did not fit.
    failed: bool,
}

impl Transaction {
    pub(super) const UNUSED: Self =
        Self { id: 0, first: NIL, last: NIL, accesses: 0, nodes: 0, created: false, failed: false };
}

impl Store {
    pub(super) fn transaction_mut(&mut self, c: Caller) -> Option<&mut Transaction> {
        self.transactions.get_mut(usize::from(c.space.checked_sub(1)?))
    }

    /// The guest, in the transaction a request names.
    ///
    /// # Errors
    /// `ENOENT` where there is none of that id.
    pub(super) fn caller(&self, id: u32) -> Result<Caller, Errno> {
        if id == 0 {
            return Ok(Caller::GUEST);
        }
        let index = self.transactions.iter().position(|transaction| transaction.id == id);
        let space = index.and_then(|index| u16::try_from(index + 1).ok());
        Ok(Caller { space: space.ok_or(Errno::ENOENT)?, ..Caller::GUEST })
    }

    /// What a transaction did cannot be undone in part: it must fail as a whole.
    pub(super) fn fail(&mut self, c: Caller) {
        if let Some(transaction) = self.transaction_mut(c) {
            transaction.failed = true;
        }
    }

    /// Starts a transaction; its id.
    ///
    /// # Errors
    /// `ENOSPC` for too many.
    pub(super) fn begin(&mut self) -> Result<u32, Errno> {
        let unused = |transaction: &Transaction| transaction.id == 0;
        let index = self.transactions.iter().position(unused).ok_or(Errno::ENOSPC)?;
        // There are few transactions, so a free id is near.
        let taken = |id: u32| id == 0 || self.transactions.iter().any(|other| other.id == id);
        let mut id = self.next_transaction;
        while taken(id) {
            id = id.wrapping_add(1);
        }
        self.next_transaction = id.wrapping_add(1);
        self.next_generation();
        let transaction = self.transactions.get_mut(index).ok_or(Errno::ENOSPC)?;
        *transaction = Transaction { id, ..Transaction::UNUSED };
        Ok(id)
    }

    /// The transaction looks at a node for the first time.
    pub(super) fn enter(&mut self, c: Caller, path: &[u8]) -> Result<u16, Errno> {
        let entered = self.try_enter(c, path);
        entered.inspect_err(|_| self.fail(c))
    }

    fn try_enter(&mut self, c: Caller, path: &[u8]) -> Result<u16, Errno> {
        let limit = self.limits.transaction_nodes;
        let transaction = self.transaction_mut(c).ok_or(Errno::ENOENT)?;
        if transaction.accesses >= limit {
            return Err(Errno::ENOSPC);
        }
        let last = transaction.last;
        let old = self.find(0, path).and_then(|at| self.pool.node(at)).copied();
        let texts = old.map_or(0, |old| blocks(old.value.len()) + blocks(old.children.len()));
        self.pool.need(Payer::Guest, 2 + blocks(path.len()) + texts)?;
        let perms = old.map_or(Perms::ABSENT, |old| old.perms);
        let node = self.insert(Payer::Guest, c.space, path, perms)?;
        let generation = old.map_or(Generation::NONE, |old| old.generation);
        let access = Access { next: NIL, node, generation, perms, modified: false, fire: None };
        let access = self.pool.put_access(Payer::Guest, access)?;
        let (mut value, mut children) = (Chain::EMPTY, Chain::EMPTY);
        if let Some(old) = old {
            value = self.pool.copy(Payer::Guest, old.value)?;
            children = self.pool.copy(Payer::Guest, old.children)?;
        }
        if let Some(node) = self.pool.node_mut(node) {
            (node.access, node.value, node.children) = (access, value, children);
            node.generation = generation;
        }
        match self.pool.access_mut(last) {
            Some(last) => last.next = access,
            None => {
                let transaction = self.transaction_mut(c).ok_or(Errno::ENOENT)?;
                transaction.first = access;
            }
        }
        let transaction = self.transaction_mut(c).ok_or(Errno::ENOENT)?;
        transaction.last = access;
        transaction.accesses += 1;
        Ok(node)
    }

    /// Watches of a node changed in a transaction are to fire when it succeeds. One that is for
    /// all below the node outdoes one for the node alone.
    pub(super) fn fire_later(&mut self, c: Caller, path: &[u8], what: Match) {
        let access = self.find(c.space, path).and_then(|at| self.pool.node(at));
        let access = access.map_or(NIL, |node| node.access);
        match self.pool.access_mut(access) {
            Some(access) if access.fire == Some(Match::Subtree) => {}
            Some(access) => access.fire = Some(what),
            None => self.fail(c),
        }
    }

    /// Ends a transaction.
    ///
    /// # Errors
    /// `EAGAIN` where a node it looked at has changed, `ENOSPC` for too many nodes, `ENOMEM`
    /// where something had not fitted before. It is over in any case.
    pub(super) fn end(&mut self, c: Caller, commit: bool) -> Result<(), Errno> {
        let transaction = *self.transaction_mut(c).ok_or(Errno::ENOENT)?;
        let verdict = if commit { self.judge(&transaction) } else { Ok(()) };
        let apply = commit && verdict.is_ok();
        let mut at = transaction.first;
        while let Some(access) = self.pool.access(at).copied() {
            self.pool.give(at);
            at = access.next;
            if apply && access.modified {
                self.apply(&access);
            } else {
                self.discard(access.node);
            }
        }
        if let Some(transaction) = self.transaction_mut(c) {
            *transaction = Transaction::UNUSED;
        }
        verdict
    }

    fn judge(&self, transaction: &Transaction) -> Result<(), Errno> {
        if transaction.failed {
            return Err(Errno::ENOMEM);
        }
        let nodes = self.guest_nodes.saturating_add_signed(transaction.nodes);
        if transaction.created && nodes > self.limits.nodes {
            return Err(Errno::ENOSPC);
        }
        let mut at = transaction.first;
        while let Some(access) = self.pool.access(at) {
            let now = self.original(access.node).and_then(|at| self.pool.node(at));
            if now.map_or(Generation::NONE, |node| node.generation) != access.generation {
                return Err(Errno::EAGAIN);
            }
            at = access.next;
        }
        Ok(())
    }

    /// The store's node that a transaction's view is of.
    fn original(&self, view: u16) -> Option<u16> {
        self.find_same(0, self.pool.node(view)?)
    }

    fn apply(&mut self, access: &Access) {
        let Some(view) = self.pool.node(access.node).copied() else { return };
        let old = self.find_same(0, &view);
        let exists = view.exists();
        let mut walk = core::mem::take(&mut self.walk);
        walk.clear();
        let copied = self.pool.pieces(view.path).try_for_each(|piece| walk.add(piece));
        if exists {
            self.publish(access.node, old);
        } else {
            self.discard(access.node);
            if let Some(old) = old {
                self.discard(old);
            }
        }
        if let (Some(what), Ok(())) = (access.fire, copied) {
            let before = (access.generation != Generation::NONE).then_some(access.perms);
            let now = self.find(0, walk.get()).and_then(|at| self.pool.node(at));
            let now = now.map(|node| node.perms);
            self.fire(Caller::GUEST, walk.get(), what, now, before);
        }
        self.walk = walk;
    }

    /// Ends all transactions without effect.
    pub(super) fn abandon_all(&mut self) {
        for space in 1..=self.transactions.len() {
            let c = Caller { space: space as u16, ..Caller::GUEST };
            if self.transaction_mut(c).is_some_and(|transaction| transaction.id != 0) {
                // Nothing is committed, so nothing is refused.
                let _ = self.end(c, false);
            }
        }
    }
}
