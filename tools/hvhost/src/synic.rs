//! The part of the SynIC KVM leaves to its user: messages into a guest's message
//! page, flags into its event page, and the interrupts that go with them.
//!
//! KVM writes messages of synthetic timers into the same slots, from the thread
//! of the virtual processor. Messages from here are therefore queued and written
//! by that thread too, before it enters the guest ([`Synic::deliver`]); a kick
//! gets it out of the guest for that. Event flags are the host's alone and are set
//! from any thread.
//!
//! A slot that is occupied gets its MESSAGE_PENDING bit; the guest then writes EOM,
//! which is routed here ([`Synic::deliver`] again). A message that has another one
//! behind it is marked so from the start.

use crate::memory::Memory;
use hv_abi::PAGE_SIZE;
use hv_abi::msr::{HV_X64_MSR_SIEFP, HV_X64_MSR_SIMP, PageMsr};
use hv_abi::synic::{
    EVENT_FLAGS_PER_SINT, EventFlags, MESSAGE_PAYLOAD_BYTES, MESSAGE_PENDING, MessageSlot,
    MessageType, SINT_COUNT,
};
use std::collections::VecDeque;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// `HV_X64_MSR_SCONTROL`: the SynIC is on.
const SCONTROL_ENABLED: u64 = 1;

/// Interrupts and kicks; KVM in earnest.
pub trait SintSink: Send + Sync {
    /// Asserts a SINT.
    fn inject(&self, vp: u32, sint: u8);
    /// Has the thread of a virtual processor call [`Synic::deliver`].
    fn kick(&self, vp: u32);
}

#[derive(Debug)]
struct Message {
    sint: u8,
    payload: Vec<u8>,
}

/// SynIC of one virtual processor.
#[derive(Debug, Default)]
struct Vp {
    control: AtomicU64,
    messages: AtomicU64,
    events: AtomicU64,
    queue: Mutex<VecDeque<Message>>,
    pending: AtomicBool,
}

/// The SynICs of a machine.
pub struct Synic {
    memory: Memory,
    vps: Vec<Vp>,
    sink: Box<dyn SintSink>,
}

impl std::fmt::Debug for Synic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Synic").field("vps", &self.vps).finish_non_exhaustive()
    }
}

impl Synic {
    /// SynICs of `vps` processors, all off.
    #[must_use]
    pub fn new(memory: Memory, vps: u32, sink: Box<dyn SintSink>) -> Self {
        Self { memory, vps: (0..vps).map(|_| Vp::default()).collect(), sink }
    }

    /// Number of virtual processors.
    #[must_use]
    pub fn vp_count(&self) -> u32 {
        u32::try_from(self.vps.len()).unwrap_or(u32::MAX)
    }

    fn vp(&self, vp: u32) -> Option<&Vp> {
        self.vps.get(vp as usize)
    }

    /// The guest wrote SCONTROL, SIMP or SIEFP (`msr`); they have these values now.
    ///
    /// KVM does not clear a page when it becomes a SynIC page; stale bytes would
    /// look like an occupied message slot, so it is done here.
    pub fn update(&self, vp: u32, msr: u32, control: u64, messages: PageMsr, events: PageMsr) {
        let Some(state) = self.vp(vp) else { return };
        let (old, new) = match msr {
            HV_X64_MSR_SIMP => (PageMsr(state.messages.load(Ordering::Relaxed)), messages),
            HV_X64_MSR_SIEFP => (PageMsr(state.events.load(Ordering::Relaxed)), events),
            _ => (PageMsr::default(), PageMsr::default()),
        };
        if new.is_enabled() && new != old {
            // Outside memory there is nothing to clear.
            let _ = self.memory.write_slice(&[0u8; PAGE_SIZE], GuestAddress(new.gpa()));
        }
        state.control.store(control, Ordering::SeqCst);
        state.messages.store(messages.0, Ordering::SeqCst);
        state.events.store(events.0, Ordering::SeqCst);
        self.deliver(vp);
    }

    /// Sends a VMBus message to a processor.
    pub fn post(&self, vp: u32, sint: u8, payload: &[u8]) {
        let Some(state) = self.vp(vp) else { return };
        let payload = payload.get(..payload.len().min(MESSAGE_PAYLOAD_BYTES)).unwrap_or_default();
        let message = Message { sint, payload: payload.to_vec() };
        state.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        state.pending.store(true, Ordering::SeqCst);
        self.sink.kick(vp);
    }

