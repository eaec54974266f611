//! The control ring: how received packets are spread over queues (`netif.h`, "Control messages").

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use spin::RwLock;
use translate::gnttab;
use translate::platform::{PageWords, Platform};
use xen_abi::PAGE_SIZE;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::netif::{
    CtrlStatus, CtrlType, HashAlgorithm, NetifCtrlRequest, NetifCtrlResponse,
};
use xen_abi::io::ring::ring_size;
use zerocopy::{FromBytes, IntoBytes};

use super::Env;
use super::chain::Fatal;
use super::line::{Line, Port};
use super::steering::{ALL_TYPES, Hash, MAPPING_ENTRIES, Steering};
use crate::net::{HASH_KEY_BYTES, HashTypes, NetDevice, NetInfo, Rss, copy_out};

/// Bytes of an entry.
pub(super) const CTRL_ENTRY_BYTES: usize = size_of::<NetifCtrlRequest>();
/// Messages taken in one go.
const BUDGET: u32 = 32;
/// Entries of a page of the table of queues.
const ENTRIES_PER_PAGE: u32 = 1024;

/// The control ring, where the frontend has one.
pub(super) struct Ctrl {
    pub(super) line: Option<Line>,
}

/// What became of a run.
pub(super) struct Ran {
    /// There is more to do at once.
    pub(super) more: bool,
    /// The hash changed.
    pub(super) changed: bool,
}

impl Ctrl {
    /// [`Self::run`]s that take all a ring holds.
    pub(super) const PASSES: u32 = ring_size(PAGE_SIZE as usize, CTRL_ENTRY_BYTES) / BUDGET;

    pub(super) const fn new() -> Self {
        Self { line: None }
    }

    pub(super) fn push(&mut self) -> Option<Port> {
        self.line.as_mut().and_then(Line::push)
    }

    /// Does what is in the ring, for a frontend of so many queues.
    pub(super) fn run<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        steering: &RwLock<Steering>,
        queues: u16,
    ) -> Result<Ran, Fatal> {
        let mut ran = Ran { more: false, changed: false };
        let Some(line) = self.line.as_mut().filter(|line| !line.stopped) else { return Ok(ran) };
        for _ in 0..BUDGET {
            let waits = line.ring.sleep();
            if waits.is_err() {
                line.stopped = true;
            }
            if !waits? {
                return Ok(ran);
            }
            let mut words = [0u32; CTRL_ENTRY_BYTES / 4];
            line.ring.take(&mut words);
            let Ok(request) = NetifCtrlRequest::read_from_bytes(words.as_bytes()) else { continue };
            let mut steering = steering.write();
            let (status, data) = execute(env, &mut steering.hash, queues, &request);
            ran.changed |= status == CtrlStatus::SUCCESS;
            drop(steering);
            let NetifCtrlRequest { id, type_, .. } = request;
            line.put(&NetifCtrlResponse { id, type_, status, data });
        }
        ran.more = true;
        Ok(ran)
    }
}

/// Does what a message asks for: the answer's status and data.
fn execute<P: Platform>(
    env: &Env<'_, P>,
    hash: &mut Hash,
    queues: u16,
    request: &NetifCtrlRequest,
) -> (CtrlStatus, u32) {
    let [a, b, c] = request.data;
    let done = |done: Option<()>| match done {
        Some(()) => CtrlStatus::SUCCESS,
        None => CtrlStatus::INVALID_PARAMETER,
    };
    let status = match request.type_ {
        CtrlType::SET_HASH_ALGORITHM => {
            let algorithm = HashAlgorithm(a);
            let known = [HashAlgorithm::NONE, HashAlgorithm::TOEPLITZ].contains(&algorithm);
            done(known.then(|| hash.algorithm = algorithm))
        }
        CtrlType::GET_HASH_FLAGS if hash.algorithm != HashAlgorithm::NONE => {
            return (CtrlStatus::SUCCESS, ALL_TYPES);
        }
        CtrlType::SET_HASH_FLAGS => {
            let good = a & !ALL_TYPES == 0 && hash.algorithm != HashAlgorithm::NONE;
            done(good.then(|| hash.types = a))
        }
        CtrlType::SET_HASH_KEY if b as usize > HASH_KEY_BYTES => CtrlStatus::BUFFER_OVERFLOW,
        CtrlType::SET_HASH_KEY => done(set_key(env, hash, GrantRef(a), b as usize)),
        CtrlType::GET_HASH_MAPPING_SIZE => {
            return (CtrlStatus::SUCCESS, MAPPING_ENTRIES as u32);
        }
        CtrlType::SET_HASH_MAPPING_SIZE => {
            let good = a as usize <= MAPPING_ENTRIES;
            done(good.then(|| {
                hash.mapping.clear();
                hash.mapping.extend((0..a).map(|_| 0));
            }))
        }
        CtrlType::SET_HASH_MAPPING
            if c.checked_add(b).is_none_or(|end| end as usize > hash.mapping.len()) =>
        {
            CtrlStatus::BUFFER_OVERFLOW
        }
        CtrlType::SET_HASH_MAPPING => done(set_mapping(env, hash, queues, (GrantRef(a), b, c))),
        // Static grants are not kept: nothing here maps pages.
        _ => CtrlStatus::NOT_SUPPORTED,
    };
    (status, 0)
}

