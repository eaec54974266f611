//! Synthetic model-specific registers (TLFS appendix F) and their contents.

#![allow(missing_docs, reason = "constants carry the specification's own names")]

pub const HV_X64_MSR_GUEST_OS_ID: u32 = 0x4000_0000;
pub const HV_X64_MSR_HYPERCALL: u32 = 0x4000_0001;
pub const HV_X64_MSR_VP_INDEX: u32 = 0x4000_0002;
pub const HV_X64_MSR_RESET: u32 = 0x4000_0003;
pub const HV_X64_MSR_VP_RUNTIME: u32 = 0x4000_0010;
pub const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
pub const HV_X64_MSR_REFERENCE_TSC: u32 = 0x4000_0021;
pub const HV_X64_MSR_TSC_FREQUENCY: u32 = 0x4000_0022;
pub const HV_X64_MSR_APIC_FREQUENCY: u32 = 0x4000_0023;
pub const HV_X64_MSR_NPIEP_CONFIG: u32 = 0x4000_0040;
pub const HV_X64_MSR_EOI: u32 = 0x4000_0070;
pub const HV_X64_MSR_ICR: u32 = 0x4000_0071;
pub const HV_X64_MSR_TPR: u32 = 0x4000_0072;
pub const HV_X64_MSR_VP_ASSIST_PAGE: u32 = 0x4000_0073;
pub const HV_X64_MSR_SCONTROL: u32 = 0x4000_0080;
pub const HV_X64_MSR_SVERSION: u32 = 0x4000_0081;
pub const HV_X64_MSR_SIEFP: u32 = 0x4000_0082;
pub const HV_X64_MSR_SIMP: u32 = 0x4000_0083;
pub const HV_X64_MSR_EOM: u32 = 0x4000_0084;
pub const HV_X64_MSR_SINT0: u32 = 0x4000_0090;
pub const HV_X64_MSR_SINT15: u32 = 0x4000_009f;
pub const HV_X64_MSR_STIMER0_CONFIG: u32 = 0x4000_00b0;
pub const HV_X64_MSR_STIMER0_COUNT: u32 = 0x4000_00b1;
pub const HV_X64_MSR_STIMER3_CONFIG: u32 = 0x4000_00b6;
pub const HV_X64_MSR_STIMER3_COUNT: u32 = 0x4000_00b7;
pub const HV_X64_MSR_POWER_STATE_TRIGGER_C1: u32 = 0x4000_00c1;
pub const HV_X64_MSR_POWER_STATE_TRIGGER_C2: u32 = 0x4000_00c2;
pub const HV_X64_MSR_POWER_STATE_TRIGGER_C3: u32 = 0x4000_00c3;
pub const HV_X64_MSR_POWER_STATE_CONFIG_C1: u32 = 0x4000_00d1;
pub const HV_X64_MSR_POWER_STATE_CONFIG_C2: u32 = 0x4000_00d2;
pub const HV_X64_MSR_POWER_STATE_CONFIG_C3: u32 = 0x4000_00d3;
pub const HV_X64_MSR_GUEST_IDLE: u32 = 0x4000_00f0;
pub const HV_X64_MSR_SYNTH_DEBUG_CONTROL: u32 = 0x4000_00f1;
pub const HV_X64_MSR_SYNTH_DEBUG_STATUS: u32 = 0x4000_00f2;
pub const HV_X64_MSR_SYNTH_DEBUG_SEND_BUFFER: u32 = 0x4000_00f3;
pub const HV_X64_MSR_SYNTH_DEBUG_RECEIVE_BUFFER: u32 = 0x4000_00f4;
pub const HV_X64_MSR_SYNTH_DEBUG_PENDING_BUFFER: u32 = 0x4000_00f5;
pub const HV_X64_MSR_CRASH_P0: u32 = 0x4000_0100;
pub const HV_X64_MSR_CRASH_P4: u32 = 0x4000_0104;
pub const HV_X64_MSR_CRASH_CTL: u32 = 0x4000_0105;
pub const HV_X64_MSR_REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
pub const HV_X64_MSR_TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
pub const HV_X64_MSR_TSC_EMULATION_STATUS: u32 = 0x4000_0108;
pub const HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG: u32 = 0x4000_0114;
pub const HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT: u32 = 0x4000_0115;
pub const HV_X64_MSR_TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;

/// `HV_X64_MSR_SINTn` of SINT `n` (0..=15; the low four bits count).
#[must_use]
pub const fn sint(n: u8) -> u32 {
    HV_X64_MSR_SINT0 + (n & 0xf) as u32
}

/// `HV_X64_MSR_STIMERn_CONFIG` of timer `n` (0..=3; the low two bits count).
#[must_use]
pub const fn stimer_config(n: u8) -> u32 {
    HV_X64_MSR_STIMER0_CONFIG + 2 * (n & 3) as u32
}

/// `HV_X64_MSR_STIMERn_COUNT` of timer `n` (0..=3; the low two bits count).
#[must_use]
pub const fn stimer_count(n: u8) -> u32 {
    HV_X64_MSR_STIMER0_COUNT + 2 * (n & 3) as u32
}

/// `HV_X64_MSR_CRASH_Pn`; `n` above 4 gives P4.
#[must_use]
pub const fn crash_parameter(n: u8) -> u32 {
    HV_X64_MSR_CRASH_P0 + if n > 4 { 4 } else { n as u32 }
}