    /// Whether messages were posted since the last [`Self::deliver`].
    #[must_use]
    pub fn has_posted(&self, vp: u32) -> bool {
        self.vp(vp).is_some_and(|state| state.pending.load(Ordering::SeqCst))
    }

    /// Writes as many queued messages as there is room for. Only from the
    /// processor's own thread, outside the guest.
    pub fn deliver(&self, vp: u32) {
        let Some(state) = self.vp(vp) else { return };
        state.pending.store(false, Ordering::SeqCst);
        let page = PageMsr(state.messages.load(Ordering::SeqCst));
        let on = state.control.load(Ordering::SeqCst) & SCONTROL_ENABLED != 0;
        if !on || !page.is_enabled() {
            return;
        }
        let mut queue = state.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(message) = queue.front() {
            let sint = message.sint;
            let more = queue.len() > 1;
            if !self.write_slot(page, message, more) {
                break;
            }
            queue.pop_front();
            self.sink.inject(vp, sint);
        }
    }

    /// `false`: the slot is occupied, and the guest will write EOM.
    fn write_slot(&self, page: PageMsr, message: &Message, more: bool) -> bool {
        let at = page.gpa() + u64::from(message.sint) * size_of::<MessageSlot>() as u64;
        // A page outside memory swallows messages.
        let Ok(slot) = self.memory.get_slice(GuestAddress(at), size_of::<MessageSlot>()) else {
            return true;
        };
        let (Ok(kind), Ok(flags)) = (
            slot.get_atomic_ref::<AtomicU32>(offset_of!(MessageSlot, message_type)),
            slot.get_atomic_ref::<AtomicU8>(offset_of!(MessageSlot, message_flags)),
        ) else {
            return true;
        };
        if kind.load(Ordering::Acquire) != MessageType::NONE.0 {
            flags.fetch_or(MESSAGE_PENDING, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Another processor could have freed it meanwhile, and not seen the flag.
            if kind.load(Ordering::SeqCst) != MessageType::NONE.0 {
                return false;
            }
        }
        let mut payload = [0u8; MESSAGE_PAYLOAD_BYTES];
        for (to, from) in payload.iter_mut().zip(&message.payload) {
            *to = *from;
        }
        let size = u8::try_from(message.payload.len()).unwrap_or(u8::MAX);
        let header = [size, if more { MESSAGE_PENDING } else { 0 }, 0, 0];
        // Inside the slot that was just found.
        let _ = slot.write_slice(&header, offset_of!(MessageSlot, payload_size));
        let _ = slot.write_slice(&[0u8; 8], offset_of!(MessageSlot, sender));
        let _ = slot.write_slice(&payload, offset_of!(MessageSlot, payload));
        kind.store(MessageType::VMBUS_CHANNEL.0, Ordering::Release);
        true
    }

    /// Sets an event flag. `true`: it was clear, and the processor is interrupted.
    pub fn signal(&self, vp: u32, sint: u8, flag: u16) -> bool {
        let Some(state) = self.vp(vp) else { return false };
        let page = PageMsr(state.events.load(Ordering::SeqCst));
        let on = state.control.load(Ordering::SeqCst) & SCONTROL_ENABLED != 0;
        let flag = usize::from(flag);
        if !on || !page.is_enabled() || flag >= EVENT_FLAGS_PER_SINT {
            return false;
        }
        if usize::from(sint) >= SINT_COUNT {
            return false;
        }
        let at = page.gpa()
            + u64::from(sint) * size_of::<EventFlags>() as u64
            + (flag / 64 * size_of::<u64>()) as u64;
        let Ok(slice) = self.memory.get_slice(GuestAddress(at), size_of::<u64>()) else {
            return false;
        };
        let Ok(word) = slice.get_atomic_ref::<AtomicU64>(0) else { return false };
        let bit = 1u64 << (flag % 64);
        let clear = word.fetch_or(bit, Ordering::SeqCst) & bit == 0;
        if clear {
            self.sink.inject(vp, sint);
        }
        clear
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;
    use hv_abi::msr::HV_X64_MSR_SCONTROL;
    use std::sync::Arc;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u32, u8)>>, Mutex<Vec<u32>>);

