//! CPUID as the guest kernel sees it through the forced-emulation prefix: Xen 4.17's default
//! policy for a PV domU on the processor at hand, and Xen's own leaves. User mode executes CPUID
//! natively and sees the host's.
//!
//! Every feature word is the processor's and a mask. The masks are what Xen offers a PV guest by
//! default (the `A` features of `xen/include/public/arch-x86/cpufeatureset.h`), less what the
//! shim does not provide:
//! - IBRS, IBPB, STIBP, SSBD, PSFD, SBPB, ARCH_CAPABILITIES: their MSRs are not passed on;
//! - DBEXT: its address-mask MSRs are not.
//!
//! MCE and MCA are shown as Xen shows them, with banks that stay empty: no machine checks are
//! passed on. On AMD's processors SEP is hidden: outside of legacy mode they have no SYSENTER
//! (`init_amd`).
//!
//! The invariant TSC is shown where it is true, as Xen shows it to a domain that does not migrate
//! (`init_dom0_cpuid_policy`, pv-shim's guest included), and TSC_ADJUST with it: docs/time.md says
//! why.

use xen_abi::cpuid::{
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, XEN_CPUID_FIRST_LEAF, XEN_CPUID_HOST_TSC_RELIABLE,
    XEN_CPUID_MAX_PV_LEAF, XEN_CPUID_RDTSCP_INSTR_AVAIL, XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX, XEN_HYPERCALL_MSR,
};
use xen_abi::{Mfn, PAGE_SHIFT};

use super::control::CR4_OSXSAVE;
use crate::Ctx;
use crate::platform::{CpuidResult, Platform};
use crate::version::VERSION;

/// Leaf 1 EDX, and the common features of 0x80000001 EDX.
const MASK_1D: u32 = 0x1fc9_cbf5;
/// Leaf 1 ECX.
const MASK_1C: u32 = 0xf6d8_3203;
/// Leaf 0x80000001 EDX.
const MASK_E1D: u32 = 0xea50_0800;
/// Leaf 0x80000001 ECX.
const MASK_E1C: u32 = 0x0021_09e3;
/// Leaf 0xd, 1 EAX: XSAVEOPT, XSAVEC, XGETBV1.
const MASK_DA1: u32 = 7;
/// Leaf 7, 0 EBX.
const MASK_7B0: u32 = 0xfdaf_0b29;
/// x87 facts that are the processor's whoever looks: FDP_EXCP_ONLY, NO_FPU_SEL.
const FPU_FACTS_7B0: u32 = 1 << 6 | 1 << 13;
/// Leaf 7, 0 EBX.
const TSC_ADJUST: u32 = 1 << 1;
/// Leaf 0x80000007 EDX.
const ITSC: u32 = 1 << 8;
/// Leaf 7, 0 ECX.
const MASK_7C0: u32 = 0x0240_5f43;
/// Leaf 7, 0 EDX.
const MASK_7D0: u32 = 0x0000_441c;
/// Leaf 7, 1 EAX.
const MASK_7A1: u32 = 0x0000_1c30;
/// Leaf 7, 2 EDX.
const MASK_7D2: u32 = 0x0000_0020;
/// Leaf 0x80000008 EBX.
const MASK_E8B: u32 = 0x2400_0005;
/// Leaf 0x80000021 EAX.
const MASK_E21A: u32 = 0x2000_0064;
/// Features of leaf 1 EDX that AMD repeats in 0x80000001 EDX.
const COMMON_1D: u32 = 0x0183_f3ff;

/// Leaf 1 EDX.
const SEP: u32 = 1 << 11;
/// Leaf 0x80000008 EAX, width of physical addresses; and 48 bits of linear ones, as page tables
/// of four levels have, whatever the processor has.
const PHYSICAL_BITS: u32 = 0xff;
const LINEAR_BITS_48: u32 = 48 << 8;

const HYPERVISOR: u32 = 1 << 31;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
/// FMA, XSAVE itself, AVX, F16C.
const NEEDS_XSAVE: u32 = 1 << 12 | XSAVE | AVX | 1 << 29;
const AVX512F: u32 = 1 << 16;
const XSAVEC: u32 = 1 << 1;

