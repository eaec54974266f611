//! The crash MSRs. KVM has them too, but knows no crash message and does not tell
//! which bits the guest wrote; here they are complete.

use crate::exit::CrashReport;
use crate::memory::Memory;
use hv_abi::crash::{
    CRASH_MESSAGE_GPA_PARAMETER, CRASH_MESSAGE_LEN_PARAMETER, CRASH_MESSAGE_MAX, CRASH_PARAMETERS,
    CrashCtl,
};
use hv_abi::msr::{HV_X64_MSR_CRASH_CTL, HV_X64_MSR_CRASH_P0, HV_X64_MSR_CRASH_P4};
use vm_memory::{Bytes, GuestAddress};

/// The crash MSRs; all virtual processors share them.
#[derive(Debug, Default)]
pub struct CrashMsrs {
    parameters: [u64; CRASH_PARAMETERS],
}

/// MSRs handled here.
pub const RANGE: std::ops::RangeInclusive<u32> = HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_CTL;

impl CrashMsrs {
    /// Value a guest reads; `None` if the MSR is none of these.
    #[must_use]
    pub fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 => {
                self.parameters.get((msr - HV_X64_MSR_CRASH_P0) as usize).copied()
            }
            // What is supported.
            HV_X64_MSR_CRASH_CTL => Some((CrashCtl::NOTIFY | CrashCtl::MESSAGE).bits()),
            _ => None,
        }
    }

    /// Takes a value a guest writes; a report if it completes one.
    pub fn write(&mut self, msr: u32, value: u64, memory: &Memory) -> Option<CrashReport> {
        if msr == HV_X64_MSR_CRASH_CTL {
            let control = CrashCtl::from_bits_retain(value);
            return control.contains(CrashCtl::NOTIFY).then(|| CrashReport {
                parameters: self.parameters,
                message: control.contains(CrashCtl::MESSAGE).then(|| self.message(memory)),
            });
        }
        let parameter = msr.checked_sub(HV_X64_MSR_CRASH_P0)?;
        *self.parameters.get_mut(parameter as usize)? = value;
        None
    }

    fn message(&self, memory: &Memory) -> String {
        let gpa = self.parameters[CRASH_MESSAGE_GPA_PARAMETER];
        let length = self.parameters[CRASH_MESSAGE_LEN_PARAMETER];
        let length =
            usize::try_from(length).map_or(CRASH_MESSAGE_MAX, |n| n.min(CRASH_MESSAGE_MAX));
        let mut bytes = vec![0u8; length];
        match memory.read_slice(&mut bytes, GuestAddress(gpa)) {
            Ok(()) => {
                let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
                String::from_utf8_lossy(text).into_owned()
            }
            Err(_) => format!("(the message at {gpa:#x} is outside memory)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn report_with_message() {
        let memory = allocate(64 << 20).unwrap();
        memory.write_slice(b"out of luck\0rest", GuestAddress(0x8000)).unwrap();
        let mut msrs = CrashMsrs::default();
        for (n, value) in [0xdead, 2, 3, 0x8000, 16].into_iter().enumerate() {
            assert_eq!(msrs.write(HV_X64_MSR_CRASH_P0 + n as u32, value, &memory), None);
        }
        assert_eq!(msrs.read(HV_X64_MSR_CRASH_P0), Some(0xdead));
        assert_eq!(msrs.write(HV_X64_MSR_CRASH_CTL, 0, &memory), None);
        let plain = msrs.write(HV_X64_MSR_CRASH_CTL, 1 << 63, &memory).unwrap();
        assert_eq!((plain.parameters[0], plain.message), (0xdead, None));
        let full = msrs.write(HV_X64_MSR_CRASH_CTL, 3 << 62, &memory).unwrap();
        assert_eq!(full.message.as_deref(), Some("out of luck"));
    }

    #[test]
    fn odd_values_do_no_harm() {
        let memory = allocate(64 << 20).unwrap();
        let mut msrs = CrashMsrs::default();
        msrs.write(HV_X64_MSR_CRASH_P0 + 3, u64::MAX - 5, &memory);
        msrs.write(HV_X64_MSR_CRASH_P4, u64::MAX, &memory);
        let report = msrs.write(HV_X64_MSR_CRASH_CTL, 3 << 62, &memory).unwrap();
        assert!(report.message.unwrap().contains("outside"));
        assert_eq!(msrs.read(0x4000_0000), None);
        assert_eq!(msrs.write(0x4000_0000, 1, &memory), None);
        assert_eq!(msrs.read(HV_X64_MSR_CRASH_CTL), Some(3 << 62));
    }
}
