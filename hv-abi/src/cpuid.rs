//! CPUID leaves 0x40000000..=0x4000000A (TLFS 2.4, "Feature and Interface Discovery").

use bitflags::bitflags;

/// "Vendor" leaf: EAX is the highest hypervisor leaf, EBX/ECX/EDX the vendor.
pub const LEAF_VENDOR: u32 = 0x4000_0000;
/// Interface signature leaf: EAX is [`INTERFACE_HV1`].
pub const LEAF_INTERFACE: u32 = 0x4000_0001;
/// Hypervisor version leaf: see [`Version`].
pub const LEAF_VERSION: u32 = 0x4000_0002;
/// Feature leaf: [`Privileges`] in EBX:EAX, [`Features`] in EDX.
pub const LEAF_FEATURES: u32 = 0x4000_0003;
/// Recommendation leaf: [`Recommendations`] in EAX, spin-lock retries in EBX.
pub const LEAF_RECOMMENDATIONS: u32 = 0x4000_0004;
/// Limits leaf: EAX maximum virtual processors, EBX maximum logical processors.
pub const LEAF_LIMITS: u32 = 0x4000_0005;
/// Hardware features the hypervisor uses: [`HardwareFeatures`] in EAX.
pub const LEAF_HARDWARE_FEATURES: u32 = 0x4000_0006;
/// Processor management features (root partition only).
pub const LEAF_CPU_MANAGEMENT: u32 = 0x4000_0007;
/// Shared virtual memory features.
pub const LEAF_SVM_FEATURES: u32 = 0x4000_0008;
/// Nested hypervisor feature identification.
pub const LEAF_NESTED_FEATURES: u32 = 0x4000_0009;
/// Nested virtualization features.
pub const LEAF_NESTED_VIRTUALIZATION: u32 = 0x4000_000a;

/// The vendor string of leaf 0x40000000, EBX, ECX, EDX in this order.
pub const VENDOR_MICROSOFT: [u32; 3] =
    [u32::from_le_bytes(*b"Micr"), u32::from_le_bytes(*b"osof"), u32::from_le_bytes(*b"t Hv")];
/// "Hv#1": the interface this crate describes.
pub const INTERFACE_HV1: u32 = u32::from_le_bytes(*b"Hv#1");
/// A host below this highest leaf does not conform (TLFS 2.4.1).
pub const MIN_MAX_LEAF: u32 = LEAF_LIMITS;

/// CPUID leaf 1, ECX: a hypervisor is present.
pub const CPUID_1_ECX_HYPERVISOR: u32 = 1 << 31;

