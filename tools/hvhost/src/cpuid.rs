//! What CPUID shows the guest: the host processor as far as KVM supports it, a
//! flat topology, and the Hyper-V leaves instead of KVM's own.

use crate::features::HvFeatures;
use hv_abi::cpuid as hv;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Start of the range hypervisors describe themselves in.
const HYPERVISOR_LEAVES: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// What decides the shape of CPUID for one virtual processor.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Index and APIC id.
    pub id: u32,
    /// APIC id that CPUID tells: real hosts have others there with several NUMA nodes.
    pub told_id: u32,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Hyper-V features; `None`: no Hyper-V at all.
    pub hv: Option<HvFeatures>,
    /// KVM emulates the TSC deadline timer.
    pub tsc_deadline: bool,
    /// As OpenVMM on KVM shows itself.
    pub openvmm_like: bool,
    /// XCR0 the guest cannot choose: see [`fixed_xcr0`].
    pub fixed_xcr0: Option<u64>,
}

/// The x87, SSE and AVX states.
const XCR0_FIXED: u64 = 7;
const LEAF7_ECX_PKU: u32 = 1 << 3;
const LEAF7_ECX_OSPKE: u32 = 1 << 4;
/// Bytes of the XSAVE area up to the end of the SSE state and its header.
const XSAVE_LEGACY_BYTES: u32 = 576;

/// The value XCR0 must have throughout, where KVM itself runs on QEMU's emulation
/// (`hypervisor` is the signature at 0x40000000).
///
/// That emulation does not intercept XSETBV (seen with 7.2), so KVM does not
/// learn what its guest writes and puts the reset value back at each entry: AVX
/// would vanish between two instructions. There, XCR0 starts with the value
/// guests choose, and states they would leave out are hidden.
#[must_use]
pub fn fixed_xcr0(hypervisor: [u32; 3]) -> Option<u64> {
    let tcg = [*b"TCGT", *b"CGTC", *b"GTCG"].map(u32::from_le_bytes);
    (hypervisor == tcg).then_some(XCR0_FIXED)
}

/// Hides the states that are not in `xcr0`.
fn fix_states(leaves: &mut Vec<kvm_cpuid_entry2>, xcr0: u64) {
    let kept = |index: u32| index < 2 || xcr0.checked_shr(index).is_some_and(|x| x & 1 != 0);
    leaves.retain(|e| e.function != 0xd || kept(e.index));
    let end = leaves
        .iter()
        .filter(|e| e.function == 0xd && e.index >= 2)
        .map(|e| e.eax.wrapping_add(e.ebx))
        .fold(XSAVE_LEGACY_BYTES, u32::max);
    for leaf in leaves.iter_mut() {
        match (leaf.function, leaf.index) {
            (7, 0) => leaf.ecx &= !(LEAF7_ECX_PKU | LEAF7_ECX_OSPKE),
            (0xd, 0) => {
                leaf.eax &= xcr0 as u32;
                (leaf.ecx, leaf.edx) = (end, 0);
            }
            _ => {}
        }
    }
}

/// Shapes `supported` (KVM_GET_SUPPORTED_CPUID) and `hv_supported`
/// (KVM_GET_SUPPORTED_HV_CPUID) for one virtual processor.
#[must_use]
pub fn shape(
    supported: &[kvm_cpuid_entry2],
    hv_supported: &[kvm_cpuid_entry2],
    shape: &Shape,
) -> Vec<kvm_cpuid_entry2> {
    let mut leaves: Vec<kvm_cpuid_entry2> = supported
        .iter()
        .filter(|e| !HYPERVISOR_LEAVES.contains(&e.function) && !matches!(e.function, 0xb | 0x1f))
        .copied()
        .collect();
    for leaf in &mut leaves {
        processor_leaf(leaf, shape);
    }
    if let Some(xcr0) = shape.fixed_xcr0 {
        fix_states(&mut leaves, xcr0);
    }
    let max_basic = leaves.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    if max_basic >= 0xb {
        leaves.extend(topology(shape));
    }
    match shape.hv {
        Some(features) => leaves.extend(hyperv(hv_supported, features, shape.openvmm_like)),
        None => {
            // Nobody answers at 0x40000000: no hypervisor is announced.
            for leaf in leaves.iter_mut().filter(|e| e.function == 1) {
                leaf.ecx &= !hv::CPUID_1_ECX_HYPERVISOR;
            }
        }
    }
    leaves
}

