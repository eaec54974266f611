//! The monitor page: a guest that finds the ring non-empty sets a bit there
//! instead of making a hypercall, and the host looks at it every now and then.
//! While no channel uses it, no thread looks.

use crate::memory::Memory;
use crate::vmbus::channel::Waker;
use hv_abi::vmbus::interrupt::{MONITOR_GROUPS, MONITOR_TRIGGERS, MonitorPage};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

/// How long a trigger waits at most, besides the host's own scheduling.
const LATENCY: Duration = Duration::from_micros(100);

#[derive(Debug, Default)]
struct State {
    page: Option<u64>,
    channels: BTreeMap<u8, Arc<Waker>>,
    /// The thread runs.
    started: bool,
}

/// The monitor of a guest.
#[derive(Debug)]
pub struct Monitor {
    memory: Memory,
    state: Mutex<State>,
    changed: Condvar,
}

impl Monitor {
    /// A monitor without a page.
    #[must_use]
    pub fn new(memory: Memory) -> Arc<Self> {
        Arc::new(Self { memory, state: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's page, or none any more.
    pub fn set_page(&self, page: Option<u64>) {
        self.lock().page = page;
        self.changed.notify_all();
    }

    /// Bit `number` wakes this channel.
    pub fn add(self: &Arc<Self>, number: u8, waker: Arc<Waker>) {
        let mut state = self.lock();
        state.channels.insert(number, waker);
        if !std::mem::replace(&mut state.started, true) {
            let me = self.clone();
            let thread = thread::Builder::new().name("monitor".into()).spawn(move || me.watch());
            state.started = thread.is_ok();
        }
        self.changed.notify_all();
    }

    /// The channel is closed.
    pub fn remove(&self, number: u8) {
        self.lock().channels.remove(&number);
    }

    fn watch(&self) {
        let mut state = self.lock();
        loop {
            let Some(page) = state.page.filter(|_| !state.channels.is_empty()) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            poll(&self.memory, page, &state.channels);
            drop(state);
            thread::sleep(LATENCY);
            state = self.lock();
        }
    }
}

/// Takes all bits that are set and wakes their channels.
fn poll(memory: &Memory, page: u64, channels: &BTreeMap<u8, Arc<Waker>>) {
    const GROUPS: usize = offset_of!(MonitorPage, trigger_group);
    let Ok(slice) = memory.get_slice(GuestAddress(page), size_of::<MonitorPage>()) else { return };
    for group in 0..MONITOR_GROUPS {
        let Ok(pending) = slice.get_atomic_ref::<AtomicU32>(GROUPS + group * 8) else { return };
        if pending.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let bits = pending.swap(0, Ordering::AcqRel);
        for trigger in (0..MONITOR_TRIGGERS).filter(|t| bits & 1 << t != 0) {
            let number = u8::try_from(group * MONITOR_TRIGGERS + trigger).unwrap_or(u8::MAX);
            if let Some(waker) = channels.get(&number) {
                waker.signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use vm_memory::Bytes;

    #[test]
    fn bits_wake_their_channels() {
        let memory = allocate(64 << 20).unwrap();
        let (a, b) = (Arc::new(Waker::new(0).unwrap()), Arc::new(Waker::new(0).unwrap()));
        let channels = BTreeMap::from([(3, a.clone()), (33, b.clone())]);
        memory.write_obj(1u32 << 3 | 1 << 4, GuestAddress(0x5008)).unwrap();
        memory.write_obj(1u32 << 1, GuestAddress(0x5010)).unwrap();
        poll(&memory, 0x5000, &channels);
        assert_eq!((a.event().read().unwrap(), b.event().read().unwrap()), (1, 1));
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5008)).unwrap(), 0);
        poll(&memory, 1 << 50, &channels);
        poll(&memory, 0x5001, &channels);
    }
}
