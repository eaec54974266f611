//! Disks: a guest that writes what it likes into its ring and its pages of segments, partition
//! tables, and the option that names the disks.

use std::sync::Mutex;

use pv_frontends::blkback::{
    BlockDevice, DeviceInfo, Discard, Env, Io, Limits, Operation, Submitted, Tag, Vbd, VbdConfig,
};
use pv_frontends::disk::{Finder, READ_BYTES, Step};
use pv_frontends::vbd;
use pv_frontends::xenbus::{Store as StoreTrait, Stores};
use translate::evtchn::{Here, event_channel_op};
use translate::fake::{Machine, mfn, va};
use translate::platform::GuestMemory;
use translate::xenstore::{Config, DomainConfig, Store};
use xen_abi::Mfn;
use xen_abi::event_channel::EvtchnOp;
use xen_abi::io::ring::{ENTRIES, REQ_PROD, RingPage};

/// Frames of the grant table's pool, of the ring, of segments, and of data.
const TABLE: core::ops::Range<u64> = 10..12;
const RING: u64 = 20;
const SEGMENTS: u64 = 21;
const PAGES: core::ops::Range<u64> = 22..40;
/// Sectors of the disk.
const SECTORS: u64 = 256;
/// The grant of the ring; those of the pages follow, in order.
const RING_GREF: u64 = 8;
const FRONT: &str = "/local/domain/1/device/vbd/51712";

/// A disk without data, that knows what it may be asked.
struct Disk {
    info: DeviceInfo,
    pending: Mutex<Vec<Tag>>,
}

impl BlockDevice for Disk {
    fn info(&self) -> DeviceInfo {
        self.info
    }
    fn submit(&self, _queue: u32, io: &Io<'_>, tag: Tag) -> Submitted {
        let sectors = match io.operation {
            Operation::Discard { sectors, .. } => sectors,
            _ => io.bytes() / 512,
        };
        assert!(io.sector + sectors <= SECTORS);
        assert!(io.segments.len() <= usize::from(self.info.max_segments));
        for segment in io.segments {
            assert!(segment.offset + segment.len <= 4096 && segment.len > 0);
            assert!((mfn(0)..mfn(64)).contains(&segment.gpfn));
        }
        let mut pending = self.pending.lock().expect("one thread");
        if pending.len() >= usize::from(self.info.depth) {
            return Submitted::Busy;
        }
        pending.push(tag);
        Submitted::Accepted
    }
    fn commit(&self, _queue: u32) {}
}

/// The real store.
struct Shared(Mutex<Store>);

impl Stores for Shared {
    fn with<R>(&self, f: impl FnOnce(&mut dyn StoreTrait) -> R) -> Option<R> {
        Some(f(&mut *self.0.lock().expect("one thread")))
    }
}

impl Shared {
    fn new() -> Self {
        let config = Config { bytes: 256 << 10, ..Config::default() };
        let mut store = Store::new(&config).expect("a store of this size");
        let domain = DomainConfig {
            name: b"fuzz",
            uuid: [7; 16],
            max_kib: 1 << 20,
            target_kib: 1 << 20,
            nr_vcpus: 1,
            console: (1, 1),
            store: (2, 2),
        };
        store.add_domain(&domain).expect("room for a domain");
        Self(Mutex::new(store))
    }

    fn set_front(&self, name: &str, value: &str) {
        let path = format!("{FRONT}/{name}");
        self.with(|store| store.write(&path, value)).expect("a store").expect("room");
    }

    fn back_state(&self) -> Option<String> {
        let path = "/local/domain/0/backend/vbd/1/51712/state";
        self.with(|store| store.read(path)).flatten().map(|state| state.as_str().to_owned())
    }
}

struct World {
    machine: Machine,
    store: Shared,
    vbd: Vbd<Disk>,
    ring: &'static RingPage,
    entry_words: usize,
    req_prod: u32,
}

impl World {
    fn new(wide: bool) -> Self {
        let info = DeviceInfo {
            sectors: SECTORS,
            logical_bytes: 512,
            physical_bytes: 512,
            read_only: false,
            cdrom: false,
            removable: false,
            flush: true,
            discard: Some(Discard { granularity: 512, alignment: 0, secure: true, max_sectors: 9 }),
            max_transfer_bytes: 16384,
            max_segments: 6,
            no_gaps: true,
            depth: 3,
        };
        let mut machine = Machine::new();
        let pool: Vec<Mfn> = TABLE.map(mfn).collect();
        machine.dom.gnttab.set_pool(&machine.plat, &pool);
        for (gref, pfn) in (RING_GREF..).zip(RING..PAGES.end) {
            // Every fourth is read only; the ring is not.
            let flags = if gref % 4 == 3 { 5 } else { 1 };
            machine.plat.poke(va(TABLE.start).add(gref * 8), mfn(pfn).0 << 32 | flags);
        }
        machine.plat.poke(va(5), 0x7ff0);
        event_channel_op(&mut machine.cx(), EvtchnOp::ALLOC_UNBOUND.0.into(), va(5).0)
            .expect("a port");
        let port = machine.plat.peek(va(5)) >> 32;
        let config = VbdConfig { number: 51712, read_only: false, cdrom: false };
        let limits = Limits { queues: 1, ring_page_order: 0, requests: 5, max_segments: 20 };
        let vbd =
            Vbd::new(0, config, limits, Disk { info, pending: Mutex::default() }).expect("memory");
        let store = Shared::new();
        vbd.announce(&store).expect("room for a device");
        store.set_front("ring-ref", &RING_GREF.to_string());
        store.set_front("event-channel", &port.to_string());
        store.set_front("protocol", if wide { "x86_64-abi" } else { "x86_32-abi" });
        let ring = machine.plat.view(mfn(RING).base()).expect("a page");
        let entry_words = if wide { 28 } else { 27 };
        let world = Self { machine, store, vbd, ring, entry_words, req_prod: 0 };
        world.set_state("3");
        assert_eq!(world.store.back_state().as_deref(), Some("4"), "connected");
        world
    }

