//! A guest with a store and a device: what a vbd's surroundings are in the shim.

use core::ops::Range;
use std::collections::{BTreeMap, VecDeque};
use std::string::{String, ToString};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard};
use std::vec;
use std::vec::Vec;
use std::{format, println};

use translate::evtchn::{self, Here};
use translate::fake::{FakePlatform, Machine, mfn, va};
use translate::platform::GuestMemory;
use xen_abi::Mfn;
use xen_abi::event_channel::EvtchnOp;
use xen_abi::grant_table::gtf;

use crate::blkback::{
    BlockDevice, DeviceInfo, Discard, Env, Io, IoError, IoResult, Limits, Operation, Segment,
    Submitted, Tag, Vbd, VbdConfig,
};
use crate::xenbus::{Store, StoreError, Stores, Value};

/// Guest frames: the table's, one for arguments, and from [`FIRST_FREE`] on any.
const TABLE: Range<u64> = 10..19;
const ARGUMENTS: u64 = 9;
const FIRST_FREE: u64 = 20;
/// Frames the guest has.
pub const FRAMES: u64 = 700;
/// The number of `xvda`.
pub const XVDA: u32 = 51712;

/// A store in a map.
#[derive(Default)]
pub struct Nodes(pub Mutex<BTreeMap<String, String>>);

struct Access<'a>(MutexGuard<'a, BTreeMap<String, String>>);

impl Store for Access<'_> {
    fn read(&mut self, path: &str) -> Option<Value> {
        Value::from(self.0.get(path)?).ok()
    }
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        self.0.insert(path.to_string(), value.to_string());
        Ok(())
    }
    fn add_device(
        &mut self,
        kind: &str,
        id: u32,
        front: &[(&str, &str)],
        back: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        let standard = [("state", "1")];
        for (name, value) in front.iter().chain(&standard) {
            self.write(&format!("/local/domain/1/device/{kind}/{id}/{name}"), value)?;
        }
        for (name, value) in back.iter().chain(&standard).chain(&[("online", "1")]) {
            self.write(&format!("/local/domain/0/backend/{kind}/1/{id}/{name}"), value)?;
        }
        Ok(())
    }
    fn remove_device(&mut self, kind: &str, id: u32) -> Result<(), StoreError> {
        let front = format!("/local/domain/1/device/{kind}/{id}/");
        let back = format!("/local/domain/0/backend/{kind}/1/{id}/");
        self.0.retain(|path, _| !path.starts_with(&front) && !path.starts_with(&back));
        Ok(())
    }
}

impl Stores for Nodes {
    fn with<R>(&self, f: impl FnOnce(&mut dyn Store) -> R) -> Option<R> {
        Some(f(&mut Access(self.0.lock().unwrap())))
    }
}

impl Nodes {
    pub fn front(&self, name: &str) -> Option<String> {
        let path = format!("/local/domain/1/device/vbd/{XVDA}/{name}");
        self.0.lock().unwrap().get(&path).cloned()
    }
    pub fn back(&self, name: &str) -> Option<String> {
        let path = format!("/local/domain/0/backend/vbd/1/{XVDA}/{name}");
        self.0.lock().unwrap().get(&path).cloned()
    }
    pub fn set_front(&self, name: &str, value: impl ToString) {
        let path = format!("/local/domain/1/device/vbd/{XVDA}/{name}");
        self.0.lock().unwrap().insert(path, value.to_string());
    }
    pub fn remove_front(&self, name: &str) {
        let path = format!("/local/domain/1/device/vbd/{XVDA}/{name}");
        self.0.lock().unwrap().remove(&path);
    }
}

/// What a device was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub operation: Operation,
    pub sector: u64,
    pub segments: Vec<Segment>,
    pub tag: Tag,
    /// The vCPU that is told in the end.
    pub vcpu: u32,
}

/// A device's state.
pub struct DeviceState {
    pub info: DeviceInfo,
    pub data: Vec<u8>,
    /// At the device, not complete.
    pub pending: VecDeque<Given>,
    /// All it was ever given.
    pub log: Vec<Given>,
    /// Takes no more than so many at once.
    pub room: usize,
    /// There is so much as soon as a submission has found too little.
    pub room_next: usize,
    /// Fails the next submissions at once, or the next completions.
    pub fail_submit: VecDeque<IoError>,
    pub fail: VecDeque<IoError>,
    /// Sectors that cannot be read or written.
    pub bad: Range<u64>,
    pub commits: u32,
    uncommitted: bool,
}

/// A device in memory.
pub struct FakeDevice(pub Mutex<DeviceState>);

/// A disk with all there is.
pub fn disk(sectors: u64) -> DeviceInfo {
    DeviceInfo {
        sectors,
        logical_bytes: 512,
        physical_bytes: 4096,
        read_only: false,
        cdrom: false,
        removable: false,
        flush: true,
        discard: Some(Discard { granularity: 512, alignment: 0, secure: false, max_sectors: 64 }),
        max_transfer_bytes: 64 << 10,
        max_segments: 16,
        no_gaps: false,
        depth: 32,
    }
}