bitflags! {
    /// Partition privileges, `HV_PARTITION_PRIVILEGE_MASK` (TLFS 4.2.2): EAX of leaf
    /// 0x40000003 in the low half, EBX in the high half.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Privileges: u64 {
        /// VP runtime MSR.
        const ACCESS_VP_RUN_TIME_REG = 1 << 0;
        /// Partition reference counter MSR.
        const ACCESS_PARTITION_REFERENCE_COUNTER = 1 << 1;
        /// SynIC MSRs: SCONTROL to EOM, SINT0 to SINT15.
        const ACCESS_SYNIC_REGS = 1 << 2;
        /// Synthetic timer MSRs.
        const ACCESS_SYNTHETIC_TIMER_REGS = 1 << 3;
        /// APIC MSRs (EOI, ICR, TPR) and the VP assist page.
        const ACCESS_INTR_CTRL_REGS = 1 << 4;
        /// Guest OS id and hypercall MSRs.
        const ACCESS_HYPERCALL_MSRS = 1 << 5;
        /// VP index MSR.
        const ACCESS_VP_INDEX = 1 << 6;
        /// Reset MSR.
        const ACCESS_RESET_REG = 1 << 7;
        /// Statistics page MSRs.
        const ACCESS_STATS_REG = 1 << 8;
        /// Reference TSC page MSR.
        const ACCESS_PARTITION_REFERENCE_TSC = 1 << 9;
        /// Guest idle MSR.
        const ACCESS_GUEST_IDLE_REG = 1 << 10;
        /// TSC and APIC frequency MSRs.
        const ACCESS_FREQUENCY_REGS = 1 << 11;
        /// Synthetic debug MSRs.
        const ACCESS_DEBUG_REGS = 1 << 12;
        /// Re-enlightenment and TSC emulation MSRs.
        const ACCESS_REENLIGHTENMENT_CONTROLS = 1 << 13;
        /// Root scheduler MSR.
        const ACCESS_ROOT_SCHEDULER_REG = 1 << 14;
        /// TSC invariant control MSR.
        const ACCESS_TSC_INVARIANT_CONTROLS = 1 << 15;
        /// HvCreatePartition and its kin (EBX bit 0).
        const CREATE_PARTITIONS = 1 << 32;
        /// HvGetPartitionId.
        const ACCESS_PARTITION_ID = 1 << 33;
        /// Memory pool hypercalls.
        const ACCESS_MEMORY_POOL = 1 << 34;
        /// HvPostMessage.
        const POST_MESSAGES = 1 << 36;
        /// HvSignalEvent.
        const SIGNAL_EVENTS = 1 << 37;
        /// HvCreatePort.
        const CREATE_PORT = 1 << 38;
        /// HvConnectPort.
        const CONNECT_PORT = 1 << 39;
        /// Statistics hypercalls.
        const ACCESS_STATS = 1 << 40;
        /// Debugger hypercalls.
        const DEBUGGING = 1 << 43;
        /// Processor management hypercalls.
        const CPU_MANAGEMENT = 1 << 44;
        /// Virtual secure mode.
        const ACCESS_VSM = 1 << 48;
        /// HvGetVpRegisters, HvSetVpRegisters.
        const ACCESS_VP_REGISTERS = 1 << 49;
        /// HvExtCallQueryCapabilities and other extended calls.
        const ENABLE_EXTENDED_HYPERCALLS = 1 << 52;
        /// HvStartVirtualProcessor.
        const START_VIRTUAL_PROCESSOR = 1 << 53;
        /// The partition is isolated.
        const ISOLATION = 1 << 54;
    }

    /// EDX of leaf 0x40000003.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// MWAIT is available (deprecated).
        const MWAIT = 1 << 0;
        /// Guest debugging support.
        const GUEST_DEBUGGING = 1 << 1;
        /// Performance monitor support.
        const PERFORMANCE_MONITOR = 1 << 2;
        /// Physical processor dynamic partitioning events.
        const CPU_DYNAMIC_PARTITIONING = 1 << 3;
        /// Hypercall input in XMM registers.
        const XMM_HYPERCALL_INPUT = 1 << 4;
        /// Virtual guest idle state.
        const GUEST_IDLE_STATE = 1 << 5;
        /// Hypervisor sleep state.
        const HYPERVISOR_SLEEP_STATE = 1 << 6;
        /// NUMA distances can be queried.
        const NUMA_DISTANCE = 1 << 7;
        /// Timer frequency MSRs exist.
        const FREQUENCY_MSRS = 1 << 8;
        /// Synthetic machine checks can be injected.
        const SYNTHETIC_MACHINE_CHECK = 1 << 9;
        /// Guest crash MSRs exist.
        const GUEST_CRASH_MSRS = 1 << 10;
        /// Debug MSRs exist.
        const DEBUG_MSRS = 1 << 11;
        /// NPIEP.
        const NPIEP = 1 << 12;
        /// The hypervisor can be disabled.
        const DISABLE_HYPERVISOR = 1 << 13;
        /// Extended GVA ranges in flush-list hypercalls.
        const EXTENDED_GVA_RANGES_FOR_FLUSH = 1 << 14;
        /// Hypercall output in XMM registers.
        const XMM_HYPERCALL_OUTPUT = 1 << 15;
        /// SINT polling mode.
        const SINT_POLLING_MODE = 1 << 17;
        /// The hypercall MSR can be locked.
        const HYPERCALL_MSR_LOCK = 1 << 18;
        /// Synthetic timers can assert a vector directly.
        const DIRECT_SYNTHETIC_TIMERS = 1 << 19;
    }

    /// EAX of leaf 0x40000004: what the host asks its guest to do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Recommendations: u32 {
        /// Switch address spaces by hypercall.
        const ADDRESS_SPACE_SWITCH = 1 << 0;
        /// Flush the local TLB by hypercall.
        const LOCAL_TLB_FLUSH = 1 << 1;
        /// Flush remote TLBs by hypercall.
        const REMOTE_TLB_FLUSH = 1 << 2;
        /// Use the MSRs for EOI, ICR and TPR.
        const APIC_MSRS = 1 << 3;
        /// Reset by the reset MSR.
        const RESET_MSR = 1 << 4;
        /// Relax timing: no watchdogs.
        const RELAXED_TIMING = 1 << 5;
        /// Use DMA remapping.
        const DMA_REMAPPING = 1 << 6;
        /// Use interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 7;
        /// Use the x2APIC MSRs.
        const X2APIC_MSRS = 1 << 8;
        /// Do not use AutoEOI.
        const DEPRECATE_AUTO_EOI = 1 << 9;
        /// Use HvSendSyntheticClusterIpi.
        const CLUSTER_IPI = 1 << 10;
        /// Use the Ex forms of hypercalls, with sparse processor sets.
        const EX_PROCESSOR_MASKS = 1 << 11;
        /// The hypervisor is itself nested.
        const NESTED = 1 << 12;
        /// Use INT for mode-based execution control calls.
        const INT_FOR_MBEC = 1 << 13;
        /// Use the enlightened VMCS.
        const ENLIGHTENED_VMCS = 1 << 14;
        /// Use the synced timeline.
        const SYNCED_TIMELINE = 1 << 15;
        /// Use direct local flush entire.
        const DIRECT_LOCAL_FLUSH_ENTIRE = 1 << 17;
        /// Cores are never shared between VMs (except SMT siblings reported).
        const NO_NONARCHITECTURAL_CORE_SHARING = 1 << 18;
    }

    /// EAX of leaf 0x40000006.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HardwareFeatures: u32 {
        /// APIC overlay assist.
        const APIC_OVERLAY_ASSIST = 1 << 0;
        /// MSR bitmaps.
        const MSR_BITMAPS = 1 << 1;
        /// Architectural performance counters.
        const PERFORMANCE_COUNTERS = 1 << 2;
        /// Second-level address translation.
        const SLAT = 1 << 3;
        /// DMA remapping.
        const DMA_REMAPPING = 1 << 4;
        /// Interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 5;
        /// Memory patrol scrubber.
        const MEMORY_PATROL_SCRUBBER = 1 << 6;
        /// DMA protection.
        const DMA_PROTECTION = 1 << 7;
        /// HPET is in use.
        const HPET = 1 << 8;
        /// Synthetic timers are volatile.
        const VOLATILE_SYNTHETIC_TIMERS = 1 << 9;
    }
}