    fn env(&self) -> Env<'_, translate::fake::FakePlatform> {
        Env { dom: &self.machine.dom, plat: &self.machine.plat, here: Here::on_id(0) }
    }

    fn set_state(&self, state: &str) {
        self.store.set_front("state", state);
        self.vbd.frontend_changed(&self.env(), &self.store);
    }

    fn complete(&self, which: usize) {
        let mut pending = self.vbd.device().pending.lock().expect("one thread");
        if pending.is_empty() {
            return;
        }
        let which = which % pending.len();
        let tag = pending.swap_remove(which);
        drop(pending);
        self.vbd.complete(&self.env(), tag, Ok(()));
        while self.vbd.settle(&self.env(), &self.store) {}
    }

    /// One thing the guest or the device does.
    fn step(&mut self, input: &mut &[u8]) {
        let mut byte = || {
            let (first, rest) = input.split_first().unwrap_or((&0, &[]));
            *input = rest;
            *first
        };
        let store = |word: usize, value: u32| {
            self.ring.words[word % 1024].store(value, std::sync::atomic::Ordering::Relaxed);
        };
        match byte() % 8 {
            // An entry: as many words as a byte says, the rest as they were.
            0..=2 => {
                let words = usize::from(byte()) % (self.entry_words + 1);
                let at = ENTRIES + (self.req_prod % 32) as usize * self.entry_words;
                for word in 0..words {
                    store(at + word, u32::from_le_bytes([byte(), byte(), byte(), byte()]));
                }
                self.req_prod = self.req_prod.wrapping_add(1);
                store(REQ_PROD, self.req_prod);
            }
            3 => store(byte().into(), u32::from_le_bytes([byte(), byte(), byte(), byte()])),
            4 => {
                let at = va(SEGMENTS).add(u64::from(byte()) * 8);
                let (gref, first, last) = (byte() % 32, byte() % 9, byte() % 9);
                let word = u64::from(gref) | u64::from(first) << 32 | u64::from(last) << 40;
                self.machine.plat.poke(at, word);
            }
            5 => {
                self.vbd.kicked(&self.env(), 0);
            }
            6 => self.complete(byte().into()),
            _ => self.set_state(&(byte() % 10).to_string()),
        }
    }
}

/// A ring full of anything: nothing panics, the device is asked for nothing it could not do, and
/// once the frontend is gone nothing of the guest's is in use.
pub fn blkif(data: &[u8]) {
    let (wide, mut input) = data.split_first().map_or((true, data), |(b, rest)| (b & 1 == 0, rest));
    let mut world = World::new(wide);
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.set_state("6");
    while !world.vbd.device().pending.lock().expect("one thread").is_empty() {
        world.complete(0);
    }
    assert_eq!(world.store.back_state().as_deref(), Some("6"), "closed");
    for gref in 0..512 {
        let entry = world.machine.plat.peek(va(TABLE.start).add(gref * 8));
        assert!(entry & 0x18 == 0, "grant {gref} is in use");
    }
}

/// A disk's first blocks, repeated to its end: the search ends, and stays on the disk.
pub fn partition(data: &[u8]) {
    let Some((setup, image)) = data.split_first_chunk::<2>() else { return };
    let logical_bytes = if setup[0] & 1 == 0 { 512 } else { 4096 };
    let device = DeviceInfo {
        sectors: 8192,
        logical_bytes,
        physical_bytes: 4096,
        ..World::new(true).vbd.device().info
    };
    let mut finder = Finder::new(&device, setup[1].into());
    for _ in 0..1000 {
        match finder.step() {
            Step::Read { sector, bytes } => {
                assert!(bytes <= READ_BYTES && sector + bytes as u64 / 512 <= 8192);
                let at = sector as usize * 512 % (image.len().max(1) + 512);
                finder.feed(image.get(at..).and_then(|rest| rest.get(..bytes)));
            }
            Step::Done(found) => {
                if let Ok(extent) = found {
                    assert!(extent.start > 0 && extent.start + extent.sectors <= 8192);
                }
                return;
            }
        }
    }
    panic!("the search has no end");
}