impl FakeDevice {
    fn new(info: DeviceInfo) -> Self {
        let data = (0..info.sectors * 512).map(|byte| ((byte / 512) ^ byte) as u8).collect();
        Self(Mutex::new(DeviceState {
            info,
            data,
            pending: VecDeque::new(),
            log: Vec::new(),
            room: usize::MAX,
            room_next: 0,
            fail_submit: VecDeque::new(),
            fail: VecDeque::new(),
            bad: 0..0,
            commits: 0,
            uncommitted: false,
        }))
    }

    pub fn state(&self) -> MutexGuard<'_, DeviceState> {
        self.0.lock().unwrap()
    }
}

impl BlockDevice for FakeDevice {
    fn info(&self) -> DeviceInfo {
        self.state().info
    }
    fn submit(&self, vcpu: u32, io: &Io<'_>, tag: Tag) -> Submitted {
        let mut state = self.state();
        check(&state.info, io);
        if state.pending.len() >= state.room {
            state.room = state.room.max(state.room_next);
            return Submitted::Busy;
        }
        if let Some(error) = state.fail_submit.pop_front() {
            return Submitted::Failed(error);
        }
        let (operation, sector) = (io.operation, io.sector);
        let given = Given { operation, sector, segments: io.segments.to_vec(), tag, vcpu };
        state.log.push(given.clone());
        state.pending.push_back(given);
        state.uncommitted = true;
        Submitted::Accepted
    }
    fn commit(&self, _vcpu: u32) {
        let mut state = self.state();
        state.commits += 1;
        state.uncommitted = false;
    }
}

/// What blkback promises a device.
fn check(info: &DeviceInfo, io: &Io<'_>) {
    let bytes = io.bytes();
    assert!(bytes <= u64::from(info.max_transfer_bytes));
    assert!(io.segments.len() <= usize::from(info.max_segments));
    let sectors = match io.operation {
        Operation::Discard { sectors, .. } => sectors,
        _ => bytes / 512,
    };
    assert!(io.sector + sectors <= info.sectors, "beyond the end");
    let unit = u64::from(info.logical_bytes / 512);
    assert!(io.sector.is_multiple_of(unit) && sectors.is_multiple_of(unit));
    let data = matches!(io.operation, Operation::Read | Operation::Write);
    assert_eq!(data, !io.segments.is_empty());
    assert!(!info.read_only || matches!(io.operation, Operation::Read | Operation::Flush));
    for segment in io.segments {
        assert!(u32::from(segment.offset) + u32::from(segment.len) <= 4096 && segment.len > 0);
    }
    if info.no_gaps {
        for pair in io.segments.windows(2) {
            assert_eq!((pair[0].offset + pair[0].len, pair[1].offset), (4096, 0), "a gap");
        }
    }
}

/// Bytes of a guest page, where both sides may change them.
pub fn page_bytes(plat: &FakePlatform, mfn: Mfn) -> Vec<u8> {
    let words = plat.frame(mfn).expect("the guest's");
    words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect()
}

pub fn set_page_bytes(plat: &FakePlatform, mfn: Mfn, offset: usize, bytes: &[u8]) {
    let mut page = page_bytes(plat, mfn);
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
    let words = plat.frame(mfn).expect("the guest's");
    for (word, bytes) in words.iter().zip(page.chunks_exact(8)) {
        word.store(u64::from_le_bytes(bytes.try_into().unwrap()), Relaxed);
    }
}

/// All together.
pub struct World {
    pub machine: Machine,
    pub store: Nodes,
    pub vbd: Vbd<FakeDevice>,
    free_pages: Vec<u64>,
    free_grefs: Vec<u32>,
}

impl World {
    pub fn new(info: DeviceInfo) -> Self {
        Self::with(info, Limits { queues: 4, ring_page_order: 4, requests: 32, max_segments: 32 })
    }

    pub fn with(info: DeviceInfo, limits: Limits) -> Self {
        let machine = Machine::with(FRAMES, 4);
        let pool: Vec<Mfn> = TABLE.map(mfn).collect();
        machine.dom.gnttab.set_pool(&machine.plat, &pool);
        let config = VbdConfig { number: XVDA, read_only: false, cdrom: false };
        let vbd = Vbd::new(3, config, limits, FakeDevice::new(info)).expect("memory");
        Self {
            machine,
            store: Nodes::default(),
            vbd,
            free_pages: (FIRST_FREE..FRAMES).rev().collect(),
            // One frame of entries; the first 8 are reserved.
            free_grefs: (8..512).rev().collect(),
        }
    }

