//! Pinning the pages of a request.

use core::slice::IterMut;
use core::sync::atomic::Ordering;

use translate::gnttab::{self, Grants};
use translate::platform::Platform;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::{BlkifSegment, SECTOR_BYTES, SEGMENTS_PER_INDIRECT_PAGE};

use super::Queue;
use super::pool::{Pinned, Pool};
use crate::blkback::request::{self, Kind, Request};
use crate::blkback::{DeviceInfo, Env, Segment};

/// A request whose pages are being pinned.
struct Pinning<'a, P> {
    plat: &'a P,
    info: &'a DeviceInfo,
    grants: Grants<'a>,
    pool: &'a mut Pool,
    /// The slot's list of grants, and how they are pinned.
    list: &'a mut u16,
    write_grants: bool,
    /// Where its segments go.
    to: IterMut<'a, Segment>,
    sectors: u64,
}

impl Queue {
    /// Pins the pages of a request's segments, which go to `segments`; its sectors. `at` is its slot
    /// and its first segment. On failure what is pinned stays so until the slot is answered.
    pub(super) fn pin<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        info: &DeviceInfo,
        request: &Request,
        at: (u16, u16),
        nr_segments: u16,
    ) -> Option<u64> {
        let first = usize::from(at.1);
        let slot = self.slots.get_mut(usize::from(at.0))?;
        let to = self.segments.get_mut(first..first + usize::from(nr_segments))?;
        let mut pinning = Pinning {
            plat: env.plat,
            info,
            grants: gnttab::open(env.dom),
            pool: &mut self.grants,
            list: &mut slot.grants,
            write_grants: slot.write_grants,
            to: to.iter_mut(),
            sectors: 0,
        };
        match &request.kind {
            Kind::Direct { segments, .. } => {
                for segment in segments.iter().take(nr_segments.into()) {
                    pinning.segment(segment)?;
                }
            }
            Kind::Indirect { pages, .. } => {
                let mut left = usize::from(nr_segments);
                for page in pages.iter().take(left.div_ceil(SEGMENTS_PER_INDIRECT_PAGE)) {
                    let part = left.min(SEGMENTS_PER_INDIRECT_PAGE);
                    pinning.indirect(*page, part)?;
                    left -= part;
                }
            }
            Kind::Discard { .. } | Kind::Unknown => return None,
        }
        Some(pinning.sectors)
    }
}

impl<P: Platform> Pinning<'_, P> {
    /// Pins the segments a page of an indirect request names. Each is read once.
    fn indirect(&mut self, page: GrantRef, nr_segments: usize) -> Option<()> {
        let mfn = self.grants.map_page(self.plat, page, false).ok()?;
        let words = self.plat.frame(mfn).and_then(|words| words.get(..nr_segments));
        let done = words.and_then(|words| {
            words.iter().try_for_each(|word| {
                let word = word.load(Ordering::Relaxed);
                self.segment(&BlkifSegment {
                    gref: GrantRef(word as u32),
                    first_sect: (word >> 32) as u8,
                    last_sect: (word >> 40) as u8,
                    pad: 0,
                })
            })
        });
        self.grants.release(page, false);
        done
    }

    #[inline(always)]
    fn segment(&mut self, segment: &BlkifSegment) -> Option<()> {
        let (offset, len) = request::check_segment(self.info, segment)?;
        let to = self.to.next()?;
        let access = self.grants.access(self.plat, segment.gref, self.write_grants).ok()?;
        if !self.pool.push(self.list, Pinned::new(segment.gref, offset, len)) {
            self.grants.release(segment.gref, self.write_grants);
            return None;
        }
        let inside = offset >= access.offset
            && u32::from(offset) + u32::from(len)
                <= u32::from(access.offset) + u32::from(access.len);
        *to = Segment { gpfn: access.mfn, offset, len };
        self.sectors += u64::from(len / SECTOR_BYTES as u16);
        inside.then_some(())
    }
}