/// `pontoon.vbd`: what is read has numbers, and no two disks are the same.
pub fn vbds(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Ok(entries) = vbd::parse(text) {
        for (index, entry) in entries.iter().enumerate() {
            let number = entry.vdev.number().expect("a disk has a number");
            assert_eq!(vbd::Vdev::from_number(number), Some(entry.vdev));
            assert_eq!(vbd::Vdev::parse(&entry.vdev.name()), Some(entry.vdev));
            assert!(entries[..index].iter().all(|other| other.vdev != entry.vdev));
        }
    }
}

/// An entry of the ring: the act, its words.
fn entry(out: &mut Vec<u8>, words: &[u32]) {
    out.extend([0, words.len() as u8]);
    words.iter().for_each(|word| out.extend(word.to_le_bytes()));
}

pub(crate) fn blkif_seeds() -> Vec<Vec<u8>> {
    let segment = |gref: u32, sects: u32| [gref, sects];
    let [a, b] = [segment(10, 0x0700), segment(12, 0x0300)];
    let rw = |op: u32, sector| [op | 2 << 8, 0, 1, 0, sector, 0, a[0], a[1], b[0], b[1]];
    let mut plain = vec![0];
    for op in 0..4 {
        entry(&mut plain, &rw(op, op * 8));
    }
    entry(&mut plain, &[3, 0, 9, 0, 0, 0]);
    entry(&mut plain, &[5 | 1 << 8, 0, 2, 0, 16, 0, 40, 0]);
    plain.extend([5, 6, 1, 6, 0, 6, 0, 6, 0, 5, 6, 0]);
    let mut indirect = vec![0];
    for index in 0..13 {
        indirect.extend([4, index, 10 + index % 9 * 2, 0, 7]);
    }
    // An indirect read of 13 segments, whose page is grant 9.
    entry(&mut indirect, &[6 | 13 << 16, 0, 3, 0, 0, 0, 0, 9]);
    indirect.extend([5, 6, 0, 6, 0, 7, 6, 7, 1, 7, 3]);
    let mut narrow = vec![1];
    entry(&mut narrow, &[2 << 8, 1, 0, 8, 0, a[0], a[1], b[0], b[1]]);
    entry(&mut narrow, &[6 | 3 << 16, 3, 0, 0, 0, 0, 9]);
    narrow.extend([5, 6, 0, 3, 0, 99, 0, 0, 0, 5]);
    vec![plain, indirect, narrow]
}

pub(crate) fn partition_seeds() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 2 + 512 * 4];
    mbr[1] = 5;
    for (index, kind, start) in [(0, 0x83, 4u32), (1, 0x05, 2)] {
        let at = 2 + 446 + index * 16;
        mbr[at + 4] = kind;
        mbr[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        mbr[at + 12] = 2;
    }
    mbr[2 + 1024 + 450] = 0x83;
    mbr[2 + 1024 + 454] = 1;
    mbr[2 + 1024 + 458] = 1;
    for block in [0, 2] {
        mbr[2 + block * 512 + 510..2 + block * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    let mut primary = mbr.clone();
    primary[1] = 1;
    // A header whose checksums are right, with one partition.
    let mut gpt = vec![0; 2 + 512 * 40];
    gpt[1] = 1;
    gpt[2 + 450] = 0xee;
    gpt[2 + 510..2 + 512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 4];
    entries[..16].fill(7);
    entries[32] = 64;
    entries[40] = 99;
    gpt[2 + 1024..2 + 1024 + 512].copy_from_slice(&entries);
    let mut header = [0; 92];
    header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    header[12] = 92;
    (header[24], header[40], header[48], header[49]) = (1, 40, 0, 4);
    (header[72], header[80], header[84]) = (2, 4, 128);
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    gpt[2 + 512..2 + 512 + 92].copy_from_slice(&header);
    vec![mbr, primary, gpt]
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach what they are for.
    #[test]
    fn seeds_reach_the_device_and_partitions() {
        for seed in blkif_seeds() {
            let mut world = World::new(seed[0] & 1 == 0);
            let (mut input, mut most) = (&seed[1..], 0);
            while !input.is_empty() {
                world.step(&mut input);
                most = most.max(world.vbd.device().pending.lock().unwrap().len());
            }
            assert!(most > 0);
        }
        let found = |seed: &[u8]| {
            let device = DeviceInfo { sectors: 8192, ..World::new(true).vbd.device().info };
            let mut finder = Finder::new(&device, seed[1].into());
            loop {
                match finder.step() {
                    Step::Done(found) => {
                        return found.ok().map(|extent| (extent.start, extent.sectors));
                    }
                    Step::Read { sector, bytes } => {
                        let at = 2 + sector as usize * 512;
                        finder.feed(seed.get(at..).and_then(|rest| rest.get(..bytes)));
                    }
                }
            }
        };
        let extents: Vec<_> = partition_seeds().iter().map(|seed| found(seed)).collect();
        assert_eq!(extents, [Some((3, 1)), Some((4, 2)), Some((64, 36))]);
    }
}
