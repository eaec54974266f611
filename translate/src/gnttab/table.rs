//! The frames of a table, its version, and where an entry is.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use xen_abi::grant_table::{
    GrantRef, NR_RESERVED_ENTRIES, STATUS_PER_PAGE, V1_ENTRIES_PER_PAGE, V2_ENTRIES_PER_PAGE, gtf,
};
use xen_abi::{Errno, Mfn, PAGE_SIZE};

use super::active::Active;
use super::{MAX_FRAMES, MAX_POOL, MAX_STATUS_FRAMES};
use crate::platform::{GuestMemory, PageWords};

/// What the guest and its backends share, and what is kept about each entry.
#[derive(Debug)]
pub(super) struct Table {
    /// Frames of entries, all that there can be.
    pub(super) frames: ArrayVec<Mfn, MAX_FRAMES>,
    /// Status frames of version 2, all that there can be.
    pub(super) status: ArrayVec<Mfn, MAX_STATUS_FRAMES>,
    /// What is in them, in the same order: the frames are the table's for good.
    pages: ArrayVec<&'static PageWords, MAX_FRAMES>,
    status_pages: ArrayVec<&'static PageWords, MAX_STATUS_FRAMES>,
    /// Frames of entries the guest has.
    pub(super) nr_frames: u32,
    pub(super) version: u32,
    /// Who has pinned which entry; as many as entries of version 1 there can be.
    pub(super) active: Vec<Active>,
}

/// An entry as the guest has it, in 64-bit words. Version 1 has one: flags (bits 0-15), domain
/// (16-31), frame (32-63). Version 2 has two: flags, domain, `page_off` (32-47), `length`
/// (48-63); and the frame; its status is a quarter of a third.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    /// The word with flags and domain.
    pub(super) head: &'static AtomicU64,
    /// The rest of it, in version 2.
    pub(super) v2: Option<SharedV2>,
}

/// What version 2 adds.
#[derive(Clone, Copy)]
pub(super) struct SharedV2 {
    /// The frame.
    pub(super) frame: &'static AtomicU64,
    status: &'static AtomicU64,
    /// Bit the status begins at.
    shift: u32,
}

impl Shared {
    /// Where readers and writers are shown, and by how much to shift their flags.
    pub(super) fn in_use(&self) -> (&'static AtomicU64, u32) {
        self.v2.map_or((self.head, 0), |v2| (v2.status, v2.shift))
    }

    /// Takes flags of use away: what was done to the frame comes before.
    pub(super) fn clear_in_use(&self, flags: u16) {
        let (word, shift) = self.in_use();
        word.fetch_and(!(u64::from(flags) << shift), Ordering::Release);
    }
}

/// Status frames for a number of frames of version 2 entries.
pub(super) const fn status_frames(nr_frames: u32) -> u32 {
    (nr_frames * V2_ENTRIES_PER_PAGE as u32).div_ceil(STATUS_PER_PAGE as u32)
}

fn clear<'a>(pages: impl Iterator<Item = &'a &'static PageWords>) {
    pages.flat_map(|page| page.iter()).for_each(|word| word.store(0, Ordering::Relaxed));
}

impl Table {
    pub(super) const fn new() -> Self {
        Self {
            frames: ArrayVec::new_const(),
            status: ArrayVec::new_const(),
            pages: ArrayVec::new_const(),
            status_pages: ArrayVec::new_const(),
            nr_frames: 0,
            version: 1,
            active: Vec::new(),
        }
    }

    pub(super) fn set_pool<M: GuestMemory>(&mut self, plat: &M, pool: &[Mfn]) {
        *self = Self::new();
        let usable = |mfn: &Mfn| plat.frame(*mfn).map(|page| (*mfn, page));
        let pool: ArrayVec<_, MAX_POOL> = pool.iter().filter_map(usable).take(MAX_POOL).collect();
        let mut nr = pool.len() as u32;
        while nr > 0 && nr as usize + status_frames(nr) as usize > pool.len() {
            nr -= 1;
        }
        nr = nr.min(MAX_FRAMES as u32);
        let (frames, rest) = pool.split_at(nr as usize);
        for (mfn, page) in frames.iter().take(MAX_FRAMES) {
            self.frames.push(*mfn);
            self.pages.push(page);
        }
        for (mfn, page) in rest.iter().take(MAX_STATUS_FRAMES) {
            self.status.push(*mfn);
            self.status_pages.push(page);
        }
        self.active.reserve_exact(nr as usize * V1_ENTRIES_PER_PAGE);
        self.active.resize_with(nr as usize * V1_ENTRIES_PER_PAGE, Active::default);
        self.grow(1);
    }

