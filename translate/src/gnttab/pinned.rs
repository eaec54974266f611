//! Frames in use by grants. They cannot be given up; Xen takes them, and keeps them back until the last
//! user has gone.

use xen_abi::Mfn;

use super::table::Table;
use crate::domain::Domain;

/// A look at all entries, for many questions: to each bit the frames of one number modulo this.
#[derive(Debug)]
pub struct PinnedFrames([u64; Self::WORDS]);

impl PinnedFrames {
    const WORDS: usize = 64;

    /// Looks.
    #[must_use]
    pub fn now(dom: &Domain) -> Self {
        let mut set = Self([0; Self::WORDS]);
        for mfn in frames(&dom.gnttab.table.read()) {
            let (word, bit) = Self::place(mfn);
            set.0[word] |= bit;
        }
        set
    }

    const fn place(mfn: Mfn) -> (usize, u64) {
        ((mfn.0 >> 6) as usize % Self::WORDS, 1 << (mfn.0 & 63))
    }

    /// Whether a frame was in use at that look, and still is.
    #[must_use]
    pub fn has(&self, dom: &Domain, mfn: Mfn) -> bool {
        let (word, bit) = Self::place(mfn);
        self.0[word] & bit != 0 && frames(&dom.gnttab.table.read()).any(|used| used == mfn)
    }
}

fn frames(table: &Table) -> impl Iterator<Item = Mfn> {
    let entries = table.active.iter().take(table.nr_entries() as usize);
    entries.filter_map(super::active::Active::used_frame)
}