/// Contents of an MSR that holds a page-aligned guest-physical address and an
/// enable bit: hypercall, reference TSC, SIMP, SIEFP, VP assist page.
///
/// ```text
/// 63:12 page number | 11:2 preserved | 1 locked (hypercall MSR) | 0 enable
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct PageMsr(pub u64);

impl PageMsr {
    /// The page is enabled.
    pub const ENABLE: u64 = 1 << 0;
    /// The register is immutable until reset (hypercall MSR only).
    pub const LOCKED: u64 = 1 << 1;
    /// Bits that hold the address.
    pub const ADDRESS: u64 = !0xfff;

    /// Enabled at `gpa` (its low 12 bits are dropped).
    #[must_use]
    pub const fn enabled_at(gpa: u64) -> Self {
        Self(gpa & Self::ADDRESS | Self::ENABLE)
    }

    /// Same reserved bits as `self`, enabled at `gpa`.
    #[must_use]
    pub const fn with_page(self, gpa: u64) -> Self {
        Self(self.0 & !Self::ADDRESS | gpa & Self::ADDRESS | Self::ENABLE)
    }

    /// Whether the page is enabled.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// Guest-physical address of the page.
    #[must_use]
    pub const fn gpa(self) -> u64 {
        self.0 & Self::ADDRESS
    }
}

/// Contents of `HV_X64_MSR_SINTn` (TLFS 11.8.4).
///
/// ```text
/// 7:0 vector | 16 masked | 17 auto-EOI | 18 polling | 19 as intercept | 20 proxy
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Sint(pub u64);

impl Sint {
    /// No interrupt is raised.
    pub const MASKED: u64 = 1 << 16;
    /// The interrupt needs no EOI.
    pub const AUTO_EOI: u64 = 1 << 17;
    /// Messages are delivered without interrupt.
    pub const POLLING: u64 = 1 << 18;
    /// Value after reset.
    pub const RESET: Self = Self(Self::MASKED);

    /// Unmasked, raising `vector`.
    #[must_use]
    pub const fn unmasked(vector: u8) -> Self {
        Self(vector as u64)
    }

    /// The vector raised.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether the source is masked.
    #[must_use]
    pub const fn is_masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// Whether the interrupt needs no EOI.
    #[must_use]
    pub const fn is_auto_eoi(self) -> bool {
        self.0 & Self::AUTO_EOI != 0
    }
}

/// Bit 0 of `HV_X64_MSR_SCONTROL`: the virtual processor's SynIC is enabled.
pub const SCONTROL_ENABLE: u64 = 1;
/// `HV_X64_MSR_SVERSION` of the only version there is.
pub const SVERSION_1: u64 = 1;
/// Bit 0 of `HV_X64_MSR_RESET`: reset the partition.
pub const RESET_ENABLE: u64 = 1;
/// Bit 0 of `HV_X64_MSR_TSC_INVARIANT_CONTROL`: expose the invariant TSC.
pub const TSC_INVARIANT_EXPOSE: u64 = 1;

/// `HV_X64_MSR_REENLIGHTENMENT_CONTROL` (nested TLFS 3.8).
///
/// ```text
/// 7:0 vector | 16 enabled | 63:32 target VP
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct ReenlightenmentControl(pub u64);

impl ReenlightenmentControl {
    /// Notify `target_vp` by `vector` after migration.
    #[must_use]
    pub const fn notify(vector: u8, target_vp: u32) -> Self {
        Self(vector as u64 | Self::ENABLED | (target_vp as u64) << 32)
    }

    const ENABLED: u64 = 1 << 16;

    /// The vector and the VP that are to be notified, if one is.
    #[must_use]
    pub const fn notified(self) -> Option<(u8, u32)> {
        if self.0 & Self::ENABLED == 0 {
            return None;
        }
        Some((self.0 as u8, (self.0 >> 32) as u32))
    }
}

/// Bit 0 of `HV_X64_MSR_TSC_EMULATION_CONTROL`: emulate the old frequency.
pub const TSC_EMULATION_ENABLED: u64 = 1;
/// Bit 0 of `HV_X64_MSR_TSC_EMULATION_STATUS`: emulation is in progress.
pub const TSC_EMULATION_IN_PROGRESS: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_msrs() {
        assert_eq!(sint(2), 0x4000_0092);
        assert_eq!(sint(15), HV_X64_MSR_SINT15);
        assert_eq!(stimer_config(3), HV_X64_MSR_STIMER3_CONFIG);
        assert_eq!(stimer_count(0), HV_X64_MSR_STIMER0_COUNT);
        assert_eq!(stimer_count(3), HV_X64_MSR_STIMER3_COUNT);
        assert_eq!(crash_parameter(4), HV_X64_MSR_CRASH_P4);
        assert_eq!(crash_parameter(9), HV_X64_MSR_CRASH_P4);
    }

    #[test]
    fn page_msr_keeps_reserved_bits() {
        let m = PageMsr(0xabc_0ffe).with_page(0x1234_5678);
        assert_eq!(m.0, 0x1234_5fff);
        assert_eq!(m.gpa(), 0x1234_5000);
        assert!(m.is_enabled());
        assert_eq!(PageMsr::enabled_at(0x5001).0, 0x5001);
    }

    #[test]
    fn sint_fields() {
        assert!(Sint::RESET.is_masked());
        assert_eq!(Sint::RESET.0, 0x10000);
        assert_eq!(Sint::unmasked(0xf3).vector(), 0xf3);
        assert!(!Sint::unmasked(0xf3).is_masked());
    }
}
