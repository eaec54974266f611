//! Grants that requests hold: a pool for a queue, lists for its slots.
//!
//! Few requests have as many segments as they may, so slots share: what is pinned goes into nodes
//! of one pool. A request is taken only while there are enough for the largest.

use alloc::boxed::Box;
use alloc::vec::Vec;

use xen_abi::grant_table::GrantRef;

/// No node.
pub(super) const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    gref: GrantRef,
    next: u16,
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    nodes: Box<[Node]>,
    free: u16,
    left: u16,
}

/// `count` copies of a value; `None` where there is no memory.
pub(super) fn boxed<T: Clone>(value: T, count: usize) -> Option<Box<[T]>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.resize(count, value);
    Some(values.into_boxed_slice())
}

impl Pool {
    /// So many nodes, all free; `None` where there is no memory.
    pub(super) fn new(count: u16) -> Option<Self> {
        let count = count.min(NONE - 1);
        let mut nodes = boxed(Node { gref: GrantRef(0), next: NONE }, count.into())?;
        for (node, next) in nodes.iter_mut().zip(1..count) {
            node.next = next;
        }
        Some(Self { nodes, free: if count == 0 { NONE } else { 0 }, left: count })
    }

    /// Nodes that are free.
    pub(super) const fn left(&self) -> u16 {
        self.left
    }

    /// Puts a grant in front of a list; `false` where no node is free.
    pub(super) fn push(&mut self, list: &mut u16, gref: GrantRef) -> bool {
        let index = self.free;
        let Some(node) = self.nodes.get_mut(usize::from(index)) else { return false };
        self.free = node.next;
        *node = Node { gref, next: *list };
        *list = index;
        self.left -= 1;
        true
    }

    /// Takes a list's first grant.
    pub(super) fn pop(&mut self, list: &mut u16) -> Option<GrantRef> {
        let index = *list;
        let node = self.nodes.get_mut(usize::from(index))?;
        *list = node.next;
        node.next = self.free;
        self.free = index;
        self.left += 1;
        Some(node.gref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_share_the_nodes() {
        let mut pool = Pool::new(3).unwrap();
        let (mut a, mut b) = (NONE, NONE);
        assert!(pool.push(&mut a, GrantRef(1)) && pool.push(&mut b, GrantRef(2)));
        assert!(pool.push(&mut a, GrantRef(3)) && !pool.push(&mut b, GrantRef(4)));
        assert_eq!(pool.left(), 0);
        assert_eq!([pool.pop(&mut a), pool.pop(&mut a)], [Some(GrantRef(3)), Some(GrantRef(1))]);
        assert_eq!((pool.pop(&mut a), pool.left()), (None, 2));
        assert!(pool.push(&mut b, GrantRef(5)));
        assert_eq!([pool.pop(&mut b), pool.pop(&mut b)], [Some(GrantRef(5)), Some(GrantRef(2))]);
        assert_eq!((pool.pop(&mut b), pool.left(), a, b), (None, 3, NONE, NONE));
        let mut none = Pool::new(0).unwrap();
        assert!(!none.push(&mut a, GrantRef(1)));
    }
}
