//! The host features a run offers. Real hosts differ, and a guest's fallback
//! paths want testing, so each can be withheld with `--hv-without`.

use anyhow::{Result, bail};
use bitflags::bitflags;
use hv_abi::cpuid::{Features, Privileges, Recommendations};

bitflags! {
    /// Features of the Hyper-V interface, by what a guest can use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvFeatures: u32 {
        /// Guest OS id and hypercall page.
        const HYPERCALL = 1 << 0;
        /// VP index MSR.
        const VP_INDEX = 1 << 1;
        /// VP runtime MSR.
        const VP_RUNTIME = 1 << 2;
        /// Reference counter MSR.
        const REF_COUNT = 1 << 3;
        /// Reference TSC page.
        const REF_TSC = 1 << 4;
        /// TSC and APIC frequency MSRs.
        const FREQUENCIES = 1 << 5;
        /// Synthetic interrupt controller.
        const SYNIC = 1 << 6;
        /// Synthetic timers.
        const STIMER = 1 << 7;
        /// Direct mode of synthetic timers.
        const STIMER_DIRECT = 1 << 8;
        /// APIC MSRs and VP assist page.
        const APIC_ASSIST = 1 << 9;
        /// Reset MSR.
        const RESET = 1 << 10;
        /// Crash MSRs.
        const CRASH = 1 << 11;
        /// TLB-flush hypercalls.
        const TLB_FLUSH = 1 << 12;
        /// IPI hypercalls.
        const IPI = 1 << 13;
        /// Ex forms of the flush and IPI hypercalls.
        const EX_MASKS = 1 << 14;
        /// Re-enlightenment MSRs.
        const REENLIGHTENMENT = 1 << 15;
        /// Hypercall input in XMM registers.
        const XMM_INPUT = 1 << 16;
        /// HvPostMessage and HvSignalEvent privileges.
        const MESSAGES = 1 << 17;
    }
}

/// Names for `--hv-without`, with what each stands for. `docs/hvhost.md` lists them.
pub const NAMES: &[(&str, HvFeatures)] = &[
    ("hypercall", HvFeatures::HYPERCALL),
    ("vp-index", HvFeatures::VP_INDEX),
    ("vp-runtime", HvFeatures::VP_RUNTIME),
    ("ref-count", HvFeatures::REF_COUNT),
    ("ref-tsc", HvFeatures::REF_TSC),
    ("frequencies", HvFeatures::FREQUENCIES),
    ("synic", HvFeatures::SYNIC),
    ("stimer", HvFeatures::STIMER),
    ("stimer-direct", HvFeatures::STIMER_DIRECT),
    ("apic-assist", HvFeatures::APIC_ASSIST),
    ("reset", HvFeatures::RESET),
    ("crash", HvFeatures::CRASH),
    ("tlbflush", HvFeatures::TLB_FLUSH),
    ("ipi", HvFeatures::IPI),
    ("ex-masks", HvFeatures::EX_MASKS),
    ("reenlightenment", HvFeatures::REENLIGHTENMENT),
    ("xmm-input", HvFeatures::XMM_INPUT),
    ("messages", HvFeatures::MESSAGES),
];

impl HvFeatures {
    /// What OpenVMM on KVM offers its guest, of the features KVM has.
    pub const OPENVMM: Self = Self::HYPERCALL
        .union(Self::VP_INDEX)
        .union(Self::VP_RUNTIME)
        .union(Self::REF_COUNT)
        .union(Self::FREQUENCIES)
        .union(Self::SYNIC)
        .union(Self::STIMER)
        .union(Self::APIC_ASSIST);

