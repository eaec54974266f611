//! The store examines itself (as `xenstore-control check` does): for tests and fuzzing.

use super::node::{GUEST, Node};
use super::path::{name, parent};
use super::pool::{Chain, blocks};
use super::store::Store;
use super::watch::Side;

impl Store {
    /// Whether all that is stored hangs together: every node is listed by the one above, every
    /// listed one exists, the guest's are counted right, and every slot has exactly one use.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self) -> Result<(), &'static str> {
        let mut owned = 0;
        let mut slots = 0;
        let mut walk = core::mem::take(&mut self.walk);
        let mut verdict = Ok(());
        for (at, node) in self.pool.nodes() {
            slots += 1 + self.text_slots(&[node.path, node.value, node.children]);
            walk.clear();
            if self.pool.pieces(node.path).try_for_each(|piece| walk.add(piece)).is_err() {
                verdict = Err("a path is too long");
            }
            let path = walk.get();
            if self.find(node.space, path) != Some(at) {
                verdict = Err("a node is not found where it is");
            }
            if node.space != 0 {
                continue;
            }
            owned += u32::from(node.perms.owner() == GUEST);
            if !node.exists() {
                verdict = Err("a node without permissions");
            }
            let above = self.find(0, parent(path)).and_then(|at| self.pool.node(at));
            let rooted = path == b"/" || path.starts_with(b"@");
            if !rooted && !above.is_some_and(|above| self.lists(above, name(path))) {
                verdict = Err("a node is not a child of the one above");
            }
        }
        self.walk = walk;
        verdict?;
        self.check_children()?;
        if owned != self.guest_nodes {
            return Err("the guest's nodes are miscounted");
        }
        slots += self.pool.accesses().count();
        for watch in self.pool.watches() {
            slots += 1 + self.text_slots(&watch.texts());
        }
        let (mut events, mut waiting) = (0, 0);
        for event in self.pool.events() {
            events += 1;
            slots += 1 + self.text_slots(&[event.text]);
        }
        for side in [Side::Dom0, Side::Guest] {
            waiting += self.watcher(side).waiting();
        }
        if events != waiting {
            return Err("events are miscounted");
        }
        if slots != self.pool.nr_used() {
            Err("a slot is used twice, or not at all")
        } else {
            Ok(())
        }
    }

    fn text_slots(&self, texts: &[Chain]) -> usize {
        texts.iter().map(|text| blocks(text.len())).sum()
    }

    fn lists(&self, node: &Node, child: &[u8]) -> bool {
        let mut names = 0;
        let (mut at, mut same) = (0, true);
        for byte in self.pool.pieces(node.children).flatten() {
            if *byte == 0 {
                names += usize::from(same && at == child.len());
                (at, same) = (0, true);
            } else {
                same = same && child.get(at) == Some(byte);
                at += 1;
            }
        }
        names == 1
    }

    fn check_children(&mut self) -> Result<(), &'static str> {
        let mut walk = core::mem::take(&mut self.walk);
        let mut verdict = Ok(());
        for (_, node) in self.pool.nodes().filter(|(_, node)| node.space == 0) {
            let mut offset = 0;
            while offset < node.children.len() {
                walk.clear();
                let path = self.pool.pieces(node.path);
                let root = node.path.len() == 1;
                let added = path.into_iter().try_for_each(|piece| walk.add(piece));
                let added = if root { added } else { added.and_then(|()| walk.add(b"/")) };
                let len = self.pool.string_at(node.children, offset, &mut walk);
                let Some(len) = len.filter(|_| added.is_ok()) else {
                    verdict = Err("a child has no name");
                    break;
                };
                if self.find(0, walk.get()).is_none() {
                    verdict = Err("a child does not exist");
                }
                offset += len + 1;
            }
        }
        self.walk = walk;
        verdict
    }
}
