//! The FIFO ABI: an event word per port in pages the guest gives, and per vCPU a control block
//! with a queue head for each of 16 priorities.
//!
//! ```text
//! control block        event words
//! ready  bit per queue
//! head[7] ─────────▶ [P|L|link=9] ─▶ [P|L|link=4] ─▶ [P|L|link=0]
//!                      port 5          port 9          port 4 = our tail
//! ```
//! We append at the tail, the guest takes from the head. Appending sets LINKED on the new word,
//! then writes the tail word's link if that is still LINKED (the guest may take it at any
//! moment), else the head. Only the tail is ours to remember; everything else is in memory the
//! guest may scribble over, so links are written, never followed.
//!
//! The guest's pages are held by address and looked up at each use: a page the guest gave away
//! meanwhile is gone, and its events with it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use spin::{Mutex, MutexGuard};
use xen_abi::event_channel::{FifoArrayPage, FifoControlBlock, fifo as abi};
use xen_abi::{Errno, MachineAddr, Mfn, PAGE_SIZE};

use super::{Here, MAX_PORTS, PortState, check_pollers, mark_events_pending};
use crate::domain::{Domain, MAX_VCPUS};
use crate::platform::{GuestMemory, Platform};

/// Pages of the event array that ports can need.
const ARRAY_PAGES: usize = MAX_PORTS / abi::WORDS_PER_PAGE;
/// `EVTCHN_FIFO_MAX_EVENT_ARRAY_PAGES`: how many a guest may add.
const MAX_ARRAY_PAGES: u32 = abi::NR_CHANNELS / abi::WORDS_PER_PAGE as u32;
/// No address.
const NONE: u64 = u64::MAX;

/// Queues of a vCPU.
#[derive(Debug)]
struct FifoVcpu {
    /// Machine address of the control block.
    control: AtomicU64,
    /// The last port of each queue, as far as we know; 0 = empty.
    tails: [Mutex<u32>; abi::MAX_QUEUES],
}

/// State of the FIFO ABI.
#[derive(Debug)]
pub(super) struct Fifo {
    /// Ports that have an event word.
    num_evtchns: AtomicU32,
    /// Frames of the event array.
    array: [AtomicU64; ARRAY_PAGES],
    vcpus: [FifoVcpu; MAX_VCPUS],
}

/// A queue. Locks are taken in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Queue {
    vcpu: u32,
    priority: u32,
}

impl Queue {
    const fn encode(self) -> u32 {
        self.vcpu << 8 | self.priority
    }
    const fn decode(word: u32) -> Self {
        Self { vcpu: word >> 8, priority: word & 0xff }
    }
}

impl Fifo {
    pub(super) const fn new() -> Self {
        Self {
            num_evtchns: AtomicU32::new(0),
            array: [const { AtomicU64::new(NONE) }; ARRAY_PAGES],
            vcpus: [const {
                FifoVcpu {
                    control: AtomicU64::new(NONE),
                    tails: [const { Mutex::new(0) }; abi::MAX_QUEUES],
                }
            }; MAX_VCPUS],
        }
    }

    /// The event word of a port, where the guest has given its page.
    #[inline]
    fn word<M: GuestMemory>(&self, plat: &M, port: u32) -> Option<&'static AtomicU32> {
        // Acquire: pairs with `expand`, which stores the frame before the count.
        if port >= self.num_evtchns.load(Ordering::Acquire) {
            return None;
        }
        let page = self.array.get(port as usize / abi::WORDS_PER_PAGE)?.load(Ordering::Relaxed);
        if page == NONE {
            return None;
        }
        let page: &'static FifoArrayPage = plat.view(Mfn(page).base())?;
        page.words.get(port as usize % abi::WORDS_PER_PAGE)
    }

    fn control<M: GuestMemory>(&self, plat: &M, vcpu: u32) -> Option<&'static FifoControlBlock> {
        let at = self.vcpus.get(vcpu as usize)?.control.load(Ordering::Acquire);
        if at == NONE { None } else { plat.view(MachineAddr(at)) }
    }

    fn tail(&self, queue: Queue) -> Option<MutexGuard<'_, u32>> {
        let tails = &self.vcpus.get(queue.vcpu as usize)?.tails;
        tails.get(queue.priority as usize).map(Mutex::lock)
    }

    pub(super) fn is_linked<M: GuestMemory>(&self, plat: &M, port: u32) -> bool {
        self.has(plat, port, abi::LINKED)
    }

    pub(super) fn is_pending<M: GuestMemory>(&self, plat: &M, port: u32) -> bool {
        self.has(plat, port, abi::PENDING)
    }

    fn has<M: GuestMemory>(&self, plat: &M, port: u32, flag: u32) -> bool {
        self.word(plat, port).is_some_and(|word| word.load(Ordering::SeqCst) & flag != 0)
    }

    /// The guest unlinks and ignores words that are not pending, so the bit is all.
    pub(super) fn clear_pending<M: GuestMemory>(&self, plat: &M, port: u32) {
        if let Some(word) = self.word(plat, port) {
            word.fetch_and(!abi::PENDING, Ordering::SeqCst);
        }
    }

    /// Whether any control block is there.
    fn map_control<M: GuestMemory>(
        &self,
        plat: &M,
        vcpu: u32,
        gfn: u64,
        offset: u32,
    ) -> Result<(), Errno> {
        let slot = self.vcpus.get(vcpu as usize).ok_or(Errno::ENOENT)?;
        if slot.control.load(Ordering::Relaxed) != NONE {
            return Err(Errno::EINVAL);
        }
        let at = guest_page(plat, gfn)?.base().0 | u64::from(offset);
        slot.control.store(at, Ordering::Release);
        Ok(())
    }

    /// Forgets everything; the guest is back on the 2-level ABI.
    fn destroy(&self) {
        self.num_evtchns.store(0, Ordering::Release);
        for page in &self.array {
            page.store(NONE, Ordering::Relaxed);
        }
        for vcpu in &self.vcpus {
            vcpu.control.store(NONE, Ordering::Relaxed);
            for tail in &vcpu.tails {
                *tail.lock() = 0;
            }
        }
    }
}

