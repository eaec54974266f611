//! What a request is to be answered.

use pv_frontends::blkback::BlockDevice;
use translate::fake::mfn;

use super::disk::Unit;
use super::{BARRIER, FLUSH, MAX_SEGMENTS, READ, WRITE, World, granted, is_read_only};

/// What a request is to be answered.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// Well, once all of this is done; after a flush if so said.
    Work {
        units: Vec<Unit>,
        flush: bool,
    },
    Error,
    Unsupported,
    Anything,
}

impl World {
    /// What data requests come to (the checks of Linux's blkback).
    pub(super) fn expect_data(
        &self,
        operation: u8,
        indirect: bool,
        sector: u64,
        segments: &[u64],
    ) -> Expected {
        let info = self.vbd.device().info();
        let data_free = matches!(operation, BARRIER | FLUSH);
        if operation > FLUSH && !indirect {
            return Expected::Unsupported;
        }
        let most = if indirect { usize::from(MAX_SEGMENTS) } else { 11 };
        if indirect && operation > WRITE
            || segments.len() > most
            || segments.is_empty() && !data_free
            || operation != READ && info.read_only && !segments.is_empty()
        {
            return Expected::Error;
        }
        let (mut units, mut at) = (Vec::new(), sector);
        for segment in segments {
            let (gref, first, last) = (*segment as u32, segment >> 32 & 0xff, segment >> 40 & 0xff);
            let Some(pfn) = granted(gref) else { return Expected::Error };
            if operation == READ && is_read_only(gref.into()) || first > last || last > 7 {
                return Expected::Error;
            }
            if !((last - first + 1) * 512).is_multiple_of(info.logical_bytes.into()) {
                return Expected::Error;
            }
            for nr in first..=last {
                units.push(Unit::Data(operation != READ, at, mfn(pfn).0, nr as u16 * 512));
                at += 1;
            }
        }
        let per_block = u64::from(info.logical_bytes / 512);
        if !units.is_empty() && (at > info.sectors || !sector.is_multiple_of(per_block)) {
            return Expected::Error;
        }
        Expected::Work { units, flush: data_free && info.flush }
    }

    pub(super) fn expect_discard(&self, sector: u64, sectors: u64) -> Expected {
        let info = self.vbd.device().info();
        let per_block = u64::from(info.logical_bytes / 512);
        if info.discard.is_none() {
            return Expected::Unsupported;
        }
        let whole = sector.is_multiple_of(per_block) && sectors.is_multiple_of(per_block);
        if info.read_only || sector + sectors > info.sectors || !whole {
            return Expected::Error;
        }
        let units = (sector..sector + sectors).map(Unit::Discard).collect();
        Expected::Work { units, flush: false }
    }
}