    /// Everything less a comma-separated list of [`NAMES`] (or `all`).
    ///
    /// # Errors
    /// A name that is not known.
    pub fn all_without(list: &str) -> Result<Self> {
        let mut offered = Self::all();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            offered.remove(Self::by_name(name)?);
        }
        Ok(offered)
    }

    fn by_name(name: &str) -> Result<Self> {
        if name == "all" {
            return Ok(Self::all());
        }
        match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, flag)) => Ok(*flag),
            None => {
                let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
                bail!("no host feature is called {name:?}; known: all, {}", known.join(", "))
            }
        }
    }

    /// Whether there is a VMBus: it needs hypercalls and the SynIC, and the privilege
    /// to use them, which OpenVMM does not announce.
    #[must_use]
    pub fn has_vmbus(self, openvmm_like: bool) -> bool {
        self.contains(Self::HYPERCALL | Self::SYNIC)
            && (openvmm_like || self.contains(Self::MESSAGES))
    }

    /// The partition privileges these features stand for.
    #[must_use]
    pub fn privileges(self) -> Privileges {
        let map = [
            (Self::HYPERCALL, Privileges::ACCESS_HYPERCALL_MSRS),
            (Self::VP_INDEX, Privileges::ACCESS_VP_INDEX),
            (Self::VP_RUNTIME, Privileges::ACCESS_VP_RUN_TIME_REG),
            (Self::REF_COUNT, Privileges::ACCESS_PARTITION_REFERENCE_COUNTER),
            (Self::REF_TSC, Privileges::ACCESS_PARTITION_REFERENCE_TSC),
            (Self::FREQUENCIES, Privileges::ACCESS_FREQUENCY_REGS),
            (Self::SYNIC, Privileges::ACCESS_SYNIC_REGS),
            (Self::STIMER, Privileges::ACCESS_SYNTHETIC_TIMER_REGS),
            (Self::APIC_ASSIST, Privileges::ACCESS_INTR_CTRL_REGS),
            (Self::RESET, Privileges::ACCESS_RESET_REG),
            (Self::REENLIGHTENMENT, Privileges::ACCESS_REENLIGHTENMENT_CONTROLS),
            (Self::MESSAGES, Privileges::POST_MESSAGES.union(Privileges::SIGNAL_EVENTS)),
        ];
        map.iter()
            .filter(|(feature, _)| self.contains(*feature))
            .fold(Privileges::empty(), |sum, (_, privilege)| sum | *privilege)
    }

    /// The feature bits (leaf 0x40000003 EDX) these features stand for.
    #[must_use]
    pub fn feature_bits(self) -> Features {
        let map = [
            (Self::FREQUENCIES, Features::FREQUENCY_MSRS),
            (Self::CRASH, Features::GUEST_CRASH_MSRS),
            // A direct timer is a timer first.
            (Self::STIMER_DIRECT.union(Self::STIMER), Features::DIRECT_SYNTHETIC_TIMERS),
            (Self::XMM_INPUT, Features::XMM_HYPERCALL_INPUT),
            (Self::TLB_FLUSH, Features::EXTENDED_GVA_RANGES_FOR_FLUSH),
        ];
        map.iter()
            .filter(|(feature, _)| self.contains(*feature))
            .fold(Features::empty(), |sum, (_, bit)| sum | *bit)
    }

    /// The recommendations these features stand for.
    #[must_use]
    pub fn recommendations(self) -> Recommendations {
        let map = [
            (Self::TLB_FLUSH, Recommendations::REMOTE_TLB_FLUSH),
            (Self::IPI, Recommendations::CLUSTER_IPI),
            (Self::EX_MASKS, Recommendations::EX_PROCESSOR_MASKS),
            (Self::APIC_ASSIST, Recommendations::APIC_MSRS),
        ];
        map.iter().filter(|(feature, _)| self.contains(*feature)).fold(
            Recommendations::RELAXED_TIMING | Recommendations::DEPRECATE_AUTO_EOI,
            |sum, (_, bit)| sum | *bit,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_one_name() {
        let mut seen = HvFeatures::empty();
        for (name, flag) in NAMES {
            assert!(!seen.intersects(*flag), "{name} twice");
            seen |= *flag;
        }
        assert_eq!(seen, HvFeatures::all());
    }

    #[test]
    fn list_is_parsed() {
        let f = HvFeatures::all_without("tlbflush, ipi,").unwrap();
        assert_eq!(f, HvFeatures::all() - HvFeatures::TLB_FLUSH - HvFeatures::IPI);
        assert_eq!(HvFeatures::all_without("").unwrap(), HvFeatures::all());
        assert!(HvFeatures::all_without("all").unwrap().is_empty());
        let error = HvFeatures::all_without("tlb").unwrap_err().to_string();
        assert!(error.contains("\"tlb\"") && error.contains("tlbflush"), "{error}");
    }

    #[test]
    fn openvmm_shape_matches_what_was_measured() {
        assert_eq!(HvFeatures::OPENVMM.privileges().eax(), 0x87f);
        assert_eq!(HvFeatures::OPENVMM.privileges().ebx(), 0);
    }

    #[test]
    fn direct_timers_need_timers() {
        let f = HvFeatures::all() - HvFeatures::STIMER;
        assert!(!f.feature_bits().contains(Features::DIRECT_SYNTHETIC_TIMERS));
    }
}