/// A frame the guest names, which must be its own.
fn guest_page<M: GuestMemory>(plat: &M, gfn: u64) -> Result<Mfn, Errno> {
    // A frame number whose address would not fit in 64 bits is nobody's.
    if gfn > u64::MAX / PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let mfn = Mfn(gfn);
    plat.frame(mfn).map(|_| mfn).ok_or(Errno::EINVAL)
}

/// `EVTCHNOP_init_control`.
pub(super) fn init_control<P: Platform>(
    dom: &Domain,
    plat: &P,
    vcpu: u32,
    gfn: u64,
    offset: u32,
) -> Result<(), Errno> {
    if vcpu >= dom.nr_vcpus {
        return Err(Errno::ENOENT);
    }
    if u64::from(offset) > PAGE_SIZE - size_of::<FifoControlBlock>() as u64
        || !offset.is_multiple_of(8)
    {
        return Err(Errno::EINVAL);
    }
    let channels = &dom.evtchn;
    let _config = channels.config.lock();
    channels.fifo.map_control(plat, vcpu, gfn, offset)?;
    if channels.uses_fifo() {
        return Ok(());
    }
    // The first control block switches the ABI. What is pending now is raised again when the
    // guest adds the array page of its port.
    channels.fifo_abi.store(true, Ordering::Release);
    for (port, slot) in (1u32..).zip(channels.ports.iter().skip(1)) {
        slot.set_state(slot.state().with_priority(abi::PRIORITY_DEFAULT));
        slot.last_queue.store(0, Ordering::Relaxed);
        // Another processor may have raised it already, by the new ABI.
        if super::two_level::is_pending(dom, port) {
            slot.saved_pending.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// `EVTCHNOP_expand_array`.
pub(super) fn expand_array<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    gfn: u64,
) -> Result<(), Errno> {
    let channels = &dom.evtchn;
    let first = {
        let _config = channels.config.lock();
        if !channels.uses_fifo() {
            return Err(Errno::EOPNOTSUPP);
        }
        let fifo = &channels.fifo;
        let first = fifo.num_evtchns.load(Ordering::Relaxed);
        let page = first / abi::WORDS_PER_PAGE as u32;
        if page >= MAX_ARRAY_PAGES {
            return Err(Errno::ENOSPC);
        }
        let mfn = guest_page(plat, gfn)?;
        // Pages beyond our ports are accepted and counted; nothing is ever written there.
        if let Some(slot) = fifo.array.get(page as usize) {
            slot.store(mfn.0, Ordering::Relaxed);
        }
        fifo.num_evtchns.store(first + abi::WORDS_PER_PAGE as u32, Ordering::Release);
        first
    };
    // Against `word_or_save`: it sees the page, or what it saved is seen here.
    fence(Ordering::SeqCst);
    let ports = channels.ports.iter().enumerate().skip(first as usize);
    for (port, slot) in ports.take(abi::WORDS_PER_PAGE) {
        if slot.saved_pending.swap(false, Ordering::Relaxed) {
            set_pending(dom, plat, here, port as u32, slot.state());
        }
    }
    Ok(())
}

/// Back to the 2-level ABI (`EVTCHNOP_reset`); the caller holds `config`.
pub(super) fn leave(dom: &Domain, _config: &MutexGuard<'_, ()>) {
    dom.evtchn.fifo_abi.store(false, Ordering::Release);
    dom.evtchn.fifo.destroy();
}

/// `EVTCHNOP_unmask`.
pub(super) fn unmask<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    port: u32,
    state: PortState,
) {
    if let Some(word) = dom.evtchn.fifo.word(plat, port)
        && word.fetch_and(!abi::MASKED, Ordering::SeqCst) & abi::PENDING != 0
    {
        set_pending(dom, plat, here, port, state);
    }
}

pub(super) fn set_pending<P: Platform>(
    dom: &Domain,
    plat: &P,
    here: Here<'_>,
    port: u32,
    state: PortState,
) {
    let fifo = &dom.evtchn.fifo;
    let Some(slot) = dom.evtchn.ports.get(port as usize) else { return };
    let Some(word) = word_or_save(fifo, plat, port, slot) else { return };
    let queue = Queue { vcpu: state.vcpu(), priority: state.priority() };

    let mut ready = None;
    let newly_pending;
    {
        // Without a control block the guest must not have unmasked the port, and one that other processors
        // keep moving has no queue: as in Xen the event is pending then, and on none.
        let control = fifo.control(plat, queue.vcpu);
        let locked = control.and_then(|control| Some((control, lock_queues(fifo, slot, queue)?)));
        // The queue stays locked from here until the word is linked: nobody may be woken for an
        // event that is not yet to be found.
        newly_pending = word.fetch_or(abi::PENDING, Ordering::SeqCst) & abi::PENDING == 0;
        if let Some((control, (mut tail, mut last_tail))) = locked
            && word.load(Ordering::SeqCst) & abi::MASKED == 0
            && word.fetch_or(abi::LINKED, Ordering::SeqCst) & abi::LINKED == 0
        {
            // The word was taken off the queue it was on. If it was that queue's tail, the
            // queue is empty, and appending to it must not link to this word any more.
            let old = last_tail.as_deref_mut().unwrap_or(&mut *tail);
            if *old == port {
                *old = 0;
            }
            if last_tail.take().is_some() {
                slot.last_queue.store(queue.encode(), Ordering::Relaxed);
            }
            let appended = *tail != 0
                && fifo.word(plat, *tail).is_some_and(|tail_word| set_link(tail_word, port));
            if !appended && let Some(head) = control.head.get(queue.priority as usize) {
                head.store(port, Ordering::Release);
                ready = Some(control);
            }
            *tail = port;
        }
    }
    if let Some(control) = ready {
        let bit = 1 << queue.priority;
        if control.ready.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            mark_events_pending(dom, plat, here, queue.vcpu);
        }
    }
    if newly_pending {
        check_pollers(dom, plat, here, port);
    }
}