    pub(super) fn max_frames(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Status frames the guest has: none in version 1.
    pub(super) fn nr_status_frames(&self) -> u32 {
        if self.version < 2 { 0 } else { status_frames(self.nr_frames) }
    }

    pub(super) fn nr_entries(&self) -> u32 {
        let per_page = if self.version < 2 { V1_ENTRIES_PER_PAGE } else { V2_ENTRIES_PER_PAGE };
        self.nr_frames * per_page as u32
    }

    pub(super) fn grow(&mut self, nr_frames: u32) {
        let old = self.nr_frames as usize;
        let old_status = self.nr_status_frames() as usize;
        self.nr_frames = self.nr_frames.max(nr_frames.min(self.max_frames()));
        clear(self.pages.iter().take(self.nr_frames as usize).skip(old));
        let status = self.nr_status_frames() as usize;
        clear(self.status_pages.iter().take(status).skip(old_status));
    }

    /// The guest's side of an entry; `None` where there is no such entry.
    #[inline]
    pub(super) fn shared(&self, gref: GrantRef) -> Option<Shared> {
        const WORDS: usize = PAGE_SIZE as usize / 8;
        if gref.0 >= self.nr_entries() {
            return None;
        }
        let entry = gref.0 as usize;
        let word = |pages: &[&'static PageWords], index: usize| -> Option<&'static AtomicU64> {
            pages.get(index / WORDS).map(|page| &page[index % WORDS])
        };
        if self.version < 2 {
            return Some(Shared { head: word(&self.pages, entry)?, v2: None });
        }
        let v2 = SharedV2 {
            frame: word(&self.pages, entry * 2 + 1)?,
            status: word(&self.status_pages, entry / 4)?,
            shift: (entry % 4) as u32 * 16,
        };
        Some(Shared { head: word(&self.pages, entry * 2)?, v2: Some(v2) })
    }

    /// The word of an entry, in version 1.
    #[inline(always)]
    pub(super) fn shared_v1(&self, gref: GrantRef) -> Option<&'static AtomicU64> {
        let entry = gref.0 as usize;
        if self.version != 1 || entry / V1_ENTRIES_PER_PAGE >= self.nr_frames as usize {
            return None;
        }
        self.pages.get(entry / V1_ENTRIES_PER_PAGE)?.get(entry % V1_ENTRIES_PER_PAGE)
    }

    /// Switches the version. All entries but the reserved ones are lost; those may be in use.
    ///
    /// # Errors
    /// `EBUSY`: an entry is in use; `EAGAIN`: part of a page is, which version 1 cannot say;
    /// `ERANGE`: nor can it say what a reserved entry says; `ENOMEM`; `EINVAL`: no such version.
    pub(super) fn set_version(&mut self, version: u32) -> Result<(), Errno> {
        if version != 1 && version != 2 {
            return Err(Errno::EINVAL);
        }
        if version == self.version {
            return Ok(());
        }
        let used = self.nr_entries() as usize;
        let reserved = NR_RESERVED_ENTRIES as usize;
        if self.active.iter().take(used).skip(reserved).any(Active::is_pinned) {
            return Err(Errno::EBUSY);
        }
        if version == 2 && self.status.len() < status_frames(self.nr_frames) as usize {
            return Err(Errno::ENOMEM);
        }
        if self.version == 2 && self.active.iter().take(reserved).any(Active::is_sub_page) {
            return Err(Errno::EAGAIN);
        }
        let mut kept = [Kept::default(); NR_RESERVED_ENTRIES as usize];
        for (gref, kept) in (0..).map(GrantRef).zip(&mut kept) {
            if let Some(shared) = self.shared(gref) {
                *kept = Kept::read(&shared)?;
            }
        }
        clear(self.pages.iter().take(self.nr_frames as usize));
        self.version = version;
        clear(self.status_pages.iter().take(self.nr_status_frames() as usize));
        for (gref, kept) in (0..).map(GrantRef).zip(&kept) {
            if let Some(shared) = self.shared(gref) {
                kept.write(&shared);
            }
        }
        Ok(())
    }
}

/// A reserved entry between versions: flags (those of use included), domain and frame.
#[derive(Clone, Copy, Default)]
struct Kept {
    flags: u16,
    domid: u16,
    frame: u64,
}

impl Kept {
    fn read(shared: &Shared) -> Result<Self, Errno> {
        let head = shared.head.load(Ordering::Relaxed);
        let (flags, domid) = (head as u16, (head >> 16) as u16);
        let Some(v2) = shared.v2 else { return Ok(Self { flags, domid, frame: head >> 32 }) };
        let frame = v2.frame.load(Ordering::Relaxed);
        match flags & gtf::TYPE_MASK {
            gtf::TRANSITIVE => Err(Errno::ERANGE),
            gtf::PERMIT_ACCESS if frame >> 32 != 0 => Err(Errno::ERANGE),
            gtf::PERMIT_ACCESS => {
                let (word, shift) = shared.in_use();
                let status = (word.load(Ordering::Relaxed) >> shift) as u16;
                Ok(Self { flags: flags | status, domid, frame })
            }
            _ => Ok(Self::default()),
        }
    }

    fn write(self, shared: &Shared) {
        const IN_USE: u16 = gtf::READING | gtf::WRITING;
        let (flags, domid) = (u64::from(self.flags), u64::from(self.domid) << 16);
        let Some(v2) = shared.v2 else {
            shared.head.store(flags | domid | self.frame << 32, Ordering::Release);
            return;
        };
        let (status, shift) = shared.in_use();
        status.fetch_or(u64::from(self.flags & IN_USE) << shift, Ordering::Relaxed);
        v2.frame.store(self.frame, Ordering::Relaxed);
        shared.head.store(flags & !u64::from(IN_USE) | domid, Ordering::Release);
    }
}