    pub fn env(&self) -> Env<'_, FakePlatform> {
        Env { dom: &self.machine.dom, plat: &self.machine.plat, here: Here::on_id(0) }
    }

    pub fn page(&mut self) -> Mfn {
        mfn(self.free_pages.pop().expect("a free page"))
    }

    pub fn free_page(&mut self, page: Mfn) {
        self.free_pages.push(page.0 - mfn(0).0);
    }

    pub fn free_grefs(&self) -> usize {
        self.free_grefs.len()
    }

    fn entry(&self, gref: u32) -> (xen_abi::GuestVa, u64) {
        let at = va(TABLE.start).add(u64::from(gref) * 8);
        (at, self.machine.plat.peek(at))
    }

    /// Grants a page to domain 0.
    pub fn grant(&mut self, page: Mfn, read_only: bool) -> u32 {
        let gref = self.free_grefs.pop().expect("a free grant");
        let flags = gtf::PERMIT_ACCESS | if read_only { gtf::READONLY } else { 0 };
        self.machine.plat.poke(self.entry(gref).0, page.0 << 32 | u64::from(flags));
        gref
    }

    /// Whether a backend shows that it uses a grant.
    pub fn in_use(&self, gref: u32) -> bool {
        self.entry(gref).1 as u16 & (gtf::READING | gtf::WRITING) != 0
    }

    /// Takes a grant back.
    pub fn end_access(&mut self, gref: u32) {
        assert!(!self.in_use(gref), "gref {gref} is still in use");
        self.machine.plat.poke(self.entry(gref).0, 0);
        self.free_grefs.push(gref);
    }

    /// Allocates a port for domain 0.
    pub fn alloc_port(&mut self) -> u32 {
        let at = va(ARGUMENTS);
        self.machine.plat.poke(at, 0x7ff0);
        let cx = &mut self.machine.cx();
        let op = EvtchnOp::ALLOC_UNBOUND.0.into();
        evtchn::event_channel_op(cx, op, at.0).expect("a port");
        (self.machine.plat.peek(at) >> 32) as u32
    }

    pub fn close_port(&mut self, port: u32) {
        let at = va(ARGUMENTS);
        self.machine.plat.poke(at, port.into());
        let cx = &mut self.machine.cx();
        evtchn::event_channel_op(cx, EvtchnOp::CLOSE.0.into(), at.0).expect("closed");
    }

    /// Has a vCPU told of a port.
    pub fn bind_port(&mut self, port: u32, vcpu: u32) {
        let at = va(ARGUMENTS);
        self.machine.plat.poke(at, u64::from(vcpu) << 32 | u64::from(port));
        let cx = &mut self.machine.cx();
        let op = EvtchnOp::BIND_VCPU.0.into();
        evtchn::event_channel_op(cx, op, at.0).expect("bound");
    }

    /// Takes a port's pending bit.
    pub fn take_event(&self, port: u32) -> bool {
        let word = &self.machine.dom.shared_info.evtchn_pending[port as usize / 64];
        let bit = 1 << (port % 64);
        word.fetch_and(!bit, Relaxed) & bit != 0
    }

    /// Completes the `index`-th of the requests at the device.
    pub fn complete(&self, index: usize) {
        assert!(!self.vbd.device().state().uncommitted, "the host was not told");
        assert!(self.complete_at(index), "at the device");
    }

    /// Completes one of the requests at the device, if there is any.
    pub fn complete_any(&self, which: usize) -> bool {
        let waiting = self.vbd.device().state().pending.len();
        waiting > 0 && self.complete_at(which % waiting)
    }

    fn complete_at(&self, index: usize) -> bool {
        let (tag, result) = {
            let mut state = self.vbd.device().state();
            let Some(given) = state.pending.remove(index) else { return false };
            let result = match state.fail.pop_front() {
                Some(error) => Err(error),
                None => execute(&mut state, &self.machine.plat, &given),
            };
            (given.tag, result)
        };
        self.vbd.complete(&self.env(), tag, result);
        true
    }

    pub fn settle(&self) {
        while self.vbd.settle(&self.env(), &self.store) {}
    }

    /// Completes everything.
    pub fn drain(&self) {
        loop {
            if self.vbd.device().state().pending.is_empty() {
                break;
            }
            self.complete(0);
            self.settle();
        }
    }

    pub fn set_state(&self, state: u32) {
        self.store.set_front("state", state);
        self.vbd.frontend_changed(&self.env(), &self.store);
    }

    pub fn back_state(&self) -> u32 {
        self.store.back("state").map_or(0, |state| state.parse().unwrap())
    }

    pub fn log(&self) {
        for call in self.machine.plat.calls() {
            if let translate::fake::Call::Log(text) = call {
                println!("{text}");
            }
        }
    }
}

fn execute(state: &mut DeviceState, plat: &FakePlatform, given: &Given) -> IoResult {
    let sectors: u64 = given.segments.iter().map(|segment| u64::from(segment.len) / 512).sum();
    if given.sector < state.bad.end && state.bad.start < given.sector + sectors {
        return Err(IoError::Io);
    }
    let mut at = given.sector as usize * 512;
    for segment in &given.segments {
        let (offset, len) = (usize::from(segment.offset), usize::from(segment.len));
        if given.operation == Operation::Write {
            let page = page_bytes(plat, segment.gpfn);
            state.data[at..at + len].copy_from_slice(&page[offset..offset + len]);
        } else {
            set_page_bytes(plat, segment.gpfn, offset, &state.data[at..at + len]);
        }
        at += len;
    }
    if let Operation::Discard { sectors, .. } = given.operation {
        let bytes = vec![0; sectors as usize * 512];
        state.data[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(())
}