/// Highest leaves (`CPUID_GUEST_NR_*`).
const MAX_BASIC: u32 = 0xd;
const MAX_FEATURE_SUBLEAF: u32 = 2;
const MAX_EXTENDED_INTEL: u32 = 0x8000_0008;
const MAX_EXTENDED_AMD: u32 = 0x8000_0021;
const EXTENDED: u32 = 0x8000_0000;
/// Subleaves of leaf 4.
const CACHE_SUBLEAVES: u32 = 6;
const ZERO: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// Who made the processor, as far as policies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "names")]
pub enum Vendor {
    Intel,
    /// And Hygon.
    Amd,
    Other,
}

/// The processor's vendor.
pub fn vendor<P: Platform>(cx: &Ctx<'_, P>) -> Vendor {
    match cx.plat.cpuid(0, 0).ebx {
        0x756e_6547 => Vendor::Intel,
        0x6874_7541 | 0x6f67_7948 => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn max_basic<P: Platform>(cx: &Ctx<'_, P>) -> u32 {
    cx.plat.cpuid(0, 0).eax.min(MAX_BASIC)
}

fn features_1c<P: Platform>(cx: &Ctx<'_, P>) -> u32 {
    let ecx = cx.plat.cpuid(1, 0).ecx & MASK_1C;
    // Without leaf 0xd nothing can be said of XSAVE, nor of what depends on it.
    if max_basic(cx) < 0xd || ecx & XSAVE == 0 { ecx & !NEEDS_XSAVE } else { ecx }
}

/// Whether the guest has XSAVE.
pub(super) fn has_xsave<P: Platform>(cx: &Ctx<'_, P>) -> bool {
    features_1c(cx) & XSAVE != 0
}

/// Whether the guest has the invariant TSC, and TSC_ADJUST.
pub(super) fn has_invariant_tsc<P: Platform>(cx: &Ctx<'_, P>) -> bool {
    cx.plat.tsc_scale().invariant
}

/// The XCR0 bits a guest may have.
pub(super) fn xcr0_mask<P: Platform>(cx: &Ctx<'_, P>) -> u64 {
    let features = features_1c(cx);
    if features & XSAVE == 0 {
        return 0;
    }
    let mut mask = 3;
    if features & AVX != 0 {
        mask |= 1 << 2;
        if cx.plat.cpuid(7, 0).ebx & MASK_7B0 & AVX512F != 0 {
            mask |= 7 << 5;
        }
    }
    let hardware = cx.plat.cpuid(0xd, 0);
    mask & u64::from(hardware.eax)
}

/// The guest's view of a leaf. `kernel`: it asks from kernel mode.
#[must_use]
pub fn cpuid<P: Platform>(cx: &Ctx<'_, P>, leaf: u32, subleaf: u32, kernel: bool) -> CpuidResult {
    match leaf {
        0..=MAX_BASIC => basic(cx, leaf, subleaf, kernel),
        XEN_CPUID_FIRST_LEAF..=XEN_CPUID_MAX_PV_LEAF => xen(cx, leaf, subleaf),
        EXTENDED..=MAX_EXTENDED_AMD => extended(cx, leaf),
        _ => ZERO,
    }
}

fn basic<P: Platform>(cx: &Ctx<'_, P>, leaf: u32, subleaf: u32, kernel: bool) -> CpuidResult {
    let max = max_basic(cx);
    if leaf > max {
        return ZERO;
    }
    let hardware = || cx.plat.cpuid(leaf, subleaf);
    match leaf {
        0 => CpuidResult { eax: max, ..hardware() },
        1 => leaf_1(cx, &hardware(), kernel),
        // Cache descriptors and parameters are Intel's leaves; their core counts are hidden.
        2 if vendor(cx) == Vendor::Intel => {
            let leaf = hardware();
            CpuidResult { eax: leaf.eax & !0xff | 1, ..leaf }
        }
        4 if vendor(cx) == Vendor::Intel && subleaf < CACHE_SUBLEAVES => {
            let leaf = hardware();
            match leaf.eax & 0x1f {
                1..=3 => CpuidResult { eax: leaf.eax & 0xffff_c3ff, edx: leaf.edx & 7, ..leaf },
                _ => ZERO,
            }
        }
        7 => leaf_7(cx, subleaf),
        0xd => xstate(cx, subleaf),
        // Serial number, MONITOR, power, DCA, performance monitor, topology: not for guests.
        _ => ZERO,
    }
}

/// Leaf 1. The APIC id reads 0 on every vCPU of a PV guest, and OSXSAVE is set for its kernel
/// from the first: both are Xen's, and Linux counts on the second.
fn leaf_1<P: Platform>(cx: &Ctx<'_, P>, hardware: &CpuidResult, kernel: bool) -> CpuidResult {
    let mut ecx = features_1c(cx) | HYPERVISOR;
    let xsave = ecx & XSAVE != 0;
    if xsave && (kernel || cx.plat.guest_cr4() & CR4_OSXSAVE != 0) {
        ecx |= OSXSAVE;
    }
    CpuidResult {
        eax: hardware.eax & 0x0fff_0fff,
        ebx: hardware.ebx & 0x00ff_ffff,
        ecx,
        edx: hardware.edx & if vendor(cx) == Vendor::Amd { MASK_1D & !SEP } else { MASK_1D },
    }
}

fn leaf_7<P: Platform>(cx: &Ctx<'_, P>, subleaf: u32) -> CpuidResult {
    let max = cx.plat.cpuid(7, 0).eax.min(MAX_FEATURE_SUBLEAF);
    if subleaf > max {
        return ZERO;
    }
    let hardware = cx.plat.cpuid(7, subleaf);
    match subleaf {
        0 => {
            let mut ebx = hardware.ebx & MASK_7B0;
            if features_1c(cx) & AVX == 0 {
                // AVX2 and all of AVX-512.
                ebx &= !(1 << 5 | 0xdc23_0000);
            }
            if has_invariant_tsc(cx) {
                ebx |= TSC_ADJUST;
            }
            CpuidResult {
                eax: max,
                ebx: ebx | hardware.ebx & FPU_FACTS_7B0,
                ecx: hardware.ecx & MASK_7C0,
                edx: hardware.edx & MASK_7D0,
            }
        }
        1 => CpuidResult { eax: hardware.eax & MASK_7A1, ..ZERO },
        2 => CpuidResult { edx: hardware.edx & MASK_7D2, ..ZERO },
        _ => ZERO,
    }
}

/// Leaf 0xd: what XCR0 may hold, and the sizes that follow.
fn xstate<P: Platform>(cx: &Ctx<'_, P>, subleaf: u32) -> CpuidResult {
    let mask = xcr0_mask(cx);
    if mask == 0 {
        return ZERO;
    }
    let hardware = cx.plat.cpuid(0xd, subleaf);
    match subleaf {
        0 => {
            // The legacy area and header, then the components where they end.
            let size = (2..32).filter(|n| mask >> n & 1 == 1).fold(576, |size: u32, n| {
                let component = cx.plat.cpuid(0xd, n);
                size.max(component.ebx.saturating_add(component.eax))
            });
            // EBX is the processor's own sum for the XCR0 in force.
            CpuidResult { eax: mask as u32, ebx: hardware.ebx, ecx: size, edx: 0 }
        }
        1 => {
            let eax = hardware.eax & MASK_DA1;
            CpuidResult { eax, ebx: if eax & XSAVEC != 0 { hardware.ebx } else { 0 }, ..ZERO }
        }
        // ECX: not a supervisor state; whether it is aligned in the compact format.
        2..=62 if mask >> subleaf & 1 == 1 => {
            CpuidResult { eax: hardware.eax, ebx: hardware.ebx, ecx: hardware.ecx & 2, edx: 0 }
        }
        _ => ZERO,
    }
}

fn extended<P: Platform>(cx: &Ctx<'_, P>, leaf: u32) -> CpuidResult {
    let vendor = vendor(cx);
    let amd = vendor == Vendor::Amd;
    let limit = if amd { MAX_EXTENDED_AMD } else { MAX_EXTENDED_INTEL };
    let top = cx.plat.cpuid(EXTENDED, 0);
    let max = top.eax.min(limit);
    if leaf > max {
        return ZERO;
    }
    let hardware = cx.plat.cpuid(leaf, 0);
    match leaf & 0xff {
        0 if amd => CpuidResult { eax: max, ..top },
        0 => CpuidResult { eax: max, ..ZERO },
        1 => {
            let common = if amd { cx.plat.cpuid(1, 0).edx & MASK_1D & COMMON_1D } else { 0 };
            CpuidResult {
                eax: if amd { hardware.eax & 0x0fff_0fff } else { 0 },
                ebx: if amd { hardware.ebx & 0xff00_ffff } else { 0 },
                ecx: hardware.ecx & MASK_E1C,
                edx: hardware.edx & MASK_E1D | common,
            }
        }
        // The brand; caches and TLBs.
        2..=4 => hardware,
        5 if amd => hardware,
        6 if amd => hardware,
        6 => CpuidResult { ecx: hardware.ecx, ..ZERO },
        7 => CpuidResult { edx: if has_invariant_tsc(cx) { ITSC } else { 0 }, ..ZERO },
        8 => CpuidResult {
            eax: hardware.eax & PHYSICAL_BITS | LINEAR_BITS_48,
            ebx: hardware.ebx & MASK_E8B,
            ecx: if amd { hardware.ecx & 0x0003_f0ff } else { 0 },
            edx: 0,
        },
        0x1a => hardware,
        0x21 => CpuidResult { eax: hardware.eax & MASK_E21A, ecx: hardware.ecx, ..ZERO },
        // SVM, large-page TLBs, IBS, topology, SEV.
        _ => ZERO,
    }
}

/// Xen's own leaves.
fn xen<P: Platform>(cx: &Ctx<'_, P>, leaf: u32, subleaf: u32) -> CpuidResult {
    match (leaf - XEN_CPUID_FIRST_LEAF, subleaf) {
        (0, _) => CpuidResult {
            eax: XEN_CPUID_MAX_PV_LEAF,
            ebx: XEN_CPUID_SIGNATURE_EBX,
            ecx: XEN_CPUID_SIGNATURE_ECX,
            edx: XEN_CPUID_SIGNATURE_EDX,
        },
        (1, _) => CpuidResult { eax: VERSION as u32, ..ZERO },
        // One hypercall page, by way of this MSR.
        (2, _) => CpuidResult {
            eax: 1,
            ebx: XEN_HYPERCALL_MSR,
            ecx: XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
            edx: 0,
        },
        (3, 0) => {
            let scale = cx.plat.tsc_scale();
            let rdtscp = cx.plat.cpuid(0x8000_0001, 0).edx >> 27 & 1 == 1;
            let reliable = if scale.stable { XEN_CPUID_HOST_TSC_RELIABLE } else { 0 };
            let rdtscp = if rdtscp { XEN_CPUID_RDTSCP_INSTR_AVAIL } else { 0 };
            // EBX: mode 0, not emulated; EDX: the incarnation, 1 for a domain never migrated.
            CpuidResult { eax: reliable | rdtscp, ebx: 0, ecx: scale.khz, edx: 1 }
        }
        (3, 1) => {
            let scale = cx.plat.tsc_scale();
            CpuidResult { ecx: scale.mul, edx: i32::from(scale.shift) as u32, ..ZERO }
        }
        (3, 2) => CpuidResult { eax: cx.plat.tsc_scale().khz, ..ZERO },
        (5, 0) => CpuidResult { ebx: machine_address_bits(cx.plat.max_mfn()), ..ZERO },
        // Leaf 4 is for HVM guests.
        _ => ZERO,
    }
}

/// Width of the machine addresses below a frame.
pub(super) const fn machine_address_bits(above: Mfn) -> u32 {
    let highest = above.0.saturating_sub(1);
    u64::BITS - highest.leading_zeros() + PAGE_SHIFT
}
