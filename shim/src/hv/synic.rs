//! SynIC: message and event pages, synthetic interrupt sources, and synthetic timer 0.

use core::sync::atomic::{AtomicPtr, Ordering};

use hv_abi::msr::{self as hvmsr, PageMsr, SCONTROL_ENABLE, Sint};
use hv_abi::synic::{
    EventFlags, EventFlagsPage, MESSAGE_PAYLOAD_BYTES, MessagePage, MessageType, VMBUS_SINT,
};
use hv_abi::timer::StimerConfig;

use super::Enlightenments;
use crate::cpu::idt::vector;
use crate::cpu::msr;
use crate::mm::layout::MAX_VCPUS;
use crate::mm::{frames, phys_to_virt};

/// SINT of timer messages where direct mode is missing: VMBus's own, the one source that every host
/// delivers (Linux uses it so, and some hosts know no other).
const TIMER_SINT: u8 = VMBUS_SINT;

static MESSAGES: [AtomicPtr<MessagePage>; MAX_VCPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS];
static EVENTS: [AtomicPtr<EventFlagsPage>; MAX_VCPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS];

/// Sets up this processor's SynIC. `false` where there is no memory for it.
pub fn init_cpu(cpu: u32, hv: &Enlightenments) -> bool {
    if !hv.synic {
        return false;
    }
    let Some(pages) = frames::alloc(2, 4096) else { return false };
    let messages = phys_to_virt(pages).cast::<MessagePage>();
    MESSAGES[cpu as usize].store(messages, Ordering::Release);
    let events = phys_to_virt(pages + 4096).cast::<EventFlagsPage>();
    EVENTS[cpu as usize].store(events, Ordering::Release);
    for (number, page) in [(hvmsr::HV_X64_MSR_SIMP, pages), (hvmsr::HV_X64_MSR_SIEFP, pages + 4096)]
    {
        // SAFETY: the host offers the SynIC.
        let before = PageMsr(unsafe { msr::read(number) });
        // The bits firmware set are kept, as TLFS asks.
        let value = before.with_page(page).0 | PageMsr::ENABLE;
        // SAFETY: the page is the shim's own.
        unsafe { msr::write(number, value) };
    }
    // SAFETY: the shim's own two frames. KVM leaves stale bytes in pages a guest enables, which
    // would look like messages; none can have come yet.
    unsafe { phys_to_virt(pages).write_bytes(0, 8192) };
    for (number, value) in [
        (hvmsr::sint(VMBUS_SINT), Sint::unmasked(vector::SINT).0),
        (hvmsr::HV_X64_MSR_SCONTROL, SCONTROL_ENABLE),
    ] {
        // SAFETY: the vector has its handler.
        unsafe { msr::write(number, value) };
    }
    true
}

/// Prepares timer 0 of this processor as a one-shot timer armed by its count register alone.
pub fn init_timer(hv: &Enlightenments) {
    let config = if hv.stimer_direct {
        StimerConfig::one_shot_direct(vector::TIMER)
    } else {
        StimerConfig::one_shot_message(TIMER_SINT)
    };
    let config = config.0 & !StimerConfig::ENABLED | StimerConfig::AUTO_ENABLE;
    // SAFETY: the host offers the timers; expiry leads to a vector of the shim's.
    unsafe { msr::write(hvmsr::stimer_config(0), config) };
}

/// Arms timer 0 for a reference time (100 ns), or stops it.
pub fn arm_timer(reference_time: Option<u64>) {
    // SAFETY: as above; 0 stops the timer.
    unsafe { msr::write(hvmsr::stimer_count(0), reference_time.map_or(0, |t| t.max(1))) };
}

/// What was in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Nothing,
    /// A timer expired.
    Timer,
    /// A message of VMBus, with so many bytes.
    Channel(usize),
    /// A message nobody here waits for.
    Other,
}

/// Whether there is a message in a processor's VMBus slot.
pub fn message_waits(cpu: u32) -> bool {
    let page = MESSAGES[cpu as usize].load(Ordering::Acquire);
    // SAFETY: null, or the page of atomics set in `init_cpu`, never given back.
    let page = unsafe { page.as_ref() };
    page.is_some_and(|page| page.slots[usize::from(VMBUS_SINT)].message_type() != MessageType::NONE)
}

/// Takes the message out of a processor's VMBus slot and lets the next one in, for which an
/// interrupt comes.
pub fn take_message(cpu: u32, payload: &mut [u8; MESSAGE_PAYLOAD_BYTES]) -> Taken {
    let page = MESSAGES[cpu as usize].load(Ordering::Acquire);
    // SAFETY: null, or the page of atomics set in `init_cpu`, never given back.
    let Some(page) = (unsafe { page.as_ref() }) else { return Taken::Nothing };
    let slot = &page.slots[usize::from(VMBUS_SINT)];
    let taken = match slot.message_type() {
        MessageType::NONE => return Taken::Nothing,
        MessageType::TIMER_EXPIRED => Taken::Timer,
        MessageType::VMBUS_CHANNEL => {
            for (to, from) in payload.chunks_exact_mut(8).zip(&slot.payload) {
                to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
            }
            let bytes = usize::from(slot.payload_size.load(Ordering::Relaxed));
            Taken::Channel(bytes.min(MESSAGE_PAYLOAD_BYTES))
        }
        _ => Taken::Other,
    };
    if slot.release() {
        // SAFETY: only tells the host that the slot is free.
        unsafe { msr::write(hvmsr::HV_X64_MSR_EOM, 0) };
    }
    taken
}

/// The event flags of VMBus on a processor.
pub fn event_flags(cpu: u32) -> Option<&'static EventFlags> {
    let page = EVENTS[cpu as usize].load(Ordering::Acquire);
    // SAFETY: null, or the page of atomics set in `init_cpu`, never given back.
    let page = unsafe { page.as_ref() }?;
    Some(&page.sints[usize::from(VMBUS_SINT)])
}

/// Processors that have a SynIC: none behind this number.
pub fn cpus() -> u32 {
    let ready = |page: &AtomicPtr<MessagePage>| !page.load(Ordering::Relaxed).is_null();
    MESSAGES.iter().rposition(ready).map_or(0, |last| last as u32 + 1)
}