/// Bits an APIC id needs for `cpus` processors.
fn id_bits(cpus: u32) -> u32 {
    cpus.max(1).next_power_of_two().trailing_zeros()
}

fn processor_leaf(leaf: &mut kvm_cpuid_entry2, shape: &Shape) {
    let cpus = shape.cpus;
    match leaf.function {
        1 => {
            leaf.ebx = leaf.ebx & 0xffff | cpus.min(255) << 16 | shape.told_id << 24;
            leaf.ecx |= hv::CPUID_1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
            leaf.ecx &= !LEAF1_ECX_TSC_DEADLINE;
            if shape.tsc_deadline && !shape.openvmm_like {
                leaf.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
            leaf.edx &= !LEAF1_EDX_HTT;
            if cpus > 1 {
                leaf.edx |= LEAF1_EDX_HTT;
            }
        }
        // Deterministic cache parameters: one thread for each core, cpus cores.
        4 if leaf.eax & 0x1f != 0 => {
            let cores = (1u32 << id_bits(cpus)) - 1;
            let shared = if leaf.eax >> 5 & 7 >= 3 { cores } else { 0 };
            leaf.eax = leaf.eax & 0x3fff | shared << 14 | cores.min(63) << 26;
        }
        // AMD: core count and the bits of the APIC id that number cores.
        0x8000_0008 => leaf.ecx = leaf.ecx & !0xf0ff | (cpus - 1) & 0xff | id_bits(cpus) << 12,
        0x8000_001e => {
            leaf.eax = shape.told_id;
            leaf.ebx = shape.told_id & 0xff;
            leaf.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xb: one thread for each core, all cores in one package.
fn topology(shape: &Shape) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: shape.told_id,
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, id_bits(shape.cpus), shape.cpus), level(2, 0, 0, 0)]
}

/// Leaves 0x40000000 to 0x40000006: what KVM supports, less what is withheld.
fn hyperv(
    supported: &[kvm_cpuid_entry2],
    offered: HvFeatures,
    openvmm_like: bool,
) -> Vec<kvm_cpuid_entry2> {
    let kvm = |function| supported.iter().find(|e| e.function == function).copied();
    let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let [ebx, ecx, edx] = hv::VENDOR_MICROSOFT;
    let mut leaves = vec![
        leaf(hv::LEAF_VENDOR, hv::LEAF_HARDWARE_FEATURES, ebx, ecx, edx),
        leaf(hv::LEAF_INTERFACE, hv::INTERFACE_HV1, 0, 0, 0),
    ];
    // 10.0.20348: an ordinary host version; guests print it.
    leaves.push(leaf(hv::LEAF_VERSION, 20348, 10 << 16, 0, 0));

    let features = kvm(hv::LEAF_FEATURES).unwrap_or_default();
    let privileges = offered.privileges().bits()
        & hv::Privileges::from_eax_ebx(features.eax, features.ebx).bits();
    let privileges = hv::Privileges::from_bits_retain(privileges);
    let bits =
        offered.feature_bits().bits() & (features.edx | hv::Features::GUEST_CRASH_MSRS.bits());
    leaves.push(leaf(hv::LEAF_FEATURES, privileges.eax(), privileges.ebx(), 0, bits));

    let recommended = kvm(hv::LEAF_RECOMMENDATIONS).unwrap_or_default();
    let keep = hv::Recommendations::NO_NONARCHITECTURAL_CORE_SHARING.bits();
    let hints = offered.recommendations().bits() & recommended.eax | recommended.eax & keep;
    let hints = if openvmm_like { hv::Recommendations::DEPRECATE_AUTO_EOI.bits() } else { hints };
    leaves.push(leaf(hv::LEAF_RECOMMENDATIONS, hints, u32::MAX, 0, 0));

    let limits = kvm(hv::LEAF_LIMITS).unwrap_or_default();
    let (vps, lps) = if openvmm_like { (0, 0) } else { (limits.eax, limits.ebx) };
    leaves.push(leaf(hv::LEAF_LIMITS, vps, lps, 0, 0));
    leaves.push(leaf(hv::LEAF_HARDWARE_FEATURES, 0, 0, 0, 0));
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn supported() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, [0xd, 0, 0, 0]),
            entry(1, [0x600f12, 0x1234_0800, LEAF1_ECX_TSC_DEADLINE, 0]),
            entry(0xb, [9, 9, 9, 9]),
            entry(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            entry(0x4000_0001, [0xffff, 0, 0, 0]),
            entry(0x8000_0007, [0, 0, 0, 1 << 8]),
            entry(0x8000_0008, [0x3028, 0, 0x4003, 0]),
        ]
    }

    fn hv_supported() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0x4000_0000, [0x4000_0082, 1, 2, 3]),
            entry(0x4000_0003, [0x2aff, 0x830, 0, 0xc_4d32]),
            entry(0x4000_0004, [0xe2c, 0xfff, 0, 0]),
            entry(0x4000_0005, [1024, 64, 0, 0]),
            entry(0x4000_0081, [1, 0, 0, 0]),
        ]
    }

    fn get(leaves: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        let mut found = leaves.iter().filter(|e| e.function == function);
        let first = *found.next().unwrap();
        assert!(function == 0xb || found.next().is_none(), "{function:#x} twice");
        first
    }

    fn shaped(id: u32, cpus: u32, hv: Option<HvFeatures>) -> Vec<kvm_cpuid_entry2> {
        let s = Shape {
            id,
            told_id: id,
            cpus,
            hv,
            tsc_deadline: true,
            openvmm_like: false,
            fixed_xcr0: None,
        };
        shape(&supported(), &hv_supported(), &s)
    }

    #[test]
    fn microsoft_signature_first_and_nothing_of_kvm() {
        let leaves = shaped(0, 1, Some(HvFeatures::all()));
        let vendor = get(&leaves, 0x4000_0000);
        assert_eq!((vendor.eax, vendor.ebx), (0x4000_0006, 0x7263_694d));
        assert_eq!(get(&leaves, 0x4000_0001).eax, 0x3123_7648);
        assert!(leaves.iter().all(|e| e.ebx != 0x4b4d_564b && e.function != 0x4000_0081));
        assert_ne!(get(&leaves, 1).ecx & hv::CPUID_1_ECX_HYPERVISOR, 0);
    }

    #[test]
    fn only_what_kvm_supports_is_offered() {
        let leaves = shaped(0, 1, Some(HvFeatures::all()));
        let f = get(&leaves, 0x4000_0003);
        // Debugging privilege and debug MSRs are KVM's to offer, not ours.
        assert_eq!((f.eax, f.ebx), (0x2aff, 0x30));
        assert_eq!(f.edx & hv::Features::DEBUG_MSRS.bits(), 0);
        assert_ne!(f.edx & hv::Features::DIRECT_SYNTHETIC_TIMERS.bits(), 0);
        assert_eq!(get(&leaves, 0x4000_0004).eax, 0xe2c);
    }

    #[test]
    fn withheld_features_leave_no_trace() {
        let without = HvFeatures::all_without("tlbflush,ipi,stimer-direct,ref-tsc,crash").unwrap();
        let leaves = shaped(0, 1, Some(without));
        let f = get(&leaves, 0x4000_0003);
        assert_eq!(f.eax, 0x2aff & !(1 << 9));
        assert_eq!(f.edx & (1 << 19 | 1 << 10), 0);
        assert_eq!(get(&leaves, 0x4000_0004).eax & (1 << 2 | 1 << 10), 0);
        let none = shaped(0, 1, Some(HvFeatures::empty()));
        let f = get(&none, 0x4000_0003);
        assert_eq!((f.eax, f.ebx, f.edx), (0, 0, 0));
    }

    #[test]
    fn no_hyperv_means_no_hypervisor() {
        let leaves = shaped(0, 1, None);
        assert!(leaves.iter().all(|e| !HYPERVISOR_LEAVES.contains(&e.function)));
        assert_eq!(get(&leaves, 1).ecx & hv::CPUID_1_ECX_HYPERVISOR, 0);
    }

    #[test]
    fn topology_gives_each_processor_its_id() {
        let leaves = shaped(2, 3, Some(HvFeatures::all()));
        let one = get(&leaves, 1);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_eq!(one.ebx & 0xffff, 0x0800);
        assert_ne!(one.ecx & (LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE), 0);
        let b: Vec<_> = leaves.iter().filter(|e| e.function == 0xb).collect();
        assert_eq!(b.len(), 3);
        assert!(b.iter().all(|e| e.edx == 2));
        assert_eq!((b[1].eax, b[1].ebx, b[1].ecx), (2, 3, 0x201));
        assert_eq!(get(&leaves, 0x8000_0008).ecx, 2 << 12 | 2);
        assert_eq!(get(&leaves, 0x8000_0007).edx, 1 << 8, "invariant TSC is passed on");
    }

    #[test]
    fn openvmm_like() {
        let s = Shape {
            id: 0,
            told_id: 0,
            cpus: 1,
            hv: Some(HvFeatures::OPENVMM),
            tsc_deadline: true,
            openvmm_like: true,
            fixed_xcr0: None,
        };
        let leaves = shape(&supported(), &hv_supported(), &s);
        let f = get(&leaves, 0x4000_0003);
        assert_eq!((f.eax, f.ebx), (0x87f, 0));
        assert_eq!(get(&leaves, 0x4000_0004).eax, 0x200);
        assert_eq!(get(&leaves, 0x4000_0005).eax, 0);
        assert_eq!(get(&leaves, 1).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn emulated_host_fixes_the_extended_states() {
        let tcg = [*b"TCGT", *b"CGTC", *b"GTCG"].map(u32::from_le_bytes);
        assert_eq!(fixed_xcr0(tcg), Some(7));
        assert_eq!(fixed_xcr0(hv::VENDOR_MICROSOFT), None);
        let mut supported = supported();
        supported.push(entry(7, [0, 0, 0x18, 0]));
        for (index, regs) in
            [(0, [0x207, 0x240, 0xa88, 0]), (1, [5, 0, 0, 0]), (2, [0x100, 0x240, 0, 0])]
        {
            supported.push(kvm_cpuid_entry2 { index, ..entry(0xd, regs) });
        }
        supported.push(kvm_cpuid_entry2 { index: 9, ..entry(0xd, [8, 0xa80, 0, 0]) });
        let mut s = Shape {
            id: 0,
            told_id: 0,
            cpus: 1,
            hv: None,
            tsc_deadline: true,
            openvmm_like: false,
            fixed_xcr0: Some(7),
        };
        let leaves = shape(&supported, &[], &s);
        let d: Vec<_> = leaves.iter().filter(|e| e.function == 0xd).collect();
        assert_eq!(d.len(), 3);
        assert_eq!((d[0].eax, d[0].ecx), (7, 0x340));
        assert_eq!(get(&leaves, 7).ecx, 0);
        s.fixed_xcr0 = None;
        assert_eq!(shape(&supported, &[], &s).iter().filter(|e| e.function == 0xd).count(), 4);
    }
}