/// Looks into a granted page.
fn with_page<P: Platform, R>(
    env: &Env<'_, P>,
    gref: GrantRef,
    bytes: usize,
    look: impl FnOnce(&PageWords) -> R,
) -> Option<R> {
    let grants = gnttab::open(env.dom);
    let access = grants.access(env.plat, gref, false).ok()?;
    let inside = access.offset == 0 && usize::from(access.len) >= bytes;
    let result = env.plat.frame(access.mfn).filter(|_| inside).map(look);
    grants.release(gref, false);
    result
}

fn set_key<P: Platform>(
    env: &Env<'_, P>,
    hash: &mut Hash,
    gref: GrantRef,
    bytes: usize,
) -> Option<()> {
    let mut key = [0; HASH_KEY_BYTES];
    if bytes > 0 {
        let to = key.get_mut(..bytes)?;
        with_page(env, gref, bytes, |page| copy_out(page, 0, to))?;
    }
    hash.key = key;
    Some(())
}

fn set_mapping<P: Platform>(
    env: &Env<'_, P>,
    hash: &mut Hash,
    queues: u16,
    (gref, count, at): (GrantRef, u32, u32),
) -> Option<()> {
    if count == 0 {
        return Some(());
    }
    if count > ENTRIES_PER_PAGE {
        return None;
    }
    // Read once, and checked before it is in force.
    let mut entries = ArrayVec::<u16, MAPPING_ENTRIES>::new();
    let good = with_page(env, gref, count as usize * 4, |page| {
        (0..count as usize).all(|index| {
            let word = page.get(index / 2).map_or(0, |word| word.load(Ordering::Relaxed));
            let entry = (word >> (index % 2 * 32)) as u32;
            entry < u32::from(queues) && entries.try_push(entry as u16).is_ok()
        })
    })?;
    let to = hash.mapping.get_mut(at as usize..(at + count) as usize).filter(|_| good)?;
    to.copy_from_slice(&entries);
    Some(())
}

/// Has the device spread what comes as the frontend wants it, as far as it can; what it cannot is
/// done packet by packet. Nothing is asked of it where no frontend ever did.
pub(super) fn spread(device: &dyn NetDevice, info: &NetInfo, hash: &Hash, queues: u16) {
    let Some(entries) = info.rss_entries.min(MAPPING_ENTRIES as u16).checked_ilog2() else {
        return;
    };
    let queues = (info.queues.min(u32::from(u16::MAX)) as u16).min(queues).max(1);
    let hashes = hash.algorithm != HashAlgorithm::NONE && hash.types != 0;
    let table: ArrayVec<u16, MAPPING_ENTRIES> = (0..1u16 << entries)
        .map(|index| match hash.mapping.get(usize::from(index) % hash.mapping.len().max(1)) {
            Some(queue) if hashes => queue % queues,
            _ => index % queues,
        })
        .collect();
    let all = HashTypes { tcp_v4: true, v4: true, tcp_v6: true, v6: true };
    let types = if hashes { hash.types() } else { all };
    // Where it refuses, the hash is made here.
    let _ = device.set_rss(&Rss { types, key: hash.key, table: &table });
}
