//! A disk's volatile write cache (`cache=volatile`): what the guest has not flushed
//! is lost when hvhost is killed, as on a disk whose power fails.
//!
//! A cache writes out what it likes when it likes, so some sectors of each write go
//! to the file at once and the others wait: not only a flush that is missing shows
//! after a cut, but also two writes that needed one between them.

use crate::storvsp::medium::Medium;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A cache that is full writes out all it has.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Most neighbouring sectors that share their fate.
const RUN_MAX: u64 = 16;

/// The cache of a disk.
#[derive(Debug)]
pub struct WriteCache {
    sector_bytes: usize,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// Sectors newer than in the file.
    sectors: BTreeMap<u64, Vec<u8>>,
    /// State of a xorshift generator, never 0.
    random: u64,
}

impl WriteCache {
    /// An empty cache.
    #[must_use]
    pub fn new(sector_bytes: u32) -> Self {
        let random = RandomState::new().build_hasher().finish() | 1;
        let held = Mutex::new(Held { sectors: BTreeMap::new(), random });
        Self { sector_bytes: sector_bytes as usize, held }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self, sector: u64) -> u64 {
        sector * self.sector_bytes as u64
    }

    /// Reads whole sectors.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, medium: &dyn Medium, first: u64, data: &mut [u8]) -> io::Result<()> {
        let held = self.held();
        medium.read(self.offset(first), data)?;
        for (sector, part) in (first..).zip(data.chunks_exact_mut(self.sector_bytes)) {
            if let Some(newer) = held.sectors.get(&sector) {
                part.copy_from_slice(newer);
            }
        }
        Ok(())
    }

    /// Writes whole sectors: some into the file, the others into the cache.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, medium: &dyn Medium, first: u64, data: &[u8]) -> io::Result<()> {
        let mut held = self.held();
        let (mut run, mut keep) = (0, false);
        for (sector, part) in (first..).zip(data.chunks_exact(self.sector_bytes)) {
            if run == 0 {
                let random = held.next();
                (run, keep) = (1 + random % RUN_MAX, random & 0x100 != 0);
            }
            run -= 1;
            if keep {
                held.sectors.insert(sector, part.to_vec());
            } else {
                medium.write(self.offset(sector), part)?;
                held.sectors.remove(&sector);
            }
        }
        if held.sectors.len() * self.sector_bytes > HELD_BYTES_MAX {
            self.write_held(&mut held, medium, 0..u64::MAX)?;
        }
        Ok(())
    }

    /// Brings what is held of `sectors` into the file.
    ///
    /// # Errors
    /// The system's; what could not be written is still held.
    pub fn write_out(&self, medium: &dyn Medium, sectors: Range<u64>) -> io::Result<()> {
        self.write_held(&mut self.held(), medium, sectors)
    }

    fn write_held(
        &self,
        held: &mut Held,
        medium: &dyn Medium,
        sectors: Range<u64>,
    ) -> io::Result<()> {
        for (sector, data) in held.sectors.range(sectors.clone()) {
            medium.write(self.offset(*sector), data)?;
        }
        held.sectors.retain(|sector, _| !sectors.contains(sector));
        Ok(())
    }
}

impl Held {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storvsp::raw::Raw;

    fn file(bytes: u64) -> (tempfile::TempDir, Raw) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        let options = format!("{},direct=off", path.display()).parse().unwrap();
        (dir, Raw::open(&options).unwrap().0)
    }

    #[test]
    fn what_was_written_is_read_whether_held_or_not() {
        let (_dir, file) = file(1 << 20);
        let cache = WriteCache::new(512);
        let mut expected = vec![0u8; 1 << 20];
        for round in 0..200usize {
            let (first, count) = (round * 37 % 1900, 1 + round % 100);
            let data = vec![round as u8 + 1; count * 512];
            expected[first * 512..(first + count) * 512].copy_from_slice(&data);
            cache.write(&file, first as u64, &data).unwrap();
        }
        let mut back = vec![0u8; 1 << 20];
        cache.read(&file, 0, &mut back).unwrap();
        assert!(back == expected, "read");
        file.read(0, &mut back).unwrap();
        assert!(back != expected, "nothing was held");
        assert!(back.iter().any(|b| *b != 0), "everything was held");
        cache.write_out(&file, 100..200).unwrap();
        file.read(0, &mut back).unwrap();
        assert!(back[100 * 512..200 * 512] == expected[100 * 512..200 * 512]);
        assert!(back != expected);
        cache.write_out(&file, 0..u64::MAX).unwrap();
        assert!(cache.held().sectors.is_empty());
        file.read(0, &mut back).unwrap();
        assert!(back == expected, "written out");
    }

    #[test]
    fn a_full_cache_is_written_out() {
        let (_dir, file) = file(4 * HELD_BYTES_MAX as u64);
        let cache = WriteCache::new(4096);
        let data = vec![1; 4096];
        for sector in 0..3 * (HELD_BYTES_MAX / 4096) as u64 {
            cache.write(&file, sector, &data).unwrap();
            assert!(cache.held().sectors.len() * 4096 <= HELD_BYTES_MAX);
        }
    }
}