impl Privileges {
    /// Puts EAX and EBX of leaf 0x40000003 together.
    #[must_use]
    pub const fn from_eax_ebx(eax: u32, ebx: u32) -> Self {
        Self::from_bits_retain(eax as u64 | (ebx as u64) << 32)
    }

    /// EAX of leaf 0x40000003.
    #[must_use]
    pub const fn eax(self) -> u32 {
        (self.bits() & 0xffff_ffff) as u32
    }

    /// EBX of leaf 0x40000003.
    #[must_use]
    pub const fn ebx(self) -> u32 {
        (self.bits() >> 32) as u32
    }
}

/// Leaf 0x40000002 (TLFS 2.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// EAX.
    pub build: u32,
    /// EBX, high half.
    pub major: u16,
    /// EBX, low half.
    pub minor: u16,
    /// ECX.
    pub service_pack: u32,
    /// EDX: service branch (high 8 bits) and number.
    pub service: u32,
}

impl Version {
    /// Reads the leaf's four registers.
    #[must_use]
    pub const fn from_regs(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self {
            build: eax,
            major: (ebx >> 16) as u16,
            minor: (ebx & 0xffff) as u16,
            service_pack: ecx,
            service: edx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_microsoft_hv() {
        assert_eq!(VENDOR_MICROSOFT, [0x7263_694d, 0x666f_736f, 0x7648_2074]);
        assert_eq!(INTERFACE_HV1, 0x3123_7648);
    }

    #[test]
    fn privileges_split_into_registers() {
        let p = Privileges::from_eax_ebx(0x87f, 0x30);
        assert_eq!((p.eax(), p.ebx()), (0x87f, 0x30));
        assert!(p.contains(Privileges::POST_MESSAGES | Privileges::SIGNAL_EVENTS));
        assert!(p.contains(Privileges::ACCESS_FREQUENCY_REGS | Privileges::ACCESS_VP_INDEX));
        assert!(!p.contains(Privileges::ACCESS_PARTITION_REFERENCE_TSC));
    }

    #[test]
    fn version_halves() {
        let v = Version::from_regs(17763, 10 << 16 | 3, 1, 2);
        assert_eq!((v.major, v.minor, v.build), (10, 3, 17763));
    }
}
