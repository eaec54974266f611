//! What a guest knows of the store.

use std::collections::{BTreeMap, BTreeSet};

pub(super) fn absolute(path: &[u8]) -> Vec<u8> {
    match path.first() {
        Some(b'/' | b'@') => path.to_vec(),
        _ => [b"/local/domain/1/", path].concat(),
    }
}

pub(super) fn is_at_or_under(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// What a request that succeeded changed.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(Vec<u8>, Vec<u8>),
    Mkdir(Vec<u8>),
    Rm(Vec<u8>),
}

impl Change {
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Self::Write(path, _) | Self::Mkdir(path) | Self::Rm(path) => path,
        }
    }
}

/// Values of nodes, as far as they are known; `None`: there is no such node.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(pub(super) BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Known {
    pub(super) fn apply(&mut self, change: &Change) {
        if let Change::Rm(top) = change {
            for (path, value) in &mut self.0 {
                if is_at_or_under(path, top) {
                    *value = None;
                }
            }
            self.0.insert(top.clone(), None);
            return;
        }
        // Nodes above come into being, too.
        let path = change.path();
        self.0.retain(|other, value| {
            value.is_some() || !is_at_or_under(path, other) || other == path
        });
        match change {
            Change::Write(path, value) => drop(self.0.insert(path.clone(), Some(value.clone()))),
            Change::Mkdir(path) => {
                if let Some(value) = self.0.get_mut(path) {
                    value.get_or_insert_default();
                }
            }
            Change::Rm(_) => {}
        }
    }
}

/// A transaction of the guest's.
#[derive(Clone, Debug, Default)]
pub(super) struct Transaction {
    pub(super) changes: Vec<Change>,
    pub(super) known: Known,
    /// Nodes it read as they are outside.
    pub(super) read: BTreeSet<Vec<u8>>,
    /// One of these changed since.
    pub(super) is_stale: bool,
    /// Nothing outside has changed since it began.
    pub(super) is_alone: bool,
}

/// What a transaction knows by its own changes.
pub(super) fn known_inside<'a>(transaction: &'a Transaction, path: &[u8]) -> Option<&'a Change> {
    transaction
        .changes
        .iter()
        .find(|change| is_at_or_under(path, change.path()) || is_at_or_under(change.path(), path))
}
