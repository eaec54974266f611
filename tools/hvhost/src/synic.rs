//! The part of the SynIC KVM leaves to its user: what happens when a guest
//! places its message and event pages, and hypercalls that send to the host.
//!
//! VMBus will live behind this module: HvPostMessage carries its channel
//! messages inward, [`SynicPages`] tells where each virtual processor wants the
//! answers. Until then no connection exists, and the guest is told so.

use crate::memory::Memory;
use hv_abi::hypercall::{CallCode, Control};
use hv_abi::msr::{HV_X64_MSR_SIEFP, HV_X64_MSR_SIMP, PageMsr};
use hv_abi::{HvStatus, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

/// Message and event pages of one virtual processor, as the guest has set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynicPages {
    /// `HV_X64_MSR_SIMP`.
    pub messages: PageMsr,
    /// `HV_X64_MSR_SIEFP`.
    pub events: PageMsr,
}

impl SynicPages {
    /// The guest wrote SIMP or SIEFP (`msr`); both have these values now.
    ///
    /// KVM does not clear a page when it becomes a SynIC page; stale bytes would
    /// look like an occupied message slot, so it is done here.
    pub fn update(&mut self, msr: u32, messages: PageMsr, events: PageMsr, memory: &Memory) {
        let (old, new) = match msr {
            HV_X64_MSR_SIMP => (self.messages, messages),
            HV_X64_MSR_SIEFP => (self.events, events),
            _ => return,
        };
        if new.is_enabled() && new != old {
            // Outside memory there is nothing to clear.
            let _ = memory.write_slice(&[0u8; PAGE_SIZE], GuestAddress(new.gpa()));
        }
        *self = Self { messages, events };
    }
}

/// Result of a hypercall KVM hands on.
#[must_use]
pub fn hypercall(control: Control) -> HvStatus {
    match control.code() {
        CallCode::POST_MESSAGE | CallCode::SIGNAL_EVENT => HvStatus::INVALID_CONNECTION_ID,
        _ => HvStatus::INVALID_HYPERCALL_CODE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn page_is_cleared_when_it_is_placed() {
        let memory = allocate(64 << 20).unwrap();
        let at = GuestAddress(0x5000);
        let mut pages = SynicPages::default();
        memory.write_obj(0x1234_5678u64, at).unwrap();
        let page = PageMsr::enabled_at(0x5000);
        let off = PageMsr::default();
        pages.update(HV_X64_MSR_SIMP, PageMsr(0x5000), off, &memory);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0x1234_5678, "not enabled");
        pages.update(HV_X64_MSR_SIMP, page, off, &memory);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0);
        memory.write_obj(1u64, at).unwrap();
        pages.update(HV_X64_MSR_SIEFP, page, PageMsr::enabled_at(0x7000), &memory);
        pages.update(HV_X64_MSR_SIMP, page, PageMsr::enabled_at(0x7000), &memory);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 1, "in use: left alone");
        pages.update(HV_X64_MSR_SIMP, PageMsr::enabled_at(1 << 50), off, &memory);
    }

    #[test]
    fn nobody_is_connected() {
        let post = Control::new(CallCode::POST_MESSAGE);
        assert_eq!(hypercall(post), HvStatus::INVALID_CONNECTION_ID);
        assert_eq!(hypercall(Control(0x7777)), HvStatus::INVALID_HYPERCALL_CODE);
    }
}