    impl SintSink for Arc<Log> {
        fn inject(&self, vp: u32, sint: u8) {
            self.0.lock().unwrap().push((vp, sint));
        }

        fn kick(&self, vp: u32) {
            self.1.lock().unwrap().push(vp);
        }
    }

    const SLOT: u64 = 0x5000 + 2 * 256;

    fn synic() -> (Synic, Memory, Arc<Log>) {
        let memory = allocate(64 << 20).unwrap();
        let log = Arc::new(Log::default());
        (Synic::new(memory.clone(), 2, Box::new(log.clone())), memory, log)
    }

    fn on(synic: &Synic) {
        let (simp, siefp) = (PageMsr::enabled_at(0x5000), PageMsr::enabled_at(0x6000));
        synic.update(1, HV_X64_MSR_SIMP, 1, simp, siefp);
        synic.update(1, HV_X64_MSR_SIEFP, 1, simp, siefp);
    }

    fn byte(memory: &Memory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn page_is_cleared_when_it_is_placed() {
        let (synic, memory, _) = synic();
        let at = GuestAddress(0x5000);
        let (page, off) = (PageMsr::enabled_at(0x5000), PageMsr::default());
        memory.write_obj(0x1234_5678u64, at).unwrap();
        synic.update(0, HV_X64_MSR_SIMP, 1, PageMsr(0x5000), off);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0x1234_5678, "not enabled");
        synic.update(0, HV_X64_MSR_SIMP, 1, page, off);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0);
        memory.write_obj(1u64, at).unwrap();
        synic.update(0, HV_X64_MSR_SIEFP, 1, page, PageMsr::enabled_at(0x7000));
        synic.update(0, HV_X64_MSR_SIMP, 1, page, PageMsr::enabled_at(0x7000));
        synic.update(0, HV_X64_MSR_SCONTROL, 1, page, PageMsr::enabled_at(0x7000));
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 1, "in use: left alone");
        synic.update(0, HV_X64_MSR_SIMP, 1, PageMsr::enabled_at(1 << 50), off);
        synic.post(0, 2, b"lost");
        synic.deliver(0);
        synic.update(9, HV_X64_MSR_SIMP, 1, page, off);
    }

    #[test]
    fn messages_wait_for_their_slot() {
        let (synic, memory, log) = synic();
        synic.post(1, 2, b"first");
        synic.deliver(1);
        assert!(log.0.lock().unwrap().is_empty(), "the SynIC is off");
        on(&synic);
        assert_eq!(*log.0.lock().unwrap(), [(1, 2)]);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(SLOT)).unwrap(), 1);
        assert_eq!((byte(&memory, SLOT + 4), byte(&memory, SLOT + 5)), (5, 0));
        synic.post(1, 2, b"second!");
        synic.post(1, 2, b"third");
        assert_eq!(*log.1.lock().unwrap(), [1, 1, 1]);
        assert!(synic.has_posted(1) && !synic.has_posted(0));
        synic.deliver(1);
        assert_eq!(byte(&memory, SLOT + 5), MESSAGE_PENDING);
        assert_eq!(byte(&memory, SLOT + 16), b'f');
        memory.write_obj(0u32, GuestAddress(SLOT)).unwrap();
        synic.deliver(1);
        assert_eq!((byte(&memory, SLOT + 4), byte(&memory, SLOT + 5)), (7, MESSAGE_PENDING));
        memory.write_obj(0u32, GuestAddress(SLOT)).unwrap();
        synic.deliver(1);
        assert_eq!((byte(&memory, SLOT + 4), byte(&memory, SLOT + 5)), (5, 0));
        assert_eq!(log.0.lock().unwrap().len(), 3);
    }

    #[test]
    fn flags_interrupt_once() {
        let (synic, memory, log) = synic();
        assert!(!synic.signal(1, 2, 77));
        on(&synic);
        assert!(synic.signal(1, 2, 77));
        assert!(!synic.signal(1, 2, 77));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x6000 + 512 + 8)).unwrap(), 1 << 13);
        assert_eq!(*log.0.lock().unwrap(), [(1, 2)]);
        assert!(!synic.signal(1, 2, 2048) && !synic.signal(1, 16, 1) && !synic.signal(2, 2, 1));
    }
}