/// A port's event word; where the guest has not added its page yet, the event is saved until it does.
fn word_or_save<P: Platform>(
    fifo: &Fifo,
    plat: &P,
    port: u32,
    slot: &super::Port,
) -> Option<&'static AtomicU32> {
    fifo.word(plat, port).or_else(|| {
        slot.saved_pending.store(true, Ordering::Relaxed);
        // Has it come meanwhile, and has whoever added it not seen that?
        fence(Ordering::SeqCst);
        fifo.word(plat, port).filter(|_| slot.saved_pending.swap(false, Ordering::Relaxed))
    })
}

type Tail<'a> = MutexGuard<'a, u32>;

/// Locks the queue an event goes to and, if it is another, the one its port was last on.
fn lock_queues<'a>(
    fifo: &'a Fifo,
    slot: &super::Port,
    queue: Queue,
) -> Option<(Tail<'a>, Option<Tail<'a>>)> {
    // The port moves to another queue only while both are locked, so this ends unless other
    // processors keep moving it; after three tries the event is dropped, as in Xen.
    for _ in 0..3 {
        let last = Queue::decode(slot.last_queue.load(Ordering::Relaxed));
        let (tail, last_tail) = match queue.cmp(&last) {
            core::cmp::Ordering::Equal => (fifo.tail(queue)?, None),
            core::cmp::Ordering::Less => {
                let tail = fifo.tail(queue)?;
                (tail, Some(fifo.tail(last)?))
            }
            core::cmp::Ordering::Greater => {
                let last_tail = fifo.tail(last)?;
                (fifo.tail(queue)?, Some(last_tail))
            }
        };
        if Queue::decode(slot.last_queue.load(Ordering::Relaxed)) == last {
            return Some((tail, last_tail));
        }
    }
    None
}

/// Writes the link of a tail word if it is still LINKED; `false` where it is not, and the queue
/// therefore empty.
///
/// A guest may set or clear MASKED, clear PENDING, and clear LINKED; unmasking is held off by
/// BUSY. So the exchange fails at most four times for an honest guest, and a dishonest one
/// loses its event.
fn set_link(word: &AtomicU32, link: u32) -> bool {
    let mut value = word.load(Ordering::SeqCst);
    let try_link = |value: &mut u32| {
        if *value & abi::LINKED == 0 {
            return Some(false);
        }
        let new = *value & !(abi::BUSY | abi::LINK_MASK) | link;
        match word.compare_exchange(*value, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Some(true),
            Err(seen) => {
                *value = seen;
                None
            }
        }
    };
    if let Some(done) = try_link(&mut value) {
        return done;
    }
    value = word.fetch_or(abi::BUSY, Ordering::SeqCst) | abi::BUSY;
    for _ in 0..4 {
        match try_link(&mut value) {
            Some(true) => return true,
            Some(false) => break,
            None => {}
        }
    }
    let last = word.fetch_and(!abi::BUSY, Ordering::SeqCst);
    last & abi::LINKED != 0
}
