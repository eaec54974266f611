//! Grants that requests hold: a pool for a queue, lists for its slots.
//!
//! Few requests have as many segments as they may, so slots share: what is pinned goes into nodes
//! of one pool. A request is taken only while there are enough for the largest.

use alloc::boxed::Box;
use alloc::vec::Vec;

use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::SECTOR_BYTES;

/// No node.
pub(super) const NONE: u16 = u16::MAX;

/// A pinned grant, and the sectors of its page that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) gref: GrantRef,
    first: u8,
    count: u8,
}

impl Pinned {
    /// `offset` and `len` in bytes, of whole sectors within a page.
    pub(super) const fn new(gref: GrantRef, offset: u16, len: u16) -> Self {
        const SECTOR: u16 = SECTOR_BYTES as u16;
        Self { gref, first: (offset / SECTOR) as u8, count: (len / SECTOR) as u8 }
    }

    /// First byte in the page, and bytes.
    pub(super) const fn bytes(self) -> (u16, u16) {
        const SECTOR: u16 = SECTOR_BYTES as u16;
        (self.first as u16 * SECTOR, self.count as u16 * SECTOR)
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    pinned: Pinned,
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
        let mut nodes =
            boxed(Node { pinned: Pinned::new(GrantRef(0), 0, 0), next: NONE }, count.into())?;
        for (node, next) in nodes.iter_mut().zip(1..count) {
            node.next = next;
        }
        Some(Self { nodes, free: if count == 0 { NONE } else { 0 }, left: count })
    }

    /// Bytes of heap so many nodes take.
    pub(super) fn heap_bytes(count: u16) -> usize {
        usize::from(count) * size_of::<Node>()
    }

    /// Nodes that are free.
    pub(super) const fn left(&self) -> u16 {
        self.left
    }

    /// Puts a grant in front of a list; `false` where no node is free.
    pub(super) fn push(&mut self, list: &mut u16, pinned: Pinned) -> bool {
        let index = self.free;
        let Some(node) = self.nodes.get_mut(usize::from(index)) else { return false };
        self.free = node.next;
        *node = Node { pinned, next: *list };
        *list = index;
        self.left -= 1;
        true
    }

    /// Takes a list's first grant.
    pub(super) fn pop(&mut self, list: &mut u16) -> Option<Pinned> {
        let index = *list;
        let node = self.nodes.get_mut(usize::from(index))?;
        *list = node.next;
        node.next = self.free;
        self.free = index;
        self.left += 1;
        Some(node.pinned)
    }

    /// The grant at a place of a list, and the next place.
    pub(super) fn get(&self, at: u16) -> Option<(Pinned, u16)> {
        self.nodes.get(usize::from(at)).map(|node| (node.pinned, node.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_share_the_nodes() {
        let grant = |gref: u32| Pinned::new(GrantRef(gref), 512, 1024);
        let mut pool = Pool::new(3).unwrap();
        let (mut a, mut b) = (NONE, NONE);
        assert!(pool.push(&mut a, grant(1)) && pool.push(&mut b, grant(2)));
        assert!(pool.push(&mut a, grant(3)) && !pool.push(&mut b, grant(4)));
        assert_eq!(pool.left(), 0);
        let (last, before) = pool.get(a).unwrap();
        assert_eq!((last, pool.get(before).unwrap()), (grant(3), (grant(1), NONE)));
        assert_eq!((last.bytes(), pool.get(NONE)), ((512, 1024), None));
        assert_eq!([pool.pop(&mut a), pool.pop(&mut a)], [Some(grant(3)), Some(grant(1))]);
        assert_eq!((pool.pop(&mut a), pool.left()), (None, 2));
        assert!(pool.push(&mut b, grant(5)));
        assert_eq!([pool.pop(&mut b), pool.pop(&mut b)], [Some(grant(5)), Some(grant(2))]);
        assert_eq!((pool.pop(&mut b), pool.left(), a, b), (None, 3, NONE, NONE));
        let mut none = Pool::new(0).unwrap();
        assert!(!none.push(&mut a, grant(1)));
    }
}
